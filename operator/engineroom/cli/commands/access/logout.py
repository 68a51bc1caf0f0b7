"""``engineroom logout``: revoke a login at the server and delete it here."""

from typing import Annotated

import typer
from rich.text import Text

from engineroom.cli.app.context import CommandContext
from engineroom.cli.errors import CliError, ExitCode, ForbiddenError


def logout(
    context: CommandContext,
    everywhere: Annotated[bool, typer.Option("--all", help="Log out of all servers.")] = False,
) -> None:
    """Revoke the login at the server, and delete it locally.

    A token or an API key that was passed to `login` is only deleted locally, because it may be in
    use elsewhere; `keys revoke` revokes a key. If the server cannot be reached, the login is
    deleted locally and the exit status is 1: the refresh token stays valid until it expires.
    """
    from dataclasses import replace

    from engineroom.cli.connections.remote.api import Api
    from engineroom.cli.connections.remote.credentials import AccountStore, server_of

    store = AccountStore()
    # Under the lock: a program that is refreshing now would bring the login back.
    with store.locked():
        accounts = store.accounts()
        server = server_of(context.options, store)
        chosen = list(accounts) if everywhere else [server] if server in accounts else []
        if not chosen:
            context.note("there is no login")
            return
        left = False
        for name in chosen:
            account = accounts[name]
            if context.options.ca_file:
                account = replace(account, ca_file=context.options.ca_file)
            store.drop(name)
            if account.kind == "tokens":
                try:
                    Api(account, store).request(
                        "POST", "/tokens/revoke", body={"refresh": account.refresh},
                        credentials=False,
                    )  # fmt: skip
                except ForbiddenError:
                    pass  # it was over already
                except CliError as error:
                    context.note(f"not revoked at {name}: {error}")
                    left = True
            context.show(Text(f"logged out of {name}"))
    if left:
        raise typer.Exit(ExitCode.PROBLEM)
