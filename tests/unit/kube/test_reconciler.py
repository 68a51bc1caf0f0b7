"""The reconcile loop that kinds plug into, over an API server in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from engineroom.core.errors import InvalidSpecError, Problem
from engineroom.kube.client.errors import Forbidden, NotFound, StatusCause, Unreachable
from engineroom.kube.client.resources import CONFIG_MAPS, Resource
from engineroom.kube.runtime.reconciler import (
    GroupReconciler,
    ObjectMemory,
    ObjectReconciler,
    unless_refused,
)
from tests.memory_api import Scenario, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engineroom.kube.client.errors import ApiError
    from engineroom.kube.runtime.controller import Record

TOYS = Resource("engineroom.dev", "v1alpha1", "toys", "Toy")

TERMINATING = Forbidden(
    "namespace is being terminated",
    status=403,
    causes=(StatusCause("", "NamespaceTerminating", ""),),
)


def toy(name: str = "ball", size: Any = 3, namespace: str = "shop") -> dict[str, Any]:
    return {
        "apiVersion": TOYS.api_version,
        "kind": TOYS.kind,
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"size": size},
    }


def size_of(obj: Mapping[str, Any]) -> int:
    size = obj["spec"]["size"]
    if not isinstance(size, int):
        raise InvalidSpecError([Problem("spec.size", "not a number", "write a number")])
    return size


@dataclass(slots=True)
class ToyMemory(ObjectMemory[int]):
    looks: int = 0


class Toys(ObjectReconciler[ToyMemory, int, int, int, str]):
    """Copies the size into a ConfigMap."""

    kind = TOYS
    figures = ("looks",)

    def __init__(self) -> None:
        super().__init__()
        self.parses = 0
        self.forgotten: list[str] = []
        self.removals: list[str] = []
        self.published: list[dict[str, Any]] = []

    def remember(self, record: Record) -> ToyMemory:
        return ToyMemory(record.namespace, record.name, record.uid)

    async def parse(self, memory: ToyMemory, obj: Mapping[str, Any]) -> int:
        self.parses += 1
        return size_of(obj)

    def forget(self, memory: ToyMemory) -> None:
        self.forgotten.append(memory.uid)

    def status_changed(
        self, memory: ToyMemory, old: Mapping[str, Any], status: dict[str, Any]
    ) -> None:
        self.published.append(status)

    async def removed(self, key: str, memory: ToyMemory | None) -> float | None:
        self.removals.append(key)
        return None

    async def observe(self, memory: ToyMemory, plan: int, obj: Mapping[str, Any]) -> int:
        memory.looks += 1
        found = self.context.client.find(CONFIG_MAPS, memory.namespace, memory.name)  # type: ignore[attr-defined]
        return int(found["data"]["size"]) if found else 0

    def decide(self, memory: ToyMemory, plan: int, observation: int) -> int:
        return plan

    async def apply(
        self, memory: ToyMemory, plan: int, obj: Mapping[str, Any], observation: int, decision: int
    ) -> str:
        if observation == decision:
            return ""
        metadata = {"namespace": memory.namespace, "name": memory.name}
        body = {"metadata": metadata, "data": {"size": str(decision)}}
        work = self.context.client.apply(CONFIG_MAPS, body)
        _, refusal = await unless_refused(work, {})
        return refusal[1] if refusal else ""

    def status(
        self,
        memory: ToyMemory,
        plan: int,
        old: Mapping[str, Any],
        observation: int,
        decision: int,
        outcome: str,
    ) -> dict[str, Any]:
        return {"observedGeneration": memory.generation, "refusal": outcome, "looks": memory.looks}

    def next_look(
        self, memory: ToyMemory, plan: int, observation: int, decision: int, outcome: str
    ) -> float | None:
        return 5.0 if outcome else None


@pytest.fixture
def scenario() -> Scenario:
    return Scenario(Toys())


def toys(scenario: Scenario) -> Toys:
    assert isinstance(scenario.controller, Toys)
    return scenario.controller


async def test_a_new_object_gets_its_child_and_its_status(scenario: Scenario) -> None:
    async with scenario:
        scenario.api.put(TOYS, toy())
        await scenario.settle()
        child = scenario.api.find(CONFIG_MAPS, "shop", "ball")
        assert child is not None
        assert child["data"] == {"size": "3"}
        assert scenario.status("shop", "ball")["observedGeneration"] == 1


async def test_a_written_status_is_reported_to_the_kind(scenario: Scenario) -> None:
    async with scenario:
        scenario.api.put(TOYS, toy())
        await scenario.settle()
        assert toys(scenario).published == [scenario.status("shop", "ball")]
        await scenario.settle()
        assert len(toys(scenario).published) == 1


@pytest.mark.parametrize("error", [NotFound("not found", status=404), TERMINATING])
async def test_the_status_of_an_object_that_disappeared_counts_as_not_written(
    scenario: Scenario, error: ApiError
) -> None:
    async with scenario:
        scenario.api.fault = refuse(error, "apply", f"{TOYS.plural}/status")
        scenario.api.put(TOYS, toy())
        await scenario.settle()
        assert toys(scenario).published == []


async def test_a_spec_is_parsed_once_a_generation(scenario: Scenario) -> None:
    async with scenario:
        scenario.api.put(TOYS, toy())
        for _ in range(3):
            scenario.queue.add("shop/ball")
            await scenario.settle()
        assert toys(scenario).parses == 1
        scenario.api.put(TOYS, toy(size=4))
        await scenario.settle()
        assert toys(scenario).parses == 2


async def test_an_invalid_spec_is_stalled_and_keeps_the_rest_of_its_status(
    scenario: Scenario,
) -> None:
    async with scenario:
        scenario.api.put(TOYS, toy())
        await scenario.settle()
        scenario.api.put(TOYS, toy(size="large"))
        await scenario.settle()
        assert scenario.condition("shop", "ball", "Stalled")[:2] == ("True", "InvalidSpec")
        assert scenario.condition("shop", "ball", "Ready")[0] == "False"
        assert scenario.condition("shop", "ball", "Reconciling")[0] == "False"
        assert scenario.status("shop", "ball")["observedGeneration"] == 2
        assert scenario.status("shop", "ball")["looks"] == 1


async def test_figures_wait_and_other_differences_do_not(scenario: Scenario) -> None:
    async with scenario:
        scenario.api.put(TOYS, toy())
        await scenario.settle()
        writes = len(scenario.api.writes)
        scenario.clock.advance(0.5)
        scenario.queue.add("shop/ball")
        await scenario.settle()
        assert len(scenario.api.writes) == writes
        await scenario.advance(1.6)
        assert scenario.status("shop", "ball")["looks"] > 1
        scenario.api.put(TOYS, toy(size=4))
        await scenario.settle()
        assert scenario.status("shop", "ball")["observedGeneration"] == 2


async def test_a_refused_child_is_reported_and_tried_again(scenario: Scenario) -> None:
    async with scenario:
        scenario.api.fault = refuse(
            Forbidden("exceeded quota", status=403), "apply", CONFIG_MAPS.plural
        )
        scenario.api.put(TOYS, toy())
        await scenario.settle()
        assert scenario.status("shop", "ball")["refusal"] == "exceeded quota"
        scenario.api.fault = lambda *_: None
        await scenario.advance(5.2)
        assert scenario.api.find(CONFIG_MAPS, "shop", "ball") is not None
        assert scenario.status("shop", "ball")["refusal"] == ""


async def test_nothing_is_retried_in_a_namespace_that_is_being_deleted(scenario: Scenario) -> None:
    async with scenario:
        scenario.api.fault = refuse(TERMINATING, "apply", CONFIG_MAPS.plural)
        scenario.api.put(TOYS, toy())
        assert await scenario.settle() == 1
        assert "refusal" not in scenario.status("shop", "ball")
        assert scenario.queue.state.delayed == 0


async def test_what_disappears_in_between_is_looked_at_again(scenario: Scenario) -> None:
    async with scenario:
        scenario.api.fault = refuse(NotFound("gone", status=404), "apply", CONFIG_MAPS.plural)
        scenario.api.put(TOYS, toy())
        assert await scenario.settle() == 1
        assert scenario.queue.state.delayed == 1


async def test_an_api_server_that_does_not_answer_is_an_error_of_the_queue(
    scenario: Scenario,
) -> None:
    async with scenario:
        scenario.api.fault = refuse(Unreachable("no route"), "apply", CONFIG_MAPS.plural)
        scenario.api.put(TOYS, toy())
        with pytest.raises(Unreachable):
            await scenario.settle()


async def test_a_replaced_object_is_a_new_one(scenario: Scenario) -> None:
    async with scenario:
        first = scenario.api.put(TOYS, toy())
        await scenario.settle()
        scenario.api.remove(TOYS, "shop", "ball")
        scenario.api.put(TOYS, toy())
        await scenario.settle()
        assert toys(scenario).forgotten == [first["metadata"]["uid"]]
        assert toys(scenario).memories["shop/ball"].looks == 1


async def test_a_deleted_object_is_forgotten_and_cleaned_up_after(scenario: Scenario) -> None:
    async with scenario:
        scenario.api.put(TOYS, toy())
        await scenario.settle()
        scenario.api.remove(TOYS, "shop", "ball")
        await scenario.settle()
        assert toys(scenario).memories == {}
        assert toys(scenario).removals == ["shop/ball"]


class ToyBoxes(GroupReconciler[ToyMemory]):
    """Notes the sizes of each namespace."""

    kind = TOYS

    def __init__(self) -> None:
        super().__init__()
        self.boxes: list[tuple[str, list[tuple[str, int | None]]]] = []
        self.ticks = 0

    async def open(self) -> None:
        self.every("/tick", self._tick, first=1.0)

    async def _tick(self) -> float:
        self.ticks += 1
        return 10.0

    def remember(self, record: Record) -> ToyMemory:
        return ToyMemory(record.namespace, record.name, record.uid)

    async def parse(self, memory: ToyMemory, obj: Mapping[str, Any]) -> int:
        return size_of(obj)

    async def reconcile_group(
        self, namespace: str, members: Sequence[tuple[ToyMemory, Record]]
    ) -> float | None:
        self.boxes.append((namespace, [(memory.name, memory.plan) for memory, _ in members]))
        return None


async def test_a_group_is_reconciled_as_a_whole_with_its_invalid_members() -> None:
    boxes = ToyBoxes()
    async with Scenario(boxes) as scenario:
        for obj in (toy("a", 1), toy("b", "large"), toy("c", 3, namespace="yard")):
            scenario.api.put(TOYS, obj)
        await scenario.settle()
        assert dict(boxes.boxes) == {"shop": [("a", 1), ("b", None)], "yard": [("c", 3)]}
        scenario.api.remove(TOYS, "yard", "c")
        await scenario.settle()
        assert boxes.boxes[-1] == ("yard", [])


async def test_a_periodic_task_runs_when_it_asked_to() -> None:
    boxes = ToyBoxes()
    async with Scenario(boxes) as scenario:
        await scenario.settle()
        assert boxes.ticks == 0
        await scenario.advance(21.5, step=0.5)
        assert boxes.ticks == 3
