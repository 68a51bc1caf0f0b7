"""Middleware for applications that a RateLimitPolicy selects by their labels.

Each request is limited by the current version of the oldest policy whose selector matches the
application's labels; without such a policy it is not limited. Unlike with
``limits.middleware`` the application declares no limits itself.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from engineroom.ratelimit.distribution.document import NO_POLICIES
from engineroom.ratelimit.distribution.policy_follower import AsyncFollower, Follower
from engineroom.ratelimit.distribution.policy_limiters import AsyncLimiters, Limiters
from engineroom.ratelimit.limits.decision import Decision, DecisionReason, DecisionSource
from engineroom.ratelimit.limits.middleware import AsgiRateLimit, WsgiRateLimit, phrase, refusal
from engineroom.ratelimit.limits.model import HeaderStyle, Limit, Policy, Rate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, MutableMapping

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

    from engineroom.ratelimit.distribution.document import CompiledPolicy, PolicySnapshot
    from engineroom.ratelimit.limits.middleware import AsgiApp, Observe, Receive, Send, WsgiApp
    from engineroom.ratelimit.limits.request import Caller

#: The refusal of requests while the policies are unknown.
_UNKNOWN_POLICY = Policy("unknown", (Limit("unknown", Rate(1)),))
_UNKNOWN = Decision(
    False, DecisionReason.FAILED_CLOSED, "unknown", "unknown", 1, 0, 1.0, 0.0, DecisionSource.POLICY
)


class _PolicySelector:
    """Selects the policy for an application's labels, once per snapshot."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = dict(labels)
        self._selected: tuple[PolicySnapshot, CompiledPolicy | None] = NO_POLICIES, None

    def of(self, policies: PolicySnapshot) -> CompiledPolicy | None:
        selected = self._selected
        if selected[0] is not policies:
            selected = self._selected = policies, policies.for_labels(self._labels)
        return selected[1]


class AsgiPolicies:
    """ASGI middleware that enforces the policy of a namespace that ``labels`` select.

    It follows the policies from the lifespan's start, or from the first request, until the
    lifespan's end. With ``refuse_unknown`` requests get 503 until policies were read for the first
    time; otherwise such requests are not limited. ``caller`` returns the tenant, route and claims
    of a scope, and ``observe`` is called with each decision; see AsgiRateLimit. Raises ValueError
    for labels that are too long.
    """

    def __init__(
        self,
        app: AsgiApp,
        redis: AsyncRedis,
        namespace: str,
        labels: Mapping[str, str],
        *,
        refuse_unknown: bool = False,
        caller: Callable[[MutableMapping[str, Any]], Caller] | None = None,
        observe: Observe | None = None,
    ) -> None:
        self._app = app
        self._refuse_unknown = refuse_unknown
        self._caller = caller
        self._observe = observe
        self._follower = AsyncFollower(redis, namespace, labels=labels)
        self._limiters = AsyncLimiters(self._follower, redis)
        self._selector = _PolicySelector(labels)
        self._middleware: tuple[object, AsgiRateLimit] | None = None
        self._started = False
        self._starting = asyncio.Lock()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Decide by the current policy, then refuse the request or pass it on."""
        if scope["type"] == "lifespan":
            await self._start()
            try:
                await self._app(scope, receive, send)
            finally:
                await self.close()
            return
        if not self._started:
            await self._start()
        compiled = self._selector.of(self._follower.current)
        if compiled is not None:
            await self._of(compiled)(scope, receive, send)
        elif self._follower.synced or not self._refuse_unknown or scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            if self._observe is not None:
                self._observe(_UNKNOWN, 0.0)
            status, headers, body = refusal(_UNKNOWN_POLICY, _UNKNOWN, HeaderStyle.NONE, _half)
            raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
            await send({"type": "http.response.start", "status": status, "headers": raw})
            await send({"type": "http.response.body", "body": body})

    async def close(self) -> None:
        """Return leases, sign off, close the connections."""
        if self._started:
            self._started = False
            await self._limiters.close()
            await self._follower.close()

    async def _start(self) -> None:
        async with self._starting:
            if not self._started:
                await self._follower.__aenter__()
                self._started = True

    def _of(self, compiled: CompiledPolicy) -> AsgiRateLimit:
        limiter = self._limiters.of(compiled)
        current = self._middleware
        if current is None or current[0] is not limiter:
            middleware = AsgiRateLimit(
                self._app, limiter, caller=self._caller, observe=self._observe
            )
            current = self._middleware = limiter, middleware
        return current[1]


class WsgiPolicies:
    """WSGI middleware that enforces the policy of a namespace that ``labels`` select.

    It follows the policies in a thread of its own, from the first request of the process; call
    ``close`` at the end. See AsgiPolicies.
    """

    def __init__(
        self,
        app: WsgiApp,
        redis: Redis,
        namespace: str,
        labels: Mapping[str, str],
        *,
        refuse_unknown: bool = False,
        caller: Callable[[MutableMapping[str, Any]], Caller] | None = None,
        observe: Observe | None = None,
    ) -> None:
        self._app = app
        self._refuse_unknown = refuse_unknown
        self._caller = caller
        self._observe = observe
        self._follower = Follower(redis, namespace, labels=labels)
        self._limiters = Limiters(self._follower, redis)
        self._selector = _PolicySelector(labels)
        self._middleware: tuple[object, WsgiRateLimit] | None = None
        self._started = False
        self._starting = threading.Lock()

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Decide by the current policy, then refuse the request or pass it on."""
        with self._starting:
            if not self._started:
                self._follower.__enter__()
                self._started = True
        compiled = self._selector.of(self._follower.current)
        if compiled is not None:
            limiter = self._limiters.of(compiled)
            current = self._middleware
            if current is None or current[0] is not limiter:
                middleware = WsgiRateLimit(
                    self._app, limiter, caller=self._caller, observe=self._observe
                )
                current = self._middleware = limiter, middleware
            return current[1](environ, start_response)
        if self._follower.synced or not self._refuse_unknown:
            return self._app(environ, start_response)
        if self._observe is not None:
            self._observe(_UNKNOWN, 0.0)
        status, headers, body = refusal(_UNKNOWN_POLICY, _UNKNOWN, HeaderStyle.NONE, _half)
        start_response(f"{status} {phrase(status)}", headers)
        return [body]

    def close(self) -> None:
        """Return leases, sign off, close the connections."""
        with self._starting:
            if self._started:
                self._started = False
                self._limiters.close()
                self._follower.close()


def _half(below: int) -> int:
    """Return half of a number, as a fixed jitter."""
    return below // 2
