"""ASGI and WSGI middleware: refuses requests with 429 before the application runs.

Headers of every response report what is left.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from engineroom.ratelimit.limits.decision import DecisionReason
from engineroom.ratelimit.limits.model import HeaderStyle
from engineroom.ratelimit.limits.paths import normalized
from engineroom.ratelimit.limits.request import UNKNOWN_CALLER, Caller, RequestView
from engineroom.ratelimit.limits.sources import response_costs, subject_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    from engineroom.ratelimit.limits.decision import Decision
    from engineroom.ratelimit.limits.limiter import AsyncLimiter, Limiter
    from engineroom.ratelimit.limits.model import Policy

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    #: Called with each decision and the seconds that it took.
    Observe = Callable[[Decision, float], None]
    AsgiApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
    WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_App = TypeVar("_App")
_AnyLimiter = TypeVar("_AnyLimiter", "AsyncLimiter", "Limiter")

#: Retry-After is longer than needed by a random part of up to this share, and of up to a second at
#: least, so that clients that were refused together do not return together.
JITTER = 0.1
#: Close code "try again later"; before a WebSocket is accepted, servers answer 403.
_TRY_AGAIN_LATER = 1013
_QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"


def phrase(status: int) -> str:
    """Return the reason phrase of a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Refused"


def policy_header(policy: Policy, decided: str = "") -> str:
    """Return the header RateLimit-Policy: each limit's requests and period.

    The header counts in whole seconds. Another period is rounded up, and its requests are scaled
    with it and rounded down to at least 1. A tier is listed instead of its limit if it ``decided``.
    """
    items = []
    for limit in policy.effective_limits:
        name = limit.name
        if name != decided and ("/" in name or decided.startswith(f"{name}/")):
            continue
        window = max(1, math.ceil(limit.rate.period_us / 1_000_000))
        quota = limit.rate.requests * window * 1_000_000 // limit.rate.period_us
        items.append(f'"{limit.name}";q={max(1, quota)};w={window}')
    return ", ".join(items)


def limit_headers(policy: Policy, decision: Decision, style: HeaderStyle) -> list[tuple[str, str]]:
    """Return the headers that report what is left of the limit that decided."""
    if style is HeaderStyle.NONE or decision.reason is DecisionReason.NOT_LIMITED:
        return []
    wait = decision.retry_after if not decision.allowed else decision.reset
    seconds = max(0, math.ceil(wait or 0))
    if style is HeaderStyle.DRAFT:
        left = f'"{decision.limit}";r={decision.remaining}'
        # A request that is never admitted has no time t.
        left += "" if wait is None else f";t={seconds}"
        return [("RateLimit-Policy", policy_header(policy, decision.limit)), ("RateLimit", left)]
    return [
        ("X-RateLimit-Limit", str(decision.quota)),
        ("X-RateLimit-Remaining", str(decision.remaining)),
        ("X-RateLimit-Reset", str(seconds)),
    ]


def status_of(decision: Decision, status: int = 429) -> int:
    """Return the HTTP status of a refusal; ``status`` unless the reason has one of its own."""
    if decision.reason is DecisionReason.FAILED_CLOSED:
        return 503
    return 400 if decision.reason is DecisionReason.MISSING_KEY else status


def refusal(
    policy: Policy, decision: Decision, style: HeaderStyle, jitter: Callable[[int], int]
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Return status, headers and problem document (RFC 9457) of a refusal.

    ``jitter`` returns a random whole number from 0 to below its argument.
    """
    status = status_of(decision, policy.response.status)
    headers = [("Content-Type", "application/problem+json"), ("Cache-Control", "no-store")]
    document: dict[str, object] = {"type": "about:blank", "title": phrase(status)}
    if decision.reason in (DecisionReason.LIMITED, DecisionReason.COST_ABOVE_BURST):
        document["type"] = _QUOTA_EXCEEDED
        document["violated-policies"] = [decision.limit]
        headers += limit_headers(policy, decision, style)
    if decision.retry_after is not None:
        needed = max(1, math.ceil(decision.retry_after))
        after = needed + jitter(max(2, math.ceil(needed * JITTER) + 1))
        headers.append(("Retry-After", str(after)))
        detail = f"limit {decision.limit}: try again in {needed} s"
    elif decision.reason is DecisionReason.MISSING_KEY:
        detail = f"limit {decision.limit}: the request lacks a part of the limit's key"
    else:
        detail = f"limit {decision.limit}: the cost is above what is ever admitted at once"
    if decision.reason is DecisionReason.FAILED_CLOSED:
        detail = "requests cannot be counted at the moment"
    document |= {"status": status, "detail": detail}
    body = json.dumps(document).encode()
    headers.append(("Content-Length", str(len(body))))
    return status, headers, body


class _RateLimit(Generic[_App, _AnyLimiter]):
    """The options of a middleware."""

    def __init__(
        self,
        app: _App,
        limiter: _AnyLimiter,
        *,
        headers: HeaderStyle | None = None,
        trusted_proxy_hops: int | None = None,
        cost: Callable[[RequestView], int] | None = None,
        caller: Callable[[MutableMapping[str, Any]], Caller] | None = None,
        observe: Observe | None = None,
        jitter: Callable[[int], int] = secrets.randbelow,
    ) -> None:
        policy = limiter.policy
        self._app: _App = app
        self._limiter: _AnyLimiter = limiter
        self._style = policy.response.headers if headers is None else headers
        hops = policy.trusted_proxy_hops if trusted_proxy_hops is None else trusted_proxy_hops
        self._hops = _check_hops(hops)
        self._cost = cost
        self._caller = caller
        self._observe = observe
        self._jitter = jitter
        self._charges = any(limit.response_cost for limit in policy.limits)


class AsgiRateLimit(_RateLimit["AsgiApp", "AsyncLimiter"]):
    """ASGI middleware for HTTP requests and WebSocket handshakes.

    ``trusted_proxy_hops`` is the number of proxies in front that append to X-Forwarded-For, and
    ``headers`` the style of the headers that report what is left; both default to the policy's.
    ``cost`` returns the cost of a request [1]. ``caller`` returns the tenant, route and claims of a
    scope (of the environ in WSGI). ``observe`` is called with each decision and the seconds that it
    took; ``prometheus.PrometheusDecisions`` turns them into metrics.
    """

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Decide, then refuse the request or pass it on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        caller = UNKNOWN_CALLER if self._caller is None else self._caller(scope)
        request = _asgi_view(scope, self._hops, caller)
        policy = self._limiter.policy
        cost = 1 if self._cost is None else self._cost(request)
        subject = subject_of(policy, request)
        start = 0.0 if self._observe is None else time.perf_counter()
        decision = await self._limiter.hit(subject, cost)
        if self._observe is not None:
            self._observe(decision, time.perf_counter() - start)
        if not decision.allowed:
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER})
                return
            status, headers, body = refusal(policy, decision, self._style, self._jitter)
            response = {"type": "http.response.start", "status": status, "headers": _raw(headers)}
            await send(response)
            await send({"type": "http.response.body", "body": body})
            return
        added = _raw(limit_headers(policy, decision, self._style))

        costs: dict[str, int] = {}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                if self._charges:
                    costs.update(response_costs(policy, _join_headers(message.get("headers", ()))))
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers if added or self._charges else send)
        finally:
            if costs:
                await self._limiter.charge(subject, costs)


class WsgiRateLimit(_RateLimit["WsgiApp", "Limiter"]):
    """WSGI middleware; see AsgiRateLimit."""

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Decide, then refuse the request or pass it on."""
        caller = UNKNOWN_CALLER if self._caller is None else self._caller(environ)
        request = _wsgi_view(environ, self._hops, caller)
        policy = self._limiter.policy
        cost = 1 if self._cost is None else self._cost(request)
        subject = subject_of(policy, request)
        start = 0.0 if self._observe is None else time.perf_counter()
        decision = self._limiter.hit(subject, cost)
        if self._observe is not None:
            self._observe(decision, time.perf_counter() - start)
        if not decision.allowed:
            status, headers, body = refusal(policy, decision, self._style, self._jitter)
            start_response(f"{status} {phrase(status)}", headers)
            return [body]
        added = limit_headers(policy, decision, self._style)
        charges = self._charges

        def start_with_headers(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            nonlocal charges
            if charges:
                by_name = {name.lower(): value for name, value in headers}
                costs = response_costs(policy, by_name)
                if costs:
                    # WSGI allows a second call, with an error; the work was done once.
                    charges = False
                    self._limiter.charge(subject, costs)
            return start_response(status, [*headers, *added], *more)

        return self._app(environ, start_with_headers)


def _check_hops(hops: int) -> int:
    if isinstance(hops, bool) or not isinstance(hops, int) or not 0 <= hops <= 32:
        raise ValueError(f"trusted_proxy_hops: {hops!r} is not from 0 to 32; 0 trusts no proxy")
    return hops


def _raw(headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("ascii"), value.encode("latin-1")) for name, value in headers]


def _join_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        separator = "; " if name == "cookie" else ","
        headers[name] = f"{headers[name]}{separator}{value}" if name in headers else value
    return headers


def _asgi_view(scope: MutableMapping[str, Any], hops: int, caller: Caller) -> RequestView:
    headers = _join_headers(scope.get("headers", ()))
    client = scope.get("client")
    view = RequestView(
        method=scope.get("method", "GET"),
        path=scope["path"],
        query=scope.get("query_string", b"").decode("latin-1"),
        headers=headers,
        peer=client[0] if client else "",
        trusted_proxy_hops=hops,
        tenant=caller.tenant,
        route=caller.route,
        claims=caller.claims,
    )
    return normalized(view, decoded=True)


def _wsgi_view(environ: dict[str, Any], hops: int, caller: Caller) -> RequestView:
    headers = {
        name[5:].replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers[name.replace("_", "-").lower()] = environ[name]
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    if not path.isascii():
        # WSGI represents bytes as Latin-1.
        path = path.encode("latin-1", "replace").decode("utf-8", "replace")
    view = RequestView(
        method=environ.get("REQUEST_METHOD", "GET"),
        path=path,
        query=environ.get("QUERY_STRING", ""),
        headers=headers,
        peer=environ.get("REMOTE_ADDR", ""),
        trusted_proxy_hops=hops,
        tenant=caller.tenant,
        route=caller.route,
        claims=caller.claims,
    )
    return normalized(view, decoded=True)
