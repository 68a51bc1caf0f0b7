"""Answers about authors are kept for seconds and asked for once at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from engineroom.api.validation.pod_security import PodSecurityLevel
from engineroom.core.clock import FakeClock
from engineroom.kube.client.errors import NotFound, Unreachable
from engineroom_webhooks.authorization import ClusterAuthorizer, RequestUser

if TYPE_CHECKING:
    from engineroom.kube.client.client import Client

ANN = RequestUser("ann", groups=("dev",), extra='{"a": ["b"]}')


class Api:
    """The two verbs that are used, answered from memory."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.allowed = True
        self.labels: dict[str, str] | None = {}
        self.broken = False

    async def create(self, ref: object, obj: dict[str, Any], **_: object) -> dict[str, Any]:
        self.asked.append(obj["spec"])
        await asyncio.sleep(0)
        if self.broken:
            raise Unreachable("gone")
        return {"status": {"allowed": self.allowed}}

    async def get(self, ref: object, _: None, name: str, **__: object) -> dict[str, Any]:
        self.asked.append({"namespace": name})
        if self.labels is None:
            raise NotFound(name)
        return {"metadata": {"labels": self.labels}}


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def authorizer(api: Api, clock: FakeClock) -> ClusterAuthorizer:
    return ClusterAuthorizer(cast("Client", api), clock)


async def test_the_review_says_who_and_what(authorizer: ClusterAuthorizer, api: Api) -> None:
    assert await authorizer.may_create_pods(ANN, "shop")

    assert api.asked == [
        {
            "user": "ann",
            "uid": "",
            "groups": ["dev"],
            "extra": {"a": ["b"]},
            "resourceAttributes": {
                "namespace": "shop",
                "verb": "create",
                "version": "v1",
                "resource": "pods",
            },
        }
    ]


async def test_a_trusted_author_is_not_asked_about(api: Api, clock: FakeClock) -> None:
    authorizer = ClusterAuthorizer(cast("Client", api), clock, frozenset({"ann"}))
    assert await authorizer.may_create_pods(ANN, "shop")
    assert api.asked == []


async def test_one_question_at_a_time(authorizer: ClusterAuthorizer, api: Api) -> None:
    answers = await asyncio.gather(*(authorizer.may_create_pods(ANN, "shop") for _ in range(20)))

    assert all(answers)
    assert len(api.asked) == 1


async def test_yes_is_kept_longer_than_no(
    authorizer: ClusterAuthorizer, api: Api, clock: FakeClock
) -> None:
    await authorizer.may_create_pods(ANN, "shop")
    clock.advance(29)
    await authorizer.may_create_pods(ANN, "shop")
    assert len(api.asked) == 1

    api.allowed = False
    clock.advance(2)
    assert not await authorizer.may_create_pods(ANN, "shop")
    clock.advance(6)
    assert not await authorizer.may_create_pods(ANN, "shop")
    assert len(api.asked) == 3


@pytest.mark.parametrize(
    "other",
    [
        RequestUser("ann", groups=("dev",)),
        RequestUser("ann", groups=("ops",), extra='{"a": ["b"]}'),
        RequestUser("ben", groups=("dev",), extra='{"a": ["b"]}'),
    ],
)
async def test_answers_are_not_shared_between_authors(
    authorizer: ClusterAuthorizer, api: Api, other: RequestUser
) -> None:
    await authorizer.may_create_pods(ANN, "shop")
    api.allowed = False

    assert not await authorizer.may_create_pods(other, "shop")
    assert not await authorizer.may_create_pods(ANN, "elsewhere")


async def test_failure_is_not_kept(authorizer: ClusterAuthorizer, api: Api) -> None:
    api.broken = True
    with pytest.raises(Unreachable):
        await authorizer.may_create_pods(ANN, "shop")

    api.broken = False
    assert await authorizer.may_create_pods(ANN, "shop")


@pytest.mark.parametrize(
    ("labels", "level"),
    [
        ({}, PodSecurityLevel.RESTRICTED),
        ({"pod-security.kubernetes.io/enforce": "privileged"}, PodSecurityLevel.PRIVILEGED),
        ({"pod-security.kubernetes.io/enforce": "baseline"}, PodSecurityLevel.BASELINE),
        ({"pod-security.kubernetes.io/enforce": "whatever"}, PodSecurityLevel.RESTRICTED),
        ({"pod-security.kubernetes.io/warn": "privileged"}, PodSecurityLevel.RESTRICTED),
        (None, PodSecurityLevel.RESTRICTED),
    ],
)
async def test_level_of_a_namespace(
    authorizer: ClusterAuthorizer, api: Api, labels: dict[str, str] | None, level: PodSecurityLevel
) -> None:
    api.labels = labels

    assert await authorizer.level("shop") is level


async def test_rubbish_is_an_author_without_a_name() -> None:
    assert RequestUser.of(None) == RequestUser("")
    assert RequestUser.of({"username": 5, "groups": "x", "extra": []}) == RequestUser("5")


async def test_the_review_of_a_secret_names_it(authorizer: ClusterAuthorizer, api: Api) -> None:
    assert await authorizer.may_get_secret(ANN, "shop", "redis")
    assert api.asked[-1]["resourceAttributes"] == {
        "namespace": "shop", "version": "v1", "verb": "get", "resource": "secrets", "name": "redis",
    }  # fmt: skip
    api.allowed = False
    assert not await authorizer.may_get_secret(ANN, "shop", "other")
