"""Batches of requests to Redis: all requests of one turn of the event loop share a script call.

Every call has the policy's deadline. A request that waits longer for its turn is decided by the
policy's failure mode.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError, ReadOnlyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engineroom.ratelimit.limits.limiter_core import BucketRequest, LimiterCore
    from engineroom.redis.pipelined import CommandSender

#: Requests in one script call: Redis is then blocked for half a millisecond.
MAX_BATCH = 128
#: Calls at the same time; further requests wait and then share one call. More calls would be
#: smaller ones, which cost more per request.
MAX_CALLS = 2

#: A waiting request, the callback for its decision with further arguments, and the time since when
#: it waits (monotonic seconds).
_Waiting = tuple["BucketRequest", "Callable[..., None]", tuple[object, ...], float]


class RequestBatches:
    """The requests of one limiter that wait for Redis."""

    def __init__(self, core: LimiterCore, sender: CommandSender) -> None:
        self._core = core
        self._sender = sender
        self._waiting: list[_Waiting] = []
        #: Calls without a reply.
        self.calls = 0
        self._scheduled = False
        #: Set while ``wait_idle`` waits.
        self._idle: asyncio.Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Return whether any request has no decision."""
        return bool(self.calls or self._waiting)

    def add(
        self, request: BucketRequest, done: Callable[..., None], context: tuple[object, ...],
        now: float,
    ) -> None:  # fmt: skip
        """Add a request; ``done`` is called with the decision and ``context``."""
        self._waiting.append((request, done, context, now))
        if not self._scheduled:
            self._schedule()

    async def wait_idle(self) -> None:
        """Wait until all requests have a decision."""
        if self.busy:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle

    def _schedule(self) -> None:
        if not self._scheduled and self.calls < MAX_CALLS:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start_call)

    def _start_call(self) -> None:
        self._scheduled = False
        now = self._core.monotonic()
        self._decide_late(now)
        waiting = self._waiting
        if not waiting:
            self._notify_idle()
            return
        batch, self._waiting = waiting[:MAX_BATCH], waiting[MAX_BATCH:]
        self.calls += 1
        _BatchCall(self, self._core, self._sender, batch, now)
        if self._waiting:
            self._schedule()

    def _decide_late(self, now: float) -> None:
        """Decide requests that waited longer than the deadline for their turn.

        The breaker does not count them: Redis was not called. A call has its own deadline from when
        it is sent; otherwise a queue that is never empty would leave no time for calls.
        """
        core, waiting = self._core, self._waiting
        since = now - core.timeout
        late = 0
        while late < len(waiting) and waiting[late][3] < since:
            late += 1
        if late:
            self._waiting = waiting[late:]
            core.breaker.abandon()
            for request, done, context, _ in waiting[:late]:
                done(core.without_redis(request, now), *context)

    def finish_call(self) -> None:
        """Record that a call ended, with or without a reply."""
        self.calls -= 1
        if self._waiting:
            self._schedule()
        else:
            self._notify_idle()

    def _notify_idle(self) -> None:
        if self._idle is not None and not self.calls and not self._idle.done():
            self._idle.set_result(None)


class _BatchCall:
    """One script call for a batch, with its deadline."""

    __slots__ = (
        "_batch", "_batches", "_command", "_core", "_pending", "_requests", "_script", "_sender",
        "_sent", "_timer",
    )  # fmt: skip

    def __init__(
        self, batches: RequestBatches, core: LimiterCore, sender: CommandSender,
        batch: Sequence[_Waiting], sent: float,
    ) -> None:  # fmt: skip
        self._batches, self._core, self._sender, self._batch = batches, core, sender, batch
        self._requests = [request for request, _, _, _ in batch]
        self._script, keys, arguments = core.batch_call(self._requests)
        self._command = ("EVALSHA", self._script.sha, len(keys), *keys, *arguments)
        self._sent = sent
        self._timer = asyncio.get_running_loop().call_later(core.timeout, self._time_out)
        self._pending = sender.send(self._command, self._receive)

    def _receive(self, reply: Any) -> None:
        if isinstance(reply, NoScriptError):
            command = ("EVAL", self._script.source, *self._command[2:])
            self._pending = self._sender.send(command, self._receive)
            return
        self._timer.cancel()
        self._batches.finish_call()
        if isinstance(reply, Exception):
            if isinstance(reply, ReadOnlyError):
                # The primary became a replica: reconnect, to the new primary.
                self._sender.reconnect()
            self._decide_without_redis()
            return
        core = self._core
        core.breaker.record_success()
        decisions = core.batch_decisions(self._requests, reply, self._sent)
        for (_, done, context, _), decision in zip(self._batch, decisions, strict=True):
            done(decision, *context)

    def _time_out(self) -> None:
        self._sender.abandon(self._pending)
        self._batches.finish_call()
        self._decide_without_redis()

    def _decide_without_redis(self) -> None:
        core = self._core
        now = core.monotonic()
        core.breaker.record_failure(now)
        for request, done, context, _ in self._batch:
            done(core.without_redis(request, now), *context)
