"""``engineroom transactions``: what `apply` did, and how each step went."""

from typing import TYPE_CHECKING, Annotated

import typer

from engineroom.cli.app.context import Session
from engineroom.cli.commands.arguments import OutputOption
from engineroom.cli.commands.output import present
from engineroom.cli.views.access import transaction_view, transactions_table
from engineroom.cli.views.output_formats import Output

if TYPE_CHECKING:
    from engineroom.cli.connections.model import Document


def list_transactions(
    session: Session,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1000, help="Most that are shown.")
    ] = 50,
    output: OutputOption = Output.TABLE,
) -> None:
    """List transactions, newest first.

    Through the API those of the namespace; by the kubeconfig those that were made on this machine,
    of which it keeps the log itself.
    """
    if session.remote:
        path = f"/namespaces/{session.namespace}/transactions"
        found: list[Document] = list(session.api.items(path, limit))
    else:
        from engineroom.cli.connections.local_apply import local_transactions

        found = local_transactions(session)[:limit]
    present(
        session, output, {"items": found}, [one["id"] for one in found],
        lambda: transactions_table(found, session.clock.now()),
        none=f"no transactions in namespace {session.namespace}",
    )  # fmt: skip


def show(
    session: Session,
    transaction: Annotated[str, typer.Argument(metavar="ID", help="Id of the transaction.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one transaction with all its steps."""
    if session.remote:
        found = session.api.get(f"/namespaces/{session.namespace}/transactions/{transaction}")
    else:
        from engineroom.cli.connections.local_apply import local_transaction

        found = local_transaction(session, transaction)
    present(
        session, output, found, [found["id"]],
        lambda: transaction_view(found, session.clock.now()),
    )  # fmt: skip
