"""Seals that reveal tampering with records in a store to which other programs can write.

A seal is an HMAC-SHA256 over the record's name and content, under a key that the store never
receives. A record copied to another name fails the check, as does an invented one. A seal cannot
detect the restoration of an older record, so records that expire carry their expiry inside.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import TYPE_CHECKING

from engineroom.core.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

log = get_logger(__name__)

#: Names of invalid records that are remembered, to report each one once.
MAX_REPORTED = 1_000
#: Hexadecimal digits of a seal.
LENGTH = 64


def log_broken(kind: str, name: str) -> None:
    """Log a rejected record."""
    log.error("a record has no valid seal and was refused", kind=kind, record=name)


class Sealer:
    """Seals records of one ``kind`` with ``key``, of at least 32 bytes.

    Seals under one of the ``older`` keys are valid too, which permits a change of the key.
    ``on_broken`` is called with kind and name of a record with an invalid seal, once for each name
    while at most ``MAX_REPORTED`` names are remembered.
    """

    def __init__(
        self,
        key: bytes,
        kind: str,
        on_broken: Callable[[str, str], None] = log_broken,
        *,
        older: Sequence[bytes] = (),
    ) -> None:
        self._keys = (key, *older)
        if any(len(key) < 32 for key in self._keys):
            raise ValueError(
                "key: must be at least 32 bytes; make one with openssl rand -base64 48"
            )
        self._kind = kind
        self._on_broken = on_broken
        self._reported: dict[str, None] = {}

    def seal(self, name: str, *content: str) -> str:
        """Return the seal of the content of the record ``name``, in hexadecimal."""
        return hmac.digest(self._keys[0], self._message(name, content), hashlib.sha256).hex()

    def holds(self, seal: str, name: str, *content: str) -> bool:
        """Return whether the seal is valid, in constant time; report an invalid one."""
        message = self._message(name, content)
        for key in self._keys:
            right = hmac.digest(key, message, hashlib.sha256).hex()
            if hmac.compare_digest(right.encode(), seal.encode()):
                return True
        self._report(name)
        return False

    def seal_fields(self, name: str, fields: Mapping[str, str]) -> str:
        """Return the seal of a map, whatever the order of its fields."""
        return self.seal(name, json.dumps(fields, sort_keys=True))

    def fields_hold(self, seal: str, name: str, fields: Mapping[str, str]) -> bool:
        """Return whether the seal of a map is valid; see ``holds``."""
        return self.holds(seal, name, json.dumps(fields, sort_keys=True))

    def wrap(self, name: str, content: str) -> str:
        """Return seal and content as one string."""
        return self.seal(name, content) + content

    def unwrap(self, name: str, wrapped: str) -> str | None:
        """Return the content, or None for an invalid seal, which is reported."""
        seal, content = wrapped[:LENGTH], wrapped[LENGTH:]
        return content if self.holds(seal, name, content) else None

    def _message(self, name: str, content: tuple[str, ...]) -> bytes:
        # JSON, because the boundaries between the strings must be part of the seal.
        return json.dumps([self._kind, name, *content]).encode()

    def _report(self, name: str) -> None:
        if name in self._reported:
            return
        if len(self._reported) >= MAX_REPORTED:
            del self._reported[next(iter(self._reported))]
        self._reported[name] = None
        self._on_broken(self._kind, name)
