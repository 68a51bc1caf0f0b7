"""Paging by cursor and conditional requests: what several handlers have in common."""

from __future__ import annotations

import base64
import binascii
import secrets
from typing import TYPE_CHECKING, Annotated

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import Field

from engineroom.console.rest.errors import PreconditionFailedError
from engineroom.console.rest.routing import Model
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


class Places:
    """Cursors that neither say where they lead nor can be made up.

    For lists in which others have entries too: a place between theirs has their names in it.
    """

    def __init__(self, secret: bytes) -> None:
        """``secret``: 32 bytes."""
        self._cipher = AESGCM(secret)

    def packed(self, place: str | None) -> str | None:
        """A cursor for a place in a list."""
        if place is None:
            return None
        nonce = secrets.token_bytes(12)
        sealed = nonce + self._cipher.encrypt(nonce, place.encode(), None)
        return base64.urlsafe_b64encode(sealed).decode().rstrip("=")

    def unpacked(self, cursor: str) -> str:
        """The place, "" for the first. Raises InvalidInputError for what is no cursor of ours."""
        if not cursor:
            return ""
        try:
            padded = cursor + "=" * (-len(cursor) % 4)
            raw = base64.b64decode(padded, altchars=b"-_", validate=True)
            return self._cipher.decrypt(raw[:12], raw[12:], None).decode()
        except (binascii.Error, ValueError, InvalidTag) as error:
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
