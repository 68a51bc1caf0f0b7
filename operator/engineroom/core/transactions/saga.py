"""Sagas: steps across systems that share no transaction, finished or undone after a crash.

Before and after each step a line goes to a log (write-ahead). After a crash a coordinator takes
the saga over by its lease and goes on where the log ends. A step whose line "doing" is the last may
have been done or not: its action is called again with the same key, or its undo where the saga goes
back. So both must be idempotent by ``StepContext.key``, and an undo must also bear that nothing was
done and make an action that comes later under the same key do nothing.

Only one coordinator works on a saga: each take-over raises its epoch, and whoever writes under an
older one gets SagaFencedError. An action that was slow may still be under way then; where that can
do harm the target compares ``StepContext.epoch`` and refuses the lower one (M. Kleppmann, "How to
do distributed locking", 2016).

The idea: H. Garcia-Molina, K. Salem, "Sagas", SIGMOD 1987.
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
from engineroom.core.recovery import Policy, Recovery
from engineroom.core.transactions.errors import (
    SagaFencedError,
    SagaStuckError,
    SagaUndoneError,
    SagaUnknownError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from engineroom.core.transactions.sagalog import Record, SagaLog

log = get_logger(__name__)


#: Of a saga's input and of a step's answer, as JSON.
MAX_BYTES = 64 * 1024


class Kind(StrEnum):
    """What a line of the log says."""

    BEGIN = "begin"
    DOING = "doing"
    DONE = "done"
    FAILED = "failed"
    UNDOING = "undoing"
    UNDONE = "undone"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    STUCK = "stuck"
    RESUMED = "resumed"


#: After these nobody works on the saga.
ENDS = frozenset({Kind.COMMITTED, Kind.ROLLED_BACK, Kind.STUCK})


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a saga's log. ``at`` is Unix seconds, ``step`` a name or empty."""

    kind: Kind
    step: str = ""
    #: The answer of an action (JSON), or one line about a failure.
    detail: Any = None
    at: float = 0.0
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class StepContext:
    """What an action and its undo are given.

    ``key`` is the same whenever this step of this saga is tried, and for its undo; ``epoch`` only
    grows. ``answers`` holds what the steps before answered, by name.
    """

    saga: str
    step: str
    key: str
    epoch: int
    input: Any
    answers: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """``action`` and ``undo`` are plain or async and idempotent by ``StepContext.key``.

    What ``action`` returns must be JSON. ``limit`` is in seconds, for each attempt of either; plain
    functions run in a thread and cannot be interrupted.
    """

    name: str
    action: Callable[[StepContext], Any]
    undo: Callable[[StepContext], Any]
    limit: float = 30.0


@dataclass(frozen=True, slots=True)
class Saga:
    """A definition; ``back_after_crash`` undoes what a crash left instead of finishing it."""

    name: str
    steps: tuple[Step, ...]
    back_after_crash: bool = False

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        if not names or len(set(names)) != len(names):
            raise ValueError("a saga needs steps with different names")


class Act(StrEnum):
    """What is to be done next."""

    DO = "do"
    UNDO = "undo"
    END = "end"


@dataclass(frozen=True, slots=True)
class Move:
    """The next thing to do; ``step`` is an index, ``end`` the last line to write."""

    act: Act
    step: int = -1
    end: Kind | None = None


def next_move(names: Sequence[str], lines: Iterable[Line]) -> Move | None:
    """What comes next by the log; None when the saga has ended. Pure.

    Raises SagaUnknownError when the log speaks of a step that is not among ``names``.
    """
    index = {name: number for number, name in enumerate(names)}
    done, reached, back, undone, ended = -1, -1, False, len(names), False
    for line in lines:
        if line.step and line.step not in index:
            raise SagaUnknownError(f"the log has a step {line.step!r} that the saga does not have")
        number = index.get(line.step, -1)
        if line.kind is Kind.DOING:
            reached = max(reached, number)
        elif line.kind is Kind.DONE:
            done = max(done, number)
        elif line.kind in {Kind.FAILED, Kind.UNDOING}:
            back = True
        elif line.kind is Kind.UNDONE:
            back, undone = True, min(undone, number)
        ended = line.kind in ENDS
    if ended:
        return None
    if back:
        number = min(undone - 1, reached)
        return Move(Act.UNDO, number) if number >= 0 else Move(Act.END, end=Kind.ROLLED_BACK)
    if done + 1 < len(names):
        return Move(Act.DO, done + 1)
    return Move(Act.END, end=Kind.COMMITTED)


@dataclass(slots=True)
class _Course:
    """One saga while this coordinator works on it."""

    definition: Saga
    id: str
    epoch: int
    input: Any
    lines: list[Line]
    failure: EngineroomError | None = None
    waiting: list[Line] = field(default_factory=list)

    def context(self, step: Step) -> StepContext:
        answers = {line.step: line.detail for line in self.lines if line.kind is Kind.DONE}
        key = f"{self.id}/{step.name}"
        return StepContext(self.id, step.name, key, self.epoch, self.input, answers)


#: An undo is tried harder than an action: giving up leaves work for a person.
UNDO_POLICY = Policy(attempts=8, base=0.1, longest=10.0, total=120.0)


#: Seconds from a coordinator's last sign of life until another may take over. With a look every 2 s
#: and a second or two for a thousand sagas all are brought to their ends within 10 s of a kill. The
#: price: a coordinator that hears nothing from Redis for so long, or gets no processor, loses its
#: sagas to another one, which does the step at hand again under its key; and a running step is a
#: write to Redis every third of it.
LEASE = 5.0

#: Sagas recovered at once: each holds a connection to Redis, of which a client has 100.
SIDE_BY_SIDE = 32


def _unheard(name: str, outcome: str) -> None:
    """Nobody asked."""


class Coordinator:
    """Runs sagas and takes over those of coordinators that died.

    ``lease`` is in seconds: so long after the last sign of life another may take over. It is
    renewed every third of it while a step runs. ``on_end`` hears the name of each saga that came
    to its end here, and its outcome; ``on_recovered`` is awaited with each that was taken over, and
    its outcome.
    """

    def __init__(
        self,
        log_: SagaLog,
        sagas: Iterable[Saga],
        *,
        lease: float = LEASE,
        recovery: Recovery | None = None,
        undo_policy: Policy = UNDO_POLICY,
        on_end: Callable[[str, str], None] = _unheard,
        on_recovered: Callable[[Record, str], Awaitable[None]] | None = None,
    ) -> None:
        self._on_end = on_end
        self._on_recovered = on_recovered
        self._log = log_
        self._sagas = {saga.name: saga for saga in sagas}
        self._lease = lease
        self._recovery = recovery or Recovery("saga")
        self._undo_policy = undo_policy

    async def run(self, name: str, id_: str, input_: Any = None, *, by: str = "") -> dict[str, Any]:
        """Run a saga to its end; the answers of its steps by name.

        ``id_`` names this one run: running it again gives the answers of the first time. ``by`` is
        who asked, for the log. Raises SagaUndoneError when a step failed and all was undone,
        SagaStuckError when an undo failed too, SagaFencedError when another works on it, and
        DependencyError when the log cannot be written: then the saga is taken up later.
        """
        definition = self._sagas.get(name)
        if definition is None:
            raise SagaUnknownError(f"no saga {name!r} is registered here")
        epoch = await self._log.begin(id_, name, input_, by, self._lease)
        if epoch is not None:
            course = _Course(definition, id_, epoch, input_, [Line(Kind.BEGIN)])
            await self._go(course)
        else:
            known = await self._log.read(id_)
            if known is None or known.name != name:
                raise SagaUnknownError(f"{id_!r} is the id of another saga")
            course = _Course(definition, id_, known.epoch, known.input, list(known.lines))
            if next_move([step.name for step in definition.steps], course.lines) is not None:
                raise SagaFencedError(f"the saga {id_!r} is under way elsewhere")
        return self._answer(course)

    async def recover(self, *, most: int = 100) -> int:
        """Take over up to ``most`` sagas whose lease ran out and bring each to its end; how many.

        Those that end undone or stuck count too. Sagas of names not registered here are left to
        others.
        """
        claimed = await self._log.claim(sorted(self._sagas), self._lease, most)
        places = asyncio.Semaphore(SIDE_BY_SIDE)

        async def one(id_: str, epoch: int) -> None:
            async with places:
                await self._take_over(id_, epoch)

        results = await asyncio.gather(
            *(one(id_, epoch) for id_, epoch in claimed), return_exceptions=True
        )
        for (id_, _), result in zip(claimed, results, strict=True):
            if isinstance(result, BaseException) and not isinstance(result, EngineroomError):
                raise result
            if isinstance(result, EngineroomError):
                log.warning("saga not recovered", saga=id_, code=result.code, error=str(result))
        return sum(result is None for result in results)

    async def resume(self, id_: str) -> None:
        """Go on with a stuck saga after a person mended what stopped it."""
        epoch = await self._log.resume(id_, self._lease)
        if epoch is None:
            raise SagaUnknownError(f"there is no stuck saga {id_!r}")
        await self._take_over(id_, epoch)

    async def _take_over(self, id_: str, epoch: int) -> None:
        known = await self._log.read(id_)
        if known is None:
            return
        definition = self._sagas[known.name]
        course = _Course(definition, id_, epoch, known.input, list(known.lines))
        names = [step.name for step in definition.steps]
        move = next_move(names, course.lines)
        if definition.back_after_crash and move is not None and move.act is Act.DO:
            reached = [line.step for line in course.lines if line.kind is Kind.DOING]
            step = reached[-1] if reached else names[0]
            await self._write(course, Line(Kind.FAILED, step, "the coordinator died"))
        await self._go(course)
        if self._on_recovered is not None:
            await self._on_recovered(known, course.lines[-1].kind.value)

    async def _go(self, course: _Course) -> None:
        """From where the log is to the end."""
        steps = course.definition.steps
        names = [step.name for step in steps]
        while (move := next_move(names, [*course.lines, *course.waiting])) is not None:
            if move.act is Act.DO:
                await self._do(course, steps[move.step])
            elif move.act is Act.UNDO:
                await self._undo(course, steps[move.step])
            elif move.end is not None:
                await self._write(course, Line(move.end))
                self._on_end(course.definition.name, move.end.value)

    async def _do(self, course: _Course, step: Step) -> None:
        await self._write(course, Line(Kind.DOING, step.name))
        try:
            with tracing.span("saga step", saga=course.id, step=step.name):
                answer = _as_json(await self._held(course, step, step.action, None))
        except SagaFencedError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever an action raises is undone
            course.failure = _ours(error)
            await self._write(course, Line(Kind.FAILED, step.name, _told(error)))
        else:
            # Written with the next line: until then the step would be done again, which is allowed.
            course.waiting.append(Line(Kind.DONE, step.name, answer))

    async def _undo(self, course: _Course, step: Step) -> None:
        await self._write(course, Line(Kind.UNDOING, step.name))
        try:
            with tracing.span("saga undo", saga=course.id, step=step.name):
                await self._held(course, step, step.undo, self._undo_policy)
        except SagaFencedError:
            raise
        except Exception as error:
            log.exception("saga is stuck", saga=course.id, step=step.name)
            await self._write(course, Line(Kind.STUCK, step.name, _told(error)))
        else:
            course.waiting.append(Line(Kind.UNDONE, step.name))

    async def _held(
        self,
        course: _Course,
        step: Step,
        function: Callable[[StepContext], Any],
        policy: Policy | None,
    ) -> Any:
        """Call it with retries, keeping the lease; losing the lease ends the call."""

        async def attempt() -> Any:
            async with asyncio.timeout(step.limit):
                if inspect.iscoroutinefunction(function):
                    return await function(course.context(step))
                return await asyncio.to_thread(function, course.context(step))

        work = asyncio.ensure_future(self._recovery.call_async(attempt, policy=policy))
        keeper = asyncio.ensure_future(self._keep(course))
        try:
            await asyncio.wait({work, keeper}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                keeper.result()
            return await work
        finally:
            for task in (work, keeper):
                task.cancel()
            await asyncio.gather(work, keeper, return_exceptions=True)

    async def _keep(self, course: _Course) -> None:
        """Renew the lease until cancelled; raises SagaFencedError when another has it."""
        while True:
            await asyncio.sleep(self._lease / 3)
            try:
                held = await self._log.renew(course.id, course.epoch, self._lease)
            except EngineroomError:
                continue  # the next write will tell
            if not held:
                raise SagaFencedError(f"the saga {course.id!r} was taken over")

    async def _write(self, course: _Course, line: Line) -> None:
        lines = [*course.waiting, line]
        if not await self._log.append(course.id, course.epoch, lines, self._lease):
            raise SagaFencedError(f"the saga {course.id!r} was taken over")
        course.waiting = []
        course.lines += lines

    def _answer(self, course: _Course) -> dict[str, Any]:
        end = course.lines[-1]
        if end.kind is Kind.COMMITTED:
            return {line.step: line.detail for line in course.lines if line.kind is Kind.DONE}
        failed = next((line for line in course.lines if line.kind is Kind.FAILED), end)
        if end.kind is Kind.STUCK:
            raise SagaStuckError(
                f"{end.step} could not be undone: {end.detail}", context={"saga": course.id}
            ) from course.failure
        raise SagaUndoneError(
            f"{failed.step} failed and all was undone: {failed.detail}",
            context={"saga": course.id, "step": failed.step},
        ) from course.failure


def _as_json(answer: Any) -> Any:
    """The answer as the log will give it back; what the log cannot hold fails the step."""
    try:
        text = json.dumps(answer, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PermanentError(f"the answer is no JSON: {error}; return plain values") from error
    if len(text) > MAX_BYTES:
        raise TooLargeError(f"the answer has {len(text)} bytes; keep it under {MAX_BYTES}")
    return json.loads(text)


def _ours(error: Exception) -> EngineroomError | None:
    return error if isinstance(error, EngineroomError) else None


def _told(error: Exception) -> str:
    code = error.code if isinstance(error, EngineroomError) else type(error).__name__
    return f"{code}: {error}"[:300]
