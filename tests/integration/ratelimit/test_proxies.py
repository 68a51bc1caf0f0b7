"""The documented configurations in front of an application, with the real proxies."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from engineroom.ratelimit.distribution.document import Target
from engineroom.ratelimit.limits.matching import Condition, Operator
from engineroom.ratelimit.limits.model import (
    Failure,
    FailureMode,
    Limit,
    MissingKey,
    Policy,
    Rate,
)  # fmt: skip
from engineroom.ratelimit.limits.sources import APIKey, ClientIP, JWTClaim, Tenant
from engineroom.ratelimit.limits.sources import Path as RequestPath
from tests.integration.ratelimit import proxies
from tests.integration.ratelimit.proxies import ask
from tests.limiter import LimiterProcess, compiled, limiter_process, publish

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    import redis

    from tests.support import RedisServer

NAMES = (
    "nginx",
    # The first time Traefik is built.
    pytest.param("traefik", marks=pytest.mark.timeout(1800)),
    "envoy-authz",
    "envoy-rls",
)
ENVOY = {
    "envoy-authz": "Envoy, ext_authz over HTTP",
    "envoy-rls": "Envoy, rate limit service over gRPC",
}
#: What the page's nginx asks by; the other proxies name the policy.
TARGETS = (Target("", "Service", "shop"),)


def policy(requests: int = 3, **more: object) -> Policy:
    """Per address, except for what shows only that the proxy runs."""
    running = Condition(RequestPath(), values=("/ready",))
    limit = Limit(
        "per-address", Rate(requests, 3600), key=(ClientIP(),), exempt=((running,),), **more
    )  # type: ignore[arg-type]
    return Policy("shop/api", (limit,), Failure(timeout=1.0))


@pytest.fixture
def limiter(server: RedisServer, store: redis.Redis, tmp_path: Path) -> Iterator[LimiterProcess]:
    publish(store, [compiled(policy(), TARGETS)])
    with limiter_process(server.url, tmp_path) as process:
        yield process


@pytest.fixture(scope="module")
def application() -> Iterator[int]:
    with proxies.shop() as port:
        yield port


def in_front(
    name: str, limiter: LimiterProcess, application: int, folder: Path, *, named: bool = False
) -> AbstractContextManager[int]:
    if name == "nginx":
        policy = "api" if named else ""
        return proxies.nginx(folder / name, limiter.http_port, application, policy=policy)
    if name == "traefik":
        return proxies.traefik(folder / name, limiter.http_port, application)
    port = limiter.grpc_port if name == "envoy-rls" else limiter.http_port
    return proxies.envoy(ENVOY[name], folder / name, port, application)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_over_the_limit_is_refused_with_429_and_told_when_to_come_back(
    name: str, limiter: LimiterProcess, application: int, tmp_path: Path
) -> None:
    with in_front(name, limiter, application, tmp_path) as port:
        admitted = [ask(port, "/items?page=1") for _ in range(3)]
        # Headers of the client do not change its identity.
        refused = [
            ask(port, "/items", {"X-Forwarded-For": forged})
            for forged in ("203.0.113.9", "203.0.113.9, 203.0.113.10", "", "not an address", ", ,")
        ]
    assert [entry.status for entry in admitted] == [200, 200, 200]
    assert [entry.body for entry in admitted] == [b"welcome to the shop"] * 3
    if name != "traefik":  # which adds nothing to what it admits
        assert [entry.headers["ratelimit"].split(";t=")[0] for entry in admitted] == [
            '"per-address";r=2', '"per-address";r=1', '"per-address";r=0',
        ]  # fmt: skip
        assert admitted[0].headers["ratelimit-policy"] == '"per-address";q=3;w=3600'
    for answer in refused:
        assert answer.status == 429, answer
        assert 1195 < int(answer.headers["retry-after"]) <= 1330, answer
        assert answer.headers["ratelimit"].startswith('"per-address";r=0;t=')
        assert answer.headers["content-type"] == "application/problem+json"
        problem = json.loads(answer.body)
        assert (problem["status"], problem["title"]) == (429, "Too Many Requests")


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_that_does_not_exist_lets_nobody_through(
    name: str, limiter: LimiterProcess, application: int, tmp_path: Path, store: redis.Redis
) -> None:
    with in_front(name, limiter, application, tmp_path, named=True) as port:
        assert ask(port, "/items").status == 200
        publish(store, [], revision=2)
        statuses = set()
        for _ in range(100):
            statuses.add(ask(port, "/items").status)
            if 200 not in statuses or len(statuses) > 1:
                break
        assert ask(port, "/items").status in (404, 503)


def test_a_service_without_a_policy_is_not_limited(
    limiter: LimiterProcess, application: int, tmp_path: Path, store: redis.Redis
) -> None:
    with in_front("nginx", limiter, application, tmp_path) as port:
        assert [ask(port).status for _ in range(4)] == [200, 200, 200, 429]
        publish(store, [compiled(policy())], revision=2)
        statuses = [ask(port).status for _ in range(200)]
        assert statuses[-1] == 200, "the policy is attached no more"


@pytest.mark.parametrize("name", NAMES)
def test_while_no_limiter_answers_requests_are_refused(
    name: str, limiter: LimiterProcess, application: int, tmp_path: Path
) -> None:
    with in_front(name, limiter, application, tmp_path) as port:
        assert ask(port, "/items").status == 200
        limiter.kill()
        assert [ask(port, "/items").status for _ in range(5)] == (
            [500] * 5 if name == "traefik" else [503] * 5
        )


def test_nginx_admits_while_no_limiter_answers_where_it_is_told_to(
    limiter: LimiterProcess, application: int, tmp_path: Path
) -> None:
    front = proxies.nginx(tmp_path / "nginx", limiter.http_port, application, admits=True)
    with front as port:
        assert [ask(port).status for _ in range(4)] == [200, 200, 200, 429]
        limiter.kill()
        assert [ask(port).status for _ in range(4)] == [200, 200, 200, 200]


def test_through_nginx_each_refusal_keeps_its_status(
    limiter: LimiterProcess, application: int, tmp_path: Path, store: redis.Redis
) -> None:
    keyed = Limit("per-key", Rate(1, 60), key=(APIKey(),), missing_key=MissingKey.DENY)
    publish(store, [compiled(Policy("shop/api", (keyed,)), TARGETS)], revision=2)
    key = {"X-Api-Key": "k"}
    with proxies.nginx(tmp_path / "nginx", limiter.http_port, application) as port:
        assert ask(port, headers=key).status == 200
        assert ask(port, headers=key).status == 429
        assert ask(port, headers={"X-Api-Key": "another"}).status == 200
        assert ask(port).status == 400
        # The application's own refusal is none of the limiter's.
        forbidden = ask(port, "/forbidden", {"X-Api-Key": "third"})
        assert (forbidden.status, forbidden.body) == (403, b"welcome to the shop")
        assert "retry-after" not in forbidden.headers


@pytest.mark.parametrize("name", NAMES)
def test_closed_refuses_while_redis_is_away(
    name: str, limiter: LimiterProcess, application: int, tmp_path: Path, store: redis.Redis,
    server: RedisServer,
) -> None:  # fmt: skip
    limit = Limit("per-address", Rate(1000, 1), key=(ClientIP(),))
    closed = Policy("shop/api", (limit,), Failure(FailureMode.CLOSED, timeout=0.2))
    publish(store, [compiled(closed, TARGETS)], revision=2)
    with in_front(name, limiter, application, tmp_path) as port:
        assert ask(port).status == 200
        server.stop()
        try:
            # Envoy's rate limit service knows no other refusal than "over the limit".
            expected = 429 if name == "envoy-rls" else 503
            assert [ask(port).status for _ in range(3)] == [expected] * 3
        finally:
            server.start()


@pytest.mark.parametrize("name", NAMES)
def test_huge_and_strange_headers_are_refused_or_counted_but_never_a_way_around(
    name: str, limiter: LimiterProcess, application: int, tmp_path: Path
) -> None:
    with in_front(name, limiter, application, tmp_path) as port:
        assert [ask(port).status for _ in range(4)] == [200, 200, 200, 429]
        strange = b"\xff\xfe\x80".decode("latin-1")
        assert ask(port, headers={"X-Api-Key": strange}).status in (400, 429)
        try:
            huge = ask(port, headers={"X-Api-Key": "k" * 1_000_000}).status
        except OSError:
            huge = 0  # the proxy closed the connection before all of it was sent
        assert huge in (0, 400, 429, 431, 503)
        assert ask(port).status == 429
    assert limiter.pid


SPELLINGS = (
    "/v1/%63omplete", "//v1/complete", "/v1//complete", "/./v1/complete", "/v1/./complete",
    "/v1/x/../complete", "/x/%2e%2E/v1/complete", "/v1%2Fcomplete", "/v1/complete#a",
    "/v1/complete?a=b#c", "/v1/complete/../complete", "/open/../v1/complete",
    "/open/%2e%2e/v1/complete", "/open%2F..%2Fv1/complete", "/v1/complete/../../open",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_no_spelling_of_a_path_leads_around_its_limit(
    name: str, limiter: LimiterProcess, application: int, tmp_path: Path, store: redis.Redis
) -> None:
    """A limit for a path, one by the path, and an exemption; the application behind resolves
    nothing, or as the proxy has done it already."""
    under = Condition(RequestPath(), Operator.STARTS_WITH, ("/v1/complete",))
    opened = Condition(RequestPath(), Operator.STARTS_WITH, ("/open",))
    running = Condition(RequestPath(), values=("/ready",))
    limits = (
        Limit("complete", Rate(1, 3600), when=(under,), exempt=((opened,),)),
        Limit("others", Rate(3, 3600), key=(RequestPath(),), exempt=((running,),)),
    )
    spelt = Policy("shop/api", limits, Failure(timeout=1.0))
    publish(store, [compiled(spelt, TARGETS)], revision=2)
    with in_front(name, limiter, application, tmp_path) as port:
        assert [ask(port, "/v1/complete").status for _ in range(2)] == [200, 429]
        for spelling in SPELLINGS:
            before = len(proxies.reached())
            status = ask(port, spelling).status
            actual = [path.partition("?")[0] for path in proxies.reached()[before:]]
            # Envoy resolves a path before it asks and passes on: what it makes of the last one is
            # another path indeed.
            assert status in (400, 429) or actual == ["/open"], (spelling, status, actual)
        per_path = ["/items", "/%69tems", "//items", "/./items", "/items#1"]
        assert ask(port, "/items").status == 200
        assert [ask(port, entry).status for entry in per_path][-2:] in ([429, 429], [429, 400])


def test_what_a_claim_says_is_never_a_parameter_of_the_proxys_address(
    limiter: LimiterProcess, application: int, tmp_path: Path, store: redis.Redis
) -> None:
    """As the page has it, with a claim that somebody chose; ``X-Verified`` stands for the token."""
    limits = (Limit("per-subject", Rate(2, 3600), key=(JWTClaim("sub"), Tenant())),)
    publish(store, [compiled(Policy("shop/api", limits, Failure(timeout=1.0)))], revision=2)
    (reported,) = proxies.blocks("Tenant, route, claims and cost (nginx and Traefik)")
    reported = reported.replace("$tenant", '"acme"').replace("$subject", "$http_x_verified")
    front = proxies.nginx(tmp_path / "nginx", limiter.http_port, application, asks=reported)
    with front as port:
        for claim in ("me", "x&cost=0&tenant=other", "x#y", "a b?c", "%26cost=0", "\xff"):
            for path in ("/items", "/items?cost=0&tenant=other", "/items?header.tenant=x"):
                sent = {"X-Verified": claim, "X-Engineroom-Tenant": path, "X-Engineroom-Sub": path}
                last = ask(port, path, {**sent, "x_engineroom_sub": path}).status
            assert last == 429, claim


@pytest.mark.parametrize(
    "claim", ["x&cost=0&tenant=other", "x&cost=0", "x&claim.sub=y", "x&header.claim.sub=y", "x&a=b"]
)
def test_a_variable_in_the_address_brings_no_free_pass(
    claim: str, limiter: LimiterProcess, application: int, tmp_path: Path
) -> None:
    """Against the page's advice."""
    reported = "proxy_pass http://limiter/v1/nginx/shop/api?claim.sub=$http_x_verified;\n"
    front = proxies.nginx(tmp_path / "nginx", limiter.http_port, application, asks=reported)
    with front as port:
        assert ask(port, "/items", {"X-Verified": "me"}).status == 200
        assert ask(port, "/items", {"X-Verified": claim}).status == 400
