"""One Redis for the attacks of this directory, empty at the start of each test."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from engineroom.core.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support import RedisServer


@pytest_asyncio.fixture
async def redis(server: RedisServer) -> AsyncIterator[Redis]:
    client = Redis.from_url(server.url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(datetime(2026, 6, 1, 12, tzinfo=UTC))
