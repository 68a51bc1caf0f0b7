"""``engineroom scale``: set the size of a pool, or the range of an autoscaled pool."""

from typing import Annotated

import typer

from engineroom.cli.app.context import CommandContext
from engineroom.cli.app.options import Yes
from engineroom.cli.commands.arguments import (
    DryRun,
    OutputOption,
    PoolName,
    is_dry_run,
    pool_name,
)
from engineroom.cli.commands.pools.patch import change_pool, merge, report
from engineroom.cli.connections.model import Document, Pool
from engineroom.cli.errors import UsageError, program
from engineroom.cli.views.output_formats import OutputFormat
from engineroom.cli.views.text import count

_MOST = 10_000


def scale(
    context: CommandContext,
    name: PoolName,
    replicas: Annotated[
        int | None,
        typer.Argument(
            metavar="N", min=0, max=_MOST, help="Number of pods, for a pool without autoscaling."
        ),
    ] = None,
    minimum: Annotated[
        int | None,
        typer.Option("--min", min=0, max=_MOST, help="Smallest size of an autoscaled pool."),
    ] = None,
    maximum: Annotated[
        int | None,
        typer.Option("--max", min=1, max=_MOST, help="Largest size of an autoscaled pool."),
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
    dry_run: DryRun = "none",
    yes: Yes = False,
) -> None:
    """Set the size of a pool, or the size range of an autoscaled one.

    Use N for a pool without autoscaling (it changes the scale subresource, like kubectl scale), and
    --min and --max for an autoscaled one. Shrinking never interrupts a job, because the operator
    drains workers first.
    """
    rehearse = is_dry_run(dry_run)
    if (replicas is None) == (minimum is None and maximum is None):
        raise UsageError(
            "say either a number of pods or --min and --max",
            fix=f"`{program()} scale {name} 3`, or `{program()} scale {name} --max 20`",
        )
    pool = context.cluster.pool(context.namespace, pool_name(name))
    if replicas is None:
        _range(context, pool, minimum, maximum, output, rehearse)
    else:
        _by_hand(context, pool, replicas, output, rehearse, yes)


def _by_hand(
    context: CommandContext,
    pool: Pool,
    replicas: int,
    output: OutputFormat,
    dry_run: bool,
    yes: bool,
) -> None:
    if pool.autoscaling is not None:
        auto = pool.autoscaling
        here = f"{pool.name} -n {pool.namespace}"
        number = max(replicas, 1)
        raise UsageError(
            f"{pool.id} is autoscaled between {auto.minimum} and {count(auto.maximum, 'pod')}",
            why="its size follows the load; the autoscaler would overwrite a number at once",
            fix=f"`{program()} scale {here} --min {number}` for at least {number} pods, "
            f"`--max {number}` for at most, both for exactly; or remove spec.autoscaling to set "
            "the size yourself",
        )
    if replicas == 0 and not dry_run:
        context.confirm(f"Leave {pool.id} without any worker? Its jobs will wait.", yes=yes)
    size = context.cluster.scale_pool(pool, replicas, dry_run=dry_run)
    before = 1 if pool.replicas is None else pool.replicas
    after = merge(pool, {"spec": {"replicas": size}})
    done = f"scaled to {count(size, 'pod')} (was {before})"
    report(context, pool, after, done, output, dry_run=dry_run)


def _range(
    context: CommandContext,
    pool: Pool,
    minimum: int | None,
    maximum: int | None,
    output: OutputFormat,
    dry_run: bool,
) -> None:
    auto = pool.autoscaling
    if auto is None:
        raise UsageError(
            f"{pool.id} is sized by hand",
            why="--min and --max are the range of an autoscaled pool, and it has no "
            "spec.autoscaling",
            fix=f"`{program()} scale {pool.name} -n {pool.namespace} N`, or add spec.autoscaling",
        )
    low = auto.minimum if minimum is None else minimum
    high = auto.maximum if maximum is None else maximum
    if low > high:
        raise UsageError(
            f"a smallest size of {low} is above the largest of {high}",
            fix=f"give both: `{program()} scale {pool.name} --min {low} --max {low}`",
        )
    patch: Document = {}
    if minimum is not None:
        patch["minReplicas"] = minimum
    if maximum is not None:
        patch["maxReplicas"] = maximum
    done = f"scales between {low} and {count(high, 'pod')} (was {auto.minimum} to {auto.maximum})"
    change_pool(context, pool, {"spec": {"autoscaling": patch}}, done, output, dry_run=dry_run)
