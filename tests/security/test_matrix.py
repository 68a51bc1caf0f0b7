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

from engineroom.auth.permissions import (
    VIEWER,
    Access,
    Permission,
    Policy,
    Role,
    matrix,
    unruled,
)
from engineroom.console.app import application
from engineroom.console.routes import Answer, Call, Model, Route
from engineroom.console.services import opened
from engineroom.console.settings import ApiSettings
from engineroom.console.table import ROUTES
from engineroom.core.validation.requests import Limits
from engineroom.kube.config import ApiConfig
from tests.support import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from starlette.applications import Starlette

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
POLICY = Policy.of(
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
    made = application(lambda: opened(settings, nowhere), routes, Limits())
    async with made.router.lifespan_context(made):
        yield made


async def test_every_route_with_every_role(app: Starlette) -> None:
    services = app.state.services
    transport = httpx.ASGITransport(app)
    wrong = []
    async with httpx.AsyncClient(transport=transport, base_url="https://api.test") as http:
        keys: dict[str, str] = {}
        cases = list(matrix([r.rule for r in ROUTES], POLICY, namespace=HERE))
        assert len(cases) == len(ROUTES) * (1 + 2 * len(POLICY.roles))
        for case in cases:
            headers = {}
            if case.principal is not None:
                name = f"{case.role}-{case.here}"
                if name not in keys:
                    made = await services.api_keys.create(name, "matrix", case.principal.grants)
                    keys[name] = made.secret
                headers["authorization"] = f"Bearer {keys[name]}"
            path = re.sub(r"{(\w+)}", lambda m: FILLED.get(m[1], "x"), case.rule.path)
            answer = await http.request(case.rule.method, path, headers=headers)
            if answer.status_code != case.expected:
                wrong.append((case.rule, case.role, case.here, answer.status_code))
    assert wrong == []


def test_every_route_that_is_served_has_a_rule() -> None:
    app = application(lambda: opened(ApiSettings(), ApiConfig("http://x")), ROUTES, Limits())
    served = [
        (method, route.path)  # type: ignore[attr-defined]
        for route in app.routes
        for method in (getattr(route, "methods", None) or ())
        if method != "HEAD"
    ]
    assert len(served) == len(ROUTES)
    assert unruled(served, [route.rule for route in ROUTES]) == []


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


def test_a_route_without_a_rule_cannot_be_declared() -> None:
    said = {"method": "GET", "path": "/api/v1/x", "handler": let_in, "summary": "", "tag": "x"}
    with pytest.raises(TypeError, match="needs"):
        Route(**said)  # type: ignore[arg-type]
    for needs in (None, "", "namespace:pools:read", True):
        with pytest.raises(TypeError, match="needs no permission"):
            Route(**said, needs=needs)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="namespace"):
        Route(**said, needs=Permission.NAMESPACE_POOLS_READ)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="audit"):
        Route(**{**said, "method": "POST"}, needs=Permission.CLUSTER_AUDIT_READ)  # type: ignore[arg-type]


def test_a_path_cannot_be_declared_twice() -> None:
    with pytest.raises(TypeError, match="twice"):
        application(lambda: opened(ApiSettings(), ApiConfig("http://x")), [*ROUTES, ROUTES[0]],
                    Limits())  # fmt: skip


async def test_an_unforeseen_error_tells_nothing(server: RedisServer, redis: Any) -> None:
    del redis

    async def fails(call: Call) -> Answer:
        del call
        raise ZeroDivisionError("password=hunter2")

    route = Route(method="GET", path="/api/v1/x", needs=Access.PUBLIC, handler=fails, summary="",
                  tag="x", answer=Model)  # fmt: skip
    settings = ApiSettings(redis_url=SecretStr(server.url), api_secret=SecretStr("s" * 48))
    app = application(
        lambda: opened(settings, ApiConfig(f"http://127.0.0.1:{free_port()}")), [route], Limits()
    )
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="https://api.test") as http:
            answer = await http.get("/api/v1/x")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "hunter2" not in answer.text
