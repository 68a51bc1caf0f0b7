"""Status writes: only what differs, and figures that change all the time not too often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from engineroom.kube.client.errors import Forbidden, NotFound

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from engineroom.kube.client.resources import Resource
    from engineroom.kube.runtime.controller import Context
    from engineroom.kube.runtime.object_memory import ObjectMemory

#: Seconds between two writes of mere figures of one object.
FIGURES_INTERVAL = 2.0


class StatusWrite(NamedTuple):
    """The outcome of a write of a status."""

    #: Whether the API server has the new status.
    written: bool
    #: Seconds until the turn of figures that were held back; None without any.
    wait: float | None = None


class StatusWriter:
    """Writes the status of one kind's objects by server-side apply.

    ``figures`` are the status fields that change all the time (depths, ages, counts). A status in
    which only these and the messages of conditions differ waits for its turn: at least
    ``interval`` seconds after the object's last write, and for the pacer that all kinds share. Any
    other difference is written at once.
    """

    def __init__(
        self,
        context: Context,
        resource: Resource,
        figures: Collection[str] = (),
        interval: float = FIGURES_INTERVAL,
    ) -> None:
        self._context = context
        self._resource = resource
        self._figures = frozenset(figures)
        self._interval = interval

    async def write(
        self, memory: ObjectMemory[Any], old: Mapping[str, Any], status: Mapping[str, Any]
    ) -> StatusWrite:
        """Write ``status`` if it differs from ``old``, the one in the cache.

        An object that disappeared meanwhile, alone or with its namespace, is no error: its status
        is not written.
        """
        if status == old:
            return StatusWrite(written=False)
        now = self._context.clock.monotonic()
        if self.same_verdict(status, old):
            if memory.figures_due is None:
                earliest = memory.status_written + self._interval
                memory.figures_due = self._context.pacer.slot(now, earliest)
            if memory.figures_due > now:
                return StatusWrite(written=False, wait=memory.figures_due - now)
        memory.figures_due = None
        metadata = {"namespace": memory.namespace, "name": memory.name, "uid": memory.uid}
        try:
            written = await self._context.client.apply_status(
                self._resource, {"metadata": metadata, "status": dict(status)}
            )
        except NotFound:
            return StatusWrite(written=False)
        except Forbidden as error:
            if error.namespace_terminating:
                return StatusWrite(written=False)
            raise
        memory.status_written = now
        self._context.store.wrote(written)
        return StatusWrite(written=True)

    def same_verdict(self, status: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
        """Return whether two statuses differ in figures and messages at most."""
        return self._verdict(status) == self._verdict(old)

    def _verdict(self, status: Mapping[str, Any]) -> dict[str, Any]:
        verdict = {key: value for key, value in status.items() if key not in self._figures}
        verdict["conditions"] = [
            (
                condition["type"],
                condition["status"],
                condition.get("reason"),
                condition.get("observedGeneration"),
            )
            for condition in verdict.get("conditions") or ()
        ]
        return verdict
