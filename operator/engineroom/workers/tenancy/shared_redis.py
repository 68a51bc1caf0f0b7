"""Namespaces that may use the installation's Redis: those with its label, and the release's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.api.shared_redis import SELECTOR, is_shared
from engineroom.core import reasons
from engineroom.core.async_cache import AsyncCache
from engineroom.kube.client.errors import NotFound
from engineroom.kube.client.resources import NAMESPACES
from engineroom.workers.tenancy.errors import RedisAccessError

if TYPE_CHECKING:
    from collections.abc import Callable

    from engineroom.kube.client.client import Client
    from engineroom.kube.runtime.controller import Context
    from engineroom.kube.runtime.informer import Informer

#: Seconds between reads of a Namespace that cannot be watched.
READ_INTERVAL = 1.0


class SharedRedisNamespaces:
    """The namespaces whose pools may use the installation's Redis.

    A watch keeps the labels current. An operator of some namespaces has no right to watch
    Namespaces, so it reads each one, once a second at most.
    """

    def __init__(self, context: Context, on_change: Callable[[str], None]) -> None:
        """``on_change`` is called with a namespace that gained or lost the label."""
        self._client: Client = context.client
        self._system_namespace = context.system_namespace
        self._labelled: Informer[bool] | None = None
        self._answers: AsyncCache[bool] = AsyncCache(context.clock)
        if not context.namespaces:
            self._labelled = context.informer(
                NAMESPACES,
                SELECTOR,
                is_shared,
                on_index=lambda _: None,
                on_change=lambda key, _: on_change(key),
            )

    async def require(self, namespace: str) -> None:
        """Raise RedisAccessError unless the namespace's pools may use the installation's Redis."""
        if namespace == self._system_namespace or await self._is_labelled(namespace):
            return
        raise RedisAccessError(
            reasons.REDIS_NOT_SHARED,
            f"namespace {namespace} may not use the installation's Redis; label the Namespace "
            f"{SELECTOR}, or set spec.redis.urlSecretRef",
        )

    async def _is_labelled(self, namespace: str) -> bool:
        if self._labelled is not None:
            return self._labelled.get(None, namespace) is True
        return await self._answers.get(namespace, lambda: self._read(namespace))

    async def _read(self, namespace: str) -> tuple[bool, float]:
        try:
            return is_shared(await self._client.get(NAMESPACES, None, namespace)), READ_INTERVAL
        except NotFound:
            return False, READ_INTERVAL
