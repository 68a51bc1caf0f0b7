"""Errors of the command line: what happened, why, and the fix.

Scripts rely on exit codes; ``ExitCode`` is the whole list, which docs/cli.md prints. The category
of an error determines its exit code, in ``engineroom.core.error_responses``.
"""

from __future__ import annotations

import sys
from enum import IntEnum
from pathlib import PurePath

from engineroom.core.error_responses import command_outcome
from engineroom.core.errors import Category, EngineroomError

PROGRAM = "engineroom"
PLUGIN = "kubectl-engineroom"
#: By this variable a shell asks for candidates, whatever the program is called as.
COMPLETE_VARIABLE = "_ENGINEROOM_COMPLETE"
#: The fix for whatever is missing as a whole.
INSTALL = "helm install engineroom charts/engineroom -n engineroom-system --create-namespace"


class ExitCode(IntEnum):
    """Exit codes of the program."""

    OK = 0
    PROBLEM = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    FORBIDDEN = 5

    @property
    def meaning(self) -> str:
        """One line for the documentation."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "success; no problem was found",
    ExitCode.PROBLEM: (
        "a problem or a difference was found, the request was refused, or a tested limit "
        "refuses the request"
    ),
    ExitCode.USAGE: (
        "invalid use: wrong arguments, not possible for this pool, or a confirmation is needed and "
        "there is neither `--yes` nor a terminal"
    ),
    ExitCode.UNREACHABLE: (
        "the cluster, the API process or Redis cannot be reached, or the kubeconfig names no "
        "cluster"
    ),
    ExitCode.NOT_FOUND: (
        "the pool, pod, job, schedule, policy or kind does not exist, or a filter matches nothing"
    ),
    ExitCode.FORBIDDEN: "not logged in, or your account has no permission",
}


class CliError(EngineroomError):
    """A command failed; it prints what happened, the cause and the fix, without a stack trace."""

    code = "cli"
    category = Category.PERMANENT
    http_status = 500

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what = what
        self.why = why
        self.fix = fix
        super().__init__("; ".join(part for part in (what, why, fix) if part))

    @property
    def exit_code(self) -> ExitCode:
        """The status that the program ends with."""
        return ExitCode(command_outcome(self).exit_code)


class RefusedError(CliError):
    """The API server or an admission webhook refused the change."""

    code = "cli_refused"
    category = Category.CONFLICT
    http_status = 409


class TimedOutError(CliError):
    """The awaited state was not reached within the time-out."""

    code = "cli_timed_out"
    category = Category.LIMIT
    http_status = 408


class UsageError(CliError):
    """The command cannot be used here; the message names another one."""

    code = "cli_usage"
    category = Category.VALIDATION
    http_status = 400


class UnreachableError(CliError):
    """An API server does not answer, or its address is unknown."""

    code = "cli_unreachable"
    category = Category.DEPENDENCY
    http_status = 503
    retryable = True


class NotFoundError(CliError):
    """The object or its kind does not exist."""

    code = "cli_not_found"
    category = Category.NOT_FOUND
    http_status = 404


class ForbiddenError(CliError):
    """Not authenticated, or not authorized."""

    code = "cli_forbidden"
    category = Category.PERMISSION
    http_status = 403


def program() -> str:
    """Return the name that the user called the program by, for commands in messages."""
    if PurePath(sys.argv[0] if sys.argv else "").name == PLUGIN:
        return PLUGIN.replace("-", " ")
    return PROGRAM
