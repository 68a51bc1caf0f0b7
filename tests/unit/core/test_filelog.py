"""Sagas logged in files: wholly done or wholly undone, wherever the process dies."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from engineroom.core.errors import DependencyError, InvalidInputError, PermanentError
from engineroom.core.transactions.errors import SagaFencedError, SagaStuckError, SagaUndoneError
from engineroom.core.transactions.filelog import FileSagaLog
from engineroom.core.transactions.journal import EntryKind, JournalEntry
from engineroom.core.transactions.saga import Coordinator, Saga, Step, StepContext

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("a", "b", "c")


class World:
    """What steps do, idempotent by key; ``undone`` makes a late action do nothing."""

    def __init__(self) -> None:
        self.applied: list[str] = []
        self.undone: set[str] = set()
        self.stuck = False

    async def act(self, step: StepContext) -> str:
        if step.key not in self.undone and step.key not in self.applied:
            self.applied.append(step.key)
        if step.input == step.step:
            raise PermanentError("as told")
        return f"did {step.step}"

    async def undo(self, step: StepContext) -> None:
        if self.stuck:
            raise PermanentError("cannot")
        self.undone.add(step.key)
        if step.key in self.applied:
            self.applied.remove(step.key)

    def sagas(self, *, back: bool = True) -> list[Saga]:
        steps = tuple(Step(name, self.act, self.undo) for name in NAMES)
        return [Saga("order", steps, back_after_crash=back)]


class Crash(BaseException):
    """The end of a process."""


class Dying(FileSagaLog):
    """Dies at its ``number``-th write: before it, after it, or half way through."""

    def __init__(self, directory: Path, number: int, how: str) -> None:
        super().__init__(directory)
        self.number = number
        self.how = how

    def _write(self, descriptor: int, said: Any) -> None:
        self.number -= 1
        if self.number == -1 and self.how == "before":
            raise Crash
        before = os.fstat(descriptor).st_size
        super()._write(descriptor, said)
        if self.number == -1 and self.how == "torn":
            after = os.fstat(descriptor).st_size
            os.ftruncate(descriptor, (before + after) // 2)
        if self.number == -1:
            raise Crash


@pytest.mark.parametrize("outcome", ["", "c"])
@pytest.mark.parametrize("how", ["before", "after", "torn"])
@pytest.mark.parametrize("number", range(12))
async def test_died_at_every_write_the_end_is_whole(
    tmp_path: Path, number: int, how: str, outcome: str
) -> None:
    world = World()
    log = Dying(tmp_path, number, how)
    died = False
    try:
        await Coordinator(log, world.sagas()).run("order", "one", outcome)
    except Crash:
        died = True
    except SagaUndoneError:
        assert outcome
    log.release_all()
    after = FileSagaLog(tmp_path)
    left = after.left()
    await Coordinator(after, world.sagas()).recover()
    record = await after.read("one")
    status = "none" if record is None else record.status
    assert died or not left
    if status == "committed":
        assert not outcome
        assert world.applied == [f"one/{name}" for name in NAMES]
    else:
        assert status == "rolled_back" or (status == "none" and number == 0)
        assert world.applied == []
    assert FileSagaLog(tmp_path).left() == []
    if not died:
        assert number > 4


async def test_who_works_on_a_saga_is_left_alone(tmp_path: Path) -> None:
    log, other = FileSagaLog(tmp_path), FileSagaLog(tmp_path)
    assert await log.begin("one", "order", {"a": 1}, "ann", 1.0) == 1
    assert await log.begin("one", "order", {}, "bob", 1.0) is None
    assert await other.claim(["order"], 1.0, 10) == []
    assert other.left() == []
    assert not await other.append("one", 1, [JournalEntry(EntryKind.DOING, "a")], 1.0)
    assert await log.append(
        "one", 1, [JournalEntry(EntryKind.DOING, "a", {"password": "hunter2"})], 1.0
    )
    assert "hunter2" not in (tmp_path / "one.saga").read_text()
    log.release("one")
    assert [record.id for record in other.left()] == ["one"]
    assert await other.claim(["another"], 1.0, 10) == []
    assert await other.claim(["order"], 1.0, 10) == [("one", 2)]
    assert await FileSagaLog(tmp_path).claim(["order"], 1.0, 10) == []
    assert not await log.append("one", 1, [JournalEntry(EntryKind.COMMITTED)], 1.0)
    assert await other.renew("one", 2, 1.0)
    assert not await other.renew("one", 1, 1.0)


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    code = (
        "import asyncio, os, signal, sys, pathlib\n"
        "from engineroom.core.transactions.filelog import FileSagaLog\n"
        "log = FileSagaLog(pathlib.Path(sys.argv[1]))\n"
        "asyncio.run(log.begin('one', 'order', None, 'ann', 1.0))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    log = FileSagaLog(tmp_path)
    assert [record.by for record in log.left()] == ["ann"]
    assert asyncio.run(log.claim(["order"], 1.0, 10)) == [("one", 2)]


async def test_a_stuck_one_goes_on_when_somebody_says_so(tmp_path: Path) -> None:
    world = World()
    world.stuck = True
    log = FileSagaLog(tmp_path)
    coordinator = Coordinator(log, world.sagas())
    with pytest.raises(SagaStuckError):
        await coordinator.run("order", "one", "b")
    assert [record.status for record in log.left()] == ["stuck"]
    assert await coordinator.recover() == 0
    world.stuck = False
    await coordinator.resume("one")
    assert log.left() == []
    assert world.applied == []
    assert await log.resume("one", 1.0) is None


async def test_pages_lead_from_the_newest_to_the_oldest(tmp_path: Path) -> None:
    now = [100.0]
    log = FileSagaLog(tmp_path, retention=50.0, now=lambda: now[0])
    for number in range(5):
        now[0] += 1
        await Coordinator(log, World().sagas()).run("order", f"s{number}")
    first = await log.page(count=2)
    assert [record.id for record in first.records] == ["s4", "s3"]
    assert first.cursor is not None
    second = await log.page(cursor=first.cursor, count=10)
    assert [record.id for record in second.records] == ["s2", "s1", "s0"]
    assert second.cursor is None
    assert first.records[0].by == ""
    now[0] += 60
    await log.begin("new", "order", None, "", 1.0)
    assert [record.id for record in (await log.page()).records] == ["new"]


async def test_files_are_their_owners_and_names_stay_inside(tmp_path: Path) -> None:
    log = FileSagaLog(tmp_path / "deep" / "down")
    for bad in ("../x", "a/b", "", "x" * 201, "a.b"):
        with pytest.raises(InvalidInputError):
            await log.begin(bad, "order", None, "", 1.0)
        if bad:
            with pytest.raises(InvalidInputError):
                await log.read(bad)
    await log.begin("one", "order", None, "", 1.0)
    assert stat.S_IMODE((tmp_path / "deep" / "down" / "one.saga").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "deep" / "down").stat().st_mode) == 0o700


async def test_what_cannot_be_read_is_no_empty_log(tmp_path: Path) -> None:
    (tmp_path / "one.saga").write_text("no json\n")
    log = FileSagaLog(tmp_path)
    with pytest.raises(DependencyError, match="cannot be used"):
        log.left()
    (tmp_path / "file").write_text("")
    with pytest.raises(DependencyError):
        await FileSagaLog(tmp_path / "file").begin("two", "order", None, "", 1.0)


async def test_one_that_is_under_way_is_not_run_a_second_time(tmp_path: Path) -> None:
    log = FileSagaLog(tmp_path)
    await log.begin("one", "order", None, "", 1.0)
    with pytest.raises(SagaFencedError):
        await Coordinator(FileSagaLog(tmp_path), World().sagas()).run("order", "one")
