"""The latency of one replica of the admission server at a fixed rate, over TLS.

Open loop: requests leave on schedule, and each is timed from the moment at which it was due: a
stall counts for every request that waited. The server is a process of its own with a real API
server behind it, which it asks about authors. The requests are a mix of those of a cluster.

The floor is a bare HTTPS server in a process of its own, which parses the same requests and returns
a constant; it gets the same load in alternating turns.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import gc
import json
import os
import ssl
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from engineroom.kube.client import config as kube_config
from engineroom.kube.client.client import Client
from engineroom.kube.client.resources import NAMESPACES, SECRETS
from tests.cluster.api import Shape
from tests.integration.webhooks import SECRET, Admission, secret_env
from tests.performance.outcome import Goal, outcome, percentile
from tests.performance.rig import api_server
from tests.support import free_port
from tests.unit.api.specs import pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

#: As many connections as an API server keeps to a webhook, and to spare.
_CONNECTIONS = 32
#: Authors; each is asked about once in half a minute.
_AUTHORS = 50
_WARM = 3.0
#: Turns of the server and of the floor.
_TURNS = 3
REASONS = {
    "p50_ms": "the promise is p99",
    "p90_ms": "the promise is p99",
    "max_ms": "one of thousands; the promise is p99",
    "requests": "the size of the run",
    "allowed": "the mix of the run",
    "refused": "the mix of the run",
    "body_bytes_mean": "the mix of the run",
    "server_*": "no promise",
    "sender_late_p99_ms": "the load's own lateness, which is in every latency",
    "machine_load_1min": "for the reader",
}

_FLOOR = """
import json, ssl, sys
from aiohttp import web
async def answer(request):
    uid = (await request.json())["request"]["uid"]
    return web.json_response({"response": {"uid": uid, "allowed": True}})
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(sys.argv[1], sys.argv[2])
application = web.Application(client_max_size=2**22)
application.router.add_post("/validate", answer)
web.run_app(application, host="127.0.0.1", port=int(sys.argv[3]), ssl_context=context, print=None)
"""


def main() -> int:
    """Measure and print the closing line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=200, help="requests a second (200)")
    parser.add_argument("--seconds", type=float, default=30, help="for how long (30)")
    options = parser.parse_args()
    with api_server(Shape.CONTROL_PLANE) as kube:
        figures = asyncio.run(_measure(kube.kubeconfig, options.rate, options.seconds))
    goals = [
        Goal("p99_ms", 10, floor="floor_p99_ms"),
        Goal("failed", 0),
        Goal("requests_per_second", options.rate * 0.99, at_least=True),
    ]
    return outcome("admission", figures, goals, REASONS)


async def _measure(kubeconfig: Path, rate: int, seconds: float) -> dict[str, Any]:
    config = kube_config.from_kubeconfig(kubeconfig)
    with tempfile.TemporaryDirectory() as folder:
        async with Client(config) as client:
            await client.create(NAMESPACES, {"metadata": {"name": "shop"}})
            admission = Admission(client, kubeconfig, "shop", Path(folder))
            try:
                await admission.start(check_interval="15")
                secret = await client.get(SECRETS, "shop", SECRET)
                port = admission.servers[0].port
                url = f"https://127.0.0.1:{port}/validate/workerpools"
                pid = admission.servers[0].process.pid
                return await _turns(url, pid, secret["data"], Path(folder), rate, seconds)
            finally:
                await admission.close()


async def _turns(
    url: str, pid: int, certificate: dict[str, str], folder: Path, rate: int, seconds: float
) -> dict[str, Any]:
    """Load the server and the floor in alternating turns; return the figures of both."""
    authority = base64.b64decode(certificate["ca.crt"]).decode()
    trust = ssl.create_default_context(cadata=authority)
    bodies = [json.dumps(body).encode() for body in _requests()]
    connector = aiohttp.TCPConnector(limit=_CONNECTIONS, ssl=trust, keepalive_timeout=60)
    headers = {"Content-Type": "application/json"}
    processor = elapsed = 0.0
    async with (
        _floor_server(certificate, folder) as floor_url,
        aiohttp.ClientSession(connector=connector, headers=headers) as session,
    ):
        server = _Load(session, url, bodies)
        floor = _Load(session, floor_url, bodies)
        for load in (server, floor):
            await load.run(rate, _WARM)
            load.clear()
        gc.collect()
        gc.freeze()
        for _ in range(_TURNS):
            used, began = _cpu_seconds(pid), time.perf_counter()
            await server.run(rate, seconds / _TURNS)
            elapsed += time.perf_counter() - began
            processor += _cpu_seconds(pid) - used
            await floor.run(rate, seconds / _TURNS)
        resident = _resident(pid)
    latencies = server.latencies
    return {
        "p50_ms": round(percentile(latencies, 0.5), 2),
        "p90_ms": round(percentile(latencies, 0.9), 2),
        "p99_ms": round(percentile(latencies, 0.99), 2),
        "max_ms": round(max(latencies), 2),
        "floor_p99_ms": round(percentile(floor.latencies, 0.99), 2),
        "requests": len(latencies),
        "requests_per_second": round(len(latencies) / elapsed, 1),
        **server.answers,
        "body_bytes_mean": sum(map(len, bodies)) // len(bodies),
        "server_cpu_share": round(processor / elapsed, 3),
        "server_resident_mib": round(resident / 2**20, 1),
        "sender_late_p99_ms": round(percentile(server.late, 0.99), 2),
        "machine_load_1min": round(os.getloadavg()[0], 1),
    }


@contextlib.asynccontextmanager
async def _floor_server(certificate: dict[str, str], folder: Path) -> AsyncIterator[str]:
    """Run the bare server with the admission server's own certificate; yield its URL."""
    port = free_port()
    paths = []
    for name in ("tls.crt", "tls.key"):
        path = folder / f"floor-{name}"
        path.write_bytes(base64.b64decode(certificate[name]))
        paths.append(str(path))
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _FLOOR, *paths, str(port))
    try:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.05)
        yield f"https://127.0.0.1:{port}/validate"
    finally:
        process.terminate()
        await process.wait()


class _Load:
    """Requests to one server at a fixed rate, and their latencies in milliseconds."""

    def __init__(self, session: aiohttp.ClientSession, url: str, bodies: list[bytes]) -> None:
        self._session, self._url, self._bodies = session, url, bodies
        self.clear()

    def clear(self) -> None:
        """Forget all measurements."""
        self.latencies: list[float] = []
        self.late: list[float] = []
        self.answers = {"allowed": 0, "refused": 0, "failed": 0}

    async def run(self, rate: int, seconds: float) -> None:
        """Send ``rate`` requests a second for ``seconds``, and wait for the answers."""
        await _schedule(self._send, rate, seconds)

    async def _send(self, number: int, due: float) -> None:
        started = time.perf_counter()
        result = "failed"
        try:
            body = self._bodies[number % len(self._bodies)]
            async with self._session.post(self._url, data=body) as response:
                answer = json.loads(await response.read())["response"]
                result = "allowed" if answer["allowed"] else "refused"
                if answer.get("status", {}).get("code", 422) >= 500:
                    result = "failed"
        except (aiohttp.ClientError, TimeoutError, KeyError, ValueError):
            pass
        self.latencies.append((time.perf_counter() - due) * 1000)
        self.late.append((started - due) * 1000)
        self.answers[result] += 1


async def _schedule(
    send: Callable[[int, float], Coroutine[Any, Any, None]], rate: int, seconds: float
) -> None:
    """Call ``send`` on schedule, whether or not earlier requests have been answered."""
    tasks = set()
    began = time.perf_counter()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(send(number, due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)


def _requests() -> Iterator[dict[str, Any]]:
    """Yield a hundred reviews as a cluster sends them: most valid, some invalid, some trivial."""
    for number in range(100):
        author = f"author-{number % _AUTHORS}"
        changes: dict[str, Any] = {
            "spec.autoscaling": {
                "maxReplicas": 50,
                "schedules": [
                    {"name": "day", "cron": "0 8 * * 1-5", "timeZone": "Europe/Berlin",
                     "minReplicas": 5}
                ],
            },
            "spec.template.metadata": {"labels": {"team": "mail"}},
            "spec.template.spec.containers[0].resources": {
                "requests": {"cpu": "250m", "memory": "256Mi"},
                "limits": {"memory": "512Mi"},
            },
            "spec.template.spec.containers[0].env": [
                {"name": f"SETTING_{index}", "value": "value"} for index in range(20)
            ],
        }  # fmt: skip
        old = _object(number, changes)
        kind = number % 10
        if kind < 4:
            yield _review(author, old)
        elif kind < 6:
            secret = "spec.template.spec.containers[0].env"
            yield _review(author, _object(number, {**changes, secret: [secret_env()]}))
        elif kind < 8:
            yield _review(author, _object(number, {**changes, "spec.suspend": True}), old)
        elif kind == 8:
            yield _review(author, _object(number, {**changes, "metadata.labels": {"a": "b"}}), old)
        else:
            wrong = {"spec.workersPerPod": 0, "spec.template.spec.hostNetwork": True}
            yield _review(author, _object(number, {**changes, **wrong}))


def _object(number: int, changes: dict[str, Any]) -> dict[str, Any]:
    made = pool(changes)
    made["metadata"] |= {
        "name": f"pool-{number}",
        "uid": "9b2c5b1e-6f0b-4a53-9d05-3f1f8a5b7c11",
        "generation": 3,
        "managedFields": [
            {"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:spec": {
                f"f:field{index}": {} for index in range(60)}}}
        ],
    }  # fmt: skip
    return made


def _review(author: str, new: dict[str, Any], old: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "0df28fbd-5f5f-11e8-bc74-36e6bb280816",
            "kind": {"group": "engineroom.dev", "version": "v1alpha1", "kind": "WorkerPool"},
            "resource": {
                "group": "engineroom.dev", "version": "v1alpha1", "resource": "workerpools",
            },
            "name": new["metadata"]["name"],
            "namespace": "shop",
            "operation": "CREATE" if old is None else "UPDATE",
            # The administrators' group, so that the API server's answer is yes.
            "userInfo": {"username": author, "groups": ["system:masters"]},
            "object": new,
            "oldObject": old,
            "dryRun": False,
        },
    }  # fmt: skip


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    raise SystemExit(main())
