"""Forwards a local port to a pod in any cluster by kubectl port-forward."""

from __future__ import annotations

import base64
import re
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import redis

from tests.cluster.api import ClusterError

if TYPE_CHECKING:
    from collections.abc import Mapping

_FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")


class Forward:
    """A forwarded port. It is forwarded again when its pod is replaced."""

    def __init__(
        self, environment: Mapping[str, str], namespace: str, target: str, port: int, secret: str
    ) -> None:
        self._environment = dict(environment)
        self._command = ["kubectl", "port-forward", "-n", namespace, target, f":{port}"]
        self._password = base64.b64decode(secret).decode()
        self._process: subprocess.Popen[str] | None = None
        self._client: redis.Redis | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Forward:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def client(self) -> redis.Redis:
        """Return a connected Redis client. Raises ConnectionError if Redis is unreachable."""
        with self._lock:
            if self._client is not None and self._alive():
                return self._client
            self.close()
            port = self._start()
            # RQ stores bytes; nothing is decoded here.
            self._client = redis.Redis(
                port=port, password=self._password, socket_timeout=10, socket_connect_timeout=5
            )
            self._client.ping()
            return self._client

    def close(self) -> None:
        """Stop forwarding."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def _alive(self) -> bool:
        if self._process is None or self._process.poll() is not None or self._client is None:
            return False
        try:
            return bool(self._client.ping())
        except (redis.RedisError, OSError):
            return False

    def _start(self) -> int:
        try:
            process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        except FileNotFoundError as error:
            raise ClusterError("kubectl is needed on the PATH") from error
        self._process = process
        deadline = time.monotonic() + 20
        lines = []
        assert process.stdout is not None
        while time.monotonic() < deadline:
            line = process.stdout.readline()
            if not line:
                break
            lines.append(line.strip())
            if match := _FORWARDING.search(line):
                # Nobody reads what it says of each connection; a full pipe would stop it.
                threading.Thread(target=_drain, args=(process,), daemon=True).start()
                return int(match[1])
        raise ConnectionError(" ".join(lines) or "port-forward ended without a word")


def _drain(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    try:
        for _ in process.stdout:
            pass
    except ValueError:  # closed from the other side, as it should be
        pass
