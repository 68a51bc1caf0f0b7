"""The room of the toy kind: a controller on the common reconciler, as a new kind would have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engineroom.api import validation
from engineroom.core.conditions import Rollout, Trouble, summary_conditions
from engineroom.kube.client.errors import NotFound
from engineroom.kube.client.resources import SECRETS, resource_of
from engineroom.kube.runtime.object_memory import ObjectMemory
from engineroom.kube.runtime.reconciler import ObjectReconciler
from tests.toy_kind import TOY, Toy, ToySpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engineroom.kube.runtime.controller import Record

#: Seconds until a missing Secret is read again.
SECRET_INTERVAL = 0.5

ToyMemory = ObjectMemory[ToySpec]


class ToyController(ObjectReconciler[ToyMemory, ToySpec, Trouble | None, int, None]):
    """Rings as often as the spec says, once the tokens of all bells exist."""

    kind = resource_of(TOY)

    def remember(self, record: Record) -> ToyMemory:
        """See Reconciler."""
        return ObjectMemory(record.namespace, record.name, record.uid)

    async def parse(self, memory: ToyMemory, obj: Mapping[str, Any]) -> ToySpec:
        """See Reconciler."""
        document = {name: obj[name] for name in ("apiVersion", "kind", "metadata", "spec")}
        return validation.parse(Toy, document).spec

    async def observe(
        self, memory: ToyMemory, plan: ToySpec, obj: Mapping[str, Any]
    ) -> Trouble | None:
        """Return the first bell's Secret that is missing, or None."""
        for bell in plan.bells:
            if bell.token_secret_ref is not None:
                name = bell.token_secret_ref.name
                try:
                    await self.context.client.get(SECRETS, memory.namespace, name)
                except NotFound:
                    return "SecretNotFound", f"Secret {name} does not exist"
        return None

    def decide(self, memory: ToyMemory, plan: ToySpec, observation: Trouble | None) -> int:
        """Return the number of rings."""
        return 0 if observation else plan.count

    async def apply(
        self,
        memory: ToyMemory,
        plan: ToySpec,
        obj: Mapping[str, Any],
        observation: Trouble | None,
        decision: int,
    ) -> None:
        """Do nothing: a toy has no objects."""

    def status(
        self,
        memory: ToyMemory,
        plan: ToySpec,
        old: Mapping[str, Any],
        observation: Trouble | None,
        decision: int,
        outcome: None,
    ) -> dict[str, Any]:
        """See ObjectReconciler."""
        conditions = summary_conditions(
            old.get("conditions") or (),
            Rollout(complete=observation is None, trouble=observation),
            observation,
            generation=memory.generation,
            now=self.context.clock.now(),
        )
        return {
            "observedGeneration": memory.generation,
            "rings": decision,
            "conditions": conditions,
        }

    def next_look(
        self,
        memory: ToyMemory,
        plan: ToySpec,
        observation: Trouble | None,
        decision: int,
        outcome: None,
    ) -> float | None:
        """See ObjectReconciler."""
        return SECRET_INTERVAL if observation else None


def controller(settings: object) -> ToyController:
    """Return the controller of the toy kind, which needs no settings."""
    del settings
    return ToyController()
