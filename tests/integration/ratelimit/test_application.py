"""Middleware that enforces what a RateLimitPolicy says of an application, and follows its edits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio

from engineroom.ratelimit.distribution.application import AsgiPolicies, WsgiPolicies
from engineroom.ratelimit.distribution.document import CompiledPolicy
from engineroom.ratelimit.distribution.publish import record_check
from engineroom.ratelimit.limits.decision import Decision, DecisionReason
from engineroom.ratelimit.limits.model import (
    Failure,
    FailureMode,
    HeaderStyle,
    Limit,
    Policy,
    Rate,
    Response,
)
from engineroom.ratelimit.limits.request import Caller
from engineroom.ratelimit.limits.sources import Tenant
from engineroom.ratelimit.reconcile.observe import read_roster
from tests.integration.ratelimit.test_follow import NAMESPACE, Writer, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, MutableMapping

    from tests.support import RedisServer

CLOSED = Failure(FailureMode.CLOSED, timeout=5.0)
LABELS = {"app": "shop", "tier": "web"}


def compiled(requests: int, **more: Any) -> CompiledPolicy:
    limit = Limit("per-tenant", Rate(requests, 3600), key=(Tenant(),), response_cost="X-Cost")
    policy = Policy(f"{NAMESPACE}/api", (limit,), CLOSED, **more)
    return CompiledPolicy(NAMESPACE, "api", policy, selector={"app": "shop"})


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        return
    headers = [(b"x-cost", scope["path"].strip("/").encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


async def ask(app: Any, path: str = "/") -> tuple[int, dict[str, str]]:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "tenant": "acme"}
    await app(scope, receive, send)
    raw = sent[0]["headers"]
    return sent[0]["status"], {name.decode(): value.decode() for name, value in raw}


def tenant(scope: MutableMapping[str, Any]) -> Caller:
    return Caller(tenant=scope["tenant"])


async def test_an_application_enforces_the_policy_of_its_labels(
    server: RedisServer, store: redis.Redis
) -> None:
    async with redis.asyncio.Redis(port=server.port) as client:
        writer = Writer(client)
        observed: list[tuple[Decision, float]] = []
        app = AsgiPolicies(
            application, client, NAMESPACE, LABELS, caller=tenant,
            observe=lambda *told: observed.append(told),
        )  # fmt: skip
        assert (await ask(app))[0] == 200, "without a policy nothing is limited"
        await writer.write(compiled(3))
        await until(lambda: app._follower.current.revision == 1)
        status, headers = await ask(app)
        assert status == 200
        assert headers["ratelimit-policy"] == '"per-tenant";q=3;w=3600'
        assert (await ask(app, "/1"))[0] == 200, "and charges what the response says"
        assert (await ask(app))[0] == 429
        response = Response(403, HeaderStyle.X_RATE_LIMIT)
        await writer.write(compiled(3, response=response))
        await until(lambda: app._follower.current.revision == 2)
        status, headers = await ask(app)
        assert status == 403, "what was consumed stays consumed"
        assert headers["x-ratelimit-remaining"] == "0"
        assert [decision.allowed for decision, _ in observed] == [True, True, False, False]
        assert all(0 < seconds < 5 for _, seconds in observed)
        assert len((await read_roster(client, NAMESPACE)).enforcers) == 1
        await app.close()
        assert (await read_roster(client, NAMESPACE)).enforcers == ()


async def test_it_follows_from_the_lifespans_start_to_its_end(
    server: RedisServer, store: redis.Redis
) -> None:
    async with redis.asyncio.Redis(port=server.port) as client:
        await Writer(client).write(compiled(3))
        observed = []

        async def receive() -> dict[str, Any]:
            observed.append(len((await read_roster(client, NAMESPACE)).enforcers))
            return {"type": "lifespan.startup"}

        app = AsgiPolicies(application, client, NAMESPACE, LABELS)
        await app({"type": "lifespan"}, receive, receive)
        assert observed == [1]
        assert (await read_roster(client, NAMESPACE)).enforcers == ()


async def test_an_application_that_knows_no_lifespan_is_limited_all_the_same(
    server: RedisServer, store: redis.Redis
) -> None:
    async def without_lifespan(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await application(scope, receive, send)

    async def never() -> dict[str, Any]:
        raise AssertionError

    async with redis.asyncio.Redis(port=server.port) as client:
        await Writer(client).write(compiled(1))
        app = AsgiPolicies(without_lifespan, client, NAMESPACE, LABELS, caller=tenant)
        with pytest.raises(AssertionError):
            await app({"type": "lifespan"}, never, never)
        assert [(await ask(app))[0] for _ in range(2)] == [200, 429]
        await app.close()
        assert (await read_roster(client, NAMESPACE)).enforcers == ()


@pytest.mark.parametrize(("refuse", "status"), [(False, 200), (True, 503)])
async def test_what_happens_before_policies_are_known_is_the_applications_choice(
    refuse: bool, status: int
) -> None:
    async with redis.asyncio.Redis(port=1) as client:
        observed: list[DecisionReason] = []

        def observe(decision: Decision, seconds: float) -> None:
            observed.append(decision.reason)

        app = AsgiPolicies(
            application, client, NAMESPACE, LABELS, refuse_unknown=refuse, observe=observe
        )
        assert (await ask(app))[0] == status
        await app.close()
    with redis.Redis(port=1) as sync:
        wsgi = WsgiPolicies(plain, sync, NAMESPACE, LABELS, refuse_unknown=refuse, observe=observe)
        assert ask_wsgi(wsgi).startswith(str(status))
        wsgi.close()
    assert observed == [DecisionReason.FAILED_CLOSED] * 2 * refuse


@pytest.mark.parametrize(("refuse", "status"), [(False, 200), (True, 503)])
async def test_an_empty_redis_in_which_nobody_published_says_nothing(
    server: RedisServer, store: redis.Redis, refuse: bool, status: int
) -> None:
    async with redis.asyncio.Redis(port=server.port) as client:
        app = AsgiPolicies(application, client, NAMESPACE, LABELS, refuse_unknown=refuse)
        assert (await ask(app))[0] == status
        await record_check(client, "one", all_written=True)
        await until(lambda: app._follower.synced)
        assert (await ask(app))[0] == 200
        await app.close()


def plain(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("X-Cost", environ["PATH_INFO"].strip("/"))])
    return [b"ok"]


def ask_wsgi(app: WsgiPolicies, path: str = "/") -> str:
    text: list[str] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "tenant": "acme"}
    app(environ, lambda status, _headers, *_more: text.append(status))
    return text[0]


async def test_wsgi_does_the_same(server: RedisServer, store: redis.Redis) -> None:
    async with redis.asyncio.Redis(port=server.port) as client:
        await Writer(client).write(compiled(3))
    with redis.Redis(port=server.port) as sync:
        observed: list[bool] = []
        app = WsgiPolicies(
            plain, sync, NAMESPACE, LABELS, caller=tenant,
            observe=lambda decision, _: observed.append(decision.allowed),
        )  # fmt: skip
        assert ask_wsgi(app) == "200 OK"
        assert ask_wsgi(app, "/1") == "200 OK"
        assert ask_wsgi(app) == "429 Too Many Requests"
        assert observed == [True, True, False]
        app.close()
