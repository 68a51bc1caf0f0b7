"""A policy means the same through every door: middlewares, decorators, jobs, proxies' forms."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import redis.asyncio
import rq
from rq.registry import ScheduledJobRegistry

from engineroom.ratelimit.limits.decorators import limited, limited_async
from engineroom.ratelimit.limits.errors import RateLimitedError
from engineroom.ratelimit.limits.limiter import AsyncLimiter, Limiter
from engineroom.ratelimit.limits.middleware import AsgiRateLimit, WsgiRateLimit
from engineroom.ratelimit.limits.model import Failure, Limit, Policy, Rate
from engineroom.ratelimit.limits.request import RequestView
from engineroom.ratelimit.limits.sources import Header, JWTClaim, subject_of
from engineroom.ratelimit.service import rls
from tests.integration.ratelimit import doors
from tests.integration.ratelimit.doors import POLICY, STEPS, Step, headers_of, view_of
from tests.limiter import LimiterProcess, compiled, get, limiter_process, publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support import RedisServer

METHOD = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
COUNTED = Policy(
    "shop/counted",
    (Limit("per-key", Rate(5, 3600), key=(Header("X-Api-Key"),), response_cost="X-Tokens-Used"),),
    Failure(timeout=2.0),
)
CLAIMED = Policy(
    "shop/claimed",
    (Limit("per-user", Rate(2, 3600), key=(JWTClaim("sub"),)),),
    Failure(timeout=2.0),
)


@pytest.fixture(scope="module")
def limiter(
    server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LimiterProcess]:
    with redis.Redis(port=server.port, decode_responses=True) as store:
        publish(store, [compiled(entry) for entry in (POLICY, COUNTED, CLAIMED)])
    folder = tmp_path_factory.mktemp("limiter")
    with limiter_process(server.url, folder, namespaces="shop") as process:
        yield process


def through_form(form: str) -> Callable[[LimiterProcess, Step], bool]:
    def ask(limiter: LimiterProcess, step: Step) -> bool:
        headers = {**headers_of(step, form), "X-Forwarded-For": step.peer}
        url = f"{limiter.url}/v1/{form}/shop/doors"
        if form == "envoy":
            url += step.path
        else:
            headers |= {"X-Forwarded-Uri": step.path, "X-Forwarded-Method": "GET"}
        status = get(url, headers)[0]
        assert status in (200, 403 if form == "nginx" else 429)
        return status == 200

    return ask


def through_decide(limiter: LimiterProcess, step: Step) -> bool:
    request = {"path": step.path, "peer": step.peer, "headers": headers_of(step, "decide")}
    query = {"namespace": "shop", "policy": "doors", "request": request}
    status, actual = post(limiter, "/v1/decide", query)
    assert status == 200
    return bool(actual["allowed"])


def entries(step: Step, door: str) -> list[tuple[str, str]]:
    return [
        ("remote_address", step.peer), ("path", step.path), *headers_of(step, door).items(),
    ]  # fmt: skip


def through_json(limiter: LimiterProcess, step: Step) -> bool:
    descriptor = {"entries": [{"key": key, "value": entry} for key, entry in entries(step, "json")]}
    status, _ = post(limiter, "/json", {"domain": "shop/doors", "descriptors": [descriptor]})
    assert status in (200, 429)
    return status == 200


def through_grpc(limiter: LimiterProcess, step: Step) -> bool:
    return call(limiter, "shop/doors", entries(step, "grpc")) == 1


DOORS = {
    "nginx": through_form("nginx"),
    "forward": through_form("forward"),
    "envoy": through_form("envoy"),
    "decide": through_decide,
    "json": through_json,
    "grpc": through_grpc,
}


def call(
    limiter: LimiterProcess, domain: str, pairs: list[tuple[str, str]], hits: int = 0,
    own: int | None = None,
) -> int:  # fmt: skip
    """The overall code; 1 is OK, 2 is over the limit."""
    request = rls.RateLimitRequest(domain=domain, hits_addend=hits)
    descriptor = request.descriptors.add()
    for key, value in pairs:
        descriptor.entries.add(key=key.encode(), value=value.encode())
    if own is not None:
        descriptor.hits_addend.value = own
    with grpc.insecure_channel(f"127.0.0.1:{limiter.grpc_port}") as channel:
        answer = channel.unary_unary(
            METHOD,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=rls.RateLimitResponse.FromString,
        )(request, timeout=10)
    return int(answer.overall_code)


def post(limiter: LimiterProcess, path: str, document: object) -> tuple[int, Any]:
    request = urllib.request.Request(  # noqa: S310
        f"{limiter.url}{path}", data=json.dumps(document).encode(), method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.parametrize("door", DOORS)
def test_through_the_decision_service(limiter: LimiterProcess, door: str) -> None:
    for step in STEPS:
        admitted = sum(DOORS[door](limiter, step) for _ in range(step.times))
        assert admitted == step.admitted, step
    reported = limiter.admin("/metrics")[1]
    shadowed = 'engineroom_ratelimit_shadowed_total{limit="tried",policy="shop/doors"}'
    assert shadowed in reported, "the limit in the shadow is counted"


async def test_through_asgi(server: RedisServer) -> None:
    async def shop(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with AsyncLimiter(POLICY, redis.asyncio.Redis(port=server.port)) as own:
        app = AsgiRateLimit(shop, own)

        async def ask(step: Step) -> bool:
            sent: list[Any] = []

            async def send(message: Any) -> None:
                sent.append(message)

            raw = [(k.encode(), v.encode()) for k, v in headers_of(step, "asgi").items()]
            scope = {"type": "http", "method": "GET", "path": step.path, "headers": raw}
            await app({**scope, "client": (step.peer, 1)}, _nothing, send)
            return bool(sent[0]["status"] == 200)

        for step in STEPS:
            admitted = [await ask(step) for _ in range(step.times)]
            assert sum(admitted) == step.admitted, step


async def _nothing() -> Any:
    return {"type": "http.request"}


def test_through_wsgi(server: RedisServer) -> None:
    def shop(environ: Any, start: Any) -> list[bytes]:
        start("200 OK", [])
        return []

    with Limiter(POLICY, redis.Redis(port=server.port)) as own:
        app = WsgiRateLimit(shop, own)

        def ask(step: Step) -> bool:
            statuses: list[str] = []
            environ = {"REQUEST_METHOD": "GET", "PATH_INFO": step.path, "REMOTE_ADDR": step.peer}
            for name, value in headers_of(step, "wsgi").items():
                environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
            app(environ, lambda status, headers: statuses.append(status))
            return statuses[0].startswith("200")

        for step in STEPS:
            assert sum(ask(step) for _ in range(step.times)) == step.admitted, step


async def test_through_decorated_functions(server: RedisServer) -> None:
    def by_step(step: Step) -> Any:
        return subject_of(POLICY, view_of(step, "function"))

    def by_step_async(step: Step) -> Any:
        return subject_of(POLICY, view_of(step, "coroutine"))

    with Limiter(POLICY, redis.Redis(port=server.port)) as own:

        @limited(lambda: own, by_step)
        def work(step: Step) -> bool:
            return True

        for step in STEPS:
            assert sum(map(admitted_by(work), [step] * step.times)) == step.admitted, step
    async with AsyncLimiter(POLICY, redis.asyncio.Redis(port=server.port)) as other:

        @limited_async(lambda: other, by_step_async)
        async def work_later(step: Step) -> bool:
            return True

        for step in STEPS:
            actual = await asyncio.gather(
                *(work_later(step) for _ in range(step.times)), return_exceptions=True
            )
            assert actual.count(True) == step.admitted, step


def admitted_by(work: Callable[[Step], bool]) -> Callable[[Step], bool]:
    def ask(step: Step) -> bool:
        try:
            return work(step)
        except RateLimitedError:
            return False

    return ask


def test_through_jobs(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMITED_JOBS_REDIS", server.url)
    doors.limiter.cache_clear()
    with redis.Redis(port=server.port) as connection:
        queue = rq.Queue("doors", connection=connection)
        waiting = ScheduledJobRegistry(queue=queue)
        for step in STEPS:
            before = len(waiting)
            for _ in range(step.times):
                queue.enqueue(doors.job, tuple(step), "job")
            rq.SimpleWorker([queue], connection=connection).work(burst=True)
            assert len(waiting) - before == step.times - step.admitted, step
    doors.limiter().close()


# -- what a request may cost ----------------------------------------------------------------------


def left(limiter: LimiterProcess, key: str) -> int:
    query = {"namespace": "shop", "policy": "counted", "cost": 0,
             "request": {"headers": {"x-api-key": key}}}  # fmt: skip
    return int(post(limiter, "/v1/decide", query)[1]["remaining"])


def test_hits_of_envoys_service_are_what_a_request_costs(limiter: LimiterProcess) -> None:
    def hit(key: str, hits: int = 0, own: int | None = None) -> int:
        return call(limiter, "shop/counted", [("x-api-key", key)], hits, own)

    assert (hit("none"), left(limiter, "none")) == (1, 4), "none is one"
    assert (hit("two", hits=2), left(limiter, "two")) == (1, 3)
    assert (hit("own", hits=2, own=3), left(limiter, "own")) == (1, 2), "the descriptor's counts"
    assert (hit("look", own=0), left(limiter, "look")) == (1, 5), "0 only looks"
    assert (hit("huge", hits=2**32 - 1), left(limiter, "huge")) == (2, 5), "refused, not taken"
    assert (hit("more", own=2**63), left(limiter, "more")) == (2, 5)


@pytest.mark.parametrize("hits", [-1, 1.5, True, "many", "-3", [], 10**30])
def test_hits_that_are_none_are_refused_and_never_admitted(
    limiter: LimiterProcess, hits: object
) -> None:
    entry = {"entries": [{"key": "x-api-key", "value": "odd"}]}
    for document in (
        {"domain": "shop/counted", "hitsAddend": hits, "descriptors": [entry]},
        {"domain": "shop/counted", "descriptors": [{**entry, "hitsAddend": hits}]},
    ):
        assert post(limiter, "/json", document)[0] in (400, 429), document
    assert left(limiter, "odd") == 5


def test_what_a_response_cost_is_charged_through_the_service(limiter: LimiterProcess) -> None:
    def charge(key: str, told: object) -> tuple[int, Any]:
        request = {"headers": {"X-Api-Key": key}}
        query = {"namespace": "shop", "policy": "counted", "request": request, "response": told}
        return post(limiter, "/v1/charge", query)

    assert charge("c", {"headers": {"X-Tokens-Used": "3"}}) == (200, {"charged": {"per-key": 3}})
    assert left(limiter, "c") == 2
    # What happened has happened: it is never refused, and the bucket is empty at most.
    assert charge("c", {"headers": {"x-tokens-used": "1000"}})[0] == 200
    assert left(limiter, "c") == 0
    for odd in ("-3", "1.5", "many", "", "9" * 30):
        assert charge("d", {"headers": {"X-Tokens-Used": odd}}) == (200, {"charged": {}})
    assert left(limiter, "d") == 5
    for wrong in (None, [], {"headers": "x"}, {"headers": {"X-Tokens-Used": 3}}):
        assert charge("d", wrong)[0] == 400, wrong
    unknown = {"namespace": "shop", "policy": "missing", "response": {"headers": {}}}
    assert post(limiter, "/v1/charge", unknown)[0] == 404
    assert get(f"{limiter.url}/v1/charge")[0] == 405


# -- what a client may send -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "claims",
    ["claim.sub=", "claim.=x", "claim.sub", "claim.sub=%FF%FE", "claim.sub=%00", "claim.other=x"],
)
def test_garbage_of_claims_shares_one_limit_or_has_its_own(
    limiter: LimiterProcess, claims: str
) -> None:
    url = f"{limiter.url}/v1/forward/shop/claimed?{claims}"
    statuses = [get(url, {"X-Forwarded-For": "192.0.2.1"})[0] for _ in range(4)]
    assert statuses[-1] == 429
    assert set(statuses) <= {200, 429}


def test_a_token_that_nobody_verified_is_nobodys_claim(limiter: LimiterProcess) -> None:
    """Each forged token has another subject; all of them count as one, for the claim is missing."""
    forged = [f"Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1c2VyLT{n}In0." for n in range(4)]
    url = f"{limiter.url}/v1/forward/shop/claimed"
    for token in forged:
        status = get(url, {"Authorization": token, "X-Claim-Sub": token})[0]
    assert status == 429


def test_repeated_headers_and_cookies_that_are_none(server: RedisServer) -> None:
    from engineroom.ratelimit.limits.sources import Cookie

    by_cookie = Policy(
        "shop/cookie",
        (Limit("per-session", Rate(2, 3600), key=(Cookie("session"),)),),
        Failure(timeout=2.0),
    )
    with Limiter(by_cookie, redis.Redis(port=server.port)) as own:
        began = time.monotonic()
        for odd in ("=", ";;;", "session", "session=", "=session", "a=b;" * 5000, "\x00", "\xff"):
            view = RequestView(headers={"cookie": odd})
            assert subject_of(by_cookie, view) == {"per-session": None}, odd
            last = own.hit(subject_of(by_cookie, view))
        assert not last.allowed, "all of them share one key"
        first = RequestView(headers={"cookie": "session=a; session=b"})
        assert subject_of(by_cookie, first) == {"per-session": "1:a"}, "the first counts"
        assert time.monotonic() - began < 5


def test_a_header_sent_twice_is_one_value(limiter: LimiterProcess) -> None:
    import http.client

    def ask(*keys: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", limiter.http_port, timeout=10)
        connection.putrequest("GET", "/v1/forward/shop/counted")
        for key in keys:
            connection.putheader("X-Api-Key", key)
        connection.endheaders()
        status = connection.getresponse().status
        connection.close()
        return status

    assert [ask("twice", "over") for _ in range(6)] == [200] * 5 + [429]
    # Over gRPC and from a middleware they are joined in the same way.
    assert call(limiter, "shop/counted", [("x-api-key", "twice,over")]) == 2
