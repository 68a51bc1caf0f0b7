"""A unit of work: participants that commit together or roll back together.

All prepare, then all commit in the order in which they enlisted. Until the first commit anything
that fails rolls everything back. After it there is no way back: when a later commit fails the rest
is rolled back and TransactionInDoubtError names what was committed. So the participant that fails
most easily (a database with constraints) goes first and what hardly fails (Redis) last.

::

    with UnitOfWork(limit=5.0) as unit:
        unit.enlist(ConnectionParticipant(connection))
        jobs = unit.enlist(QueueParticipant(queue))
        connection.execute("insert ...")
        with unit.nested():                     # a savepoint
            connection.execute("...")
        jobs.enqueue(send_mail, 7)              # leaves with the commit
        unit.after_commit(lambda: cache.pop(7, None))
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from engineroom.core.clock import SystemClock
from engineroom.core.error_translation import wrap
from engineroom.core.errors import Category, TimeLimitError
from engineroom.core.logging import get_logger
from engineroom.core.transactions.errors import TransactionInDoubtError, TransactionStateError
from engineroom.core.transactions.maybe_async import run_plain, settle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from types import TracebackType

    from engineroom.core.clock import Clock

log = get_logger(__name__)

_T = TypeVar("_T")


class Participant(Protocol):
    """What takes part. In an ``AsyncUnitOfWork`` each method may return an awaitable.

    ``prepare`` raises if ``commit`` could not succeed. ``rollback`` undoes everything, also after
    ``prepare``. Both may be called when nothing was done.
    """

    def prepare(self) -> Any:
        """Make sure that ``commit`` will succeed."""
        ...

    def commit(self) -> Any:
        """Make it last."""
        ...

    def rollback(self) -> Any:
        """Make it not have been."""
        ...


class Savepoint(Protocol):
    """A place to go back to."""

    def release(self) -> Any:
        """Keep what came since; it is part of the whole now."""
        ...

    def rollback(self) -> Any:
        """Go back."""
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
    """An action that was done already, and how to undo it."""

    undo: Callable[[], Any]

    def prepare(self) -> None:
        pass

    def commit(self) -> None:
        pass

    def rollback(self) -> Any:
        return self.undo()


@dataclass(slots=True)
class _Level:
    """A savepoint: how much there was of everything, and the participants' own savepoints."""

    participants: int
    after_commit: int
    savepoints: list[Savepoint]


class _Unit:
    """What the plain and the async one share; participants' answers are awaited if need be."""

    def __init__(self, *, limit: float | None = None, clock: Clock | None = None) -> None:
        self._limit = limit
        self._clock: Clock = clock or SystemClock()
        self._began = 0.0
        self._state = _State.NEW
        self._participants: list[Participant] = []
        self._after_commit: list[Callable[[], Any]] = []
        self._after_rollback: list[Callable[[], Any]] = []

    @property
    def state(self) -> str:
        """One of new, active, committed, rolled_back, in_doubt."""
        return self._state.value

    def remaining(self) -> float | None:
        """Seconds left of the limit, None without one."""
        if self._limit is None:
            return None
        return self._limit - (self._clock.monotonic() - self._began)

    def enlist(self, participant: _P) -> _P:
        """Let it take part; returns it. Raises TransactionStateError outside of the block."""
        self._check()
        self._participants.append(participant)
        return participant

    def undo(self, undo: Callable[[], Any]) -> None:
        """Say how to undo what was just done; called at rollback, the latest first.

        Nothing is undone once a participant has committed.
        """
        self._check()
        self._participants.append(_Undo(undo))

    def after_commit(self, hook: Callable[[], Any]) -> None:
        """Call when all have committed. A hook that fails is logged: the commit stands."""
        self._check()
        self._after_commit.append(hook)

    def after_rollback(self, hook: Callable[[], Any]) -> None:
        """Call when all was rolled back. A hook that fails is logged."""
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

    def _begin(self) -> None:
        if self._state is not _State.NEW:
            raise TransactionStateError("a unit of work is used once; make a new one")
        self._state = _State.ACTIVE
        self._began = self._clock.monotonic()

    async def _prepare(self) -> None:
        self._check_time()
        for participant in self._participants:
            await settle(participant.prepare())
        self._check_time()

    async def _commit(self) -> None:
        committed: list[str] = []
        for index, participant in enumerate(self._participants):
            try:
                await settle(participant.commit())
            except BaseException as error:
                if not committed and not _unsure(error):
                    await self._roll_back(error)
                    raise
                self._state = _State.IN_DOUBT
                failed = type(participant).__name__
                for other in reversed(self._participants[index + 1 :]):
                    if not isinstance(other, _Undo):
                        await self._quietly(other.rollback, error)
                log.exception("transaction in doubt", committed=committed, failed=failed)
                raise TransactionInDoubtError(
                    f"{failed} did not say that it committed"
                    + (f", and {', '.join(committed)} had committed" if committed else ""),
                    context={"committed": committed, "failed": failed},
                ) from error
            if not isinstance(participant, _Undo):
                committed.append(type(participant).__name__)
        self._state = _State.COMMITTED
        for hook in self._after_commit:
            await self._quietly(hook)

    async def _roll_back(self, error: BaseException | None) -> None:
        self._state = _State.ROLLED_BACK
        for participant in reversed(self._participants):
            await self._quietly(participant.rollback, error)
        for hook in self._after_rollback:
            await self._quietly(hook)

    async def _quietly(
        self, function: Callable[[], Any], reason: BaseException | None = None
    ) -> None:
        """One that fails must not keep the others from their turn; the reason learns of it."""
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
                await self._quietly(savepoint.rollback)
            raise
        return level

    async def _close(self, level: _Level, error: BaseException | None) -> None:
        if error is None:
            for savepoint in reversed(level.savepoints):
                await settle(savepoint.release())
            return
        for participant in reversed(self._participants[level.participants :]):
            await self._quietly(participant.rollback, error)
        for savepoint in reversed(level.savepoints):
            # One that cannot go back would commit what was to be undone: the whole must fail.
            await settle(savepoint.rollback())
        del self._participants[level.participants :]
        del self._after_commit[level.after_commit :]


def _unsure(error: BaseException) -> bool:
    """Whether a commit that failed so may have taken place all the same."""
    if not isinstance(error, Exception):
        return True
    ours = wrap(error)
    return ours is not None and ours.category in {Category.DEPENDENCY, Category.TRANSIENT}


class UnitOfWork(_Unit):
    """For plain code. ``limit`` is in seconds: past it nothing enlists or commits.

    A block that hangs is not interrupted; give the participants time limits of their own.
    """

    def __enter__(self) -> UnitOfWork:
        self._begin()
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
        """A savepoint: an error in the block takes back what was done in it, and is raised."""
        level = run_plain(self._open())
        try:
            yield self
        except BaseException as error:
            run_plain(self._close(level, error))
            raise
        run_plain(self._close(level, None))


class AsyncUnitOfWork(_Unit):
    """For async code. The block is interrupted after ``limit`` seconds with TimeLimitError.

    Once the commits begin the limit does not count any more.
    """

    _timeout: asyncio.Timeout

    async def __aenter__(self) -> AsyncUnitOfWork:
        self._begin()
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
        """A savepoint: an error in the block takes back what was done in it, and is raised."""
        level = await self._open()
        try:
            yield self
        except BaseException as error:
            await self._close(level, error)
            raise
        await self._close(level, None)

    async def run(self, action: Awaitable[_T], undo: Callable[[], Any]) -> _T:
        """Await the action; once it is done ``undo`` is registered."""
        self._check()
        answer = await action
        self.undo(undo)
        return answer
