"""An enforcer's side of the compiled policies: follow them, acknowledge them, keep the last good.

A follower gives the policies of a namespace as one immutable snapshot, swapped as a whole. It hears
of a new document by a push and, since pushes can be lost, by its own heartbeat; while Redis is away
or a document cannot be read, the last good one holds. It acknowledges what it follows only after
the swap, so that nobody takes a policy for enforced that is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import socket
import threading
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.connection import ConnectionPool as AsyncConnectionPool
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError
from redis.retry import Retry

from engineroom.core.clock import SystemClock
from engineroom.ratelimit.distribution import redis_schema
from engineroom.ratelimit.distribution.document import NOTHING, Policies, read
from engineroom.ratelimit.distribution.redis_schema import (
    HEARTBEAT,
    LIVE_FOR,
    LOST_FOR,
    MAX_ENFORCERS,
    MAX_FAILING,
    MIDDLEWARE,
    PUBLISHED,
    Word,
    checked_labels,
    keys_of,
    peers_of,
)
from engineroom.ratelimit.limits import limiter
from engineroom.ratelimit.limits.cluster import failure_of, refuse_cluster_client
from engineroom.ratelimit.limits.errors import UnreadableDocumentError
from engineroom.ratelimit.limits.limiter import AsyncLimiter, Limiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType
    from typing import Self

    from engineroom.core.clock import Clock
    from engineroom.ratelimit.distribution.document import CompiledPolicy

    Change = Callable[[Policies, Policies], None]
    #: Decisions made without Redis since it was asked last, by policy without its namespace.
    Failures = Callable[[], Mapping[str, int]]

log = structlog.get_logger(__name__)

#: How long a start waits for the first document, and a call for Redis (seconds).
START_WAIT, CALL_TIMEOUT = 1.0, 3.0
#: After a failure Redis is asked again after so long, growing (seconds).
RETRY_FIRST, RETRY_LAST = 0.05, 1.0
#: A larger document is read beside the event loop (characters).
_LARGE = 65_536
#: How long the thread of a sync follower waits for a push before it looks whether to end (seconds).
_GLANCE = 0.1
#: Documents fetched in a row before the next heartbeat.
_FETCHES = 3
_FAILURES = (RedisError, OSError, TimeoutError)
_MICROSECONDS = 1_000_000


class PolicySource(Protocol):
    """Where an enforcer has its policies from."""

    @property
    def current(self) -> Policies:
        """The last good ones; look again for each request."""
        ...

    @property
    def known(self) -> bool:
        """Whether it was ever said which policies there are; before, ``current`` says nothing and
        the enforcer admits or refuses by a setting of its own."""
        ...

    @property
    def enforcers(self) -> int:
        """How many enforce the same now, this one included: those of a policy that labels select,
        or all decision services."""
        ...

    def watch(self, failures: Failures) -> None:
        """Ask this, now and then, how many decisions were made without Redis."""
        ...


class StaticPolicies:
    """Policies that never change; the in-memory twin."""

    def __init__(self, policies: Policies, enforcers: int = 1) -> None:
        self.current = policies
        self.known = True
        self.enforcers = enforcers

    def watch(self, failures: Failures) -> None:
        """There is nobody to tell."""


class _Core:
    """What both followers share: everything but the waiting."""

    def __init__(
        self,
        namespace: str,
        *,
        identity: str,
        role: str,
        labels: Mapping[str, str] | None,
        on_change: Change | None,
        clock: Clock | None,
    ) -> None:
        made = f"{socket.gethostname()[:100]}-{secrets.token_hex(4)}"
        self.namespace = namespace
        self.identity = (identity or made)[:200]
        self.role = role[:64]
        self._labels = dict(checked_labels(labels or {}))
        #: "" or why the newest document is not followed.
        self.trouble = ""
        self._current = NOTHING
        self._known = False
        self._enforcers = 1
        self._on_change = on_change
        self._monotonic = (clock or SystemClock()).monotonic
        self._keys = keys_of(namespace)
        #: The head of a document that could not be read: not to be asked for each second.
        self._refused = ""
        self._failures: list[Failures] = []
        #: Decisions without Redis that Redis was not told of yet, and those of the heartbeat that
        #: is under way.
        self._untold: Counter[str] = Counter()
        self._telling: dict[str, int] = {}

    @property
    def current(self) -> Policies:
        """The last good ones; look again for each request."""
        return self._current

    @property
    def known(self) -> bool:
        """Whether Redis has ever said which policies there are.

        A Redis without a document says so only if an operator has published there: one that was
        flushed, or failed over to an empty one, says nothing.
        """
        return self._known

    @property
    def enforcers(self) -> int:
        """How many enforce the same now, this one included: those whose labels select the same
        policy, or without labels those of the same role."""
        return self._enforcers

    def watch(self, failures: Failures) -> None:
        """Have heartbeats tell how many decisions were made without Redis."""
        self._failures.append(failures)

    def _word(self) -> str:
        current, labels = self._current, tuple(self._labels.items())
        return Word(
            current.hash, current.revision, current.lineage, self.role, self.trouble, labels
        ).text()

    def _peers(self) -> str:
        if not self._labels:
            return peers_of(self.namespace, f"role/{self.role}")
        chosen = self._current.for_labels(self._labels)
        return peers_of(self.namespace, f"policy/{chosen.name if chosen is not None else ''}")

    def _beat_arguments(self) -> tuple[object, ...]:
        keys = self._keys
        for failures in self._failures:
            self._untold.update(failures())
        self._telling = dict(islice(self._untold.items(), MAX_FAILING))
        return (
            6,
            *(keys.head, keys.alive, keys.entries, keys.words, self._peers(), keys.without),
            *(self.identity, self._word()),
            *(int(LIVE_FOR * _MICROSECONDS), int(LOST_FOR * _MICROSECONDS), MAX_ENFORCERS),
            *(part for pair in self._telling.items() for part in pair),
        )

    def _sign_off_arguments(self) -> tuple[object, ...]:
        keys = self._keys
        return 4, keys.alive, keys.entries, keys.words, self._peers(), self.identity

    def _heard(self, reply: Any, published: bool) -> bool:
        """Take in a heartbeat's answer; returns whether the document has to be fetched.

        ``published``: whether it was known, before the heartbeat, that no head means no policies.
        """
        head = _text(reply[0])
        self._enforcers = max(1, int(reply[1]))
        for name, many in self._telling.items():
            self._untold[name] -= many
            if self._untold[name] <= 0:
                del self._untold[name]
        self._telling = {}
        current = self._current
        # No head at all: Redis was flushed, or there never was a policy. What holds goes on.
        if head and head != redis_schema.head_text(current.hash, current.revision, current.lineage):
            return head != self._refused
        if not head and not published:
            self._say("no operator has published policies in this Redis")
            return False
        self._known = True
        self._settled()
        return False

    def _settled(self) -> None:
        if self.trouble:
            log.info("policies are followed again", namespace=self.namespace)
        self.trouble = ""
        self._refused = ""

    def _swap(self, policies: Policies) -> None:
        before, self._current = self._current, policies
        self._known = True
        self._settled()
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
            # Somebody else's code: whatever it does, the policies are followed on.
            log.exception("on_change failed", namespace=self.namespace)

    def _refuse(self, error: UnreadableDocumentError, head: str) -> None:
        self._refused = head
        self._say(str(error))

    def _say(self, trouble: str) -> None:
        if trouble != self.trouble:
            log.warning(
                "policies not followed; the last good ones hold",
                namespace=self.namespace,
                revision=self._current.revision,
                trouble=trouble,
            )
        self.trouble = trouble


class AsyncFollower(_Core):
    """Follows the policies of a namespace on one event loop.

    ``redis`` gives the address; the follower has connections of its own. ``labels`` are those of
    the application that it enforces the selected policy in; with ``role="limiter"`` it enforces
    what is attached to targets. Status counts it for those policies and for no others.
    ``on_change`` is called with the policies before and after each swap. Use it as ``async with``.
    Raises ValueError for labels that are too long.
    """

    def __init__(
        self,
        redis: AsyncRedis,
        namespace: str,
        *,
        identity: str = "",
        role: str = MIDDLEWARE,
        labels: Mapping[str, str] | None = None,
        on_change: Change | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(
            namespace, identity=identity, role=role, labels=labels, on_change=on_change, clock=clock
        )
        self._given = redis
        self._redis = _own_async(redis)
        self._execute: Callable[..., Any] = self._redis.execute_command
        self._task: asyncio.Task[None] | None = None
        self._first = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name=f"policies of {self.namespace}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_WAIT):
                await self._first.wait()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Sign off and close the connections; ``current`` stays."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        with contextlib.suppress(*_FAILURES):
            async with asyncio.timeout(START_WAIT):
                await self._execute("EVAL", redis_schema.SIGN_OFF, *self._sign_off_arguments())
        if self._redis is not self._given:
            await self._redis.aclose(close_connection_pool=True)

    async def _run(self) -> None:
        wait = RETRY_FIRST
        while True:
            try:
                async with self._redis.pubsub() as listener:
                    async with asyncio.timeout(CALL_TIMEOUT):
                        await listener.subscribe(self._keys.news)
                    while True:
                        async with asyncio.timeout(CALL_TIMEOUT):
                            await self._beat()
                        self._first.set()
                        wait = RETRY_FIRST
                        await self._pause(listener)
            except _FAILURES as error:
                self._say(f"Redis does not answer: {failure_of(error)}")
                if isinstance(error, ReadOnlyError):
                    # A primary that became a replica: connect anew, to whoever is the primary now.
                    await self._redis.connection_pool.disconnect()
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 # nosec B311
            wait = min(wait * 2, RETRY_LAST)

    async def _pause(self, listener: Any) -> None:
        """Until there is news, or the next heartbeat is due."""
        due = self._monotonic() + HEARTBEAT
        while (left := due - self._monotonic()) > 0:
            # The listener connects anew by itself, and may wait for an answer to that for ever.
            async with asyncio.timeout(left + CALL_TIMEOUT):
                message = await listener.get_message(ignore_subscribe_messages=True, timeout=left)
            if message is not None:
                return

    async def _beat(self) -> None:
        # The document may change while it is fetched; what still differs waits for the next beat.
        for _ in range(_FETCHES):
            # Before the heartbeat: whoever published has written the document by then.
            published = self._known or bool(await self._redis.exists(PUBLISHED))
            if not self._heard(reply := await self._call_beat(), published):
                return
            head = _text(reply[0])
            text = await self._redis.get(self._keys.document)
            if text is None:
                return  # gone in between; the next heartbeat tells
            try:
                if len(text) > _LARGE:
                    policies = await asyncio.to_thread(read, text, self._current)
                else:
                    policies = read(text, self._current)
            except UnreadableDocumentError as error:
                self._refuse(error, head)
            else:
                self._swap(policies)

    async def _call_beat(self) -> Any:
        arguments = self._beat_arguments()
        try:
            return await self._execute("EVALSHA", redis_schema.BEAT_SHA, *arguments)
        except NoScriptError:
            return await self._execute("EVAL", redis_schema.BEAT, *arguments)


class Follower(_Core):
    """Follows the policies of a namespace in a thread of its own; see AsyncFollower.

    Start it in the process that serves: threads do not survive a fork.
    """

    def __init__(
        self,
        redis: Redis,
        namespace: str,
        *,
        identity: str = "",
        role: str = MIDDLEWARE,
        labels: Mapping[str, str] | None = None,
        on_change: Change | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(
            namespace, identity=identity, role=role, labels=labels, on_change=on_change, clock=clock
        )
        self._given = redis
        self._redis = _own(redis)
        self._execute: Callable[..., Any] = self._redis.execute_command
        self._pubsub: Callable[[], Any] = self._redis.pubsub
        self._first = threading.Event()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(
            target=self._run, name=f"policies of {self.namespace}", daemon=True
        )
        self._thread.start()
        self._first.wait(START_WAIT)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Sign off and close the connections; ``current`` stays."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(CALL_TIMEOUT)
            self._thread = None
        with contextlib.suppress(*_FAILURES):
            self._execute("EVAL", redis_schema.SIGN_OFF, *self._sign_off_arguments())
        if self._redis is not self._given:
            self._redis.close()

    def _run(self) -> None:
        wait = RETRY_FIRST
        while not self._ending.is_set():
            try:
                with self._pubsub() as listener:
                    listener.subscribe(self._keys.news)
                    while not self._ending.is_set():
                        self._beat()
                        self._first.set()
                        wait = RETRY_FIRST
                        self._pause(listener)
            except _FAILURES as error:
                self._say(f"Redis does not answer: {failure_of(error)}")
                if isinstance(error, ReadOnlyError):
                    self._redis.connection_pool.disconnect()
                self._ending.wait(wait * random.uniform(0.5, 1.0))  # noqa: S311 # nosec B311
                wait = min(wait * 2, RETRY_LAST)

    def _pause(self, listener: Any) -> None:
        due = self._monotonic() + HEARTBEAT
        while not self._ending.is_set() and (left := due - self._monotonic()) > 0:
            message = listener.get_message(
                ignore_subscribe_messages=True, timeout=min(left, _GLANCE)
            )
            if message is not None:
                return

    def _beat(self) -> None:
        for _ in range(_FETCHES):
            published = self._known or bool(self._redis.exists(PUBLISHED))
            if not self._heard(reply := self._call_beat(), published):
                return
            text: Any = self._redis.get(self._keys.document)
            if text is None:
                return
            try:
                policies = read(text, self._current)
            except UnreadableDocumentError as error:
                self._refuse(error, _text(reply[0]))
            else:
                self._swap(policies)

    def _call_beat(self) -> Any:
        arguments = self._beat_arguments()
        try:
            return self._execute("EVALSHA", redis_schema.BEAT_SHA, *arguments)
        except NoScriptError:
            return self._execute("EVAL", redis_schema.BEAT, *arguments)


class _Failed:
    """Decisions that limiters made without Redis and that nobody was told of yet, by policy."""

    def __init__(self) -> None:
        self._left: Counter[str] = Counter()
        self._told: dict[str, int] = {}

    def retire(self, name: str, failed: int) -> None:
        """A limiter is no more, after so many in all."""
        self._count(name, failed)
        self._told.pop(name, None)

    def take(self, limiters: Iterable[tuple[str, int]]) -> Mapping[str, int]:
        """Those since the last call, of limiters with so many in all."""
        for name, failed in limiters:
            self._count(name, failed)
        taken, self._left = self._left, Counter()
        return taken

    def _count(self, name: str, failed: int) -> None:
        more = failed - self._told.get(name, 0)
        if more > 0:
            self._left[name.rpartition("/")[2]] += more
            self._told[name] = failed


class AsyncLimiters:
    """A limiter for each policy of a source, made when it is first needed, on shared connections.

    An edited policy gets a new limiter on the same keys, so that what was consumed stays consumed;
    the old one gives its leases back.
    """

    def __init__(
        self, source: PolicySource, redis: AsyncRedis, *, clock: Clock | None = None
    ) -> None:
        self._source = source
        self._redis = limiter.share_async(redis)
        self._clock = clock
        self._seen = NOTHING
        self._made: dict[str, tuple[str, AsyncLimiter]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._failed = _Failed()
        source.watch(self._failures)

    def of(self, compiled: CompiledPolicy) -> AsyncLimiter:
        """The limiter of a policy: the same one as long as the policy is."""
        current = self._source.current
        if current is not self._seen:
            self._seen = current
            self._forget({entry.policy.name for entry in current.entries})
        key, enforcers = compiled.policy.name, self._source.enforcers
        held = self._made.get(key)
        if held is not None and held[0] == compiled.hash:
            held[1].shared_by(enforcers)
            return held[1]
        made = AsyncLimiter(compiled.policy, self._redis, clock=self._clock, enforcers=enforcers)
        if held is not None:
            self._retire(key, held[1])
        self._made[key] = compiled.hash, made
        return made

    async def close(self) -> None:
        """Give all leases back and close the connections."""
        for name, (_, made) in self._made.items():
            self._retire(name, made)
        self._made.clear()
        if self._closing:
            await asyncio.wait(self._closing)
        await limiter.unshare_async(self._redis)

    def _forget(self, names: set[str]) -> None:
        for name in self._made.keys() - names:
            self._retire(name, self._made.pop(name)[1])

    def _failures(self) -> Mapping[str, int]:
        return self._failed.take((name, made.failed) for name, (_, made) in self._made.items())

    def _retire(self, name: str, old: AsyncLimiter) -> None:
        self._failed.retire(name, old.failed)
        task = asyncio.get_running_loop().create_task(old.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


class Limiters:
    """A limiter for each policy of a source; safe to share between threads. See AsyncLimiters."""

    def __init__(self, source: PolicySource, redis: Redis, *, clock: Clock | None = None) -> None:
        self._source = source
        self._redis = redis
        self._clock = clock
        self._seen = NOTHING
        #: By time-out, which is a property of connections.
        self._shared: dict[float, Redis] = {}
        self._made: dict[str, tuple[str, Limiter]] = {}
        self._lock = threading.Lock()
        self._failed = _Failed()
        source.watch(self._failures)

    def of(self, compiled: CompiledPolicy) -> Limiter:
        """The limiter of a policy: the same one as long as the policy is."""
        old: list[Limiter] = []
        with self._lock:
            current = self._source.current
            if current is not self._seen:
                self._seen = current
                names = {entry.policy.name for entry in current.entries}
                old += [self._taken(name) for name in self._made.keys() - names]
            key, enforcers = compiled.policy.name, self._source.enforcers
            held = self._made.get(key)
            if held is not None and held[0] == compiled.hash:
                made = held[1]
                made.shared_by(enforcers)
            else:
                made = self._new(compiled, enforcers)
                old += [] if held is None else [self._taken(key)]
                self._made[key] = compiled.hash, made
        for each in old:
            each.close()
        return made

    def close(self) -> None:
        """Give all leases back and close the connections."""
        with self._lock:
            made, self._made = list(self._made.values()), {}
            shared, self._shared = list(self._shared.values()), {}
        for _, each in made:
            each.close()
        for client in shared:
            limiter.unshare(client)

    def _taken(self, name: str) -> Limiter:
        old = self._made.pop(name)[1]
        self._failed.retire(name, old.failed)
        return old

    def _failures(self) -> Mapping[str, int]:
        with self._lock:
            made = [(name, made.failed) for name, (_, made) in self._made.items()]
            return self._failed.take(made)

    def _new(self, compiled: CompiledPolicy, enforcers: int) -> Limiter:
        timeout = float(compiled.policy.failure.timeout)
        if timeout not in self._shared:
            self._shared[timeout] = limiter.share(self._redis, timeout)
        return Limiter(
            compiled.policy, self._shared[timeout], clock=self._clock, enforcers=enforcers
        )


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _own(client: Redis) -> Redis:
    """A client of its own for the same Redis; one behind Sentinel is used as it is."""
    refuse_cluster_client(client)
    pool = client.connection_pool
    if type(pool) is not ConnectionPool:
        return client
    settings = {
        **pool.connection_kwargs,
        "socket_timeout": CALL_TIMEOUT,
        "socket_connect_timeout": CALL_TIMEOUT,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
    }
    return Redis.from_pool(ConnectionPool(connection_class=pool.connection_class, **settings))


def _own_async(client: AsyncRedis) -> AsyncRedis:
    """A client of its own for the same Redis; one behind Sentinel is used as it is."""
    refuse_cluster_client(client)
    pool = client.connection_pool
    if type(pool) is not AsyncConnectionPool:
        return client
    settings = {
        **pool.connection_kwargs,
        "socket_timeout": None,
        "socket_connect_timeout": CALL_TIMEOUT,
        "retry": AsyncRetry(NoBackoff(), 0),
        "retry_on_error": [],
    }
    made = AsyncConnectionPool(connection_class=pool.connection_class, **settings)
    return AsyncRedis.from_pool(made)
