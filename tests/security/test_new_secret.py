"""A new secret of the installation: all that the old one sealed is void, and the API goes on."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
from pydantic import SecretStr

from engineroom.console.main import create_application
from engineroom.console.settings import ApiSettings
from engineroom.kube.client.config import ApiConfig
from tests.support import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from tests.support import RedisServer

PASSWORD = "correct horse battery staple"


@asynccontextmanager
async def api(server: RedisServer, secret: str) -> AsyncIterator[httpx.AsyncClient]:
    settings = ApiSettings(
        redis_url=SecretStr(server.url),
        api_secret=SecretStr(secret),
        admin_password=SecretStr(PASSWORD),
    )
    app: Any = create_application(settings, ApiConfig(server=f"http://127.0.0.1:{free_port()}"))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://api.test") as made_,
    ):
        # There is no cluster here that could be asked about other tokens.
        app.state.services.authenticator._external = None
        await app.state.services.revocations.read()
        yield made_


async def token(client: httpx.AsyncClient) -> str:
    body = {"name": "admin", "password": PASSWORD}
    answer = await client.post("/api/v1/tokens", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["access"])


async def whoami(client: httpx.AsyncClient, access: str) -> httpx.Response:
    return await client.get("/api/v1/whoami", headers={"authorization": f"Bearer {access}"})


async def test_it_starts_and_knows_nobody_of_before(server: RedisServer, redis: Redis) -> None:
    del redis  # empties it
    async with api(server, "a" * 48) as before:
        old = await token(before)
        assert (await whoami(before, old)).status_code == 200
        # As in a rolling update: both are there for a while, each with its own.
        async with api(server, "b" * 48) as after:
            new = await token(after)
            assert (await whoami(after, new)).status_code == 200
            refused = await whoami(after, old)
            assert refused.status_code == 401, refused.text
            assert (await whoami(before, old)).status_code == 200
            assert (await whoami(before, new)).status_code == 401
            bearer = {"authorization": f"Bearer {new}"}
            told = await after.get("/api/v1/audit", headers=bearer)
            assert told.status_code == 200, told.text
            checked = await after.get("/api/v1/audit/check", headers=bearer)
            assert checked.status_code == 200, checked.text
            # The chain goes on; what the old secret sealed cannot be checked with the new one.
            assert [each.split(":")[0] for each in checked.json()["problems"]] == ["record 1"]
