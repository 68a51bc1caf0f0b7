"""Options that many commands share, as annotations that typer reads."""

from __future__ import annotations

import inspect
import typing
from typing import Annotated, Any

import typer

_PANEL = "Options of all commands"

Kubeconfig = Annotated[
    str | None,
    typer.Option("--kubeconfig", metavar="FILE", help="Kubeconfig to use.", rich_help_panel=_PANEL),
]
KubeContext = Annotated[
    str | None,
    typer.Option(
        "--context", metavar="NAME", help="Context of the kubeconfig.", rich_help_panel=_PANEL
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        "-n",
        metavar="NAME",
        help="Namespace; by default the one of the context or of the login.",
        rich_help_panel=_PANEL,
    ),
]
SystemNamespace = Annotated[
    str | None,
    typer.Option(
        "--system-namespace",
        metavar="NAME",
        envvar="ENGINEROOM_SYSTEM_NAMESPACE",
        show_envvar=False,
        help=(
            "Namespace of the installation; by default the one that the cluster's "
            "ValidatingWebhookConfiguration names. Also ENGINEROOM_SYSTEM_NAMESPACE."
        ),
        rich_help_panel=_PANEL,
    ),
]
NoColor = Annotated[
    bool,
    typer.Option(
        "--no-color",
        help="Print without colours, as with NO_COLOR in the environment.",
        rich_help_panel=_PANEL,
    ),
]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show the stack trace of an error.", rich_help_panel=_PANEL),
]
Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help=(
            "Use the API process at this URL, with the account of `login`; also ENGINEROOM_SERVER."
        ),
        rich_help_panel=_PANEL,
    ),
]
CaFile = Annotated[
    str | None,
    typer.Option(
        "--ca-file",
        metavar="FILE",
        help="CA certificates (PEM) that verify the API process; also ENGINEROOM_CA_FILE.",
        rich_help_panel=_PANEL,
    ),
]

_REDIS_PANEL = "Which Redis"
RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis-url",
        metavar="URL",
        envvar="ENGINEROOM_REDIS_URL",
        show_envvar=False,
        help=(
            "Redis to use instead of a pool's. Never printed. Prefer ENGINEROOM_REDIS_URL, "
            "because other users of the machine can read command lines."
        ),
        rich_help_panel=_REDIS_PANEL,
    ),
]
OfPool = Annotated[
    str | None,
    typer.Option(
        "--pool",
        metavar="NAME",
        help="Use the Redis of this pool; required if the namespace's pools use several.",
        rich_help_panel=_REDIS_PANEL,
    ),
]

AllNamespaces = Annotated[
    bool, typer.Option("--all-namespaces", "-A", help="List objects of all namespaces.")
]
Selector = Annotated[
    str | None,
    typer.Option(
        "--selector", "-l", metavar="LABELS", help="Only objects with these labels: app=mail."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]

_SHARED: dict[str, Any] = {
    "namespace": Namespace,
    "kubeconfig": Kubeconfig,
    "kube_context": KubeContext,
    "system_namespace": SystemNamespace,
    "server": Server,
    "ca_file": CaFile,
    "no_color": NoColor,
    "debug": Debug,
}
_REDIS: dict[str, Any] = {"redis_url": RedisUrl, "pool": OfPool}


def shared_parameters(*, redis: bool = False) -> list[inspect.Parameter]:
    """Return the options of all commands as parameters of a function.

    With ``redis``, include the options that select a Redis.
    """
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if typing.get_args(kind)[0] is bool else None,
            annotation=kind,
        )
        for name, kind in {**(_REDIS if redis else {}), **_SHARED}.items()
    ]
