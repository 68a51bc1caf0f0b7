"""Compiled policies in memory: the twin of the Redis store that the policy controller writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.core.errors import ConflictError, DependencyError, MeasurementError
from engineroom.ratelimit.distribution.document import parse_document, parse_head
from engineroom.ratelimit.distribution.redis_schema import Acknowledgement, head_text
from engineroom.ratelimit.reconcile.observe import Enforcer, EnforcerRoster, FallbackCount

if TYPE_CHECKING:
    from collections.abc import Callable

    from engineroom.ratelimit.distribution.document import (
        DocumentHead,
        DocumentText,
        PolicySnapshot,
    )
    from engineroom.redis.address import Address


class MemoryPolicyStore:
    """Documents, enforcers and the mark of one Redis. ``reachable`` simulates an outage."""

    def __init__(self) -> None:
        self.reachable = True
        self.documents: dict[str, tuple[str, str]] = {}
        self.enforcers: dict[str, Enforcer] = {}
        self.fallbacks: dict[str, FallbackCount] = {}
        self.complete: set[str] = set()
        #: Namespaces of the documents that were written, in order.
        self.writes: list[str] = []
        self._notify: Callable[[str], None] = lambda _: None

    def open(
        self, _: Address, on_acknowledgement: Callable[[str], None], on_connect: Callable[[], None]
    ) -> MemoryPolicyStore:
        """Connect the controller, as ``open_store``."""
        self._notify = on_acknowledgement
        on_connect()
        return self

    # -- for tests -------------------------------------------------------------------------------

    def policies(self, namespace: str) -> PolicySnapshot:
        """Return the policies that an enforcer would read."""
        return parse_document(self.documents[namespace][1])

    def acknowledge(self, namespace: str, name: str, *, role: str = "limiter") -> None:
        """Let an enforcer acknowledge the current document, and notify the controller."""
        current = self.policies(namespace)
        acknowledgement = Acknowledgement(current.hash, current.revision, current.lineage, role)
        self.enforcers[name] = Enforcer(name, 0.1, acknowledgement)
        self._notify(namespace)

    # -- PolicyStore -----------------------------------------------------------------------------

    async def identity(self) -> str:
        """See PolicyStore."""
        self._check_read()
        return "memory"

    async def namespaces(self) -> set[str]:
        """See PolicyStore."""
        self._check_read()
        return set(self.documents)

    async def roster(self, namespace: str) -> EnforcerRoster:
        """See PolicyStore."""
        self._check_read()
        head = self.documents.get(namespace, ("", ""))[0]
        return EnforcerRoster(head, tuple(self.enforcers.values()), dict(self.fallbacks))

    async def current(self, namespace: str) -> tuple[str, DocumentHead | None]:
        """See PolicyStore."""
        self._check_read()
        if namespace not in self.documents:
            return "", None
        head, document = self.documents[namespace]
        return head, parse_head(document)

    async def replace(self, namespace: str, before: str, document: DocumentText) -> str:
        """See PolicyStore."""
        if not self.reachable:
            raise DependencyError("the store is unreachable")
        if self.documents.get(namespace, ("", ""))[0] != before:
            raise ConflictError("the document has another head")
        head = head_text(document.hash, document.revision, document.lineage)
        self.documents[namespace] = head, document.text
        self.writes.append(namespace)
        return head

    async def seconds_since_check(self, installation: str) -> float | None:
        """See PolicyStore."""
        self._check_read()
        return 0.0 if installation in self.complete else None

    async def record_check(self, installation: str, *, all_written: bool) -> bool:
        """See PolicyStore."""
        if not self.reachable:
            raise DependencyError("the store is unreachable")
        recorded = installation in self.complete
        if all_written:
            self.complete.add(installation)
        return recorded

    async def close(self) -> None:
        """See PolicyStore."""

    def _check_read(self) -> None:
        if not self.reachable:
            raise MeasurementError("the store is unreachable")
