"""Finds the address of a Redis: in a URL, in a Secret that an object names, or in the chart.

A pool or policy names a Secret with the URL, or the operator made one for the pool. Secrets are
read with the user's own rights.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from engineroom.api import LABEL_POOL
from engineroom.cli.connections.release import OPTION, ObjectReader, release_deployment
from engineroom.cli.errors import ForbiddenError, NotFoundError, UsageError
from engineroom.kube.client.resources import SECRETS
from engineroom.redis.urls import FORM, displayed_url, url_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engineroom.cli.connections.model import Document, Pool
    from engineroom.cli.connections.release import Release

#: The environment variable of --redis-url; in the operator's Deployment it names the Secret.
VARIABLE = "ENGINEROOM_REDIS_URL"
_FIX = f"name another pool with --pool, or give the URL in {VARIABLE}"
_FIX_CHART = f"name the namespace of the installation with {OPTION}, or give the URL in {VARIABLE}"
_CHART = "the chart's Redis"


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
    #: True for the installation's own: no tenant may receive its password.
    installation: bool = False

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


def pool_target(
    cluster: PoolReader, namespace: str, name: str, find_release: Callable[[], Release]
) -> RedisTarget:
    """Return the Redis of one pool. ``find_release`` raises CliError."""
    pool = cluster.pool(namespace, name)
    return _shared_target(cluster, (pool,), find_release)


def namespace_target(
    cluster: PoolReader, namespace: str, find_release: Callable[[], Release]
) -> RedisTarget:
    """Return the Redis that the pools of a namespace share; without pools, the chart's.

    Raises UsageError if the pools use several, or if there are neither pools nor a chart's Redis.
    """
    pools = cluster.pools(namespace)
    if pools:
        _require_one_redis(pools, namespace)
        return _shared_target(cluster, pools, find_release)
    try:
        return chart_target(cluster, find_release)
    except (NotFoundError, ForbiddenError) as error:
        raise UsageError(
            f"there is no pool in namespace {namespace} that would name a Redis",
            why=f"nor is there a Redis of the installation: {error.what}",
            fix=f"name the namespace of the pools with -n; or {_FIX_CHART}",
        ) from error


def spec_target(cluster: ObjectReader, namespace: str, redis: Document) -> RedisTarget:
    """Return the Redis that the ``spec.redis`` of an object in the namespace names."""
    title = f"the Redis of Secret {redis['urlSecretRef']['name']}"
    return RedisTarget(_spec_address(cluster, namespace, redis), title)


def chart_target(cluster: ObjectReader, find_release: Callable[[], Release]) -> RedisTarget:
    """Return the Redis in the Deployment of the installation's operator.

    Raises NotFoundError if there is none, ForbiddenError, and what ``find_release`` raises.
    """
    release = find_release()
    operator = release_deployment(cluster, release, "operator")
    if operator is None:
        raise NotFoundError(
            f"no operator is installed in namespace {release.namespace}",
            why="its Deployment would name the Secret of the chart's Redis",
            fix=_FIX_CHART,
        )
    for container in operator["spec"]["template"]["spec"]["containers"]:
        for variable in container.get("env") or ():
            source = (variable.get("valueFrom") or {}).get("secretKeyRef")
            if variable["name"] == VARIABLE and source:
                url = _secret_value(
                    cluster, release.namespace, source["name"], source["key"], field=VARIABLE
                )
                return RedisTarget(RedisAddress(url, release.namespace, installation=True), _CHART)
    raise NotFoundError(
        f"the installation in namespace {release.namespace} has no Redis of its own",
        why=f"the Deployment of its operator takes no {VARIABLE} from a Secret",
        fix=f"give the URL in {VARIABLE}",
    )


def _shared_target(
    cluster: ObjectReader, pools: Sequence[Pool], find_release: Callable[[], Release]
) -> RedisTarget:
    pool = pools[0]
    address = _pool_address(cluster, pool)
    if address is not None:
        return RedisTarget(address, f"the Redis of pool {pool.id}", tuple(pools))
    try:
        chart = chart_target(cluster, find_release)
    except (NotFoundError, ForbiddenError) as error:
        raise NotFoundError(
            f"no Secret says where the Redis of pool {pool.id} is",
            why=f"its spec names none, and of the installation's: {error.what}",
            fix=_FIX_CHART,
        ) from error
    return RedisTarget(chart.address, chart.title, tuple(pools))


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


def _pool_address(cluster: ObjectReader, pool: Pool) -> RedisAddress | None:
    """Return the address in the Secret of the pool; None if it has none, or it cannot be read.

    Authors of Secrets in the pool's namespace choose this address, so it is that of the pool and
    never called the chart's.
    """
    if _secret_reference(pool):
        return _spec_address(cluster, pool.namespace, pool.document["spec"]["redis"])
    try:
        secrets = cluster.read_all(SECRETS, pool.namespace, f"{LABEL_POOL}={pool.name}")
    except ForbiddenError:
        return None
    own = [secret for secret in secrets if _is_copy_for(secret, pool)]
    if not own:
        return None
    latest = max(own, key=lambda secret: secret["metadata"].get("creationTimestamp", ""))
    return RedisAddress(_decode(latest["data"]["url"]), pool.namespace)


def _is_copy_for(secret: Document, pool: Pool) -> bool:
    """Return whether the operator made a Secret for this pool, and not for an earlier one."""
    owners = secret["metadata"].get("ownerReferences") or ()
    return "url" in (secret.get("data") or {}) and any(
        owner.get("controller") and owner.get("uid") == pool.uid for owner in owners
    )


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
