"""A cluster of Redis with several shards is refused, and the refusal says what to do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
import redis
import redis.asyncio

from engineroom.core.errors import MeasurementError
from engineroom.ratelimit.distribution.application import AsgiPolicies, WsgiPolicies
from engineroom.ratelimit.distribution.policy_follower import AsyncFollower, Follower
from engineroom.ratelimit.limits.cluster import refuse_shards
from engineroom.ratelimit.limits.errors import RedisClusterError
from engineroom.ratelimit.limits.limiter import AsyncLimiter, Limiter
from engineroom.ratelimit.limits.model import Failure, Limit, Policy, Rate
from engineroom.ratelimit.reconcile.observe import read_roster
from engineroom.ratelimit.reconcile.policy_stores import PolicyStores
from engineroom.ratelimit.service.main import Service
from engineroom.ratelimit.service.settings import Settings
from engineroom.redis.address import Address
from tests.integration.ratelimit.test_follow import until
from tests.limiter import LimiterProcess
from tests.support import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POLICY = Policy("shop/api", (Limit("all", Rate(2, 3600)),), Failure(timeout=2.0))


@contextlib.contextmanager
def node(folder: Path) -> Iterator[int]:
    """One of a cluster, without slots; gives its port."""
    port, bus = free_port(), free_port()
    folder.mkdir()
    process = subprocess.Popen(
        [
            os.environ.get("ENGINEROOM_TEST_REDIS") or "redis-server",
            *("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)),
            *("--cluster-enabled", "yes", "--cluster-port", str(bus), "--loglevel", "warning"),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        wait(lambda: redis.Redis(port=port).ping())
        yield port
    finally:
        process.kill()
        process.wait()


def wait(holds: object) -> None:
    deadline = time.monotonic() + 15
    while True:
        with contextlib.suppress(redis.RedisError):
            if holds():  # type: ignore[operator]
                return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def cluster_info(port: int) -> dict[str, str]:
    with redis.Redis(port=port) as client:
        return dict(client.execute_command("CLUSTER INFO"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A cluster of one."""
    with node(tmp_path_factory.mktemp("cluster") / "a") as port:
        with redis.Redis(port=port) as client:
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        wait(lambda: cluster_info(port)["cluster_state"] == "ok")
        yield port


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """A cluster of two."""
    folder = tmp_path_factory.mktemp("cluster")
    with node(folder / "a") as first, node(folder / "b") as second:
        with redis.Redis(port=first) as one, redis.Redis(port=second) as other:
            one.execute_command("CLUSTER ADDSLOTSRANGE", 0, 8191)
            other.execute_command("CLUSTER ADDSLOTSRANGE", 8192, 16383)
            bus = other.config_get("cluster-port")["cluster-port"]
            one.execute_command("CLUSTER MEET", "127.0.0.1", second, bus)
        for port in (first, second):
            wait(lambda port=port: cluster_info(port)["cluster_state"] == "ok")
            wait(lambda port=port: int(cluster_info(port)["cluster_size"]) == 2)
        yield first, second


def test_a_client_of_a_cluster_is_refused_at_once(alone: int) -> None:
    with redis.RedisCluster("127.0.0.1", alone) as client:
        for make in (
            lambda: Limiter(POLICY, client),
            lambda: Follower(client, "shop"),
            lambda: WsgiPolicies(lambda *_: [], client, "shop", {"app": "shop"}),
        ):
            with pytest.raises(RedisClusterError, match="RedisCluster is a cluster client; use"):
                make()


async def test_an_async_client_of_a_cluster_is_refused_at_once(alone: int) -> None:
    client = redis.asyncio.RedisCluster("127.0.0.1", alone)

    async def application(*_: object) -> None:
        pass

    for make in (
        lambda: AsyncLimiter(POLICY, client),
        lambda: AsyncFollower(client, "shop"),
        lambda: AsgiPolicies(application, client, "shop", {"app": "shop"}),
    ):
        with pytest.raises(RedisClusterError, match="RedisCluster is a cluster client; use"):
            make()
    await client.aclose()


async def test_one_shard_serves_a_plain_client(alone: int) -> None:
    """Keys of a policy have one hash tag: the script is not refused as across slots."""
    limits = tuple(Limit(name, Rate(2, 3600)) for name in ("a", "b", "c"))
    async with redis.asyncio.Redis(port=alone) as client:
        await refuse_shards(client)
        async with AsyncLimiter(Policy("p", limits, Failure(timeout=2.0)), client) as limiter:
            assert [(await limiter.hit("x")).allowed for _ in range(3)] == [True, True, False]
            assert limiter.failed == 0


async def test_several_shards_are_refused(shards: tuple[int, int]) -> None:
    for port in shards:
        async with redis.asyncio.Redis(port=port) as client:
            with pytest.raises(
                RedisClusterError, match="cluster of 2 shards; use one Redis for rate limits"
            ):
                await refuse_shards(client)


async def test_what_reads_policies_says_why_it_cannot(shards: tuple[int, int]) -> None:
    text = []
    for port in shards:
        async with redis.asyncio.Redis(port=port) as client:
            try:
                await read_roster(client, "shop")
            except MeasurementError as error:
                text.append(str(error))
    assert len(text) == 1, "the keys are on one of them"
    assert "MovedError: Redis is a cluster; use one Redis for rate limits" in text[0]


async def test_the_operator_says_so(
    shards: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    stores = PolicyStores(lambda _: None, lambda: None)
    stores.of(Address(f"redis://127.0.0.1:{shards[0]}/0"))
    output: list[str] = []

    def reported() -> bool:
        output.append(capsys.readouterr().out)
        return "cluster of 2 shards" in "".join(output)

    await until(reported)
    await stores.close()


def test_a_limiter_does_not_start_and_says_why(shards: tuple[int, int], tmp_path: Path) -> None:
    process = LimiterProcess(f"redis://127.0.0.1:{shards[0]}/0", tmp_path / "limiter.log")
    with pytest.raises(RuntimeError, match="cluster of 2 shards"):
        process.start()
    assert "the limiter cannot start" in process.tail()


def test_a_limiter_that_finds_a_cluster_later_is_not_ready(
    shards: tuple[int, int], tmp_path: Path
) -> None:
    async def later() -> tuple[int, str]:
        settings = Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0")
        service = Service(settings)
        assert not await service._checked_shards(), "no Redis answered"
        service._redis = redis.asyncio.Redis(port=shards[0])
        await service._check_shards()
        status, _, body = await service._ready({})
        await service._redis.aclose()
        return status, body.decode()

    status, body = asyncio.run(later())
    assert status == 503
    assert "cluster of 2 shards" in body
