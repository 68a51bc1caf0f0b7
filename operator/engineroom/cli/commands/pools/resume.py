"""``engineroom resume``: undo ``pause`` and ``drain``."""

from typing import Annotated

import typer
from rich.text import Text

from engineroom.api import ANNOTATION_DRAIN, ANNOTATION_DRAIN_PODS
from engineroom.cli.app.context import CommandContext
from engineroom.cli.commands.arguments import (
    DryRun,
    OutputOption,
    PoolName,
    complete_pods,
    is_dry_run,
    pool_name,
)
from engineroom.cli.commands.pools.patch import change_pool
from engineroom.cli.connections.model import Document, Pool
from engineroom.cli.errors import UsageError
from engineroom.cli.views.output_formats import OutputFormat


def resume(
    context: CommandContext,
    name: PoolName,
    pod: Annotated[
        str | None,
        typer.Argument(
            metavar="POD", help="Cancel only the drain of this pod.", autocompletion=complete_pods
        ),
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
    dry_run: DryRun = "none",
) -> None:
    """Let a paused or drained pool scale and take jobs again.

    With POD it cancels the drain of that pod, if the pod has not begun to terminate.
    """
    rehearse = is_dry_run(dry_run)
    pool = context.cluster.pool(context.namespace, pool_name(name))
    if pod is not None:
        _call_back(context, pool, pod.removeprefix("pod/"), rehearse)
        return
    spec: Document = {}
    undone = []
    if pool.suspend:
        spec["suspend"] = False
        undone.append("takes jobs")
    if pool.autoscaling is not None and pool.autoscaling.pause != "None":
        spec["autoscaling"] = {"pause": "None"}
        undone.append("scales")
    if not spec and output is OutputFormat.TABLE:
        context.show(Text(f"workerpool {pool.id} is neither paused nor suspended"))
        return
    done = f"resumed: it {' and '.join(undone)} again"
    change_pool(context, pool, {"spec": spec}, done, output, dry_run=rehearse)


def _call_back(context: CommandContext, pool: Pool, name: str, dry_run: bool) -> None:
    pod = context.cluster.pod(pool.namespace, name)
    if pod.pool != pool.name:
        raise UsageError(f"pod {name} is not of pool {pool.id}", fix="name its own pool")
    if pod.drained or pod.deleting:
        raise UsageError(
            f"pod {name} is on its way out already",
            fix="where the work needs it, a new one comes by itself",
        )
    named = _resource_name(pool)
    if not context.through_api and name in named:
        # Asked through the API, which notes it at the pool.
        rest = ",".join(entry for entry in named if entry != name) or None
        patch = {"metadata": {"annotations": {ANNOTATION_DRAIN_PODS: rest}}}
        context.cluster.patch_pool(pool, patch, dry_run=dry_run)
    elif not pod.drain_requested:
        context.show(Text(f"pod {pool.namespace}/{name} was not asked to leave"))
        return
    if pod.drain_requested:
        context.cluster.annotate_pod(pod, {ANNOTATION_DRAIN: None}, dry_run=dry_run)
    if dry_run:
        context.note("rehearsed by the server; nothing was changed")
        return
    context.show(Text(f"pod {pool.namespace}/{name} is called back: it takes jobs again"))


def _resource_name(pool: Pool) -> list[str]:
    names = (pool.document["metadata"].get("annotations") or {}).get(ANNOTATION_DRAIN_PODS) or ""
    return [entry.strip() for entry in names.split(",") if entry.strip()]
