"""RQ's transactions, made conditional on still holding the job, and safe to send twice.

RQ books the start and the end of a job by MULTI/EXEC.  Two things go wrong with that: a reply lost
on the way leaves nobody knowing whether it was applied, and a worker that was taken for dead comes
back and books over what has become of its job.  Both end here: what RQ queues on its pipeline is
sent as one script that first looks whether the job is still held.

Held means, for a job that was taken and not started: its id stands in the queue's intermediate
list; whoever removes that entry owns the job.  For a started job: the registry of started jobs has
the entry ``<job id>:<execution id>``; whoever removes it decides what becomes of the job.
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

#: ARGV: "start" | "end" | "abandoned", registry member, job id (start), execution id (end) or time
#: by which it expired (abandoned), then the commands, each as its number of words followed by the
#: words.  KEYS: start: intermediate list, registry of started jobs; else: registry, worker hash.
#: Returns {0} not held, {2} applied before, {1, replies...} applied now.
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

#: Scripts may not call scripts: these run beside the guarded ones, in the same transaction.
_UNSCRIPTABLE = ("EVAL", "EVALSHA")

#: What Redis says while it cannot serve for a while: error codes, and redis-py's classes for them.
_PASSING = ("LOADING ", "READONLY ", "MASTERDOWN ", "NOREPLICAS ", "MISCONF ", "OOM ", "BUSY ")
_PASSING_CLASSES = ("ReadOnlyError", "MasterDownError", "OutOfMemoryError")


class NotHeldError(Exception):
    """The job is no longer this worker's: it was put back, recovered, cancelled or deleted."""


class OutageError(Exception):
    """Redis has been away for longer than there is time to wait."""


def is_outage(error: BaseException) -> bool:
    """Whether the error says that Redis cannot serve now and may later."""
    if isinstance(error, (RedisConnectionError, RedisTimeoutError)):
        return True
    if type(error).__name__ in _PASSING_CLASSES:
        return True
    return isinstance(error, ResponseError) and any(word in str(error) for word in _PASSING)


class Patience:
    """Waits through an outage of Redis with a capped back-off, for at most ``limit`` seconds."""

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
        """Whether the last thing heard of was an outage."""
        return self._since is not None

    def over(self) -> None:
        """Redis has answered."""
        if self._since is not None:
            self._log("Worker %s: Redis is back", self._name)
        self._since = None
        self._delay = 0.05

    def wait(self, error: BaseException) -> None:
        """Sleep before the next try; raises OutageError when the time is up."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._log("Worker %s: Redis is away, waiting for it: %s", self._name, error)
        if self._limit is not None and now - self._since > self._limit:
            raise OutageError(f"Redis away for {self._limit:.0f} s: {error}") from error
        self._sleep(self._delay)
        self._delay = min(2.0, self._delay * 2)


class Guard:
    """Which job a transaction is about, and what goes with it."""

    def __init__(
        self,
        mode: str,
        keys: Sequence[str],
        member: Callable[[], str],
        token: Callable[[], str],
        extra: Callable[[], list[Command]],
        patience: Patience,
    ) -> None:
        self.mode = mode
        self.keys = keys
        self.member = member
        self.token = token
        self.extra = extra
        self.patience = patience
        #: Set once the transaction is known to be in; what follows on the pipeline is plain.
        self.applied = False
        #: Set when the transaction had been in before, its reply lost.
        self.repeated = False
        #: The pipeline that RQ is filling.
        self.pipeline: GuardedPipeline | None = None

    def command(self, commands: Sequence[Command]) -> Command:
        """The one EVAL that carries ``commands``."""
        words: list[Any] = ["EVAL", GUARDED, len(self.keys), *self.keys]
        words += [self.mode, self.member(), self.token()]
        for command in [*commands, *self.extra()]:
            words.append(len(command))
            words.extend(command)
        return tuple(words)


class GuardedPipeline(Pipeline):  # type: ignore[type-arg, unused-ignore]
    """A pipeline whose first execution goes through a Guard."""

    guard: Guard

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Apply what was queued if the job is still held.

        Raises NotHeldError otherwise.  Waits through outages, except on a pipeline that watches
        keys: there the caller has to read again, so the error is its.
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
                reply = super().execute(raise_on_error)[0]
            except RedisError as error:
                if watching or not is_outage(error):
                    raise
                guard.patience.wait(error)
                continue
            guard.patience.over()
            break
        if reply[0] == 0:
            raise NotHeldError(guard.member())
        guard.applied = True
        guard.repeated = reply[0] == 2
        replies = list(reply[1:])
        if raise_on_error:
            for each in replies:
                if isinstance(each, Exception):
                    raise each
        return replies


class GuardedConnection:
    """The worker's connection, except that its pipelines are guarded."""

    def __init__(self, connection: Any, guard: Guard) -> None:
        self._connection = connection
        self._guard = guard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> GuardedPipeline:
        """A pipeline that applies once, and only while the job is held."""
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
    """The commands that ``fill`` puts on a pipeline, which is never executed."""
    pipeline = connection.pipeline()
    fill(pipeline)
    return [_words(entry) for entry in pipeline.command_stack]


def _words(entry: Any) -> Command:
    return tuple(entry[0])


def _unscriptable(entry: Any) -> bool:
    return entry[0][0] in _UNSCRIPTABLE
