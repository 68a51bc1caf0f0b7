"""``engineroom version``: show the versions of this program, the operator and the API server."""

import platform
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engineroom import __version__
from engineroom.cli.app.context import CommandContext
from engineroom.cli.views.output_formats import ReportFormat, dump
from engineroom.cli.views.version import version_table

if TYPE_CHECKING:
    from engineroom.cli.connections.model import Installation


def version(
    context: CommandContext,
    client: Annotated[
        bool, typer.Option("--client", help="Only the version of this program, without a cluster.")
    ] = False,
    output: Annotated[
        ReportFormat,
        typer.Option("--output", "-o", help="Output format.", case_sensitive=False),
    ] = ReportFormat.TABLE,
) -> None:
    """Show the versions of this program, the operator and the API server."""
    document = version_document(None if client else context.cluster.installation())
    if output in (ReportFormat.JSON, ReportFormat.YAML):
        context.show(dump(document, output))
    else:
        context.show(version_table(document))


def version_document(installation: "Installation | None") -> dict[str, Any]:
    """Return the versions; unknown ones are null."""
    document: dict[str, Any] = {
        "client": {"version": __version__, "python": platform.python_version()}
    }
    if installation is None:
        return document
    definition = installation.definition
    return {
        **document,
        "systemNamespaces": list(installation.namespaces),
        "operator": [
            {"namespace": entry.namespace, "name": entry.name, "image": entry.image}
            for entry in installation.role("operator")
        ],
        "api": list(definition.served) if definition else [],
        "kubernetes": {"server": installation.server, "version": installation.server_version},
        "notAllowedToRead": list(installation.denied),
    }
