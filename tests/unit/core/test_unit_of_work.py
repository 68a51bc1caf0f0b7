"""Units of work: all or nothing, the same for plain and async ones."""

# ruff: noqa: PT012 - the block is what is tested

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engineroom.core.clock import FakeClock
from engineroom.core.errors import (
    ConflictError,
    DependencyError,
    PermanentError,
    TimeLimitError,
)
from engineroom.core.transactions.errors import TransactionInDoubtError, TransactionStateError
from engineroom.core.transactions.unit import AsyncUnitOfWork, UnitOfWork
from engineroom.core.transactions.unitlog import (
    MemoryUnitLog,
    NullUnitLog,
    UnitRecord,
    UnitStatus,
)


class Store:
    """Writes that count once committed; fails where told."""

    def __init__(self, fails: str = "", error: Exception | None = None) -> None:
        self.fails = fails
        self.error = error or PermanentError("no")
        self.pending: list[str] = []
        self.stored: list[str] = []
        self.rolled_back = False

    def put(self, value: str) -> None:
        self.pending.append(value)

    def _do(self, what: str) -> None:
        if what == self.fails:
            raise self.error

    def prepare(self) -> Any:
        self._do("prepare")

    def commit(self) -> Any:
        self._do("commit")
        self.stored, self.pending = self.stored + self.pending, []

    def rollback(self) -> Any:
        self.rolled_back = True
        self.pending = []
        self._do("rollback")

    def savepoint(self) -> Any:
        store, length = self, len(self.pending)

        class Mark:
            def release(self) -> None:
                pass

            def rollback(self) -> None:
                del store.pending[length:]

        return Mark()


class AsyncStore(Store):
    async def prepare(self) -> None:
        await asyncio.sleep(0)
        super().prepare()

    async def commit(self) -> None:
        await asyncio.sleep(0)
        super().commit()

    async def rollback(self) -> None:
        await asyncio.sleep(0)
        super().rollback()


def work(how: str, body: Any, **options: Any) -> Any:
    """Run ``body(unit)``, a generator that yields to open a savepoint and is resumed in it."""
    if how == "plain":
        unit: Any = UnitOfWork(**options)
        with unit:
            body(unit)
        return unit

    async def main() -> Any:
        async_unit = AsyncUnitOfWork(**options)
        async with async_unit:
            body(async_unit)
        return async_unit

    return asyncio.run(main())


HOW = pytest.mark.parametrize(("how", "store"), [("plain", Store), ("async", AsyncStore)])


@HOW
def test_all_commit_and_hooks_are_called(how: str, store: type[Store]) -> None:
    one, two, told = store(), store(), []

    def body(unit: Any) -> None:
        unit.enlist(one).put("a")
        unit.enlist(two).put("b")
        unit.after_commit(lambda: told.append((one.stored, two.stored)))
        unit.after_rollback(lambda: told.append("rollback"))

    assert work(how, body).state == "committed"
    assert told == [(["a"], ["b"])]


@HOW
def test_an_error_rolls_everything_back_the_latest_first(how: str, store: type[Store]) -> None:
    one, told = store(), []

    def body(unit: Any) -> None:
        unit.enlist(one).put("a")
        unit.undo(lambda: told.append("first"))
        unit.undo(lambda: told.append("second"))
        unit.after_rollback(lambda: told.append("hook"))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        work(how, body)
    assert (one.stored, one.pending, told) == ([], [], ["second", "first", "hook"])


@HOW
@pytest.mark.parametrize("fails", ["prepare", "commit"])
def test_a_failure_before_the_first_commit_is_over_leaves_nothing(
    how: str, store: type[Store], fails: str
) -> None:
    bad, good, undone = store(fails, ConflictError("x")), store(), []

    def body(unit: Any) -> None:
        unit.undo(lambda: undone.append(1))
        unit.enlist(bad).put("a")
        unit.enlist(good).put("b")

    with pytest.raises(ConflictError):
        work(how, body)
    assert (bad.stored, good.stored, undone) == ([], [], [1])
    assert good.rolled_back


@HOW
def test_a_later_commit_that_fails_is_in_doubt_and_says_so(how: str, store: type[Store]) -> None:
    first, bad, last, undone = store(), store("commit"), store(), []

    def body(unit: Any) -> None:
        unit.undo(lambda: undone.append(1))
        for each in (first, bad, last):
            unit.enlist(each).put("a")

    with pytest.raises(TransactionInDoubtError) as caught:
        work(how, body)
    assert caught.value.context["committed"] == [store.__name__]
    assert (first.stored, last.stored, last.rolled_back, undone) == (["a"], [], True, [])


@HOW
def test_a_first_commit_whose_answer_was_lost_is_in_doubt(how: str, store: type[Store]) -> None:
    with pytest.raises(TransactionInDoubtError):
        work(how, lambda unit: unit.enlist(store("commit", DependencyError("cut"))))


@HOW
def test_a_rollback_that_fails_does_not_hide_the_error_nor_stop_the_rest(
    how: str, store: type[Store]
) -> None:
    one, bad = store(), store("rollback")

    def body(unit: Any) -> None:
        unit.enlist(one).put("a")
        unit.enlist(bad)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no") as caught:
        work(how, body)
    assert one.rolled_back
    assert "PermanentError" in str(caught.value.__notes__)


def test_a_savepoint_takes_back_only_its_own() -> None:
    one, inner, told = Store(), Store(), []
    with UnitOfWork() as unit:
        unit.enlist(one).put("a")
        with pytest.raises(ValueError, match="no"), unit.nested():
            one.put("b")
            unit.enlist(inner).put("x")
            unit.undo(lambda: told.append("undone"))
            unit.after_commit(lambda: told.append("never"))
            raise ValueError("no")
        with unit.nested(), unit.nested():
            one.put("c")
        unit.after_commit(lambda: told.append("committed"))
    assert (one.stored, inner.stored, told) == (["a", "c"], [], ["undone", "committed"])


async def test_an_async_savepoint_takes_back_only_its_own() -> None:
    one = AsyncStore()
    async with AsyncUnitOfWork() as unit:
        unit.enlist(one).put("a")
        with pytest.raises(ValueError, match="no"):
            async with unit.nested():
                one.put("b")
                raise ValueError("no")
        async with unit.nested():
            one.put("c")
    assert one.stored == ["a", "c"]


def test_nothing_commits_past_the_limit() -> None:
    clock, one = FakeClock(), Store()
    with pytest.raises(TimeLimitError), UnitOfWork(limit=5, clock=clock) as unit:
        unit.enlist(one).put("a")
        assert unit.remaining() == 5
        clock.advance(6)
    assert (one.stored, one.rolled_back) == ([], True)


async def test_an_async_block_is_interrupted_at_the_limit() -> None:
    one = AsyncStore()
    with pytest.raises(TimeLimitError):
        async with AsyncUnitOfWork(limit=0.02) as unit:
            unit.enlist(one).put("a")
            await asyncio.sleep(30)
    assert (one.stored, one.rolled_back) == ([], True)


async def test_a_prepare_that_hangs_is_interrupted_too() -> None:
    class Hanging(AsyncStore):
        async def prepare(self) -> None:
            await asyncio.sleep(30)

    one = Hanging()
    with pytest.raises(TimeLimitError):
        async with AsyncUnitOfWork(limit=0.02) as unit:
            unit.enlist(one).put("a")
    assert (one.stored, one.rolled_back) == ([], True)


async def test_being_cancelled_rolls_back() -> None:
    one, entered = AsyncStore(), asyncio.Event()

    async def body() -> None:
        async with AsyncUnitOfWork() as unit:
            unit.enlist(one).put("a")
            entered.set()
            await asyncio.sleep(30)

    task = asyncio.create_task(body())
    await entered.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert one.rolled_back


async def test_an_action_and_its_undo_are_registered_together() -> None:
    done: list[str] = []

    async def act() -> str:
        done.append("act")
        return "answer"

    with pytest.raises(ValueError, match="no"):
        async with AsyncUnitOfWork() as unit:
            assert await unit.run(act(), lambda: done.append("undo")) == "answer"
            raise ValueError("no")
    assert done == ["act", "undo"]


def test_a_unit_is_used_once_and_in_its_block() -> None:
    unit = UnitOfWork()
    with pytest.raises(TransactionStateError):
        unit.enlist(Store())
    with unit:
        pass
    with pytest.raises(TransactionStateError), unit:
        pass


def test_a_hook_that_fails_does_not_unmake_the_commit() -> None:
    def bad() -> None:
        raise RuntimeError("no")

    one = Store()
    with UnitOfWork() as unit:
        unit.enlist(one).put("a")
        unit.after_commit(bad)
    assert one.stored == ["a"]


class SpyLog(MemoryUnitLog):
    """A log that notes each write and fails at one of them."""

    def __init__(self, fails_at: int = 0) -> None:
        super().__init__()
        self.statuses: list[str] = []
        self._fails_at = fails_at

    def write(self, record: UnitRecord) -> None:
        self.statuses.append(record.status.value)
        if len(self.statuses) == self._fails_at:
            raise DependencyError("the log does not answer")
        super().write(record)


@HOW
def test_the_log_has_caller_name_participants_outcome_and_duration(
    how: str, store: type[Store]
) -> None:
    clock, log = FakeClock(), SpyLog()

    def body(unit: Any) -> None:
        unit.enlist(store()).put("a")
        unit.undo(lambda: None)
        clock.advance(1.5)

    unit = work(how, body, clock=clock, log=log, name="transfer", by="alice")
    assert log.statuses == ["running", "committing", "committed"]
    (record,) = log.page().records
    started = FakeClock().now().timestamp()
    assert record == UnitRecord(
        unit.id, "transfer", "alice", UnitStatus.COMMITTED, started, 1.5, (store.__name__,)
    )


@HOW
def test_the_log_has_the_error_of_a_rollback_without_secrets(how: str, store: type[Store]) -> None:
    log = MemoryUnitLog()

    def body(unit: Any) -> None:
        unit.enlist(store()).put("a")
        raise ConflictError("redis://user:hunter2@host changed")

    with pytest.raises(ConflictError):
        work(how, body, log=log)
    (record,) = log.page().records
    assert record.status is UnitStatus.ROLLED_BACK
    assert record.error == "conflict: redis://[redacted]@host changed"


@HOW
def test_the_log_has_a_unit_in_doubt(how: str, store: type[Store]) -> None:
    log = SpyLog()

    def body(unit: Any) -> None:
        unit.enlist(store()).put("a")
        unit.enlist(store("commit"))

    with pytest.raises(TransactionInDoubtError):
        work(how, body, log=log)
    assert log.statuses == ["running", "committing", "in_doubt"]


@HOW
@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_log_that_fails_before_the_first_commit_prevents_all_commits(
    how: str, store: type[Store], fails_at: int
) -> None:
    one, log = store(), SpyLog(fails_at)
    with pytest.raises(DependencyError):
        work(how, lambda unit: unit.enlist(one).put("a"), log=log)
    assert one.stored == []
    assert one.rolled_back is (fails_at == 2)


@HOW
def test_a_log_that_fails_after_the_commits_changes_nothing(how: str, store: type[Store]) -> None:
    one = store()
    unit = work(how, lambda unit: unit.enlist(one).put("a"), log=SpyLog(3))
    assert (unit.state, one.stored) == ("committed", ["a"])


def test_a_log_in_memory_pages_from_the_newest_and_forgets_the_oldest() -> None:
    log = MemoryUnitLog(most=3)
    for number in range(4):
        log.write(UnitRecord(f"u{number}", "n", "", UnitStatus.RUNNING, float(number)))
    first = log.page(count=2)
    assert [record.id for record in first.records] == ["u3", "u2"]
    second = log.page(cursor=first.cursor, count=2)
    assert [record.id for record in second.records] == ["u1"]
    assert second.cursor is None


def test_the_null_log_stores_nothing() -> None:
    log = NullUnitLog()
    with UnitOfWork(log=log):
        pass
    assert log.page().records == ()
