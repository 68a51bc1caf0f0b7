"""A request's ids and spans, from HTTP through the queue into a real worker.

The collector is real: OTLP over HTTP, decoded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from engineroom.core import tracing
from engineroom.core.context import META_KEY
from engineroom.core.errors import LimitError
from engineroom.kube.client.resources import WORKERPOOLS
from engineroom.kube.runtime.queue import WorkQueue
from tests.collector import Collector, collector
from tests.integration.console.api import Api, manifest, pool
from tests.integration.pools import eventually, record_owned
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engineroom.kube.client.client import Client
    from tests.support import RedisServer

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SERVER, PRODUCER, CONSUMER = 2, 4, 5


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collector() as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        assert tracing.start("engineroom-test", "1")
        yield server
        tracing.stop()


@contextlib.contextmanager
def worker(redis: RedisServer, pool_key: str, log: Path, **environment: str) -> Iterator[None]:
    """Start a worker of the runtime as in its container."""
    settings = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}",
        "ENGINEROOM_REDIS_URL": redis.url,
        "ENGINEROOM_POOL": pool_key,
        "ENGINEROOM_POD_NAME": "mail-1",
        "ENGINEROOM_QUEUES": '[{"name": "mail"}]',
        "ENGINEROOM_METRICS_PORT": "0",
        **environment,
    }
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "engineroom_worker"], env=settings, stdout=stream, stderr=stream
        )
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(20) == 0, log.read_text()


async def stage(api: Api, client: Client, namespace: str) -> str:
    body = pool("mail")
    body["metadata"]["namespace"] = namespace
    body["spec"]["queues"] = [{"name": "mail"}]
    await client.create(WORKERPOOLS, body)
    await record_owned(client, body)
    await eventually("listed", lambda: api.services.hub.queues(namespace) == {"mail"}, 5)
    return await api.key("operator", namespace)


async def enqueue(api: Api, token: str, namespace: str, function: str) -> str:
    wanted = {
        "function": f"tests.integration.console.told.{function}",
        "args": ["password=hunter2"],
        "queue": "mail",
    }
    answer = await api.post(
        f"/namespaces/{namespace}/jobs", token, wanted, x_request_id="order-17",
        traceparent=f"00-{TRACE}-{PARENT}-01",
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def until(api: Api, job: str, status: str) -> None:
    async def there() -> bool:
        return await api.services.redis.hget(f"rq:job:{job}", "status") == status.encode()

    await eventually(f"the job {status}", there, 20)


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


async def test_a_requests_ids_are_on_the_log_lines_of_its_job(
    api: Api, client: Client, namespace: str, redis: RedisServer, tmp_path: Path
) -> None:
    token = await stage(api, client, namespace)
    job = await enqueue(api, token, namespace, "say")
    with worker(redis, f"{namespace}/mail", tmp_path / "log"):
        await until(api, job, "finished")
    records = lines(tmp_path / "log")
    [record] = [line for line in records if line["logger"] == "shop"]
    assert record["request_id"] == "order-17"
    assert record["trace_id"] == TRACE
    assert (record["job_id"], record["object"]) == (job, f"{namespace}/mail")
    assert (record["event"], record["level"]) == ("said password=[redacted]", "warning")
    assert "hunter2" not in (tmp_path / "log").read_text()
    # The worker's own lines of the job have them too, and those of before and after have not.
    own = [line for line in records if line["logger"] == "rq.worker" and "request_id" in line]
    assert own
    assert {line["job_id"] for line in own} == {job}
    assert "request_id" not in records[0]
    assert "request_id" not in records[-1]


async def test_one_trace_leads_from_the_request_to_the_job(
    api: Api, client: Client, namespace: str, redis: RedisServer, tmp_path: Path,
    collected: Collector,
) -> None:  # fmt: skip
    token = await stage(api, client, namespace)
    job = await enqueue(api, token, namespace, "fail")
    meta = api.services.tasks.rules.serializer.loads(
        await api.services.redis.hget(f"rq:job:{job}", "meta")
    )
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": collected.url}
    with worker(redis, f"{namespace}/mail", tmp_path / "log", **endpoint):
        await until(api, job, "failed")
    route = "POST /api/v1/namespaces/{namespace}/jobs"
    request = collected.wait(lambda s: s.name == route, "span of the request")
    assert (request.trace, request.parent, request.kind) == (TRACE, PARENT, SERVER)
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["http.route"] == "/api/v1/namespaces/{namespace}/jobs"
    enqueued = collected.wait(lambda s: s.name == "enqueue", "span of the enqueue")
    assert (enqueued.trace, enqueued.parent, enqueued.kind) == (TRACE, request.id, PRODUCER)
    assert meta[META_KEY]["traceparent"] == f"00-{TRACE}-{enqueued.id}-01"
    ran = collected.wait(lambda s: s.name.startswith("job "), "span of the job")
    assert (ran.trace, ran.parent, ran.kind) == (TRACE, enqueued.id, CONSUMER)
    assert ran.service == "engineroom-worker"
    assert (ran.attributes["messaging.message.id"], ran.failed) == (job, True)
    [record] = [line for line in lines(tmp_path / "log") if line["logger"] == "shop"]
    assert (record["trace_id"], record["span_id"]) == (TRACE, ran.id)
    assert not [s for s in collected.spans if "hunter2" in json.dumps(s.attributes)]


async def test_a_manifests_steps_and_a_failed_request_are_spans(
    api: Api, client: Client, namespace: str, collected: Collector
) -> None:
    del client
    admin = await api.key("admin", namespace)
    done = await api.post(
        f"/namespaces/{namespace}/manifests", admin, {"manifest": manifest(pool("bills"))}
    )
    assert done.status_code == 200, done.text
    step = collected.wait(lambda s: s.name == "saga step", "span of the step")
    assert step.attributes["saga"] == done.json()["transaction"]
    request = collected.wait(lambda s: s.id == step.parent, "span of the request")
    assert request.name.startswith("POST ")


async def test_a_reconcile_is_a_span_and_its_error_a_code(collected: Collector) -> None:
    queue = WorkQueue("pools", timeout=5.0)
    names: list[str] = []

    async def reconcile(key: str) -> None:
        names.append(key)
        raise LimitError("password=hunter2", retry_after=60.0)

    running = asyncio.create_task(queue.run(reconcile, workers=1))
    queue.add("shop/mail", urgent=True)
    await eventually("a run", lambda: bool(names), 5)
    await queue.shutdown(1.0)
    await running
    span = collected.wait(lambda s: s.name == "reconcile", "span of the reconcile")
    assert (span.failed, span.attributes["error.type"]) == (True, "limit_reached")
    assert (span.attributes["queue"], span.attributes["key"]) == ("pools", "shop/mail")
    assert "hunter2" not in json.dumps(span.attributes)
