"""How fast one replica of the admission server answers at a fixed rate, over TLS.

Open loop: requests leave on schedule whatever became of those before, and each is timed from the
moment it was meant to leave, so that a stall counts for all who waited. The server is a process of
its own with a real API server behind it, which it asks about authors; the requests are a mix of
what a cluster sends.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import json
import os
import ssl
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
from tests.unit.api.specs import pool

if TYPE_CHECKING:
    from collections.abc import Iterator

#: As many connections as an API server keeps to a webhook, and to spare.
_CONNECTIONS = 32
#: Authors; each is asked about once in half a minute.
_AUTHORS = 50
_WARM = 3.0


def main() -> int:
    """Measure and print the closing line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=200, help="requests a second (200)")
    parser.add_argument("--seconds", type=float, default=30, help="for how long (30)")
    options = parser.parse_args()
    with api_server(Shape.CONTROL_PLANE) as kube:
        figures = asyncio.run(_measure(kube.kubeconfig, options.rate, options.seconds))
    goals = [
        Goal("p99_ms", 10),
        Goal("failed", 0),
        Goal("requests_per_second", options.rate * 0.99, at_least=True),
    ]
    return outcome("admission", figures, goals)


async def _measure(kubeconfig: Path, rate: int, seconds: float) -> dict[str, Any]:
    config = kube_config.from_kubeconfig(kubeconfig)
    with tempfile.TemporaryDirectory() as folder:
        async with Client(config) as client:
            await client.create(NAMESPACES, {"metadata": {"name": "shop"}})
            admission = Admission(client, kubeconfig, "shop", Path(folder))
            try:
                await admission.start(check_interval="15")
                secret = await client.get(SECRETS, "shop", SECRET)
                authority = base64.b64decode(secret["data"]["ca.crt"]).decode()
                trust = ssl.create_default_context(cadata=authority)
                port = admission.servers[0].port
                pid = admission.servers[0].process.pid
                return await _load(f"https://127.0.0.1:{port}/validate/workerpools", trust,
                                   pid, rate, seconds)  # fmt: skip
            finally:
                await admission.close()


async def _load(
    url: str, trust: ssl.SSLContext, pid: int, rate: int, seconds: float
) -> dict[str, Any]:
    bodies = [json.dumps(body).encode() for body in _requests()]
    latencies: list[float] = []
    late: list[float] = []
    answers = {"allowed": 0, "refused": 0, "failed": 0}
    connector = aiohttp.TCPConnector(limit=_CONNECTIONS, ssl=trust, keepalive_timeout=60)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def send(number: int, meant: float, *, counted: bool) -> None:
            started = time.perf_counter()
            outcome_ = "failed"
            try:
                body = bodies[number % len(bodies)]
                async with session.post(url, data=body) as response:
                    answer = json.loads(await response.read())["response"]
                    outcome_ = "allowed" if answer["allowed"] else "refused"
                    if answer.get("status", {}).get("code", 422) >= 500:
                        outcome_ = "failed"
            except (aiohttp.ClientError, TimeoutError, KeyError, ValueError):
                pass
            if counted:
                latencies.append((time.perf_counter() - meant) * 1000)
                late.append((started - meant) * 1000)
                answers[outcome_] += 1

        await asyncio.gather(*(send(i, time.perf_counter(), counted=False) for i in range(64)))
        await _schedule(send, rate, _WARM, counted=False)
        gc.collect()
        gc.freeze()
        cpu, begun = _cpu_seconds(pid), time.perf_counter()
        await _schedule(send, rate, seconds, counted=True)
        elapsed = time.perf_counter() - begun
        used = _cpu_seconds(pid) - cpu
    return {
        "p50_ms": round(percentile(latencies, 0.5), 2),
        "p90_ms": round(percentile(latencies, 0.9), 2),
        "p99_ms": round(percentile(latencies, 0.99), 2),
        "max_ms": round(max(latencies), 2),
        "requests": len(latencies),
        "requests_per_second": round(len(latencies) / elapsed, 1),
        **answers,
        "body_bytes_mean": sum(map(len, bodies)) // len(bodies),
        "server_cpu_share": round(used / elapsed, 3),
        "server_resident_mib": round(_resident(pid) / 2**20, 1),
        "sender_late_p99_ms": round(percentile(late, 0.99), 2),
        "machine_load_1min": round(os.getloadavg()[0], 1),
    }


async def _schedule(send: Any, rate: int, seconds: float, *, counted: bool) -> None:
    """Send on the beat; never wait for an answer."""
    tasks = set()
    begun = time.perf_counter()
    for number in range(int(rate * seconds)):
        meant = begun + number / rate
        wait = meant - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(send(number, meant, counted=counted))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)


def _requests() -> Iterator[dict[str, Any]]:
    """What a cluster sends, each of a hundred: mostly right, some wrong, some of no interest."""
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
