"""What must not be written, by key and by pattern; logs and errors both go through here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"

#: Keys whose values are never written, their words in lower case and joined by ``_``.
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
#: ``secret`` alone is no secret: it holds the name of one, as ``secretName`` does.
_SECRET_SUFFIXES = tuple(
    f"_{word}"
    for word in (
        "access_key", "api_key", "connection_string", "cookie", "credentials", "dsn", "passphrase",
        "passwd", "password", "private_key", "pwd", "secret", "secret_key", "secret_value",
        "session_id", "token",
    )
)  # fmt: skip
#: They end like secrets, and say only where one comes from.
_NO_SECRETS = frozenset({"service_account_token", "automount_service_account_token"})
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9]+")

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # scheme://user:password@host, also with an empty user, and with an "@" inside the password
    (re.compile(r"\b([a-z][a-z0-9+.-]*://)[^\s/?#'\"]*@", re.IGNORECASE), rf"\1{REDACTED}@"),
    (re.compile(r"\b(bearer|basic)\s+[a-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1 {REDACTED}"),
    # API keys of Engineroom's own
    (re.compile(r"\berk_[\w-]{8,}"), REDACTED),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), REDACTED),
    (
        re.compile(
            r"((?:password|passwd|pwd|secret|token|(?:api|access|secret)[_-]?key)['\"]?\s*[=:]\s*"
            r"['\"]?)[^\s'\",&;)}\]]+",
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

#: Characters of a key that are looked at, from its end.
_MAX_KEY = 200
#: Deeper than this a value is written as its type; logs are not dumps.
_MAX_DEPTH = 6


def redact_text(text: str) -> str:
    """``text`` without credentials: user info of URLs, bearer tokens, JWTs, ``password=...``."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def is_secret_key(key: str) -> bool:
    """Whether the value under ``key`` must not be written.

    Spellings are one: ``accessToken``, ``access-token`` and ``ACCESS_TOKEN``; of a key with a
    domain, as annotations have them, what stands behind it counts.
    """
    name = _WORD.sub("_", key[-_MAX_KEY:].rpartition("/")[2]).strip("_").lower()
    if name in _NO_SECRETS:
        return False
    return name in _SECRET_KEYS or name.endswith(_SECRET_SUFFIXES)


def hides(key: str, value: object) -> bool:
    """Whether ``value`` must not be written; whether there is a secret may be told."""
    return bool(value) and not isinstance(value, bool) and is_secret_key(key)


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
            str(key): REDACTED if hides(str(key), item) else redact(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item, depth + 1) for item in value]
    return redact_text(str(value))


#: Where a text under ``env`` is a word like any other.
_LABELS = frozenset({"labels", "matchLabels", "annotations", "nodeSelector"})
_FLAG = re.compile(r"--?([A-Za-z][\w.-]*)")


def redact_object(value: Any, under: str = "") -> Any:
    """A Kubernetes object, or a part of one, to be shown: its shape stays, its secrets do not.

    Of an environment names and references are shown, and no value whatever its shape; copies of the
    object in annotations are treated as it is. ``under`` is the key that the part stands under.
    """
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        return _listed(value)
    if not isinstance(value, dict):
        return value
    found = {}
    for key, item in value.items():
        if key == "env" and not (under in _LABELS and isinstance(item, str)):
            found[key] = _environment(item)
        elif hides(key, item):
            found[key] = REDACTED
        else:
            found[key] = redact_object(item, key)
    return found


def _listed(values: list[Any]) -> list[Any]:
    """A list, which may be a command line: what follows on ``--password`` is one."""
    found: list[Any] = []
    hide = False
    for item in values:
        found.append(REDACTED if hide and isinstance(item, str) else redact_object(item))
        flag = _FLAG.fullmatch(item) if isinstance(item, str) else None
        hide = flag is not None and is_secret_key(flag[1])
    return found


def _text(text: str) -> str:
    """A text without credentials; where it is JSON, as that which it says."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            return json.dumps(redact_object(json.loads(text)), ensure_ascii=False)
        except (ValueError, RecursionError):
            # A copy of an object that was cut, perhaps; nothing tells where its secrets begin.
            return REDACTED if '"env"' in text else redact_text(text)
    return redact_text(text)


def _environment(value: Any) -> Any:
    if isinstance(value, list):
        return [_variable(each) for each in value]
    if isinstance(value, dict):
        return {key: _hidden(each) for key, each in value.items()}
    return _hidden(value)


def _variable(value: Any) -> Any:
    if not isinstance(value, dict):
        return _hidden(value)
    found = {}
    for key, item in value.items():
        if key == "name" and isinstance(item, str):
            found[key] = redact_text(item)
        elif key == "valueFrom" and isinstance(item, dict):
            found[key] = redact_object(item)
        else:
            found[key] = _hidden(item)
    return found


def _hidden(value: Any) -> Any:
    return value if value is None or value == "" or isinstance(value, bool) else REDACTED
