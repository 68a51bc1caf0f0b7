"""Single keys of Secrets that an object refers to."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from engineroom.core import reasons
from engineroom.core.errors import SecretError
from engineroom.kube.client.errors import Forbidden, NotFound
from engineroom.kube.client.resources import SECRETS

if TYPE_CHECKING:
    from engineroom.core.clock import Clock
    from engineroom.kube.client.client import Client

#: How long a Secret that was read counts as known, and one that was not to be had (seconds).
SECRET_TTL, SECRET_RETRY = 30.0, 2.0


class Secrets:
    """Reads single keys of Secrets, and remembers them for a while."""

    def __init__(self, client: Client, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._known: dict[tuple[str, str], tuple[float, dict[str, str] | SecretError]] = {}

    async def value(self, namespace: str, name: str, key: str) -> str:
        """The decoded value. Raises SecretError with a reason and what to do."""
        now = self._clock.monotonic()
        known = self._known.get((namespace, name))
        if known is None or known[0] <= now:
            known = await self._read(namespace, name, now)
            self._known[(namespace, name)] = known
        data = known[1]
        if isinstance(data, SecretError):
            raise data
        if key not in data:
            self._known[(namespace, name)] = (now + SECRET_RETRY, data)
            there = ", ".join(sorted(data)) or "none"
            raise SecretError(
                reasons.SECRET_KEY_NOT_FOUND,
                f"Secret {name} has no key {key} (keys there: {there}); add the key or correct "
                "spec.redis.urlSecretRef.key",
            )
        try:
            return base64.b64decode(data[key], validate=True).decode().strip()
        except ValueError as error:
            raise SecretError(
                reasons.REDIS_URL_INVALID, f"key {key} of Secret {name} is not text"
            ) from error

    def doubt(self, namespace: str, name: str) -> None:
        """What the Secret says does not work: read it again soon, somebody may correct it."""
        known = self._known.get((namespace, name))
        if known is not None:
            soon = self._clock.monotonic() + SECRET_RETRY
            self._known[(namespace, name)] = (min(known[0], soon), known[1])

    async def _read(
        self, namespace: str, name: str, now: float
    ) -> tuple[float, dict[str, str] | SecretError]:
        try:
            secret = await self._client.get(SECRETS, namespace, name)
        except NotFound:
            return now + SECRET_RETRY, SecretError(
                reasons.SECRET_NOT_FOUND,
                f"Secret {name} does not exist in namespace {namespace}; create it or correct "
                "spec.redis.urlSecretRef.name",
            )
        except Forbidden:
            return now + SECRET_RETRY, SecretError(
                reasons.SECRET_FORBIDDEN,
                f"the operator may not read Secret {name}; add {namespace} to the chart's "
                "redis.secretNamespaces",
            )
        return now + SECRET_TTL, dict(secret.get("data") or {})
