"""Error responses of each edge: HTTP, command line, RQ. One pure function for each.

Callers are not shown the texts of unexpected errors and of bugs. Callers over HTTP are not shown
those of external systems and libraries either, which name hosts, ports and accounts: they get the
description of the error's class. The log has the texts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from engineroom.core.errors import Category, EngineroomError, InvalidInputError

#: The text shown for an unexpected error.
UNFORESEEN = "An unexpected error; the log has it under the same request id."
#: The base of a problem document's ``type``; the code follows.
TYPE_BASE = "https://engineroom.dev/errors#"
#: Default seconds until a job's next attempt.
DEFAULT_DELAY = 15.0


def _as_engineroom_error(error: BaseException) -> EngineroomError | None:
    return error if isinstance(error, EngineroomError) else None


def _message(error: BaseException) -> str:
    """Return the text for the person who runs the program."""
    ours = _as_engineroom_error(error)
    if ours is None or ours.category is Category.BUG:
        return UNFORESEEN
    return str(ours) or type(ours).__name__


def _public_message(error: BaseException) -> str:
    """Return the text for callers over HTTP."""
    ours = _as_engineroom_error(error)
    if ours is not None and (ours.category is Category.DEPENDENCY or "library" in ours.context):
        return _description(type(ours))
    return _message(error)


def _description(kind: type[EngineroomError]) -> str:
    """Return the first sentence of the class's docstring; without docstrings (-OO) its title."""
    text = " ".join((kind.__doc__ or "").split())
    return text.partition(". ")[0].rstrip(".") or _title(kind)


def _title(kind: type[EngineroomError]) -> str:
    return kind.code.replace("_", " ").capitalize()


@dataclass(frozen=True, slots=True)
class ProblemDocument:
    """A problem document (RFC 9457), an API's response to a failed request.

    ``body`` holds JSON values.
    """

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    #: The response's Content-Type.
    MEDIA_TYPE = "application/problem+json"


def problem_document(error: BaseException, *, instance: str = "") -> ProblemDocument:
    """Return the problem document of any exception; ``instance`` is the request's id or path.

    ``code``, ``category`` and ``retryable`` are extension members. For invalid fields, ``errors``
    lists ``field``, ``problem`` and ``fix`` of each.
    """
    ours = _as_engineroom_error(error)
    kind = type(ours) if ours is not None else EngineroomError
    body: dict[str, Any] = {
        "type": TYPE_BASE + kind.code,
        "title": _title(kind),
        "status": kind.http_status,
        "detail": _public_message(error),
        "code": kind.code,
        "category": kind.category.value,
        "retryable": kind.retryable,
    }
    if instance:
        body["instance"] = instance
    if isinstance(ours, InvalidInputError):
        body["errors"] = [
            {"field": problem.field, "problem": problem.problem, "fix": problem.fix}
            for problem in ours.problems
        ]
    headers = {"Content-Type": ProblemDocument.MEDIA_TYPE, "Cache-Control": "no-store"}
    if ours is not None and ours.retry_after is not None:
        # Whole seconds, rounded up: a client that waits exactly that long must not be too early.
        seconds = int(-(-ours.retry_after // 1))
        headers["Retry-After"] = str(seconds)
        body["retry_after"] = seconds
    if kind.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return ProblemDocument(kind.http_status, body, headers)


@dataclass(frozen=True, slots=True)
class CommandOutcome:
    """The exit status of a failed command and its text on standard error."""

    exit_code: int
    text: str


#: The same numbers as ``engineroom.cli.app.errors.ExitCode``.
_EXIT_CODES = {
    Category.VALIDATION: 2,
    Category.AUTHENTICATION: 5,
    Category.PERMISSION: 5,
    Category.NOT_FOUND: 4,
    Category.DEPENDENCY: 3,
    Category.TRANSIENT: 3,
}


def command_outcome(error: BaseException) -> CommandOutcome:
    """Return a command's exit status and text: the error, each invalid field, advice to retry."""
    ours = _as_engineroom_error(error)
    code = EngineroomError.code if ours is None else ours.code
    lines = [f"error: {_message(error)} [{code}]"]
    if isinstance(ours, InvalidInputError):
        lines = [f"error: {len(ours.problems)} to correct [{code}]"]
        lines += [f"  {problem}" for problem in ours.problems]
    if ours is not None and ours.retryable:
        wait = f" in {ours.retry_after:g} s" if ours.retry_after is not None else ""
        lines.append(f"  trying again{wait} may help")
    exit_code = 1 if ours is None else _EXIT_CODES.get(ours.category, 1)
    return CommandOutcome(exit_code, "\n".join(lines))


class JobFate(StrEnum):
    """The next state of a job that raised."""

    RETRY = "retry"
    DEAD_LETTER = "dead_letter"


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """The fate of a job and, for RETRY, the seconds until its next attempt."""

    fate: JobFate
    delay: float = 0.0


def job_outcome(
    error: BaseException, *, retries_left: int, delay: float = DEFAULT_DELAY
) -> JobOutcome:
    """Retry retryable errors while retries are left; send all others to the dead letters.

    Exceptions other than EngineroomError are retried, as in RQ. ``delay`` is the wait in seconds if
    the error has no ``retry_after``.
    """
    ours = _as_engineroom_error(error)
    if retries_left <= 0 or (ours is not None and not ours.retryable):
        return JobOutcome(JobFate.DEAD_LETTER)
    wait = None if ours is None else ours.retry_after
    return JobOutcome(JobFate.RETRY, delay if wait is None else wait)
