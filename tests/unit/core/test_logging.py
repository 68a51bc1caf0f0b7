"""Logs: JSON, constant messages, and no secrets whatever is thrown at them."""

from __future__ import annotations

import importlib
import io
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from engineroom.core.logging import (
    REDACTED,
    REPEAT_SECONDS,
    REPEATED,
    configure,
    get_logger,
    redact,
    redact_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_json_with_message_keys_level_logger_and_time() -> None:
    stream = io.StringIO()
    configure("INFO", "json", stream)
    get_logger("engineroom.x").info("pool scaled", pool="shop/mail", replicas=3)
    get_logger("engineroom.x").debug("not this")
    (line,) = lines(stream)
    assert line["event"] == "pool scaled"
    assert (line["pool"], line["replicas"]) == ("shop/mail", 3)
    assert (line["level"], line["logger"]) == ("info", "engineroom.x")
    assert line["timestamp"].endswith("Z")


def test_other_libraries_leave_by_the_same_door() -> None:
    stream = io.StringIO()
    configure("INFO", "json", stream)
    logging.getLogger("kopf").warning("to %s", "redis://u:hunter2@host/0", extra={"token": "t"})
    (line,) = lines(stream)
    assert line["event"] == f"to redis://{REDACTED}@host/0"
    assert line["token"] == REDACTED


def test_tracebacks_are_redacted_too() -> None:
    stream = io.StringIO()
    configure("INFO", "json", stream)
    try:
        int("cannot reach rediss://app:hunter2@redis:6379/1")
    except ValueError:
        get_logger("x").exception("failed")
    text = stream.getvalue()
    assert "hunter2" not in text
    assert "ValueError" in text
    assert "redis:6379" in text


def test_a_terminal_gets_readable_text() -> None:
    stream = io.StringIO()
    configure("INFO", "console", stream)
    get_logger("x").info("pool scaled", pool="shop/mail")
    assert "pool scaled" in stream.getvalue()
    assert "pool=shop/mail" in stream.getvalue()


class Stop(BaseException):
    """Ends a main where it sets up logging."""


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("engineroom.main", "ENGINEROOM_LOG_REPEAT"),
        ("engineroom.console.main", "ENGINEROOM_LOG_REPEAT"),
        ("engineroom.ratelimit.service.main", "ENGINEROOM_LIMITER_LOG_REPEAT"),
        ("engineroom_webhooks.__main__", "ENGINEROOM_WEBHOOKS_LOG_REPEAT"),
        ("engineroom.relay", ""),
    ],
)
def test_every_process_writes_no_message_for_ever(
    module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[object] = []

    def configured(*_: object, repeat: object = None, **__: object) -> None:
        found.append(repeat)
        raise Stop

    made = importlib.import_module(module)
    monkeypatch.setattr(getattr(made, "logging", made), "configure", configured, raising=False)
    monkeypatch.setattr(made, "configure", configured, raising=False)
    monkeypatch.setattr("sys.argv", ["process"])
    with pytest.raises(Stop):
        made.main()
    if name:
        monkeypatch.setenv(name, "7")
    else:
        monkeypatch.setattr("sys.argv", ["process", "--log-repeat", "7"])
    with pytest.raises(Stop):
        made.main()
    assert found == [(REPEATED, REPEAT_SECONDS), (7, REPEAT_SECONDS)]


@pytest.mark.parametrize(
    "text",
    [
        "redis://:hunter2@host:6379/0",
        "rediss://user:hunter2@host",
        "redis://user:hunt@hunter2@host",
        "postgresql+psycopg://user:hunter2@host/db and more",
        "Authorization: Bearer hunter2hunter2",
        "basic aHVudGVyMjpodW50ZXIy hunter"[:30],
        "password=hunter2",
        "AUTH failed: 'password': 'hunter2'",
        '{"token":"hunter2"}',
        "api_key: hunter2",
        "DB_PWD=hunter2 worker",
        "--access-key=hunter2",
        "aws_secret_access_key = hunter2",
        '{"clientSecret": "hunter2"}',
        "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nhunter2 cut off",
    ],
)
def test_credentials_in_text_are_removed(text: str) -> None:
    cleaned = redact_text(text)
    assert "hunter2" not in cleaned
    assert "aHVudGVy" not in cleaned


@pytest.mark.parametrize(
    "text",
    [
        "redis://host:6379/0",
        "https://example.org/a?b=c",
        "secret shop/redis has no key url",
        "SecretNotFound",
        "7 workers: 840 waiting x 0.25 s each within 30 s",
        "user@example.org",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact_text(text) == text


def test_values_under_secret_keys_are_removed_at_any_depth() -> None:
    value = {
        "url": "redis://u:p@h",
        "nested": [{"Password": "p", "redis_token": "t", "set-cookie": "c"}],
        "key": "shop/mail",
        "secret": "shop/redis-url",
        "token": "",
        "data": b"bytes",
        "none": None,
    }
    assert redact(value) == {
        "url": f"redis://{REDACTED}@h",
        "nested": [{"Password": REDACTED, "redis_token": REDACTED, "set-cookie": REDACTED}],
        "key": "shop/mail",
        "secret": "shop/redis-url",
        "token": "",
        "data": "<5 bytes>",
        "none": None,
    }


@pytest.mark.parametrize(
    "key",
    [
        "client_secret", "clientSecret", "OIDC_CLIENT_SECRET", "accessToken", "refreshToken",
        "refresh", "secret_key", "secretKey", "aws_secret_access_key", "AWSSecretAccessKey",
        "access_key", "accessKey", "pwd", "dbPwd", "csrf", "csrfToken", "X-CSRF-Token",
        "session_id", "sessionId", "connection_string", "connectionString", "databaseDSN",
        "example.com/token", "DB_PASSWORD", "db.password", "apiKey", "bootstrapPassphrase",
        "sessionCookie", "registryCredentials",
    ],
)  # fmt: skip
def test_keys_by_which_secrets_go(key: str) -> None:
    assert redact({key: "hunter2"}) == {key: REDACTED}


@pytest.mark.parametrize(
    "key",
    [
        "secret", "secretName", "secretKeyRef", "secretRef", "secret_name", "imagePullSecrets",
        "serviceAccountToken", "automountServiceAccountToken", "key", "keys", "idempotency_key",
        "uniqueKey", "session", "handle", "tokens", "refreshed", "refresh_interval", "author",
        "accessModes", "tokenExpirationSeconds", "passwords_directory",
    ],
)  # fmt: skip
def test_keys_that_only_sound_like_it(key: str) -> None:
    assert redact({key: "shop/mail"}) == {key: "shop/mail"}


def test_whether_there_is_a_secret_is_no_secret() -> None:
    assert redact({"password": True, "token": None}) == {"password": True, "token": None}


def test_endless_values_come_to_an_end() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert "<list>" in str(redact(loop))
