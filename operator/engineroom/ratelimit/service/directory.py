"""Which policies there are: followed from Redis, namespace by namespace, or from a file."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from engineroom.ratelimit.distribution.policy_follower import AsyncFollower
from engineroom.ratelimit.distribution.policy_limiters import AsyncLimiters
from engineroom.ratelimit.service.engine import Enforced, Missing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from redis.asyncio import Redis

    from engineroom.core.clock import Clock
    from engineroom.ratelimit.distribution.document import CompiledPolicy, PolicySnapshot
    from engineroom.ratelimit.distribution.policy_source import PolicySource

log = structlog.get_logger(__name__)

#: Namespaces followed at once; a question about one more is refused.
MAX_NAMESPACES = 1000
#: Of these so many without a policy, which nobody named at the start: made-up names make room for
#: each other, those asked about longest ago first, and cost no more than this.
MAX_EMPTY = 100
_MAX_NAME = 253
#: Names that a room remembers, of policies, of targets and of whatever else is asked about.
_MAX_KNOWN = 4096


class Room:
    """The policies of one namespace and their limiters."""

    def __init__(self, source: PolicySource, redis: Redis, clock: Clock | None = None) -> None:
        self._source = source
        self._limiters = AsyncLimiters(source, redis, clock=clock)
        self._seen: PolicySnapshot | None = None
        #: By policy, and by each name that it is asked about.
        self._made: dict[str, Enforced] = {}
        self._ready: dict[str, Enforced] = {}
        self._enforcers = 0
        #: Monotonic seconds of the last question that no policy answers.
        self.missed = time.monotonic()

    @property
    def known(self) -> bool:
        """Whether the policies were ever read."""
        return self._source.synced

    @property
    def policies(self) -> PolicySnapshot:
        """The ones that hold now."""
        return self._source.current

    def find(self, name: str) -> Enforced | Missing:
        """By a policy's name, or by ``Kind:name`` or ``Kind:name:section`` of its target."""
        source = self._source
        current, enforcers = source.current, source.enforcers
        if current is not self._seen or enforcers != self._enforcers:
            self._seen, self._enforcers = current, enforcers
            self._made.clear()
            self._ready.clear()
        ready = self._ready.get(name)
        if ready is not None:
            return ready
        if not source.synced:
            self.missed = time.monotonic()
            return Missing.UNREAD
        compiled, missing = self._compiled(current, name)
        if compiled is None:
            self.missed = time.monotonic()
            return missing
        made = self._made.get(compiled.name)
        if made is None:
            made = Enforced.of(compiled.policy, self._limiters.of(compiled))
            self._made[compiled.name] = made
        # Any section of a target has the target's policy: there are more names than policies.
        if len(self._ready) >= _MAX_KNOWN:
            self._ready.clear()
        self._ready[name] = made
        return made

    def breakers(self) -> Iterator[str]:
        """Of each policy that was asked about."""
        for each in self._made.values():
            yield each.limiter.breaker_state

    async def close(self) -> None:
        """Give leases back."""
        await self._limiters.close()

    @staticmethod
    def _compiled(current: PolicySnapshot, name: str) -> tuple[CompiledPolicy | None, Missing]:
        if ":" not in name:
            return current.get(name), Missing.UNKNOWN
        kind, _, rest = name.partition(":")
        target, _, section = rest.partition(":")
        return current.for_target(kind, target, section), Missing.UNATTACHED


class FixedDirectory:
    """PolicySnapshot that never change, such as those of a file."""

    def __init__(self, rooms: dict[str, Room]) -> None:
        self._rooms = rooms

    @property
    def ready(self) -> bool:
        """Always."""
        return True

    def find(self, namespace: str, name: str) -> Enforced | Missing | asyncio.Future[None]:
        """The policy of that name or target."""
        room = self._rooms.get(namespace)
        return Missing.UNKNOWN if room is None else room.find(name)

    def policies(self) -> Iterable[PolicySnapshot]:
        """All that hold."""
        return [room.policies for room in self._rooms.values()]

    def breakers(self) -> Iterator[str]:
        """Of each policy that was asked about."""
        for room in self._rooms.values():
            yield from room.breakers()

    async def close(self) -> None:
        """Give leases back."""
        await asyncio.gather(*(room.close() for room in self._rooms.values()))


class FollowingDirectory:
    """Follows namespaces: those given from the start, others from the first question on.

    Every namespace that is followed costs a connection to Redis and a heartbeat a second, so there
    is a most, also of those without policies; with ``only_given`` no other than the given ones is
    followed at all.
    """

    def __init__(
        self,
        redis: Redis,
        namespaces: Sequence[str] = (),
        *,
        only_given: bool = False,
        identity: str = "",
        clock: Clock | None = None,
    ) -> None:
        self._redis = redis
        self._given = tuple(namespaces)
        self._only_given = only_given
        self._identity = identity
        self._clock = clock
        self._rooms: dict[str, Room] = {}
        self._followers: dict[str, AsyncFollower] = {}
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._closing: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    @property
    def ready(self) -> bool:
        """Whether the policies of every given namespace were read."""
        rooms = self._rooms
        return all(name in rooms and rooms[name].known for name in self._given)

    @property
    def followed(self) -> int:
        """Namespaces followed now."""
        return len(self._followers)

    def start(self) -> None:
        """Begin to follow the given namespaces."""
        for name in self._given:
            self._open(name)

    def find(self, namespace: str, name: str) -> Enforced | Missing | asyncio.Future[None]:
        """The policy of that name or target; a future for the first question in a namespace."""
        room = self._rooms.get(namespace)
        if room is not None:
            return room.find(name)
        opening = self._opening.get(namespace)
        if opening is not None:
            return opening
        if self._only_given or not _is_name(namespace):
            return Missing.UNKNOWN
        if self._closed or not self._has_room():
            return Missing.UNREAD
        return self._open(namespace)

    def policies(self) -> Iterable[PolicySnapshot]:
        """All that hold."""
        return [room.policies for room in self._rooms.values()]

    def breakers(self) -> Iterator[str]:
        """Of each policy that was asked about."""
        for room in self._rooms.values():
            yield from room.breakers()

    async def close(self) -> None:
        """Give leases back, and sign off everywhere."""
        self._closed = True
        for task in list(self._opening.values()):
            task.cancel()
        if self._opening:
            await asyncio.wait(list(self._opening.values()))
        await asyncio.gather(*self._closing.values())
        await asyncio.gather(*(room.close() for room in self._rooms.values()))
        await asyncio.gather(*(each.close() for each in self._followers.values()))

    def _has_room(self) -> bool:
        """Whether one more namespace can be followed, if need be in the place of an empty one."""
        given = self._given
        # One that is still being opened, or given up, is empty as far as anybody knows.
        pending = sum(name not in given for name in (*self._opening, *self._closing))
        empty = [
            (room.missed, name)
            for name, room in self._rooms.items()
            if not room.policies.entries and name not in given
        ]
        if len(self._followers) < MAX_NAMESPACES and pending + len(empty) < MAX_EMPTY:
            return True
        if not empty or pending >= MAX_EMPTY:
            return False
        self._leave(min(empty)[1])
        return True

    def _leave(self, namespace: str) -> None:
        room, follower = self._rooms.pop(namespace), self._followers.pop(namespace)

        async def close() -> None:
            try:
                await room.close()
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
            # It signs off under the same name: not after this one has signed on.
            leaving = self._closing.get(namespace)
            if leaving is not None:
                await asyncio.wait([leaving])
            await follower.__aenter__()
            self._rooms[namespace] = Room(follower, self._redis, self._clock)
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
