"""The admission server as a process of its own, registered with an API server by URL."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp

from engineroom.api import kinds
from engineroom.kube.client.errors import AlreadyExists, NotFound
from engineroom.kube.client.resources import SECRETS, VALIDATING_WEBHOOKS
from tests.support import ROOT, free_port

if TYPE_CHECKING:
    from pathlib import Path

    from engineroom.kube.client.client import Client

SECRET = "engineroom-webhooks-tls"


@dataclass
class Server:
    """One replica, started."""

    port: int
    probe_port: int
    process: asyncio.subprocess.Process
    log: Path

    async def ready(self, seconds: float = 30) -> None:
        """Wait until it says so."""
        async with asyncio.timeout(seconds), aiohttp.ClientSession() as session:
            while True:
                assert self.process.returncode is None, self.log.read_text()
                try:
                    address = f"http://127.0.0.1:{self.probe_port}/readyz"
                    async with session.get(address) as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.05)

    async def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        address = f"http://127.0.0.1:{self.probe_port}/metrics"
        async with aiohttp.ClientSession() as session, session.get(address) as response:
            lines = (await response.text()).splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    async def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            return await self.process.wait()


@dataclass
class Admission:
    """Replicas of the admission server for one namespace."""

    client: Client
    kubeconfig: Path
    namespace: str
    folder: Path
    servers: list[Server] = field(default_factory=list)
    #: Further namespaces whose objects are reviewed.
    others: tuple[str, ...] = ()

    @property
    def configuration(self) -> str:
        """Name of the ValidatingWebhookConfiguration."""
        return f"{self.namespace}-webhooks"

    async def start(self, replicas: int = 1, **settings: str) -> None:
        """Start, register, and wait until all are trusted."""
        ports = [(free_port(), free_port()) for _ in range(replicas)]
        await self.register([port for port, _ in ports])
        for port, probe_port in ports:
            self.servers.append(await self._serve(port, probe_port, settings))
        for server in self.servers:
            await server.ready()

    async def register(self, ports: list[int]) -> None:
        """As the chart does, but by URL; every port is asked for every request."""
        secret = {"metadata": {"name": SECRET, "namespace": self.namespace}, "type": "Opaque"}
        with contextlib.suppress(AlreadyExists):
            await self.client.create(SECRETS, secret)
        rule = {
            "apiGroups": ["engineroom.dev"],
            "apiVersions": ["v1alpha1"],
            "operations": ["CREATE", "UPDATE"],
            "resources": [kind.plural for kind in kinds.registry()],
            "scope": "Namespaced",
        }
        reviewed = {
            "key": "kubernetes.io/metadata.name",
            "operator": "In",
            "values": [self.namespace, *self.others],
        }
        await self.client.create(
            VALIDATING_WEBHOOKS,
            {
                "metadata": {"name": self.configuration},
                "webhooks": [
                    {
                        "name": f"workerpools-{index}.engineroom.dev",
                        "admissionReviewVersions": ["v1"],
                        "clientConfig": {"url": f"https://127.0.0.1:{port}/validate"},
                        "rules": [rule],
                        "namespaceSelector": {"matchExpressions": [reviewed]},
                        "failurePolicy": "Fail",
                        "sideEffects": "None",
                        "timeoutSeconds": 10,
                    }
                    for index, port in enumerate(ports)
                ],
            },
        )

    async def _serve(self, port: int, probe_port: int, settings: dict[str, str]) -> Server:
        given = {
            "host": "127.0.0.1",
            "port": str(port),
            "probe_port": str(probe_port),
            "namespace": self.namespace,
            "secret": SECRET,
            "configuration": self.configuration,
            "extra_names": "127.0.0.1",
            "check_interval": "0.5",
            "drain": "0.2",
            **settings,
        }
        log = self.folder / f"webhooks-{port}.log"
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "engineroom_webhooks",
                env={
                    **os.environ,
                    "KUBECONFIG": str(self.kubeconfig),
                    "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'webhooks'}:{ROOT}",
                    **{f"ENGINEROOM_WEBHOOKS_{key.upper()}": value for key, value in given.items()},
                },
                stdout=out,
                stderr=out,
            )
        return Server(port, probe_port, process, log)

    async def close(self) -> None:
        """Unregister first, so that nobody waits for who is gone; then end the processes."""
        with contextlib.suppress(NotFound):
            await self.client.delete(VALIDATING_WEBHOOKS, None, self.configuration)
        for server in self.servers:
            await server.stop()


def secret_env(**more: Any) -> dict[str, Any]:
    """A variable from a Secret."""
    return {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}, **more}
