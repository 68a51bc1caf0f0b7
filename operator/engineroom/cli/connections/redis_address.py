"""Finds the address of a Redis: in a URL, in a Secret that an object names, or in the chart.

A pool or policy names a Secret with the URL, or the operator made one for the pool. Secrets are
read with the user's own rights.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from engineroom.api import LABEL_POOL
from engineroom.cli.errors import ForbiddenError, NotFoundError, UsageError
from engineroom.kube.client.resources import DEPLOYMENTS, SECRETS
from engineroom.redis.urls import FORM, displayed_url, url_problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engineroom.cli.connections.model import Document, Pool
    from engineroom.kube.client.resources import Resource

#: The environment variable of --redis-url; in the operator's Deployment it names the Secret.
VARIABLE = "ENGINEROOM_REDIS_URL"
#: Selects the installation's operator, whose Deployment names the Secret of the chart's Redis.
_OPERATOR = "app.kubernetes.io/part-of=engineroom,app.kubernetes.io/component=operator"
_FIX = f"name another pool with --pool, or give the URL in {VARIABLE}"
_CHART = "the chart's Redis"


class ObjectReader(Protocol):
    """Reads objects of a cluster. All methods raise CliError."""

    def read(self, resource: Resource, namespace: str | None, name: str) -> Document:
        """Return one object. Raises NotFoundError, ForbiddenError."""
        ...

    def read_all(
        self, resource: Resource, namespace: str | None, selector: str | None = None
    ) -> list[Document]:
        """Return the objects of a namespace, or of all namespaces if it is None."""
        ...


class PoolReader(ObjectReader, Protocol):
    """Reads objects and pools of a cluster. All methods raise CliError."""

    def pools(self, namespace: str | None, selector: str | None = None) -> tuple[Pool, ...]:
        """Return the pools of a namespace, or of all namespaces if it is None."""
        ...

    def pool(self, namespace: str, name: str) -> Pool:
        """Return one pool. Raises NotFoundError."""
        ...


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """The address of a Redis, with its TLS settings.

    ``namespace`` is where a host name without a namespace is looked up; None for a URL that the
    user gave, which is reached from this machine.
    """

    url: str
    namespace: str | None = None
    #: Certificates (PEM) of the CA.
    ca: str | None = None
    insecure: bool = False

    def __repr__(self) -> str:
        """Return the address without the user and password of its URL."""
        return f"RedisAddress({displayed_url(self.url)!r}, namespace={self.namespace!r})"


@dataclass(frozen=True, slots=True)
class RedisTarget:
    """A Redis to connect to: its address, its name in messages, the pools that share it."""

    address: RedisAddress
    title: str
    pools: tuple[Pool, ...] = ()


def url_target(url: str) -> RedisTarget:
    """Return the Redis at a URL that the user gave."""
    return RedisTarget(RedisAddress(url), displayed_url(url))


def pool_target(cluster: PoolReader, namespace: str, name: str) -> RedisTarget:
    """Return the Redis of one pool."""
    pool = cluster.pool(namespace, name)
    return _shared_target(cluster, (pool,))


def namespace_target(cluster: PoolReader, namespace: str) -> RedisTarget:
    """Return the Redis that the pools of a namespace share; without pools, the chart's.

    Raises UsageError if the pools use several, or if there are neither pools nor a chart's Redis.
    """
    pools = cluster.pools(namespace)
    if pools:
        _require_one_redis(pools, namespace)
        return _shared_target(cluster, pools)
    address = _chart_address(cluster)
    if address is None:
        raise UsageError(
            f"there is no pool in namespace {namespace} that would name a Redis",
            fix=f"name the namespace with -n, or give the URL in {VARIABLE}",
        )
    return RedisTarget(address, _CHART)


def spec_target(cluster: ObjectReader, namespace: str, redis: Document) -> RedisTarget:
    """Return the Redis that the ``spec.redis`` of an object in the namespace names."""
    title = f"the Redis of Secret {redis['urlSecretRef']['name']}"
    return RedisTarget(_spec_address(cluster, namespace, redis), title)


def chart_target(cluster: ObjectReader) -> RedisTarget:
    """Return the chart's Redis. Raises NotFoundError if it cannot be found or read."""
    address = _chart_address(cluster)
    if address is None:
        raise NotFoundError(
            "the chart's Redis cannot be found",
            why="no Deployment of the operator names it, or you may not read it",
            fix=f"give the URL in {VARIABLE}",
        )
    return RedisTarget(address, _CHART)


def _shared_target(cluster: ObjectReader, pools: Sequence[Pool]) -> RedisTarget:
    pool = pools[0]
    title = f"the Redis of pool {pool.id}" if _secret_reference(pool) else _CHART
    return RedisTarget(_pool_address(cluster, pool), title, tuple(pools))


def _require_one_redis(pools: Sequence[Pool], namespace: str) -> None:
    """Raise UsageError if the pools name more than one Redis."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for pool in pools:
        groups.setdefault(_secret_reference(pool), []).append(pool.name)
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


def _secret_reference(pool: Pool) -> tuple[str, ...]:
    """Return name and key of the Secret in the pool's spec; empty for the chart's Redis."""
    redis = pool.document.get("spec", {}).get("redis")
    if not redis:
        return ()
    reference = redis["urlSecretRef"]
    return reference["name"], reference["key"]


def _pool_address(cluster: ObjectReader, pool: Pool) -> RedisAddress:
    if _secret_reference(pool):
        return _spec_address(cluster, pool.namespace, pool.document["spec"]["redis"])
    try:
        secrets = cluster.read_all(SECRETS, pool.namespace, f"{LABEL_POOL}={pool.name}")
    except ForbiddenError:
        secrets = []
    secrets = [secret for secret in secrets if "url" in (secret.get("data") or {})]
    if secrets:
        latest = max(secrets, key=lambda secret: secret["metadata"].get("creationTimestamp", ""))
        return RedisAddress(_decode(latest["data"]["url"]), pool.namespace)
    address = _chart_address(cluster)
    if address is None:
        raise NotFoundError(
            f"no Secret says where the Redis of pool {pool.id} is",
            why="its spec names none, and the operator's own cannot be found or read",
            fix=_FIX,
        )
    return address


def _spec_address(cluster: ObjectReader, namespace: str, redis: Document) -> RedisAddress:
    url, tls = redis["urlSecretRef"], redis.get("tls") or {}
    ca = tls.get("caSecretRef")
    return RedisAddress(
        _secret_value(cluster, namespace, url["name"], url["key"], field="spec.redis.urlSecretRef"),
        namespace,
        ca
        and _secret_value(
            cluster, namespace, ca["name"], ca["key"], field="spec.redis.tls.caSecretRef"
        ),
        bool(tls.get("insecureSkipVerify")),
    )


def _chart_address(cluster: ObjectReader) -> RedisAddress | None:
    """Return the address in the operator's Deployment; None if it cannot be found or read."""
    try:
        operators = cluster.read_all(DEPLOYMENTS, None, _OPERATOR)
    except ForbiddenError:
        return None
    for operator in operators:
        namespace = operator["metadata"]["namespace"]
        for container in operator["spec"]["template"]["spec"]["containers"]:
            for variable in container.get("env") or ():
                source = (variable.get("valueFrom") or {}).get("secretKeyRef")
                if variable["name"] == VARIABLE and source:
                    url = _secret_value(
                        cluster, namespace, source["name"], source["key"], field=VARIABLE
                    )
                    return RedisAddress(url, namespace)
    return None


def _secret_value(cluster: ObjectReader, namespace: str, name: str, key: str, *, field: str) -> str:
    try:
        secret = cluster.read(SECRETS, namespace, name)
    except NotFoundError as error:
        raise NotFoundError(
            f"Secret {namespace}/{name} does not exist", why=f"{field} names it", fix=_FIX
        ) from error
    except ForbiddenError as error:
        raise ForbiddenError(
            f"you may not read Secret {namespace}/{name}",
            why=f"{field} names it: it holds the address and password of Redis",
            fix="ask for the right to `get` Secrets there (the role edit has it), or give the URL "
            f"in {VARIABLE}",
        ) from error
    data = secret.get("data") or {}
    if key not in data:
        raise NotFoundError(
            f"Secret {namespace}/{name} has no key {key}",
            why=f"{field} names it; its keys are: {', '.join(sorted(data)) or 'none'}",
            fix=_FIX,
        )
    return _decode(data[key])


def _decode(encoded: str) -> str:
    return base64.b64decode(encoded).decode().strip()


def check_url(url: str) -> None:
    """Raise UsageError, which never shows the URL, unless it is a Redis URL."""
    problem = url_problem(url)
    if problem:
        raise UsageError("the Redis URL is invalid", why=problem, fix=FORM)
