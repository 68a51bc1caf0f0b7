"""Identities of the cluster: who they are, what is asked for them, and how long an answer holds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from engineroom.auth.errors import TokenError
from engineroom.auth.kubernetes import (
    CACHE_SECONDS,
    KubernetesIdentity,
    ResourceAttributes,
    attributes_of,
)
from engineroom.auth.permissions import Permission
from engineroom.core.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

USER = {"username": "ann", "uid": "1", "groups": ["dev"], "extra": {"a": ["b"]}}


class Cluster:
    """The in-memory twin: knows tokens and allows what it is told."""

    def __init__(self) -> None:
        self.tokens: dict[str, dict[str, Any]] = {"good": {"authenticated": True, "user": USER}}
        self.allowed = True
        self.asked: list[Mapping[str, Any]] = []
        self.reviewed: list[str] = []

    async def review_token(self, token: str, audiences: Sequence[str]) -> Mapping[str, Any]:
        del audiences
        self.reviewed.append(token)
        return self.tokens.get(token, {"authenticated": False})

    async def review_access(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked.append(spec)
        return {"allowed": self.allowed}


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def identity(cluster: Cluster, clock: FakeClock) -> KubernetesIdentity:
    return KubernetesIdentity(cluster, clock)


async def test_a_token_is_reviewed_once_in_a_while(
    identity: KubernetesIdentity, cluster: Cluster, clock: FakeClock
) -> None:
    found = await asyncio.gather(*(identity.authenticate("good") for _ in range(5)))
    assert {p.subject for p in found} == {"kubernetes:ann"}
    assert cluster.reviewed == ["good"]
    clock.advance(CACHE_SECONDS + 0.1)
    cluster.tokens.clear()
    with pytest.raises(TokenError):
        await identity.authenticate("good")


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"authenticated": False, "user": USER},
        {"authenticated": "true", "user": USER},
        {"authenticated": True},
        {"authenticated": True, "user": {"username": ""}},
        {"authenticated": True, "user": {"username": 7}},
    ],
)
async def test_what_is_not_clearly_somebody_is_nobody(
    identity: KubernetesIdentity, cluster: Cluster, status: dict[str, Any]
) -> None:
    cluster.tokens["odd"] = status
    with pytest.raises(TokenError):
        await identity.authenticate("odd")


async def test_an_audience_that_was_not_confirmed_is_none(cluster: Cluster) -> None:
    identity = KubernetesIdentity(cluster, FakeClock(), audiences=["engineroom"])
    with pytest.raises(TokenError):
        await identity.authenticate("good")
    cluster.tokens["ours"] = {"authenticated": True, "user": USER, "audiences": ["engineroom"]}
    assert (await identity.authenticate("ours")).username == "ann"


async def test_long_tokens_are_refused_unseen(
    identity: KubernetesIdentity, cluster: Cluster
) -> None:
    with pytest.raises(TokenError):
        await identity.authenticate("x" * 10_000)
    assert cluster.reviewed == []


async def test_the_question_names_the_person_and_the_thing(
    identity: KubernetesIdentity, cluster: Cluster
) -> None:
    ann = await identity.authenticate("good")
    decision = await identity.decide(ann, Permission.NAMESPACE_POOLS_SCALE, "shop")
    assert decision.allowed
    assert cluster.asked == [
        {
            "user": "ann",
            "uid": "1",
            "groups": ["dev"],
            "extra": {"a": ["b"]},
            "resourceAttributes": {
                "verb": "patch",
                "group": "engineroom.dev",
                "resource": "workerpools",
                "subresource": "scale",
                "namespace": "shop",
            },
        }
    ]


async def test_an_answer_holds_for_a_second(
    identity: KubernetesIdentity, cluster: Cluster, clock: FakeClock
) -> None:
    ann = await identity.authenticate("good")
    cluster.allowed = False
    for _ in range(3):
        refused = await identity.decide(ann, Permission.NAMESPACE_JOBS_RETRY, "shop")
        assert not refused.allowed
        assert "ann may not retry jobs.engineroom.dev in shop" in refused.reason
    assert len(cluster.asked) == 1
    clock.advance(CACHE_SECONDS + 0.1)
    cluster.allowed = True
    assert (await identity.decide(ann, Permission.NAMESPACE_JOBS_RETRY, "shop")).allowed


async def test_nothing_is_asked_where_the_answer_is_no(
    identity: KubernetesIdentity, cluster: Cluster
) -> None:
    ann = await identity.authenticate("good")
    assert (await identity.decide(ann, Permission.SELF_IDENTITY_READ)).allowed
    assert not (await identity.decide(ann, Permission.SELF_KEYS_MANAGE)).allowed
    assert not (await identity.decide(ann, Permission.NAMESPACE_JOBS_READ)).allowed
    assert cluster.asked == []


def test_every_permission_is_something_of_the_cluster() -> None:
    for permission in Permission:
        found = attributes_of(permission)
        assert found.verb
        assert found.resource
    assert attributes_of("cluster:audit:read") == ResourceAttributes("get", "audit")
    with pytest.raises(ValueError, match="scope:resource:action"):
        attributes_of("everything")
