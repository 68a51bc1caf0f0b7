"""The decision service as a process: what it answers, what it refuses, how it fails and ends."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from engineroom.ratelimit.distribution.document import Target
from engineroom.ratelimit.limits.matching import Condition
from engineroom.ratelimit.limits.model import (
    Distribution,
    DistributionMode,
    Failure,
    FailureMode,
    Limit,
    MissingKey,
    Mode,
    Policy,
    Rate,
)
from engineroom.ratelimit.limits.sources import ClientIP, Header, Method, Route, Tenant
from engineroom.ratelimit.service import rls
from tests.limiter import LimiterProcess, compiled, get, limiter_process, publish
from tests.limiter import peek as looked_at
from tests.support import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import redis

    from tests.support import RedisServer

METHOD = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
FROM = {"X-Forwarded-For": "192.0.2.1"}


def per_address(name: str = "shop/api", requests: int = 3, **more: Any) -> Policy:
    limit = Limit("per-address", Rate(requests, 3600), key=(ClientIP(),))
    return Policy(name, (limit,), **{"failure": Failure(timeout=1.0), **more})


@pytest.fixture(scope="module")
def limiter(
    server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LimiterProcess]:
    folder = tmp_path_factory.mktemp("limiter")
    with limiter_process(server.url, folder, request_timeout="4") as process:
        yield process


@pytest.fixture(autouse=True)
def _fresh(store: redis.Redis, limiter: LimiterProcess) -> None:
    """The last test's policies are gone from Redis and from the service."""
    publish(store, [compiled(per_address("shop/fresh"))], revision=time.monotonic_ns())
    until(lambda: get(f"{limiter.url}/v1/forward/shop/fresh")[0] != 404)


def until(holds: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def enforce(store: redis.Redis, limiter: LimiterProcess, *policies: Policy, **more: Any) -> None:
    """Publish, and wait until it is enforced."""
    entries = [compiled(policy, **more) for policy in policies]
    publish(store, entries, revision=time.monotonic_ns())
    name = policies[0].name
    until(lambda: looked_at(limiter, name, {"peer": "192.0.2.1"}))


def call(limiter: LimiterProcess, domain: str, *entries: tuple[str, str], hits: int = 0) -> Any:
    request = rls.RateLimitRequest(domain=domain, hits_addend=hits)
    descriptor = request.descriptors.add()
    for key, value in entries:
        descriptor.entries.add(key=key.encode(), value=value.encode())
    with grpc.insecure_channel(f"127.0.0.1:{limiter.grpc_port}") as channel:
        return channel.unary_unary(
            METHOD,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=rls.RateLimitResponse.FromString,
        )(request, timeout=10)


def raw(port: int, data: bytes, *, end: bool = False) -> bytes:
    """All that comes back until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
        connection.sendall(data)
        if end:
            connection.shutdown(socket.SHUT_WR)
        got = b""
        while chunk := connection.recv(65536):
            got += chunk
        return got


# ---- questions --------------------------------------------------------------------------------


def test_http_grpc_and_json_count_under_the_same_keys(
    store: redis.Redis, limiter: LimiterProcess
) -> None:
    enforce(store, limiter, per_address(requests=4))
    assert get(f"{limiter.url}/v1/forward/shop/api", FROM)[0] == 200
    assert get(f"{limiter.url}/v1/envoy/shop/api/items?page=1", FROM)[0] == 200
    answer = call(limiter, "shop/api", ("remote_address", "192.0.2.1"))
    assert (answer.overall_code, answer.statuses[0].limit_remaining) == (rls.OK, 1)
    query = {"namespace": "shop", "policy": "api", "request": {"peer": "192.0.2.1"}}
    assert post(limiter, "/v1/decide", query)[1]["remaining"] == 0
    assert get(f"{limiter.url}/v1/nginx/shop/api", FROM)[0] == 403
    assert get(f"{limiter.url}/v1/forward/shop/api", FROM)[0] == 429
    refused = call(limiter, "shop/api", ("remote_address", "192.0.2.1"))
    assert refused.overall_code == rls.OVER_LIMIT
    headers = {entry.key: entry.value for entry in refused.response_headers_to_add}
    assert int(headers["retry-after"]) > 800
    descriptors = [{"entries": [{"key": "remote_address", "value": "192.0.2.1"}]}]
    status, reported = post(limiter, "/json", {"domain": "shop/api", "descriptors": descriptors})
    assert (status, reported["overallCode"]) == (429, "OVER_LIMIT")


def post(limiter: LimiterProcess, path: str, document: object) -> tuple[int, Any]:
    body = json.dumps(document).encode()
    head = f"POST {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    answer = raw(limiter.http_port, head.encode() + body)
    return int(answer.split(b" ")[1]), json.loads(answer.partition(b"\r\n\r\n")[2])


def test_what_only_the_proxy_knows_comes_from_the_address_and_never_from_headers(
    store: redis.Redis, limiter: LimiterProcess
) -> None:
    limit = Limit("per-tenant", Rate(2, 3600), key=(Tenant(), Route()))
    enforce(store, limiter, Policy("shop/api", (limit,), Failure(timeout=1.0)))
    url = f"{limiter.url}/v1/forward/shop/api?route=items&tenant="
    forged = {"Tenant": "b", "X-Tenant": "b", "X-Forwarded-Uri": "/?tenant=b"}
    assert [get(url + "a", forged)[0] for _ in range(3)] == [200, 200, 429]
    assert get(url + "b", forged)[0] == 200
    entries = (("tenant", "a"), ("route", "items"))
    assert call(limiter, "shop/api", *entries).overall_code == rls.OVER_LIMIT


def test_a_target_is_asked_for_by_kind_and_name(
    store: redis.Redis, limiter: LimiterProcess
) -> None:
    route = Target("gateway.networking.k8s.io", "HTTPRoute", "checkout")
    enforce(store, limiter, per_address(requests=1), targets=[route])
    url = f"{limiter.url}/v1/forward/shop/HTTPRoute:checkout"
    assert [get(url, FROM)[0] for _ in range(2)] == [200, 429]
    assert get(f"{limiter.url}/v1/forward/shop/HTTPRoute:other", FROM)[0] == 200
    with pytest.raises(grpc.RpcError) as caught:
        call(limiter, "shop/other", ("remote_address", "192.0.2.1"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_the_address_is_the_last_that_the_proxy_wrote_and_further_hops_are_the_policys(
    store: redis.Redis, limiter: LimiterProcess
) -> None:
    enforce(
        store, limiter, per_address(requests=1), per_address("shop/behind", 1, trusted_proxy_hops=1)
    )
    chains = ["1.1.1.1, 192.0.2.9", "2.2.2.2, 192.0.2.9", "192.0.2.9"]
    url = f"{limiter.url}/v1/forward/shop"
    assert [get(f"{url}/api", {"X-Forwarded-For": c})[0] for c in chains] == [200, 429, 429]
    assert [get(f"{url}/behind", {"X-Forwarded-For": c})[0] for c in chains] == [200, 200, 200]
    more = "6.6.6.6, 1.1.1.1, 192.0.2.9"
    assert get(f"{url}/behind", {"X-Forwarded-For": more})[0] == 429


def test_explain_says_which_limits_apply_and_what_is_left_and_takes_nothing(
    store: redis.Redis, limiter: LimiterProcess
) -> None:
    posts = Condition(Method(), values=("POST",))
    limits = (
        Limit("per-address", Rate(3, 3600), key=(ClientIP(),)),
        Limit("posts", Rate(1, 3600), key=(ClientIP(),), when=(posts,)),
        Limit("per-key", Rate(9, 3600), key=(Header("X-Api-Key"),), missing_key=MissingKey.SKIP),
    )
    enforce(store, limiter, Policy("shop/api", limits, Failure(timeout=1.0)))
    assert get(f"{limiter.url}/v1/forward/shop/api", FROM)[0] == 200
    request = {"peer": "192.0.2.1", "headers": {"x-api-key": "hunter2"}}
    query = {"namespace": "shop", "policy": "api", "request": request}
    for _ in range(3):
        status, reported = post(limiter, "/v1/explain", query)
        assert (status, reported["allowed"]) == (200, True)
    first, second, third = reported["limits"]
    assert (first["key"], first["remaining"], first["quota"]) == (["192.0.2.1"], 2, 3)
    assert second == {"limit": "posts", "applies": False}
    assert third["remaining"] == 9
    assert "hunter2" not in json.dumps(reported)
    assert not post(limiter, "/v1/explain", {**query, "cost": 3})[1]["allowed"]
    assert post(limiter, "/v1/explain", {**query, "policy": "none"})[0] == 404


def test_a_shadowed_limit_is_counted_and_admits(
    store: redis.Redis, limiter: LimiterProcess
) -> None:
    limit = Limit("tried", Rate(1, 3600), key=(ClientIP(),), mode=Mode.SHADOW)
    enforce(store, limiter, Policy("shop/api", (limit,), Failure(timeout=1.0)))
    assert [get(f"{limiter.url}/v1/forward/shop/api", FROM)[0] for _ in range(3)] == [200] * 3
    reported = limiter.admin("/metrics")[1]
    assert 'engineroom_ratelimit_shadowed_total{limit="tried",policy="shop/api"} 2.0' in reported


def test_top_keys_are_recorded_on_demand_and_show_no_secrets(
    store: redis.Redis, limiter: LimiterProcess
) -> None:
    limits = (
        Limit("per-address", Rate(1000, 1), key=(ClientIP(),)),
        Limit("per-key", Rate(1000, 1), key=(Header("X-Api-Key"),)),
    )
    enforce(store, limiter, Policy("shop/api", limits, Failure(timeout=1.0)))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        top = pool.submit(limiter.admin, "/top?seconds=1&keys=5")
        while not top.done():
            get(f"{limiter.url}/v1/forward/shop/api", {**FROM, "X-Api-Key": "hunter2"})
        status, body = top.result()
    assert status == 200
    keys = {key["key"]: key["count"] for key in json.loads(body)["keys"]}
    assert keys["shop/api/per-address 192.0.2.1"] > 5
    assert "hunter2" not in body
    assert any(key.startswith("shop/api/per-key #") for key in keys)


# ---- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /v1/forward/shop/api HTTP/1.1\r\nX: " + b"k" * 1_000_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"POST /v1/decide HTTP/1.1\r\nContent-Length: 900000\r\n\r\n" + b"x" * 900_000, 413),
        (b"POST /v1/decide HTTP/1.1\r\nContent-Length: 4\r\nConnection: close\r\n\r\nnope", 400),
        (b"POST /json HTTP/1.1\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", 400),
        (b"GET /v1/forward/shop/api?cost=-1 HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        (b"GET /v1/forward/shop/api?cost=0 HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        (b"GET /v1/nginx/shop/api?cost=0 HTTP/1.1\r\nConnection: close\r\n\r\n", 403),
        (b"GET /v1/decide HTTP/1.1\r\nConnection: close\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", 404),
        (b"GET /v1/forward/../x HTTP/1.1\r\nConnection: close\r\n\r\n", 404),
        (b"GET /v1/forward/shop%2Fapi/x HTTP/1.1\r\nConnection: close\r\n\r\n", 404),
        (b"\x16\x03\x01 this is TLS\r\n\r\n", 400),
    ],
    ids=lambda value: value if isinstance(value, int) else value[:24].decode("latin-1").strip(),
)  # fmt: skip
def test_what_cannot_be_read_is_refused_and_the_next_is_answered(
    limiter: LimiterProcess, request_: bytes, status: int
) -> None:
    try:
        answer = raw(limiter.http_port, request_)
    except (ConnectionResetError, BrokenPipeError):
        assert len(request_) > 500_000  # closed before all of it was sent
    else:
        assert int(answer.split(b" ")[1]) == status
    assert get(f"{limiter.url}/v1/forward/shop/fresh", FROM)[0] in (200, 429)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"\x00\x00\x00\x00\x03\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        (b"", grpc.StatusCode.INVALID_ARGUMENT),
        (b"x" * 200_000, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
    ids=["nonsense", "empty", "huge"],
)
def test_a_message_that_cannot_be_read_is_refused(
    limiter: LimiterProcess, body: bytes, code: grpc.StatusCode
) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{limiter.grpc_port}") as channel:
        for method, expected in ((METHOD, code), ("/no/Method", grpc.StatusCode.UNIMPLEMENTED)):
            if method != METHOD and code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                continue
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(method)(body, timeout=10)
            assert caught.value.code() is expected


def test_header_bytes_that_are_no_text_count_the_same_over_http_and_grpc(
    store: redis.Redis, limiter: LimiterProcess
) -> None:
    limit = Limit("per-key", Rate(2, 3600), key=(Header("X-Api-Key"),))
    enforce(store, limiter, Policy("shop/api", (limit,), Failure(timeout=1.0)))
    question = (
        b"GET /v1/forward/shop/api HTTP/1.1\r\nConnection: close\r\nX-Api-Key: \xff\xfe\r\n\r\n"
    )
    assert raw(limiter.http_port, question).split(b" ")[1] == b"200"
    request = rls.RateLimitRequest(domain="shop/api")
    request.descriptors.add().entries.add(key=b"x-api-key", value=b"\xff\xfe")
    with grpc.insecure_channel(f"127.0.0.1:{limiter.grpc_port}") as channel:
        ask = channel.unary_unary(METHOD)
        codes = []
        for _ in range(2):
            answer = rls.RateLimitResponse.FromString(ask(request.SerializeToString(), timeout=10))
            codes.append(answer.overall_code)
    assert codes == [rls.OK, rls.OVER_LIMIT]


def test_requests_in_one_packet_are_answered_in_order(
    store: redis.Redis, limiter: LimiterProcess
) -> None:
    enforce(store, limiter, per_address(requests=1000))
    first = b"GET /v1/forward/shop/%s HTTP/1.1\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"
    query = [b"api" if number % 3 else b"none" for number in range(500)]
    last = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"
    answer = raw(limiter.http_port, b"".join(first % name for name in query) + last)
    statuses = [part.split(b" ", 1)[0] for part in answer.split(b"HTTP/1.1 ")[1:]]
    expected = [b"200" if name == b"api" else b"404" for name in query]
    assert statuses == [*expected, b"404"]
    assert answer.count(b"r=999;") == 1  # each was counted once


def test_a_client_that_sends_slowly_is_closed_and_others_are_answered(
    limiter: LimiterProcess,
) -> None:
    with socket.create_connection(("127.0.0.1", limiter.http_port), timeout=15) as slow:
        slow.sendall(b"GET /v1/forward/shop/api HTTP/1.1\r\nX-Slow: ")
        assert get(f"{limiter.url}/v1/forward/shop/fresh", FROM)[0] in (200, 429)
        began = time.monotonic()
        got = slow.recv(1000)
    assert got.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < 10


# ---- faults -----------------------------------------------------------------------------------


def failing(mode: FailureMode) -> Policy:
    limit = Limit("per-address", Rate(6, 3600), key=(ClientIP(),))
    return Policy("shop/api", (limit,), Failure(mode, timeout=0.1, breaker_pause=0.1))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (FailureMode.OPEN, [200] * 8),
        (FailureMode.CLOSED, [503] * 8),
        # What this process counts by itself begins afresh; it is the only one, so all is its share.
        (FailureMode.LOCAL, [200] * 6 + [429] * 2),
    ],
    ids=lambda value: value.value if isinstance(value, FailureMode) else "",
)
def test_without_redis_the_failure_mode_decides_and_with_it_limits_hold_again(
    mode: FailureMode, expected: list[int], store: redis.Redis, limiter: LimiterProcess,
    server: RedisServer,
) -> None:  # fmt: skip
    enforce(store, limiter, failing(mode))
    url = f"{limiter.url}/v1/forward/shop/api"
    assert [get(url, FROM)[0] for _ in range(2)] == [200, 200]
    server.stop()
    try:
        began = time.monotonic()
        assert [get(url, FROM)[0] for _ in range(8)] == expected
        assert time.monotonic() - began < 3, "every call has its deadline, and then the breaker"
        # Away from Redis it is no better elsewhere: it stays ready.
        assert limiter.admin("/readyz")[0] == 200
    finally:
        server.start()
    # A Redis that was started anew has full buckets.
    until(lambda: "Redis" in source(limiter))
    publish(store, [compiled(failing(mode))], revision=time.monotonic_ns())
    left = [get(url, FROM)[0] for _ in range(10)]
    assert left.count(200) <= 6
    assert left[-1] == 429


def source(limiter: LimiterProcess) -> str:
    query = {"namespace": "shop", "policy": "api", "cost": 0, "request": {"peer": "192.0.2.99"}}
    return str(post(limiter, "/v1/decide", query)[1]["source"])


def test_a_slow_redis_is_given_up_in_time(
    store: redis.Redis, limiter: LimiterProcess, server: RedisServer
) -> None:
    enforce(store, limiter, failing(FailureMode.CLOSED))
    url = f"{limiter.url}/v1/forward/shop/api"
    assert get(url, FROM)[0] == 200
    pid = server_pid(store)
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert get(url, FROM)[0] == 503
        assert time.monotonic() - began < 1
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: source(limiter) == "Redis")


def server_pid(store: redis.Redis) -> int:
    info: Any = store.info("server")
    return int(info["process_id"])


def test_a_flushed_redis_admits_a_burst_and_no_more(
    store: redis.Redis, limiter: LimiterProcess
) -> None:
    enforce(store, limiter, per_address(requests=3))
    url = f"{limiter.url}/v1/forward/shop/api"
    assert [get(url, FROM)[0] for _ in range(4)] == [200, 200, 200, 429]
    store.flushall()
    # Who was refused is told so for as long as was said; others find full buckets.
    other = {"X-Forwarded-For": "192.0.2.2"}
    assert [get(url, other)[0] for _ in range(4)] == [200, 200, 200, 429]


def test_a_policy_edited_under_load_keeps_what_was_consumed(
    store: redis.Redis, limiter: LimiterProcess
) -> None:
    enforce(store, limiter, per_address(requests=3))
    url = f"{limiter.url}/v1/forward/shop/api"
    assert [get(url, FROM)[0] for _ in range(2)] == [200, 200]
    publish(store, [compiled(per_address(requests=4))], revision=time.monotonic_ns())
    until(lambda: '"quota":4' in json.dumps(peek(limiter)).replace(" ", ""))
    assert peek(limiter)["remaining"] in (1, 2)
    assert [get(url, FROM)[0] for _ in range(3)][-1] == 429


def peek(limiter: LimiterProcess) -> Any:
    query = {"namespace": "shop", "policy": "api", "cost": 0, "request": {"peer": "192.0.2.1"}}
    return post(limiter, "/v1/decide", query)[1]


# ---- processes --------------------------------------------------------------------------------


def test_at_the_end_answers_are_given_and_leases_come_back(
    store: redis.Redis, server: RedisServer, tmp_path: Path
) -> None:
    limit = Limit("all", Rate(1000, 3600), key=(ClientIP(),))
    leased = Distribution(DistributionMode.LEASED, "0.5", lease_ttl=30.0)
    policy = Policy("shop/leased", (limit,), Failure(timeout=1.0), leased)
    publish(store, [compiled(policy)], revision=time.monotonic_ns())
    with limiter_process(server.url, tmp_path, drain_delay="0.5", namespaces="shop") as process:
        url = f"{process.url}/v1/forward/shop/leased"
        for _ in range(30):
            assert get(url, FROM)[0] == 200
        books = [key for key in store.keys("er:rl:*") if key.endswith(":l")]
        assert books, "tokens are out on lease"
        process.terminate()
        until(lambda: process.admin("/readyz")[0] == 503)
        assert get(url, FROM)[0] == 200, "still answered until the proxies know"
        assert process.stop() == 0
    with limiter_process(server.url, tmp_path, namespaces="shop") as process:
        query = {"namespace": "shop", "policy": "leased", "cost": 0,
                 "request": {"peer": "192.0.2.1"}}  # fmt: skip
        assert post(process, "/v1/decide", query)[1]["remaining"] >= 1000 - 31


def test_several_processes_share_the_ports_and_speak_with_one_voice(
    store: redis.Redis, server: RedisServer, tmp_path: Path
) -> None:
    publish(store, [compiled(per_address(requests=20))], revision=time.monotonic_ns())
    with limiter_process(server.url, tmp_path, processes="2", namespaces="shop") as process:
        url = f"{process.url}/v1/forward/shop/api"
        statuses = [get(url, FROM)[0] for _ in range(40)]
        assert statuses.count(200) == 20
        reported = process.admin("/metrics")[1]
        counted = [
            float(line.rpartition(" ")[2])
            for line in reported.splitlines()
            if line.startswith("engineroom_ratelimit_requests_total{")
        ]
        assert sum(counted) == 40
        assert process.stop() == 0


def test_without_a_cluster_policies_come_from_a_file(
    store: redis.Redis, server: RedisServer, tmp_path: Path
) -> None:
    (tmp_path / "limits.yaml").write_text(
        """
apiVersion: engineroom.dev/v1alpha1
kind: RateLimitPolicy
metadata:
  name: api
  namespace: shop
spec:
  selector:
    matchLabels: {app: shop}
  failure: {timeout: 1s}
  limits:
    - name: per-address
      rate: {requests: 2, period: 1h}
      key: [{source: ClientIP}]
"""
    )
    with limiter_process(server.url, tmp_path, policies=str(tmp_path / "limits.yaml")) as process:
        url = f"{process.url}/v1/forward/shop/api"
        assert [get(url, FROM)[0] for _ in range(3)] == [200, 200, 429]
        assert get(f"{process.url}/v1/forward/blog/api", FROM)[0] == 404


@pytest.mark.parametrize(("enforcers", "most"), [("0", 6), ("4", 2)])
def test_processes_that_share_a_file_share_a_rate_without_redis(
    enforcers: str, most: int, tmp_path: Path
) -> None:
    (tmp_path / "limits.yaml").write_text(
        """\
apiVersion: engineroom.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: api, namespace: shop}
spec:
  selector: {matchLabels: {app: shop}}
  failure: {mode: Local, timeout: 50ms}
  limits: [{name: all, rate: {requests: 6, period: 1h}}]
"""
    )
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    with limiter_process(
        nowhere, tmp_path, policies=str(tmp_path / "limits.yaml"), processes="2",
        enforcers=enforcers,
    ) as process:  # fmt: skip
        url = f"{process.url}/v1/forward/shop/api"
        # Each is a connection of its own, which the kernel gives to either process.
        assert [get(url)[0] for _ in range(60)].count(200) == most


def test_a_killed_enforcer_admits_nothing_extra(
    store: redis.Redis, server: RedisServer, tmp_path: Path
) -> None:
    publish(store, [compiled(per_address(requests=5))], revision=time.monotonic_ns())
    process = LimiterProcess(server.url, tmp_path / "log", namespaces="shop")
    admitted = 0
    for _ in range(3):
        process.start()
        url = f"{process.url}/v1/forward/shop/api"
        admitted += [get(url, FROM)[0] for _ in range(4)].count(200)
        process.kill()
    assert admitted == 5
