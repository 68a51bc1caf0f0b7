"""The server over HTTP: limits and statuses; rubbish never ends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import ValidationError

from engineroom_webhooks.authorization import AllowAll
from engineroom_webhooks.server import admission, probes
from engineroom_webhooks.settings import Settings
from tests.unit.webhooks.test_review import review

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def listen(app: web.Application) -> tuple[web.AppRunner, str]:
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    return runner, f"http://127.0.0.1:{port}"


@pytest.fixture
async def url() -> AsyncIterator[str]:
    runner, address = await listen(admission(AllowAll(), 20_000, 0.3))
    yield address
    await runner.cleanup()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


@pytest.mark.parametrize("path", ["/validate", "/validate/workerpools"])
async def test_review_is_answered(url: str, session: aiohttp.ClientSession, path: str) -> None:
    async with session.post(url + path, json=review()) as response:
        assert response.status == 200
        assert (await response.json())["response"] == {"uid": "1-2-3", "allowed": True}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"rubbish", 400),
        (b"\xff\xfe\x00", 400),
        (b"[" * 5000, 400),
        (b'{"request":' * 1500 + b"1" + b"}" * 1500, 400),
        (b"null", 400),
        (b'{"request": {"uid": 1}}', 400),
        (b'{"request": {"uid": "a", "operation": "CREATE"}}', 400),
        (b" " * 30_000, 413),
    ],
)
async def test_rubbish_is_refused_and_the_next_review_answered(
    url: str, session: aiohttp.ClientSession, body: bytes, status: int
) -> None:
    async with session.post(f"{url}/validate", data=body) as response:
        assert response.status == status
        assert (await response.json(content_type=None))["detail"]
    async with session.post(f"{url}/validate", json=review()) as response:
        assert response.status == 200


async def test_body_that_does_not_come_is_given_up(
    url: str, session: aiohttp.ClientSession
) -> None:
    async def slow() -> AsyncIterator[bytes]:
        import asyncio

        yield b"{"
        await asyncio.sleep(1)
        yield b"}"

    async with session.post(f"{url}/validate", data=slow()) as response:
        assert response.status == 408


async def test_other_methods_and_paths(url: str, session: aiohttp.ClientSession) -> None:
    async with session.get(f"{url}/validate") as response:
        assert response.status == 405
    async with session.post(f"{url}/elsewhere") as response:
        assert response.status == 404


async def test_probes_and_metrics(session: aiohttp.ClientSession) -> None:
    reasons = ["no certificate yet", ""]
    server = probes(lambda: reasons[0])
    address = f"http://127.0.0.1:{await server.listen('127.0.0.1', 0)}"
    try:
        async with session.get(f"{address}/healthz") as response:
            assert response.status == 200
        async with session.get(f"{address}/readyz") as response:
            assert (response.status, await response.text()) == (503, "no certificate yet\n")
        reasons.pop(0)
        async with session.get(f"{address}/readyz") as response:
            assert response.status == 200
        async with session.get(f"{address}/metrics") as response:
            assert "engineroom_admission_requests_total" in await response.text()
    finally:
        server.close()


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEROOM_WEBHOOKS_NAMESPACE", "ops")
    monkeypatch.setenv("ENGINEROOM_WEBHOOKS_SERVICE", "hooks")
    monkeypatch.setenv("ENGINEROOM_WEBHOOKS_EXTRA_NAMES", "127.0.0.1, example.com")

    assert Settings().names() == (
        "hooks.ops.svc",
        "hooks.ops.svc.cluster.local",
        "hooks.ops",
        "127.0.0.1",
        "example.com",
    )


@pytest.mark.parametrize(
    "given_",
    [{"authority_lifetime": 8e6}, {"port": 70000}, {"certificates": "other"}],
)
def test_settings_that_cannot_be(given_: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**given_)
