"""Arguments that several commands share, with their completion."""

from typing import Annotated

import typer

from engineroom.cli.app.context import CommandContext
from engineroom.cli.errors import UsageError
from engineroom.cli.views.output_formats import Output

#: Words that ``get`` and ``top`` take for "all pools".
POOLS = frozenset({"pools", "pool", "workerpools", "workerpool", "wp"})


def complete_pools(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of pools for the shell; nothing at all when the cluster does not answer."""
    context = CommandContext.of_completion(ctx)
    try:
        pools = context.cluster.pools(context.namespace)
    except Exception:  # noqa: BLE001 - a shell that completes must never see an error
        return []
    return [pool.name for pool in pools if pool.name.startswith(incomplete)]


def complete_pods(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the pool's pods for the shell."""
    context = CommandContext.of_completion(ctx)
    try:
        pods = context.cluster.pods(context.namespace, ctx.params.get("name"))
    except Exception:  # noqa: BLE001 - as above
        return []
    return [pod.name for pod in pods if pod.name.startswith(incomplete)]


PoolName = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Name of the pool.", autocompletion=complete_pools),
]
OutputOption = Annotated[
    Output, typer.Option("--output", "-o", help="Shape of the output.", case_sensitive=False)
]
DryRun = Annotated[
    str,
    typer.Option(
        "--dry-run",
        metavar="none|server",
        help="With `server` the API server checks the change and the difference is shown; nothing "
        "is written.",
    ),
]


def pool_name(text: str) -> str:
    """``mail`` from ``mail``, ``wp/mail`` or ``workerpool.engineroom.dev/mail``."""
    kind, slash, name = text.rpartition("/")
    if not slash:
        return text
    if kind.partition(".")[0] not in POOLS or not name:
        raise UsageError(
            f"{text} names no pool", why="what stands before the slash is another kind",
            fix="write the pool's name alone",
        )  # fmt: skip
    return name


def is_dry_run(text: str) -> bool:
    """Return whether --dry-run is `server`. Raises UsageError for an unknown value."""
    if text not in ("none", "server"):
        raise UsageError(
            f"--dry-run={text} is unknown", fix="use --dry-run=server, or leave the option out"
        )
    return text == "server"
