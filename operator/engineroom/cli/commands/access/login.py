"""``engineroom login``: log in to the API process and store the login for later commands."""

import sys
from dataclasses import replace
from typing import Annotated

import typer
from rich.text import Text

from engineroom.cli.app.context import CommandContext
from engineroom.cli.errors import UsageError, program

#: Characters that are read from standard input: tokens have some thousand at most.
_MOST = 16_384


def login(
    context: CommandContext,
    token_stdin: Annotated[
        bool,
        typer.Option("--token-stdin", help="Read a token or an API key from standard input."),
    ] = False,
    user: Annotated[
        str | None,
        typer.Option("--user", metavar="NAME", help="Log in with name and password."),
    ] = None,
    password_stdin: Annotated[
        bool,
        typer.Option(
            "--password-stdin", help="Read the password from standard input instead of a prompt."
        ),
    ] = False,
    kube: Annotated[
        bool,
        typer.Option(
            "--kube",
            help="Use the token of the kubeconfig; this is the default.",
        ),
    ] = False,
) -> None:
    """Log in to the API process.

    All later commands use the API process until `logout`, except with --context or --kubeconfig.
    With the token of the kubeconfig, no secret is stored: the token is read again for each request.
    A token or API key is read from standard input, never from the command line. Credentials are
    stored in a file that only its owner may read. The --namespace is stored as the default for
    later commands.
    """
    from engineroom.cli.connections.remote.api import Api
    from engineroom.cli.connections.remote.credentials import (
        AccountStore,
        ServerAccount,
        checked_url,
        server_of,
    )

    store = AccountStore()
    server = server_of(context.options, store)
    if server is None:
        raise UsageError(
            "which API process?",
            fix=f"name it: `{program()} login --server https://HOST`; for one that only the "
            f"cluster reaches there is `{program()} ui`",
        )
    server = checked_url(server)
    if sum((token_stdin, user is not None or password_stdin, kube)) > 1:
        raise UsageError(
            "--token-stdin, --user and --kube exclude each other", fix="choose one of them"
        )
    plain = ServerAccount(
        server,
        "token",
        ca_file=_absolute(context.options.ca_file),
        namespace=context.options.namespace,
    )
    if token_stdin:
        account = replace(plain, access=_line("token"))
    elif user is not None or password_stdin:
        if user is None:
            raise UsageError("whose password is it?", fix="give --user NAME")
        password = _line("password") if password_stdin else _prompt_password(context, user)
        pair = Api(plain, store).request(
            "POST", "/tokens", body={"name": user, "password": password}, credentials=False
        )
        account = replace(
            plain, kind="tokens", access=pair["access"], refresh=pair["refresh"],
            expires=pair["expires"],
        )  # fmt: skip
    else:
        account = replace(
            plain, kind="kube", context=context.options.kube_context,
            kubeconfig=_absolute(context.options.kubeconfig),
        )  # fmt: skip
        if account.namespace is None:
            from engineroom.cli.connections.kubernetes_cluster import KubernetesCluster

            cluster = KubernetesCluster(account.kubeconfig, account.context)
            account = replace(account, namespace=cluster.namespace)
    # Tried before it is kept: a login that does not work replaces none that does.
    who = Api(account, store).get("/whoami")
    with store.locked():
        store.put(replace(account, subject=who["subject"]), choose=True)
    context.show(Text(f"logged in at {server} as {who['subject']}"))


def _absolute(path: str | None) -> str | None:
    from pathlib import Path

    return None if path is None else str(Path(path).expanduser().absolute())


def _line(what: str) -> str:
    text = sys.stdin.read(_MOST + 1)
    secret = text.strip() if what == "token" else text.rstrip("\r\n")
    if not secret or len(text) > _MOST or "\n" in secret:
        raise UsageError(
            f"standard input holds no {what}", fix=f"give the {what} alone, on one line"
        )
    return secret


def _prompt_password(context: CommandContext, user: str) -> str:
    if not context.interactive:
        raise UsageError(
            f"the password of {user} is not known", fix="give it with --password-stdin"
        )
    return str(typer.prompt(f"Password of {user}", hide_input=True, err=True))
