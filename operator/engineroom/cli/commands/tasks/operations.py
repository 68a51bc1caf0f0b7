"""``engineroom operations``: changes of many jobs, which the API process carries out."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from engineroom.cli.app.context import Session
from engineroom.cli.commands.arguments import OutputOption
from engineroom.cli.commands.output import present
from engineroom.cli.views.access import operation_text, operations_table
from engineroom.cli.views.output_formats import Output

if TYPE_CHECKING:
    from engineroom.cli.connections.model import Document

Operation = Annotated[str, typer.Argument(metavar="ID", help="Id of the operation.")]


def list_operations(
    session: Session,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1000, help="Most that are shown.")
    ] = 50,
    output: OutputOption = Output.TABLE,
) -> None:
    """List changes of many jobs, newest first."""
    found = list(session.api.items(f"/namespaces/{session.namespace}/operations", limit))
    present(
        session, output, {"items": found}, [one["id"] for one in found],
        lambda: operations_table(found, session.clock.now()),
        none=f"no operations in namespace {session.namespace}",
    )  # fmt: skip


def show(
    session: Session,
    operation: Operation,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it until it ends.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show how far a change of many jobs is."""
    if wait:
        from engineroom.cli.connections.remote.bulk import Bulk

        Bulk(session).watch(operation, output)
        return
    _print(session, session.api.get(_path(session, operation)), output)


def stop(session: Session, operation: Operation, output: OutputOption = Output.TABLE) -> None:
    """End a change of many jobs after its step; what is done stays done."""
    _print(session, session.api.ask("DELETE", _path(session, operation)), output)


def _path(session: Session, operation: str) -> str:
    from urllib.parse import quote

    return f"/namespaces/{session.namespace}/operations/{quote(operation, safe='')}"


def _print(session: Session, found: "Document", output: Output) -> None:
    present(session, output, found, [found["id"]], lambda: Text(operation_text(found)))
