"""A stage for whole pools: Redis, the operator as a process, workers as processes, and a ledger."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis
from rq import Queue

from engineroom.kube.client.resources import DEPLOYMENTS, PODS, WORKERPOOLS
from tests.support import ROOT, pool_document

if TYPE_CHECKING:
    from collections.abc import Callable

    from engineroom.kube.client.client import Client
    from tests.support import RedisServer


#: Quick in both directions; what a pool does is the same as with longer times.
QUICK = {
    "maxReplicas": 3,
    "idleTimeout": "1s",
    "scaleDown": {"stabilizationWindow": "1s"},
}


def pool(namespace: str, name: str = "mail", **spec: Any) -> dict[str, Any]:
    """A WorkerPool that reads the queue ``namespace``: tests share a Redis and no queue."""
    return pool_document(
        namespace,
        name,
        container={"name": "app", "image": "none"},
        **{"queues": [{"name": namespace}], "autoscaling": QUICK, **spec},
    )


class OperatorProcess:
    """The operator as its image runs it, to be started and killed at will."""

    def __init__(
        self, kubeconfig: Path, redis_url: str, namespace: str, **settings: object
    ) -> None:
        more = {f"ENGINEROOM_{name.upper()}": str(value) for name, value in settings.items()}
        self._environment = {
            **os.environ,
            **more,
            "PYTHONPATH": str(ROOT / "operator"),
            "KUBECONFIG": str(kubeconfig),
            "ENGINEROOM_REDIS_URL": redis_url,
            "ENGINEROOM_NAMESPACES": namespace,
            "ENGINEROOM_LEADER_ELECTION": "false",
            "ENGINEROOM_METRICS_PORT": "",
            "ENGINEROOM_PROBE_PORT": "",
            "ENGINEROOM_LOG_FORMAT": "json",
            **more,
        }
        handle, name = tempfile.mkstemp(prefix="operator-", suffix=".log")
        os.close(handle)
        self._log = Path(name)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; returns at once."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "engineroom.main",
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """SIGKILL, now."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)

    async def stop(self) -> int:
        """SIGTERM and its exit code."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        return await self._process.wait()

    async def gone(self) -> None:
        """Wait until it has ended."""
        assert self._process is not None
        await self._process.wait()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> list[dict[str, Any]]:
        """What it logged so far."""
        lines = self._log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def __del__(self) -> None:
        self.kill()
        self._log.unlink(missing_ok=True)


@dataclass(frozen=True)
class Ledger:
    """What became of all jobs, by their own books."""

    enqueued: int
    finished: int
    lost: int
    doubled: int


class Stage:
    """One test's namespace, queue and Redis."""

    def __init__(self, client: Client, namespace: str, redis: RedisServer) -> None:
        self.client = client
        self.namespace = namespace
        self.url = redis.url
        self.redis = Redis.from_url(redis.url)
        self.queue = Queue(namespace, connection=self.redis)
        self.enqueued: list[str] = []

    def enqueue(self, count: int, seconds: float = 0.1, **options: Any) -> None:
        """Put ``count`` jobs of ``seconds`` on the queue."""
        for _ in range(count):
            job = self.queue.enqueue("tests.integration.jobs.booked", self.url, seconds, **options)
            self.enqueued.append(job.id)

    def ledger(self) -> Ledger:
        """Count by the jobs' own books."""
        booked: dict[bytes, bytes] = self.redis.hgetall("booked:finished")  # type: ignore[assignment]
        finished = {key.decode(): int(value) for key, value in booked.items()}
        counts = [finished.get(job, 0) for job in self.enqueued]
        return Ledger(
            enqueued=len(counts),
            finished=sum(count >= 1 for count in counts),
            lost=sum(count == 0 for count in counts),
            doubled=sum(count > 1 for count in counts),
        )

    async def pool(self, name: str = "mail") -> dict[str, Any]:
        """The pool as it is now."""
        return await self.client.get(WORKERPOOLS, self.namespace, name)

    async def condition(self, kind: str, name: str = "mail") -> tuple[str, str, str]:
        """(status, reason, message) of a condition; empty while there is none."""
        status = (await self.pool(name)).get("status") or {}
        for entry in status.get("conditions") or ():
            if entry["type"] == kind:
                return entry["status"], entry["reason"], entry["message"]
        return "", "", ""

    async def size(self, name: str = "mail") -> int:
        """What the Deployment asks for; 0 without one, for a pool gets it with its first pod."""
        items, _ = await self.client.list(DEPLOYMENTS, self.namespace)
        return next((d["spec"]["replicas"] for d in items if d["metadata"]["name"] == name), 0)

    async def pods(self) -> list[dict[str, Any]]:
        """All pods."""
        items, _ = await self.client.list(PODS, self.namespace)
        return items

    async def at_rest(self) -> bool:
        """Whether no pod is asked for and none is left."""
        return await self.size() == 0 and not await self.pods()


async def eventually(
    what: str, condition: Callable[[], Any], seconds: float = 30.0, every: float = 0.05
) -> Any:
    """Wait until ``condition`` (plain or coroutine function) is true; its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        await asyncio.sleep(every)


async def record_owned(client: Client, obj: dict[str, Any]) -> None:
    """Record in a pool's status that its namespace owns its queues, as the operator does."""
    metadata = obj["metadata"]
    owned = [
        {"name": queue["name"], "redisId": "one", "since": "2026-01-01T00:00:00Z"}
        for queue in obj["spec"]["queues"]
    ]
    await client.merge_patch(
        WORKERPOOLS,
        metadata["namespace"],
        metadata["name"],
        {"status": {"ownedQueues": owned}},
        subresource="status",
    )
