"""The whole way of a request: credentials in, principal or problem document out."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from engineroom.auth.login.sessions import Sessions
from engineroom.auth.middleware import (
    PRINCIPAL,
    SECURITY_HEADERS,
    Authenticator,
    AuthMiddleware,
    WsgiAuth,
    current_principal,
    require,
)
from engineroom.auth.permissions import (
    Access,
    AccessPolicy,
    Grant,
    Permission,
    Principal,
    RouteRule,
    matrix,
    routes_without_rule,
)
from engineroom.auth.tokens.access_tokens import Tokens
from engineroom.auth.tokens.api_keys import ApiKeys
from engineroom.auth.tokens.revocation import Revocations
from engineroom.auth.tokens.signing_keys import (
    Algorithm,
    KeySet,
    MemoryKeyStore,
    SigningKey,
    SigningKeyCache,
)

if TYPE_CHECKING:
    from engineroom.core.clock import FakeClock
    from tests.support import RedisServer

VIEWER = (Grant("viewer", frozenset({"shop"})),)
POLICY = AccessPolicy()
#: One route a permission, and two that say out loud that they need none.
RULES = [
    *(RouteRule("GET" if p.endswith(":read") else "POST", f"/{p}", p) for p in Permission),
    RouteRule("GET", "/health", Access.PUBLIC),
    RouteRule("GET", "/me", Access.SIGNED_IN),
]
NEEDS = {(rule.method, rule.path): rule.needs for rule in RULES}


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Routes by RULES; the namespace is in the query."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        return
    needs = NEEDS[scope["method"], scope["path"]]
    principal = current_principal(scope)
    if needs != Access.PUBLIC:
        permission = Permission.SELF_IDENTITY_READ if needs == Access.SIGNED_IN else needs
        principal = require(POLICY, permission)(scope, scope["query_string"].decode() or None)
    body = (principal.subject if principal else "nobody").encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    sent: list[str] = field(default_factory=list)

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        document: dict[str, Any] = json.loads(self.body)
        assert document["status"] == self.status
        return document


async def ask(
    app: Any, path: str = "/me", *headers: tuple[str, str], method: str = "GET",
    kind: str = "http", query: str = "shop", **scope: Any,
) -> Answer:  # fmt: skip
    answer = Answer()

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"} if kind == "websocket" else {"type": "http.request"}

    async def send(message: Any) -> None:
        answer.sent.append(message["type"])
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            assert len(answer.headers) == len(message["headers"])
        answer.body += message.get("body", b"")

    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    asked = {
        "type": kind, "path": path, "query_string": query.encode(), "headers": pairs, **scope,
    }  # fmt: skip
    if kind == "http":
        asked["method"] = method
    await app(asked, receive, send)
    return answer


@dataclass
class Desk:
    app: AuthMiddleware
    tokens: Tokens
    api_keys: ApiKeys
    sessions: Sessions
    authenticator: Authenticator


@pytest_asyncio.fixture
async def desk(redis: Redis, clock: FakeClock) -> Desk:
    keys = SigningKeyCache(
        MemoryKeyStore(KeySet((SigningKey.generate(Algorithm.EDDSA, clock.now()),), 1)), clock
    )
    revocations = Revocations(redis, clock)
    await revocations.read(1)
    tokens = Tokens(redis, keys, revocations, clock, issuer="https://e.test", audience="e")
    api_keys = ApiKeys(redis, clock, [b"p" * 32])
    sessions = Sessions(redis, clock, b"s" * 32)
    authenticator = Authenticator(tokens=tokens, api_keys=api_keys, sessions=sessions)
    return Desk(
        AuthMiddleware(application, authenticator, headers=SECURITY_HEADERS),
        tokens,
        api_keys,
        sessions,
        authenticator,
    )


def bearer(credential: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {credential}")


def cookie(identity: str) -> tuple[str, str]:
    return ("cookie", f"theme=dark; __Host-engineroom={identity}")


async def test_each_kind_of_credential_is_taken(desk: Desk) -> None:
    pair = await desk.tokens.issue("token-ada", VIEWER)
    key = await desk.api_keys.create("key-ada", "k", VIEWER)
    session = await desk.sessions.open("session-ada", VIEWER)
    assert (await ask(desk.app, "/me", bearer(pair.access))).body == b"token-ada"
    assert (await ask(desk.app, "/me", bearer(key.secret))).body == b"key-ada"
    assert (await ask(desk.app, "/me", cookie(session.id))).body == b"session-ada"
    assert (await ask(desk.app, "/health")).body == b"nobody"


async def test_nobody_is_told_to_sign_in(desk: Desk) -> None:
    answer = await ask(desk.app)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.problem["code"] == "not_authenticated"


@pytest.mark.parametrize(
    "value",
    ["Basic YTpi", "Bearer", "Bearer ", "bearer x.y.z", "Bearer erk_x", "Negotiate x", "x" * 20_000,
     "Bearer " + "x" * 9000, "Bearer \xe9.\xe9.\xe9", "Bearer null", "Bearer a b"],
)  # fmt: skip
async def test_wrong_credentials_are_refused_even_where_none_are_needed(
    desk: Desk, value: str
) -> None:
    answer = await ask(desk.app, "/health", ("authorization", value))
    assert answer.status == 401
    assert answer.problem["code"] in {"not_authenticated", "token_invalid", "api_key_invalid"}


async def test_credentials_that_come_twice_are_refused(desk: Desk) -> None:
    pair = await desk.tokens.issue("ada", VIEWER)
    session = await desk.sessions.open("ada", VIEWER)
    twice = (bearer(pair.access), bearer(pair.access))
    assert (await ask(desk.app, "/me", *twice)).status == 401
    assert (await ask(desk.app, "/me", cookie(session.id), cookie("x"))).status == 401
    tossed = ("cookie", f"__Host-engineroom=x; __Host-engineroom={session.id}")
    assert (await ask(desk.app, "/me", tossed)).status == 401


async def test_a_principal_that_somebody_left_in_the_scope_is_not_believed(desk: Desk) -> None:
    planted = Principal("root", (Grant.everywhere("admin"),))
    answer = await ask(desk.app, "/me", **{PRINCIPAL: planted})
    assert answer.status == 401


async def test_a_change_by_cookie_needs_its_sessions_token(desk: Desk) -> None:
    admin = (Grant("admin", frozenset({"shop"})),)
    ada = await desk.sessions.open("ada", admin)
    eve = await desk.sessions.open("eve", admin)
    path = f"/{Permission.NAMESPACE_POOLS_PAUSE}"
    for token in (None, "", eve.csrf, "x" * 64, ada.csrf.upper()):
        headers = [cookie(ada.id)] + ([("x-csrf-token", token)] if token is not None else [])
        answer = await ask(desk.app, path, *headers, method="POST")
        assert (answer.status, answer.problem["code"]) == (403, "csrf_token_invalid")
    right = [cookie(ada.id), ("x-csrf-token", ada.csrf)]
    assert (await ask(desk.app, path, *right, method="POST")).status == 200
    # A bearer token is sent by who has it and not by a browser on its own.
    pair = await desk.tokens.issue("ada", admin)
    assert (await ask(desk.app, path, bearer(pair.access), method="POST")).status == 200


async def test_a_websocket_by_cookie_is_from_our_own_page(desk: Desk) -> None:
    session = await desk.sessions.open("ada", VIEWER)
    host = ("host", "console.test")
    for origin in ("https://evil.test", "null", "", "https://console.test.evil.test"):
        answer = await ask(
            desk.app, "/live", cookie(session.id), host, ("origin", origin), kind="websocket"
        )
        assert answer.sent == ["websocket.close"]
    answer = await ask(
        desk.app, "/live", cookie(session.id), host, ("origin", "https://console.test"),
        kind="websocket",
    )  # fmt: skip
    assert answer.sent == ["websocket.accept"]


async def test_every_answer_has_the_security_headers_and_keeps_its_own(desk: Desk) -> None:
    for answer in (await ask(desk.app, "/health"), await ask(desk.app)):
        for name, value in SECURITY_HEADERS.items():
            assert answer.headers[name] == value
    csp = SECURITY_HEADERS["content-security-policy"]
    assert "unsafe" not in csp
    assert "default-src 'none'" in csp
    assert "frame-ancestors 'none'" in csp

    async def own(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"Cache-Control", b"max-age=60")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    answer = await ask(AuthMiddleware(own, desk.authenticator, headers=SECURITY_HEADERS))
    assert answer.headers["Cache-Control"] == "max-age=60"
    assert "cache-control" not in answer.headers


async def test_an_application_that_did_not_ask_gets_no_headers_of_ours(desk: Desk) -> None:
    answer = await ask(AuthMiddleware(application, desk.authenticator), "/health")
    assert not set(SECURITY_HEADERS) & {name.lower() for name in answer.headers}


async def test_every_route_for_every_role(desk: Desk) -> None:
    """The matrix, through real keys: a cell that differs from the rules fails."""
    credentials: dict[Any, str] = {}
    for case in matrix(RULES, POLICY, namespace="shop"):
        headers: list[tuple[str, str]] = []
        if case.principal is not None:
            kind = (case.role, case.where)
            if kind not in credentials:
                made = await desk.api_keys.create(f"{kind}", "k", case.principal.grants)
                credentials[kind] = made.secret
            headers = [bearer(credentials[kind])]
        answer = await ask(desk.app, case.rule.path, *headers, method=case.rule.method)
        assert answer.status == case.expected, case
    assert routes_without_rule(NEEDS, RULES) == []


async def test_a_key_cannot_do_more_than_its_scopes(desk: Desk) -> None:
    admin = (Grant.everywhere("admin"),)
    key = await desk.api_keys.create("ada", "k", admin, scopes=[Permission.NAMESPACE_JOBS_READ])
    path = f"/{Permission.NAMESPACE_JOBS_READ}"
    assert (await ask(desk.app, path, bearer(key.secret))).status == 200
    answer = await ask(desk.app, f"/{Permission.CLUSTER_AUDIT_READ}", bearer(key.secret))
    assert answer.problem["code"] == "permission_denied"
    assert "outside the scopes of this key" in answer.problem["detail"]


async def test_an_outage_is_an_outage_and_nobodys_sign_in(desk: Desk, redis: Redis) -> None:
    key = await desk.api_keys.create("ada", "k", VIEWER)
    away = Redis.from_url("redis://127.0.0.1:1/0")
    desk.api_keys._redis = away
    answer = await ask(desk.app, "/me", bearer(key.secret))
    assert (answer.status, answer.problem["code"]) == (503, "auth_store_unavailable")
    assert answer.headers["retry-after"] == "1"
    await away.aclose()


async def test_head_has_no_body_and_other_scopes_go_by(desk: Desk) -> None:
    answer = await ask(desk.app, "/me", ("authorization", "x"), method="HEAD")
    assert (answer.status, answer.body) == (401, b"")
    seen: list[str] = []

    async def lifespan(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await AuthMiddleware(lifespan, desk.authenticator)({"type": "lifespan"}, None, None)
    assert seen == ["lifespan"]


def test_an_application_of_threads(server: RedisServer, clock: FakeClock) -> None:
    made: list[int] = []
    clients: list[Redis] = []

    async def make() -> Authenticator:
        made.append(1)
        clients.append(Redis.from_url(server.url))
        return Authenticator(api_keys=ApiKeys(clients[0], clock, [b"p" * 32]))

    async def key() -> str:
        async with Redis.from_url(server.url) as redis:
            return (await ApiKeys(redis, clock, [b"p" * 32]).create("ada", "k", VIEWER)).secret

    def threads(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        check = require(POLICY, Permission.NAMESPACE_JOBS_READ)
        principal = check(environ, environ["QUERY_STRING"])
        start_response("200 OK", [("x-frame-options", "SAMEORIGIN")])
        return [principal.subject.encode()]

    app = WsgiAuth(threads, make, headers=SECURITY_HEADERS)
    secret = asyncio.run(key())

    def call(namespace: str, **headers: str) -> tuple[str, dict[str, str], bytes]:
        answer: list[Any] = []
        environ = {"REQUEST_METHOD": "GET", "QUERY_STRING": namespace, **headers}
        body = b"".join(app(environ, lambda *more: answer.extend(more)))
        return answer[0], dict(answer[1]), body

    bearer = {"HTTP_AUTHORIZATION": f"Bearer {secret}"}
    results: list[Any] = []
    pool = [
        threading.Thread(target=lambda: results.append(call("shop", **bearer))) for _ in range(8)
    ]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join(10)
    assert [(status, body) for status, _, body in results] == [("200 OK", b"ada")] * 8
    assert len(made) == 1
    assert results[0][1]["x-frame-options"] == "SAMEORIGIN"
    assert results[0][1]["x-content-type-options"] == "nosniff"
    assert call("bank", **bearer)[0] == "403 permission_denied"
    status, headers, body = call("shop")
    assert status == "401 not_authenticated"
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["status"] == 401
    joined = {"HTTP_AUTHORIZATION": f"Bearer {secret},Bearer {secret}"}
    assert call("shop", **joined)[0] == "401 api_key_invalid"
    app._loop.run(clients[0].aclose())
    app.close()
