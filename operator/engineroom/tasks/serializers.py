"""RQ's serializers: the form of arguments, meta and results in Redis."""

from __future__ import annotations

import json
import pickle  # nosec B403 - RQ's own default
from typing import Any, Protocol


class Serializer(Protocol):
    """An RQ serializer; the workers must use the same one."""

    def dumps(self, obj: Any, /) -> bytes:
        """Return the object as bytes."""
        ...

    def loads(self, data: bytes, /) -> Any:
        """Return the object from its bytes."""
        ...


class PickleSerializer:
    """RQ's default serializer."""

    @staticmethod
    def dumps(obj: Any, /) -> bytes:
        """Return the object as bytes."""
        return pickle.dumps(obj, protocol=pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def loads(data: bytes, /) -> Any:
        """Return the object from bytes that the application itself wrote."""
        return pickle.loads(data)  # noqa: S301 # nosec B301 - RQ's own format and trust


class JSONSerializer:
    """RQ's ``JSONSerializer``; workers need the option ``--serializer json``."""

    @staticmethod
    def dumps(obj: Any, /) -> bytes:
        """Return the object as bytes."""
        return json.dumps(obj).encode()

    @staticmethod
    def loads(data: bytes, /) -> Any:
        """Return the object from its bytes."""
        return json.loads(data)
