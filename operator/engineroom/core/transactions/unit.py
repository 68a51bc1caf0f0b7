"""A unit of work: participants that commit together or roll back together.

All participants prepare, then all commit in the order in which they enlisted. A failure before the
first commit rolls everything back. A failure of a later commit rolls back the remaining
participants and raises TransactionInDoubtError, which names those that committed. So enlist the
participant that fails most easily first (a database with constraints) and Redis last.

::

    with UnitOfWork(limit=5.0) as unit:
        unit.enlist(ConnectionParticipant(connection))
        jobs = unit.enlist(QueueParticipant(queue))
        connection.execute("insert ...")
        with unit.nested():                     # a savepoint
            connection.execute("...")
        jobs.enqueue(send_mail, 7)              # sent at commit
        unit.after_commit(lambda: cache.pop(7, None))
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from engineroom.core.clock import SystemClock
from engineroom.core.context import new_id
from engineroom.core.error_translation import wrap
from engineroom.core.errors import Category, EngineroomError, TimeLimitError
from engineroom.core.logging import get_logger
from engineroom.core.transactions.errors import TransactionInDoubtError, TransactionStateError
from engineroom.core.transactions.maybe_async import run_plain, settle
from engineroom.core.transactions.unitlog import NullUnitLog, UnitRecord, UnitStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from types import TracebackType

    from engineroom.core.clock import Clock
    from engineroom.core.transactions.unitlog import UnitLog

log = get_logger(__name__)

_T = TypeVar("_T")


class Participant(Protocol):
    """A system that takes part. In an ``AsyncUnitOfWork`` each method may return an awaitable.

    ``prepare`` raises if ``commit`` could not succeed. ``rollback`` undoes everything, also after
    ``prepare``. Both must succeed if nothing was done.
    """

    def prepare(self) -> Any:
        """Check that ``commit`` will succeed."""
        ...

    def commit(self) -> Any:
        """Make the changes durable."""
        ...

    def rollback(self) -> Any:
        """Undo the changes."""
        ...


class Savepoint(Protocol):
    """A point that a nested block can roll back to."""

    def release(self) -> Any:
        """Keep the changes since the savepoint as part of the whole."""
        ...

    def rollback(self) -> Any:
        """Undo the changes since the savepoint."""
        ...


_P = TypeVar("_P", bound=Participant)


class _State(StrEnum):
    NEW = "new"
    ACTIVE = "active"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    IN_DOUBT = "in_doubt"


@dataclass(slots=True)
class _Undo:
    """A completed action with its undo function."""

    undo: Callable[[], Any]

    def prepare(self) -> None:
        pass

    def commit(self) -> None:
        pass

    def rollback(self) -> Any:
        return self.undo()


@dataclass(slots=True)
class _Level:
    """A savepoint: the counts at its start, and the participants' own savepoints."""

    participants: int
    after_commit: int
    savepoints: list[Savepoint]


class _Unit:
    """The part that sync and async units of work share."""

    def __init__(
        self,
        *,
        limit: float | None = None,
        clock: Clock | None = None,
        log: UnitLog | None = None,
        name: str = "",
        by: str = "",
    ) -> None:
        self._limit = limit
        self._clock: Clock = clock or SystemClock()
        self._log: UnitLog = log or NullUnitLog()
        self._record = UnitRecord(new_id(), name, by, UnitStatus.RUNNING, 0.0)
        self._began = 0.0
        self._state = _State.NEW
        self._participants: list[Participant] = []
        self._after_commit: list[Callable[[], Any]] = []
        self._after_rollback: list[Callable[[], Any]] = []

    @property
    def id(self) -> str:
        """The id of the unit's record in the log."""
        return self._record.id

    @property
    def state(self) -> str:
        """The state: new, active, committed, rolled_back or in_doubt."""
        return self._state.value

    def remaining(self) -> float | None:
        """Return the seconds left of the limit, or None without one."""
        if self._limit is None:
            return None
        return self._limit - (self._clock.monotonic() - self._began)

    def enlist(self, participant: _P) -> _P:
        """Add a participant and return it; raise TransactionStateError outside of the block."""
        self._check()
        self._participants.append(participant)
        return participant

    def undo(self, undo: Callable[[], Any]) -> None:
        """Register the undo function of a completed action.

        A rollback calls the functions in reverse order. Once a participant has committed, none is
        called.
        """
        self._check()
        self._participants.append(_Undo(undo))

    def after_commit(self, hook: Callable[[], Any]) -> None:
        """Register a hook to call after all commits. A failing hook is logged; commits stand."""
        self._check()
        self._after_commit.append(hook)

    def after_rollback(self, hook: Callable[[], Any]) -> None:
        """Register a hook to call after a rollback. A failing hook is logged."""
        self._check()
        self._after_rollback.append(hook)

    def _check(self) -> None:
        if self._state is not _State.ACTIVE:
            raise TransactionStateError(f"the unit of work is {self._state}; use it in its block")
        self._check_time()

    def _check_time(self) -> None:
        remaining = self.remaining()
        if remaining is not None and remaining <= 0:
            raise TimeLimitError(f"the transaction took longer than its {self._limit:g} s")

    async def _begin(self) -> None:
        if self._state is not _State.NEW:
            raise TransactionStateError("a unit of work is used once; make a new one")
        self._began = self._clock.monotonic()
        self._record = replace(self._record, started=self._clock.now().timestamp())
        await settle(self._log.write(self._record))
        self._state = _State.ACTIVE

    async def _write_end(self, status: UnitStatus, error: BaseException | None = None) -> None:
        """Write the outcome to the log; a failure to write it is logged, as the outcome stands."""
        self._record = replace(
            self._record,
            status=status,
            duration=self._clock.monotonic() - self._began,
            error="" if error is None else _summary(error),
        )
        await self._run_quietly(lambda: self._log.write(self._record))

    async def _prepare(self) -> None:
        self._check_time()
        for participant in self._participants:
            await settle(participant.prepare())
        # The last write before the first commit: after a crash it tells which systems to check.
        self._record = replace(
            self._record,
            status=UnitStatus.COMMITTING,
            participants=tuple(
                type(p).__name__ for p in self._participants if not isinstance(p, _Undo)
            ),
        )
        await settle(self._log.write(self._record))
        self._check_time()

    async def _commit(self) -> None:
        committed: list[str] = []
        for index, participant in enumerate(self._participants):
            try:
                await settle(participant.commit())
            except BaseException as error:
                if not committed and not _may_have_committed(error):
                    await self._roll_back(error)
                    raise
                self._state = _State.IN_DOUBT
                failed = type(participant).__name__
                for other in reversed(self._participants[index + 1 :]):
                    if not isinstance(other, _Undo):
                        await self._run_quietly(other.rollback, error)
                log.exception("transaction in doubt", committed=committed, failed=failed)
                await self._write_end(UnitStatus.IN_DOUBT, error)
                raise TransactionInDoubtError(
                    f"{failed} did not confirm its commit"
                    + (f", and {', '.join(committed)} had committed" if committed else ""),
                    context={"committed": committed, "failed": failed},
                ) from error
            if not isinstance(participant, _Undo):
                committed.append(type(participant).__name__)
        self._state = _State.COMMITTED
        await self._write_end(UnitStatus.COMMITTED)
        for hook in self._after_commit:
            await self._run_quietly(hook)

    async def _roll_back(self, error: BaseException | None) -> None:
        self._state = _State.ROLLED_BACK
        for participant in reversed(self._participants):
            await self._run_quietly(participant.rollback, error)
        await self._write_end(UnitStatus.ROLLED_BACK, error)
        for hook in self._after_rollback:
            await self._run_quietly(hook)

    async def _run_quietly(
        self, function: Callable[[], Any], reason: BaseException | None = None
    ) -> None:
        """Call a clean-up function; log its failure and add it to ``reason`` as a note."""
        try:
            await settle(function())
        except TransactionStateError:
            raise
        except Exception as failure:
            log.exception("transaction clean-up failed")
            if reason is not None:
                reason.add_note(f"and its rollback failed: {type(failure).__name__}")

    async def _open(self) -> _Level:
        self._check()
        level = _Level(len(self._participants), len(self._after_commit), [])
        try:
            for participant in self._participants:
                make = getattr(participant, "savepoint", None)
                if make is not None:
                    level.savepoints.append(await settle(make()))
        except BaseException:
            for savepoint in reversed(level.savepoints):
                await self._run_quietly(savepoint.rollback)
            raise
        return level

    async def _close(self, level: _Level, error: BaseException | None) -> None:
        if error is None:
            for savepoint in reversed(level.savepoints):
                await settle(savepoint.release())
            return
        for participant in reversed(self._participants[level.participants :]):
            await self._run_quietly(participant.rollback, error)
        for savepoint in reversed(level.savepoints):
            # If a savepoint fails to roll back, a commit would keep its changes: fail the whole.
            await settle(savepoint.rollback())
        del self._participants[level.participants :]
        del self._after_commit[level.after_commit :]


def _may_have_committed(error: BaseException) -> bool:
    """Return whether a commit that raised ``error`` may have taken effect."""
    if not isinstance(error, Exception):
        return True
    ours = wrap(error)
    return ours is not None and ours.category in {Category.DEPENDENCY, Category.TRANSIENT}


def _summary(error: BaseException) -> str:
    code = error.code if isinstance(error, EngineroomError) else type(error).__name__
    return f"{code}: {error}" if str(error) else code


class UnitOfWork(_Unit):
    """A unit of work for sync code.

    ``limit`` is in seconds: after it no participant enlists or commits. A block that hangs is not
    interrupted; give the participants time limits of their own. ``log`` records the unit under
    ``name``, run by ``by``; if its first write fails, the block does not begin.
    """

    def __enter__(self) -> UnitOfWork:
        run_plain(self._begin())
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if error is not None:
            run_plain(self._roll_back(error))
            return
        try:
            run_plain(self._prepare())
        except BaseException as failure:
            run_plain(self._roll_back(failure))
            raise
        run_plain(self._commit())

    @contextmanager
    def nested(self) -> Iterator[UnitOfWork]:
        """Open a savepoint: an error in the block undoes the block's changes and propagates."""
        level = run_plain(self._open())
        try:
            yield self
        except BaseException as error:
            run_plain(self._close(level, error))
            raise
        run_plain(self._close(level, None))


class AsyncUnitOfWork(_Unit):
    """A unit of work for async code; see ``UnitOfWork``.

    The block is interrupted after ``limit`` seconds with TimeLimitError. The limit ends when the
    commits begin.
    """

    _timeout: asyncio.Timeout

    async def __aenter__(self) -> AsyncUnitOfWork:
        await self._begin()
        self._timeout = asyncio.timeout(self._limit)
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                try:
                    await self._prepare()
                except BaseException as failure:
                    await self._timeout.__aexit__(type(failure), failure, failure.__traceback__)
                    raise
            await self._timeout.__aexit__(kind, error, trace)
        except BaseException as failure:
            await self._roll_back(failure)
            if isinstance(failure, TimeoutError) and self._timeout.expired():
                raise TimeLimitError(
                    f"the transaction took longer than its {self._limit:g} s"
                ) from failure
            raise
        if error is not None:
            await self._roll_back(error)
            return
        await self._commit()

    @asynccontextmanager
    async def nested(self) -> AsyncIterator[AsyncUnitOfWork]:
        """Open a savepoint: an error in the block undoes the block's changes and propagates."""
        level = await self._open()
        try:
            yield self
        except BaseException as error:
            await self._close(level, error)
            raise
        await self._close(level, None)

    async def run(self, action: Awaitable[_T], undo: Callable[[], Any]) -> _T:
        """Await the action, then register ``undo``; return the action's result."""
        self._check()
        answer = await action
        self.undo(undo)
        return answer
