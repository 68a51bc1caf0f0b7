"""Calls to Redis that requests of one turn of the event loop share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

from redis.exceptions import RedisError

from engineroom.core.errors import MeasurementError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

_T = TypeVar("_T")
Request = TypeVar("Request")
Reply = TypeVar("Reply")

#: Time limit of a call (seconds).
LOOK_TIMEOUT = 3.0


class SharedCalls(Generic[Request, Reply]):
    """Collects requests, and answers up to ``chunk`` of them by one ``call``."""

    def __init__(
        self, call: Callable[[Sequence[Request]], Awaitable[Sequence[Reply]]], chunk: int
    ) -> None:
        """``call`` returns a reply for each request, in their order."""
        self._call = call
        self._chunk = chunk
        self._waiting: list[tuple[Request, asyncio.Future[Reply]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, request: Request) -> asyncio.Future[Reply]:
        """Return the future reply.

        It raises MeasurementError if Redis does not answer in time or answers with an error.
        """
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if len(self._waiting) == 1:
            task = asyncio.create_task(self._flush())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return future

    async def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for pairs in chunks(waiting, self._chunk):
            futures = [future for _, future in pairs]
            try:
                async with asyncio.timeout(LOOK_TIMEOUT):
                    replies = await self._call([request for request, _ in pairs])
            except (RedisError, OSError, TimeoutError) as error:
                for future in futures:
                    if not future.done():
                        failure = MeasurementError(describe(error))
                        failure.__cause__ = error
                        future.set_exception(failure)
            except BaseException as error:
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
                raise
            else:
                for future, reply in zip(futures, replies, strict=True):
                    if not future.done():
                        future.set_result(reply)


def chunks(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    """Yield the items in groups of up to ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def describe(error: BaseException) -> str:
    """Describe a failed call to Redis in one line, without the URL's credentials."""
    if isinstance(error, TimeoutError):
        return f"Redis did not answer within {LOOK_TIMEOUT:g} s"
    return f"{type(error).__name__}: {str(error)[:200]}"
