"""A real Redis for the tests of tasks, and a stock RQ worker in the test's own process.

Run with the interpreter of either virtual environment, they are tests of RQ 3 or of RQ 2.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from engineroom.tasks import Tasks
from tests.support import RedisServer, redis_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
def redis(server: RedisServer) -> Iterator[Redis]:
    with contextlib.closing(Redis(port=server.port)) as client:
        client.flushall()
        yield client


@pytest.fixture
def tasks(redis: Redis) -> Tasks:
    return Tasks(redis)


@pytest.fixture
def work(redis: Redis) -> Callable[..., None]:
    """Run what waits on queues with RQ's own worker."""

    def run(*queues: str) -> None:
        from rq import SimpleWorker

        worker = SimpleWorker(list(queues or ("default",)), connection=redis)
        worker.work(burst=True, with_scheduler=False)

    return run
