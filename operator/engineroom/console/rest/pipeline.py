"""The steps of every request: authorize, limit, validate, handle, audit.

Every route of the application runs through this pipeline, so no handler runs without these checks.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticSerializationError, to_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from structlog.contextvars import get_contextvars

from engineroom.auth.audit.log import AuditEntry, AuditOutcome
from engineroom.auth.login.lockout import address_key
from engineroom.auth.middleware import current_principal, problem
from engineroom.auth.permissions import Access
from engineroom.console import idempotency
from engineroom.console.rest.errors import MediaTypeError
from engineroom.console.rest.routing import PATH_PARAMETERS, Answer, Call
from engineroom.core import tracing
from engineroom.core.error_responses import problem_document
from engineroom.core.errors import (
    AuthenticationError,
    EngineroomError,
    InvalidInputError,
    LimitError,
    PermissionDeniedError,
    Problem,
    TooLargeError,
)
from engineroom.core.logging import get_logger
from engineroom.core.recovery import ONCE, Recovery
from engineroom.core.validation.json_values import with_utf8
from engineroom.core.validation.models import read_body, read_query

if TYPE_CHECKING:
    from pydantic import BaseModel

    from engineroom.auth.permissions import Principal
    from engineroom.console.rest.routing import Route
    from engineroom.console.services import Services

log = get_logger(__name__)

#: Statuses of responses that a repeated request gets again; others mean that nothing was changed,
#: or not permanently.
_REPLAYED_STATUS = frozenset({200, 201, 202, 204, 404, 409, 412, 422})
#: Statuses of requests that are refused before their whole body is read.
_UNREAD_STATUS = frozenset({408, 413, 431})
#: Maximum bytes of a body on public routes; on others the limit of ``Limits`` applies.
PUBLIC_BODY = 64 * 1024
_REPLAYED_HEADER = "idempotent-replayed"
_JSON = "application/json"
_AUDIT_RECOVERY = Recovery("audit")


class RequestPipeline:
    """Handles one request."""

    def __init__(self, route: Route, request: Request, services: Services) -> None:
        self._route = route
        self._request = request
        self._services = services
        self._caller: Principal | None = current_principal(request)
        self._details: dict[str, str | int | float | bool | None] = {}
        self._reservation: idempotency.Reservation | None = None

    async def respond(self) -> Response:
        """Return the response; every error becomes a problem document."""
        error: Exception | None = None
        try:
            response = await self._handle()
        except ClientDisconnect:
            return Response(None, 400)  # the client is gone and reads no response
        except EngineroomError as expected:
            error, response = expected, problem_response(expected)
            if expected.http_status >= 500:
                # The response does not repeat what an external system said.
                log.warning(
                    "a request failed",
                    method=self._route.method,
                    path=self._route.path,
                    code=expected.code,
                    error=str(expected),
                )
        except Exception as unexpected:
            log.exception("a request failed", method=self._route.method, path=self._route.path)
            error, response = unexpected, problem_response(unexpected)
        try:
            await self._audit(response, error)
        finally:
            # The error's traceback refers to this frame: without `del` the cycle would keep the
            # request in memory until the next garbage collection.
            del error
        await self._store_response(response)
        return response

    async def _handle(self) -> Response:
        route, request, services = self._route, self._request, self._services
        path = _path_parameters(route, request)
        tracing.note(name=f"{route.method} {route.path}", http__route=route.path)
        if route.needs is not Access.PUBLIC:
            if self._caller is None:
                raise AuthenticationError(
                    "credentials: are missing; send a token or an API key, or sign in"
                )
            if route.needs is not Access.SIGNED_IN:
                await services.authorizer.require(self._caller, route.needs, path.get("namespace"))
        await self._limit_rate()
        query = read_query(route.query, request.scope["query_string"])
        raw = await _read_raw(route, request)
        body = None if route.body is None else read_body(route.body, raw)
        if route.changes and self._caller is not None:
            stored = await self._stored_response(raw)
            if stored is not None:
                return stored
        answer = await route.handler(
            Call(request, services, self._caller, path, query, body, self._details)
        )
        if isinstance(answer, Response):
            return answer
        self._details.update(answer.details)
        return _to_response(route, request, answer)

    async def _limit_rate(self) -> None:
        caller, cost = self._caller, self._route.cost
        if caller is None:
            subject = f"address:{address_key(self._services.address(self._request))}"
        elif caller.how == "key":
            # A limit per key: a program that sends too much does not block its owner.
            subject = f"key:{caller.reference}"
            cost = self._services.cost(caller, cost)
        else:
            subject = f"caller:{caller.subject}"
        decision = await self._services.limiter.hit(subject, cost)
        if not decision.allowed:
            raise LimitError(
                "requests: too many in too short a time; wait", retry_after=decision.retry_after
            )

    async def _stored_response(self, raw: bytes) -> Response | None:
        """Return the stored response of an earlier request with the same Idempotency-Key."""
        keys = self._request.headers.getlist(idempotency.HEADER)
        if not keys:
            return None
        if len(keys) > 1:
            problem_ = Problem(idempotency.HEADER, f"comes {len(keys)} times", "send it once")
            raise InvalidInputError([problem_])
        assert self._caller is not None  # noqa: S101 - checked by the only caller
        url = self._request.url
        content = b"\0".join(
            (self._route.method.encode(), url.path.encode(), url.query.encode(),
             self._request.headers.get("if-match", "").encode("latin-1"), raw)
        )  # fmt: skip
        first = await self._services.idempotency.begin(self._caller.subject, keys[0], content)
        if isinstance(first, idempotency.Reservation):
            self._reservation = first
            return None
        return Response(first.body, first.status, {**first.headers, _REPLAYED_HEADER: "true"})

    async def _store_response(self, response: Response) -> None:
        if self._reservation is None:
            return
        stored = idempotency.StoredResponse(
            response.status_code,
            {k: v for k, v in response.headers.items() if k in {"content-type", "etag"}},
            bytes(response.body),
        )
        try:
            if stored.status in _REPLAYED_STATUS:
                secret = self._route.secret and stored.status < 300
                await self._services.idempotency.store(self._reservation, stored, secret=secret)
            else:
                await self._services.idempotency.release(self._reservation)
        except EngineroomError as error:
            log.warning("a response was not stored", code=error.code, error=str(error))

    async def _audit(self, response: Response, error: Exception | None) -> None:
        """Record every change and every attempted change."""
        if response.headers.get(_REPLAYED_HEADER) or self._is_unaudited(error):
            return
        route, caller, path = self._route, self._caller, self._request.path_params
        denied = isinstance(error, PermissionDeniedError | AuthenticationError)
        entry = AuditEntry(
            who=caller.subject if caller else "(nobody)",
            action=route.action,
            target="/".join([route.tag, *(str(value) for value in path.values())])[:1000],
            outcome=AuditOutcome.DENIED
            if denied
            else AuditOutcome.FAILED
            if error
            else AuditOutcome.DONE,
            how=f"{caller.how} {caller.reference}" if caller else "",
            reason=f"{error.code}: {error}" if isinstance(error, EngineroomError) else "",
            namespace=str(path.get("namespace", "")),
            request=str(get_contextvars().get("request_id", "")),
            address=self._services.address(self._request),
            details=self._details,
        )
        # Without retries: a duplicate record would be as wrong as a missing one.
        await _AUDIT_RECOVERY.call_async(
            self._services.audit.write, entry, policy=ONCE, fallback=log_audit_failure
        )

    def _is_unaudited(self, error: Exception | None) -> bool:
        """Return True for requests that could flood the audit log; count them instead."""
        route, caller = self._route, self._caller
        if not route.action or isinstance(error, LimitError):
            return True
        # Anyone can open a page such as the OIDC callback without credentials.
        if not route.changes and error is not None and not isinstance(error, PermissionDeniedError):
            return True
        if caller is not None:
            return False
        if route.needs is not Access.PUBLIC:
            return True
        address = self._services.address(self._request)
        return error is not None and self._services.unauthenticated.count(
            route.action, error, address
        )


def log_audit_failure(failure: EngineroomError) -> Any:
    """Log a failed write to the audit log. The change stands; standard output has the record."""
    log.error("the audit log did not accept a record", code=failure.code, error=str(failure))


def problem_response(error: BaseException) -> Response:
    """Convert an error to a problem document (RFC 9457)."""
    if isinstance(error, EngineroomError):
        status, headers, body = problem(error)
    else:
        document = problem_document(error)
        status, headers = document.status, document.headers
        body = json.dumps(document.body).encode()
    if status in _UNREAD_STATUS:
        # The server does not wait for the rest of the request.
        headers = {**headers, "connection": "close"}
    return Response(body, status, headers)


def _to_response(route: Route, request: Request, answer: Answer) -> Response:
    status = answer.status or route.status
    etag = answer.headers.get("etag")
    if etag and request.method in {"GET", "HEAD"}:
        tags = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
        if etag in tags or "*" in tags:
            return Response(None, 304, answer.headers)
    if answer.body is None:
        return Response(None, 204 if status == 200 else status, answer.headers)
    return Response(
        response_body(answer.body), status, {"content-type": route.media, **answer.headers}
    )


def response_body(model: BaseModel) -> bytes:
    """Return a view as JSON in UTF-8."""
    try:
        return model.model_dump_json(by_alias=True).encode()
    except PydanticSerializationError:
        # Redis holds what applications wrote, also text that UTF-8 cannot encode.
        return to_json(with_utf8(model.model_dump(by_alias=True)))


def _path_parameters(route: Route, request: Request) -> dict[str, str]:
    values: dict[str, str] = {}
    for name in route.parameters:
        value = str(request.path_params[name])
        pattern, max_length, description = PATH_PARAMETERS[name]
        if len(value) > max_length or not re.fullmatch(pattern, value):
            problem_ = Problem(
                f"path.{name}", "has the wrong form", f"write {pattern}: {description}"
            )
            raise InvalidInputError([problem_])
        values[name] = value
    return values


async def _read_raw(route: Route, request: Request) -> bytes:
    if not route.changes:
        return b""
    raw = await _read_limited(route, request)
    if route.body is None:
        if raw:
            raise InvalidInputError([Problem("body", "is not expected here", "send none")])
        return b""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != _JSON:
        raise MediaTypeError(f"content-type: is not supported; send {_JSON}")
    return raw


async def _read_limited(route: Route, request: Request) -> bytes:
    """Read the body; public routes have a lower limit than others."""
    if route.needs is not Access.PUBLIC:
        return await request.body()
    parts: list[bytes] = []
    size = 0
    declared = int(request.headers.get("content-length", "0"))  # RequestLimits checked the digits
    if declared <= PUBLIC_BODY:
        async for part in request.stream():
            size += len(part)
            if size > PUBLIC_BODY:
                parts.clear()
                break
            parts.append(part)
    if max(declared, size) > PUBLIC_BODY:
        raise TooLargeError(f"body: is larger than {PUBLIC_BODY} bytes; send less")
    return b"".join(parts)
