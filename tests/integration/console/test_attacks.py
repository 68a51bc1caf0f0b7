"""Attacks on the API in a separate process, by raw sockets, with a real cluster."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from redis.asyncio import Redis

from engineroom.auth.login.sessions import COOKIE
from engineroom.auth.permissions import ADMIN, Grant
from engineroom.auth.tokens.api_keys import ApiKeys
from engineroom.console.route_table import ROUTES
from engineroom.console.services import derive_secret
from engineroom.core.clock import SystemClock
from engineroom.kube.client.client import Client
from engineroom.kube.client.resources import NAMESPACES, WORKERPOOLS
from tests.integration.console.api import ADMIN_PASSWORD, pool
from tests.integration.console.process import ApiProcess, api_process
from tests.integration.pools import record_owned
from tests.support import shared_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engineroom.kube.client.config import ApiConfig
    from tests.cluster.api import Cluster
    from tests.support import RedisServer

HERE, THERE = "attack-here", "attack-there"
FILLED = {
    "session": "0" * 16,
    "key": "0" * 16,
    "pool": "mail",
    "schedule": "x",
    "job": "x",
    "operation": "0" * 32,
}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attacked") / "api.log"


@pytest.fixture(scope="module")
def process(
    control_plane: Cluster, api_config: ApiConfig, redis: RedisServer, log: Path
) -> Iterator[ApiProcess]:
    async def objects() -> None:
        async with Client(api_config) as client:
            for namespace in (HERE, THERE):
                await client.create(NAMESPACES, shared_namespace(namespace))
                body = pool("mail")
                body["metadata"]["namespace"] = namespace
                await client.create(WORKERPOOLS, body)
                await record_owned(client, body)

    async def clean() -> None:
        async with Client(api_config) as client:
            for namespace in (HERE, THERE):
                await client.delete(NAMESPACES, None, namespace)

    asyncio.run(objects())
    with api_process(control_plane.kubeconfig, redis.url, log) as running:
        yield running
    asyncio.run(clean())
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    failed = [line for line in lines if line.get("event") == "a request failed"]
    assert failed == [], failed


@pytest.fixture(scope="module")
def key(process: ApiProcess, redis: RedisServer) -> str:
    """Return an API key with all permissions in one namespace."""

    async def make() -> str:
        client = Redis.from_url(redis.url)
        keys = ApiKeys(client, SystemClock(), [derive_secret(b"s" * 48, "api-keys")])
        created = await keys.create("program:here", "here", [Grant(ADMIN.name, frozenset({HERE}))])
        await client.aclose()
        return created.secret

    return asyncio.run(make())


def ask(process: ApiProcess, key: str, method: str, path: str, **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    headers |= more.pop("headers", {})
    return httpx.request(method, process.url + path, headers=headers, timeout=20, **more)


def version(api_config: ApiConfig) -> str:
    async def read() -> str:
        async with Client(api_config) as client:
            mail = await client.get(WORKERPOOLS, THERE, "mail")
            return str(mail["metadata"]["resourceVersion"])

    return asyncio.run(read())


def test_no_route_leads_into_another_namespace(
    process: ApiProcess, key: str, api_config: ApiConfig
) -> None:
    before = version(api_config)
    wrong = []
    namespaced = [route for route in ROUTES if "{namespace}" in route.path]
    assert len(namespaced) > 10
    for route in namespaced:
        filled = re.sub(r"{(\w+)}", lambda m: FILLED.get(m[1], THERE), route.path)
        body = {"json": {}} if route.method != "GET" else {}
        answer = ask(process, key, route.method, filled, **body)
        if answer.status_code != 403:
            wrong.append((route.method, filled, answer.status_code))
    assert wrong == []
    assert version(api_config) == before
    # It is the namespace that is closed, and not the door.
    assert ask(process, key, "GET", f"/api/v1/namespaces/{HERE}/pools/mail").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        f"{HERE}/pools/../../{THERE}/pools/mail",
        f"{HERE}%2F..%2F{THERE}/pools/mail",
        f"{HERE}/pools/..%2f..%2f{THERE}%2fpools%2fmail",
        f"{HERE}/pools/%2e%2e/%2e%2e/{THERE}/pools/mail",
        f"{HERE}/pools/mail%00?namespace={THERE}",
        f"{HERE}/pools/mail;namespace={THERE}",
        f"{HERE}//{THERE}/pools/mail",
        f"{HERE}\\..\\{THERE}/pools/mail",
        f"{THERE}%20/pools/mail",
        f"{THERE.upper()}/pools/mail",
        f"{THERE}./pools/mail",
        "%EF%BC%A1ttack-there/pools/mail",
        f"{HERE}/pools?namespace={THERE}",
        f"{HERE}/pools?fieldSelector=metadata.namespace%3D{THERE}",
        f"{HERE}/pools/mail%3Fx",
        f"{HERE}/pools/%2e%2e%2f%2e%2e%2f%2e%2e%2fsecrets",
        "..%2f..%2f..%2fetc%2fpasswd",
    ],
)
def test_no_spelling_of_a_path_leads_into_another_namespace(
    process: ApiProcess, key: str, path: str
) -> None:
    status, text = raw(process, f"GET /api/v1/namespaces/{path} HTTP/1.1", key=key)
    assert status in {400, 403, 404, 422}, (status, text[:300])
    assert '"queues"' not in text
    assert "root:" not in text


def raw(
    process: ApiProcess, line: str, *headers: str, key: str = "", body: bytes = b""
) -> tuple[int, str]:
    """Send one raw request; return the status of the first response and all output."""
    lines = [line, "Host: x", "Connection: close", *headers]
    if key:
        lines.append(f"Authorization: Bearer {key}")
    data = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
    url = httpx.URL(process.url)
    with socket.create_connection((url.host, url.port or 80), 10) as connection:
        connection.settimeout(5)
        answer = b""
        with suppress(OSError):
            connection.sendall(data)
            while part := connection.recv(65536):
                answer += part
    text = answer.decode("latin-1")
    return int(text.split(" ", 2)[1]) if text.startswith("HTTP/1.1 ") else 0, text


HIDDEN = b"GET /.well-known/jwks.json HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"0\r\n\r\n" + HIDDEN


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (("Content-Length: 5", "Transfer-Encoding: chunked"), CHUNKED),
        (("Transfer-Encoding: chunked", "Content-Length: 5"), CHUNKED),
        (("Content-Length: 0", f"Content-Length: {len(HIDDEN)}"), HIDDEN),
        (("Content-Length: 0, 5",), HIDDEN),
        (("Content-Length: +0",), HIDDEN),
        (("Content-Length: -1",), HIDDEN),
        (("Content-Length: 0x0",), HIDDEN),
        (("Content-Length : 0",), HIDDEN),
        (("Transfer-Encoding: xchunked",), CHUNKED),
        (("Transfer-Encoding: chunked, identity",), CHUNKED),
        (("Transfer-Encoding: identity, chunked",), CHUNKED),
        (("Transfer-Encoding: chunked", "Transfer-Encoding: x"), CHUNKED),
        (("Transfer-Encoding : chunked",), CHUNKED),
        (("Transfer-Encoding:\x0bchunked",), CHUNKED),
        (("X: y\nTransfer-Encoding: chunked",), CHUNKED),
        (("X: y\r\n Transfer-Encoding: chunked",), CHUNKED),
        (("X: y\x00", "Content-Length: 0"), HIDDEN),
        (("X: y\rContent-Length: 0",), HIDDEN),
    ],
)
def test_request_smuggling_fails(
    process: ApiProcess, headers: tuple[str, ...], body: bytes
) -> None:
    _, text = raw(process, "POST /api/v1/tokens HTTP/1.1", *headers, body=body)
    assert '"keys"' not in text, text


def test_a_client_that_disconnects_is_not_an_error(process: ApiProcess, log: Path) -> None:
    for size in (10, 100_000):
        url = httpx.URL(process.url)
        with socket.create_connection((url.host, url.port or 80), 10) as connection:
            head = f"POST /api/v1/tokens HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n"
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{{".encode())
    # Another request has been through the same loop after it.
    assert ask(process, "", "GET", "/api/v1/whoami").status_code == 401
    assert "a request failed" not in log.read_text()


def test_log_lines_cannot_be_forged(process: ApiProcess, key: str, log: Path) -> None:
    fake = '{"event": "made up", "level": "info"}'
    for at in (
        f"/api/v1/namespaces/x%0a{fake}/pools",
        f"/api/v1/x%0d%0a{fake}",
        f"/api/v1/namespaces/{HERE}/pools?cursor=%0a{fake}",
    ):
        raw(process, f"GET {at.replace(' ', '%20')} HTTP/1.1", key=key)
    raw(process, "GET /api/v1/whoami HTTP/1.1", f"X-Request-Id: a\x85{fake}", key=key)
    raw(process, f"GET /api/v1/whoami HTTP/1.1\n{fake}")
    ask(process, "", "POST", "/api/v1/tokens", json={"name": f"a\n{fake}", "password": "x" * 12})
    ask(process, key, "POST", "/api/v1/keys", json={"name": f"x\n{fake}", "grants": []})
    lines = log.read_text().splitlines()
    assert len(lines) > 1
    assert [line for line in lines if json.loads(line).get("event") == "made up"] == []


def test_a_planted_session_is_not_signed_in(process: ApiProcess) -> None:
    planted = "A" * 43
    with httpx.Client(base_url=process.url) as browser:
        answer = browser.post(
            "/api/v1/sessions",
            json={"name": "admin", "password": ADMIN_PASSWORD},
            headers={"cookie": f"{COOKIE}={planted}"},
        )
        if answer.status_code == 401:  # a planted cookie is refused as such, which is as well
            answer = browser.post(
                "/api/v1/sessions", json={"name": "admin", "password": ADMIN_PASSWORD}
            )
        assert answer.status_code == 201, answer.text
        set_cookie = answer.headers["set-cookie"]
    assert planted not in set_cookie
    for word in ("Secure", "HttpOnly", "Path=/", "SameSite="):
        assert word.lower() in set_cookie.lower()
    response = httpx.get(f"{process.url}/api/v1/whoami", headers={"cookie": f"{COOKIE}={planted}"})
    assert response.status_code == 401


BOMBS = {
    "laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "deep": "[" * 100_000,
    "tag": "!!python/object/apply:os.system ['true']",
    "anchors": "".join(f"k{n}: &k{n} x\n" for n in range(40_000)),
    "merge": "a: &a {b: 1}\n" + "c:\n  <<: [" + ", ".join(["*a"] * 5000) + "]\n",
    "keys": "".join(f"k{n}: 1\n" for n in range(60_000)),
}


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_document_bombs_are_refused_without_growth(
    process: ApiProcess, key: str, name: str
) -> None:
    path = f"/api/v1/namespaces/{HERE}/manifests"
    ask(process, key, "POST", path, json={"manifest": BOMBS[name]})
    before = process.memory()
    for _ in range(3):
        answer = ask(process, key, "POST", path, json={"manifest": BOMBS[name]})
        assert answer.status_code in {413, 422}, answer.text[:300]
        assert answer.elapsed.total_seconds() < 5
    assert process.memory() - before < 8 * 1024 * 1024


def test_compression_bombs_are_refused_without_growth(process: ApiProcess) -> None:
    bomb = gzip.compress(bytes(200_000_000))
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    ask(process, "", "POST", "/api/v1/tokens", content=bomb, headers=headers)
    before = process.memory()
    for _ in range(5):
        answer = ask(process, "", "POST", "/api/v1/tokens", content=bomb, headers=headers)
        assert answer.status_code == 413
    assert process.memory() - before < 4 * 1024 * 1024


def test_half_sent_heads_keep_neither_probes_nor_other_clients_out(process: ApiProcess) -> None:
    url = httpx.URL(process.url)
    connections: list[socket.socket] = []
    try:
        for _ in range(2000):
            source = ("127.0.0.3", 0)
            connections.append(socket.create_connection((url.host, url.port or 80), 10, source))
            with suppress(ConnectionError):
                connections[-1].sendall(b"GET /api/v1/whoami HTTP/1.1\r\nHost: x\r\n")
        for path in ("/healthz", "/readyz"):
            assert httpx.get(process.probe_url + path, timeout=5).json() == {"status": "ok"}
        assert ask(process, "", "GET", "/api/v1/whoami").status_code == 401
        assert ask(process, "", "GET", "/readyz").status_code == 200
    finally:
        for connection in connections:
            connection.close()
