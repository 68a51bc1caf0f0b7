"""Directories of policies: followed from Redis by namespace, or read from a file."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from engineroom.ratelimit.distribution.policy_follower import AsyncFollower
from engineroom.ratelimit.distribution.policy_limiters import AsyncLimiters
from engineroom.ratelimit.service.engine import EnforcedPolicy, MissingPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from redis.asyncio import Redis

    from engineroom.core.clock import Clock
    from engineroom.ratelimit.distribution.document import CompiledPolicy, PolicySnapshot
    from engineroom.ratelimit.distribution.policy_source import PolicySource

log = structlog.get_logger(__name__)

#: Most namespaces followed at the same time; requests for further ones are refused.
MAX_NAMESPACES = 1000
#: Most of them without a policy and not configured. A further name replaces the one that was
#: requested longest ago, so that invented names cost no more than this.
MAX_EMPTY = 100
_MAX_NAME = 253
#: Most names of policies and targets that are cached per namespace.
_MAX_CACHED = 4096


class NamespacePolicies:
    """The policies of one namespace and their limiters."""

    def __init__(self, source: PolicySource, redis: Redis, clock: Clock | None = None) -> None:
        self._source = source
        self._limiters = AsyncLimiters(source, redis, clock=clock)
        self._snapshot: PolicySnapshot | None = None
        #: By policy, and by each requested name.
        self._enforced: dict[str, EnforcedPolicy] = {}
        self._by_name: dict[str, EnforcedPolicy] = {}
        self._enforcers = 0
        #: Time of the last request without a policy (monotonic seconds).
        self.missed = time.monotonic()

    @property
    def synced(self) -> bool:
        """True once the policies were read."""
        return self._source.synced

    @property
    def policies(self) -> PolicySnapshot:
        """The current policies."""
        return self._source.current

    def find(self, name: str) -> EnforcedPolicy | MissingPolicy:
        """Find by a policy's name, or by its target: ``Kind:name`` or ``Kind:name:section``."""
        source = self._source
        current, enforcers = source.current, source.enforcers
        if current is not self._snapshot or enforcers != self._enforcers:
            self._snapshot, self._enforcers = current, enforcers
            self._enforced.clear()
            self._by_name.clear()
        ready = self._by_name.get(name)
        if ready is not None:
            return ready
        if not source.synced:
            self.missed = time.monotonic()
            return MissingPolicy.UNREAD
        compiled, missing = self._find_policy(current, name)
        if compiled is None:
            self.missed = time.monotonic()
            return missing
        enforced = self._enforced.get(compiled.name)
        if enforced is None:
            enforced = EnforcedPolicy.of(compiled.policy, self._limiters.of(compiled))
            self._enforced[compiled.name] = enforced
        # Any section of a target has the target's policy, so there are more names than policies.
        if len(self._by_name) >= _MAX_CACHED:
            self._by_name.clear()
        self._by_name[name] = enforced
        return enforced

    def breakers(self) -> Iterator[str]:
        """Yield the breaker state of each requested policy."""
        for enforced in self._enforced.values():
            yield enforced.limiter.breaker_state

    async def close(self) -> None:
        """Return leases."""
        await self._limiters.close()

    @staticmethod
    def _find_policy(
        current: PolicySnapshot, name: str
    ) -> tuple[CompiledPolicy | None, MissingPolicy]:
        if ":" not in name:
            return current.get(name), MissingPolicy.UNKNOWN
        kind, _, rest = name.partition(":")
        target, _, section = rest.partition(":")
        return current.for_target(kind, target, section), MissingPolicy.UNATTACHED


class FixedDirectory:
    """PolicySnapshot that never change, such as those of a file."""

    def __init__(self, namespaces: dict[str, NamespacePolicies]) -> None:
        self._followed = namespaces

    @property
    def ready(self) -> bool:
        """Always True."""
        return True

    def find(
        self, namespace: str, name: str
    ) -> EnforcedPolicy | MissingPolicy | asyncio.Future[None]:
        """Find a policy by name or target."""
        policies = self._followed.get(namespace)
        return MissingPolicy.UNKNOWN if policies is None else policies.find(name)

    def policies(self) -> Iterable[PolicySnapshot]:
        """Return the current policies of all namespaces."""
        return [namespace.policies for namespace in self._followed.values()]

    def breakers(self) -> Iterator[str]:
        """Yield the breaker state of each requested policy."""
        for namespace in self._followed.values():
            yield from namespace.breakers()

    async def close(self) -> None:
        """Return leases."""
        await asyncio.gather(*(namespace.close() for namespace in self._followed.values()))


class FollowingDirectory:
    """Follows namespaces: configured ones from the start, others from their first request.

    Every followed namespace costs a connection to Redis and a heartbeat per second, so their number
    is limited. With ``only_configured`` no other namespaces are followed.
    """

    def __init__(
        self,
        redis: Redis,
        namespaces: Sequence[str] = (),
        *,
        only_configured: bool = False,
        identity: str = "",
        clock: Clock | None = None,
    ) -> None:
        self._redis = redis
        self._configured = tuple(namespaces)
        self._only_configured = only_configured
        self._identity = identity
        self._clock = clock
        self._followed: dict[str, NamespacePolicies] = {}
        self._followers: dict[str, AsyncFollower] = {}
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._closing: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    @property
    def ready(self) -> bool:
        """True once the policies of every configured namespace were read."""
        followed = self._followed
        return all(name in followed and followed[name].synced for name in self._configured)

    @property
    def followed(self) -> int:
        """The number of followed namespaces."""
        return len(self._followers)

    def start(self) -> None:
        """Begin to follow the configured namespaces."""
        for name in self._configured:
            self._open(name)

    def find(
        self, namespace: str, name: str
    ) -> EnforcedPolicy | MissingPolicy | asyncio.Future[None]:
        """Find a policy by name or target; return a future for the first request of a namespace."""
        policies = self._followed.get(namespace)
        if policies is not None:
            return policies.find(name)
        opening = self._opening.get(namespace)
        if opening is not None:
            return opening
        if self._only_configured or not _is_name(namespace):
            return MissingPolicy.UNKNOWN
        if self._closed or not self._has_room():
            return MissingPolicy.UNREAD
        return self._open(namespace)

    def policies(self) -> Iterable[PolicySnapshot]:
        """Return the current policies of all namespaces."""
        return [namespace.policies for namespace in self._followed.values()]

    def breakers(self) -> Iterator[str]:
        """Yield the breaker state of each requested policy."""
        for namespace in self._followed.values():
            yield from namespace.breakers()

    async def close(self) -> None:
        """Return leases, and sign off in all namespaces."""
        self._closed = True
        for task in list(self._opening.values()):
            task.cancel()
        if self._opening:
            await asyncio.wait(list(self._opening.values()))
        await asyncio.gather(*self._closing.values())
        await asyncio.gather(*(namespace.close() for namespace in self._followed.values()))
        await asyncio.gather(*(follower.close() for follower in self._followers.values()))

    def _has_room(self) -> bool:
        """Make room for one more namespace, if necessary by leaving an empty one."""
        configured = self._configured
        # A namespace that is being opened or left counts as empty.
        pending = sum(name not in configured for name in (*self._opening, *self._closing))
        empty = [
            (policies.missed, name)
            for name, policies in self._followed.items()
            if not policies.policies.entries and name not in configured
        ]
        if len(self._followers) < MAX_NAMESPACES and pending + len(empty) < MAX_EMPTY:
            return True
        if not empty or pending >= MAX_EMPTY:
            return False
        self._leave(min(empty)[1])
        return True

    def _leave(self, namespace: str) -> None:
        policies, follower = self._followed.pop(namespace), self._followers.pop(namespace)

        async def close() -> None:
            try:
                await policies.close()
                await follower.close()
            finally:
                del self._closing[namespace]

        self._closing[namespace] = asyncio.get_running_loop().create_task(close())

    def _open(self, namespace: str) -> asyncio.Task[None]:
        follower = AsyncFollower(
            self._redis, namespace, identity=self._identity, role="limiter", clock=self._clock
        )
        self._followers[namespace] = follower
        task = asyncio.get_running_loop().create_task(self._follow(namespace, follower))
        self._opening[namespace] = task
        return task

    async def _follow(self, namespace: str, follower: AsyncFollower) -> None:
        try:
            # The previous follower signs off under the same name, which must come first.
            leaving = self._closing.get(namespace)
            if leaving is not None:
                await asyncio.wait([leaving])
            await follower.__aenter__()
            self._followed[namespace] = NamespacePolicies(follower, self._redis, self._clock)
            log.info(
                "following policies",
                namespace=namespace,
                policies=len(follower.current.entries),
                known=follower.synced,
            )
        finally:
            del self._opening[namespace]


def _is_name(namespace: str) -> bool:
    return (
        0 < len(namespace) <= _MAX_NAME
        and namespace.isascii()
        and namespace.replace("-", "").isalnum()
    )
