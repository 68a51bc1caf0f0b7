"""Reviews: what is looked at, what is asked, and what the author reads."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engineroom.api.validation.pod_security import PodSecurityLevel
from engineroom.kube.client.errors import Unreachable
from engineroom_webhooks.authorization import AllowAll, RequestUser
from engineroom_webhooks.review import UnreadableReviewError, answer
from tests.unit.api.policies import policy
from tests.unit.api.specs import pool

POD = "spec.template.spec"
CONTAINER = f"{POD}.containers[0]"
SECRET_ENV = {
    f"{CONTAINER}.env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]
}


def review(
    new: dict[str, Any] | None = None, old: dict[str, Any] | None = None, **request: Any
) -> dict[str, Any]:
    made = {
        "uid": "1-2-3",
        "operation": "CREATE" if old is None else "UPDATE",
        "namespace": "shop",
        "name": "mail",
        "userInfo": {"username": "ann", "groups": ["dev"], "extra": {"a": ["b"]}},
        "object": pool() if new is None else new,
        "oldObject": old,
        **request,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": made}


class Rights:
    """An authority in memory that remembers what it was asked."""

    def __init__(
        self,
        level: PodSecurityLevel = PodSecurityLevel.RESTRICTED,
        *,
        allowed: bool = True,
        secrets: tuple[str, ...] = (),
    ) -> None:
        self._level = level
        self._allowed = allowed
        self._secrets = secrets
        self.asked: list[Any] = []
        self.sharing = {"shop"}

    async def level(self, namespace: str) -> PodSecurityLevel:
        self.asked.append(namespace)
        return self._level

    async def may_use_shared_redis(self, namespace: str) -> bool:
        return namespace in self.sharing

    async def may_create_pods(self, author: RequestUser, namespace: str) -> bool:
        self.asked.append((author.username, namespace))
        return self._allowed

    async def may_get_secret(self, author: RequestUser, namespace: str, name: str) -> bool:
        self.asked.append((author.username, namespace, name))
        return name in self._secrets


async def test_valid_pool_is_allowed() -> None:
    rights = Rights()

    found = await answer(review(), rights)

    assert found.document() == {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {"uid": "1-2-3", "allowed": True},
    }
    assert rights.asked == [("ann", "shop")]


async def test_wrong_pool_is_refused_with_field_problem_and_fix() -> None:
    found = await answer(review(pool({"spec.workersPerPod": 0})), Rights())

    response = found.document()["response"]
    assert response["allowed"] is False
    assert response["status"]["code"] == 422
    assert response["status"]["message"] == (
        "WorkerPool mail is invalid: spec.workersPerPod: 0 is less than 1; write a number from 1 "
        "to 64"
    )
    assert response["status"]["details"]["causes"] == [
        {
            "reason": "FieldValueInvalid",
            "field": "spec.workersPerPod",
            "message": "0 is less than 1; write a number from 1 to 64",
        }
    ]


async def test_several_problems_are_one_a_line() -> None:
    wrong = pool({"spec.workersPerPod": 0, f"{CONTAINER}.args": ["a"]})

    message = (await answer(review(wrong), Rights())).document()["response"]["status"]["message"]

    assert [line.split(":")[0] for line in message.split("\n")] == [
        "WorkerPool mail is invalid",
        "* spec.workersPerPod",
        "* spec.template.spec.containers[0].args",
    ]


async def test_warnings_are_passed_on_and_short() -> None:
    found = await answer(review(pool({f"{CONTAINER}.image": "shop"})), Rights())

    (warning,) = found.document()["response"]["warnings"]
    assert "names no fixed version" in warning
    assert len(warning) <= 250


@pytest.mark.parametrize(
    "request_",
    [
        {"operation": "DELETE", "object": None, "old": pool({"spec.workersPerPod": 0})},
        {"operation": "CONNECT", "object": None},
        {"subResource": "status"},
    ],
)
async def test_what_does_not_touch_the_spec_is_allowed(request_: dict[str, Any]) -> None:
    wrong = pool({"spec.workersPerPod": 0})
    old = request_.pop("old", None)

    found = await answer(review(wrong, old, **request_), Rights())

    assert found.allowed


async def test_invalid_object_that_is_stored_can_lose_its_finalizer() -> None:
    old = pool({"spec.workersPerPod": 0, "metadata.finalizers": ["a"]})
    new = pool({"spec.workersPerPod": 0, "metadata.deletionTimestamp": "2026-01-01T00:00:00Z"})

    assert (await answer(review(new, old), Rights())).allowed


async def test_spec_changed_while_an_object_goes_away_is_still_checked() -> None:
    new = pool({f"{POD}.hostNetwork": True, "metadata.deletionTimestamp": "2026-01-01T00:00:00Z"})

    assert not (await answer(review(new, pool()), Rights())).allowed


# -- what goes beyond restricted ----------------------------------------------------------------

HOST = {f"{POD}.hostNetwork": True}


async def test_host_network_needs_a_privileged_namespace() -> None:
    assert not (await answer(review(pool(HOST)), Rights(PodSecurityLevel.RESTRICTED))).allowed
    assert not (await answer(review(pool(HOST)), Rights(PodSecurityLevel.BASELINE))).allowed
    assert (await answer(review(pool(HOST)), Rights(PodSecurityLevel.PRIVILEGED))).allowed


async def test_host_network_needs_an_author_who_may_create_pods() -> None:
    rights = Rights(PodSecurityLevel.PRIVILEGED, allowed=False)

    found = await answer(review(pool(HOST)), rights)

    assert found.document()["response"]["status"] == {
        "code": 403,
        "reason": "Forbidden",
        "message": (
            "spec.template, spec.queues: only authors who may create pods in namespace shop may "
            "set this, and ann may not; remove it or get that right"
        ),
    }
    assert rights.asked == ["shop", ("ann", "shop")]


REDIS = {"spec.redis": {"urlSecretRef": {"name": "s", "key": "k"}}}
SCHEDULES = {"spec.schedules": [{"name": "a", "every": "1h", "function": "os.getenv"}]}
ARGUMENT = {"spec.schedules": [{"name": "a", "every": "1h", "function": "a.b", "args": [1]}]}
TRUE = {"spec.schedules": [{"name": "a", "every": "1h", "function": "a.b", "args": [True]}]}


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        (None, {}, "spec.template, spec.queues"),
        ({}, {f"{CONTAINER}.image": "evil:1"}, "spec.template"),
        ({}, {f"{CONTAINER}.command": ["evil"]}, "spec.template"),
        # The Redis is the same, and what runs with its URL changes.
        (REDIS, {**REDIS, f"{CONTAINER}.image": "evil:1"}, "spec.template"),
        ({}, {f"{POD}.serviceAccountName": "admin"}, "spec.template"),
        ({}, {f"{POD}.automountServiceAccountToken": True}, "spec.template"),
        ({}, SECRET_ENV, "spec.template"),
        ({}, REDIS, "spec.redis"),
        # Without it the pool uses the installation's Redis.
        (REDIS, {}, "spec.redis"),
        ({}, SCHEDULES, "spec.schedules"),
        (SCHEDULES, {}, "spec.schedules"),
        (ARGUMENT, TRUE, "spec.schedules"),
        ({}, {"spec.queues": [{"name": "mail"}, {"name": "payments"}]}, "spec.queues"),
    ],
)
async def test_what_decides_what_runs_needs_an_author_who_may_create_pods(
    old: dict[str, Any] | None, new: dict[str, Any], field: str
) -> None:
    request = review(pool(new), None if old is None else pool(old))
    rights = Rights(allowed=False, secrets=("s",))

    found = await answer(request, rights)

    assert found.forbidden.startswith(field)
    assert "only authors who may create pods in namespace shop may set this" in found.forbidden
    assert rights.asked == [("ann", "shop")]
    assert (await answer(request, Rights(secrets=("s",)))).allowed
    assert (await answer(request, AllowAll())).allowed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"spec.suspend": True}),
        ({}, {"spec.replicas": 3}),
        (SECRET_ENV, {**SECRET_ENV, "spec.suspend": True}),
        (SCHEDULES, {**SCHEDULES, "spec.deadLetter": {"maxJobs": 10}}),
        ({}, {"spec.schedules": []}),
    ],
)
async def test_what_decides_nothing_of_that_needs_no_right(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    rights = Rights(allowed=False)

    assert (await answer(review(pool(new), pool(old)), rights)).allowed
    assert rights.asked == []


@pytest.mark.parametrize("old", [None, {}, REDIS])
async def test_a_secret_needs_an_author_who_may_get_it(old: dict[str, Any] | None) -> None:
    new = pool({**REDIS, f"{CONTAINER}.image": "shop:2"})
    request = review(new, None if old is None else pool(old))
    rights = Rights(secrets=("other",))

    found = await answer(request, rights)

    assert found.document()["response"]["status"]["message"] == (
        "spec.redis.urlSecretRef: only authors who may get Secret shop/s may name it, and ann may "
        "not; name another Secret or get that right"
    )
    assert rights.asked == [("ann", "shop"), ("ann", "shop", "s")]
    assert (await answer(request, Rights(secrets=("s",)))).allowed


async def test_silence_of_the_api_server_is_a_refusal_that_may_be_repeated() -> None:
    class Silent(AllowAll):
        async def may_create_pods(self, author: RequestUser, namespace: str) -> bool:
            raise Unreachable("gone")

    found = await answer(review(pool(SECRET_ENV)), Silent())

    status = found.document()["response"]["status"]
    assert (status["code"], status["reason"]) == (503, "ServiceUnavailable")
    assert "try again" in status["message"]


# -- rubbish ------------------------------------------------------------------------------------

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["uid", "operation", "namespace", "name", "userInfo", "object", "oldObject"]),
    JSON,
)
async def test_any_request_gets_an_answer_or_is_unreadable(key: str, value: Any) -> None:
    document = review(pool({**HOST, **SECRET_ENV}), pool())
    document["request"][key] = value
    try:
        found = await answer(document, Rights(PodSecurityLevel.PRIVILEGED))
    except UnreadableReviewError:
        return
    assert found.document()["response"]["uid"] == found.uid


@pytest.mark.parametrize(
    "document", [None, [], {}, {"request": None}, {"request": {}}, {"request": {"uid": 5}}]
)
async def test_no_review_is_unreadable(document: Any) -> None:
    with pytest.raises(UnreadableReviewError):
        await answer(document, AllowAll())


async def test_a_policy_is_refused_by_its_own_name() -> None:
    found = await answer(review(policy({"spec.limits[0].rate.period": "0s"})), Rights())

    status = found.document()["response"]["status"]
    assert status["details"]["kind"] == "RateLimitPolicy"
    assert status["message"].startswith("RateLimitPolicy mail is invalid: spec.limits[0].rate")


async def test_a_policys_own_redis_needs_the_rights_to_create_pods_and_to_get_its_secret() -> None:
    new = policy({"spec.redis": {"urlSecretRef": {"name": "a", "key": "b"}}})

    refused = await answer(review(new), Rights(allowed=False))
    assert refused.document()["response"]["status"]["code"] == 403
    assert not (await answer(review(new), Rights())).allowed
    assert (await answer(review(new), Rights(secrets=("a",)))).allowed
    assert (await answer(review(policy()), Rights(allowed=False))).allowed
