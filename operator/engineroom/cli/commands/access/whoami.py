"""``engineroom whoami``: show your identity and permissions at the API."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.text import Text

from engineroom.cli.app.context import CommandContext
from engineroom.cli.views.output_formats import ReportFormat, dump, table

if TYPE_CHECKING:
    from rich.console import RenderableType


def whoami(
    context: CommandContext,
    namespaces: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAMESPACE", help="Namespaces; the default is the one of -n or of the login."
        ),
    ] = None,
    output: Annotated[
        ReportFormat,
        typer.Option("--output", "-o", help="Output format.", case_sensitive=False),
    ] = ReportFormat.TABLE,
) -> None:
    """Show your identity and your permissions.

    An identity of the cluster has the rights of the cluster's RBAC, all others those of the roles
    of the account. Permissions are scope:resource:action.
    """
    api = context.api
    who = api.get("/whoami")
    chosen = list(dict.fromkeys(namespaces or [context.namespace]))
    may = {name: api.get("/access", namespace=name)["permissions"] for name in chosen}
    if output in (ReportFormat.JSON, ReportFormat.YAML):
        context.show(dump({"server": api.server, **who, "access": may}, output))
        return
    rows = [("server", api.server), ("who", who["subject"]), ("known by", who["how"])]
    rows += [("role", f"{g['role']} in {', '.join(g['namespaces'])}") for g in who["grants"]]
    if who["groups"]:
        rows.append(("groups", ", ".join(who["groups"])))
    if who["scopes"] is not None:
        rows.append(("scopes", ", ".join(who["scopes"]) or "none"))
    parts: list[RenderableType] = [table(["", ""], rows, header=False)]
    for name, permissions in may.items():
        parts.append(Text(f"\nIn {name}", style="bold"))
        parts.append(
            Text("\n".join(f"  {permission}" for permission in permissions) or "  nothing")
        )
    context.show(Group(*parts))
