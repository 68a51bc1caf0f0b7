"""One mapping from errors to exit codes, by category: the core's, for the command line, too."""

from __future__ import annotations

import pytest

from engineroom.cli import errors
from engineroom.cli.errors import CliError, ExitCode
from engineroom.core.error_responses import command_outcome
from engineroom.core.errors import Category, EngineroomError, JobMissingError
from engineroom.tasks import (
    InvalidTaskError,
    NotFailedError,
    NothingMatchesError,
    ScheduleNotFoundError,
    TasksUnavailableError,
    UnknownQueueError,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CliError("x"), ExitCode.PROBLEM),
        (errors.RefusedError("x"), ExitCode.PROBLEM),
        (errors.TimedOutError("x"), ExitCode.PROBLEM),
        (errors.UsageError("x"), ExitCode.USAGE),
        (errors.UnreachableError("x"), ExitCode.UNREACHABLE),
        (errors.NotFoundError("x"), ExitCode.NOT_FOUND),
        (errors.ForbiddenError("x"), ExitCode.FORBIDDEN),
        (UnknownQueueError("queue", "x", "y"), ExitCode.USAGE),
        (InvalidTaskError("args", "x", "y"), ExitCode.USAGE),
        (NotFailedError("x"), ExitCode.PROBLEM),
        (NothingMatchesError("x"), ExitCode.NOT_FOUND),
        (ScheduleNotFoundError("x"), ExitCode.NOT_FOUND),
        (JobMissingError("x"), ExitCode.NOT_FOUND),
        (TasksUnavailableError("x"), ExitCode.UNREACHABLE),
    ],
)
def test_what_each_error_ends_with(error: EngineroomError, code: ExitCode) -> None:
    assert command_outcome(error).exit_code == code
    if isinstance(error, CliError):
        assert error.exit_code is code


def test_no_category_ends_with_a_code_that_is_not_documented() -> None:
    for category in Category:
        kind = type("Sample", (EngineroomError,), {"category": category, "code": "sample"})
        assert command_outcome(kind("x")).exit_code in list(ExitCode)[1:]
