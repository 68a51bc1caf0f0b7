"""Verdicts as HTTP: the same decision in the forms that nginx, Traefik, Envoy and programs want."""

from __future__ import annotations

import math
import random
import secrets
from typing import TYPE_CHECKING, NamedTuple

import orjson

from engineroom.ratelimit.limits.decision import ADMITTED, LIMITED, DecisionReason
from engineroom.ratelimit.limits.middleware import JITTER, limit_headers, refusal
from engineroom.ratelimit.limits.model import HeaderStyle
from engineroom.ratelimit.service.engine import Missing
from engineroom.ratelimit.service.request_parsing import Form

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engineroom.ratelimit.limits.decision import Decision
    from engineroom.ratelimit.service.engine import Enforced, Verdict

_PHRASES = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}
_MISSING = {
    Missing.UNKNOWN: (404, "there is no such policy; it may be misspelt, or not accepted"),
    Missing.UNREAD: (503, "the policies were not read yet"),
}
_ADMITTED = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"
_DRAFT = HeaderStyle.DRAFT
_PLAIN_OK = _ADMITTED + b"\r\n"


def response(
    status: int, headers: Sequence[tuple[str, str]], body: bytes, *, close: bool = False
) -> bytes:
    """A whole answer."""
    lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, 'Refused')}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers]
    lines.append(f"Content-Length: {len(body)}\r\n")
    if close:
        lines.append("Connection: close\r\n")
    lines.append("\r\n")
    return "".join(lines).encode("latin-1") + body


def problem(status: int, detail: str, *, close: bool = False) -> bytes:
    """A problem document (RFC 9457) of the service's own."""
    body = orjson.dumps(
        {
            "type": "about:blank",
            "title": _PHRASES.get(status, "Refused"),
            "status": status,
            "detail": detail,
        }
    )
    headers = (("Content-Type", "application/problem+json"), ("Cache-Control", "no-store"))
    return response(status, headers, body, close=close)


def to_proxy(form: Form, verdict: Verdict) -> tuple[int, bytes]:
    """Status and answer for a proxy."""
    decision, enforced = verdict.decision, verdict.enforced
    if decision is None or enforced is None:
        if verdict.missing is None or verdict.missing is Missing.UNATTACHED:
            return 200, _PLAIN_OK
        status, detail = _MISSING[verdict.missing]
        if form is Form.NGINX:
            # Anything but 401 and 403 would reach the client as 500.
            return 403, _for_nginx(status, [])
        return status, problem(status, detail)
    if decision.allowed:
        return 200, admitted(enforced, decision)
    if decision.reason is LIMITED and decision.retry_after is not None:
        return _limited(form, enforced, decision, decision.retry_after)
    policy = enforced.policy
    style = policy.response.headers
    status, headers, body = refusal(policy, decision, style, secrets.randbelow)
    return _refused(form, status, headers, body)


def unreadable(form: Form, detail: str) -> tuple[int, bytes]:
    """Status and answer for a proxy that asks what cannot be understood."""
    if form is Form.NGINX:
        return 403, _for_nginx(400, [])
    return 400, problem(400, detail)


class _Limited(NamedTuple):
    """A refusal that can be tried again, but for the random part of its Retry-After."""

    status: int
    before: bytes
    after: bytes
    #: Retry-After is up to so many seconds later than it need be.
    spread: int


def _limited(form: Form, enforced: Enforced, decision: Decision, wait: float) -> tuple[int, bytes]:
    """A refusal that can be tried again: made once, but for the random part of Retry-After."""
    needed = math.ceil(wait) or 1
    key = (form, decision.limit, decision.remaining, needed)
    known: _Limited | None = enforced.refusals.get(key)
    if known is None:
        known = enforced.keep(key, _parts(form, enforced, decision, needed))
    status, before, after, spread = known
    # It spreads retries and guards nothing, so what is quick is enough.
    later = needed + int(random.random() * spread)  # noqa: S311
    return status, b"%sRetry-After: %d\r\n%s" % (before, later, after)


def _parts(form: Form, enforced: Enforced, decision: Decision, needed: int) -> _Limited:
    policy = enforced.policy
    told = refusal(policy, decision, policy.response.headers, lambda _: 0)
    status, answer = _refused(form, *told)
    before, _, after = answer.partition(f"Retry-After: {needed}\r\n".encode())
    return _Limited(status, before, after, max(2, math.ceil(needed * JITTER) + 1))


def _refused(
    form: Form, status: int, headers: Sequence[tuple[str, str]], body: bytes
) -> tuple[int, bytes]:
    if form is Form.NGINX:
        told = [each for each in headers if not each[0].startswith("Content-")]
        return 403, _for_nginx(status, told)
    return status, response(status, headers[:-1], body)


def admitted(enforced: Enforced, decision: Decision) -> bytes:
    """The answer to a request that may pass, with what is left in its headers."""
    policy = enforced.policy
    style = policy.response.headers
    if style is _DRAFT and decision.reason is ADMITTED:
        before = enforced.admissions.get(decision.limit)
        if before is None:
            before = enforced.admissions[decision.limit] = _admission(enforced, decision.limit)
        return b"%s%d;t=%d\r\n\r\n" % (before, decision.remaining, math.ceil(decision.reset))
    headers = limit_headers(policy, decision, style)
    return response(200, headers, b"") if headers else _PLAIN_OK


def _admission(enforced: Enforced, name: str) -> bytes:
    """What every admission by a limit begins with."""
    told = f'RateLimit-Policy: {enforced.header}\r\nRateLimit: "{name}";r='
    return _ADMITTED + told.encode("latin-1")


def decided(verdict: Verdict) -> tuple[int, bytes]:
    """Status and answer of ``/v1/decide``: 200 with the decision, whatever it is."""
    decision = verdict.decision
    if decision is None:
        if verdict.missing is None or verdict.missing is Missing.UNATTACHED:
            return 200, _json({"allowed": True, "reason": DecisionReason.NOT_LIMITED.value})
        status, detail = _MISSING[verdict.missing]
        return status, problem(status, detail)
    return 200, _json(
        {
            "allowed": decision.allowed,
            "reason": decision.reason.value,
            "policy": decision.policy,
            "limit": decision.limit,
            "quota": decision.quota,
            "remaining": decision.remaining,
            "retryAfter": decision.retry_after,
            "reset": decision.reset,
            "source": decision.source.value,
            "shadowed": decision.shadowed,
        }
    )


def explained(found: dict[str, object] | Missing) -> tuple[int, bytes]:
    """Status and answer of ``/v1/explain``."""
    if not isinstance(found, Missing):
        return 200, _json(found)
    if found is Missing.UNATTACHED:
        return 200, _json({"policy": None, "allowed": True, "limits": []})
    status, detail = _MISSING[found]
    return status, problem(status, detail)


def charged(found: dict[str, int] | Missing | None) -> tuple[int, bytes]:
    """Status and answer of ``/v1/charge``."""
    if found is None:
        return 503, problem(503, "Redis did not take it")
    if isinstance(found, Missing) and found is not Missing.UNATTACHED:
        status, detail = _MISSING[found]
        return status, problem(status, detail)
    return 200, _json({"charged": {} if isinstance(found, Missing) else found})


def _json(document: object) -> bytes:
    body = orjson.dumps(document)
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _for_nginx(status: int, headers: Sequence[tuple[str, str]]) -> bytes:
    """403 whatever it is, with the status that the client is to have in a header."""
    return response(403, [("X-RateLimit-Status", str(status)), *headers], b"")
