"""The policy controller over an API server and a policy store in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from engineroom.kube.client.resources import RATELIMITPOLICIES
from engineroom.ratelimit.reconcile.controller import RateLimitPolicyController
from engineroom.ratelimit.reconcile.observe import FallbackCount
from tests.memory_api import Scenario
from tests.memory_policies import MemoryPolicyStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PUBLISHED = ("True", "Programmed", "the policy is accepted and published")


def policy(
    name: str = "api", *, selector: Mapping[str, str] | None = None, requests: int = 5
) -> dict[str, Any]:
    return {
        "apiVersion": RATELIMITPOLICIES.api_version,
        "kind": RATELIMITPOLICIES.kind,
        "metadata": {"namespace": "shop", "name": name},
        "spec": {
            "selector": {"matchLabels": dict(selector or {"app": name})},
            "limits": [{"name": "all", "rate": {"requests": requests, "period": "1m"}}],
        },
    }


@pytest.fixture
def store() -> MemoryPolicyStore:
    return MemoryPolicyStore()


@pytest.fixture
def scenario(store: MemoryPolicyStore) -> Scenario:
    return Scenario(RateLimitPolicyController("redis://redis/0", store.open))


async def test_a_policy_without_enforcers_is_ready_and_not_enforced(
    scenario: Scenario, store: MemoryPolicyStore
) -> None:
    async with scenario:
        scenario.api.put(RATELIMITPOLICIES, policy())
        await scenario.settle()
        assert scenario.condition("shop", "api", "Ready") == PUBLISHED
        assert scenario.condition("shop", "api", "Enforced")[:2] == ("False", "NoEnforcers")
        for kind in ("Reconciling", "Stalled"):
            assert scenario.condition("shop", "api", kind)[0] == "False", kind
        assert [entry.name for entry in store.policies("shop").entries] == ["api"]


async def test_an_unchanged_policy_is_written_once(
    scenario: Scenario, store: MemoryPolicyStore
) -> None:
    async with scenario:
        scenario.api.put(RATELIMITPOLICIES, policy())
        await scenario.settle()
        writes = len(scenario.api.writes)
        await scenario.advance(20.0, step=1.0)
        assert store.writes == ["shop"]
        assert len(scenario.api.writes) == writes


async def test_an_unreachable_redis_makes_a_policy_unready_and_never_stalls_it(
    scenario: Scenario, store: MemoryPolicyStore
) -> None:
    async with scenario:
        scenario.api.put(RATELIMITPOLICIES, policy())
        await scenario.settle()
        store.reachable = False
        await scenario.advance(5.0, step=1.0)
        assert scenario.condition("shop", "api", "Ready")[:2] == ("False", "RedisUnreachable")
        for kind in ("Reconciling", "Stalled"):
            assert scenario.condition("shop", "api", kind)[0] == "False", kind
        scenario.api.edit(RATELIMITPOLICIES, "shop", "api", spec=policy(requests=7)["spec"])
        await scenario.advance(5.0, step=1.0)
        assert scenario.condition("shop", "api", "Reconciling")[:2] == (
            "True",
            "RedisUnreachable",
        )
        await scenario.advance(700.0, step=10.0)
        assert scenario.condition("shop", "api", "Stalled")[0] == "False"
        store.reachable = True
        await scenario.advance(5.0, step=1.0)
        assert scenario.condition("shop", "api", "Ready") == PUBLISHED
        assert scenario.condition("shop", "api", "Reconciling")[0] == "False"
        (entry,) = store.policies("shop").entries
        assert entry.policy.limits[0].rate.requests == 7


async def test_an_invalid_spec_stalls_a_policy_and_leaves_its_last_valid_version(
    scenario: Scenario, store: MemoryPolicyStore
) -> None:
    async with scenario:
        scenario.api.put(RATELIMITPOLICIES, policy())
        await scenario.settle()
        scenario.api.edit(RATELIMITPOLICIES, "shop", "api", spec={"limits": []})
        await scenario.settle()
        assert scenario.condition("shop", "api", "Stalled")[:2] == ("True", "InvalidSpec")
        assert scenario.condition("shop", "api", "Ready")[:2] == ("False", "InvalidSpec")
        assert scenario.condition("shop", "api", "Programmed")[:2] == ("True", "LastValid")
        assert len(store.policies("shop").entries) == 1


async def test_acknowledgements_and_fallbacks_appear_in_status(
    scenario: Scenario, store: MemoryPolicyStore
) -> None:
    async with scenario:
        built = policy()
        del built["spec"]["selector"]
        built["spec"]["selector"] = {"matchLabels": {"app": "api"}}
        scenario.api.put(RATELIMITPOLICIES, built)
        await scenario.settle()
        store.acknowledge("shop", "limiter-1")
        await scenario.advance(4.0, step=1.0)
        # A decision service does not enforce a policy with a selector.
        assert scenario.condition("shop", "api", "Enforced")[:2] == ("False", "NoEnforcers")
        store.fallbacks["api"] = FallbackCount(3, 1.0)
        await scenario.advance(4.0, step=1.0)
        assert scenario.condition("shop", "api", "Degraded")[:2] == ("True", "DecidingLocally")
        assert scenario.status("shop", "api")["enforcers"]["withoutRedis"] == 3


async def test_the_younger_of_two_equal_policies_is_rejected_until_the_older_is_deleted(
    scenario: Scenario, store: MemoryPolicyStore
) -> None:
    async with scenario:
        scenario.api.put(RATELIMITPOLICIES, policy("older", selector={"app": "shop"}))
        await scenario.settle()
        scenario.clock.advance(60)
        scenario.api.put(RATELIMITPOLICIES, policy("younger", selector={"app": "shop"}))
        await scenario.settle()
        assert scenario.condition("shop", "younger", "Accepted")[:2] == ("False", "Conflicted")
        assert scenario.condition("shop", "older", "Ready") == PUBLISHED
        scenario.api.remove(RATELIMITPOLICIES, "shop", "older")
        await scenario.settle()
        assert scenario.condition("shop", "younger", "Ready") == PUBLISHED


async def test_a_document_that_disappeared_is_written_again(
    scenario: Scenario, store: MemoryPolicyStore
) -> None:
    async with scenario:
        scenario.api.put(RATELIMITPOLICIES, policy())
        await scenario.settle()
        head = store.documents["shop"][0]
        store.documents.clear()
        await scenario.advance(4.0, step=1.0)
        assert [entry.name for entry in store.policies("shop").entries] == ["api"]
        assert store.documents["shop"][0] != head
        assert store.writes == ["shop", "shop"]


async def test_an_orphaned_document_is_emptied(
    scenario: Scenario, store: MemoryPolicyStore
) -> None:
    async with scenario:
        scenario.api.put(RATELIMITPOLICIES, policy())
        await scenario.settle()
    later = Scenario(RateLimitPolicyController("redis://redis/0", store.open))
    async with later:
        await later.settle()
        assert store.policies("shop").entries == ()


async def test_a_policy_deleted_during_its_status_write_leaves_no_figures(
    scenario: Scenario,
) -> None:
    figures: dict[tuple[str, ...], Callable[[], float]] = {}

    def gauge(name: str, _: str, read: Callable[[], float], labels: Any = None) -> None:
        figures[name, *(labels or {}).values()] = read

    def delete(verb: str, plural: str, _: str) -> None:
        if (verb, plural) == ("apply", f"{RATELIMITPOLICIES.plural}/status"):
            scenario.api.remove(RATELIMITPOLICIES, "shop", "api")
            scenario.deliver()

    scenario.context.gauge = gauge
    async with scenario:
        scenario.api.put(RATELIMITPOLICIES, policy())
        scenario.api.fault = delete
        await scenario.settle()
        assert scenario.controller.memories == {}  # type: ignore[attr-defined]
        assert figures["engineroom_ratelimitpolicies", "Accepted", "True"]() == 0
        assert scenario.recorder.events == []


async def test_the_last_policy_of_a_namespace_leaves_an_empty_document(
    scenario: Scenario, store: MemoryPolicyStore
) -> None:
    async with scenario:
        scenario.api.put(RATELIMITPOLICIES, policy())
        await scenario.settle()
        scenario.api.remove(RATELIMITPOLICIES, "shop", "api")
        await scenario.settle()
        assert store.policies("shop").entries == ()


async def test_the_mark_is_set_once_all_documents_are_written(
    scenario: Scenario, store: MemoryPolicyStore
) -> None:
    async with scenario:
        scenario.api.put(RATELIMITPOLICIES, policy())
        await scenario.advance(5.0, step=0.5)
        assert store.complete == {""}
