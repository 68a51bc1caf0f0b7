"""Followers of compiled policies: read them, acknowledge them, and hold the last valid ones.

A follower provides the policies of a namespace as one immutable snapshot, replaced as a whole. A
push announces a new document; a heartbeat detects it, too, since pushes can be lost. While Redis is
unavailable or a document is unreadable, the last valid policies stay in force. A follower
acknowledges a document only after the replacement, so that status never reports a policy as
enforced too early.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import socket
import threading
from collections import Counter
from collections.abc import Generator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from redis.exceptions import ReadOnlyError, RedisError

from engineroom.core.clock import SystemClock
from engineroom.core.redis_replies import text
from engineroom.ratelimit.distribution import redis_schema
from engineroom.ratelimit.distribution.document import (
    NO_POLICIES,
    PolicySnapshot,
    parse_document,
)
from engineroom.ratelimit.distribution.redis_schema import (
    HEARTBEAT_SECONDS,
    LIVE_SECONDS,
    LOST_SECONDS,
    MAX_ENFORCERS,
    MAX_REPORTED,
    MIDDLEWARE,
    PUBLISHED,
    Acknowledgement,
    checked_labels,
    keys_of,
    peers_key,
)
from engineroom.ratelimit.limits.cluster import failure_of
from engineroom.ratelimit.limits.errors import UnreadableDocumentError
from engineroom.ratelimit.limits.redis_calls.redis_clients import (
    dedicated_async_client,
    dedicated_client,
)
from engineroom.redis.scripts import Script, run, run_async

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

    from engineroom.core.clock import Clock
    from engineroom.ratelimit.distribution.policy_source import FallbackCounts

    #: Called with the policies before and after a replacement.
    OnChange = Callable[[PolicySnapshot, PolicySnapshot], None]

log = structlog.get_logger(__name__)

#: Seconds that a start waits for the first document, and timeout of a call to Redis.
START_SECONDS, CALL_TIMEOUT = 1.0, 3.0
#: First and longest wait before a retry, seconds.
FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.05, 1.0
#: A larger document is parsed in a thread, beside the event loop (characters).
_LARGE = 65_536
#: Seconds after which the thread of a sync follower checks whether to end.
_POLL_SECONDS = 0.1
#: Most documents fetched in a row before the next heartbeat.
_MAX_FETCHES = 3
_FAILURES = (RedisError, OSError, TimeoutError)
_MICROSECONDS = 1_000_000


class _RunScript(NamedTuple):
    """A step: run a script."""

    script: Script
    keys: tuple[str, ...]
    arguments: tuple[object, ...]


class _Execute(NamedTuple):
    """A step: run a command."""

    command: tuple[str, ...]


class _Parse(NamedTuple):
    """A step: parse a document."""

    document: str | bytes
    current: PolicySnapshot


#: The steps of a heartbeat, shared by the sync and the async follower. Each yields its reply.
_Steps = Generator[_RunScript | _Execute | _Parse, Any, None]


class _FollowerCore:
    """The state of a follower and the steps of its heartbeat: no I/O, and no waiting."""

    def __init__(
        self,
        namespace: str,
        *,
        identity: str,
        role: str,
        labels: Mapping[str, str] | None,
        on_change: OnChange | None,
        clock: Clock | None,
    ) -> None:
        default_identity = f"{socket.gethostname()[:100]}-{secrets.token_hex(4)}"
        self.namespace = namespace
        self.identity = (identity or default_identity)[:200]
        self.role = role[:64]
        self._labels = dict(checked_labels(labels or {}))
        #: "" or the reason why the newest document is not followed.
        self.problem = ""
        self._current = NO_POLICIES
        self._synced = False
        self._enforcers = 1
        self._on_change = on_change
        self._monotonic = (clock or SystemClock()).monotonic
        self._keys = keys_of(namespace)
        #: The head of an unreadable document, which is not fetched again.
        self._unreadable_head = ""
        self._fallback_counts: list[FallbackCounts] = []
        #: Decisions without Redis that are not reported yet, and those of the running heartbeat.
        self._unreported: Counter[str] = Counter()
        self._reporting: dict[str, int] = {}

    @property
    def current(self) -> PolicySnapshot:
        """The last valid policies; read this property for every request."""
        return self._current

    @property
    def synced(self) -> bool:
        """True once policies were read.

        A Redis without a document counts only if an operator published there; otherwise it may have
        been flushed, or failed over without its data.
        """
        return self._synced

    @property
    def enforcers(self) -> int:
        """The number of live enforcers of the same policies, including this one.

        These are the enforcers of the policy that the labels select, or without labels those of the
        same role.
        """
        return self._enforcers

    def report_fallbacks(self, counts: FallbackCounts) -> None:
        """Report the decisions without Redis that ``counts`` returns with the heartbeats."""
        self._fallback_counts.append(counts)

    def _heartbeat_steps(self) -> _Steps:
        """Send a heartbeat, and fetch the document if it changed."""
        # The document may change during a fetch; the next heartbeat detects a remaining difference.
        for _ in range(_MAX_FETCHES):
            # Before the heartbeat: an operator that set the mark has written the document already.
            published = self._synced or bool((yield _Execute(("EXISTS", PUBLISHED))))
            reply = yield self._heartbeat()
            if not self._process_reply(reply, published=published):
                return
            document = yield _Execute(("GET", self._keys.document))
            if document is None:
                return  # deleted meanwhile; the next heartbeat detects it
            try:
                policies = yield _Parse(document, self._current)
            except UnreadableDocumentError as error:
                self._unreadable_head = text(reply[0])
                self._report_problem(str(error))
            else:
                self._replace(policies)

    def _heartbeat(self) -> _RunScript:
        keys = self._keys
        for counts in self._fallback_counts:
            self._unreported.update(counts())
        self._reporting = dict(islice(self._unreported.items(), MAX_REPORTED))
        return _RunScript(
            redis_schema.HEARTBEAT,
            (
                *(keys.head, keys.alive, keys.entries, keys.acknowledgements),
                *(self._peers_key(), keys.fallbacks),
            ),
            (
                *(self.identity, self._acknowledgement()),
                *(int(LIVE_SECONDS * _MICROSECONDS), int(LOST_SECONDS * _MICROSECONDS)),
                MAX_ENFORCERS,
                *(part for pair in self._reporting.items() for part in pair),
            ),
        )

    def _sign_off(self) -> _RunScript:
        keys = self._keys
        return _RunScript(
            redis_schema.SIGN_OFF,
            (keys.alive, keys.entries, keys.acknowledgements, self._peers_key()),
            (self.identity,),
        )

    def _acknowledgement(self) -> str:
        current, labels = self._current, tuple(self._labels.items())
        return Acknowledgement(
            current.hash, current.revision, current.lineage, self.role, self.problem, labels
        ).text()

    def _peers_key(self) -> str:
        if not self._labels:
            return peers_key(self.namespace, f"role/{self.role}")
        selected = self._current.for_labels(self._labels)
        return peers_key(self.namespace, f"policy/{'' if selected is None else selected.name}")

    def _process_reply(self, reply: Any, *, published: bool) -> bool:
        """Process a heartbeat's reply; return whether the document has to be fetched.

        ``published``: before the heartbeat, a missing document was known to mean no policies.
        """
        head = text(reply[0])
        self._enforcers = max(1, int(reply[1]))
        for name, count in self._reporting.items():
            self._unreported[name] -= count
            if self._unreported[name] <= 0:
                del self._unreported[name]
        self._reporting = {}
        current = self._current
        # Without a head Redis was flushed, or never had a policy. The current policies stay.
        if head and head != redis_schema.head_text(current.hash, current.revision, current.lineage):
            return head != self._unreadable_head
        if not head and not published:
            self._report_problem("no operator has published policies in this Redis")
            return False
        self._synced = True
        self._clear_problem()
        return False

    def _clear_problem(self) -> None:
        if self.problem:
            log.info("policies are followed again", namespace=self.namespace)
        self.problem = ""
        self._unreadable_head = ""

    def _replace(self, policies: PolicySnapshot) -> None:
        before, self._current = self._current, policies
        self._synced = True
        self._clear_problem()
        log.debug(
            "policies changed",
            namespace=self.namespace,
            revision=policies.revision,
            policies=len(policies.entries),
        )
        if self._on_change is None:
            return
        try:
            self._on_change(before, policies)
        except Exception:
            # A failing callback of the application must not stop the follower.
            log.exception("on_change failed", namespace=self.namespace)

    def _report_problem(self, problem: str) -> None:
        if problem != self.problem:
            log.warning(
                "policies not followed; the last valid ones stay in force",
                namespace=self.namespace,
                revision=self._current.revision,
                trouble=problem,
            )
        self.problem = problem


class _RetryWait:
    """Growing random waits between retries, in seconds."""

    def __init__(self) -> None:
        self._limit = FIRST_RETRY_SECONDS

    def reset(self) -> None:
        """Begin again with the shortest wait, after a success."""
        self._limit = FIRST_RETRY_SECONDS

    def next(self) -> float:
        """Return the next wait."""
        wait = self._limit * random.uniform(0.5, 1.0)  # noqa: S311 # nosec B311
        self._limit = min(self._limit * 2, MAX_RETRY_SECONDS)
        return wait


class AsyncFollower(_FollowerCore):
    """Follows the policies of a namespace on one event loop.

    ``redis`` provides the address; the follower opens connections of its own. ``labels`` are those
    of the application whose selected policy it enforces; with ``role="limiter"`` it enforces
    policies with targets. Status counts it as an enforcer of those policies only. ``on_change`` is
    called with the policies before and after each replacement. Use it with ``async with``. Raises
    ValueError for labels that are too long.
    """

    def __init__(
        self,
        redis: AsyncRedis,
        namespace: str,
        *,
        identity: str = "",
        role: str = MIDDLEWARE,
        labels: Mapping[str, str] | None = None,
        on_change: OnChange | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(
            namespace, identity=identity, role=role, labels=labels, on_change=on_change, clock=clock
        )
        self._caller_redis = redis
        self._redis = dedicated_async_client(redis, CALL_TIMEOUT)
        self._task: asyncio.Task[None] | None = None
        self._first_heartbeat = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name=f"policies of {self.namespace}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await self._first_heartbeat.wait()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Sign off and close the connections; ``current`` stays."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        with contextlib.suppress(*_FAILURES):
            async with asyncio.timeout(START_SECONDS):
                await run_async(self._redis, *self._sign_off())
        if self._redis is not self._caller_redis:
            await self._redis.aclose(close_connection_pool=True)

    async def _run(self) -> None:
        wait = _RetryWait()
        while True:
            try:
                async with self._redis.pubsub() as listener:
                    async with asyncio.timeout(CALL_TIMEOUT):
                        await listener.subscribe(self._keys.changes)
                    while True:
                        async with asyncio.timeout(CALL_TIMEOUT):
                            await self._drive(self._heartbeat_steps())
                        self._first_heartbeat.set()
                        wait.reset()
                        await self._wait_for_change(listener)
            except _FAILURES as error:
                self._report_problem(f"Redis does not answer: {failure_of(error)}")
                if isinstance(error, ReadOnlyError):
                    # The primary became a replica: reconnect, to the new primary.
                    await self._redis.connection_pool.disconnect()
            await asyncio.sleep(wait.next())

    async def _wait_for_change(self, listener: Any) -> None:
        """Wait for a push, or until the next heartbeat is due."""
        due = self._monotonic() + HEARTBEAT_SECONDS
        while (left := due - self._monotonic()) > 0:
            # The listener reconnects by itself, which has no timeout of its own.
            async with asyncio.timeout(left + CALL_TIMEOUT):
                message = await listener.get_message(ignore_subscribe_messages=True, timeout=left)
            if message is not None:
                return

    async def _drive(self, steps: _Steps) -> None:
        """Run steps until they end; errors of Redis pass through."""
        with contextlib.closing(steps):
            step = next(steps, None)
            while step is not None:
                reply: Any = None
                error: UnreadableDocumentError | None = None
                if isinstance(step, _Parse):
                    try:
                        reply = await self._parse(step)
                    except UnreadableDocumentError as unreadable:
                        error = unreadable
                elif isinstance(step, _RunScript):
                    reply = await run_async(self._redis, *step)
                else:
                    execute: Callable[..., Any] = self._redis.execute_command
                    reply = await execute(*step.command)
                step = _advance(steps, reply, error)

    @staticmethod
    async def _parse(step: _Parse) -> PolicySnapshot:
        if len(step.document) > _LARGE:
            return await asyncio.to_thread(parse_document, step.document, step.current)
        return parse_document(step.document, step.current)


class Follower(_FollowerCore):
    """Follows the policies of a namespace in a thread of its own; see AsyncFollower.

    Start it in the process that serves requests: threads do not survive a fork.
    """

    def __init__(
        self,
        redis: Redis,
        namespace: str,
        *,
        identity: str = "",
        role: str = MIDDLEWARE,
        labels: Mapping[str, str] | None = None,
        on_change: OnChange | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(
            namespace, identity=identity, role=role, labels=labels, on_change=on_change, clock=clock
        )
        self._caller_redis = redis
        self._redis = dedicated_client(redis, CALL_TIMEOUT)
        self._first_heartbeat = threading.Event()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(
            target=self._run, name=f"policies of {self.namespace}", daemon=True
        )
        self._thread.start()
        self._first_heartbeat.wait(START_SECONDS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Sign off and close the connections; ``current`` stays."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(CALL_TIMEOUT)
            self._thread = None
        with contextlib.suppress(*_FAILURES):
            run(self._redis, *self._sign_off())
        if self._redis is not self._caller_redis:
            self._redis.close()

    def _run(self) -> None:
        wait = _RetryWait()
        pubsub: Callable[[], Any] = self._redis.pubsub
        while not self._ending.is_set():
            try:
                with pubsub() as listener:
                    listener.subscribe(self._keys.changes)
                    while not self._ending.is_set():
                        self._drive(self._heartbeat_steps())
                        self._first_heartbeat.set()
                        wait.reset()
                        self._wait_for_change(listener)
            except _FAILURES as error:
                self._report_problem(f"Redis does not answer: {failure_of(error)}")
                if isinstance(error, ReadOnlyError):
                    self._redis.connection_pool.disconnect()
                self._ending.wait(wait.next())

    def _wait_for_change(self, listener: Any) -> None:
        """Wait for a push, or until the next heartbeat is due."""
        due = self._monotonic() + HEARTBEAT_SECONDS
        while not self._ending.is_set() and (left := due - self._monotonic()) > 0:
            message = listener.get_message(
                ignore_subscribe_messages=True, timeout=min(left, _POLL_SECONDS)
            )
            if message is not None:
                return

    def _drive(self, steps: _Steps) -> None:
        """Run steps until they end; errors of Redis pass through."""
        with contextlib.closing(steps):
            step = next(steps, None)
            while step is not None:
                reply: Any = None
                error: UnreadableDocumentError | None = None
                if isinstance(step, _Parse):
                    try:
                        reply = parse_document(step.document, step.current)
                    except UnreadableDocumentError as unreadable:
                        error = unreadable
                elif isinstance(step, _RunScript):
                    reply = run(self._redis, *step)
                else:
                    execute: Callable[..., Any] = self._redis.execute_command
                    reply = execute(*step.command)
                step = _advance(steps, reply, error)


def _advance(
    steps: _Steps, reply: Any, error: UnreadableDocumentError | None
) -> _RunScript | _Execute | _Parse | None:
    """Continue steps with a reply or an error; return the next step, or None at the end."""
    try:
        return steps.send(reply) if error is None else steps.throw(error)
    except StopIteration:
        return None
