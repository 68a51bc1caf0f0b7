"""The ASGI application over the route table, and its middleware."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Route as StarletteRoute
from structlog.contextvars import get_contextvars

from engineroom.auth.audit.log import AuditEntry, AuditOutcome
from engineroom.auth.errors import CsrfError
from engineroom.auth.middleware import SECURITY_HEADERS, AuthMiddleware
from engineroom.auth.permissions import Access
from engineroom.console.metrics import ROUTE_INFO, ApiMetrics, MetricsMiddleware
from engineroom.console.rest.errors import MethodNotAllowedError
from engineroom.console.rest.openapi import ApiDocument
from engineroom.console.rest.pipeline import RequestPipeline, log_audit_failure, problem_response
from engineroom.console.rest.routing import BASE
from engineroom.core.context import RequestContext
from engineroom.core.errors import EngineroomError, MissingError
from engineroom.core.validation.requests import RequestLimits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from starlette.responses import Response

    from engineroom.console.rest.routing import Route
    from engineroom.console.services import Services
    from engineroom.core.validation.requests import Limits


def application(
    services: Callable[[], AbstractAsyncContextManager[Services]],
    routes: Sequence[Route],
    limits: Limits,
    metrics: ApiMetrics | None = None,
) -> Starlette:
    """Create the application; its lifespan opens and closes ``services``."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with services() as opened:
            app.state.services = opened
            yield

    async def not_found(request: Request, _error: Exception) -> Response:
        path = request.url.path[:200]
        return problem_response(MissingError(f"{path}: does not exist; see {BASE}/docs"))

    async def method_not_allowed(request: Request, _error: Exception) -> Response:
        method, path = request.method[:20], request.url.path[:200]
        response = problem_response(
            MethodNotAllowedError(f"{method}: {path} does not support it; see {BASE}/docs")
        )
        allowed = sorted({r.method for r in routes if _matches(r, request.url.path)})
        response.headers["allow"] = ", ".join(allowed)
        return response

    app = Starlette(
        routes=[
            StarletteRoute(path, _endpoint(by_method), methods=list(by_method))
            for path, by_method in _by_path(routes).items()
        ],
        middleware=[
            Middleware(MetricsMiddleware, metrics=metrics or ApiMetrics()),
            Middleware(RequestContext),
            Middleware(RequestLimits, limits=limits, headers=SECURITY_HEADERS),
            Middleware(_Authentication, routes=routes),
        ],
        exception_handlers={404: not_found, 405: method_not_allowed},
        lifespan=lifespan,
    )
    # Starlette would redirect /path/ to a URL with the host that the request names.
    app.router.redirect_slashes = False
    app.state.document = ApiDocument(routes)
    return app


class _Authentication:
    """``AuthMiddleware``, created at the first request, when the services are open."""

    def __init__(self, app: Any, routes: Sequence[Route]) -> None:
        self._app = app
        self._routes = routes
        self._public = {(r.method, r.path) for r in routes if r.needs is Access.PUBLIC}
        self._middleware: AuthMiddleware | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if self._middleware is None:
            self._middleware = AuthMiddleware(
                self._app,
                scope["app"].state.services.authenticator,
                headers=SECURITY_HEADERS,
                public=lambda scope: (scope.get("method"), scope["path"]) in self._public,
                address=scope["app"].state.services.address_of_scope,
                on_refused=self._audit_csrf,
            )
        await self._middleware(scope, receive, send)

    async def _audit_csrf(self, scope: Any, error: EngineroomError) -> None:
        """Record a change that was sent with a session's cookie but without its CSRF token."""
        if not isinstance(error, CsrfError) or not error.subject:
            return
        method, path = scope["method"], scope["path"]
        matching = (r for r in self._routes if r.method == method and _matches(r, path))
        route = next(matching, None)
        if route is None:
            return
        services: Services = scope["app"].state.services
        entry = AuditEntry(
            who=error.subject,
            action=route.action,
            target=f"{route.tag}{path}"[:1000],
            outcome=AuditOutcome.DENIED,
            how=f"session {error.session}",
            reason=f"{error.code}: {error}",
            request=str(get_contextvars().get("request_id", "")),
            address=services.address(Request(scope)),
        )
        try:
            # These requests count towards the rate limit of the session's owner.
            if (await services.limiter.hit(f"caller:{error.subject}", route.cost)).allowed:
                await services.audit.write(entry)
        except EngineroomError as failure:
            log_audit_failure(failure)


def _by_path(routes: Sequence[Route]) -> dict[str, dict[str, Route]]:
    paths: dict[str, dict[str, Route]] = {}
    for route in routes:
        if route.method in paths.setdefault(route.path, {}):
            raise TypeError(f"{route.method} {route.path}: is declared twice")
        paths[route.path][route.method] = route
    return paths


def _matches(route: Route, path: str) -> bool:
    pattern = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(route.path))
    return re.fullmatch(pattern, path) is not None


def _endpoint(by_method: dict[str, Route]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        route = by_method.get(request.method) or by_method["GET"]  # HEAD is GET without a body
        request.scope[ROUTE_INFO].update(route=route.path, action=route.action)
        services: Services = request.app.state.services
        return await RequestPipeline(route, request, services).respond()

    return endpoint
