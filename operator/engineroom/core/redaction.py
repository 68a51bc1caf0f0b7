"""What must not be written, by key and by pattern; logs and errors both go through here."""

from __future__ import annotations

import re
from collections.abc import Mapping

REDACTED = "[redacted]"

#: Keys whose values are never written; compared in lower case, ``-`` as ``_``.
_SECRET_KEYS = frozenset(
    {
        "api_key",
        "apikey",
        "auth",
        "authorization",
        "client_key",
        "client_key_data",
        "cookie",
        "credentials",
        "dsn",
        "passphrase",
        "passwd",
        "password",
        "private_key",
        "secret_data",
        "secret_value",
        "session_key",
        "set_cookie",
        "signature",
        "string_data",
        "token",
    }
)
_SECRET_SUFFIXES = ("_password", "_passwd", "_token", "_secret_value", "_api_key", "_private_key")

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # scheme://user:password@host, also with an empty user, and with an "@" inside the password
    (re.compile(r"\b([a-z][a-z0-9+.-]*://)[^\s/?#'\"]*@", re.IGNORECASE), rf"\1{REDACTED}@"),
    (re.compile(r"\b(bearer|basic)\s+[a-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1 {REDACTED}"),
    # API keys of Engineroom's own
    (re.compile(r"\berk_[\w-]{8,}"), REDACTED),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), REDACTED),
    (
        re.compile(
            r"((?:password|passwd|secret|token|api[_-]?key)['\"]?\s*[=:]\s*['\"]?)[^\s'\",&;)}\]]+",
            re.IGNORECASE,
        ),
        rf"\1{REDACTED}",
    ),
    (
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)",
            re.DOTALL,
        ),
        REDACTED,
    ),
)

#: Deeper than this a value is written as its type; logs are not dumps.
_MAX_DEPTH = 6


def redact_text(text: str) -> str:
    """``text`` without credentials: user info of URLs, bearer tokens, JWTs, ``password=...``."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def is_secret_key(key: str) -> bool:
    """Whether the value under ``key`` must not be written, whatever it is."""
    name = key.lower().replace("-", "_")
    return name in _SECRET_KEYS or name.endswith(_SECRET_SUFFIXES)


def redact(value: object, depth: int = 0) -> object:
    """A copy of ``value`` that is safe to write: secrets replaced, bytes by their length."""
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
            str(key): REDACTED if is_secret_key(str(key)) and item else redact(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item, depth + 1) for item in value]
    return redact_text(str(value))
