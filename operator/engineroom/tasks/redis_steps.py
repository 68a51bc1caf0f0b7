"""Redis commands as data, which sync and async clients share.

An operation is a generator: it yields a step, receives the replies, and returns its result. Only
``run`` and ``run_async`` talk to Redis.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import NoScriptError, RedisError

from engineroom.tasks.errors import TasksUnavailableError

if TYPE_CHECKING:
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

T = TypeVar("T")

Words = Sequence[Any]


class LuaScript:
    """A Lua script; Redis runs it by its hash if it has it cached."""

    __slots__ = ("sha", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        # Redis identifies scripts by their SHA-1.
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    def words(self, keys: Sequence[str], arguments: Words) -> list[Any]:
        """Return the command that runs the script by its text, for a pipeline."""
        return ["EVAL", self.source, len(keys), *keys, *arguments]


@dataclass(frozen=True, slots=True)
class ScriptStep:
    """One invocation of a script."""

    script: LuaScript
    keys: Sequence[str]
    arguments: Words


@dataclass(frozen=True, slots=True)
class BatchStep:
    """Commands in one round trip; ``atomic`` runs them in one transaction.

    With ``refusals`` a refused command has a ResponseError as its reply, and Redis runs the others.
    """

    commands: Sequence[Words]
    atomic: bool = False
    refusals: bool = False


@dataclass(frozen=True, slots=True)
class YieldStep:
    """A step without a command that lets other coroutines of the event loop run."""


Step = ScriptStep | BatchStep | YieldStep
Steps = Generator[Step, Any, T]


def run(redis: Redis, steps: Steps[T]) -> T:
    """Run the steps and return their result; raises TasksUnavailableError unless they handle it."""
    try:
        step = next(steps)
        while True:
            try:
                replies = _send(redis, step)
            except (RedisError, OSError) as error:
                step = steps.throw(_unavailable(error))
            else:
                step = steps.send(replies)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def run_async(redis: AsyncRedis, steps: Steps[T]) -> T:
    """Run the steps and return their result; raises TasksUnavailableError unless they handle it."""
    try:
        step = next(steps)
        while True:
            try:
                replies = await _send_async(redis, step)
            except (RedisError, OSError) as error:
                step = steps.throw(_unavailable(error))
            else:
                step = steps.send(replies)
    except StopIteration as stop:
        result: T = stop.value
        return result


def _send(redis: Any, step: Step) -> Any:
    if isinstance(step, YieldStep):
        return None
    if isinstance(step, ScriptStep):
        script, keys = step.script, step.keys
        try:
            return redis.execute_command("EVALSHA", script.sha, len(keys), *keys, *step.arguments)
        except NoScriptError:
            return redis.execute_command(*script.words(keys, step.arguments))
    with redis.pipeline(transaction=step.atomic) as pipeline:
        for words in step.commands:
            pipeline.execute_command(*words)
        return pipeline.execute(not step.refusals)


async def _send_async(redis: Any, step: Step) -> Any:
    if isinstance(step, YieldStep):
        return await asyncio.sleep(0)
    if isinstance(step, ScriptStep):
        script, keys = step.script, step.keys
        try:
            return await redis.execute_command(
                "EVALSHA", script.sha, len(keys), *keys, *step.arguments
            )
        except NoScriptError:
            return await redis.execute_command(*script.words(keys, step.arguments))
    async with redis.pipeline(transaction=step.atomic) as pipeline:
        for words in step.commands:
            pipeline.execute_command(*words)
        return await pipeline.execute(not step.refusals)


def _unavailable(error: BaseException) -> TasksUnavailableError:
    # redis-py's messages contain host and port, but never the password.
    wrapped = TasksUnavailableError(f"Redis: {type(error).__name__}: {str(error)[:200]}")
    wrapped.__cause__ = error
    return wrapped
