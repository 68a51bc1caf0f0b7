"""``engineroom signing-keys``: the keys that sign the API's tokens."""

from engineroom.cli.app.context import CommandContext
from engineroom.cli.app.options import Yes
from engineroom.cli.commands.arguments import OutputOption
from engineroom.cli.commands.output import present
from engineroom.cli.connections.model import Document
from engineroom.cli.views.access import signing_keys_table
from engineroom.cli.views.output_formats import OutputFormat


def list_signing_keys(context: CommandContext, output: OutputOption = OutputFormat.TABLE) -> None:
    """List the keys that sign or still verify the API's tokens."""
    _print_keys(context, context.api.get("/signing-keys"), output)


def rotate(
    context: CommandContext, yes: Yes = False, output: OutputOption = OutputFormat.TABLE
) -> None:
    """Sign the API's tokens with a new key after one minute; old tokens stay valid.

    Keys are also rotated automatically when they are `api.signingKeyDays` old. If a key may have
    leaked, change the API's secret instead, because an old key still verifies tokens.
    """
    context.confirm("Sign tokens with a new key?", yes=yes)
    _print_keys(context, context.api.post("/signing-keys/rotate"), output)


def _print_keys(context: CommandContext, keys: Document, output: OutputFormat) -> None:
    items = keys["items"]
    present(
        context, output, keys, [item["kid"] for item in items],
        lambda: signing_keys_table(items, context.clock.now()), none="no signing keys",
    )  # fmt: skip
