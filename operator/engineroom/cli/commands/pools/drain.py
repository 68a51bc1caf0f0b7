"""``engineroom drain``: let a pool, or one of its pods, finish its jobs and start no new ones."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.text import Text

from engineroom.api import ANNOTATION_DRAIN
from engineroom.cli.app.context import CommandContext
from engineroom.cli.app.options import Yes
from engineroom.cli.commands.arguments import (
    DryRun,
    PoolName,
    complete_pods,
    is_dry_run,
    pool_name,
)
from engineroom.cli.commands.pools.patch import change_pool
from engineroom.cli.connections.model import Pod, Pool
from engineroom.cli.errors import (
    NotFoundError,
    TimedOutError,
    UnreachableError,
    UsageError,
    program,
)
from engineroom.cli.views.output_formats import OutputFormat, difference
from engineroom.cli.views.text import count, seconds, span

_LOOK_EVERY = 1.0
#: Seconds for which a status must show no busy worker: a job taken in the moment before the
#: suspension reached the worker shows up in the operator's next reconcile.
_SETTLE = 2.0
#: Beyond the longest job: what the operator needs to see and to write.
_GRACE = 60.0


@dataclass(frozen=True, slots=True)
class DrainProgress:
    """The progress of a drain. ``held`` is None while the operator has not answered."""

    held: int | None
    of: int
    text: str

    @property
    def done(self) -> bool:
        """True if no worker holds a job."""
        return self.held == 0


def pool_progress(pool: Pool, pods: tuple[Pod, ...]) -> DrainProgress:
    """Return the progress of a suspended pool in finishing its jobs."""
    if not pool.answered or pool.status is None:
        return DrainProgress(None, 0, "waiting for the operator to see it")
    marked = sum(bool(pod.busy) for pod in pods)
    held = max(pool.status.busy_workers, pool.total("running") or 0, marked)
    workers = count(pool.workers or 0, "worker")
    return DrainProgress(held, pool.workers or 0, f"{held} of {workers} hold a job")


def pod_progress(before: Pod, pod: Pod | None) -> DrainProgress:
    """Return the progress of one pod: gone, drained, or still working."""
    if pod is None or pod.uid != before.uid:
        return DrainProgress(0, 1, "gone")
    if pod.drained:
        return DrainProgress(0, 1, "drained")
    if pod.deleting:
        return DrainProgress(0 if pod.busy is False else 1, 1, "leaving")
    return DrainProgress(1, 1, "finishing its job" if pod.busy else "waiting for the operator")


def drain(
    context: CommandContext,
    name: PoolName,
    pod: Annotated[
        str | None,
        typer.Argument(metavar="POD", help="Drain only this pod.", autocompletion=complete_pods),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until no worker holds a job.")
    ] = True,
    timeout: Annotated[
        str | None,
        typer.Option(
            "--timeout",
            metavar="DURATION",
            help=(
                "Longest time to wait: 90s or 2h. The default is the pool's "
                "drain.maxJobDuration plus a minute."
            ),
        ),
    ] = None,
    dry_run: DryRun = "none",
    yes: Yes = False,
) -> None:
    """Let a pool, or one of its pods, finish its jobs and start no new ones.

    A pool is suspended: its workers stay, new jobs wait, and `resume` reverts this. A pod is marked
    for the operator, which drains and deletes it, and replaces it if the load requires it.
    """
    rehearse = is_dry_run(dry_run)
    limit = None if timeout is None else _duration(timeout)
    pool = context.cluster.pool(context.namespace, pool_name(name))
    if limit is None:
        limit = seconds(pool.max_job_duration) + _GRACE
    if pod is None:
        _pool(context, pool, limit if wait else None, rehearse, yes)
    else:
        _pod(context, pool, pod, limit if wait else None, rehearse, yes)


def _duration(text: str) -> float:
    import re

    from engineroom.api.v1alpha1.types import DURATION_PATTERN

    if not re.match(DURATION_PATTERN, text):
        raise UsageError(f"--timeout {text} is no duration", fix="write it as in 90s, 15m or 2h30m")
    return seconds(text)


def _pool(
    context: CommandContext, pool: Pool, limit: float | None, dry_run: bool, yes: bool
) -> None:
    if not pool.suspend:
        if not dry_run:
            context.confirm(f"Stop {pool.id} from taking jobs until it is resumed?", yes=yes)
        done = "suspended: its workers take no more jobs"
        patch = {"spec": {"suspend": True}}
        pool = change_pool(context, pool, patch, done, OutputFormat.TABLE, dry_run=dry_run)
    elif limit is None or dry_run:
        context.show(Text(f"workerpool {pool.id} is already suspended"))
    if limit is None or dry_run:
        return
    undo = f"`{program()} resume {pool.name} -n {pool.namespace}` lets it work again"

    def read_progress() -> DrainProgress:
        now = context.cluster.pool(pool.namespace, pool.name)
        if not now.suspend:
            raise TimedOutError(
                f"{pool.id} was resumed while it drained",
                why="spec.suspend is false again" + (
                    f"; {now.managed_by} manages this pool" if now.managed_by else ""
                ),
                fix="find out who resumed it, then drain it again",
            )  # fmt: skip
        # The API knows no pods; its workers' jobs are in the pool's status.
        pods = () if context.through_api else context.cluster.pods(pool.namespace, pool.name)
        return pool_progress(now, pods)

    _wait(context, read_progress, limit, _SETTLE, f"Draining {pool.id}", undo)
    context.show(Text(f"workerpool {pool.id} is drained: no worker holds a job; {undo}"))


def _pod(
    context: CommandContext, pool: Pool, name: str, limit: float | None, dry_run: bool, yes: bool
) -> None:
    name = name.removeprefix("pod/")
    pod = context.cluster.pod(pool.namespace, name)
    if pod.pool != pool.name:
        raise UsageError(
            f"pod {name} is not of pool {pool.id}",
            why=f"it belongs to {pod.pool}" if pod.pool else "it belongs to no pool",
            fix=f"`{program()} top workers {pool.name} -n {pool.namespace}` lists the pool's pods",
        )
    if not pod.drain_requested:
        if not dry_run:
            context.confirm(f"Drain pod {name} and let it go?", yes=yes)
        after = context.cluster.annotate_pod(pod, {ANNOTATION_DRAIN: "true"}, dry_run=dry_run)
        if dry_run:
            context.show(difference(_annotations(pod), _annotations(after), f"pod {name}"))
            context.note("rehearsed by the server; nothing was changed")
            return
        context.show(Text(f"pod {pool.namespace}/{name} marked: it takes no more jobs"))
    if limit is None or dry_run:
        return
    undo = f"`{program()} resume {pool.name} {name} -n {pool.namespace}` calls it back"

    def read_progress() -> DrainProgress:
        try:
            return pod_progress(pod, context.cluster.pod(pool.namespace, name))
        except NotFoundError:
            return pod_progress(pod, None)

    end = _wait(context, read_progress, limit, 0.0, f"Draining pod {name}", undo)
    context.show(Text(f"pod {pool.namespace}/{name} is {end.text}: it holds no job"))


def _annotations(pod: Pod) -> dict[str, object]:
    return {"annotations": pod.document["metadata"].get("annotations") or {}}


def _wait(
    context: CommandContext,
    read_progress: Callable[[], DrainProgress],
    limit: float,
    settle: float,
    title: str,
    undo: str,
) -> DrainProgress:
    """Wait until the drain is complete for ``settle`` seconds; return the last progress.

    Raises TimedOutError after ``limit`` seconds.
    """
    clock = context.clock
    started = clock.monotonic()
    quiet_since: float | None = None
    progress = DrainProgress(None, 0, "looking")
    with _display(context, title) as show:
        while True:
            try:
                progress = read_progress()
            except UnreachableError as error:
                # The drain goes on without us; one answer that does not come ends no wait.
                progress = DrainProgress(None, 0, error.what)
            now = clock.monotonic()
            if not progress.done:
                quiet_since = None
            elif quiet_since is None:
                quiet_since = now
            if quiet_since is not None and now - quiet_since >= settle:
                return progress
            if now - started >= limit:
                raise TimedOutError(
                    f"{title.lower()} has not come to its end within {span(limit)}",
                    why=progress.text,
                    fix=f"it goes on: run the same command again to wait longer; {undo}",
                )
            show(progress)
            try:
                context.sleep(_LOOK_EVERY)
            except KeyboardInterrupt:
                context.note(f"no longer waiting; the drain goes on. {undo}")
                raise


@contextmanager
def _display(context: CommandContext, title: str) -> Iterator[Callable[[DrainProgress], None]]:
    """Show the progress on standard error: a bar on a terminal, a line per change elsewhere."""
    if not context.err.is_terminal:
        last = ""

        def line(progress: DrainProgress) -> None:
            nonlocal last
            if progress.text != last:
                last = progress.text
                context.note(f"{title}: {progress.text}")

        yield line
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TextColumn("{task.fields[text]}"),
        bars.TimeElapsedColumn(),
    )
    most = 0
    with bars.Progress(*columns, console=context.err, transient=True) as display:
        task = display.add_task(title, total=None, text="")

        def bar(progress: DrainProgress) -> None:
            nonlocal most
            held = progress.held
            if held is None:
                display.update(task, text=progress.text)
                return
            most = max(most, held, 1)
            display.update(task, total=most, completed=most - held, text=progress.text)

        yield bar
