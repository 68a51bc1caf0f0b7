"""Errors: one hierarchy, documented whole, wrapped once, and mapped the same way everywhere."""

from __future__ import annotations

import smtplib
import urllib.error
from datetime import UTC, datetime
from email.message import Message

import psycopg
import pytest
import redis.exceptions as redis_errors
import requests
import rq.exceptions
import rq.timeouts
import sqlalchemy.exc

from engineroom.core import errors, reference
from engineroom.core.error_responses import (
    JobFate,
    command_outcome,
    job_outcome,
    problem_document,
)
from engineroom.core.error_translation import retry_after_seconds, wrap, wrapped
from engineroom.core.errors import Category, EngineroomError, Problem
from tests.support import ROOT

CLASSES = reference.classes()


def test_codes_are_unique_and_every_class_has_its_own() -> None:
    codes = [kind.code for kind in CLASSES]
    assert len(codes) == len(set(codes))
    assert [kind.__name__ for kind in CLASSES if "code" not in vars(kind)] == []


def test_every_class_anywhere_stands_in_the_reference() -> None:
    text = (ROOT / "docs/reference/errors.md").read_text()
    assert text == reference.page()
    assert [kind.code for kind in CLASSES if f"| `{kind.code}` |" not in text] == []
    assert {"kubernetes_conflict", "cli_usage", "unreadable_review"} <= {k.code for k in CLASSES}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.code)
def test_category_and_status_agree(kind: type[EngineroomError]) -> None:
    assert kind.category in Category
    allowed = {
        Category.VALIDATION: {400, 405, 413, 415, 422, 431},
        Category.AUTHENTICATION: {401},
        Category.PERMISSION: {403},
        Category.NOT_FOUND: {404, 410, 503},
        Category.CONFLICT: {409, 410, 412},
        Category.LIMIT: {408, 413, 429, 431},
        Category.DEPENDENCY: {502, 503, 504},
        Category.TRANSIENT: {503, 504},
        Category.PERMANENT: {500, 501},
        Category.BUG: {500},
    }
    assert kind.http_status in allowed[kind.category]
    assert kind.category is not Category.BUG or not kind.retryable


def test_the_command_is_told_of_a_difference(tmp_path, capsys) -> None:
    (tmp_path / "docs/reference").mkdir(parents=True)
    assert reference.main(["--check", "--root", str(tmp_path)]) == 1
    assert reference.main(["--root", str(tmp_path)]) == 0
    assert reference.main(["--check", "--root", str(tmp_path)]) == 0
    assert "differs" in capsys.readouterr().out


def test_secrets_do_not_enter_the_context() -> None:
    error = errors.DependencyError(
        "no answer", context={"url": "redis://u:hunter2@h", "password": "hunter2", "port": 1}
    )
    assert "hunter2" not in repr(error.context)
    assert error.context["port"] == 1
    assert dict(errors.DependencyError("x").context) == {}


class _Sql(psycopg.Error):
    def __init__(self, state: str) -> None:
        super().__init__("failed")
        self.sqlstate = state


def _answer(status: int, headers: dict[str, str] | None = None) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    response.headers.update(headers or {})
    return requests.HTTPError("no", response=response)


WRAPPED: list[tuple[BaseException, type[EngineroomError]]] = [
    (redis_errors.ConnectionError("refused"), errors.RedisUnavailableError),
    (redis_errors.TimeoutError("slow"), errors.RedisUnavailableError),
    (redis_errors.BusyLoadingError("LOADING"), errors.RedisUnavailableError),
    (redis_errors.ResponseError("CLUSTERDOWN no"), errors.RedisUnavailableError),
    (redis_errors.AuthenticationError("WRONGPASS"), errors.RedisRefusedError),
    (redis_errors.ResponseError("NOPERM no right"), errors.RedisRefusedError),
    (redis_errors.ResponseError("OOM command not allowed"), errors.RedisFullError),
    (redis_errors.ResponseError("ERR wrong number"), errors.RedisCommandError),
    (redis_errors.WatchError("changed"), errors.ConflictError),
    (_Sql("40001"), errors.DatabaseConflictError),
    (_Sql("40P01"), errors.DatabaseConflictError),
    (_Sql("23505"), errors.IntegrityError),
    (_Sql("28P01"), errors.DatabaseRefusedError),
    (_Sql("57P01"), errors.DatabaseUnavailableError),
    (_Sql("57014"), errors.TimeLimitError),
    (_Sql("42601"), errors.DatabaseQueryError),
    (psycopg.OperationalError("connection refused"), errors.DatabaseUnavailableError),
    (psycopg.OperationalError("password authentication failed"), errors.DatabaseRefusedError),
    (sqlalchemy.exc.IntegrityError("s", {}, _Sql("23503")), errors.IntegrityError),
    (sqlalchemy.exc.TimeoutError("pool"), errors.DatabaseUnavailableError),
    (_answer(429, {"Retry-After": "7"}), errors.UpstreamThrottledError),
    (_answer(500), errors.UpstreamUnavailableError),
    (_answer(404), errors.UpstreamRefusedError),
    (requests.Timeout("slow"), errors.UpstreamUnavailableError),
    (requests.exceptions.InvalidURL("x"), errors.UpstreamRefusedError),
    (urllib.error.HTTPError("u", 503, "no", Message(), None), errors.UpstreamUnavailableError),
    (urllib.error.URLError("refused"), errors.UpstreamUnavailableError),
    (rq.exceptions.NoSuchJobError("gone"), errors.JobMissingError),
    (rq.timeouts.JobTimeoutException("long"), errors.JobTimedOutError),
    (rq.exceptions.InvalidJobOperation("no"), errors.JobInvalidError),
    (smtplib.SMTPServerDisconnected("gone"), errors.MailUnavailableError),
    (smtplib.SMTPDataError(451, b"later"), errors.MailUnavailableError),
    (smtplib.SMTPAuthenticationError(535, b"no"), errors.MailRefusedError),
    (smtplib.SMTPRecipientsRefused({"a": (550, b"no")}), errors.MailRefusedError),
    (TimeoutError("slow"), errors.TimeLimitError),
    (ConnectionResetError("gone"), errors.DependencyError),
]  # fmt: skip


@pytest.mark.parametrize(("error", "expected"), WRAPPED, ids=lambda value: repr(value)[:40])
def test_library_errors_are_wrapped_with_their_cause(
    error: BaseException, expected: type[EngineroomError]
) -> None:
    with pytest.raises(EngineroomError) as caught, wrapped("look"):
        raise error
    assert type(caught.value) is expected
    assert caught.value.__cause__ is error
    assert caught.value.context["operation"] == "look"


def test_what_is_ours_or_unknown_passes_unchanged() -> None:
    ours = errors.LimitError("slow down", retry_after=3)
    assert wrap(ours) is ours
    assert wrap(ValueError("a bug")) is None
    with pytest.raises(ValueError, match="a bug"), wrapped():
        raise ValueError("a bug")
    with pytest.raises(errors.LimitError) as caught, wrapped():
        raise ours
    assert caught.value is ours


def test_foreign_messages_are_short_and_without_credentials() -> None:
    error = wrap(redis_errors.ConnectionError("redis://u:hunter2@h refused " + "x" * 5000))
    assert error is not None
    assert "hunter2" not in str(error)
    assert len(str(error)) < 400


def test_a_retry_after_is_kept_and_bounded() -> None:
    error = wrap(_answer(429, {"Retry-After": "7"}))
    assert error is not None
    assert error.retry_after == 7
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert retry_after_seconds("Thu, 01 Jan 2026 00:01:00 GMT", now=now) == 60
    assert retry_after_seconds("999999999") == 3600
    assert retry_after_seconds("Wed, 31 Dec 2025 00:00:00 GMT", now=now) == 0
    for odd in (None, "", "soon", "-1", "1e9", "\N{SUPERSCRIPT TWO}"):
        assert retry_after_seconds(odd) is None


def test_a_problem_document_names_the_field_and_the_code() -> None:
    error = errors.InvalidSpecError([Problem("spec.x", "is -1", "write 0 or more")])
    answer = problem_document(error, instance="/requests/1")
    assert answer.status == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.body["code"] == "invalid_spec"
    assert answer.body["instance"] == "/requests/1"
    assert answer.body["errors"] == [
        {"field": "spec.x", "problem": "is -1", "fix": "write 0 or more"}
    ]


def test_a_problem_document_tells_when_to_come_back() -> None:
    answer = problem_document(errors.LimitError("slow down", retry_after=1.2))
    assert answer.headers["Retry-After"] == "2"
    assert problem_document(errors.AuthenticationError("x")).headers["WWW-Authenticate"]


@pytest.mark.parametrize(
    "error",
    [ValueError("hunter2"), errors.BugError("hunter2"), errors.DatabaseQueryError("hunter2")],
)
def test_what_nobody_foresaw_is_not_shown(error: Exception) -> None:
    answer = problem_document(error)
    assert answer.status == 500
    assert "hunter2" not in str(answer.body)
    assert "hunter2" not in command_outcome(error).text


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (
            errors.RedisUnavailableError("Error 111 connecting to redis.internal:6379"),
            "Redis does not answer, is loading its data, or is failing over",
        ),
        (
            errors.ConflictError(
                "WatchError: key at redis.internal:6379", context={"library": "redis"}
            ),
            "The object changed since it was read; read it again and retry",
        ),
        (
            errors.DependencyError("https://10.0.0.1:6443/api: connection refused"),
            "An external system (Redis, the API server) did not answer or answered with a failure",
        ),
    ],
)
def test_a_problem_document_repeats_no_text_of_an_external_system(
    error: errors.EngineroomError, detail: str
) -> None:
    assert problem_document(error).body["detail"] == detail
    assert str(error) in command_outcome(error).text


def test_exit_codes_are_those_of_the_command_line() -> None:
    from engineroom.cli.errors import ExitCode

    outcome = command_outcome(errors.LimitError("slow down", retry_after=3))
    assert outcome.exit_code == ExitCode.PROBLEM
    assert "slow down [limit_reached]" in outcome.text
    assert "in 3 s" in outcome.text
    for kind, code in (
        (errors.PermissionDeniedError, ExitCode.FORBIDDEN),
        (errors.AuthenticationError, ExitCode.FORBIDDEN),
        (errors.MissingError, ExitCode.NOT_FOUND),
        (errors.RedisUnavailableError, ExitCode.UNREACHABLE),
        (errors.ConflictError, ExitCode.PROBLEM),
    ):
        assert command_outcome(kind("x")).exit_code == code
    wrong = errors.InvalidInputError([Problem("a", "is b", "write c")])
    assert command_outcome(wrong).exit_code == ExitCode.USAGE
    assert "a: is b; write c" in command_outcome(wrong).text
    assert command_outcome(ValueError("x")).exit_code == ExitCode.PROBLEM


def test_a_job_is_retried_or_set_aside_by_its_error() -> None:
    assert job_outcome(errors.TransientError("x"), retries_left=1).fate is JobFate.RETRY
    assert job_outcome(errors.LimitError("x", retry_after=9), retries_left=1).delay == 9
    assert job_outcome(errors.TransientError("x"), retries_left=0).fate is JobFate.DEAD_LETTER
    assert job_outcome(errors.PermanentError("x"), retries_left=9).fate is JobFate.DEAD_LETTER
    assert job_outcome(ValueError("x"), retries_left=1).fate is JobFate.RETRY
