"""Addresses of Redis servers, and clients for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError

from engineroom.core import reasons
from engineroom.core.errors import SecretError
from engineroom.redis.urls import FORM, url_problem

if TYPE_CHECKING:
    from engineroom.core.errors import EngineroomError


@dataclass(frozen=True, slots=True)
class Address:
    """The URL and TLS settings of a Redis. It may hold a password, so never log it."""

    url: str
    ca: str = ""
    insecure: bool = False


def reason_of(error: EngineroomError) -> str:
    """Return the condition reason of a failed call to Redis."""
    cause = error.__cause__
    if isinstance(cause, (AuthenticationError, NoPermissionError)):
        return reasons.REDIS_AUTH_FAILED
    if cause is not None and any(
        word in str(cause) for word in ("WRONGPASS", "NOAUTH", "NOPERM", "invalid username")
    ):
        return reasons.REDIS_AUTH_FAILED
    return reasons.REDIS_UNREACHABLE


def check_url(url: str) -> str:
    """Return the URL; raise SecretError unless it is a Redis URL."""
    problem = url_problem(url)
    if problem:
        raise SecretError(reasons.REDIS_URL_INVALID, f"the Redis URL is invalid: {problem}; {FORM}")
    return url


def open_client(address: Address) -> redis.asyncio.Redis:
    """Return a client with short timeouts and without retries; raise SecretError for a bad URL."""
    check_url(address.url)
    options: dict[str, Any] = {
        "socket_timeout": 3.0,
        "socket_connect_timeout": 2.0,
        "health_check_interval": 15,
        # Callers repeat their calls anyway; a retry in the client would only hide the outage.
        "retry": Retry(NoBackoff(), 0),
        "client_name": "engineroom",
    }
    if address.url.startswith("rediss://"):
        if address.ca:
            options["ssl_ca_data"] = address.ca
        if address.insecure:
            options["ssl_cert_reqs"] = "none"
            options["ssl_check_hostname"] = False
    return redis.asyncio.Redis.from_url(address.url, **options)
