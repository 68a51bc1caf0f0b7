"""Programming of a namespace's document in one Redis: observe, compile, write, await enforcers."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import structlog

from engineroom.core.errors import DependencyError, MeasurementError, SecretError
from engineroom.kube.runtime.object_memory import NEVER
from engineroom.ratelimit.distribution.compile import compile_namespace, last_valid_candidate
from engineroom.ratelimit.distribution.document import head_of
from engineroom.ratelimit.distribution.redis_schema import lineage_of, owner_of
from engineroom.ratelimit.reconcile.decide import (
    OWNER_GONE_SECONDS,
    is_owner_gone,
    next_document,
)
from engineroom.redis.address import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engineroom.kube.runtime.controller import Context
    from engineroom.ratelimit.distribution.compile import Candidate, CompiledNamespace
    from engineroom.ratelimit.distribution.document import DocumentHead
    from engineroom.ratelimit.reconcile.observe import EnforcerRoster
    from engineroom.ratelimit.reconcile.policy_stores import PolicyStore

log = structlog.get_logger(__name__)

#: Reads after a write until all enforcers have acknowledged, so that one status write mostly
#: suffices, and seconds between two of them.
ACKNOWLEDGE_POLLS, ACKNOWLEDGE_POLL_SECONDS = 25, 0.01


class PolicyInput(NamedTuple):
    """A policy for the compilation; ``candidate`` is None for an invalid spec."""

    name: str
    created: str
    candidate: Candidate | None


class ProgramResult(NamedTuple):
    """The result of programming the policies in one Redis."""

    compiled: CompiledNamespace | None
    head: DocumentHead | None
    roster: EnforcerRoster | None
    #: (reason, message) of a failed read or write.
    trouble: tuple[str, str] | None
    #: Why the document is left alone: it belongs to another installation.
    foreign: str = ""


@dataclass(slots=True)
class NamespaceDocument:
    """The document of a namespace in one Redis, as last read or written."""

    #: The head in Redis; None if it has to be read.
    head_text: str | None = None
    head: DocumentHead | None = None
    #: The last compilation and its inputs.
    compiled: CompiledNamespace | None = None
    inputs: tuple[Candidate, ...] = ()
    #: Time since when the document belongs to another installation (monotonic seconds).
    foreign_since: float | None = None
    #: Start of the last successful check (monotonic seconds).
    checked: float = NEVER


class DocumentProgrammer:
    """Programs documents. ``on_flush`` is called when a document disappeared from its Redis."""

    def __init__(self, context: Context, on_flush: Callable[[], None]) -> None:
        self._context = context
        self._on_flush = on_flush
        #: At least every revision that this process has written.
        self._revision = 0

    async def program(
        self,
        namespace: str,
        document: NamespaceDocument,
        open_store: Callable[[], PolicyStore],
        policies: Sequence[PolicyInput],
    ) -> ProgramResult:
        """Write the document if its content differs; return what enforcers acknowledged."""
        started = self._context.clock.monotonic()
        try:
            store = open_store()
            roster = await store.roster(namespace)
            if document.head_text and not roster.head:
                self._on_flush()
            if document.head_text is None or roster.head != document.head_text:
                document.head_text, document.head = await store.current(namespace)
                document.compiled = None
            foreign = await self._foreign(namespace, store, document, unused=not policies)
            if foreign:
                document.checked = started
                return ProgramResult(None, None, None, None, foreign)
            compiled = self._compile(document, policies)
            if await self._write(namespace, store, document, compiled):
                roster = await self._await_acknowledgements(namespace, store, document)
        except SecretError as error:
            trouble = (error.reason, str(error))
            return ProgramResult(document.compiled, document.head, None, trouble)
        except (MeasurementError, DependencyError) as error:
            # A failed write may have succeeded: the document has to be read again.
            document.head_text = None
            trouble = (reason_of(error), str(error))
            return ProgramResult(document.compiled, document.head, None, trouble)
        document.checked = started
        return ProgramResult(compiled, document.head, roster, None)

    async def _foreign(
        self, namespace: str, store: PolicyStore, document: NamespaceDocument, *, unused: bool
    ) -> str:
        """Return why the document must be left alone; "" if it may be replaced.

        The document of another installation may be replaced once that is gone, by policies that
        need its place.
        """
        owner = owner_of(document.head_text or "")
        if not owner or owner == self._context.installation():
            document.foreign_since = None
            return ""
        now = self._context.clock.monotonic()
        if document.foreign_since is None:
            document.foreign_since = now
        since_check = await store.seconds_since_check(owner)
        if not unused and is_owner_gone(now - document.foreign_since, since_check):
            log.warning("policies taken over", namespace=namespace, installation=owner)
            return ""
        return (
            f"another installation ({owner}) writes the policies of namespace {namespace} in this "
            "Redis; give each installation its own Redis or database. If it no longer exists, its "
            f"place is taken {OWNER_GONE_SECONDS / 60:.0f} minutes after its last check"
        )

    def _compile(
        self, document: NamespaceDocument, policies: Sequence[PolicyInput]
    ) -> CompiledNamespace:
        """Compile changed policies; an invalid policy keeps its last valid version."""
        inputs = []
        for name, created, candidate in policies:
            if candidate is not None:
                inputs.append(candidate)
            elif document.head is not None and name in document.head.parts:
                inputs.append(last_valid_candidate(document.head.parts[name], created))
        if document.compiled is None or document.inputs != tuple(inputs):
            document.inputs = tuple(inputs)
            document.compiled = compile_namespace(inputs)
        return document.compiled

    async def _write(
        self,
        namespace: str,
        store: PolicyStore,
        document: NamespaceDocument,
        compiled: CompiledNamespace,
    ) -> bool:
        """Replace the document if its content differs; return whether it was replaced."""
        now_ms = int(self._context.clock.now().timestamp() * 1000)
        content = next_document(
            namespace,
            compiled,
            document.head,
            least_revision=max(self._revision + 1, now_ms),
            lineage=lineage_of(self._context.installation(), secrets.token_hex(6)),
        )
        if content is None:
            return False
        self._revision = max(self._revision, content.revision)
        document.head_text = await store.replace(namespace, document.head_text or "", content)
        document.head = head_of(content, compiled.parts)
        log.info(
            "policies programmed",
            namespace=namespace,
            revision=content.revision,
            policies=len(compiled.parts),
            bytes=len(content.text),
        )
        return True

    async def _await_acknowledgements(
        self, namespace: str, store: PolicyStore, document: NamespaceDocument
    ) -> EnforcerRoster:
        """Return the roster once all live enforcers acknowledged, or after ACKNOWLEDGE_POLLS."""
        roster = await store.roster(namespace)
        for _ in range(ACKNOWLEDGE_POLLS):
            if document.head is None or not lagging(roster, document.head):
                break
            await asyncio.sleep(ACKNOWLEDGE_POLL_SECONDS)
            roster = await store.roster(namespace)
        return roster


def lagging(roster: EnforcerRoster, head: DocumentHead) -> bool:
    """Return whether a live enforcer has not acknowledged the document."""
    return any(
        enforcer.live
        and (enforcer.acknowledgement is None or enforcer.acknowledgement.hash != head.hash)
        for enforcer in roster.enforcers
    )
