"""A Redis client for the command line, which can reach a Redis inside the cluster.

A Redis that only pods can reach is reached through the API server, by forwarding to a pod behind
its Service. TLS and password go through unchanged.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from engineroom.cli.connections.redis_address import check_url
from engineroom.cli.connections.service_ports import service_connector

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from redis import Redis

    from engineroom.cli.connections.redis_address import RedisAddress
    from engineroom.cli.connections.service_ports import PortOpener

#: Seconds.
_CONNECT_TIMEOUT, _ANSWER_TIMEOUT = 5.0, 15.0


def open_redis(address: RedisAddress, cluster: PortOpener | None) -> Redis:
    """Return a client of the address.

    With ``cluster``, a host that is a Service is reached through the API server, unless this
    process runs in the cluster itself. Raises UsageError for an invalid URL.
    """
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    check_url(address.url)
    options: dict[str, Any] = {
        "socket_timeout": _ANSWER_TIMEOUT,
        "socket_connect_timeout": _CONNECT_TIMEOUT,
        "retry": Retry(NoBackoff(), 0),
        "client_name": "engineroom-cli",
    }
    if address.url.startswith("rediss://"):
        if address.ca:
            options["ssl_ca_data"] = address.ca
        if address.insecure:
            options["ssl_cert_reqs"] = "none"
            options["ssl_check_hostname"] = False
    client = Redis.from_url(address.url, **options)
    parts = urlsplit(address.url)
    if cluster is None or parts.scheme == "unix" or _runs_in_cluster():
        return client
    connect = service_connector(
        cluster,
        parts.hostname or "",
        parts.port or 6379,
        address.namespace or "default",
        unambiguous=address.installation,
    )
    if connect is not None:
        pool = client.connection_pool
        pool.connection_class = _forwarded(pool.connection_class, connect)
    return client


def _runs_in_cluster() -> bool:
    """Return whether this process runs in a pod, which can reach Services directly."""
    return "KUBERNETES_SERVICE_HOST" in os.environ


def _forwarded(plain: Any, connect: Callable[[], socket]) -> Any:
    """Return a connection class that gets its socket from ``connect``, with TLS over it."""
    from redis.connection import Connection, SSLConnection

    def forwarded(self: Any) -> Any:
        sock = connect()
        sock.settimeout(self.socket_timeout)
        return sock

    if not issubclass(plain, SSLConnection):
        return type("ForwardedConnection", (Connection,), {"_connect": forwarded})

    def secured(self: Any) -> Any:
        sock = forwarded(self)
        try:
            return self._wrap_socket_with_ssl(sock)
        except BaseException:
            sock.close()
            raise

    return type("ForwardedSSLConnection", (SSLConnection,), {"_connect": secured})
