"""``engineroom top``: what the pools do now, once or live."""

from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from engineroom.cli.app.context import CommandContext
from engineroom.cli.app.options import AllNamespaces, Selector
from engineroom.cli.connections.model import Pool  # noqa: TC001
from engineroom.cli.errors import CliError, UnreachableError, UsageError
from engineroom.cli.views.output_formats import ReportFormat, dump
from engineroom.cli.views.top import (
    top_pools,
    top_pools_document,
    top_workers,
    top_workers_document,
)


class TopRows(StrEnum):
    """Kinds of lines that ``top`` shows."""

    POOLS = "pools"
    WORKERS = "workers"


def top(
    context: CommandContext,
    rows: Annotated[
        TopRows,
        typer.Argument(
            metavar="pools|workers", help="Show one line per pool, or one line per worker pod."
        ),
    ] = TopRows.POOLS,
    pool: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only the workers of this pool.")
    ] = None,
    output: Annotated[
        ReportFormat,
        typer.Option("--output", "-o", help="Output format.", case_sensitive=False),
    ] = ReportFormat.TABLE,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Refresh the output until Ctrl-C.")
    ] = False,
    interval: Annotated[
        float,
        typer.Option("--interval", min=0.5, max=3600.0, help="Seconds between two refreshes."),
    ] = 2.0,
    selector: Selector = None,
    all_namespaces: AllNamespaces = False,
) -> None:
    """Show the current activity of pools or workers, once or continuously.

    It shows jobs per minute, queue lengths, busy workers and memory. Memory and CPU need a metrics
    server in the cluster; without one they are shown as a dash.
    """
    if pool is not None and rows is TopRows.POOLS:
        raise UsageError("a name goes with `top workers`", fix=f"top workers {pool}")
    scope = context.scope(all_namespaces)
    if not watch:
        context.show(_read(context, rows, scope, pool, selector, output))
        return
    try:
        _live(context, rows, scope, pool, selector, output, interval)
    except KeyboardInterrupt:
        # Ctrl-C is the normal end of a live view.
        return


def _read(
    context: CommandContext,
    rows: TopRows,
    scope: str | None,
    pool: str | None,
    selector: str | None,
    output: ReportFormat,
) -> RenderableType:
    cluster = context.cluster
    pools: tuple[Pool, ...]
    if pool is not None:
        pools = (cluster.pool(scope or context.namespace, pool),)
    else:
        pools = cluster.pools(scope, selector)
    workers_per_pod = {(pool.namespace, pool.name): pool.workers_per_pod for pool in pools}
    pods = tuple(
        pod for pod in cluster.pods(scope, pool) if (pod.namespace, pod.pool) in workers_per_pod
    )
    if output in (ReportFormat.JSON, ReportFormat.YAML):
        document = top_pools_document(pools, pods) if rows is TopRows.POOLS else (
            top_workers_document(pods)
        )  # fmt: skip
        return dump(document, output)
    namespaces = scope is None
    if rows is TopRows.POOLS:
        return top_pools(pools, pods, namespaces=namespaces)
    return top_workers(pods, workers_per_pod, context.clock.now(), namespaces=namespaces)


def _live(
    context: CommandContext,
    rows: TopRows,
    scope: str | None,
    pool: str | None,
    selector: str | None,
    output: ReportFormat,
    interval: float,
) -> None:
    """Refresh the table until interrupted; an unreachable cluster is shown and tried again."""
    screen: RenderableType = _read(context, rows, scope, pool, selector, output)
    if not context.out.is_terminal or output in (ReportFormat.JSON, ReportFormat.YAML):
        while True:
            context.show(screen)
            context.sleep(interval)
            screen = _read(context, rows, scope, pool, selector, output)
    from rich.live import Live

    with Live(console=context.out, screen=True, auto_refresh=False) as live:
        refreshed_at = context.clock.now()
        stale: CliError | None = None
        while True:
            at = refreshed_at.strftime("%H:%M:%S UTC")
            line = Text(f"every {interval:g} s, last refresh {at}; Ctrl-C ends", style="dim")
            if stale is not None:
                line = Text(f"stale since {at}: {stale.what}", style="bold red")
            live.update(Group(line, Text(), screen), refresh=True)
            context.sleep(interval)
            try:
                screen = _read(context, rows, scope, pool, selector, output)
            except UnreachableError as error:
                stale = error
            else:
                stale, refreshed_at = None, context.clock.now()
