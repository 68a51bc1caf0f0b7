"""Every route of the API with every role: who is let in and who is not; none without a rule.

Handlers are replaced by one that lets in; what is checked is the way to it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio
from pydantic import SecretStr
from starlette.responses import Response

from engineroom.auth.login.sessions import COOKIE, CSRF_HEADER
from engineroom.auth.permissions import (
    EVERYWHERE,
    VIEWER,
    Access,
    AccessPolicy,
    Grant,
    Permission,
    Role,
    matrix,
    routes_without_rule,
)
from engineroom.console.rest.app import application
from engineroom.console.rest.routing import Answer, Call, Model, Route
from engineroom.console.route_table import ROUTES
from engineroom.console.services import open_services
from engineroom.console.settings import ApiSettings
from engineroom.core.validation.requests import Limits
from engineroom.kube.client.config import ApiConfig
from tests.support import ROOT, free_port, revocations_read

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from starlette.applications import Starlette

    from engineroom.auth.permissions import RouteRule
    from engineroom.console.services import Services
    from tests.support import RedisServer

HERE = "shop"
FILLED = {"namespace": HERE, "session": "0" * 16, "key": "0" * 16, "operation": "0" * 32}
#: Roles as an installation may declare them: one of its own permissions, one that adds to another.
CUSTOM = {
    "roles": [
        {"name": "retrier", "permissions": ["namespace:jobs:read", "namespace:jobs:retry"]},
        {"name": "auditor", "include": ["viewer"], "permissions": ["cluster:audit:read"]},
    ]
}
#: The same as the matrix has to see it, not taken from what is tested.
POLICY = AccessPolicy.of(
    Role("retrier", frozenset({Permission.NAMESPACE_JOBS_READ, Permission.NAMESPACE_JOBS_RETRY})),
    Role("auditor", VIEWER.permissions | {Permission.CLUSTER_AUDIT_READ}),
)
#: Routes that anybody may ask; whoever adds one has to write it down here too.
PUBLIC = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/.well-known/jwks.json"),
    ("GET", "/api/v1/openapi.json"),
    ("GET", "/api/v1/docs"),
    ("GET", "/api/v1/docs.css"),
    ("GET", "/api/v1/oidc/start"),
    ("GET", "/api/v1/oidc/callback"),
    ("POST", "/api/v1/sessions"),
    ("POST", "/api/v1/tokens"),
    ("POST", "/api/v1/tokens/refresh"),
    ("POST", "/api/v1/tokens/revoke"),
    ("POST", "/api/v1/sign-in-links/redeem"),
    ("GET", "/sign-in"),
    ("GET", "/sign-in.js"),
}


async def let_in(call: Call) -> Response:
    del call
    return Response("in")


@pytest_asyncio.fixture
async def app(server: RedisServer, redis: Any, tmp_path: Path) -> AsyncIterator[Starlette]:
    del redis  # empties it
    (tmp_path / "accounts.json").write_text(json.dumps(CUSTOM))
    settings = ApiSettings(
        redis_url=SecretStr(server.url),
        api_secret=SecretStr("s" * 48),
        requests_per_second=10_000,
        accounts_file=tmp_path / "accounts.json",
    )
    nowhere = ApiConfig(server=f"http://127.0.0.1:{free_port()}")
    routes = [dataclasses.replace(route, handler=let_in, body=None) for route in ROUTES]
    made = application(lambda: open_services(settings, nowhere), routes, Limits())
    async with made.router.lifespan_context(made):
        await revocations_read(made.state.services.revocations)
        yield made


async def shown(services: Services, how: str, name: str, grants: Iterable[Grant]) -> dict[str, str]:
    """What somebody with these grants shows, made as ``how`` says."""
    if how == "session":
        opened = await services.sessions.open(name, grants)
        return {"cookie": f"{COOKIE}={opened.id}", CSRF_HEADER: opened.csrf}
    if how == "token":
        secret = (await services.tokens.issue(name, grants)).access
    else:
        secret = (await services.api_keys.create(name, "matrix", grants)).secret
    return {"authorization": f"Bearer {secret}"}


async def asked(http: httpx.AsyncClient, rule: RouteRule, headers: dict[str, str]) -> int:
    path = re.sub(r"{(\w+)}", lambda m: FILLED.get(m[1], "x"), rule.path)
    return (await http.request(rule.method, path, headers=headers)).status_code


@pytest.mark.parametrize("how", ["key", "token", "session"])
async def test_every_route_with_every_role(app: Starlette, how: str) -> None:
    wrong = []
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="https://api.test") as http:
        made: dict[str, dict[str, str]] = {}
        cases = list(matrix([r.rule for r in ROUTES], POLICY, namespace=HERE))
        assert len(cases) == len(ROUTES) * (1 + 3 * len(POLICY.roles))
        for case in cases:
            headers = {}
            if case.principal is not None:
                name = f"{case.role}-{case.where}"
                if name not in made:
                    made[name] = await shown(app.state.services, how, name, case.principal.grants)
                headers = made[name]
            status = await asked(http, case.rule, headers)
            if status != case.expected:
                wrong.append((case.rule, case.role, case.where, status))
    assert wrong == []


async def test_to_the_installation_only_an_administrator_of_all_of_it_gets(app: Starlette) -> None:
    # Without the matrix: who may what is written here, so that a role which grew is seen.
    cluster = [r.rule for r in ROUTES if str(r.needs).startswith("cluster:")]
    assert len(cluster) == 11
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="https://api.test") as http:
        for role in ("viewer", "operator", "retrier"):
            grants = [Grant(role, frozenset({EVERYWHERE}))]
            headers = await shown(app.state.services, "key", role, grants)
            assert {await asked(http, rule, headers) for rule in cluster} == {403}, role
        admins = {
            where: await shown(
                app.state.services, "key", f"admin-{where}", [Grant("admin", frozenset({where}))]
            )
            for where in (HERE, EVERYWHERE)
        }
        assert {await asked(http, rule, admins[HERE]) for rule in cluster} == {403}
        assert {await asked(http, rule, admins[EVERYWHERE]) for rule in cluster} == {200}


def test_every_route_that_is_served_has_a_rule() -> None:
    app = application(lambda: open_services(ApiSettings(), ApiConfig("http://x")), ROUTES, Limits())
    served = [
        (method, route.path)  # type: ignore[attr-defined]
        for route in app.routes
        for method in (getattr(route, "methods", None) or ())
        if method != "HEAD"
    ]
    assert len(served) == len(ROUTES)
    assert routes_without_rule(served, [route.rule for route in ROUTES]) == []


def test_what_anybody_may_ask_is_written_down() -> None:
    public = {(r.method, r.path) for r in ROUTES if r.needs is Access.PUBLIC}
    assert public == PUBLIC
    signed_in = {(r.method, r.path) for r in ROUTES if r.needs is Access.SIGNED_IN}
    assert signed_in == {
        ("DELETE", "/api/v1/sessions"),
        ("POST", "/api/v1/sessions/renew"),
        ("POST", "/api/v1/oidc/logout"),
        ("POST", "/api/v1/sign-in-links"),
    }


def test_permissions_that_open_nothing_yet_are_written_down() -> None:
    # They are of parts to come. Whoever serves one takes it from here, and from docs/accounts.md.
    idle = {str(p) for p in Permission} - {str(r.needs) for r in ROUTES}
    assert idle == {
        "namespace:alerts:acknowledge", "namespace:alerts:read", "namespace:alerts:silence",
        "namespace:jobs:delete",
        "namespace:limits:test",
        "namespace:logs:read",
        "namespace:maintenance:read", "namespace:maintenance:restore", "namespace:maintenance:run",
    }  # fmt: skip
    said = (ROOT / "docs/accounts.md").read_text()
    assert all(f"`{each}`" in said for each in idle)


def test_a_route_without_a_rule_cannot_be_declared() -> None:
    said = {"method": "GET", "path": "/api/v1/x", "handler": let_in, "summary": "", "tag": "x"}
    with pytest.raises(TypeError, match="needs"):
        Route(**said)  # type: ignore[arg-type]
    for needs in (None, "", "namespace:pools:read", True):
        with pytest.raises(TypeError, match="has no permission"):
            Route(**said, needs=needs)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="namespace"):
        Route(**said, needs=Permission.NAMESPACE_POOLS_READ)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="audit"):
        Route(**{**said, "method": "POST"}, needs=Permission.CLUSTER_AUDIT_READ)  # type: ignore[arg-type]


def test_a_path_cannot_be_declared_twice() -> None:
    with pytest.raises(TypeError, match="twice"):
        application(
            lambda: open_services(ApiSettings(), ApiConfig("http://x")),
            [*ROUTES, ROUTES[0]],
            Limits(),
        )


async def test_an_unforeseen_error_tells_nothing(server: RedisServer, redis: Any) -> None:
    del redis

    async def fails(call: Call) -> Answer:
        del call
        raise ZeroDivisionError("password=hunter2")

    route = Route(method="GET", path="/api/v1/x", needs=Access.PUBLIC, handler=fails, summary="",
                  tag="x", answer=Model)  # fmt: skip
    settings = ApiSettings(redis_url=SecretStr(server.url), api_secret=SecretStr("s" * 48))
    app = application(
        lambda: open_services(settings, ApiConfig(f"http://127.0.0.1:{free_port()}")),
        [route],
        Limits(),
    )
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="https://api.test") as http:
            answer = await http.get("/api/v1/x")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "hunter2" not in answer.text
