"""Records that are kept where others may write: sealed, so that what they wrote is known for it.

A seal is an HMAC-SHA256 over the record's name and what it says, under a key that the store never
sees. The name is part of it: a record put under another name is as good as a made-up one. What a
seal cannot show is a record set back to how it once was; so whatever ends by itself carries its
end inside, and whoever keeps records says what remains.
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

#: Names of broken records that are remembered, so that each is told of once.
MAX_TOLD = 1_000
#: Hexadecimal digits of a seal.
LENGTH = 64


def log_broken(kind: str, name: str) -> None:
    """Say in the log that a record was refused."""
    log.error("a record is not as it was sealed and was refused", kind=kind, record=name)


class Sealer:
    """Seals records of one ``kind`` with ``key``, of at least 32 bytes.

    Seals under one of the ``older`` keys hold as well, so that a key can be changed. ``on_broken``
    hears kind and name of a record that is not as it was sealed: once for each name, as far as
    MAX_TOLD are remembered.
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
        if any(len(each) < 32 for each in self._keys):
            raise ValueError(
                "key: must be at least 32 bytes; make one with openssl rand -base64 48"
            )
        self._kind = kind
        self._on_broken = on_broken
        self._told: dict[str, None] = {}

    def seal(self, name: str, *said: str) -> str:
        """The seal of what the record ``name`` says, hexadecimal."""
        return hmac.digest(self._keys[0], self._message(name, said), hashlib.sha256).hex()

    def holds(self, seal: str, name: str, *said: str) -> bool:
        """Whether the seal is of this; a broken one is told of. Constant time."""
        message = self._message(name, said)
        for key in self._keys:
            right = hmac.digest(key, message, hashlib.sha256).hex()
            if hmac.compare_digest(right.encode(), seal.encode()):
                return True
        self._tell(name)
        return False

    def seal_fields(self, name: str, fields: Mapping[str, str]) -> str:
        """As ``seal``, of a map; the order of its fields is none of it."""
        return self.seal(name, json.dumps(fields, sort_keys=True))

    def fields_hold(self, seal: str, name: str, fields: Mapping[str, str]) -> bool:
        """As ``holds``, of a map."""
        return self.holds(seal, name, json.dumps(fields, sort_keys=True))

    def wrap(self, name: str, said: str) -> str:
        """One text of seal and content, for a store of plain texts."""
        return self.seal(name, said) + said

    def unwrap(self, name: str, wrapped: str) -> str | None:
        """The content, or None where the seal is broken, which is told of."""
        seal, said = wrapped[:LENGTH], wrapped[LENGTH:]
        return said if self.holds(seal, name, said) else None

    def _message(self, name: str, said: tuple[str, ...]) -> bytes:
        # As JSON: where one text ends and the next begins is part of it.
        return json.dumps([self._kind, name, *said]).encode()

    def _tell(self, name: str) -> None:
        if name in self._told:
            return
        if len(self._told) >= MAX_TOLD:
            del self._told[next(iter(self._told))]
        self._told[name] = None
        self._on_broken(self._kind, name)
