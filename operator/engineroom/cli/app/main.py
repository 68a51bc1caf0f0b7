"""The command line ``engineroom``, which is also the kubectl plugin ``kubectl engineroom``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from engineroom.cli.app.context import console
from engineroom.cli.app.lazy import CommandEntry, CommandGroup, group
from engineroom.cli.app.options import (  # noqa: TC001 - typer reads the annotations
    CaFile,
    Debug,
    Kubeconfig,
    KubeContext,
    Namespace,
    NoColor,
    Server,
    SystemNamespace,
)
from engineroom.cli.connections.options import ConnectionOptions
from engineroom.cli.errors import COMPLETE_VARIABLE, CliError, ExitCode, program
from engineroom.core.error_responses import command_outcome
from engineroom.core.errors import EngineroomError

if TYPE_CHECKING:
    from collections.abc import Sequence

LOOK, CHANGE, TASKS, LIMITS = "Look", "Change", "Tasks", "Rate limits"
API, OTHER = "Through the API", "Other"
_COMMANDS = "engineroom.cli.commands"


def _redis(
    name: str, module: str, attribute: str, summary: str, panel: str = TASKS
) -> CommandEntry:
    """Return the entry of a command that uses Redis."""
    return CommandEntry(
        name, f"{_COMMANDS}.{module}", panel, summary, redis=True, attribute=attribute
    )


def _api(name: str, module: str, attribute: str, summary: str) -> CommandEntry:
    """Return the entry of a command that uses the API process."""
    return CommandEntry(name, f"{_COMMANDS}.{module}", API, summary, attribute=attribute)


ENTRIES: tuple[CommandEntry | CommandGroup, ...] = (
    CommandEntry(
        "status",
        f"{_COMMANDS}.status",
        LOOK,
        (
            "Show the state of the installation: operator, webhooks, Redis, CRD, and pools with "
            "problems."
        ),
    ),
    CommandEntry(
        "get",
        f"{_COMMANDS}.get",
        LOOK,
        "List pools with their state, size, load and age, or objects of another kind.",
    ),
    CommandEntry(
        "explain",
        f"{_COMMANDS}.explain",
        LOOK,
        ("Explain the state of an object: why a pool has its size, whether a policy is enforced."),
    ),
    CommandEntry(
        "top",
        f"{_COMMANDS}.pools.top",
        LOOK,
        "Show the current activity of pools or workers, once or continuously.",
    ),
    CommandEntry(
        "scale",
        f"{_COMMANDS}.pools.scale",
        CHANGE,
        "Set the size of a pool, or the size range of an autoscaled one.",
    ),
    CommandEntry(
        "pause",
        f"{_COMMANDS}.pools.pause",
        CHANGE,
        "Stop an autoscaled pool from changing its size.",
    ),
    CommandEntry(
        "resume",
        f"{_COMMANDS}.pools.resume",
        CHANGE,
        "Let a paused or drained pool scale and take jobs again.",
    ),
    CommandEntry(
        "apply",
        f"{_COMMANDS}.manifests.apply",
        CHANGE,
        "Apply manifests as one transaction: all objects, or none.",
    ),
    CommandEntry(
        "diff",
        f"{_COMMANDS}.manifests.diff",
        CHANGE,
        "Show the changes that `apply` would make, without writing.",
    ),
    CommandEntry(
        "drain",
        f"{_COMMANDS}.pools.drain",
        CHANGE,
        "Let a pool, or one of its pods, finish its jobs and start no new ones.",
    ),
    CommandGroup(
        "jobs",
        TASKS,
        "List and show jobs, retry failed ones, cancel waiting ones.",
        (
            _redis("list", "tasks.jobs", "list_jobs", "List jobs by state, page by page."),
            _redis("show", "tasks.jobs", "show", "Show all details of one job."),
            _redis("retry", "tasks.retry", "retry", "Requeue failed jobs."),
            _redis("cancel", "tasks.cancel", "cancel", "Cancel jobs and their dependents."),
        ),
    ),
    CommandGroup(
        "queues",
        TASKS,
        "List, pause and limit queues, move or delete waiting jobs.",
        (
            _redis(
                "list",
                "tasks.queues",
                "list_queues",
                "Show the number of jobs in each queue, by state.",
            ),
            _redis("pause", "tasks.queues", "pause", "Stop workers from taking jobs from a queue."),
            _redis("resume", "tasks.queues", "resume", "Let workers take jobs from a queue again."),
            _redis(
                "limit",
                "tasks.queues",
                "limit",
                "Limit how many jobs run at the same time, and how many start per period.",
            ),
            _redis("unlimit", "tasks.queues", "unlimit", "Remove the limit of a queue."),
            _redis(
                "move", "tasks.queues", "move", "Move waiting jobs to the end of another queue."
            ),
            _redis("empty", "tasks.queues", "empty", "Delete the waiting jobs of a queue."),
        ),
    ),
    CommandGroup(
        "schedules",
        TASKS,
        "List, create, pause, run and delete schedules.",
        (
            _redis(
                "list",
                "tasks.schedules",
                "list_schedules",
                "List schedules, sorted by their next tick.",
            ),
            _redis("show", "tasks.schedules", "show", "Show one schedule and its next ticks."),
            _redis(
                "add",
                "tasks.schedules",
                "add",
                "Create a schedule, or change the existing one of that name.",
            ),
            _redis("pause", "tasks.schedules", "pause", "Stop a schedule until it is resumed."),
            _redis("resume", "tasks.schedules", "resume", "Resume a paused schedule."),
            _redis(
                "run",
                "tasks.schedules",
                "run",
                "Enqueue a schedule's job now, in addition to its ticks, also if it is paused.",
            ),
            _redis(
                "delete",
                "tasks.schedules",
                "delete",
                "Delete a schedule; jobs that it has enqueued stay.",
            ),
        ),
    ),
    _redis("enqueue", "tasks.enqueue", "enqueue", "Enqueue one job."),
    CommandGroup(
        "workers",
        TASKS,
        "List workers, and remove the entries of dead ones.",
        (
            _redis("list", "tasks.workers", "list_workers", "List workers and their state."),
            _redis(
                "clear",
                "tasks.workers",
                "clear",
                "Remove workers that no longer exist from RQ's lists.",
            ),
        ),
    ),
    CommandGroup(
        "ratelimit",
        LIMITS,
        "Test a request against RateLimitPolicies, show the top keys, explain a policy.",
        (
            _redis(
                "test",
                "ratelimit",
                "try_request",
                (
                    "Show the limits that apply to a request, their remaining tokens, and the "
                    "response."
                ),
                LIMITS,
            ),
            CommandEntry(
                "top",
                f"{_COMMANDS}.ratelimit",
                LIMITS,
                "Record for some seconds, and show the most requested keys by policy and limit.",
            ),
            _redis(
                "explain",
                "ratelimit",
                "explain",
                "Show whether a policy is accepted, programmed and enforced, why, and its bound.",
                LIMITS,
            ),
        ),
    ),
    CommandEntry("login", f"{_COMMANDS}.access.login", API, "Log in to the API process."),
    CommandEntry(
        "logout",
        f"{_COMMANDS}.access.logout",
        API,
        "Revoke the login at the server, and delete it locally.",
    ),
    CommandEntry(
        "ui",
        f"{_COMMANDS}.access.ui",
        API,
        "Sign in to the API in a browser, by a one-time link.",
    ),
    CommandEntry(
        "whoami", f"{_COMMANDS}.access.whoami", API, "Show your identity and your permissions."
    ),
    CommandGroup(
        "keys",
        API,
        "List, create, replace and revoke API keys.",
        (
            _api("list", "access.keys", "list_keys", "List API keys: your own, or those of --of."),
            _api("create", "access.keys", "create", "Create an API key; it is shown only once."),
            _api(
                "rotate",
                "access.keys",
                "rotate",
                "Replace an API key; the old one stays valid for a while.",
            ),
            _api("revoke", "access.keys", "revoke", "Revoke an API key at once."),
        ),
    ),
    CommandGroup(
        "sessions",
        API,
        "List and end sessions of browsers.",
        (
            _api(
                "list",
                "access.sessions",
                "list_sessions",
                "List sessions: your own, or those of --of.",
            ),
            _api(
                "end",
                "access.sessions",
                "end",
                "End one session, or all sessions of a subject.",
            ),
        ),
    ),
    CommandGroup(
        "signing-keys",
        API,
        "List and rotate the keys that sign the API's tokens.",
        (
            _api(
                "list",
                "access.signing_keys",
                "list_signing_keys",
                "List the keys that sign or still verify the API's tokens.",
            ),
            _api(
                "rotate",
                "access.signing_keys",
                "rotate",
                "Sign the API's tokens with a new key after one minute; old tokens stay valid.",
            ),
        ),
    ),
    CommandGroup(
        "audit",
        API,
        "Read the audit log and verify that it was not changed.",
        (
            _api("list", "access.audit", "list_audit", "List the audit log, oldest records first."),
            _api(
                "verify", "access.audit", "verify", "Check that the audit log has not been changed."
            ),
        ),
    ),
    CommandGroup(
        "transactions",
        API,
        "List and show transactions of `apply`.",
        (
            _api(
                "list",
                "manifests.transactions",
                "list_transactions",
                "List transactions, newest first.",
            ),
            _api(
                "show", "manifests.transactions", "show", "Show one transaction with all its steps."
            ),
        ),
    ),
    CommandGroup(
        "operations",
        API,
        "List, show and stop bulk operations on jobs.",
        (
            _api(
                "list",
                "tasks.operations",
                "list_operations",
                "List bulk changes of jobs, newest first.",
            ),
            _api("show", "tasks.operations", "show", "Show the progress of a bulk change of jobs."),
            _api(
                "stop",
                "tasks.operations",
                "stop",
                "Stop a bulk change of jobs after its current step, without reverting it.",
            ),
        ),
    ),
    CommandEntry(
        "lint",
        "engineroom.cli.commands.manifests.lint",
        OTHER,
        "Check manifests by the rules of the admission webhooks.",
        takes_context=False,
    ),
    CommandEntry(
        "version",
        f"{_COMMANDS}.version",
        OTHER,
        "Show the versions of this program, the operator and the API server.",
    ),
    CommandEntry(
        "completion",
        f"{_COMMANDS}.completion",
        OTHER,
        "Print the completion script of a shell, or of kubectl for its plugin.",
        takes_context=False,
    ),
)


def create() -> typer.Typer:
    """Return the application with all its commands."""
    app = typer.Typer(
        name="engineroom",
        cls=group(ENTRIES),
        help="Show, explain and change pools of RQ workers on Kubernetes.\n\n"
        "Needs only the rights of your kubeconfig. `kubectl wait --for=condition=Ready "
        "workerpool/NAME` waits for a pool.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    app.callback()(_before)
    return app


def _version(requested: bool) -> None:
    if requested:
        from engineroom import __version__

        typer.echo(f"engineroom {__version__}")
        raise typer.Exit


def _before(
    ctx: typer.Context,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    kube_context: KubeContext = None,
    system_namespace: SystemNamespace = None,
    server: Server = None,
    ca_file: CaFile = None,
    no_color: NoColor = False,
    debug: Debug = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Show only the version of this program.",
            is_eager=True,
            callback=_version,
        ),
    ] = False,
) -> None:
    """Store the options before the command's name in the context of the command."""
    # ``main`` reads the last three from the command line itself.
    del version, no_color, debug
    ctx.obj = ConnectionOptions(
        kubeconfig, kube_context, namespace, server, ca_file, system_namespace=system_namespace
    )


def show_error(error: CliError) -> None:
    """Print an error, its cause and its fix to standard error."""
    from rich.text import Text

    err = console(sys.stderr)
    err.print(Text.assemble(("error", "bold red"), f": {error.what}"), soft_wrap=True)
    if error.why:
        err.print(Text(f"  why: {error.why}"), soft_wrap=True)
    if error.fix:
        err.print(Text(f"  fix: {error.fix}"), soft_wrap=True)


def _group_help(words: list[str]) -> None:
    """Show the help of a command group directly: parsing the parent's options takes a third more.

    ``words`` are the command line; for any other command this does nothing.
    """
    if len(words) != 2 or words[1] not in ("--help", "-h"):
        return
    for entry in ENTRIES:
        if isinstance(entry, CommandGroup) and entry.name == words[0]:
            entry.load()(args=["--help"], prog_name=f"{program()} {entry.name}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--no-color" in words:
        # Before anything is printed, so that help and usage errors follow it too.
        os.environ["NO_COLOR"] = "1"
    try:
        _group_help(words)
        create()(args=words, prog_name=program(), complete_var=COMPLETE_VARIABLE)
    except CliError as error:
        if "--debug" in words:
            raise
        show_error(error)
        sys.exit(error.exit_code)
    except EngineroomError as error:
        if "--debug" in words:
            raise
        outcome = command_outcome(error)
        console(sys.stderr).print(outcome.text, soft_wrap=True, markup=False)
        sys.exit(outcome.exit_code)
    except Exception as error:
        if "--debug" in words:
            raise
        show_error(
            CliError(
                f"{program()} failed unexpectedly",
                why=f"{type(error).__name__}: {error}",
                fix="run it again with --debug and report what it prints",
            )
        )
        sys.exit(ExitCode.PROBLEM)
    sys.exit(ExitCode.OK)


if __name__ == "__main__":
    main()
