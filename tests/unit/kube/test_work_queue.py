"""The queue on a real event loop: order, exclusion, time-outs, and how quick it is."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from engineroom.core.errors import ConflictError
from engineroom.kube.runtime.queue import QueueState, WorkQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Told:
    """Metrics kept for looking at."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.waits: list[float] = []
        self.retries = 0
        self.errors: Counter[tuple[str, str]] = Counter()

    def started(self, waited: float) -> None:
        self.waits.append(waited)

    def finished(self, ran: float, outcome: str) -> None:
        self.outcomes[outcome] += 1

    def retried(self) -> None:
        self.retries += 1

    def failed(self, code: str, category: str) -> None:
        self.errors[code, category] += 1


@asynccontextmanager
async def running(
    queue: WorkQueue, reconcile: Callable[[str], Any], workers: int = 4
) -> AsyncIterator[None]:
    task = asyncio.create_task(queue.run(reconcile, workers=workers))
    await asyncio.sleep(0)
    try:
        yield
    finally:
        await queue.shutdown(1.0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool], within: float = 5.0) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_no_key_runs_twice_at_once_and_all_keys_run() -> None:
    queue = WorkQueue("test")
    now: set[str] = set()
    seen: Counter[str] = Counter()

    async def reconcile(key: str) -> None:
        assert key not in now
        now.add(key)
        await asyncio.sleep(0.001)
        now.discard(key)
        seen[key] += 1

    async with running(queue, reconcile, workers=8):
        for _ in range(20):
            for number in range(10):
                queue.add(f"k{number}")
            await asyncio.sleep(0.0005)
        await until(lambda: queue.depth == 0 and queue.running == 0)
    assert set(seen) == {f"k{number}" for number in range(10)}


async def test_keys_added_before_it_runs_are_looked_at_when_it_does() -> None:
    queue = WorkQueue("test")
    seen: list[str] = []
    queue.add("a")
    queue.add_after("b", 0.01)

    async def reconcile(key: str) -> None:
        seen.append(key)

    async with running(queue, reconcile):
        await until(lambda: seen == ["a", "b"])


async def test_the_result_says_when_to_look_again() -> None:
    queue = WorkQueue("test")
    times: list[float] = []

    async def reconcile(_key: str) -> float:
        times.append(time.monotonic())
        return 0.05

    queue.add("a")
    async with running(queue, reconcile):
        await until(lambda: len(times) >= 4)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert all(0.049 <= gap < 0.5 for gap in gaps)


async def test_a_failing_key_does_not_hold_up_the_others_and_is_retried() -> None:
    told = Told()
    queue = WorkQueue("test", metrics=told)
    attempts: Counter[str] = Counter()

    async def reconcile(key: str) -> None:
        attempts[key] += 1
        if key == "bad" and attempts[key] < 4:
            raise RuntimeError("no")

    queue.add("bad")
    async with running(queue, reconcile, workers=1):
        for number in range(50):
            queue.add(f"good{number}")
        await until(lambda: attempts["bad"] == 4 and queue.running == 0)
    assert sum(attempts.values()) == 54
    assert told.outcomes == {"ok": 51, "error": 3}
    assert told.retries == 3


async def test_a_conflict_is_its_own_outcome() -> None:
    told = Told()
    queue = WorkQueue("test", metrics=told)
    done: list[str] = []

    async def reconcile(key: str) -> None:
        if not done:
            done.append(key)
            raise ConflictError("changed meanwhile")
        done.append(key)

    queue.add("a")
    async with running(queue, reconcile):
        await until(lambda: len(done) == 2)
    assert told.outcomes["conflict"] == 1
    assert told.errors == {("conflict", "conflict"): 1}


async def test_a_run_that_takes_too_long_is_cancelled_and_retried() -> None:
    told = Told()
    queue = WorkQueue("test", timeout=0.05, metrics=told)
    ended: list[str] = []

    async def reconcile(_key: str) -> None:
        try:
            if not ended:
                await asyncio.sleep(60)
        finally:
            ended.append("end")

    queue.add("a")
    async with running(queue, reconcile):
        await until(lambda: len(ended) == 2)
    assert told.outcomes == {"timeout": 1, "ok": 1}
    assert told.errors == {("time_limit", "transient"): 1}


async def test_a_time_out_inside_the_reconcile_is_an_error_like_any_other() -> None:
    told = Told()
    queue = WorkQueue("test", metrics=told)
    tried: list[str] = []

    async def reconcile(key: str) -> None:
        tried.append(key)
        if len(tried) == 1:
            raise TimeoutError("some socket")

    queue.add("a")
    async with running(queue, reconcile):
        await until(lambda: len(tried) == 2)
    assert told.outcomes["error"] == 1
    assert told.outcomes["timeout"] == 0


async def test_shutdown_lets_runs_finish_and_starts_no_other() -> None:
    queue = WorkQueue("test")
    begun: list[str] = []
    finished: list[str] = []

    async def reconcile(key: str) -> None:
        begun.append(key)
        await asyncio.sleep(0.05)
        finished.append(key)

    task = asyncio.create_task(queue.run(reconcile, workers=1))
    queue.add("a")
    queue.add("b")
    await until(lambda: begun == ["a"])
    assert await queue.shutdown(1.0)
    await task
    assert finished == ["a"]


async def test_shutdown_cancels_what_does_not_finish_in_time() -> None:
    queue = WorkQueue("test")
    cancelled = asyncio.Event()

    async def reconcile(_key: str) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    task = asyncio.create_task(queue.run(reconcile))
    queue.add("a")
    await until(lambda: queue.running == 1)
    assert not await queue.shutdown(0.05)
    assert cancelled.is_set()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_key_that_the_gate_refuses_is_not_run() -> None:
    queue = WorkQueue("test", gate=lambda key: key != "not mine")
    seen: list[str] = []

    async def reconcile(key: str) -> None:
        seen.append(key)

    async with running(queue, reconcile):
        queue.add("not mine")
        queue.add("mine")
        await until(lambda: seen == ["mine"])
    assert queue.depth == 0


async def test_the_oldest_run_is_known() -> None:
    queue = WorkQueue("test")
    release = asyncio.Event()

    async def reconcile(_key: str) -> None:
        await release.wait()

    assert queue.oldest_run() == 0.0
    async with running(queue, reconcile):
        queue.add("a")
        await asyncio.sleep(0.05)
        assert queue.oldest_run() >= 0.04
        release.set()


@pytest.mark.timeout(30)
async def test_an_idle_queue_starts_within_a_fraction_of_a_millisecond() -> None:
    queue = WorkQueue("test")
    begun = asyncio.get_running_loop().create_future()
    delays: list[float] = []

    async def reconcile(_key: str) -> None:
        begun.set_result(time.perf_counter())

    async with running(queue, reconcile, workers=16):
        for _ in range(500):
            begun = asyncio.get_running_loop().create_future()
            asked = time.perf_counter()
            queue.add("a", urgent=True)
            delays.append(await begun - asked)
            await asyncio.sleep(0)
    # Typically 30 to 50 microseconds; the bound leaves room for a busy machine.
    assert statistics.median(delays) < 0.0005


async def test_ten_thousand_keys_wait_without_ten_thousand_timers() -> None:
    queue = WorkQueue("test", state=QueueState())
    seen: set[str] = set()

    async def reconcile(key: str) -> None:
        seen.add(key)

    before = len(asyncio.all_tasks())
    async with running(queue, reconcile, workers=4):
        for number in range(10_000):
            queue.add_after(f"k{number}", 0.2 + number / 1e6)
        assert len(asyncio.all_tasks()) <= before + 5
        await until(lambda: len(seen) == 10_000, within=20)
