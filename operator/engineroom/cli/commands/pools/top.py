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
from engineroom.cli.views.output_formats import Report, dump
from engineroom.cli.views.top import (
    top_pools,
    top_pools_document,
    top_workers,
    top_workers_document,
)


class What(StrEnum):
    """Kinds of lines that ``top`` shows."""

    POOLS = "pools"
    WORKERS = "workers"


def top(
    context: CommandContext,
    what: Annotated[
        What,
        typer.Argument(
            metavar="pools|workers", help="Show one line per pool, or one line per worker pod."
        ),
    ] = What.POOLS,
    pool: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only this pool's workers.")
    ] = None,
    output: Annotated[
        Report, typer.Option("--output", "-o", help="Output format.", case_sensitive=False)
    ] = Report.TABLE,
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
    if pool is not None and what is What.POOLS:
        raise UsageError("a name goes with `top workers`", fix=f"top workers {pool}")
    scope = context.scope(all_namespaces)
    if not watch:
        context.show(_look(context, what, scope, pool, selector, output))
        return
    try:
        _live(context, what, scope, pool, selector, output, interval)
    except KeyboardInterrupt:
        # The way out of a live view, not a failure.
        return


def _look(
    context: CommandContext,
    what: What,
    scope: str | None,
    pool: str | None,
    selector: str | None,
    output: Report,
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
    if output in (Report.JSON, Report.YAML):
        document = top_pools_document(pools, pods) if what is What.POOLS else (
            top_workers_document(pods)
        )  # fmt: skip
        return dump(document, output)
    namespaces = scope is None
    if what is What.POOLS:
        return top_pools(pools, pods, namespaces=namespaces)
    return top_workers(pods, workers_per_pod, context.clock.now(), namespaces=namespaces)


def _live(
    context: CommandContext,
    what: What,
    scope: str | None,
    pool: str | None,
    selector: str | None,
    output: Report,
    interval: float,
) -> None:
    """Show it anew until interrupted; a cluster that does not answer is said, and asked again."""
    screen: RenderableType = _look(context, what, scope, pool, selector, output)
    if not context.out.is_terminal or output in (Report.JSON, Report.YAML):
        while True:
            context.show(screen)
            context.sleep(interval)
            screen = _look(context, what, scope, pool, selector, output)
    from rich.live import Live

    with Live(console=context.out, screen=True, auto_refresh=False) as live:
        looked = context.clock.now()
        stale: CliError | None = None
        while True:
            at = looked.strftime("%H:%M:%S UTC")
            line = Text(f"every {interval:g} s, last look {at}; Ctrl-C ends", style="dim")
            if stale is not None:
                line = Text(f"stale since {at}: {stale.what}", style="bold red")
            live.update(Group(line, Text(), screen), refresh=True)
            context.sleep(interval)
            try:
                screen = _look(context, what, scope, pool, selector, output)
            except UnreachableError as error:
                stale = error
            else:
                stale, looked = None, context.clock.now()
