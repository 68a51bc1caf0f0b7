"""One Redis for the tests of this directory; each begins with it empty."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis

from tests.support import redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support import RedisServer


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as made:
        yield made


@pytest.fixture
def store(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port, decode_responses=True) as client:
        client.flushall()
        yield client
