"""Requests that schemathesis generates from the OpenAPI document get no 5xx.

Responses have a documented status, media type and schema. `make fuzz-api` runs longer.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from redis import Redis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from engineroom.auth.audit.hash_chain import derive_secret
from engineroom.auth.permissions import ADMIN, Grant
from engineroom.auth.tokens.api_keys import ApiKeys
from engineroom.console.route_table import ROUTES
from engineroom.core.clock import SystemClock
from tests.integration.console.process import ApiProcess, api_process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.api import Cluster
    from tests.support import RedisServer

#: Requests for each route; of those that hash a password fewer.
EXAMPLES = int(os.environ.get("ENGINEROOM_TEST_EXAMPLES") or 12)
SLOW_EXAMPLES = max(3, EXAMPLES // 10)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
_SLOW = {"sign_in", "make_tokens"}


@pytest.fixture(scope="module")
def process(
    control_plane: Cluster, redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiProcess]:
    log = tmp_path_factory.mktemp("api") / "api.log"
    with api_process(control_plane.kubeconfig, redis.url, log) as running:
        yield running
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert [line for line in lines if line.get("event") == "a request failed"] == []


@pytest.fixture(scope="module")
def key(process: ApiProcess, redis: RedisServer) -> str:
    import asyncio

    from redis.asyncio import Redis as AsyncRedis

    async def make() -> str:
        client = AsyncRedis.from_url(redis.url)
        keys = ApiKeys(client, SystemClock(), [derive_secret(b"s" * 48, "api-keys")])
        created = await keys.create("program:fuzz", "fuzz", [Grant.everywhere(ADMIN.name)])
        await client.aclose()
        return created.secret

    return asyncio.run(make())


@pytest.fixture(scope="module")
def schema(process: ApiProcess) -> Any:
    return schemathesis.openapi.from_url(f"{process.url}/api/v1/openapi.json")


@pytest.mark.parametrize(
    "name",
    [r.handler.__name__ for r in ROUTES if r.media != "text/event-stream"],
)
def test_no_request_gets_a_5xx_or_an_undocumented_response(
    schema: Any, key: str, redis: RedisServer, name: str
) -> None:
    operation = schema.find_operation_by_id(name)

    @settings(
        max_examples=SLOW_EXAMPLES if name in _SLOW else EXAMPLES,
        deadline=None,
        derandomize=EXAMPLES <= 12,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        answer = case.call(headers={"authorization": f"Bearer {key}"}, timeout=20)
        case.validate_response(answer, checks=CHECKS)
        if answer.status_code >= 400:
            assert answer.headers["content-type"][0] == "application/problem+json"
            assert set(answer.json()) >= {"type", "title", "status", "detail", "code"}

    ask()
    with Redis(port=redis.port) as client:
        # Tries at the password are limited; the next test must not meet that.
        stale = list(client.scan_iter("engineroom:auth:tries:*"))
        if stale:
            client.delete(*stale)
