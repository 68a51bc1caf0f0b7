"""Verdicts as HTTP: one decision in the forms of nginx, Traefik, Envoy and programs."""

from __future__ import annotations

import math
import random
import secrets
from typing import TYPE_CHECKING, NamedTuple

import orjson

from engineroom.ratelimit.limits.decision import ADMITTED, LIMITED, DecisionReason
from engineroom.ratelimit.limits.middleware import JITTER, limit_headers, refusal
from engineroom.ratelimit.limits.model import HeaderStyle
from engineroom.ratelimit.service.engine import MissingPolicy
from engineroom.ratelimit.service.request_parsing import ProxyProtocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engineroom.ratelimit.limits.decision import Decision
    from engineroom.ratelimit.service.engine import DecisionResult, EnforcedPolicy

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
    MissingPolicy.UNKNOWN: (
        404,
        "the policy does not exist; its name may be misspelt, or it was not accepted",
    ),
    MissingPolicy.UNREAD: (503, "the policies were not read yet"),
}
_ADMITTED = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"
_DRAFT = HeaderStyle.DRAFT
_PLAIN_OK = _ADMITTED + b"\r\n"


def response(
    status: int, headers: Sequence[tuple[str, str]], body: bytes, *, close: bool = False
) -> bytes:
    """Return a complete HTTP response."""
    lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, 'Refused')}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers]
    lines.append(f"Content-Length: {len(body)}\r\n")
    if close:
        lines.append("Connection: close\r\n")
    lines.append("\r\n")
    return "".join(lines).encode("latin-1") + body


def problem(status: int, detail: str, *, close: bool = False) -> bytes:
    """Return a response with a problem document (RFC 9457)."""
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


def to_proxy(form: ProxyProtocol, result: DecisionResult) -> tuple[int, bytes]:
    """Return status and response for a proxy."""
    decision, enforced = result.decision, result.enforced
    if decision is None or enforced is None:
        if result.missing is None or result.missing is MissingPolicy.UNATTACHED:
            return 200, _PLAIN_OK
        status, detail = _MISSING[result.missing]
        if form is ProxyProtocol.NGINX:
            # nginx turns statuses other than 401 and 403 into 500.
            return 403, _for_nginx(status, [])
        return status, problem(status, detail)
    if decision.allowed:
        return 200, admission_response(enforced, decision)
    if decision.reason is LIMITED and decision.retry_after is not None:
        return _refusal_with_wait(form, enforced, decision, decision.retry_after)
    policy = enforced.policy
    style = policy.response.headers
    status, headers, body = refusal(policy, decision, style, secrets.randbelow)
    return _refusal(form, status, headers, body)


def unreadable(form: ProxyProtocol, detail: str) -> tuple[int, bytes]:
    """Return status and response for an invalid request of a proxy."""
    if form is ProxyProtocol.NGINX:
        return 403, _for_nginx(400, [])
    return 400, problem(400, detail)


class _Limited(NamedTuple):
    """A refusal with Retry-After, without the random part of that."""

    status: int
    before: bytes
    after: bytes
    #: Seconds of the random part.
    spread: int


def _refusal_with_wait(
    form: ProxyProtocol, enforced: EnforcedPolicy, decision: Decision, wait: float
) -> tuple[int, bytes]:
    """Return a refusal with Retry-After, cached except for the random part."""
    needed = math.ceil(wait) or 1
    key = (form, decision.limit, decision.remaining, needed)
    parts: _Limited | None = enforced.refusals.get(key)
    if parts is None:
        parts = enforced.cache_refusal(key, _parts(form, enforced, decision, needed))
    status, before, after, spread = parts
    # The value spreads retries and protects nothing, so that a fast generator suffices.
    later = needed + int(random.random() * spread)  # noqa: S311
    return status, b"%sRetry-After: %d\r\n%s" % (before, later, after)


def _parts(
    form: ProxyProtocol, enforced: EnforcedPolicy, decision: Decision, needed: int
) -> _Limited:
    policy = enforced.policy
    status, response_bytes = _refusal(
        form, *refusal(policy, decision, policy.response.headers, lambda _: 0)
    )
    before, _, after = response_bytes.partition(f"Retry-After: {needed}\r\n".encode())
    return _Limited(status, before, after, max(2, math.ceil(needed * JITTER) + 1))


def _refusal(
    form: ProxyProtocol, status: int, headers: Sequence[tuple[str, str]], body: bytes
) -> tuple[int, bytes]:
    if form is ProxyProtocol.NGINX:
        kept_headers = [pair for pair in headers if not pair[0].startswith("Content-")]
        return 403, _for_nginx(status, kept_headers)
    return status, response(status, headers[:-1], body)


def admission_response(enforced: EnforcedPolicy, decision: Decision) -> bytes:
    """Return the response for an admitted request, with headers that report what is left."""
    policy = enforced.policy
    style = policy.response.headers
    if style is _DRAFT and decision.reason is ADMITTED:
        before = enforced.admissions.get(decision.limit)
        if before is None:
            before = enforced.admissions[decision.limit] = _admission(enforced, decision.limit)
        return b"%s%d;t=%d\r\n\r\n" % (before, decision.remaining, math.ceil(decision.reset))
    headers = limit_headers(policy, decision, style)
    return response(200, headers, b"") if headers else _PLAIN_OK


def _admission(enforced: EnforcedPolicy, name: str) -> bytes:
    """Return the beginning of every admission by a limit."""
    headers = f'RateLimit-Policy: {enforced.header}\r\nRateLimit: "{name}";r='
    return _ADMITTED + headers.encode("latin-1")


def decided(result: DecisionResult) -> tuple[int, bytes]:
    """Return status and response of ``/v1/decide``: 200 for any decision."""
    decision = result.decision
    if decision is None:
        if result.missing is None or result.missing is MissingPolicy.UNATTACHED:
            return 200, _json({"allowed": True, "reason": DecisionReason.NOT_LIMITED.value})
        status, detail = _MISSING[result.missing]
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


def explained(explanation: dict[str, object] | MissingPolicy) -> tuple[int, bytes]:
    """Return status and response of ``/v1/explain``."""
    if not isinstance(explanation, MissingPolicy):
        return 200, _json(explanation)
    if explanation is MissingPolicy.UNATTACHED:
        return 200, _json({"policy": None, "allowed": True, "limits": []})
    status, detail = _MISSING[explanation]
    return status, problem(status, detail)


def charged(tokens: dict[str, int] | MissingPolicy | None) -> tuple[int, bytes]:
    """Return status and response of ``/v1/charge``."""
    if tokens is None:
        return 503, problem(503, "Redis did not take the tokens")
    if isinstance(tokens, MissingPolicy) and tokens is not MissingPolicy.UNATTACHED:
        status, detail = _MISSING[tokens]
        return status, problem(status, detail)
    return 200, _json({"charged": {} if isinstance(tokens, MissingPolicy) else tokens})


def _json(document: object) -> bytes:
    body = orjson.dumps(document)
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _for_nginx(status: int, headers: Sequence[tuple[str, str]]) -> bytes:
    """Return 403 with the status for the client in a header."""
    return response(403, [("X-RateLimit-Status", str(status)), *headers], b"")
