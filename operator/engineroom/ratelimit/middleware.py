"""ASGI and WSGI middleware: refuses with 429 before the application is asked, and says what is
left in the headers of every answer."""

from __future__ import annotations

import json
import math
import secrets
from typing import TYPE_CHECKING, Any

from engineroom.ratelimit.decision import Reason
from engineroom.ratelimit.model import HeaderStyle
from engineroom.ratelimit.sources import RequestView, subject_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    from engineroom.ratelimit.decision import Decision
    from engineroom.ratelimit.limiter import AsyncLimiter, Limiter
    from engineroom.ratelimit.model import Policy

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    AsgiApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
    WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

#: Retry-After is later than needed by up to this share of it and at least a second, at random, so
#: that those who were refused together do not come back together.
JITTER = 0.1
#: "Try again later", before a WebSocket is accepted: servers answer the handshake with 403.
_TRY_AGAIN_LATER = 1013
_QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"
_PHRASES = {400: "Bad Request", 429: "Too Many Requests", 503: "Service Unavailable"}


def policy_header(policy: Policy) -> str:
    """RateLimit-Policy: each limit's requests and period.

    The header counts in whole seconds. A period that is none is rounded up with its requests
    scaled to it, rounded down to at least 1; it is never rounded to zero.
    """
    items = []
    for limit in policy.limits:
        window = max(1, math.ceil(limit.rate.period_us / 1_000_000))
        quota = limit.rate.requests * window * 1_000_000 // limit.rate.period_us
        items.append(f'"{limit.name}";q={max(1, quota)};w={window}')
    return ", ".join(items)


def limit_headers(policy: Policy, decision: Decision, style: HeaderStyle) -> list[tuple[str, str]]:
    """Headers that say what is left, by the limit that decided."""
    if style is HeaderStyle.NONE or decision.reason is Reason.NOT_LIMITED:
        return []
    wait = decision.retry_after if not decision.allowed else decision.reset
    seconds = max(0, math.ceil(wait or 0))
    if style is HeaderStyle.DRAFT:
        left = f'"{decision.limit}";r={decision.remaining}'
        # Without a moment from which on it would be admitted there is no t to give.
        left += "" if wait is None else f";t={seconds}"
        return [("RateLimit-Policy", policy_header(policy)), ("RateLimit", left)]
    return [
        ("X-RateLimit-Limit", str(decision.quota)),
        ("X-RateLimit-Remaining", str(decision.remaining)),
        ("X-RateLimit-Reset", str(seconds)),
    ]


def status_of(decision: Decision) -> int:
    """HTTP status of a refusal: 429; 503 for FailedClosed, 400 for MissingKey."""
    if decision.reason is Reason.FAILED_CLOSED:
        return 503
    return 400 if decision.reason is Reason.MISSING_KEY else 429


def refusal(
    policy: Policy, decision: Decision, style: HeaderStyle, jitter: Callable[[int], int]
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers and problem document (RFC 9457) of a refusal.

    ``jitter`` gives a random whole number from 0 to below its argument.
    """
    status = status_of(decision)
    headers = [("Content-Type", "application/problem+json"), ("Cache-Control", "no-store")]
    document: dict[str, object] = {"type": "about:blank", "title": _PHRASES[status]}
    if status == 429:
        document["type"] = _QUOTA_EXCEEDED
        document["violated-policies"] = [decision.limit]
        headers += limit_headers(policy, decision, style)
    if decision.retry_after is not None:
        needed = max(1, math.ceil(decision.retry_after))
        after = needed + jitter(max(2, math.ceil(needed * JITTER) + 1))
        headers.append(("Retry-After", str(after)))
        detail = f"limit {decision.limit}: try again in {needed} s"
    elif decision.reason is Reason.MISSING_KEY:
        detail = f"limit {decision.limit}: the request lacks what it is counted by"
    else:
        detail = f"limit {decision.limit}: costs more than is ever admitted at once"
    if status == 503:
        detail = "requests cannot be counted at present"
    document |= {"status": status, "detail": detail}
    body = json.dumps(document).encode()
    headers.append(("Content-Length", str(len(body))))
    return status, headers, body


class AsgiRateLimit:
    """ASGI middleware for HTTP requests and WebSocket handshakes.

    ``trusted_proxy_hops`` is how many proxies in front append to X-Forwarded-For; ``cost`` may
    say what a request costs, 1 unless given.
    """

    def __init__(
        self,
        app: AsgiApp,
        limiter: AsyncLimiter,
        *,
        headers: HeaderStyle = HeaderStyle.DRAFT,
        trusted_proxy_hops: int = 0,
        cost: Callable[[RequestView], int] | None = None,
        jitter: Callable[[int], int] = secrets.randbelow,
    ) -> None:
        self._app = app
        self._limiter = limiter
        self._style = headers
        self._hops = _hops(trusted_proxy_hops)
        self._cost = cost
        self._jitter = jitter

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Decide, then answer or pass on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request = _asgi_view(scope, self._hops)
        policy = self._limiter.policy
        cost = 1 if self._cost is None else self._cost(request)
        decision = await self._limiter.hit(subject_of(policy, request), cost)
        if not decision.allowed:
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER})
                return
            status, headers, body = refusal(policy, decision, self._style, self._jitter)
            start = {"type": "http.response.start", "status": status, "headers": _raw(headers)}
            await send(start)
            await send({"type": "http.response.body", "body": body})
            return
        added = _raw(limit_headers(policy, decision, self._style))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        await self._app(scope, receive, send_with_headers if added else send)


class WsgiRateLimit:
    """WSGI middleware; see AsgiRateLimit."""

    def __init__(
        self,
        app: WsgiApp,
        limiter: Limiter,
        *,
        headers: HeaderStyle = HeaderStyle.DRAFT,
        trusted_proxy_hops: int = 0,
        cost: Callable[[RequestView], int] | None = None,
        jitter: Callable[[int], int] = secrets.randbelow,
    ) -> None:
        self._app = app
        self._limiter = limiter
        self._style = headers
        self._hops = _hops(trusted_proxy_hops)
        self._cost = cost
        self._jitter = jitter

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Decide, then answer or pass on."""
        request = _wsgi_view(environ, self._hops)
        policy = self._limiter.policy
        cost = 1 if self._cost is None else self._cost(request)
        decision = self._limiter.hit(subject_of(policy, request), cost)
        if not decision.allowed:
            status, headers, body = refusal(policy, decision, self._style, self._jitter)
            start_response(f"{status} {_PHRASES[status]}", headers)
            return [body]
        added = limit_headers(policy, decision, self._style)

        def start_with_headers(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            return start_response(status, [*headers, *added], *more)

        return self._app(environ, start_with_headers)


def _hops(hops: int) -> int:
    if isinstance(hops, bool) or not isinstance(hops, int) or not 0 <= hops <= 32:
        raise ValueError(f"trusted_proxy_hops: {hops!r} is not from 0 to 32; 0 trusts no proxy")
    return hops


def _raw(headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("ascii"), value.encode("latin-1")) for name, value in headers]


def _asgi_view(scope: MutableMapping[str, Any], hops: int) -> RequestView:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope.get("headers", ()):
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        joint = "; " if name == "cookie" else ","
        headers[name] = f"{headers[name]}{joint}{value}" if name in headers else value
    client = scope.get("client")
    return RequestView(
        method=scope.get("method", "GET"),
        path=scope["path"],
        query=scope.get("query_string", b"").decode("latin-1"),
        headers=headers,
        peer=client[0] if client else "",
        trusted_proxy_hops=hops,
    )


def _wsgi_view(environ: dict[str, Any], hops: int) -> RequestView:
    headers = {
        name[5:].replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers[name.replace("_", "-").lower()] = environ[name]
    return RequestView(
        method=environ.get("REQUEST_METHOD", "GET"),
        path=environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""),
        query=environ.get("QUERY_STRING", ""),
        headers=headers,
        peer=environ.get("REMOTE_ADDR", ""),
        trusted_proxy_hops=hops,
    )
