"""Paging by cursor and conditional requests: what several handlers have in common."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from engineroom.console.errors import PreconditionFailedError
from engineroom.console.routes import Model
from engineroom.core.errors import InvalidInputError, Problem

if TYPE_CHECKING:
    from starlette.requests import Request

Limit = Annotated[int, Field(ge=1, le=200, description="Most entries of a page.")]
Cursor = Annotated[
    str, Field(max_length=2048, description="`nextCursor` of the page before; empty: the first.")
]


class Paged(Model):
    """Which page."""

    limit: Limit = 50
    cursor: Cursor = ""


def packed(place: str | None) -> str | None:
    """A cursor for a place in a list; opaque to clients."""
    if place is None:
        return None
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def unpacked(cursor: str) -> str:
    """The place. Raises InvalidInputError for what is no cursor of ours."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return raw.decode()
    except (binascii.Error, ValueError) as error:
        raise bad_cursor() from error


def bad_cursor() -> InvalidInputError:
    """For a cursor that leads nowhere."""
    told = Problem(
        "query.cursor", "is no cursor of this list", "send nextCursor of the page before"
    )
    return InvalidInputError([told])


def etag(version: str) -> str:
    """A strong entity tag (RFC 9110) of a resourceVersion."""
    return f'"{version}"'


def check_match(request: Request, version: str) -> bool:
    """Whether If-Match was sent. Raises PreconditionFailedError where it names another version."""
    header = ",".join(request.headers.getlist("if-match"))
    if not header:
        return False
    tags = [tag.strip() for tag in header.split(",")]
    if "*" not in tags and etag(version) not in tags:
        raise PreconditionFailedError(
            f"if-match: the object is at {etag(version)} now; read it again and decide anew"
        )
    return True
