"""The API about itself: its document, a page of it, and probes."""

from __future__ import annotations

import asyncio
from functools import cache

from starlette.responses import Response

from engineroom.auth.permissions import Access
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.error_translation import wrapped
from engineroom.core.errors import DependencyError


class Health(Model):
    """How the process is."""

    status: str


async def healthz(call: Call) -> Answer:
    """Whether a restart would help: an absent Redis or cluster is no reason."""
    del call
    return Answer(Health(status="ok"))


async def readyz(call: Call) -> Answer:
    """Whether requests may come. Raises DependencyError."""
    services = call.services
    async with asyncio.timeout(2):
        with wrapped("readyz"):
            await services.redis.ping()
    if not services.hub.pools.synced.is_set():
        raise DependencyError("the pools are not listed yet; wait")
    return Answer(Health(status="ok"))


async def document(call: Call) -> Response:
    """The OpenAPI document."""
    del call
    return Response(_document(), media_type="application/json")


async def page(call: Call) -> Response:
    """The document as a page, readable without a script."""
    del call
    return Response(_page(), media_type="text/html; charset=utf-8")


async def style(call: Call) -> Response:
    """The page's style."""
    del call
    from engineroom.console.rest.openapi import STYLE

    return Response(STYLE, media_type="text/css; charset=utf-8")


@cache
def _document() -> bytes:
    from engineroom.console.rest.openapi import written
    from engineroom.console.rest.route_table import ROUTES as TABLE

    return written(TABLE).encode()


@cache
def _page() -> bytes:
    from engineroom.console.rest.openapi import html
    from engineroom.console.rest.route_table import ROUTES as TABLE

    return html(TABLE).encode()


ROUTES = (
    Route(
        method="GET", path="/healthz", needs=Access.PUBLIC, handler=healthz,
        summary="Whether the process lives", tag="probes", answer=Health,
    ),
    Route(
        method="GET", path="/readyz", needs=Access.PUBLIC, handler=readyz,
        summary="Whether requests may come", tag="probes", answer=Health, errors=(503,),
    ),
    Route(
        method="GET", path=f"{BASE}/openapi.json", needs=Access.PUBLIC, handler=document,
        summary="This document", tag="document",
    ),
    Route(
        method="GET", path=f"{BASE}/docs", needs=Access.PUBLIC, handler=page,
        summary="This document as a page", tag="document", media="text/html",
    ),
    Route(
        method="GET", path=f"{BASE}/docs.css", needs=Access.PUBLIC, handler=style,
        summary="Style of that page", tag="document", media="text/css",
    ),
)  # fmt: skip
