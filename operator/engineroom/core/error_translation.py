"""Translation of library errors into EngineroomErrors, once, at the edge, with the cause kept.

An edge puts ``wrapped()`` around the call::

    with wrapped("redis"):
        await redis.get(key)

Errors are recognised by the names of their classes, so this module imports no library. An
EngineroomError passes unchanged. So does any error of a library that is not listed here: a bug must
look like a bug.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from engineroom.core import errors
from engineroom.core.redaction import redact_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engineroom.core.errors import EngineroomError

#: Most characters kept of a library's message.
MAX_TEXT = 300
#: Longest accepted Retry-After in seconds; longer ones are cut.
MAX_RETRY_AFTER = 3600.0


@contextmanager
def wrapped(operation: str = "") -> Iterator[None]:
    """Raise library errors of the block as EngineroomError; works around ``await`` too.

    ``operation`` is a constant name for logs, stored as ``context["operation"]``.
    """
    try:
        yield
    except Exception as error:
        translated = wrap(error, operation=operation)
        if translated is None or translated is error:
            raise
        raise translated from error


def wrap(error: BaseException, *, operation: str = "") -> EngineroomError | None:
    """Return the EngineroomError for a library's error, or None for an unknown error.

    An EngineroomError is returned as it is. The message is shortened, without credentials;
    ``__cause__`` is the library's error.
    """
    if isinstance(error, errors.EngineroomError):
        return error
    names = [f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__]
    families = {name.partition(".")[0] for name in names}
    for family, translate in _FAMILIES.items():
        if family in families:
            kind, context, retry_after = translate(error, names)
            break
    else:
        if isinstance(error, TimeoutError):
            kind, context, retry_after = errors.TimeLimitError, {}, None
        elif isinstance(error, ConnectionError):
            kind, context, retry_after = errors.DependencyError, {}, None
        else:
            return None
    context = {"library": type(error).__module__.partition(".")[0], **context}
    if operation:
        context["operation"] = operation
    translated = kind(describe(error), context=context, retry_after=retry_after)
    translated.__cause__ = error
    return translated


def describe(error: BaseException) -> str:
    """Return one line about a library's error: its type, and its message without credentials."""
    text = " ".join(redact_text(str(error)).split())[:MAX_TEXT]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


_Translation = tuple[type["EngineroomError"], dict[str, Any], float | None]


def _first(names: list[str], table: dict[str, type[EngineroomError]]) -> Any:
    """Return the entry of the most derived class that has one."""
    return next((table[name] for name in names if name in table), None)


def _redis(error: BaseException, names: list[str]) -> _Translation:
    text = str(error)
    if "maxmemory" in text or text.startswith("OOM"):
        return errors.RedisFullError, {}, None
    word = text.partition(" ")[0]
    if word in {"LOADING", "MASTERDOWN", "CLUSTERDOWN", "READONLY", "TRYAGAIN", "BUSY"}:
        return errors.RedisUnavailableError, {"answer": word}, None
    if word in {"NOAUTH", "WRONGPASS", "NOPERM"}:
        return errors.RedisRefusedError, {"answer": word}, None
    kind = _first(
        names,
        {
            "redis.AuthenticationError": errors.RedisRefusedError,
            "redis.AuthorizationError": errors.RedisRefusedError,
            "redis.NoPermissionError": errors.RedisRefusedError,
            "redis.OutOfMemoryError": errors.RedisFullError,
            "redis.BusyLoadingError": errors.RedisUnavailableError,
            "redis.ReadOnlyError": errors.RedisUnavailableError,
            "redis.ClusterDownError": errors.RedisUnavailableError,
            "redis.WatchError": errors.ConflictError,
            "redis.LockError": errors.ConflictError,
            "redis.ConnectionError": errors.RedisUnavailableError,
            "redis.TimeoutError": errors.RedisUnavailableError,
        },
    )
    return kind or errors.RedisCommandError, {}, None


def _postgres(error: BaseException, names: list[str]) -> _Translation:
    original = getattr(error, "orig", None)  # SQLAlchemy keeps the driver's error there
    source = original if isinstance(original, BaseException) else error
    state = str(getattr(source, "sqlstate", "") or getattr(source, "pgcode", "") or "")
    context: dict[str, Any] = {"sqlstate": state} if state else {}
    constraint = getattr(getattr(source, "diag", None), "constraint_name", None)
    if constraint:
        context["constraint"] = constraint
    if state in {"40001", "40P01", "55P03"}:
        return errors.DatabaseConflictError, context, None
    if state == "57014":
        return errors.TimeLimitError, context, None
    if state.startswith("23"):
        return errors.IntegrityError, context, None
    if state.startswith("28") or state == "42501":
        return errors.DatabaseRefusedError, context, None
    if state.startswith(("08", "53", "57P", "58")):
        return errors.DatabaseUnavailableError, context, None
    if not state and any(name.endswith((".OperationalError", ".PoolTimeout")) for name in names):
        if re.search(r"authentication failed|role .* does not exist", str(source)):
            return errors.DatabaseRefusedError, context, None
        return errors.DatabaseUnavailableError, context, None
    if not state and any(name.endswith(".TimeoutError") for name in names):
        return errors.DatabaseUnavailableError, context, None
    return errors.DatabaseQueryError, context, None


def _http(error: BaseException, names: list[str]) -> _Translation:
    response = getattr(error, "response", None)
    status: Any = getattr(response, "status_code", None)
    headers: Any = getattr(response, "headers", None)
    if status is None:  # aiohttp and urllib keep both on the error itself
        status = getattr(error, "status", None) or getattr(error, "code", None)
        headers = getattr(error, "headers", None)
    if isinstance(status, int) and status >= 100:
        return from_http_status(status, (headers or {}).get("Retry-After"))
    if any(name.endswith((".InvalidURL", ".UnsupportedProtocol")) for name in names):
        return errors.UpstreamRefusedError, {}, None
    return errors.UpstreamUnavailableError, {}, None


def from_http_status(status: int, retry_after: str | None = None) -> _Translation:
    """Return class, context and seconds to wait for a failed response of an HTTP service."""
    context = {"status": status}
    seconds = retry_after_seconds(retry_after)
    if status == 429:
        return errors.UpstreamThrottledError, context, seconds
    if status in {408, 425} or status >= 500:
        return errors.UpstreamUnavailableError, context, seconds
    return errors.UpstreamRefusedError, context, None


def retry_after_seconds(value: str | None, *, now: datetime | None = None) -> float | None:
    """Return the seconds of a Retry-After header (RFC 9110 10.2.3), at most ``MAX_RETRY_AFTER``.

    Returns None for a missing or invalid header.
    """
    if not value:
        return None
    text = value.strip()
    if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        return min(float(text), MAX_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    wait = (moment - (now or datetime.now(UTC))).total_seconds()
    return min(max(wait, 0.0), MAX_RETRY_AFTER)


def _rq(_error: BaseException, names: list[str]) -> _Translation:
    kind = _first(
        names,
        {
            "rq.NoSuchJobError": errors.JobMissingError,
            "rq.NoSuchExecutionError": errors.JobMissingError,
            "rq.JobTimeoutException": errors.JobTimedOutError,
            "rq.BaseTimeoutException": errors.JobTimedOutError,
        },
    )
    return kind or errors.JobInvalidError, {}, None


def _smtp(error: BaseException, names: list[str]) -> _Translation:
    code: Any = getattr(error, "smtp_code", None)
    if "smtplib.SMTPRecipientsRefused" in names:
        answers = getattr(error, "recipients", {}).values()
        code = max((answer[0] for answer in answers), default=550)
    context = {"smtp_code": code} if isinstance(code, int) else {}
    if isinstance(code, int) and code >= 500:
        return errors.MailRefusedError, context, None
    if "smtplib.SMTPNotSupportedError" in names:
        return errors.MailRefusedError, context, None
    return errors.MailUnavailableError, context, None


#: Translators by top-level package, matched against every class in the error's MRO.
_FAMILIES: dict[str, Callable[[BaseException, list[str]], _Translation]] = {
    "redis": _redis,
    "psycopg": _postgres,
    "psycopg_pool": _postgres,
    "sqlalchemy": _postgres,
    "httpx": _http,
    "httpcore": _http,
    "requests": _http,
    "urllib3": _http,
    "aiohttp": _http,
    "urllib": _http,
    "rq": _rq,
    "smtplib": _smtp,
}
