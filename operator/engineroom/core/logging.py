"""Logs: a constant message plus keys, as JSON in pods and readable on a terminal, never a secret.

Everything that logs through the standard library (Kopf, aiohttp, redis) leaves by the same door.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, Literal

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

REDACTED = "[redacted]"

LogFormat = Literal["auto", "json", "console"]

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


def _redact_event(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Structlog processor; runs last but one, when tracebacks are text already."""
    for key, value in event.items():
        if key.startswith("_"):
            continue  # structlog's own record and format marks
        event[key] = REDACTED if is_secret_key(key) and value else redact(value)
    return event


def configure(
    level: str = "INFO",
    style: LogFormat = "auto",
    stream: IO[str] | None = None,
) -> None:
    """Set up logging for the process; may be called again.

    ``style`` "auto" is readable text on a terminal and JSON anywhere else. ``stream`` defaults to
    standard error.
    """
    out = stream if stream is not None else sys.stderr
    console = style == "console" or (style == "auto" and out.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=out.isatty())
        if console
        else structlog.processors.JSONRenderer()
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _redact_event,
            renderer,
        ],
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module; ``name`` is its ``__name__``."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
