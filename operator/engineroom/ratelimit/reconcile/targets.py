"""Whether what policies are attached to exists, and the named sections of it: a cache a kind, begun
when a policy names one."""

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

#: How long the first look at a kind waits for its list (seconds); a kind that is not served has
#: none, and its objects do not exist.
_PATIENCE = 2.0
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
    """Existence of targets. ``on_change(namespace)`` is told when one appears or vanishes, or has
    other sections."""

    def __init__(self, context: Context, on_change: Callable[[str], None]) -> None:
        self._context = context
        self._on_change = on_change
        self._informers: dict[str, Informer[Sections]] = {}
        #: Grows with each such change.
        self.changes = 0

    async def missing(self, namespace: str, targets: Iterable[Target]) -> tuple[Target, ...]:
        """Those of the targets that do not exist in the namespace, in their order."""
        gone = []
        for target in targets:
            informer = self._informers.get(target.kind) or await self._begin(target.kind)
            sections = informer.get(namespace, target.name)
            if sections is None or (target.section and target.section not in sections):
                gone.append(target)
        return tuple(gone)

    async def stop(self) -> None:
        """End the caches."""
        for informer in self._informers.values():
            await informer.stop()

    async def _begin(self, kind: str) -> Informer[Sections]:
        known: dict[str, Sections] = {}

        def changed(key: str, sections: Sections | None) -> None:
            if sections == known.get(key):
                return
            if sections is None:
                del known[key]
            else:
                known[key] = sections
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
            async with asyncio.timeout(_PATIENCE):
                await informer.synced.wait()
        return informer


def _sections(kind: str, thing: dict[str, Any]) -> Sections:
    rows = (thing.get("spec") or {}).get(_SECTIONS.get(kind, "")) or ()
    return frozenset(str(row["name"]) for row in rows if row.get("name"))
