"""``engineroom keys``: API keys, for programs."""

from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.text import Text

from engineroom.cli.app.context import CommandContext
from engineroom.cli.app.options import Yes
from engineroom.cli.commands.arguments import OutputOption
from engineroom.cli.commands.output import present, print_result
from engineroom.cli.commands.times import parse_length
from engineroom.cli.errors import UsageError
from engineroom.cli.views.access import keys_table
from engineroom.cli.views.output_formats import OutputFormat, dump

KeyId = Annotated[str, typer.Argument(metavar="ID", help="Id of the key, not the key itself.")]
Of = Annotated[
    str | None,
    typer.Option(
        "--of", metavar="SUBJECT", help="Subject to act on instead of yourself: user:admin."
    ),
]


def list_keys(
    context: CommandContext, of: Of = None, output: OutputOption = OutputFormat.TABLE
) -> None:
    """List API keys: your own, or those of --of."""
    keys = context.api.get(f"{_base(of)}/keys")["items"]
    present(
        context, output, {"items": keys}, [entry["id"] for entry in keys],
        lambda: keys_table(keys, context.clock.now(), wide=output is OutputFormat.WIDE),
        none="no API keys",
    )  # fmt: skip


def create(
    context: CommandContext,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the key, for example its purpose.")
    ],
    role: Annotated[
        str | None,
        typer.Option(
            "--role", metavar="ROLE", help="Grant only this role, which must be one of yours."
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--in",
            metavar="NAMESPACE",
            help="With --role: only in this namespace; may be given several times.",
        ),
    ] = None,
    scopes: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            metavar="PERMISSION",
            help="Restrict to this permission: namespace:jobs:read; may be given several times.",
        ),
    ] = None,
    days: Annotated[
        int, typer.Option("--days", min=1, max=366, help="Days until it expires.")
    ] = 90,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Create an API key; it is shown only once.

    It has all your permissions, unless --role, --in and --scope reduce them. Only the key is
    written to standard output, so you can pipe it to a secret store.
    """
    if where and role is None:
        raise UsageError("--in says where a role holds", fix="give --role as well")
    body: dict[str, Any] = {"name": name, "days": days}
    if role is not None:
        body["grants"] = [{"role": role, "namespaces": where or ["*"]}]
    if scopes:
        body["scopes"] = scopes
    _print_created(context, context.api.post("/keys", body), output)


def rotate(
    context: CommandContext,
    key: KeyId,
    overlap: Annotated[
        str,
        typer.Option("--overlap", metavar="LENGTH", help="Time for which the old key stays valid."),
    ] = "1d",
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Replace an API key; the old one stays valid for a while."""
    body = {"overlap": int(parse_length("--overlap", overlap))}
    _print_created(context, context.api.post(f"/keys/{quote(key, safe='')}/rotate", body), output)


def revoke(
    context: CommandContext,
    key: KeyId,
    of: Of = None,
    yes: Yes = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Revoke an API key at once."""
    context.confirm(f"Revoke key {key}?", yes=yes)
    context.api.delete(f"{_base(of)}/keys/{quote(key, safe='')}")
    print_result(context, {"id": key, "revoked": True}, f"key {key} revoked", output, name=key)


def _print_created(context: CommandContext, created: dict[str, Any], output: OutputFormat) -> None:
    if output in (OutputFormat.JSON, OutputFormat.YAML):
        context.show(dump(created, output))
    elif output is OutputFormat.NAME:
        context.show(Text(created["key"]["id"]))
        context.note("the key itself was not shown, and will not be: revoke it and make another")
    else:
        context.note(
            f"key {created['key']['id']}, {created['key']['name']}; it is shown this once:"
        )
        context.show(Text(created["secret"]))


def _base(of: str | None) -> str:
    return "" if of is None else f"/users/{quote(of, safe=':@+')}"
