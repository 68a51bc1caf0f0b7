"""Query parameters of pages, and conditional requests (RFC 9110)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from engineroom.console.rest.errors import PreconditionFailedError
from engineroom.console.rest.routing import Model

if TYPE_CHECKING:
    from starlette.requests import Request

Limit = Annotated[int, Field(ge=1, le=200, description="Maximum number of entries.")]
Cursor = Annotated[
    str, Field(max_length=2048, description="`nextCursor` of the previous page; empty: the first.")
]


class PageQuery(Model):
    """The page to return."""

    limit: Limit = 50
    cursor: Cursor = ""


def etag(version: str) -> str:
    """Return the strong entity tag of a resourceVersion."""
    return f'"{version}"'


def check_match(request: Request, version: str) -> bool:
    """Check If-Match; return False without the header.

    Raises PreconditionFailedError if the header names another version.
    """
    header = ",".join(request.headers.getlist("if-match"))
    if not header:
        return False
    tags = [tag.strip() for tag in header.split(",")]
    if "*" not in tags and etag(version) not in tags:
        raise PreconditionFailedError(
            f"if-match: the object is now at {etag(version)}; read it again"
        )
    return True
