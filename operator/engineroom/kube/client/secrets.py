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
        self._cache: dict[tuple[str, str], tuple[float, dict[str, str] | SecretError]] = {}

    async def value(self, namespace: str, name: str, key: str) -> str:
        """The decoded value. Raises SecretError with a reason and what to do."""
        now = self._clock.monotonic()
        cached = self._cache.get((namespace, name))
        if cached is None or cached[0] <= now:
            cached = await self._read(namespace, name, now)
            self._cache[(namespace, name)] = cached
        data = cached[1]
        if isinstance(data, SecretError):
            raise data
        if key not in data:
            self._cache[(namespace, name)] = (now + SECRET_RETRY, data)
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
        """Read the Secret again soon, because its value does not work and may be corrected."""
        cached = self._cache.get((namespace, name))
        if cached is not None:
            soon = self._clock.monotonic() + SECRET_RETRY
            self._cache[(namespace, name)] = (min(cached[0], soon), cached[1])

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
