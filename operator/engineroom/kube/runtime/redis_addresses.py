"""Addresses of the Redis servers that objects refer to: URL and CA certificate from Secrets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engineroom.core import reasons
from engineroom.core.errors import MeasurementError, SecretError
from engineroom.kube.client.secrets import Secrets
from engineroom.redis.address import Address, reason_of

if TYPE_CHECKING:
    from engineroom.api.v1alpha1.workerpool import RedisConnection
    from engineroom.core.clock import Clock
    from engineroom.core.errors import EngineroomError
    from engineroom.kube.client.client import Client


@dataclass(frozen=True, slots=True)
class RedisReference:
    """``spec.redis`` of an object: (Secret, key) of the URL and of the CA certificate."""

    url: tuple[str, str]
    ca: tuple[str, str] | None = None
    insecure: bool = False


def redis_reference(redis: RedisConnection | None) -> RedisReference | None:
    """Return the reference that a spec holds; None stands for the installation's own Redis."""
    if redis is None:
        return None
    tls = redis.tls
    ca = tls.ca_secret_ref if tls is not None else None
    return RedisReference(
        url=(redis.url_secret_ref.name, redis.url_secret_ref.key),
        ca=None if ca is None else (ca.name, ca.key),
        insecure=tls is not None and tls.insecure_skip_verify,
    )


class RedisAddresses:
    """Resolves references to addresses; ``default_url`` is the installation's own Redis or ""."""

    def __init__(self, client: Client, clock: Clock, default_url: str) -> None:
        self.default_url = default_url
        self._secrets = Secrets(client, clock)

    async def resolve(self, namespace: str, reference: RedisReference | None) -> Address:
        """Return the address for an object in ``namespace``.

        Raises SecretError when a Secret or its key is missing, DependencyError when the API server
        does not answer.
        """
        if reference is None:
            if not self.default_url:
                raise SecretError(
                    reasons.SECRET_NOT_FOUND,
                    "the installation has no Redis of its own; set spec.redis.urlSecretRef",
                )
            return Address(self.default_url)
        ca = ""
        if reference.ca is not None:
            ca = await self._secrets.value(namespace, *reference.ca)
        url = await self._secrets.value(namespace, *reference.url)
        return Address(url, ca, reference.insecure)

    def doubt(self, namespace: str, reference: RedisReference | None) -> None:
        """Read the referenced Secrets again soon, because their address does not work."""
        for secret in (reference.url, reference.ca) if reference is not None else ():
            if secret is not None:
                self._secrets.doubt(namespace, secret[0])


def redis_trouble(error: EngineroomError) -> tuple[str, str]:
    """Return (reason, message) for what resolving an address, or using it, raised."""
    if isinstance(error, SecretError):
        return error.reason, str(error)
    if isinstance(error, MeasurementError):
        return reason_of(error), str(error)
    return reasons.REDIS_UNREACHABLE, f"the address cannot be read: {error}"
