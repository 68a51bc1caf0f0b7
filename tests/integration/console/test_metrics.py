"""The API's metrics, and its circuit breaker while Redis is unavailable."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from redis.exceptions import ConnectionError as RedisConnectionError

from engineroom.console.main import create_application
from engineroom.console.metrics import ApiMetrics
from engineroom.console.services import BREAKER_FAILURES, BREAKER_PAUSE
from engineroom.core.clock import FakeClock
from engineroom.core.recovery import Breaker, BreakerState, Recovery
from engineroom.redis.breaker_client import GuardedRedis, RedisHeldBackError
from tests.integration.console.api import Api, code, manifest, pool
from tests.support import RedisServer, free_port, redis_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engineroom.console.settings import ApiSettings
    from engineroom.kube.client.config import ApiConfig

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def said(samples_: Samples, name: str, /, **labels: str) -> float | None:
    return samples_.get((name, tuple(sorted(labels.items()))))


@pytest_asyncio.fixture
async def measured(
    settings: ApiSettings, api_config: ApiConfig
) -> AsyncIterator[tuple[Api, ApiMetrics]]:
    metrics = ApiMetrics()
    app = create_application(settings, api_config, metrics)
    async with app.router.lifespan_context(app):
        api = Api(app)
        await app.state.services.redis.flushall()
        await app.state.services.signing_keys.ensure()
        await app.state.services.hub.pools.synced.wait()
        yield api, metrics
        await api.aclose()


async def test_requests_errors_sign_ins_and_transactions_are_counted(
    measured: tuple[Api, ApiMetrics], namespace: str
) -> None:
    api, metrics = measured
    admin = await api.key("admin", namespace)
    here = f"/namespaces/{namespace}"
    for _ in range(3):
        assert (await api.get(f"{here}/pools", admin)).status_code == 200
    assert (await api.get(f"{here}/pools/none", admin)).status_code == 404
    assert (await api.get("/nowhere/at/all", admin)).status_code == 404
    assert (await api.post("/sessions", body={"nonsense": 1})).status_code == 422
    refused = await api.post("/tokens/refresh", body={"refresh": "x"})
    assert refused.status_code == 401, refused.text
    done = await api.post(f"{here}/manifests", admin, {"manifest": manifest(pool("mail"))})
    assert done.status_code == 200, done.text
    async with metrics.server(0, "127.0.0.1") as server, httpx.AsyncClient() as http:
        answer = await http.get(f"http://127.0.0.1:{server.port}/metrics")
    values = samples(answer.text)
    counted = "engineroom_http_request_seconds_count"
    route = "/api/v1/namespaces/{namespace}/pools"
    assert said(values, counted, method="GET", route=route, status="200") == 3
    assert said(values, counted, method="GET", route=f"{route}/{{pool}}", status="404") == 1
    assert said(values, counted, method="GET", route="", status="404") == 1
    assert said(values, "engineroom_errors_total", code="not_found", category="not_found") == 1
    assert said(values, "engineroom_sign_ins_refused_total", code=code(refused)) == 1
    assert said(
        values, "engineroom_sagas_total", saga="manifests.apply", outcome="committed"
    ) == 1  # fmt: skip
    assert said(values, "engineroom_sse_streams") == 0
    assert said(values, "engineroom_http_requests_under_way") == 0
    for name in ("redis", "kubernetes"):
        assert said(values, "engineroom_breaker_state", name=name, state="closed") == 1
    assert namespace not in answer.text


async def test_the_breaker_opens_for_an_unavailable_redis_and_closes_again(
    settings: ApiSettings, api_config: ApiConfig
) -> None:
    metrics = ApiMetrics()
    with redis_server() as mortal:
        url = SecretStr(mortal.url)
        app = create_application(
            settings.model_copy(update={"redis_url": url}), api_config, metrics
        )
        async with app.router.lifespan_context(app):
            api = Api(app)
            token = await api.key("viewer", "shop")
            assert (await api.get("/whoami", token)).status_code == 200
            mortal.stop()
            for _ in range(BREAKER_FAILURES + 1):
                assert (await api.get("/whoami", token)).status_code == 503
            began = time.perf_counter()
            held = [await api.get("/whoami", token) for _ in range(20)]
            # Some connect in vain where the pause has run out; most are answered at once.
            assert time.perf_counter() - began < 20 * BREAKER_PAUSE
            assert {item.status_code for item in held} == {503}
            values = samples(metrics.exposition().decode())
            open_, half = (
                said(values, "engineroom_breaker_state", name="redis", state=state)
                for state in ("open", "half_open")
            )
            assert (open_ or 0) + (half or 0) == 1
            failures = [
                value
                for (name, labels), value in values.items()
                if name == "engineroom_errors_total" and ("category", "dependency") in labels
            ]
            assert sum(failures) >= BREAKER_FAILURES + 21
            mortal.start()
            deadline = time.monotonic() + 15
            while (await api.get("/readyz")).status_code != 200:
                assert time.monotonic() < deadline
            values = samples(metrics.exposition().decode())
            assert said(values, "engineroom_breaker_state", name="redis", state="closed") == 1
            await api.aclose()


async def test_a_guarded_redis_fails_like_redis_and_then_at_once() -> None:
    clock = FakeClock()
    breaker = Breaker("redis", failures=2, pause=5.0, clock=clock)
    nowhere = GuardedRedis.guarded(
        Recovery("redis", breaker=breaker), f"redis://127.0.0.1:{free_port()}", retry=None
    )
    for _ in range(2):
        with pytest.raises(RedisConnectionError) as refused:
            await nowhere.get("a")
        assert not isinstance(refused.value, RedisHeldBackError)
    for call in (nowhere.get("a"), _piped(nowhere)):
        with pytest.raises(RedisHeldBackError) as held:
            await call
        # Whoever handles either goes on to do so.
        assert isinstance(held.value, RedisConnectionError)
        assert held.value.retry_after == pytest.approx(5.0)
    clock.advance(5.0)
    with pytest.raises(RedisConnectionError):
        await _piped(nowhere)
    assert breaker.state is BreakerState.OPEN
    await nowhere.aclose()


async def test_commands_that_redis_refuses_do_not_open_the_breaker(redis: RedisServer) -> None:
    breaker = Breaker("redis", failures=1, clock=FakeClock())
    client = GuardedRedis.guarded(Recovery("redis", breaker=breaker), redis.url)
    await client.set("a", "text")
    for _ in range(3):
        with pytest.raises(Exception, match="WRONGTYPE"):
            await client.lpush("a", "b")
    async with client.pipeline(transaction=True) as pipeline:
        pipeline.set("a", "1")
        pipeline.get("a")
        assert await pipeline.execute() == [True, b"1"]
    assert breaker.state is BreakerState.CLOSED
    await client.aclose()


async def _piped(client: GuardedRedis) -> Any:
    async with client.pipeline(transaction=True) as pipeline:
        pipeline.get("a")
        return await pipeline.execute()
