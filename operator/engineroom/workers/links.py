"""Connections to the Redis of each pool: one observer and one push listener an address."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError

from engineroom.core import reasons
from engineroom.core.errors import MeasurementError, SecretError
from engineroom.kube.errors import Forbidden, NotFound
from engineroom.kube.resources import SECRETS
from engineroom.queue.observe import Observer
from engineroom.queue.push import QueuePush

if TYPE_CHECKING:
    from collections.abc import Callable

    from engineroom.core.clock import Clock
    from engineroom.kube.client import Client

#: How long a Secret that was read counts as known, and one that was not to be had (seconds).
SECRET_TTL, SECRET_RETRY = 30.0, 2.0
SCHEMES = ("redis", "rediss", "unix")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis is and how to speak to it; never logged, it holds a password."""

    url: str
    ca: str = ""
    insecure: bool = False


class Link:
    """One Redis: commands, looks and pushes. ``subscribers`` are pools by queue name."""

    def __init__(
        self,
        address: Address,
        clock: Clock,
        *,
        on_queue: Callable[[str], None],
        on_turn: Callable[[Link], None],
    ) -> None:
        self.address = address
        self.redis = open_client(address)
        self.observer = Observer(self.redis, clock)
        self.subscribers: dict[str, set[str]] = {}
        self.pools = 0
        #: Whether pushes are heard; "" or what the connection said last.
        self.up = False
        self.trouble = ""
        self._on_queue = on_queue
        self._on_turn = on_turn
        self._push = QueuePush(
            self.redis, on_queue=self._changed, on_up=self._went_up, on_down=self._went_down
        )
        self._task = asyncio.create_task(self._push.run())

    def subscribe(self, pool: str, queues: tuple[str, ...]) -> None:
        """Wake ``pool`` whenever one of ``queues`` changes."""
        self.pools += 1
        for queue in queues:
            self.subscribers.setdefault(queue, set()).add(pool)

    def unsubscribe(self, pool: str, queues: tuple[str, ...]) -> None:
        """Undo ``subscribe``."""
        self.pools -= 1
        for queue in queues:
            pools = self.subscribers.get(queue)
            if pools is not None:
                pools.discard(pool)
                if not pools:
                    del self.subscribers[queue]

    async def close(self) -> None:
        """Stop listening and close the connections."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self.redis.aclose()

    def _changed(self, queue: str) -> None:
        for pool in self.subscribers.get(queue, ()):
            self._on_queue(pool)

    def _went_up(self) -> None:
        self.up, self.trouble = True, ""
        self._on_turn(self)

    def _went_down(self, why: str) -> None:
        was_up, self.up, self.trouble = self.up, False, why
        if was_up:
            self._on_turn(self)


class Links:
    """All connections, shared by the pools that name the same address."""

    def __init__(
        self,
        clock: Clock,
        *,
        on_queue: Callable[[str], None],
        on_turn: Callable[[Link], None],
    ) -> None:
        self._clock = clock
        self._on_queue = on_queue
        self._on_turn = on_turn
        self._links: dict[Address, Link] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Any:
        return iter(list(self._links.values()))

    def join(self, address: Address, pool: str, queues: tuple[str, ...]) -> Link:
        """The link of ``address``, with ``pool`` subscribed. Raises SecretError on a wrong URL."""
        link = self._links.get(address)
        if link is None:
            try:
                link = Link(address, self._clock, on_queue=self._on_queue, on_turn=self._on_turn)
            except (ValueError, ssl.SSLError) as error:
                raise SecretError(
                    reasons.REDIS_URL_INVALID, f"the Redis address cannot be used: {error}"
                ) from error
            self._links[address] = link
        link.subscribe(pool, queues)
        return link

    def leave(self, link: Link, pool: str, queues: tuple[str, ...]) -> None:
        """Unsubscribe; the last one closes the connection."""
        link.unsubscribe(pool, queues)
        if link.pools <= 0:
            self._links.pop(link.address, None)
            task = asyncio.create_task(link.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close every connection."""
        links, self._links = list(self._links.values()), {}
        await asyncio.gather(*(link.close() for link in links), *self._closing)


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


def reason_of(error: MeasurementError) -> str:
    """Which of the reasons a failed look has."""
    cause = error.__cause__
    if isinstance(cause, (AuthenticationError, NoPermissionError)):
        return reasons.REDIS_AUTH_FAILED
    if cause is not None and any(
        word in str(cause) for word in ("WRONGPASS", "NOAUTH", "NOPERM", "invalid username")
    ):
        return reasons.REDIS_AUTH_FAILED
    return reasons.REDIS_UNREACHABLE


def check_url(url: str) -> str:
    """The URL itself. Raises SecretError when it is none of Redis."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise SecretError(
            reasons.REDIS_URL_INVALID, f"the Redis URL cannot be read ({error}); {_FORM}"
        ) from error
    if parts.scheme not in SCHEMES or not (parts.hostname or parts.scheme == "unix"):
        scheme = parts.scheme or "none"
        raise SecretError(
            reasons.REDIS_URL_INVALID, f"the Redis URL's scheme is {scheme!r}; {_FORM}"
        )
    return url


_FORM = "write redis://[user:password@]host[:port][/database] or rediss://..."


def open_client(address: Address) -> redis.asyncio.Redis:
    """A client that gives up soon and does not try again. Raises SecretError on a wrong URL."""
    check_url(address.url)
    options: dict[str, Any] = {
        "socket_timeout": 3.0,
        "socket_connect_timeout": 2.0,
        "health_check_interval": 15,
        # A look that fails is looked again anyway; a retry inside would only hide the outage.
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
