"""The OpenAPI document, its HTML page, and the probes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.responses import Response

from engineroom.auth.permissions import Access
from engineroom.console.background.signing_key_restoration import check_signing_keys
from engineroom.console.rest.openapi import STYLE
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.error_translation import wrapped
from engineroom.core.errors import DependencyError

if TYPE_CHECKING:
    from engineroom.console.rest.openapi import ApiDocument
    from engineroom.console.services import Services


class Health(Model):
    """The state of the process."""

    status: str


async def healthz(call: Call) -> Answer:
    """Report that the process is alive. It stays so while Redis or the API server is down."""
    del call
    return Answer(Health(status="ok"))


async def readyz(call: Call) -> Answer:
    """Report that the process can serve requests. Raises DependencyError."""
    await check_ready(call.services)
    return Answer(Health(status="ok"))


async def check_ready(services: Services) -> None:
    """Check that the process can serve requests. Raises EngineroomError, TimeoutError."""
    async with asyncio.timeout(2):
        with wrapped("readyz"):
            await services.redis.ping()
        await check_signing_keys(services.signing_keys, services.clock)
    if not services.hub.pools.synced.is_set():
        raise DependencyError("pools: are not listed yet; wait")


async def openapi_document(call: Call) -> Response:
    """Return the OpenAPI document."""
    return Response(_document(call).json, media_type="application/json")


async def openapi_page(call: Call) -> Response:
    """Return the OpenAPI document as an HTML page without scripts."""
    return Response(_document(call).html, media_type="text/html; charset=utf-8")


async def openapi_style(call: Call) -> Response:
    """Return the style sheet of the page."""
    del call
    return Response(STYLE, media_type="text/css; charset=utf-8")


def _document(call: Call) -> ApiDocument:
    document: ApiDocument = call.request.app.state.document
    return document


ROUTES = (
    Route(
        method="GET", path="/healthz", needs=Access.PUBLIC, handler=healthz,
        summary="Liveness probe", tag="probes", answer=Health,
    ),
    Route(
        method="GET", path="/readyz", needs=Access.PUBLIC, handler=readyz,
        summary="Readiness probe", tag="probes", answer=Health, errors=(503,),
    ),
    Route(
        method="GET", path=f"{BASE}/openapi.json", needs=Access.PUBLIC, handler=openapi_document,
        summary="This document", tag="document",
    ),
    Route(
        method="GET", path=f"{BASE}/docs", needs=Access.PUBLIC, handler=openapi_page,
        summary="This document as an HTML page", tag="document", media="text/html",
    ),
    Route(
        method="GET", path=f"{BASE}/docs.css", needs=Access.PUBLIC, handler=openapi_style,
        summary="Style sheet of that page", tag="document", media="text/css",
    ),
)  # fmt: skip
