"""``engineroom pause``: hold the size, in one direction or both."""

from enum import StrEnum
from typing import Annotated

import typer
from rich.text import Text

from engineroom.cli.app.context import CommandContext
from engineroom.cli.commands.arguments import (
    DryRun,
    OutputOption,
    PoolName,
    is_dry_run,
    pool_name,
)
from engineroom.cli.commands.pools.patch import change_pool
from engineroom.cli.errors import UsageError, program
from engineroom.cli.views.output_formats import OutputFormat


class Direction(StrEnum):
    """The directions of scaling that are held."""

    ALL = "all"
    IN = "in"
    OUT = "out"


_PAUSES = {Direction.ALL: "All", Direction.IN: "ScaleIn", Direction.OUT: "ScaleOut"}
_DONE = {
    Direction.ALL: "paused: its size is held",
    Direction.IN: "paused: it grows but does not shrink",
    Direction.OUT: "paused: it shrinks but does not grow",
}


def pause(
    context: CommandContext,
    name: PoolName,
    direction: Annotated[
        Direction,
        typer.Option("--direction", "-d", help="Stop shrinking (in), growing (out) or both (all)."),
    ] = Direction.ALL,
    output: OutputOption = OutputFormat.TABLE,
    dry_run: DryRun = "none",
) -> None:
    """Stop an autoscaled pool from changing its size.

    Its workers continue. To stop them from taking jobs, use `drain`.
    """
    rehearse = is_dry_run(dry_run)
    pool = context.cluster.pool(context.namespace, pool_name(name))
    here = f"{pool.name} -n {pool.namespace}"
    if pool.autoscaling is None:
        raise UsageError(
            f"{pool.id} has no scaling to pause",
            why="it has no spec.autoscaling; its size is set by hand",
            fix=f"`{program()} drain {here}` stops its workers from taking jobs, "
            f"`{program()} scale {here} N` sets its size",
        )
    if pool.autoscaling.pause == _PAUSES[direction] and output is OutputFormat.TABLE:
        context.show(Text(f"workerpool {pool.id} is already {_DONE[direction]}"))
        return
    patch = {"spec": {"autoscaling": {"pause": _PAUSES[direction]}}}
    change_pool(context, pool, patch, _DONE[direction], output, dry_run=rehearse)
