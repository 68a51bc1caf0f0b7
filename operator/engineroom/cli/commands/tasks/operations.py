"""``engineroom operations``: bulk operations on jobs, which the API process runs."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from engineroom.cli.app.context import CommandContext
from engineroom.cli.commands.arguments import OutputOption
from engineroom.cli.commands.output import present
from engineroom.cli.views.access import operation_text, operations_table
from engineroom.cli.views.output_formats import OutputFormat

if TYPE_CHECKING:
    from engineroom.cli.connections.model import Document

Operation = Annotated[str, typer.Argument(metavar="ID", help="Id of the operation.")]


def list_operations(
    context: CommandContext,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1000, help="Maximum number of entries to show.")
    ] = 50,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List bulk changes of jobs, newest first."""
    operations = list(context.api.items(f"/namespaces/{context.namespace}/operations", limit))
    present(
        context, output, {"items": operations}, [entry["id"] for entry in operations],
        lambda: operations_table(operations, context.clock.now()),
        none=f"no operations in namespace {context.namespace}",
    )  # fmt: skip


def show(
    context: CommandContext,
    operation: Operation,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until it ends, and show its progress.")
    ] = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show the progress of a bulk change of jobs."""
    if wait:
        from engineroom.cli.commands.tasks.bulk import BulkOperations

        BulkOperations(context).watch(operation, output)
        return
    _print(context, context.api.get(_path(context, operation)), output)


def stop(
    context: CommandContext, operation: Operation, output: OutputOption = OutputFormat.TABLE
) -> None:
    """Stop a bulk change of jobs after its current step, without reverting it."""
    _print(context, context.api.request("DELETE", _path(context, operation)), output)


def _path(context: CommandContext, operation: str) -> str:
    from urllib.parse import quote

    return f"/namespaces/{context.namespace}/operations/{quote(operation, safe='')}"


def _print(context: CommandContext, operation: "Document", output: OutputFormat) -> None:
    present(context, output, operation, [operation["id"]], lambda: Text(operation_text(operation)))
