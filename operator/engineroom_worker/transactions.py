"""RQ's transactions, applied only while the worker holds the job, and safe to send twice.

RQ writes the start and the end of a job by MULTI/EXEC, which has two problems. After a lost reply
the worker cannot know whether the transaction was applied, and a worker that was taken for dead may
return and overwrite the outcome of its job. This module sends the commands of RQ's pipeline as one
script that first checks whether the worker still holds the job.

A worker holds a job that it took and has yet to start while the job's id is in the queue's
intermediate list; removing that entry is the right to start the job. A worker holds a started job
while the registry of started jobs has the entry ``<job id>:<execution id>``; removing that entry is
the right to decide the job's outcome.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Command = tuple[Any, ...]

#: ARGV: "start", "end" or "abandoned", registry member, job id (start), execution id (end) or time
#: by which the entry expired (abandoned), then the commands, each as its number of words followed
#: by the words. KEYS: for "start" the intermediate list and the registry of started jobs, otherwise
#: the registry and the worker hash. Returns {0} not held, {2} applied before, {1, replies...}
#: applied now.
GUARDED = """
local held
if ARGV[1] == 'start' then
  held = redis.call('LREM', KEYS[1], 1, ARGV[3]) > 0
  if not held and redis.call('ZSCORE', KEYS[2], ARGV[2]) then return {2} end
elseif ARGV[1] == 'abandoned' then
  held = redis.call('ZSCORE', KEYS[1], ARGV[2])
  held = held and tonumber(held) <= tonumber(ARGV[3])
else
  held = redis.call('ZSCORE', KEYS[1], ARGV[2])
  if not held and redis.call('HGET', KEYS[2], 'er_settled') == ARGV[3] then return {2} end
end
if not held then return {0} end
local replies = {1}
local at = 4
while at <= #ARGV do
  local words = tonumber(ARGV[at])
  replies[#replies + 1] = redis.pcall(unpack(ARGV, at + 1, at + words))
  at = at + words + 1
end
return replies
"""

#: A script cannot call a script: these commands run in the same transaction, beside the guard.
_UNSCRIPTABLE = ("EVAL", "EVALSHA")

#: Redis' error codes of temporary conditions, and redis-py's classes for them.
_PASSING = ("LOADING ", "READONLY ", "MASTERDOWN ", "NOREPLICAS ", "MISCONF ", "OOM ", "BUSY ")
_PASSING_CLASSES = ("ReadOnlyError", "MasterDownError", "OutOfMemoryError")


class NotHeldError(Exception):
    """The worker no longer holds the job: it was put back, recovered, cancelled or deleted."""


class OutageError(Exception):
    """Redis was unavailable for longer than the limit."""


def is_outage(error: BaseException) -> bool:
    """Return whether the error is temporary: Redis is unavailable or cannot serve for now."""
    if isinstance(error, (RedisConnectionError, RedisTimeoutError)):
        return True
    if type(error).__name__ in _PASSING_CLASSES:
        return True
    return isinstance(error, ResponseError) and any(word in str(error) for word in _PASSING)


class RedisRetry:
    """Waits through an outage of Redis with capped back-off, for at most ``limit`` seconds."""

    def __init__(
        self,
        log: Callable[..., None],
        name: str,
        limit: float | None = None,
        sleep: Callable[[float], Any] = time.sleep,
    ) -> None:
        self._log = log
        self._name = name
        self._limit = limit
        self._sleep = sleep
        self._since: float | None = None
        self._delay = 0.05

    @property
    def waiting(self) -> bool:
        """True during an outage."""
        return self._since is not None

    def over(self) -> None:
        """End the outage, after an answer of Redis."""
        if self._since is not None:
            self._log("Worker %s: Redis is back", self._name)
        self._since = None
        self._delay = 0.05

    def limit_to(self, seconds: float) -> None:
        """Set the limit for a work horse, which sleeps without the worker's wake-up pipe."""
        self._limit = seconds
        self._sleep = time.sleep

    def wait(self, error: BaseException) -> None:
        """Sleep before the next attempt. Raises OutageError after the limit."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._log("Worker %s: Redis is away, waiting for it: %s", self._name, error)
        if self._limit is not None and now - self._since > self._limit:
            raise OutageError(f"Redis away for {self._limit:.0f} s: {error}") from error
        self._sleep(self._delay)
        self._delay = min(2.0, self._delay * 2)


class TransactionGuard:
    """The condition of a transaction, and the commands to add to it."""

    def __init__(
        self,
        mode: str,
        keys: Sequence[str],
        member: Callable[[], str],
        token: Callable[[], str],
        extra: Callable[[], list[Command]],
        retry: RedisRetry,
    ) -> None:
        self.mode = mode
        self.keys = keys
        self.member = member
        self.token = token
        self.extra = extra
        self.retry = retry
        #: Whether the transaction has been applied; later commands run without a guard.
        self.applied = False
        #: Whether the transaction had been applied before, and its reply was lost.
        self.repeated = False
        #: The pipeline that RQ currently fills.
        self.pipeline: GuardedPipeline | None = None

    def command(self, commands: Sequence[Command]) -> Command:
        """Return the EVAL command that runs ``commands`` if the job is held."""
        words: list[Any] = ["EVAL", GUARDED, len(self.keys), *self.keys]
        words += [self.mode, self.member(), self.token()]
        for command in [*commands, *self.extra()]:
            words.append(len(command))
            words.extend(command)
        return tuple(words)


class GuardedPipeline(Pipeline):  # type: ignore[type-arg, unused-ignore]
    """A pipeline whose first execution runs through a Guard."""

    guard: TransactionGuard

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Run the queued commands if the job is still held. Raises NotHeldError otherwise.

        Waits through outages, unless the pipeline watches keys: the caller then has to read them
        again.
        """
        guard = self.guard
        stack = list(self.command_stack)
        if guard.applied or not stack:
            return list(super().execute(raise_on_error))
        watching = self.watching
        scripts, loose = self.scripts, [entry for entry in stack if _unscriptable(entry)]
        command = guard.command([_words(entry) for entry in stack if not _unscriptable(entry)])
        while True:
            self.command_stack = [(command, {}), *loose]
            self.scripts = scripts
            try:
                result = super().execute(raise_on_error)[0]
            except RedisError as error:
                if watching or not is_outage(error):
                    raise
                guard.retry.wait(error)
                continue
            guard.retry.over()
            break
        if result[0] == 0:
            raise NotHeldError(guard.member())
        guard.applied = True
        guard.repeated = result[0] == 2
        replies = list(result[1:])
        if raise_on_error:
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        return replies


class GuardedConnection:
    """The worker's connection with guarded pipelines."""

    def __init__(self, connection: Any, guard: TransactionGuard) -> None:
        self._connection = connection
        self._guard = guard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> GuardedPipeline:
        """Return a pipeline that runs once, and only while the job is held."""
        pipeline = GuardedPipeline(
            self._connection.connection_pool,
            self._connection.response_callbacks,
            transaction,
            shard_hint,
        )
        pipeline.guard = self._guard
        self._guard.pipeline = pipeline
        return pipeline


def recorded(connection: Any, fill: Callable[[Any], None]) -> list[Command]:
    """Return the commands that ``fill`` puts on a pipeline, without running them."""
    pipeline = connection.pipeline()
    fill(pipeline)
    return [_words(entry) for entry in pipeline.command_stack]


def _words(entry: Any) -> Command:
    return tuple(entry[0])


def _unscriptable(entry: Any) -> bool:
    return entry[0][0] in _UNSCRIPTABLE
