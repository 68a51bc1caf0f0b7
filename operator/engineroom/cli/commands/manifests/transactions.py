"""``engineroom transactions``: list the transactions of `apply`, and show their steps."""

from typing import TYPE_CHECKING, Annotated

import typer

from engineroom.cli.app.context import CommandContext
from engineroom.cli.commands.arguments import OutputOption
from engineroom.cli.commands.output import present
from engineroom.cli.views.access import transaction_view, transactions_table
from engineroom.cli.views.output_formats import OutputFormat

if TYPE_CHECKING:
    from engineroom.cli.connections.model import Document


def list_transactions(
    context: CommandContext,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1000, help="Maximum number of entries to show.")
    ] = 50,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List transactions, newest first.

    Through the API it lists those of the namespace. By kubeconfig it lists those that ran on this
    machine, whose log is stored here.
    """
    if context.through_api:
        path = f"/namespaces/{context.namespace}/transactions"
        transactions: list[Document] = list(context.api.items(path, limit))
    else:
        from engineroom.cli.connections.local_apply import local_transactions

        transactions = local_transactions(context.cluster.server, context.namespace)[:limit]
    present(
        context, output, {"items": transactions}, [entry["id"] for entry in transactions],
        lambda: transactions_table(transactions, context.clock.now()),
        none=f"no transactions in namespace {context.namespace}",
    )  # fmt: skip


def show(
    context: CommandContext,
    transaction: Annotated[str, typer.Argument(metavar="ID", help="Id of the transaction.")],
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show one transaction with all its steps."""
    if context.through_api:
        document = context.api.get(f"/namespaces/{context.namespace}/transactions/{transaction}")
    else:
        from engineroom.cli.connections.local_apply import local_transaction

        document = local_transaction(context.cluster.server, transaction)
    present(
        context, output, document, [document["id"]],
        lambda: transaction_view(document, context.clock.now()),
    )  # fmt: skip
