"""Joining and leaving the connection of a pool's Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from engineroom.kube.client.errors import NotFound
from engineroom.kube.client.resources import WORKERPOOLS
from engineroom.workers.redis_measurement import PoolConnection, RedisMeasurer

if TYPE_CHECKING:
    from collections.abc import Callable

POOL = WORKERPOOLS.ref("shop", "mail", "1")


class Connections:
    """Counts the pools that have joined."""

    def __init__(self) -> None:
        self.joined = 0

    def join(self, *_: object) -> object:
        self.joined += 1
        return self

    def leave(self, *_: object) -> None:
        self.joined -= 1


class Addresses:
    """Resolves an address, while something else happens."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self._meanwhile = meanwhile

    async def resolve(self, *_: object) -> str:
        self._meanwhile()
        return "address"


class Tenancy:
    """Allows every namespace to use the installation's Redis."""

    async def require_shared(self, _namespace: str) -> None:
        return None


class Plan:
    """A plan with its Redis and queues."""

    redis = None
    queues = ("mail",)


async def test_a_pool_that_is_deleted_during_a_measurement_joins_nothing() -> None:
    connections, joined = Connections(), PoolConnection()
    measurer: RedisMeasurer

    def deleted() -> None:
        measurer.end(POOL.key, joined)

    addresses, tenancy = Addresses(deleted), Tenancy()
    measurer = RedisMeasurer(cast("Any", addresses), cast("Any", connections), cast("Any", tenancy))

    with pytest.raises(NotFound, match="shop/mail was deleted"):
        await measurer.measure(POOL, cast("Any", Plan), joined)

    assert connections.joined == 0
