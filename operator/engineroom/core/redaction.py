"""Redaction of secrets by key and by pattern, for logs and errors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from engineroom.core.text_redaction import REDACTED, redact_text

__all__ = ["REDACTED", "hides", "is_secret_key", "redact", "redact_object", "redact_text"]

#: Keys with secret values, as lower-case words joined by ``_``.
_SECRET_KEYS = frozenset(
    {
        "access_key",
        "api_key",
        "apikey",
        "auth",
        "authorization",
        "client_key",
        "client_key_data",
        "connection_string",
        "cookie",
        "credentials",
        "csrf",
        "dsn",
        "passphrase",
        "passwd",
        "password",
        "private_key",
        "pwd",
        "refresh",
        "secret_data",
        "secret_key",
        "secret_value",
        "session_id",
        "session_key",
        "set_cookie",
        "signature",
        "string_data",
        "token",
    }
)
#: ``secret`` alone is not listed: its value is the name of a Secret, as that of ``secretName``.
_SECRET_SUFFIXES = tuple(
    f"_{word}"
    for word in (
        "access_key", "api_key", "connection_string", "cookie", "credentials", "dsn", "passphrase",
        "passwd", "password", "private_key", "pwd", "secret", "secret_key", "secret_value",
        "session_id", "token",
    )
)  # fmt: skip
#: Keys with a secret's suffix whose values only name a source.
_NO_SECRETS = frozenset({"service_account_token", "automount_service_account_token"})
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9]+")

#: Characters of a key that are examined, from its end.
_MAX_KEY = 200
#: Values nested deeper are written as their type; logs are not dumps.
_MAX_DEPTH = 6


def is_secret_key(key: str) -> bool:
    """Return whether values under ``key`` are secret.

    ``accessToken``, ``access-token`` and ``ACCESS_TOKEN`` are the same key. A domain in front, as
    in annotations, is ignored.
    """
    name = _WORD.sub("_", key[-_MAX_KEY:].rpartition("/")[2]).strip("_").lower()
    if name in _NO_SECRETS:
        return False
    return name in _SECRET_KEYS or name.endswith(_SECRET_SUFFIXES)


def hides(key: str, value: object) -> bool:
    """Return whether ``value`` is secret; an empty value or a boolean is not."""
    return bool(value) and not isinstance(value, bool) and is_secret_key(key)


def redact(value: object, depth: int = 0) -> object:
    """Return a copy of ``value`` that is safe to log: secrets replaced, bytes as their length."""
    if isinstance(value, str):
        return redact_text(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | bytearray):
        return f"<{len(value)} bytes>"
    if depth >= _MAX_DEPTH:
        return f"<{type(value).__name__}>"
    if isinstance(value, Mapping):
        return {
            str(key): REDACTED if hides(str(key), item) else redact(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item, depth + 1) for item in value]
    return redact_text(str(value))


#: Maps in which ``env`` is an ordinary key.
_LABELS = frozenset({"labels", "matchLabels", "annotations", "nodeSelector"})
_FLAG = re.compile(r"--?([A-Za-z][\w.-]*)")


def redact_object(value: Any, under: str = "") -> Any:
    """Return a Kubernetes object, or a part of one, without secrets and with the same shape.

    Environment variables keep names and references and lose all values. Copies of the object in
    annotations are redacted too. ``under`` is the key of the part.
    """
    if isinstance(value, str):
        return _redact_string(value)
    if isinstance(value, list):
        return _redact_list(value)
    if not isinstance(value, dict):
        return value
    redacted = {}
    for key, item in value.items():
        if key == "env" and not (under in _LABELS and isinstance(item, str)):
            redacted[key] = _redact_environment(item)
        elif hides(key, item):
            redacted[key] = REDACTED
        else:
            redacted[key] = redact_object(item, key)
    return redacted


def _redact_list(values: list[Any]) -> list[Any]:
    """Redact a list, which may be a command line: an item after ``--password`` is secret."""
    redacted: list[Any] = []
    hide = False
    for item in values:
        redacted.append(REDACTED if hide and isinstance(item, str) else redact_object(item))
        flag = _FLAG.fullmatch(item) if isinstance(item, str) else None
        hide = flag is not None and is_secret_key(flag[1])
    return redacted


def _redact_string(text: str) -> str:
    """Redact a string; if it is JSON, redact the value in it."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            return json.dumps(redact_object(json.loads(text)), ensure_ascii=False)
        except (ValueError, RecursionError):
            # Perhaps a truncated copy of an object, so the places of its secrets are unknown.
            return REDACTED if '"env"' in text else redact_text(text)
    return redact_text(text)


def _redact_environment(value: Any) -> Any:
    if isinstance(value, list):
        return [_redact_variable(item) for item in value]
    if isinstance(value, dict):
        return {key: _redact_value(item) for key, item in value.items()}
    return _redact_value(value)


def _redact_variable(value: Any) -> Any:
    if not isinstance(value, dict):
        return _redact_value(value)
    redacted = {}
    for key, item in value.items():
        if key == "name" and isinstance(item, str):
            redacted[key] = redact_text(item)
        elif key == "valueFrom" and isinstance(item, dict):
            redacted[key] = redact_object(item)
        else:
            redacted[key] = _redact_value(item)
    return redacted


def _redact_value(value: Any) -> Any:
    return value if value is None or value == "" or isinstance(value, bool) else REDACTED
