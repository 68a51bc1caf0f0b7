"""The API in this process, with a real API server and a real Redis; and users of the cluster."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from pydantic import SecretStr
from redis.asyncio import Redis as AsyncRedis

from engineroom.console.main import create_application
from engineroom.console.settings import ApiSettings
from engineroom.kube.client.resources import SERVICE_ACCOUNTS
from tests.integration.console.api import ADMIN_PASSWORD, BINDINGS, ROLES, Api, role, swept
from tests.support import RedisServer, redis_server, revocations_read

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from engineroom.kube.client.client import Client
    from engineroom.kube.client.config import ApiConfig


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
def settings(redis: RedisServer) -> ApiSettings:
    return ApiSettings(
        redis_url=SecretStr(redis.url),
        api_secret=SecretStr("s" * 48),
        admin_password=SecretStr(ADMIN_PASSWORD),
        requests_per_second=1000,
    )


@pytest_asyncio.fixture
async def api(settings: ApiSettings, api_config: ApiConfig) -> AsyncIterator[Api]:
    app = create_application(settings, api_config)
    async with app.router.lifespan_context(app), contextlib.aclosing(Api(app)) as opened:
        await app.state.services.redis.flushall()
        await app.state.services.signing_keys.ensure()
        await app.state.services.hub.pools.synced.wait()
        await revocations_read(app.state.services.revocations)
        yield opened
    swept()


@pytest_asyncio.fixture
async def make_redis(redis: RedisServer) -> AsyncIterator[Any]:
    """Return a factory of clients of the same Redis; they are closed at the end."""
    clients: list[AsyncRedis] = []

    def make() -> AsyncRedis:
        clients.append(AsyncRedis.from_url(redis.url))
        return clients[-1]

    yield make
    for item in clients:
        await item.aclose()


@pytest_asyncio.fixture
async def person(client: Client, namespace: str) -> Any:
    """Return a factory of service accounts with given rights; it returns their tokens."""

    async def make(name: str, *rules: dict[str, Any], where: str = namespace) -> str:
        await client.create(SERVICE_ACCOUNTS, {"metadata": {"name": name, "namespace": where}})
        metadata = {"name": name, "namespace": where}
        await client.create(ROLES, {"metadata": metadata, "rules": list(rules)})
        await client.create(BINDINGS, {"metadata": metadata, **role(name, where)})
        path = SERVICE_ACCOUNTS.path(where, name, "token")
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        answer = await client.request("POST", path, body=body)
        return str(answer["status"]["token"])

    return make
