"""The middlewares and decorators, on a real Redis."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio
import rq
from rq.registry import FailedJobRegistry, ScheduledJobRegistry

from engineroom.core.errors import Category
from engineroom.ratelimit.limits.decision import DecisionReason
from engineroom.ratelimit.limits.decorators import limited, limited_async
from engineroom.ratelimit.limits.errors import RateLimitedError
from engineroom.ratelimit.limits.limiter import AsyncLimiter, Limiter
from engineroom.ratelimit.limits.middleware import (
    AsgiRateLimit,
    HeaderStyle,
    WsgiRateLimit,
    policy_header,
)
from engineroom.ratelimit.limits.model import Failure, FailureMode, Limit, MissingKey, Policy, Rate
from engineroom.ratelimit.limits.sources import ClientIP, Header
from tests.integration.ratelimit import limited_jobs
from tests.support import RedisServer, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PATIENT = Failure(timeout=2.0)
POLICY = Policy("p", (Limit("burst", Rate(2, 60), key=(ClientIP(),)),), PATIENT)


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    start = {"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"1")]}
    await send(start)
    await send({"type": "http.response.body", "body": b"fine"})


async def ask(
    app: AsgiRateLimit, *headers: tuple[bytes, bytes], kind: str = "http"
) -> tuple[int, dict[str, str], bytes]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": f"{kind}.connect"}

    scope = {"type": kind, "path": "/", "headers": headers, "client": ("9.9.9.9", 1)}
    await app({**scope, "method": "GET"} if kind == "http" else scope, receive, send)
    if kind != "http" and sent[0]["type"] != "http.response.start":
        return sent[0]["code"], {}, b""
    actual = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], actual, sent[1]["body"]


async def test_asgi_says_what_is_left_and_refuses_with_429(
    server: RedisServer, store: redis.Redis
) -> None:
    async with AsyncLimiter(POLICY, redis.asyncio.Redis(port=server.port)) as limiter:
        app = AsgiRateLimit(asgi_app, limiter, jitter=lambda below: below - 1)
        status, headers, body = await ask(app)
        assert (status, body, headers["x-app"]) == (200, b"fine", "1")
        assert headers["ratelimit-policy"] == '"burst";q=2;w=60'
        assert headers["ratelimit"] == '"burst";r=1;t=30'
        assert (await ask(app))[0] == 200
        status, headers, body = await ask(app)
        assert status == 429
        assert headers["content-type"] == "application/problem+json"
        actual = re.fullmatch(r'"burst";r=0;t=(\d+)', headers["ratelimit"])
        assert actual
        assert 0 < int(actual[1]) <= 30
        # Not before t, and not all at the same moment.
        assert int(actual[1]) < int(headers["retry-after"]) <= int(actual[1]) + 3
        problem = json.loads(body)
        assert problem["status"] == 429
        assert problem["violated-policies"] == ["burst"]
        assert headers["content-length"] == str(len(body))


async def test_other_headers_or_none(server: RedisServer, store: redis.Redis) -> None:
    async with AsyncLimiter(POLICY, redis.asyncio.Redis(port=server.port)) as limiter:
        app = AsgiRateLimit(asgi_app, limiter, headers=HeaderStyle.X_RATE_LIMIT)
        _, headers, _ = await ask(app)
        assert headers == {
            "x-app": "1",
            "x-ratelimit-limit": "2",
            "x-ratelimit-remaining": "1",
            "x-ratelimit-reset": "30",
        }
        app = AsgiRateLimit(asgi_app, limiter, headers=HeaderStyle.NONE)
        assert (await ask(app))[1] == {"x-app": "1"}
        assert (await ask(app))[0] == 429


async def test_a_refused_websocket_is_closed_and_others_pass(
    server: RedisServer, store: redis.Redis
) -> None:
    async with AsyncLimiter(POLICY, redis.asyncio.Redis(port=server.port)) as limiter:
        app = AsgiRateLimit(asgi_app, limiter)
        assert [(await ask(app, kind="websocket"))[0] for _ in range(3)] == [200, 200, 1013]
        assert (await ask(app, kind="lifespan"))[0] == 200


async def test_forged_addresses_and_odd_bytes_pass_nobody(
    server: RedisServer, store: redis.Redis
) -> None:
    built = Policy(
        "p",
        (
            Limit("ip", Rate(3, 60), key=(ClientIP(),)),
            Limit("key", Rate(100, 60), key=(Header("x-key"),)),
        ),
        PATIENT,
    )
    async with AsyncLimiter(built, redis.asyncio.Redis(port=server.port)) as limiter:
        app = AsgiRateLimit(asgi_app, limiter)
        statuses = [
            (await ask(app, (b"x-forwarded-for", b"1.1.1.%d" % n), (b"x-key", value)))[0]
            for n, value in enumerate((b"\xff\xfe", b"x" * 1_000_000, b"", b"\x00\r\n", b"ok"))
        ]
        assert statuses == [200, 200, 200, 429, 429]


async def test_closed_is_503_and_a_missing_key_400(server: RedisServer) -> None:
    closed = Policy("p", POLICY.limits, Failure(FailureMode.CLOSED, timeout=0.05))
    async with AsyncLimiter(closed, redis.asyncio.Redis(port=free_port())) as limiter:
        status, headers, body = await ask(AsgiRateLimit(asgi_app, limiter))
        assert status == 503
        assert int(headers["retry-after"]) >= 1
        assert "ratelimit" not in headers
        assert json.loads(body)["title"] == "Service Unavailable"
    deny = Limit("k", Rate(1, 1), key=(Header("x-key"),), missing_key=MissingKey.DENY)
    built = Policy("p", (deny,), PATIENT)
    async with AsyncLimiter(built, redis.asyncio.Redis(port=server.port)) as limiter:
        status, headers, _ = await ask(AsgiRateLimit(asgi_app, limiter))
        assert status == 400
        assert "retry-after" not in headers


async def test_cost_may_depend_on_the_request(server: RedisServer, store: redis.Redis) -> None:
    async with AsyncLimiter(POLICY, redis.asyncio.Redis(port=server.port)) as limiter:
        app = AsgiRateLimit(asgi_app, limiter, cost=lambda request: 3)
        status, headers, _ = await ask(app)
        assert status == 429
        # Waiting does not help, so there is no Retry-After.
        assert "retry-after" not in headers
        assert headers["ratelimit"] == '"burst";r=0'


def test_a_window_below_a_second_is_never_written_as_zero() -> None:
    built = Policy("p", (Limit("a", Rate(3, 0.25)), Limit("b", Rate(3, 1.5))))
    assert policy_header(built) == '"a";q=12;w=1, "b";q=4;w=2'


def wsgi_app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("X-App", "1")])
    return [b"fine"]


def test_wsgi_does_the_same(server: RedisServer, store: redis.Redis) -> None:
    with Limiter(POLICY, redis.Redis(port=server.port)) as limiter:
        app = WsgiRateLimit(wsgi_app, limiter, trusted_proxy_hops=1, jitter=lambda below: 0)
        answers = []
        for forged in ("6.6.6.6, 1.1.1.1", "7.7.7.7, 1.1.1.1", "1.1.1.1", "2.2.2.2"):
            text: list[Any] = []
            environ = {
                "REQUEST_METHOD": "GET",
                "PATH_INFO": "/",
                "REMOTE_ADDR": "10.0.0.1",
                "HTTP_X_FORWARDED_FOR": forged,
            }
            body = b"".join(app(environ, lambda status, headers: text.extend((status, headers))))  # noqa: B023
            answers.append((text[0], dict(text[1]), body))
        assert [answer[0] for answer in answers] == [
            "200 OK", "200 OK", "429 Too Many Requests", "200 OK",
        ]  # fmt: skip
        assert answers[0][1]["RateLimit"] == '"burst";r=1;t=30'
        assert answers[2][1]["Retry-After"] in ("29", "30")
        assert json.loads(answers[2][2])["status"] == 429


@pytest.mark.parametrize("hops", [-1, True, 1000, "1"])
def test_hops_that_are_none_are_refused(hops: Any, server: RedisServer) -> None:
    with (
        Limiter(POLICY, redis.Redis(port=server.port)) as limiter,
        pytest.raises(ValueError, match="trusted_proxy_hops"),
    ):
        WsgiRateLimit(wsgi_app, limiter, trusted_proxy_hops=hops)


async def test_functions_are_limited_by_their_arguments(
    server: RedisServer, store: redis.Redis
) -> None:
    with Limiter(POLICY, redis.Redis(port=server.port)) as limiter:

        @limited(lambda: limiter, lambda user: user)
        def send(user: str) -> str:
            return f"sent {user}"

        assert [send("a"), send("a"), send("b")] == ["sent a", "sent a", "sent b"]
        with pytest.raises(RateLimitedError, match="try again in") as caught:
            send("a")
        assert caught.value.decision.reason is DecisionReason.LIMITED
        assert (caught.value.http_status, caught.value.category) == (429, Category.LIMIT)
        with pytest.raises(TypeError, match="limited_async"):
            limited(lambda: limiter, lambda: "x")(asgi_app)  # type: ignore[arg-type]
    async with AsyncLimiter(POLICY, redis.asyncio.Redis(port=server.port)) as other:

        @limited_async(lambda: other, lambda user: user)
        async def send_later(user: str) -> str:
            return f"sent {user}"

        assert await send_later("c") == "sent c"
        with pytest.raises(RateLimitedError):
            await send_later("a")


def test_a_job_over_the_limit_runs_later(
    server: RedisServer, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMITED_JOBS_REDIS", server.url)
    limited_jobs.limiter.cache_clear()
    connection = redis.Redis(port=server.port)
    queue = rq.Queue("jobs", connection=connection)
    jobs = [queue.enqueue(limited_jobs.send, "me") for _ in range(3)]
    never = queue.enqueue(limited_jobs.send_much, "me")
    rq.SimpleWorker([queue], connection=connection).work(burst=True)
    results = [job.return_value(refresh=True) for job in jobs[:2]]
    assert results == ["sent me", "sent me"]
    assert ScheduledJobRegistry(queue=queue).get_job_ids() == [jobs[2].id]
    assert FailedJobRegistry(queue=queue).get_job_ids() == [never.id]
    limited_jobs.limiter().close()
    with pytest.raises(RateLimitedError):
        limited_jobs.send("me")
    limited_jobs.limiter().close()
    connection.close()


def test_what_a_response_cost_is_charged_once_when_it_begins_anew(
    server: RedisServer, store: redis.Redis
) -> None:
    """An application may call start_response again, with the error that came in between."""
    limit = Limit("spent", Rate(100, 3600), response_cost="X-Cost")
    policy = Policy("p", (limit,), PATIENT)

    def failing(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        start("200 OK", [("X-Cost", "10")])
        start("500 Oh", [("X-Cost", "10")], (ValueError, ValueError(), None))
        return [b""]

    text: list[Any] = []
    with Limiter(policy, redis.Redis(port=server.port)) as limiter:
        WsgiRateLimit(failing, limiter)({}, lambda *told: text.append(told))
        assert limiter.peek("").remaining == 100 - 1 - 10
    assert [len(reported) for reported in text] == [2, 3]
