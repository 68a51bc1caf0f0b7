"""A saga of three steps with countable effects; also in a process that dies at a chosen write."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

import psycopg
import redis.asyncio

from engineroom.core.errors import PermanentError
from engineroom.core.transactions.pgsagalog import PostgresSagaLog
from engineroom.core.transactions.saga import Coordinator, Saga, Step, StepContext
from engineroom.core.transactions.sagalog import RedisSagaLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from engineroom.core.transactions.journal import SagaLog

NAMES = ("a", "b", "c")
LEASE = 1.5

_ACT = """
if redis.call('SISMEMBER', 'undone', ARGV[1]) == 1 then return 0 end
if redis.call('SADD', 'applied', ARGV[1]) == 1 then redis.call('INCR', 'acted:' .. ARGV[1]) end
return 1
"""
_UNDO = """
redis.call('SADD', 'undone', ARGV[1])
if redis.call('SREM', 'applied', ARGV[1]) == 1 then redis.call('INCR', 'unacted:' .. ARGV[1]) end
return 1
"""


def sagas(client: redis.asyncio.Redis, back: bool = False) -> list[Saga]:
    """The saga; its input names the step that fails, if any."""

    async def act(context: StepContext) -> str:
        await client.eval(_ACT, 0, context.key)
        if context.input == context.step:
            raise PermanentError("as told")
        return f"did {context.step}"

    async def undo(context: StepContext) -> None:
        await client.eval(_UNDO, 0, context.key)

    return [Saga("order", tuple(Step(name, act, undo) for name in NAMES), back)]


def opened(address: str, client: redis.asyncio.Redis, **options: Any) -> SagaLog:
    """The log at an address: in PostgreSQL, or in the client's Redis."""
    if "://" in address:
        return RedisSagaLog(client, **options)

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        async with await psycopg.AsyncConnection.connect(address) as connection:
            yield connection

    return PostgresSagaLog(connect, **options)


class TellingLog:
    """A log that calls ``around`` before and after each write."""

    def __init__(self, log: SagaLog, around: Callable[[int, str], None]) -> None:
        self.log = log
        self.writes = 0
        self._around = around

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)

    async def begin(self, *arguments: Any) -> int | None:
        return await self._told(self.log.begin, arguments)

    async def append(self, *arguments: Any) -> bool:
        return await self._told(self.log.append, arguments)

    async def _told(self, method: Any, arguments: Any) -> Any:
        number, self.writes = self.writes, self.writes + 1
        self._around(number, "before")
        answer = await method(*arguments)
        self._around(number, "after")
        return answer


def run_to_crash(url: str, address: str, id_: str, outcome: str, number: int, side: str) -> None:
    """Run the saga in this process, which dies before or after write ``number`` of the log.

    ``url`` is of the Redis that has the effects, ``address`` of the log.
    """

    def around(write: int, moment: str) -> None:
        if write == number and moment == side:
            os.kill(os.getpid(), signal.SIGKILL)

    async def main() -> None:
        client = redis.asyncio.Redis.from_url(url)
        log: Any = TellingLog(opened(address, client), around)
        await Coordinator(log, sagas(client), lease=LEASE).run("order", id_, outcome or None)

    asyncio.run(main())
