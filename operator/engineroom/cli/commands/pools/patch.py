"""Writing: one merge patch of exactly what was asked for, or its rehearsal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from engineroom.cli.connections.model import RESOURCE
from engineroom.cli.views.output_formats import Output, difference, dump

if TYPE_CHECKING:
    from engineroom.cli.app.context import CommandContext
    from engineroom.cli.connections.model import Document, Pool


def merge(pool: Pool, patch: Document) -> Document:
    """``pool.document`` with ``patch`` merged in as RFC 7386 has it, for comparing."""

    def merged(target: object, change: object) -> object:
        if not isinstance(change, dict):
            return change
        result = dict(target) if isinstance(target, dict) else {}
        for key, value in change.items():
            if value is None:
                result.pop(key, None)
            else:
                result[key] = merged(result.get(key), value)
        return result

    document = merged(pool.document, patch)
    assert isinstance(document, dict)  # noqa: S101 - for the type checker
    return document


def change_pool(
    context: CommandContext,
    pool: Pool,
    patch: Document,
    done: str,
    output: Output,
    *,
    dry_run: bool,
) -> Pool:
    """Patch a pool and say so; with ``dry_run`` show what the server would make of it."""
    after = context.cluster.patch_pool(pool, patch, dry_run=dry_run)
    report(context, pool, after.document, done, output, dry_run=dry_run)
    return after


def report(
    context: CommandContext,
    pool: Pool,
    after: Document,
    done: str,
    output: Output,
    *,
    dry_run: bool,
) -> None:
    """Say what was done to a pool, in the shape that was asked for."""
    if output in (Output.JSON, Output.YAML):
        context.show(dump(after, output))
    elif dry_run:
        context.show(difference(_spec(pool.document), _spec(after), f"workerpool {pool.id}"))
        context.note("rehearsed by the server; nothing was changed")
    elif output is Output.NAME:
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
