"""The API as a separate process, started as in the image."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from tests.integration.console.api import ADMIN_PASSWORD
from tests.support import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator


class ApiProcess:
    """``engineroom-api`` on a loopback port."""

    def __init__(self, pid: int, url: str, probe_url: str) -> None:
        self.pid = pid
        self.url = url
        self.probe_url = probe_url

    def memory(self) -> int:
        """Return its resident memory in bytes."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def api_process(
    kubeconfig: Path,
    redis_url: str,
    log: Path,
    rate: int = 1000,
    module: str = "engineroom.console.main",
) -> Iterator[ApiProcess]:
    """Start it, wait until it is ready, and stop it at the end of the block."""
    port, probe_port = free_port(), free_port()
    environment = os.environ | {
        "KUBECONFIG": str(kubeconfig),
        "ENGINEROOM_REDIS_URL": redis_url,
        "ENGINEROOM_API_SECRET": "s" * 48,
        "ENGINEROOM_ADMIN_PASSWORD": ADMIN_PASSWORD,
        "ENGINEROOM_LISTEN_HOST": "127.0.0.1",
        "ENGINEROOM_HOST": "127.0.0.1",
        "ENGINEROOM_LISTEN_PORT": str(port),
        "ENGINEROOM_PROBE_PORT": str(probe_port),
        "ENGINEROOM_REQUESTS_PER_SECOND": str(rate),
        "ENGINEROOM_LOG_FORMAT": "json",
    }
    command = [sys.executable, "-m", module]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    running = ApiProcess(process.pid, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{probe_port}")
    try:
        _ready(process, running.url, log)
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the API did not become ready:\n{log.read_text()[-3000:]}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/readyz", timeout=2).status_code == 200:
                return
        time.sleep(0.05)
