"""One Redis for the tests of this directory; each begins with it empty. And for those of policies
on a real API server an operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import redis
import redis.asyncio

from tests.integration.pools import OperatorProcess
from tests.integration.ratelimit.policies import Policies

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from engineroom.kube.client.client import Client
    from tests.cluster.api import Cluster
    from tests.support import RedisServer


@pytest.fixture
def store(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port, decode_responses=True) as client:
        client.flushall()
        yield client


@pytest_asyncio.fixture
async def redis_client(
    server: RedisServer, store: redis.Redis
) -> AsyncIterator[redis.asyncio.Redis]:
    """Return a client of the empty Redis that returns bytes, as programs have it."""
    async with redis.asyncio.Redis(port=server.port) as built:
        yield built


@pytest_asyncio.fixture
async def store_async(server: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis(port=server.port, decode_responses=True) as built:
        yield built


@pytest_asyncio.fixture
async def operator(
    control_plane: Cluster, server: RedisServer, namespace: str
) -> AsyncIterator[OperatorProcess]:
    process = OperatorProcess(control_plane.kubeconfig, server.url, namespace)
    await process.start()
    yield process
    await process.stop()


@pytest.fixture
def policies(client: Client, namespace: str) -> Policies:
    return Policies(client, namespace)
