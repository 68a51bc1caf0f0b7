"""``engineroom sessions``: list and end the sessions of browsers."""

from typing import Annotated
from urllib.parse import quote

import typer

from engineroom.cli.app.context import CommandContext
from engineroom.cli.app.options import Yes
from engineroom.cli.commands.access.keys import Of
from engineroom.cli.commands.arguments import OutputOption
from engineroom.cli.commands.output import present, print_result
from engineroom.cli.errors import UsageError
from engineroom.cli.views.access import sessions_table
from engineroom.cli.views.output_formats import OutputFormat


def list_sessions(
    context: CommandContext, of: Of = None, output: OutputOption = OutputFormat.TABLE
) -> None:
    """List sessions: your own, or those of --of."""
    sessions = context.api.get(f"{_base(of)}/sessions")["items"]
    present(
        context, output, {"items": sessions}, [entry["handle"] for entry in sessions],
        lambda: sessions_table(sessions, context.clock.now()), none="no sessions",
    )  # fmt: skip


def end(
    context: CommandContext,
    handle: Annotated[
        str | None,
        typer.Argument(metavar="HANDLE", help="Handle of the session, from `sessions list`."),
    ] = None,
    of: Of = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="With --of: end all sessions and tokens; API keys stay valid."),
    ] = False,
    yes: Yes = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """End one session, or all sessions of a subject."""
    if (handle is None) is not everything:
        raise UsageError("which session?", fix="give a handle, or --all with --of SUBJECT")
    if handle is not None:
        context.api.delete(f"{_base(of)}/sessions/{quote(handle, safe='')}")
        done = {"handle": handle, "ended": True}
        print_result(context, done, f"session {handle} ended", output, name=handle)
        return
    if of is None:
        raise UsageError("whose sessions?", fix="give --of SUBJECT; `whoami` says who you are")
    context.confirm(f"End all sessions and tokens of {of}?", yes=yes)
    context.api.delete(f"{_base(of)}/sessions")
    done = {"subject": of, "ended": True}
    print_result(context, done, f"all sessions and tokens of {of} ended", output, name=of)


def _base(of: str | None) -> str:
    return "" if of is None else f"/users/{quote(of, safe=':@+')}"
