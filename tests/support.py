"""What all kinds of tests share: a Redis of their own, a free port, the checkout's root."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import redis

from engineroom.api import LABEL_SHARED_REDIS, SHARED_REDIS_ENABLED, kinds
from engineroom.auth.errors import AuthStoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from engineroom.api.kinds import Registry
    from engineroom.auth.tokens.revocation import Revocations

#: The checkout's root.
ROOT = Path(__file__).resolve().parents[1]


def coverage_environment() -> dict[str, str]:
    """Return the variables by which `make coverage` measures a started process; else none."""
    return {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}


#: Below those that the kernel gives to outgoing connections, which may take one that is about to
#: be listened on, below Kubernetes' node ports, and apart from the ports of clusters.
_PORTS = range(20_000, 28_000)


#: What this process has been given.
_TAKEN: set[int] = set()


@cache
def _ports() -> int:
    """Descriptor of a file of which each byte stands for a port; open until the process ends."""
    path = Path(tempfile.gettempdir()) / "engineroom-ports"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def free_port() -> int:
    """A loopback port that nobody listens on, and that no other test process has been given.

    Whoever is to listen on it does so later, and others look for one meanwhile: so its byte is
    locked, which ends with the process.
    """
    while True:
        port = secrets.choice(_PORTS)
        if port in _TAKEN:
            continue
        with contextlib.suppress(OSError), socket.socket() as listener:
            fcntl.lockf(_ports(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            listener.bind(("127.0.0.1", port))
            _TAKEN.add(port)
            return port


@contextlib.contextmanager
def extra_kinds(*modules: str) -> Iterator[Registry]:
    """Add the kinds of modules to the registry of this process and of those that it starts."""
    before = os.environ.get(kinds.SETTING)
    os.environ[kinds.SETTING] = ",".join(modules)
    kinds.registry.cache_clear()
    try:
        yield kinds.registry()
    finally:
        os.environ.pop(kinds.SETTING)
        if before is not None:
            os.environ[kinds.SETTING] = before
        kinds.registry.cache_clear()


class RedisServer:
    """A redis-server on a free loopback port, in a directory of its own.

    With ``durable`` every write is on disk before it is answered, so that a restart loses nothing.
    ``ENGINEROOM_TEST_REDIS`` names another program: a Redis of another version, or a Valkey.
    """

    def __init__(self, *, durable: bool = False) -> None:
        self.port = free_port()
        self._durable = durable
        self._directory = tempfile.mkdtemp(prefix="engineroom-redis-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._process is not None

    def start(self) -> None:
        """Start, or start again with what was on disk; returns when it answers."""
        persistence = ["--appendonly", "yes", "--appendfsync", "always"] if self._durable else []
        self._process = subprocess.Popen(
            [
                os.environ.get("ENGINEROOM_TEST_REDIS") or "redis-server",
                *("--port", str(self.port), "--bind", "127.0.0.1", "--save", ""),
                *("--dir", self._directory, "--loglevel", "warning", *persistence),
            ],
            stdout=subprocess.DEVNULL,
        )
        client = redis.Redis(port=self.port)
        deadline = time.monotonic() + 10
        while True:
            try:
                client.ping()
            except redis.ConnectionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                client.close()
                return

    def stop(self) -> None:
        """Stop; what is on disk stays."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def close(self) -> None:
        """Stop and forget everything."""
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)


@contextlib.contextmanager
def redis_server(*, durable: bool = False) -> Iterator[RedisServer]:
    """A running redis-server for the length of a ``with`` block."""
    server = RedisServer(durable=durable)
    server.start()
    try:
        yield server
    finally:
        server.close()


def shared_namespace(name: str, **labels: str) -> dict[str, Any]:
    """Return a Namespace whose pools use the installation's Redis, with further labels."""
    shared = {LABEL_SHARED_REDIS: SHARED_REDIS_ENABLED}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": shared | labels},
    }


def pool_document(
    namespace: str | None = "shop",
    name: str = "mail",
    *,
    container: Mapping[str, str] = MappingProxyType({"name": "app", "image": "shop:1"}),
    **spec: Any,
) -> dict[str, Any]:
    """Return a valid WorkerPool for the queue "mail"; ``spec`` adds or replaces fields."""
    return {
        "apiVersion": "engineroom.dev/v1alpha1",
        "kind": "WorkerPool",
        "metadata": {"name": name} if namespace is None else {"name": name, "namespace": namespace},
        "spec": {
            "queues": [{"name": "mail"}],
            "template": {"spec": {"containers": [dict(container)]}},
            **spec,
        },
    }


async def revocations_read(revocations: Revocations) -> None:
    """Wait until the process's own task has read the revocations of tokens, within 30 s."""
    async with asyncio.timeout(30):
        while True:
            try:
                revocations.revoked(token="", family="", subject="", issued=0.0)
            except AuthStoreError:
                await asyncio.sleep(0.01)
            else:
                return
