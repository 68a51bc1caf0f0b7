"""Existence of the targets of policies and their named sections: an informer per kind.

An informer starts when the first policy names its kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any

from engineroom.kube.client.resources import GATEWAYS, GRPC_ROUTES, HTTP_ROUTES, INGRESSES, SERVICES
from engineroom.kube.runtime.informer import Informer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from engineroom.kube.runtime.controller import Context
    from engineroom.ratelimit.distribution.document import Target

#: Seconds that the first query of a kind waits for its list. The objects of a kind that is not
#: served count as missing.
_SYNC_SECONDS = 2.0
#: Names of an object's sections: a Gateway's listeners, a route's rules, a Service's ports.
Sections = frozenset[str]
_SECTIONS = {
    "Gateway": "listeners",
    "HTTPRoute": "rules",
    "GRPCRoute": "rules",
    "Service": "ports",
}
_KINDS = {kind.kind: kind for kind in (GATEWAYS, HTTP_ROUTES, GRPC_ROUTES, SERVICES, INGRESSES)}


class Targets:
    """The existing targets.

    ``on_change(namespace)`` is called when a target appears or disappears, or its sections change.
    """

    def __init__(self, context: Context, on_change: Callable[[str], None]) -> None:
        self._context = context
        self._on_change = on_change
        self._informers: dict[str, Informer[Sections]] = {}
        #: The number of those changes.
        self.changes = 0

    async def missing(self, namespace: str, targets: Iterable[Target]) -> tuple[Target, ...]:
        """Return the targets that do not exist in the namespace, in their order."""
        missing = []
        for target in targets:
            informer = self._informers.get(target.kind)
            # Not by its truth: a cache without objects is false.
            if informer is None:
                informer = await self._start(target.kind)
            sections = informer.get(namespace, target.name)
            if sections is None or (target.section and target.section not in sections):
                missing.append(target)
        return tuple(missing)

    async def stop(self) -> None:
        """Stop the informers."""
        for informer in self._informers.values():
            await informer.stop()

    async def _start(self, kind: str) -> Informer[Sections]:
        current: dict[str, Sections] = {}

        def changed(key: str, sections: Sections | None) -> None:
            if sections == current.get(key):
                return
            if sections is None:
                del current[key]
            else:
                current[key] = sections
            self.changes += 1
            self._on_change(key.partition("/")[0])

        informer: Informer[Sections] = Informer(
            self._context.client,
            _KINDS[kind],
            None,
            functools.partial(_sections, kind),
            changed,
            namespaces=self._context.namespaces,
            resync=self._context.resync,
            clock=self._context.clock,
        )
        self._informers[kind] = informer
        await informer.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SYNC_SECONDS):
                await informer.synced.wait()
        return informer


def _sections(kind: str, obj: dict[str, Any]) -> Sections:
    rows = (obj.get("spec") or {}).get(_SECTIONS.get(kind, "")) or ()
    return frozenset(str(row["name"]) for row in rows if row.get("name"))
