"""Changes of a pool: one merge patch with only the requested fields, or its dry run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from engineroom.cli.connections.model import RESOURCE
from engineroom.cli.views.output_formats import OutputFormat, difference, dump

if TYPE_CHECKING:
    from engineroom.cli.app.context import CommandContext
    from engineroom.cli.connections.model import Document, Pool


def merge(pool: Pool, patch: Document) -> Document:
    """Return the pool's document with ``patch`` merged in by RFC 7386, for a comparison."""

    def merge_value(target: object, change: object) -> object:
        if not isinstance(change, dict):
            return change
        result = dict(target) if isinstance(target, dict) else {}
        for key, value in change.items():
            if value is None:
                result.pop(key, None)
            else:
                result[key] = merge_value(result.get(key), value)
        return result

    document = merge_value(pool.document, patch)
    assert isinstance(document, dict)  # noqa: S101 - for the type checker
    return document


def change_pool(
    context: CommandContext,
    pool: Pool,
    patch: Document,
    done: str,
    output: OutputFormat,
    *,
    dry_run: bool,
) -> Pool:
    """Patch a pool and print the result; with ``dry_run`` show the server's result unwritten."""
    after = context.cluster.patch_pool(pool, patch, dry_run=dry_run)
    report(context, pool, after.document, done, output, dry_run=dry_run)
    return after


def report(
    context: CommandContext,
    pool: Pool,
    after: Document,
    done: str,
    output: OutputFormat,
    *,
    dry_run: bool,
) -> None:
    """Print the change of a pool in the requested format."""
    if output in (OutputFormat.JSON, OutputFormat.YAML):
        context.show(dump(after, output))
    elif dry_run:
        context.show(difference(_spec(pool.document), _spec(after), f"workerpool {pool.id}"))
        context.note("rehearsed by the server; nothing was changed")
    elif output is OutputFormat.NAME:
        context.show(Text(f"{RESOURCE}/{pool.name}"))
    else:
        context.show(Text(f"workerpool {pool.id} {done}"))
    if not dry_run and pool.managed_by is not None:
        context.note(
            f"{pool.managed_by} manages this pool and may put its own value back: make the same "
            "change where it reads from"
        )


def _spec(document: Document) -> Document:
    return {"spec": document.get("spec") or {}}
