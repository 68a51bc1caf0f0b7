"""A client of the API under test, and the objects that tests send to it."""

from __future__ import annotations

import gc
import json
import warnings
from typing import TYPE_CHECKING, Any

import httpx
import yaml

from engineroom.auth.permissions import EVERYWHERE, Grant
from engineroom.kube.client.resources import Resource
from tests.performance.rig import pool

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from engineroom.console.services import Services

#: Paths that are not below /api/v1.
OUTSIDE = frozenset({"/healthz", "/readyz", "/.well-known/jwks.json"})
ADMIN_PASSWORD = "correct horse battery staple"
POOLS = {"apiGroups": ["engineroom.dev"], "resources": ["workerpools"]}
SCALE = {"apiGroups": ["engineroom.dev"], "resources": ["workerpools/scale"]}
ROLES = Resource("rbac.authorization.k8s.io", "v1", "roles", "Role")
BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
PODS = {"apiGroups": [""], "resources": ["pods"]}


class Api:
    """Sends requests; ``key`` creates API keys for callers."""

    def __init__(self, app: Starlette) -> None:
        self.services: Services = app.state.services
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        self.http = httpx.AsyncClient(transport=transport, base_url="https://api.test")

    async def aclose(self) -> None:
        await self.http.aclose()

    async def key(self, role_name: str, *namespaces: str, owner: str = "") -> str:
        """Create an API key with that role in a namespace, or everywhere."""
        grants = [Grant(role_name, frozenset(namespaces or {EVERYWHERE}))]
        created = await self.services.api_keys.create(
            owner or f"program:{role_name}", "test", grants
        )
        return created.secret

    async def token(self, role_name: str, *namespaces: str, scopes: list[str] | None = None) -> str:
        """Return an access token of the owner of ``key``'s keys."""
        grants = [Grant(role_name, frozenset(namespaces or {EVERYWHERE}))]
        pair = await self.services.tokens.issue(f"program:{role_name}", grants, scopes)
        return pair.access

    async def call(
        self, method: str, path: str, token: str = "", body: Any = None, **headers: str
    ) -> httpx.Response:
        """Send one request below /api/v1; header names have _ for -."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            sent["authorization"] = f"Bearer {token}"
        content = None
        if body is not None:
            sent.setdefault("content-type", "application/json")
            content = json.dumps(body)
        url = path if path in OUTSIDE else f"/api/v1{path}"
        return await self.http.request(method, url, headers=sent, content=content)

    async def get(self, path: str, token: str = "", **headers: str) -> httpx.Response:
        return await self.call("GET", path, token, **headers)

    async def post(
        self, path: str, token: str = "", body: Any = None, **headers: str
    ) -> httpx.Response:
        return await self.call("POST", path, token, body, **headers)


def role(name: str, namespace: str) -> dict[str, Any]:
    """Bind a role to the service account of the same name."""
    return {
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
    }


def swept() -> None:
    """Collect garbage after an aiohttp session, which does not wait for the end of TLS.

    Otherwise a later, unrelated test would find its sockets open.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def manifest(*objects: dict[str, Any]) -> str:
    return yaml.safe_dump_all(objects)


def code(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return str(answer.json()["code"])


__all__ = ["Api", "code", "manifest", "pool"]
