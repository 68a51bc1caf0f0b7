"""Arguments that several commands share, with their completion."""

from collections.abc import Callable
from typing import Annotated

import typer

from engineroom.api import kinds
from engineroom.api.kinds import Kind
from engineroom.cli.app.context import CommandContext
from engineroom.cli.connections.objects import list_objects, object_name
from engineroom.cli.errors import UsageError
from engineroom.cli.views.output_formats import OutputFormat


def object_names(ctx: typer.Context, kind: Kind) -> list[str]:
    """Return the names of the kind's objects; none if the cluster does not answer."""
    context = CommandContext.of_completion(ctx)
    try:
        objects = list_objects(context.cluster, kind, context.namespace)
    except Exception:  # noqa: BLE001 - completion must never print an error
        return []
    return [document["metadata"]["name"] for document in objects]


def name_completion(kind: Kind) -> Callable[[typer.Context, str], list[str]]:
    """Return a function that completes names of the kind's objects."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        return [name for name in object_names(ctx, kind) if name.startswith(incomplete)]

    return complete


complete_pools = name_completion(kinds.WORKER_POOL)
complete_policies = name_completion(kinds.RATE_LIMIT_POLICY)


def complete_objects(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete ``[KIND] [NAME]...``: kinds and pools first, then names of the kind."""
    registry = kinds.registry()
    words = ctx.params.get("names") or []
    prefix, slash, _ = incomplete.partition("/")
    if slash:
        kind = registry.by_word(prefix)
        names = [] if kind is None else [f"{prefix}/{name}" for name in object_names(ctx, kind)]
    elif words:
        names = object_names(ctx, registry.by_word(words[0]) or kinds.WORKER_POOL)
    else:
        names = [kind.plural_noun for kind in registry] + object_names(ctx, kinds.WORKER_POOL)
    return [name for name in names if name.startswith(incomplete)]


def complete_pods(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the names of a pool's pods."""
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
    OutputFormat, typer.Option("--output", "-o", help="Output format.", case_sensitive=False)
]
DryRun = Annotated[
    str,
    typer.Option(
        "--dry-run",
        metavar="none|server",
        help=(
            "With `server`, the API server checks the change and the difference is shown; nothing "
            "is written."
        ),
    ),
]


def pool_name(text: str) -> str:
    """Return the name of a pool, see ``object_name``. Raises UsageError."""
    return object_name(kinds.WORKER_POOL, text)


def is_dry_run(text: str) -> bool:
    """Return whether --dry-run is `server`. Raises UsageError for an unknown value."""
    if text not in ("none", "server"):
        raise UsageError(
            f"--dry-run={text} is unknown", fix="use --dry-run=server, or leave the option out"
        )
    return text == "server"
