"""Sagas: steps across systems that share no transaction, finished or undone after a crash.

A coordinator writes an entry to a log before and after each step (write-ahead). After a crash
another coordinator takes the saga over by its lease and continues where the log ends. If the last
entry is "doing", the step's outcome is unknown: the coordinator calls its action again with the
same key, or its undo if the saga is rolling back. So both must be idempotent by
``StepContext.key``. An undo must also succeed if the action never ran, and must turn a later action
under the same key into a no-op.

Only one coordinator works on a saga. Each take-over raises the epoch, and a write under an older
epoch raises SagaFencedError. A slow action may still be running then; where that can do harm, the
target system compares ``StepContext.epoch`` and refuses the lower one (M. Kleppmann, "How to do
distributed locking", 2016).

Source: H. Garcia-Molina, K. Salem, "Sagas", SIGMOD 1987.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from engineroom.core import tracing
from engineroom.core.errors import EngineroomError, PermanentError, TooLargeError
from engineroom.core.logging import get_logger
from engineroom.core.recovery import Recovery, RetryPolicy
from engineroom.core.transactions.errors import (
    SagaFencedError,
    SagaStuckError,
    SagaUndoneError,
    SagaUnknownError,
)
from engineroom.core.transactions.journal import ENDS, MAX_BYTES, EntryKind, JournalEntry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from engineroom.core.transactions.journal import SagaLog, SagaRecord

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StepContext:
    """The argument of an action and of its undo.

    ``key`` is the same for every attempt of this step and for its undo. ``epoch`` only grows.
    ``answers`` holds the results of earlier steps by name.
    """

    saga: str
    step: str
    key: str
    epoch: int
    input: Any
    answers: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One step: ``action`` and ``undo`` are sync or async and idempotent by ``StepContext.key``.

    ``action`` must return JSON values. ``limit`` is the time limit of one attempt in seconds. Sync
    functions run in a thread and cannot be interrupted.
    """

    name: str
    action: Callable[[StepContext], Any]
    undo: Callable[[StepContext], Any]
    limit: float = 30.0


@dataclass(frozen=True, slots=True)
class Saga:
    """The definition of a saga.

    With ``back_after_crash`` a recovered saga is undone instead of finished.
    """

    name: str
    steps: tuple[Step, ...]
    back_after_crash: bool = False

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        if not names or len(set(names)) != len(names):
            raise ValueError("a saga needs steps with different names")


class ActionKind(StrEnum):
    """What a coordinator does next."""

    DO = "do"
    UNDO = "undo"
    END = "end"


@dataclass(frozen=True, slots=True)
class NextAction:
    """The next action of a coordinator; ``step`` is an index, ``end`` the final entry to write."""

    act: ActionKind
    step: int = -1
    end: EntryKind | None = None


def next_action(names: Sequence[str], entries: Iterable[JournalEntry]) -> NextAction | None:
    """Return the next action that the log implies, or None when the saga has ended. Pure.

    Raises SagaUnknownError when the log names a step that is not among ``names``.
    """
    index = {name: number for number, name in enumerate(names)}
    done, reached, back, undone, ended = -1, -1, False, len(names), False
    for line in entries:
        if line.step and line.step not in index:
            raise SagaUnknownError(f"the log has a step {line.step!r} that the saga does not have")
        number = index.get(line.step, -1)
        if line.kind is EntryKind.DOING:
            reached = max(reached, number)
        elif line.kind is EntryKind.DONE:
            done = max(done, number)
        elif line.kind in {EntryKind.FAILED, EntryKind.UNDOING}:
            back = True
        elif line.kind is EntryKind.UNDONE:
            back, undone = True, min(undone, number)
        ended = line.kind in ENDS
    if ended:
        return None
    if back:
        number = min(undone - 1, reached)
        return (
            NextAction(ActionKind.UNDO, number)
            if number >= 0
            else NextAction(ActionKind.END, end=EntryKind.ROLLED_BACK)
        )
    if done + 1 < len(names):
        return NextAction(ActionKind.DO, done + 1)
    return NextAction(ActionKind.END, end=EntryKind.COMMITTED)


@dataclass(slots=True)
class _SagaRun:
    """The state of one saga that this coordinator runs."""

    definition: Saga
    id: str
    epoch: int
    input: Any
    entries: list[JournalEntry]
    failure: EngineroomError | None = None
    waiting: list[JournalEntry] = field(default_factory=list)

    def context(self, step: Step) -> StepContext:
        answers = {line.step: line.detail for line in self.entries if line.kind is EntryKind.DONE}
        key = f"{self.id}/{step.name}"
        return StepContext(self.id, step.name, key, self.epoch, self.input, answers)


#: Retries of an undo. More than for an action: a failed undo needs manual repair.
UNDO_POLICY = RetryPolicy(attempts=8, base=0.1, longest=10.0, total=120.0)


#: Seconds from a coordinator's last renewal until another may take over. With a check every 2 s,
#: and a second or two for a thousand sagas, all sagas end within 10 s of a kill. The cost: a
#: coordinator that cannot reach Redis for that long, or gets no processor time, loses its sagas to
#: another one, which repeats the current step under its key. A running step writes to Redis every
#: third of it.
LEASE = 5.0

#: Sagas recovered concurrently: each holds a connection to Redis, and a client has 100.
CONCURRENT_RECOVERIES = 32


def _ignore_end(name: str, outcome: str) -> None:
    """Do nothing; the default of ``on_end``."""


class Coordinator:
    """Runs sagas and takes over those of coordinators that died.

    ``lease`` is in seconds: another coordinator may take over that long after the last renewal. It
    is renewed every third of that time while a step runs. ``on_end`` is called with the name and
    outcome of each saga that ended here; ``on_recovered`` is awaited with each recovered saga and
    its outcome.
    """

    def __init__(
        self,
        log_: SagaLog,
        sagas: Iterable[Saga],
        *,
        lease: float = LEASE,
        recovery: Recovery | None = None,
        undo_policy: RetryPolicy = UNDO_POLICY,
        on_end: Callable[[str, str], None] = _ignore_end,
        on_recovered: Callable[[SagaRecord, str], Awaitable[None]] | None = None,
    ) -> None:
        self._on_end = on_end
        self._on_recovered = on_recovered
        self._log = log_
        self._sagas = {saga.name: saga for saga in sagas}
        self._lease = lease
        self._recovery = recovery or Recovery("saga")
        self._undo_policy = undo_policy

    async def run(self, name: str, id_: str, input_: Any = None, *, by: str = "") -> dict[str, Any]:
        """Run a saga to its end and return the answers of its steps by name.

        ``id_`` identifies this run: a second call returns the answers of the first. ``by`` is the
        caller's name, for the log. Raises SagaUndoneError when a step failed and all steps were
        undone, SagaStuckError when an undo failed too, SagaFencedError when another coordinator
        runs the saga, and DependencyError when the log cannot be written: the saga is then
        recovered later.
        """
        definition = self._sagas.get(name)
        if definition is None:
            raise SagaUnknownError(f"no saga {name!r} is registered here")
        epoch = await self._log.begin(id_, name, input_, by, self._lease)
        if epoch is not None:
            run = _SagaRun(definition, id_, epoch, input_, [JournalEntry(EntryKind.BEGIN)])
            await self._run_to_end(run)
        else:
            record = await self._log.read(id_)
            if record is None or record.name != name:
                raise SagaUnknownError(f"{id_!r} is the id of another saga")
            run = _SagaRun(definition, id_, record.epoch, record.input, list(record.entries))
            if next_action([step.name for step in definition.steps], run.entries) is not None:
                raise SagaFencedError(f"the saga {id_!r} is running elsewhere")
        return self._answer(run)

    async def recover(self, *, most: int = 100) -> int:
        """Run up to ``most`` sagas with an expired lease to their ends; return how many ended.

        Sagas that end undone or stuck count too. Sagas without a definition in this process are
        left to other coordinators.
        """
        claimed = await self._log.claim(sorted(self._sagas), self._lease, most)
        slots = asyncio.Semaphore(CONCURRENT_RECOVERIES)

        async def take_over(id_: str, epoch: int) -> None:
            async with slots:
                await self._take_over(id_, epoch)

        results = await asyncio.gather(
            *(take_over(id_, epoch) for id_, epoch in claimed), return_exceptions=True
        )
        for (id_, _), result in zip(claimed, results, strict=True):
            if isinstance(result, BaseException) and not isinstance(result, EngineroomError):
                raise result
            if isinstance(result, EngineroomError):
                log.warning("saga not recovered", saga=id_, code=result.code, error=str(result))
        return sum(result is None for result in results)

    async def resume(self, id_: str) -> None:
        """Continue a stuck saga, after the cause was repaired."""
        epoch = await self._log.resume(id_, self._lease)
        if epoch is None:
            raise SagaUnknownError(f"there is no stuck saga {id_!r}")
        await self._take_over(id_, epoch)

    async def _take_over(self, id_: str, epoch: int) -> None:
        record = await self._log.read(id_)
        if record is None:
            return
        definition = self._sagas[record.name]
        run = _SagaRun(definition, id_, epoch, record.input, list(record.entries))
        names = [step.name for step in definition.steps]
        move = next_action(names, run.entries)
        if definition.back_after_crash and move is not None and move.act is ActionKind.DO:
            reached = [line.step for line in run.entries if line.kind is EntryKind.DOING]
            step = reached[-1] if reached else names[0]
            await self._write(run, JournalEntry(EntryKind.FAILED, step, "the coordinator died"))
        await self._run_to_end(run)
        if self._on_recovered is not None:
            await self._on_recovered(record, run.entries[-1].kind.value)

    async def _run_to_end(self, run: _SagaRun) -> None:
        """Run the saga from the last entry of its log to its end."""
        steps = run.definition.steps
        names = [step.name for step in steps]
        while (move := next_action(names, [*run.entries, *run.waiting])) is not None:
            if move.act is ActionKind.DO:
                await self._do(run, steps[move.step])
            elif move.act is ActionKind.UNDO:
                await self._undo(run, steps[move.step])
            elif move.end is not None:
                await self._write(run, JournalEntry(move.end))
                self._on_end(run.definition.name, move.end.value)

    async def _do(self, run: _SagaRun, step: Step) -> None:
        await self._write(run, JournalEntry(EntryKind.DOING, step.name))
        try:
            with tracing.span("saga step", saga=run.id, step=step.name):
                answer = _as_json(await self._call_with_lease(run, step, step.action, None))
        except SagaFencedError:
            raise
        except Exception as error:  # noqa: BLE001 - any error of an action starts the undo
            run.failure = _ours(error)
            await self._write(run, JournalEntry(EntryKind.FAILED, step.name, _summary(error)))
        else:
            # Written with the next entry: until then a crash repeats the step, which is allowed.
            run.waiting.append(JournalEntry(EntryKind.DONE, step.name, answer))

    async def _undo(self, run: _SagaRun, step: Step) -> None:
        await self._write(run, JournalEntry(EntryKind.UNDOING, step.name))
        try:
            with tracing.span("saga undo", saga=run.id, step=step.name):
                await self._call_with_lease(run, step, step.undo, self._undo_policy)
        except SagaFencedError:
            raise
        except Exception as error:
            log.exception("saga is stuck", saga=run.id, step=step.name)
            await self._write(run, JournalEntry(EntryKind.STUCK, step.name, _summary(error)))
        else:
            run.waiting.append(JournalEntry(EntryKind.UNDONE, step.name))

    async def _call_with_lease(
        self,
        run: _SagaRun,
        step: Step,
        function: Callable[[StepContext], Any],
        policy: RetryPolicy | None,
    ) -> Any:
        """Call a function with retries while renewing the lease; losing the lease ends the call."""

        async def attempt() -> Any:
            async with asyncio.timeout(step.limit):
                if inspect.iscoroutinefunction(function):
                    return await function(run.context(step))
                return await asyncio.to_thread(function, run.context(step))

        work = asyncio.ensure_future(self._recovery.call_async(attempt, policy=policy))
        renewal = asyncio.ensure_future(self._renew_lease(run))
        try:
            await asyncio.wait({work, renewal}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                renewal.result()
            return await work
        finally:
            for task in (work, renewal):
                task.cancel()
            await asyncio.gather(work, renewal, return_exceptions=True)

    async def _renew_lease(self, run: _SagaRun) -> None:
        """Renew the lease until cancelled; raise SagaFencedError when the lease is lost."""
        while True:
            await asyncio.sleep(self._lease / 3)
            try:
                held = await self._log.renew(run.id, run.epoch, self._lease)
            except EngineroomError:
                continue  # the next write decides
            if not held:
                raise SagaFencedError(f"the saga {run.id!r} was taken over")

    async def _write(self, run: _SagaRun, line: JournalEntry) -> None:
        entries = [*run.waiting, line]
        if not await self._log.append(run.id, run.epoch, entries, self._lease):
            raise SagaFencedError(f"the saga {run.id!r} was taken over")
        run.waiting = []
        run.entries += entries

    def _answer(self, run: _SagaRun) -> dict[str, Any]:
        end = run.entries[-1]
        if end.kind is EntryKind.COMMITTED:
            return {line.step: line.detail for line in run.entries if line.kind is EntryKind.DONE}
        failed = next((line for line in run.entries if line.kind is EntryKind.FAILED), end)
        if end.kind is EntryKind.STUCK:
            raise SagaStuckError(
                f"{end.step} could not be undone: {end.detail}", context={"saga": run.id}
            ) from run.failure
        raise SagaUndoneError(
            f"{failed.step} failed and all was undone: {failed.detail}",
            context={"saga": run.id, "step": failed.step},
        ) from run.failure


def _as_json(answer: Any) -> Any:
    """Return the answer as the log will return it; raise if the log cannot hold it."""
    try:
        text = json.dumps(answer, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PermanentError(f"the answer is no JSON: {error}; return plain values") from error
    if len(text) > MAX_BYTES:
        raise TooLargeError(f"the answer has {len(text)} bytes; keep it under {MAX_BYTES}")
    return json.loads(text)


def _ours(error: Exception) -> EngineroomError | None:
    return error if isinstance(error, EngineroomError) else None


def _summary(error: Exception) -> str:
    code = error.code if isinstance(error, EngineroomError) else type(error).__name__
    return f"{code}: {error}"[:300]
