"""``engineroom ui``: sign in to the API in a browser without a password."""

import contextlib
import os
import tempfile
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from engineroom.cli.app.context import CommandContext
from engineroom.cli.errors import ForbiddenError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engineroom.cli.connections.model import Document
    from engineroom.cli.connections.remote.api import Api

#: So long (seconds) the code of a link lives; the file that leads to it goes then.
_LIFE = 60.0


def ui(
    context: CommandContext,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the link and do not open a browser.")
    ] = False,
) -> None:
    """Sign in to the API in a browser, by a one-time link.

    The first browser that opens the link within a minute is signed in as you. The secret follows #
    in the URL, which browsers do not send. With a login or --server, the link leads to that server,
    and the command ends. With only a kubeconfig, the command forwards a local port to the API
    process in the cluster until Ctrl-C. Without --namespace it searches all namespaces for the
    process.

    You are signed in as the user of the kubeconfig's token, for an hour at most and not longer than
    the token is valid. If the kubeconfig has no token (a client certificate) and you may read the
    Secret of the first administrator, you are signed in as `admin`.
    """
    if context.through_api:
        link = context.api.post("/sign-in-links")
        _open(context, context.api.server + link["path"], no_browser)
        return
    from engineroom.cli.connections.port_forward import find, forward

    service = find(context.cluster, context.options.namespace)
    with forward(context.cluster, service) as way:
        api = _api(context, way.url, service)
        try:
            link = api.post("/sign-in-links")
        except Exception:
            if way.failure is not None:
                raise way.failure from None
            raise
        with _opened_link(context, way.url + link["path"], no_browser):
            context.note("forwarding to the API process; Ctrl-C ends it")
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    context.sleep(3600.0)


def _api(context: CommandContext, url: str, service: "Document") -> "Api":
    """Return the API at the forwarded port, with the identity of the kubeconfig."""
    from dataclasses import replace

    from engineroom.cli.connections.port_forward import admin_password
    from engineroom.cli.connections.remote.api import Api, bearer
    from engineroom.cli.connections.remote.credentials import ServerAccount

    plain = ServerAccount(url, "token")
    try:
        return Api(replace(plain, access=bearer(context.cluster)))
    except ForbiddenError:
        password = admin_password(context.cluster, service)
        if password is None:
            raise
    pair = Api(plain).request(
        "POST", "/tokens", body={"name": "admin", "password": password}, credentials=False
    )
    context.note("your kubeconfig has no token, but may read the administrator's: you are admin")
    return Api(replace(plain, access=pair["access"]))


def _open(context: CommandContext, url: str, no_browser: bool) -> None:
    with _opened_link(context, url, no_browser) as opened:
        if opened:
            context.sleep(min(_LIFE, 5.0))  # until the browser has read the file


@contextlib.contextmanager
def _opened_link(context: CommandContext, url: str, no_browser: bool) -> "Iterator[bool]":
    """Open the link in a browser, or print it if there is no browser."""
    if no_browser or not context.interactive or not _has_browser():
        context.show(Text(url))
        yield False
        return
    # Arguments of programs can be seen by everybody on the machine: a browser is given the name of
    # a file that its owner alone may read, and finds the link in there.
    descriptor, name = tempfile.mkstemp(prefix="engineroom-", suffix=".html")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(
                '<!doctype html><meta charset="utf-8"><title>Engineroom</title>'
                f'<meta http-equiv="refresh" content="0; url={url}"><a href="{url}">Sign in</a>\n'
            )
        webbrowser.open(Path(name).as_uri())
        context.note("opened a browser; --no-browser prints the link instead")
        yield True
    finally:
        Path(name).unlink(missing_ok=True)


def _has_browser() -> bool:
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True
