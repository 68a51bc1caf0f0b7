"""A saga of three steps with countable effects; as a process that is killed at a chosen write.

``python -m tests.integration.core.sagas URL ID OUTCOME NUMBER SIDE``
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import redis.asyncio

from engineroom.core.errors import PermanentError
from engineroom.core.transactions.saga import Coordinator, Saga, Step, StepContext
from engineroom.core.transactions.sagalog import RedisSagaLog

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ("a", "b", "c")
LEASE = 0.3

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


class TellingLog(RedisSagaLog):
    """Calls ``around`` before and after each write."""

    def __init__(
        self, client: redis.asyncio.Redis, around: Callable[[int, str], None], **options: Any
    ) -> None:
        super().__init__(client, **options)
        self.writes = 0
        self._around = around

    async def begin(self, *arguments: Any) -> int | None:
        return await self._told(super().begin, arguments)

    async def append(self, *arguments: Any) -> bool:
        return await self._told(super().append, arguments)

    async def _told(self, method: Any, arguments: Any) -> Any:
        number, self.writes = self.writes, self.writes + 1
        self._around(number, "before")
        answer = await method(*arguments)
        self._around(number, "after")
        return answer


async def main() -> None:
    url, id_, outcome, number, side = sys.argv[1:]

    def around(write: int, moment: str) -> None:
        if write == int(number) and moment == side:
            os.kill(os.getpid(), signal.SIGKILL)

    client = redis.asyncio.Redis.from_url(url)
    log = TellingLog(client, around)
    coordinator = Coordinator(log, sagas(client), lease=LEASE)
    await coordinator.run("order", id_, outcome or None)


if __name__ == "__main__":
    asyncio.run(main())
