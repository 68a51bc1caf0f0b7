"""The application: authenticate -> authorise -> limit -> validate -> handle -> audit, every route.

Made from the table of routes, as its document is; a handler is never reached by another way.
"""

from __future__ import annotations

import json
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from structlog.contextvars import get_contextvars

from engineroom.auth.audit.log import Entry, Outcome
from engineroom.auth.errors import CsrfError
from engineroom.auth.login.lockout import address_key
from engineroom.auth.middleware import SECURITY_HEADERS, AuthMiddleware, problem, who
from engineroom.auth.permissions import Access
from engineroom.console.metrics import TAKEN, ApiMetrics, Measured
from engineroom.console.rest import idempotency
from engineroom.console.rest.errors import MediaTypeError, MethodNotAllowedError
from engineroom.console.rest.routing import BASE, PATH_PARAMETERS, Answer, Call, Nothing
from engineroom.core import tracing
from engineroom.core.context import RequestContext
from engineroom.core.error_responses import problem_document
from engineroom.core.errors import (
    AuthenticationError,
    EngineroomError,
    InvalidInputError,
    LimitError,
    MissingError,
    PermissionDeniedError,
    Problem,
    TooLargeError,
)
from engineroom.core.logging import get_logger
from engineroom.core.recovery import ONCE, Recovery
from engineroom.core.validation.models import read_body, read_query
from engineroom.core.validation.requests import RequestLimits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from engineroom.auth.permissions import Principal
    from engineroom.console.rest.routing import Route
    from engineroom.console.services import Services
    from engineroom.core.validation.requests import Limits

log = get_logger(__name__)

#: Answers that a repeated request may get again; of others nothing was done, or not for good.
_KEPT_STATUS = frozenset({200, 201, 202, 204, 404, 409, 412, 422})
#: Refused before the body was read to its end.
_UNREAD = frozenset({408, 413, 431})
#: Bytes of a body that anybody may send who did not sign in; others have the limit of ``Limits``.
STRANGERS_BODY = 64 * 1024
_REPLAYED = "idempotent-replayed"
_JSON = "application/json"


def application(
    services: Callable[[], AbstractAsyncContextManager[Services]],
    routes: Sequence[Route],
    limits: Limits,
    metrics: ApiMetrics | None = None,
) -> Starlette:
    """The ASGI application over ``routes``; ``services`` are opened with it and closed with it."""
    counted = metrics or ApiMetrics()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with services() as opened:
            app.state.services = opened
            yield

    async def missing(request: Request, _error: Exception) -> Response:
        path = request.url.path[:200]
        return refusal(MissingError(f"{path}: there is nothing; see {BASE}/docs"))

    async def wrong_method(request: Request, _error: Exception) -> Response:
        told = f"{request.method[:20]}: is not what {request.url.path[:200]} takes"
        answer = refusal(MethodNotAllowedError(f"{told}; see {BASE}/docs"))
        allowed = sorted({r.method for r in routes if _matches(r, request.url.path)})
        answer.headers["allow"] = ", ".join(allowed)
        return answer

    return Starlette(
        routes=[
            StarletteRoute(path, _endpoint(by_method), methods=list(by_method))
            for path, by_method in _by_path(routes).items()
        ],
        middleware=[
            Middleware(Measured, metrics=counted),
            Middleware(RequestContext),
            Middleware(RequestLimits, limits=limits, headers=SECURITY_HEADERS),
            Middleware(_Authenticated, routes=routes),
        ],
        exception_handlers={404: missing, 405: wrong_method},
        lifespan=lifespan,
    )


class _Authenticated:
    """``AuthMiddleware`` with the authenticator of the services, which open after it is made."""

    def __init__(self, app: Any, routes: Sequence[Route]) -> None:
        self._app = app
        self._routes = routes
        self._public = {(r.method, r.path) for r in routes if r.needs is Access.PUBLIC}
        self._made: AuthMiddleware | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if self._made is None:
            self._made = AuthMiddleware(
                self._app,
                scope["app"].state.services.authenticator,
                public=lambda scope: (scope.get("method"), scope["path"]) in self._public,
                address=scope["app"].state.services.address_of,
                on_refused=self._refused,
            )
        await self._made(scope, receive, send)

    async def _refused(self, scope: Any, error: EngineroomError) -> None:
        """A change with somebody's cookie and without its token goes to the audit log as well."""
        if not isinstance(error, CsrfError) or error.session is None:
            return
        session, method, path = error.session, scope["method"], scope["path"]
        found = (r for r in self._routes if r.method == method and _matches(r, path))
        route = next(found, None)
        if route is None:
            return
        services: Services = scope["app"].state.services
        entry = Entry(
            who=session.subject,
            action=route.action,
            target=f"{route.tag}{path}"[:1000],
            outcome=Outcome.DENIED,
            how=f"session {session.handle}",
            reason=f"{error.code}: {error}",
            request=str(get_contextvars().get("request_id", "")),
            address=services.address(Request(scope)),
        )
        try:
            # No more of them than of any other requests of his.
            if (await services.limiter.hit(f"caller:{session.subject}", route.cost)).allowed:
                await services.audit.write(entry)
        except EngineroomError as failure:
            _unkept(failure)


def _by_path(routes: Sequence[Route]) -> dict[str, dict[str, Route]]:
    found: dict[str, dict[str, Route]] = {}
    for route in routes:
        if route.method in found.setdefault(route.path, {}):
            raise TypeError(f"{route.method} {route.path}: is declared twice")
        found[route.path][route.method] = route
    return found


def _matches(route: Route, path: str) -> bool:
    pattern = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(route.path))
    return re.fullmatch(pattern, path) is not None


def _endpoint(by_method: dict[str, Route]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        route = by_method.get(request.method) or by_method["GET"]  # HEAD is GET without its body
        request.scope[TAKEN].update(route=route.path, action=route.action)
        services: Services = request.app.state.services
        return await _Run(route, request, services).answer()

    return endpoint


class _Run:
    """One request on its way through the pipeline."""

    def __init__(self, route: Route, request: Request, services: Services) -> None:
        self._route = route
        self._request = request
        self._services = services
        self._caller: Principal | None = who(request)
        self._details: dict[str, str | int | float | bool | None] = {}
        self._place: idempotency.Place | None = None

    async def answer(self) -> Response:
        """The answer, whatever happens."""
        error: Exception | None = None
        try:
            response = await self._through()
        except ClientDisconnect:
            return Response(None, 400)  # gone before its body was here; nobody reads this
        except EngineroomError as known:
            error, response = known, refusal(known)
        except Exception as unknown:
            log.exception("a request failed", method=self._route.method, path=self._route.path)
            error, response = unknown, refusal(unknown)
        try:
            await self._noted(response, error)
        finally:
            # An error holds this frame and what it read, and this frame must not hold it: together
            # they would stay until the next collection.
            del error
        await self._remembered(response)
        return response

    async def _through(self) -> Response:
        route, request, services = self._route, self._request, self._services
        path = _path(route, request)
        tracing.note(name=f"{route.method} {route.path}", http__route=route.path)
        if route.needs is not Access.PUBLIC:
            if self._caller is None:
                raise AuthenticationError(
                    "nobody is signed in; send a token, an API key or sign in"
                )
            if route.needs is not Access.SIGNED_IN:
                await services.authority.demand(self._caller, route.needs, path.get("namespace"))
        await self._limited()
        query = read_query(route.query, request.scope["query_string"])
        raw = await _raw(route, request)
        body = None if route.body is None else read_body(route.body, raw)
        if route.changes and self._caller is not None:
            kept = await self._first(raw)
            if kept is not None:
                return kept
        made = await route.handler(
            Call(request, services, self._caller, path, query, body, self._details)
        )
        if isinstance(made, Response):
            return made
        self._details.update(made.details)
        return _response(route, request, made)

    async def _limited(self) -> None:
        caller, cost = self._caller, self._route.cost
        if caller is None:
            subject = f"address:{address_key(self._services.address(self._request))}"
        elif caller.how == "key":
            # A limit of its own: a program that runs wild does not lock its owner out.
            subject = f"key:{caller.reference}"
            cost = self._services.cost(caller, cost)
        else:
            subject = f"caller:{caller.subject}"
        decision = await self._services.limiter.hit(subject, cost)
        if not decision.allowed:
            raise LimitError(
                "requests: too many in too short a time; wait", retry_after=decision.retry_after
            )

    async def _first(self, raw: bytes) -> Response | None:
        """The kept answer of an earlier request with the same Idempotency-Key."""
        keys = self._request.headers.getlist(idempotency.HEADER)
        if not keys:
            return None
        if len(keys) > 1:
            problem_ = Problem(idempotency.HEADER, f"comes {len(keys)} times", "send it once")
            raise InvalidInputError([problem_])
        assert self._caller is not None  # noqa: S101 - told by the only caller
        url = self._request.url
        said = b"\0".join(
            (self._route.method.encode(), url.path.encode(), url.query.encode(),
             self._request.headers.get("if-match", "").encode("latin-1"), raw)
        )  # fmt: skip
        found = await self._services.idempotency.begin(self._caller.subject, keys[0], said)
        if isinstance(found, idempotency.Place):
            self._place = found
            return None
        return Response(found.body, found.status, {**found.headers, _REPLAYED: "true"})

    async def _remembered(self, response: Response) -> None:
        if self._place is None:
            return
        kept = idempotency.Kept(
            response.status_code,
            {k: v for k, v in response.headers.items() if k in {"content-type", "etag"}},
            bytes(response.body),
        )
        try:
            if kept.status in _KEPT_STATUS:
                secret = self._route.secret and kept.status < 300
                await self._services.idempotency.keep(self._place, kept, secret=secret)
            else:
                await self._services.idempotency.release(self._place)
        except EngineroomError as error:
            log.warning("an answer was not kept", code=error.code, error=str(error))

    async def _noted(self, response: Response, error: Exception | None) -> None:
        """Every change and every attempt at one goes to the audit log."""
        route, caller = self._route, self._caller
        if not route.action or response.headers.get(_REPLAYED):
            return
        # A page that anybody can open with nothing in his hands would fill the log.
        if not route.changes and error is not None and not isinstance(error, PermissionDeniedError):
            return
        # Somebody unknown at a closed door is the sign-in's and the proxy's business; a stream of
        # such requests would push everything else out of the log.
        if caller is None and route.needs is not Access.PUBLIC:
            return
        if isinstance(error, LimitError):
            return
        address = self._services.address(self._request)
        if caller is None and error and self._services.strangers.failed(
            route.action, error, address
        ):  # fmt: skip
            return
        denied = isinstance(error, PermissionDeniedError | AuthenticationError)
        outcome = Outcome.DENIED if denied else Outcome.FAILED if error else Outcome.DONE
        reason = f"{error.code}: {error}" if isinstance(error, EngineroomError) else ""
        path = self._request.path_params
        entry = Entry(
            who=caller.subject if caller else "(nobody)",
            action=route.action,
            target="/".join([route.tag, *(str(value) for value in path.values())])[:1000],
            outcome=outcome,
            how=f"{caller.how} {caller.reference}" if caller else "",
            reason=reason,
            namespace=str(path.get("namespace", "")),
            request=str(get_contextvars().get("request_id", "")),
            address=address,
            details=self._details,
        )
        # Once: a record that is there twice is no better than one that is missing.
        await _RECORDS.call_async(self._services.audit.write, entry, policy=ONCE, fallback=_unkept)


_RECORDS = Recovery("audit")


def _unkept(failure: EngineroomError) -> Any:
    """What was done stays done; the record is on standard output all the same."""
    log.error("the audit log did not take a record", code=failure.code, error=str(failure))


def refusal(error: BaseException) -> Response:
    """The problem document of an error."""
    if isinstance(error, EngineroomError):
        status, headers, body = problem(error)
    else:
        document = problem_document(error)
        status, headers = document.status, document.headers
        body = json.dumps(document.body).encode()
    if status in _UNREAD:
        # The rest of the request is not waited for.
        headers = {**headers, "connection": "close"}
    return Response(body, status, headers)


def _response(route: Route, request: Request, made: Answer) -> Response:
    status = made.status or route.status
    etag = made.headers.get("etag")
    if etag and request.method in {"GET", "HEAD"}:
        asked = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
        if etag in asked or "*" in asked:
            return Response(None, 304, made.headers)
    if made.body is None:
        return Response(None, 204 if status == 200 else status, made.headers)
    body = made.body.model_dump_json(by_alias=True).encode()
    return Response(body, status, {"content-type": route.media, **made.headers})


def _path(route: Route, request: Request) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in route.parameters:
        value = str(request.path_params[name])
        pattern, longest, meaning = PATH_PARAMETERS[name]
        if len(value) > longest or not re.fullmatch(pattern, value):
            told = Problem(f"path.{name}", "has not the form of one", f"write {pattern}: {meaning}")
            raise InvalidInputError([told])
        found[name] = value
    return found


async def _raw(route: Route, request: Request) -> bytes:
    if not route.changes:
        return b""
    raw = await _body(route, request)
    if route.body is None:
        if raw:
            told = Problem("body", "is not expected here", "send none")
            raise InvalidInputError([told])
        return b""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _JSON:
        raise MediaTypeError(f"content-type: is not read here; send {_JSON}")
    return raw


async def _body(route: Route, request: Request) -> bytes:
    """The body; where anybody may send one it is refused at a lower limit than elsewhere."""
    if route.needs is not Access.PUBLIC:
        return await request.body()
    parts: list[bytes] = []
    size = 0
    said = int(request.headers.get("content-length", "0"))  # digits: RequestLimits has looked
    if said <= STRANGERS_BODY:
        async for part in request.stream():
            size += len(part)
            if size > STRANGERS_BODY:
                parts.clear()
                break
            parts.append(part)
    if max(said, size) > STRANGERS_BODY:
        raise TooLargeError(f"the body has over {STRANGERS_BODY} bytes; send less")
    return b"".join(parts)


__all__ = ["Nothing", "application", "refusal"]
