"""``engineroom ui``: sign in to the API in a browser without a password."""

import contextlib
import html
import os
import re
import tempfile
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from engineroom.cli.app.context import CommandContext
from engineroom.cli.errors import ForbiddenError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engineroom.cli.connections.model import Document
    from engineroom.cli.connections.remote.api import Api

#: So long (seconds) the code of a link lives; the file that leads to it goes then.
_LIFE = 60.0
#: What follows the server in a link. Anything else could lead to another server.
_LINK_PATH = re.compile(r"/sign-in#[A-Za-z0-9_-]{1,512}")


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
    process of the installation until Ctrl-C. The installation is in the namespace of
    --system-namespace or --namespace, else in the one that the cluster's
    ValidatingWebhookConfiguration names; its pods are found by their Deployment, not by labels.

    You are signed in as the user of the kubeconfig's token, for an hour at most and not longer than
    the token is valid. If the kubeconfig has no token (a client certificate) and you may read the
    Secret of the first administrator, you are signed in as `admin`.
    """
    if context.through_api:
        _open(context, _link(context.api), no_browser)
        return
    from engineroom.cli.connections.port_forward import find_api, forward
    from engineroom.cli.connections.release import find_release

    options, cluster = context.options, context.cluster
    release = find_release(cluster, options.system_namespace or options.namespace)
    deployment = find_api(cluster, release)
    with forward(cluster, deployment) as way:
        try:
            link = _link(_api(context, way.url, deployment))
        except Exception:
            if way.failure is not None:
                raise way.failure from None
            raise
        # Also a Ctrl-C right after the link is printed is no error.
        with contextlib.suppress(KeyboardInterrupt), _opened_link(context, link, no_browser):
            context.note("forwarding to the API process; Ctrl-C ends it")
            while True:
                context.sleep(3600.0)


def _link(api: "Api") -> str:
    """Return a new one-time link. Raises UnreachableError for one that leads elsewhere."""
    path = api.post("/sign-in-links").get("path")
    if not isinstance(path, str) or not _LINK_PATH.fullmatch(path):
        raise UnreachableError(
            f"the server at {api.server} is not Engineroom's API",
            why="its sign-in link does not lead to its own sign-in page",
            fix="check the URL; a proxy may answer in its place",
        )
    return api.server + path


def _api(context: CommandContext, url: str, deployment: "Document") -> "Api":
    """Return the API at the forwarded port, with the identity of the kubeconfig."""
    from dataclasses import replace

    from engineroom.cli.connections.port_forward import admin_password
    from engineroom.cli.connections.remote.api import Api, bearer
    from engineroom.cli.connections.remote.credentials import ServerAccount

    plain = ServerAccount(url, "token")
    try:
        return Api(replace(plain, access=bearer(context.cluster)))
    except ForbiddenError:
        password = admin_password(context.cluster, deployment)
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
    link = html.escape(url)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(
                '<!doctype html><meta charset="utf-8"><title>Engineroom</title>'
                f'<meta http-equiv="refresh" content="0; url={link}"><a href="{link}">Sign in</a>\n'
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
