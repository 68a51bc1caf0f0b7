"""The way from the command line to Redis: an URL that was given, else what the cluster says.

A pool names a Secret with the URL, or the operator made one for it; it is read with the user's own
rights. A Redis that only pods can reach is reached through the API server, by forwarding to a pod
behind its Service; TLS and password go through that unchanged. No local port is opened: nobody else
on the machine can use the way.
"""

from __future__ import annotations

import base64
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from engineroom.api import LABEL_POOL
from engineroom.cli.errors import (
    ForbiddenError,
    NotFoundError,
    UnreachableError,
    UsageError,
)
from engineroom.kube.client.resources import DEPLOYMENTS, PODS, SECRETS, SERVICES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from socket import socket

    from redis import Redis

    from engineroom.cli.app.context import CommandContext
    from engineroom.cli.connections.model import Document, Pool
    from engineroom.cli.connections.remote.bulk import Bulk
    from engineroom.kube.client.resources import Resource
    from engineroom.tasks import Tasks
    from engineroom.tasks.serializers import Serializer

#: Where an URL is taken from before the cluster is asked.
VARIABLE = "ENGINEROOM_REDIS_URL"
#: Finds the installation's operator, whose Deployment names the Secret of the chart's Redis.
_OPERATOR = "app.kubernetes.io/part-of=engineroom,app.kubernetes.io/component=operator"
_SCHEMES = ("redis", "rediss", "unix")
#: Seconds to connect, seconds to answer.
_CONNECT, _ANSWER = 5.0, 15.0
_FIX = f"name another pool with --pool, or give the URL in {VARIABLE}"


class Reader(Protocol):
    """What of a cluster is asked here. All methods raise CliError."""

    def read(self, resource: Resource, namespace: str | None, name: str) -> Document:
        """One object as the API server has it. Raises NotFoundError, ForbiddenError."""
        ...

    def read_all(
        self, resource: Resource, namespace: str | None, selector: str | None = None
    ) -> list[Document]:
        """The objects of a namespace, of all where it is None."""
        ...

    def open_port(self, namespace: str, pod: str, port: int) -> socket:
        """A connection to a port of a pod, through the API server."""
        ...


@dataclass(frozen=True, slots=True)
class Address:
    """A Redis as somebody described it. ``namespace`` is where names without one are looked up."""

    url: str
    namespace: str | None = None
    ca: str | None = None
    insecure: bool = False

    def __repr__(self) -> str:
        """Without the URL, which holds the password."""
        return f"Address({safe(self.url)!r}, namespace={self.namespace!r})"


@dataclass(slots=True)
class Link:
    """The tasks of one Redis, the queues that pools say they read, and what to call it."""

    tasks: Tasks
    declared: frozenset[str]
    title: str
    #: The tasks for writing what workers with that serializer read, of at most so many bytes.
    writing: Callable[[Serializer, int], Tasks]
    #: Changes of many jobs, where somebody else carries them out.
    bulk: Bulk | None = None


@contextmanager
def open_link(context: CommandContext) -> Iterator[Link]:
    """The Redis that the options mean, for as long as the block runs."""
    url = context.shared.redis_url
    pools: tuple[Pool, ...] = ()
    if url:
        if context.shared.pool:
            raise UsageError(
                "--redis-url and --pool exclude each other",
                why=f"the URL may come from {VARIABLE}",
                fix="leave out one of them",
            )
        address, title = Address(url), safe(url)
    else:
        address, title, pools = from_cluster(
            context.cluster, context.namespace, context.shared.pool
        )
    check_url(address.url)
    redis = _client(address, None if address.namespace is None else context.cluster)
    try:
        yield Link(
            _tasks(redis, context),
            frozenset(queue.name for pool in pools for queue in pool.queues),
            title,
            lambda serializer, max_bytes: _tasks(
                redis, context, serializer=serializer, max_bytes=max_bytes
            ),
        )
    finally:
        redis.close()


@contextmanager
def open_redis(
    context: CommandContext, namespace: str, redis: Document | None
) -> Iterator[tuple[Redis, str]]:
    """The Redis of the options, else the one of ``spec.redis``, else the chart's; and its name."""
    url, pool = context.shared.redis_url, context.shared.pool
    if url or pool:
        if url and pool:
            raise UsageError("--redis-url and --pool exclude each other", fix="leave out one")
        address, title = (
            (Address(url), safe(url)) if url else from_cluster(context.cluster, namespace, pool)[:2]
        )
    elif redis:
        address = _of_spec(context.cluster, namespace, redis)
        title = f"the Redis of Secret {redis['urlSecretRef']['name']}"
    else:
        found = _chart(context.cluster)
        if found is None:
            raise NotFoundError(
                "the chart's Redis cannot be found",
                why="no Deployment of the operator names it, or you may not read it",
                fix=f"give the URL in {VARIABLE}",
            )
        address, title = found, "the chart's Redis"
    check_url(address.url)
    client = _client(address, None if address.namespace is None else context.cluster)
    try:
        yield client, title
    finally:
        client.close()


def _tasks(redis: Redis, context: CommandContext, **options: Any) -> Tasks:
    from engineroom.tasks import Tasks

    return Tasks(redis, clock=context.clock, **options)


def from_cluster(
    cluster: Any, namespace: str, wanted: str | None
) -> tuple[Address, str, tuple[Pool, ...]]:
    """Address, what to call it, and the pools that share it. Raises CliError."""
    if wanted:
        pools: tuple[Pool, ...] = (cluster.pool(namespace, wanted),)
    else:
        pools = cluster.pools(namespace)
        several(pools, namespace)
    if not pools:
        found = _chart(cluster)
        if found is None:
            raise UsageError(
                f"there is no pool in namespace {namespace} that would name a Redis",
                fix=f"name the namespace with -n, or give the URL in {VARIABLE}",
            )
        return found, "the chart's Redis", ()
    pool = pools[0]
    title = f"the Redis of pool {pool.id}" if _named(pool) else "the chart's Redis"
    return _of_pool(cluster, pool), title, tuple(pools)


def several(pools: Sequence[Pool], namespace: str) -> None:
    """Raises UsageError where pools name more than one Redis: which one has to be said."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for pool in pools:
        groups.setdefault(_named(pool), []).append(pool.name)
    if len(groups) > 1:
        listing = "; ".join(
            f"{', '.join(names)}: {f'Secret {secret[0]}' if secret else 'none named'}"
            for secret, names in groups.items()
        )
        raise UsageError(
            f"the pools of namespace {namespace} use {len(groups)} Redis",
            why=listing,
            fix="name one of its pools with --pool",
        )


def _named(pool: Pool) -> tuple[str, ...]:
    """Name and key of the Secret in the pool's spec; empty for the chart's Redis."""
    redis = pool.document.get("spec", {}).get("redis")
    if not redis:
        return ()
    reference = redis["urlSecretRef"]
    return reference["name"], reference["key"]


def _of_pool(cluster: Reader, pool: Pool) -> Address:
    if _named(pool):
        return _of_spec(cluster, pool.namespace, pool.document["spec"]["redis"])
    try:
        made = cluster.read_all(SECRETS, pool.namespace, f"{LABEL_POOL}={pool.name}")
    except ForbiddenError:
        made = []
    made = [one for one in made if "url" in (one.get("data") or {})]
    if made:
        latest = max(made, key=lambda one: one["metadata"].get("creationTimestamp", ""))
        return Address(_text(latest["data"]["url"]), pool.namespace)
    found = _chart(cluster)
    if found is None:
        raise NotFoundError(
            f"no Secret says where the Redis of pool {pool.id} is",
            why="its spec names none, and the operator's own cannot be found or read",
            fix=_FIX,
        )
    return found


def _of_spec(cluster: Reader, namespace: str, redis: Document) -> Address:
    """The Redis that ``spec.redis`` of an object of the namespace names."""
    url, tls = redis["urlSecretRef"], redis.get("tls") or {}
    ca = tls.get("caSecretRef")
    return Address(
        _value(cluster, namespace, url["name"], url["key"], field="spec.redis.urlSecretRef"),
        namespace,
        ca
        and _value(cluster, namespace, ca["name"], ca["key"], field="spec.redis.tls.caSecretRef"),
        bool(tls.get("insecureSkipVerify")),
    )


def _chart(cluster: Reader) -> Address | None:
    """The Redis of the installation; None where there is none or it may not be read."""
    try:
        operators = cluster.read_all(DEPLOYMENTS, None, _OPERATOR)
    except ForbiddenError:
        return None
    for operator in operators:
        namespace = operator["metadata"]["namespace"]
        for container in operator["spec"]["template"]["spec"]["containers"]:
            for one in container.get("env") or ():
                source = (one.get("valueFrom") or {}).get("secretKeyRef")
                if one["name"] == VARIABLE and source:
                    url = _value(cluster, namespace, source["name"], source["key"], field=VARIABLE)
                    return Address(url, namespace)
    return None


def _value(cluster: Reader, namespace: str, name: str, key: str, *, field: str) -> str:
    try:
        secret = cluster.read(SECRETS, namespace, name)
    except NotFoundError as error:
        raise NotFoundError(
            f"Secret {namespace}/{name} is not there", why=f"{field} names it", fix=_FIX
        ) from error
    except ForbiddenError as error:
        raise ForbiddenError(
            f"you may not read Secret {namespace}/{name}",
            why=f"{field} names it: it holds where Redis is and its password",
            fix="ask for the right to `get` Secrets there (the role edit has it), or give the URL "
            f"in {VARIABLE}",
        ) from error
    data = secret.get("data") or {}
    if key not in data:
        raise NotFoundError(
            f"Secret {namespace}/{name} has no key {key}",
            why=f"{field} names it; there is: {', '.join(sorted(data)) or 'nothing'}",
            fix=_FIX,
        )
    return _text(data[key])


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode().strip()


def safe(url: str) -> str:
    """An URL without user and password; all that is ever shown of one."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "an URL that cannot be read"
    host = parts.hostname or parts.path
    return f"{parts.scheme}://{host}{port}"


def check_url(url: str) -> None:
    """Raises UsageError for what is no URL of Redis; never shows it."""
    problem = ""
    try:
        parts = urlsplit(url)
        _ = parts.port
        if parts.scheme not in _SCHEMES:
            problem = f"its scheme is {parts.scheme or 'missing'}"
        elif not (parts.hostname or parts.scheme == "unix"):
            problem = "it names no host"
        elif parts.path.strip("/") and parts.scheme != "unix":
            int(parts.path.strip("/"))
    except ValueError:
        problem = "its port or database is no number"
    if problem:
        raise UsageError(
            "the Redis URL cannot be used",
            why=problem,
            fix="write redis://[user:password@]host[:port][/database], rediss:// or unix://",
        )


def service_of(host: str, namespace: str) -> tuple[str, str] | None:
    """Namespace and name of the Service that a host name may mean; None where it can be none."""
    labels = host.rstrip(".").split(".")
    if any(not label or not label[0].isalpha() for label in labels[:1]) or host == "localhost":
        return None
    if len(labels) == 1:
        return namespace, labels[0]
    if len(labels) == 2 or labels[2] == "svc":
        return labels[1], labels[0]
    # A pod of a StatefulSet by its own name: what is behind its Service will do.
    if len(labels) > 3 and labels[3] == "svc":
        return labels[2], labels[1]
    return None


def way(cluster: Reader, host: str, port: int, namespace: str) -> Callable[[], socket] | None:
    """How to connect to a Service of the cluster; None for what is none.

    Raises NotFoundError, UnreachableError where no pod stands behind it.
    """
    named = service_of(host, namespace)
    if named is None:
        return None
    where, name = named
    try:
        service = cluster.read(SERVICES, where, name)
    except NotFoundError as error:
        if ".svc" not in f"{host}.":
            return None
        raise NotFoundError(
            f"Service {where}/{name} is not there", why="the Redis URL names it", fix=_FIX
        ) from error
    selector = (service["spec"] or {}).get("selector")
    if not selector:
        return None
    wanted = ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
    ready = [pod for pod in cluster.read_all(PODS, where, wanted) if _ready(pod)]
    if not ready:
        raise UnreachableError(
            f"no ready pod stands behind Service {where}/{name}",
            why="what it leads to is not up, or not yet",
            fix=f"`kubectl get pods -n {where} -l {wanted}` shows why",
        )
    pod = ready[0]
    target = target_port(service, pod, port)

    def connect() -> socket:
        return cluster.open_port(where, pod["metadata"]["name"], target)

    return connect


def target_port(service: Document, pod: Document, port: int) -> int:
    """The container's port behind a Service's."""
    target: Any = port
    for one in service["spec"].get("ports") or ():
        if one["port"] == port:
            target = one.get("targetPort", port)
    if isinstance(target, int):
        return target
    for container in pod["spec"]["containers"]:
        for one in container.get("ports") or ():
            if one.get("name") == target:
                return int(one["containerPort"])
    return port


def _ready(pod: Document) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return "deletionTimestamp" not in pod["metadata"] and any(
        one["type"] == "Ready" and one["status"] == "True" for one in conditions
    )


def _client(address: Address, cluster: Reader | None) -> Redis:
    """A client of the address; a Service is reached through the API server."""
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options: dict[str, Any] = {
        "socket_timeout": _ANSWER,
        "socket_connect_timeout": _CONNECT,
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
    if cluster is None or parts.scheme == "unix" or _inside():
        return client
    connect = way(cluster, parts.hostname or "", parts.port or 6379, address.namespace or "default")
    if connect is not None:
        pool = client.connection_pool
        pool.connection_class = _through(pool.connection_class, connect)
    return client


def _inside() -> bool:
    """Whether this runs in a pod, where Services can be reached as they are."""
    import os

    return "KUBERNETES_SERVICE_HOST" in os.environ


def _through(plain: Any, connect: Callable[[], socket]) -> Any:
    """A class of connection that gets its socket from ``connect``; TLS is put over it as usual."""
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
