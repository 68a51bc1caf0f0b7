"""Live events over a real connection: order, reconnection, limits, and revoked permissions."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest  # noqa: TC002
import pytest_asyncio

from engineroom.auth.login.sessions import COOKIE, SessionLimits
from engineroom.auth.middleware import SECURITY_HEADERS
from engineroom.auth.permissions import Grant
from engineroom.console.background.event_hub import BEHIND, MOST_EACH, EventStream, ObjectChange
from engineroom.console.main import server
from engineroom.console.resources import events as event_routes
from engineroom.kube.client.resources import WORKERPOOLS
from tests.integration.console.api import BINDINGS, POOLS, Api, pool, swept
from tests.integration.pools import eventually
from tests.support import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engineroom.console.settings import ApiSettings
    from engineroom.kube.client.client import Client
    from engineroom.kube.client.config import ApiConfig


class Served(Api):
    """The API on a socket."""

    def __init__(self, app: Any, port: int) -> None:
        super().__init__(app)
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10)


@pytest_asyncio.fixture
async def served(
    settings: ApiSettings, api_config: ApiConfig, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Served]:
    monkeypatch.setattr(event_routes, "HEARTBEAT", 0.3)
    port = free_port()
    changed = settings.model_copy(update={"listen_port": port, "listen_host": "127.0.0.1"})
    running = server(changed, api_config)
    running.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(running._serve())  # without the signals of the test's process
    await eventually("the server listens", lambda: running.started, 15)
    app = running.config.loaded_app
    while not hasattr(app, "state"):  # below uvicorn's own layers
        app = app.app
    async with contextlib.aclosing(Served(app, port)) as opened:
        await opened.services.hub.pools.synced.wait()
        yield opened
    running.should_exit = True
    await task
    swept()


async def lines(response: httpx.Response) -> AsyncIterator[dict[str, str]]:
    """Yield the events of a stream, comments as ``{"comment": ...}``."""
    event: dict[str, str] = {}
    async for line in response.aiter_lines():
        if not line:
            if event:
                yield event
            event = {}
        elif line.startswith(":"):
            event["comment"] = line[1:].strip()
        else:
            name, _, value = line.partition(": ")
            event[name] = value


async def until(events: AsyncIterator[dict[str, str]], kind: str) -> dict[str, str]:
    async with asyncio.timeout(10):
        async for event in events:
            if event.get("event") == kind or kind in event:
                return event
    raise AssertionError(f"the stream ended without {kind}")


async def made(client: Client, namespace: str, name: str) -> None:
    body = pool(name)
    body["metadata"]["namespace"] = namespace
    await client.create(WORKERPOOLS, body)


def where(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/events"


async def test_changes_arrive_and_a_reconnect_misses_none(
    served: Served, client: Client, namespace: str
) -> None:
    token = await served.key("viewer", namespace)
    headers = {"authorization": f"Bearer {token}"}
    async with served.http.stream("GET", where(namespace), headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = lines(response)
        await until(events, "reset")
        await made(client, namespace, "mail")
        first = await until(events, "pool")
        assert json.loads(first["data"])["name"] == "mail"
        await until(events, "comment")
    await made(client, namespace, "bills")
    await client.delete(WORKERPOOLS, namespace, "mail")
    headers["last-event-id"] = first["id"]
    async with served.http.stream("GET", where(namespace), headers=headers) as response:
        events = lines(response)
        assert json.loads((await until(events, "pool"))["data"])["name"] == "bills"
        deleted = await until(events, "gone")
        assert json.loads(deleted["data"]) == {"namespace": namespace, "name": "mail"}
    headers["last-event-id"] = "nobody-knows"
    async with served.http.stream("GET", where(namespace), headers=headers) as response:
        await until(lines(response), "reset")
    assert await eventually("all are closed", lambda: not served.services.hub._streams, 5)


async def test_a_stream_ends_when_the_permission_is_revoked(
    served: Served, client: Client, namespace: str, person: Any
) -> None:
    key = await served.key("viewer", namespace)
    token = await person("reader", {**POOLS, "verbs": ["watch"]})
    for credential in (key, token):
        headers = {"authorization": f"Bearer {credential}"}
        async with served.http.stream("GET", where(namespace), headers=headers) as response:
            assert response.status_code == 200
            events = lines(response)
            await until(events, "comment")
            if credential == key:
                await served.services.api_keys.revoke(key.split("_")[1])
            else:
                await client.delete(BINDINGS, namespace, "reader")
            await until(events, "end")
            assert [event async for event in events] == []


async def test_an_open_stream_does_not_extend_its_session(served: Served, namespace: str) -> None:
    sessions = served.services.sessions
    sessions._limits = SessionLimits(idle=1.5)
    session = await sessions.open("program:x", [Grant("viewer", frozenset({namespace}))])
    cookie = {"cookie": f"{COOKIE}={session.id}"}
    async with served.http.stream("GET", where(namespace), headers=cookie) as response:
        events = lines(response)
        # It is checked while it is valid, and ends when it is idle.
        assert (await anext(events)).get("retry") == "1000"
        assert (await anext(events)) == {"comment": "alive"}
        async with asyncio.timeout(6):
            await until(events, "end")
    assert (await served.get("/whoami", **cookie)).status_code == 401


async def test_the_streams_of_one_caller_are_limited(served: Served, namespace: str) -> None:
    headers = {"authorization": f"Bearer {await served.key('viewer', namespace)}"}
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(MOST_EACH):
            opened = served.http.stream("GET", where(namespace), headers=headers)
            assert (await stack.enter_async_context(opened)).status_code == 200
        refused = await served.http.get(where(namespace), headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_streams")


async def test_a_slow_reader_is_disconnected_and_frees_memory() -> None:
    stream = EventStream("shop", ["pool"])
    for number in range(BEHIND + 10):
        stream.offer(ObjectChange(str(number), "pool", "pool", "shop", "{}"))
        stream.offer(ObjectChange(str(number), "pool", "pool", "other", "{}"))
    assert stream.lost
    assert stream._waiting.qsize() == BEHIND


async def test_a_body_over_the_limit_is_refused_unread(served: Served) -> None:
    token = await served.key("admin")
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 65536
            yield b" " * 65536
            await asyncio.sleep(0)

    with contextlib.suppress(httpx.TransportError):
        answer = await served.http.post("/api/v1/keys", headers=headers, content=body())
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        assert set(SECURITY_HEADERS) <= set(answer.headers)
    assert sent < 32 * 1024 * 1024
