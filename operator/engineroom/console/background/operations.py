"""Execution of bulk changes: any replica continues any open operation, one step at a time.

The replica that holds an operation's lease executes it. When that replica dies, another one takes
over at the recorded position. Repeating a step is harmless.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from engineroom.console.background.operation_store import (
    Operation,
    OperationAction,
    OperationStatus,
)
from engineroom.core.errors import Category, EngineroomError
from engineroom.core.logging import get_logger
from engineroom.tasks.errors import NothingMatchesError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engineroom.console.background.operation_store import OperationStore
    from engineroom.tasks.async_client import AsyncTasks
    from engineroom.tasks.inspection.requeueing import Requeueing

log = get_logger(__name__)

#: Length of a lease in seconds, and seconds between renewals.
LEASE, RENEW = 15.0, 5.0
#: Operations that one replica executes concurrently.
AT_ONCE = 4
#: Matching jobs that are recorded at a time, and jobs that are cancelled between two records.
ROUND, STEP = 20_000, 50


class _HaltedError(Exception):
    """Control flow: the operation was stopped, or another replica holds its lease."""


class OperationRunner:
    """Executes open operations of an ``OperationStore``."""

    def __init__(
        self,
        store: OperationStore,
        tasks: AsyncTasks,
        *,
        on_end: Callable[[Operation], Awaitable[None]] | None = None,
    ) -> None:
        """``on_end`` gets each finished or failed operation before its end is recorded.

        It is called again if the replica dies in between. It is not called for a stopped one.
        """
        self._store = store
        self._tasks = tasks
        self._on_end = on_end
        self._running: dict[str, asyncio.Task[None]] = {}
        self._started = asyncio.Event()

    @property
    def working(self) -> int:
        """The number of operations that this replica executes now."""
        return len(self._running)

    async def start(self, operation: Operation) -> Operation:
        """Record the operation and wake the runner; see ``OperationStore.start``."""
        stored = await self._store.start(operation)
        self._started.set()
        return stored

    async def run(self, stopping: asyncio.Event, every: float = 2.0) -> None:
        """Execute open operations until ``stopping``; wait through outages of Redis."""
        try:
            while not stopping.is_set():
                try:
                    await self._begin_open()
                except EngineroomError as error:
                    log.warning("operations not read", code=error.code, error=str(error))
                self._started.clear()
                waits = [asyncio.create_task(event.wait()) for event in (stopping, self._started)]
                await asyncio.wait(waits, timeout=every, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    wait.cancel()
        finally:
            for task in self._running.values():
                task.cancel()
            if self._running:
                await asyncio.wait(self._running.values())

    async def _begin_open(self) -> None:
        for operation in await self._store.open_ids():
            if operation in self._running or len(self._running) >= AT_ONCE:
                continue
            task = asyncio.create_task(self.execute(operation), name=f"operation {operation}")
            self._running[operation] = task
            task.add_done_callback(partial(self._forget, operation))

    def _forget(self, operation: str, _task: asyncio.Task[None]) -> None:
        self._running.pop(operation, None)

    async def execute(self, operation: str) -> None:
        """Take the lease and continue until the end, a stop, a lost lease or an outage."""
        try:
            if not await self._store.acquire(operation, LEASE):
                return
            halted = asyncio.Event()
            renewal = asyncio.create_task(self._renew(operation, halted))
            try:
                await self._change_jobs(operation, halted)
            finally:
                renewal.cancel()
                await self._store.release(operation)
        except _HaltedError:
            log.info("an operation was stopped or taken over", operation=operation)
        except EngineroomError as error:
            log.warning("an operation waits", operation=operation, code=error.code,
                        error=str(error))  # fmt: skip
        except Exception:
            log.exception("an operation failed unexpectedly", operation=operation)

    async def _renew(self, operation: str, halted: asyncio.Event) -> None:
        while True:
            await asyncio.sleep(RENEW)
            try:
                if await self._store.acquire(operation, LEASE):
                    continue
            except EngineroomError as error:
                log.warning("a lease was not renewed", operation=operation, error=str(error))
            halted.set()
            return

    async def _change_jobs(self, operation: str, halted: asyncio.Event) -> None:
        record = await self._store.get(operation)
        if record is None:
            await self._finish(operation, OperationStatus.STOPPED, "")
            return
        try:
            for queue in record.queues:
                if record.action is OperationAction.RETRY:
                    await self._retry(record, queue, halted)
                else:
                    await self._cancel(record, queue, halted)
        except EngineroomError as error:
            if error.retryable or error.category in (Category.DEPENDENCY, Category.TRANSIENT):
                raise
            await self._finish(operation, OperationStatus.FAILED, f"{error.code}: {error}"[:500])
            return
        await self._finish(operation, OperationStatus.DONE, "")

    async def _finish(self, operation: str, status: OperationStatus, problem: str) -> None:
        record = None if self._on_end is None else await self._store.get(operation)
        if (
            self._on_end is not None
            and record is not None
            and record.status is OperationStatus.RUNNING
        ):
            await self._on_end(replace(record, status=status, problem=problem))
        await self._store.end(operation, status, problem)

    async def _retry(self, record: Operation, queue: str, halted: asyncio.Event) -> None:
        """Requeue the queue's failed jobs by a requeueing, which is resumable by itself."""
        part = await self._store.requeueing(record.id, queue)
        if not part:
            # If this replica dies here, the requeueing is never begun and expires.
            requeueing = await self._tasks.start_requeueing(queue, record.where)
            await self._store.record_requeueing(record.id, queue, requeueing.operation)
            part = await self._store.requeueing(record.id, queue)

        def check(_: Requeueing) -> None:
            _raise_if_halted(halted)

        try:
            await self._tasks.carry_on_requeueing(part, check)
        except NothingMatchesError:
            log.debug("no failed job matched", operation=record.id, queue=queue)

    async def _cancel(self, record: Operation, queue: str, halted: asyncio.Event) -> None:
        """Record the ids of matching jobs, then cancel them.

        Positions in a queue's list move while jobs are cancelled, so the search comes first.
        """
        if await self._store.queue_finished(record.id, queue):
            return
        more = True
        while more:
            if not await self._store.matches(record.id, queue, 1):
                more = await self._search(record, queue, halted)
            await self._cancel_matches(record, queue, halted)
        await self._store.finish_queue(record.id, queue)

    async def _search(self, record: Operation, queue: str, halted: asyncio.Event) -> bool:
        """Record the ids of at most about ROUND matching jobs; return whether more may follow."""
        ids: list[str] = []
        cursor = None
        while len(ids) < ROUND:
            _raise_if_halted(halted)
            page = await self._tasks.jobs(
                [record.state], record.where, queues=[queue], cursor=cursor, limit=500
            )
            ids += [
                job.job_id
                for job in page.jobs
                if job.created_at is None or job.created_at.timestamp() <= record.started
            ]
            cursor = page.cursor
            if cursor is None:
                break
        if ids:
            await self._store.record_matches(record.id, queue, ids)
        return cursor is not None

    async def _cancel_matches(self, record: Operation, queue: str, halted: asyncio.Event) -> None:
        while True:
            _raise_if_halted(halted)
            ids = await self._store.matches(record.id, queue, STEP)
            if not ids:
                return
            done = skipped = 0
            for job in ids:
                try:
                    canceled = await self._tasks.cancel(
                        job, stop=record.stop, queues={*record.queues, *record.allowed}
                    )
                except EngineroomError as error:
                    # The job has ended, expired or been cancelled meanwhile.
                    if error.category not in (Category.NOT_FOUND, Category.CONFLICT):
                        raise
                    skipped += 1
                    continue
                done += len(canceled.canceled)
                skipped += len(canceled.skipped) + (not canceled.canceled)
            await self._store.advance(record.id, queue, ids=len(ids), done=done, skipped=skipped)


def _raise_if_halted(halted: asyncio.Event) -> None:
    if halted.is_set():
        raise _HaltedError
