"""Cursors of lists: a position as an opaque string."""

from __future__ import annotations

import base64
import binascii
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engineroom.core.errors import InvalidInputError, Problem


def encode_cursor(position: str | None) -> str | None:
    """Encode a position; None, the end of a list, stays None."""
    return None if position is None else _encode(position.encode())


def decode_cursor(cursor: str) -> str:
    """Decode a cursor. Raises InvalidInputError for one that the API did not create."""
    try:
        return _decode(cursor).decode()
    except (binascii.Error, ValueError) as error:
        raise bad_cursor() from error


class SealedCursors:
    """Encrypted cursors, which clients can neither read nor forge.

    Use them for lists that hold entries of other tenants too: a position can contain their names.
    """

    def __init__(self, secret: bytes) -> None:
        """``secret``: 32 bytes."""
        self._cipher = AESGCM(secret)

    def encode(self, position: str | None) -> str | None:
        """Encrypt a position; None, the end of a list, stays None."""
        if position is None:
            return None
        nonce = secrets.token_bytes(12)
        return _encode(nonce + self._cipher.encrypt(nonce, position.encode(), None))

    def decode(self, cursor: str) -> str:
        """Decrypt a cursor; "" is the beginning. Raises InvalidInputError for a forged one."""
        if not cursor:
            return ""
        try:
            raw = _decode(cursor)
            return self._cipher.decrypt(raw[:12], raw[12:], None).decode()
        except (binascii.Error, ValueError, InvalidTag) as error:
            raise bad_cursor() from error


def bad_cursor() -> InvalidInputError:
    """Return the error for an invalid cursor."""
    problem = Problem(
        "query.cursor", "is not a cursor of this list", "send nextCursor of the previous page"
    )
    return InvalidInputError([problem])


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decode(cursor: str) -> bytes:
    return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
