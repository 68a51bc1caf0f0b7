"""What an error means at each edge: HTTP, command line, RQ, Kopf. One function a side, all pure.

Texts of errors that nobody raised on purpose, and of bugs, are not shown: they are for the log.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from engineroom.core.errors import Category, EngineroomError, InvalidInputError

#: What is shown of an error that was not foreseen.
UNFORESEEN = "An unforeseen error; the log has it under the same request id."
#: Where the codes are documented; ``type`` of a problem document is this and the code.
TYPE_BASE = "https://engineroom.dev/errors#"
#: Seconds until the next attempt when nobody said so.
DEFAULT_DELAY = 15.0


def _known(error: BaseException) -> EngineroomError | None:
    return error if isinstance(error, EngineroomError) else None


def _text(error: BaseException) -> str:
    known = _known(error)
    if known is None or known.category is Category.BUG:
        return UNFORESEEN
    return str(known) or type(known).__name__


@dataclass(frozen=True, slots=True)
class ProblemDocument:
    """An answer of an API to a failed request (RFC 9457); ``body`` is JSON-ready."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    #: Of the answer's body.
    MEDIA_TYPE = "application/problem+json"


def problem_document(error: BaseException, *, instance: str = "") -> ProblemDocument:
    """The problem document of any exception; ``instance`` is the request's id or path.

    ``code``, ``category`` and ``retryable`` are extension members; where fields are at fault
    ``errors`` lists them with ``field``, ``problem`` and ``fix``.
    """
    known = _known(error)
    kind = type(known) if known is not None else EngineroomError
    body: dict[str, Any] = {
        "type": TYPE_BASE + kind.code,
        "title": kind.code.replace("_", " ").capitalize(),
        "status": kind.http_status,
        "detail": _text(error),
        "code": kind.code,
        "category": kind.category.value,
        "retryable": kind.retryable,
    }
    if instance:
        body["instance"] = instance
    if isinstance(known, InvalidInputError):
        body["errors"] = [
            {"field": problem.field, "problem": problem.problem, "fix": problem.fix}
            for problem in known.problems
        ]
    headers = {"Content-Type": ProblemDocument.MEDIA_TYPE, "Cache-Control": "no-store"}
    if known is not None and known.retry_after is not None:
        # Whole seconds, rounded up: who comes back exactly then must not come too early.
        seconds = int(-(-known.retry_after // 1))
        headers["Retry-After"] = str(seconds)
        body["retry_after"] = seconds
    if kind.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return ProblemDocument(kind.http_status, body, headers)


@dataclass(frozen=True, slots=True)
class CommandOutcome:
    """How a command ends: its exit status and what it says on standard error."""

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
    """Exit status and text: a line of what happened, each field at fault, and whether to retry."""
    known = _known(error)
    code = EngineroomError.code if known is None else known.code
    lines = [f"error: {_text(error)} [{code}]"]
    if isinstance(known, InvalidInputError):
        lines = [f"error: {len(known.problems)} to correct [{code}]"]
        lines += [f"  {problem}" for problem in known.problems]
    if known is not None and known.retryable:
        wait = f" in {known.retry_after:g} s" if known.retry_after is not None else ""
        lines.append(f"  trying again{wait} may help")
    exit_code = 1 if known is None else _EXIT_CODES.get(known.category, 1)
    return CommandOutcome(exit_code, "\n".join(lines))


class JobFate(StrEnum):
    """What becomes of a job that raised."""

    RETRY = "retry"
    DEAD_LETTER = "dead_letter"


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """The fate of a job and, if it is RETRY, the seconds until its next attempt."""

    fate: JobFate
    delay: float = 0.0


def job_outcome(
    error: BaseException, *, retries_left: int, delay: float = DEFAULT_DELAY
) -> JobOutcome:
    """Retry what may heal while retries are left; all else goes to the dead letters.

    An exception that is not ours is retried as RQ would: nothing is known about it. ``delay`` is
    the wait in seconds when the error does not say one.
    """
    known = _known(error)
    if retries_left <= 0 or (known is not None and not known.retryable):
        return JobOutcome(JobFate.DEAD_LETTER)
    said = None if known is None else known.retry_after
    return JobOutcome(JobFate.RETRY, delay if said is None else said)
