"""The decision service while Redis is slow, fails over and is flushed, and with many policies: it
answers in time, and nobody gets more than the limit for it."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio

from engineroom.core.errors import DependencyError, InvalidSpecError
from engineroom.ratelimit.distribution.document import (
    DocumentText,
    part_hash,
    part_of,
    render_document,
)
from engineroom.ratelimit.distribution.policy_follower import Follower
from engineroom.ratelimit.distribution.publish import replace_document
from engineroom.ratelimit.distribution.redis_schema import keys_of
from engineroom.ratelimit.limits.model import (
    Distribution,
    DistributionMode,
    Failure,
    FailureMode,
    Limit,
    Policy,
    Rate,
)
from engineroom.ratelimit.limits.sources import ClientIP, Header
from engineroom.ratelimit.service.file import read_namespaces
from tests.integration.ratelimit.relay import Relay
from tests.limiter import LimiterProcess, compiled, get, limiter_process, peek, publish
from tests.support import RedisServer, redis_server
from tests.unit.api.policies import WRONG
from tests.unit.api.policies import policy as spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engineroom.ratelimit.distribution.document import CompiledPolicy

FROM = {"X-Forwarded-For": "192.0.2.1"}
PEER = {"peer": "192.0.2.1"}


def policy(requests: int = 10, timeout: float = 1.0, **more: Any) -> Policy:
    limit = Limit("per-address", Rate(requests, 3600), key=(ClientIP(),))
    return Policy("shop/api", (limit,), Failure(FailureMode.CLOSED, timeout), **more)


def until(holds: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ask(limiter: LimiterProcess, who: str = "192.0.2.1") -> int:
    return get(f"{limiter.url}/v1/forward/shop/api", {"X-Forwarded-For": who})[0]


def replicated(primary: redis.Redis) -> None:
    """Wait until the replica has all writes; WAIT covers those of the calling client only."""
    with primary.client() as connection:
        connection.set("replicated", 1)
        assert connection.wait(1, 5000) == 1


@pytest.fixture
def relay(server: RedisServer) -> Iterator[Relay]:
    with Relay(server.port) as built:
        yield built


def test_a_redis_whose_every_answer_is_late_is_worse_than_none_and_costs_no_more(
    store: redis.Redis, relay: Relay, tmp_path: Path
) -> None:
    publish(store, [compiled(policy(timeout=0.1))])
    with limiter_process(relay.url, tmp_path, namespaces="shop") as limiter:
        until(lambda: ask(limiter) == 200)
        relay.delay = 0.5
        began = time.monotonic()
        statuses = Counter(ask(limiter) for _ in range(30))
        # Each of the first few waits for its deadline; then the breaker spares them that.
        assert time.monotonic() - began < 4
        assert statuses[503] >= 25
        relay.delay = 0.0
        until(lambda: ask(limiter, "192.0.2.99") == 200)
        # What was given up may have been counted all the same; nothing was counted twice over.
        admitted = 1 + sum(ask(limiter) == 200 for _ in range(20))
        assert admitted <= 10


def test_a_failover_keeps_what_was_consumed(tmp_path: Path) -> None:
    """The replica is promoted, then the address leads to it; the old primary becomes a replica, so
    connections that stayed there are told that it is read-only."""
    with (
        redis_server() as first,
        redis_server() as second,
        Relay(first.port) as relay,
        redis.Redis(port=first.port, decode_responses=True) as old,
        redis.Redis(port=second.port, decode_responses=True) as new,
    ):
        publish(old, [compiled(policy())])
        old.config_set("repl-diskless-sync-delay", 0)
        new.replicaof("127.0.0.1", first.port)
        until(lambda: info(new)["master_link_status"] == "up")
        with limiter_process(relay.url, tmp_path, namespaces="shop") as limiter:
            admitted = 0
            until(lambda: ask(limiter, "192.0.2.99") == 200)
            admitted += sum(ask(limiter) == 200 for _ in range(4))
            replicated(old)
            relay.target = second.port
            new.replicaof("NO", "ONE")
            old.replicaof("127.0.0.1", second.port)
            # Requests are refused meanwhile, because they cannot be counted.
            until(lambda: ask(limiter, "192.0.2.98") == 200)
            admitted += sum(ask(limiter) == 200 for _ in range(20))
            assert admitted == 10
            # Policies are followed at the new one.
            publish(new, [compiled(policy(requests=12))], revision=2)
            until(lambda: peek(limiter, "shop/api", PEER).get("quota") == 12)


async def test_who_writes_policies_and_who_follows_them_go_along_with_a_failover() -> None:
    with redis_server() as first, redis_server() as second, Relay(first.port) as relay:
        old, new = (
            redis.Redis(port=entry.port, decode_responses=True) for entry in (first, second)
        )
        old.config_set("repl-diskless-sync-delay", 0)
        new.replicaof("127.0.0.1", first.port)
        until(lambda: info(new)["master_link_status"] == "up")
        async with redis.asyncio.Redis.from_url(relay.url) as client:
            with redis.Redis.from_url(relay.url) as sync, Follower(sync, "shop") as follower:
                head = await replace_document(client, "shop", "", document(1))
                until(lambda: follower.current.revision == 1)
                replicated(old)
                relay.target = second.port
                new.replicaof("NO", "ONE")
                old.replicaof("127.0.0.1", second.port)
                with pytest.raises(DependencyError):
                    await replace_document(client, "shop", head, document(2))
                await replace_document(client, "shop", head, document(2))
                until(lambda: follower.current.revision == 2)
                until(lambda: new.zcard(keys_of("shop").alive) == 1)
                assert new.hget(keys_of("shop").entries, follower.identity) is not None
        old.close()
        new.close()


def document(revision: int) -> DocumentText:
    part = part_of(compiled(policy(requests=revision)))
    return render_document(
        "shop", [(part, part_hash(part))], revision=revision, lineage="a", before={}
    )


def info(client: redis.Redis) -> dict[str, Any]:
    actual: Any = client.info("replication")
    return dict(actual)


def test_the_way_to_redis_is_cut_again_and_again_under_load(
    store: redis.Redis, relay: Relay, tmp_path: Path
) -> None:
    publish(store, [compiled(policy(requests=50))])
    with limiter_process(relay.url, tmp_path, namespaces="shop") as limiter:
        until(lambda: ask(limiter, "192.0.2.99") == 200)
        statuses: Counter[int] = Counter()
        ended = threading.Event()

        def load() -> None:
            while not ended.is_set():
                statuses[ask(limiter)] += 1

        threads = [threading.Thread(target=load) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            time.sleep(0.1)
            relay.cut()
        until(lambda: statuses[429] > 0)
        ended.set()
        for thread in threads:
            thread.join()
        assert statuses[200] <= 50
        assert set(statuses) <= {200, 429, 503}


def test_leases_of_limiters_that_are_killed_let_nobody_have_more(
    store: redis.Redis, server: RedisServer, tmp_path: Path
) -> None:
    leased = Distribution(DistributionMode.LEASED, "0.5", lease_ttl=0.5)
    publish(store, [compiled(policy(requests=40, distribution=leased))])
    admitted = 0
    for round_ in range(2):
        limiter = LimiterProcess(server.url, tmp_path / "log", namespaces="shop")
        limiter.start()
        try:
            admitted += sum(ask(limiter) == 200 for _ in range(12 if round_ == 0 else 60))
        finally:
            limiter.kill()
    # B + r * w + min(L, r * TTL) of a rate of 40 an hour: the burst, and less than one more.
    assert admitted <= 41


def test_a_thousand_policies(store: redis.Redis, server: RedisServer, tmp_path: Path) -> None:
    def many(edited: int) -> list[CompiledPolicy]:
        return [
            compiled(
                Policy(
                    f"shop/p{place}",
                    (
                        Limit(
                            "per-address",
                            Rate(edited if place == 500 else 1 + place % 7, 3600),
                            key=(ClientIP(),),
                        ),
                        Limit("per-key", Rate(1000, 1), key=(Header("X-Api-Key"),)),
                    ),
                    Failure(timeout=2.0),
                )
            )
            for place in range(1000)
        ]

    publish(store, [compiled(policy())])
    with limiter_process(server.url, tmp_path, namespaces="shop") as limiter:
        before = memory(limiter.pid)
        publish(store, many(3), revision=2)
        began = time.monotonic()
        until(lambda: peek(limiter, "shop/p999", PEER).get("allowed"))
        loaded = time.monotonic() - began
        for place in (0, 13, 999):
            url = f"{limiter.url}/v1/forward/shop/p{place}"
            most = 1 + place % 7
            assert [get(url, FROM)[0] for _ in range(most + 1)] == [200] * most + [429]
        grown = memory(limiter.pid) - before
        # One that is edited among them is enforced soon, and the others keep their counts.
        publish(store, many(5), revision=3)
        url = f"{limiter.url}/v1/forward/shop/p500"
        until(lambda: [get(url, FROM)[0] for _ in range(6)][-1] == 429)
        assert get(f"{limiter.url}/v1/forward/shop/p13", FROM)[0] == 429
    # Measured: 0.2 s and 9 MiB.
    assert loaded < 5
    assert grown < 40 * 2**20


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(pid)


@pytest.mark.parametrize("wrong", [name for name in WRONG if name != "name-with-dots"])
def test_a_file_with_a_policy_that_is_none_is_refused_whole(wrong: str, tmp_path: Path) -> None:
    """The service refuses at its start what admission refuses, with the same message."""
    changes, expected = WRONG[wrong]
    path = tmp_path / "limits.yaml"
    path.write_text(json.dumps(spec(changes)))
    with pytest.raises(InvalidSpecError) as caught:
        read_namespaces(path, redis.asyncio.Redis(), 1)
    for words in expected:
        assert words in str(caught.value)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_service_does_not_start_with_such_a_file(
    processes: str, server: RedisServer, tmp_path: Path
) -> None:
    path = tmp_path / "limits.yaml"
    path.write_text(json.dumps(spec(WRONG["rate-zero"][0])))
    process = LimiterProcess(server.url, tmp_path / "log", policies=str(path), processes=processes)
    with pytest.raises(RuntimeError, match="does not run"):
        process.start()
    assert "requests" in process.tail()
    assert "Traceback" not in process.tail()
