"""``engineroom get``: show objects of any kind, as a table, JSON or YAML."""

from typing import Annotated

import typer

from engineroom.cli.app.context import CommandContext
from engineroom.cli.app.options import AllNamespaces, Selector
from engineroom.cli.commands.arguments import OutputOption, complete_objects
from engineroom.cli.commands.output import present
from engineroom.cli.connections.objects import list_objects, parse_target, read_object
from engineroom.cli.errors import UsageError
from engineroom.cli.views.output_formats import OutputFormat, listing


def get(
    context: CommandContext,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KIND] [NAME]...",
            help=(
                "A kind, such as `pools` or `policies`, and names of objects. Without names, lists "
                "all objects of the kind; without a kind, lists pools. KIND/NAME is also valid."
            ),
            autocompletion=complete_objects,
        ),
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
    selector: Selector = None,
    all_namespaces: AllNamespaces = False,
) -> None:
    """List pools with their state, size, load and age, or objects of another kind."""
    kind, wanted = parse_target(names or ())
    if wanted and (all_namespaces or selector):
        raise UsageError(
            "a name and --all-namespaces or --selector exclude each other",
            fix="name the object and its namespace with -n, or leave out the name",
        )
    cluster = context.cluster
    if wanted:
        documents = [read_object(cluster, kind, context.namespace, name) for name in wanted]
    else:
        documents = list_objects(cluster, kind, context.scope(all_namespaces), selector)
    where = "any namespace" if all_namespaces else f"namespace {context.namespace}"
    present(
        context,
        output,
        documents[0] if len(wanted) == 1 else listing(documents),
        [f"{kind.resource}/{document['metadata']['name']}" for document in documents],
        lambda: kind.table_view.load()(
            kind,
            documents,
            context.clock.now(),
            namespaces=all_namespaces,
            wide=output is OutputFormat.WIDE,
        ),
        none=f"no {kind.plural_noun} in {where}",
    )
