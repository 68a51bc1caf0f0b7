"""An Idempotency-Key holds if the replica dies after its work and before it stores the response."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from engineroom.tasks import Every, Schedule, Task
from tests.integration.console.api import Api, code
from tests.integration.console.process import api_process
from tests.integration.console.test_work import ADD, stage

if TYPE_CHECKING:
    from pathlib import Path

    from engineroom.kube.client.client import Client
    from tests.cluster.api import Cluster
    from tests.support import RedisServer

PLAIN = {"function": ADD, "args": [1, 2], "queue": "mail"}
CASES = {
    "job": ("jobs", PLAIN),
    "unique": ("jobs", {**PLAIN, "uniqueKey": "one"}),
    "named": ("jobs", {**PLAIN, "jobId": "mine"}),
    "schedule": ("schedules/tick/run", None),
}


async def lost(api: Api) -> None:
    """Expire the running request, as after two minutes."""
    async for key in api.services.redis.scan_iter("engineroom:console:once:*:*"):
        await api.services.redis.delete(key)


async def jobs(api: Api) -> list[str]:
    queued: list[Any] = await api.services.redis.lrange("rq:queue:mail", 0, -1)
    return [item.decode() for item in queued]


@pytest.mark.parametrize("case", CASES)
async def test_a_kill_between_the_job_and_its_response_repeats_nothing(
    api: Api, client: Client, namespace: str, control_plane: Cluster, redis: RedisServer,
    tmp_path: Path, case: str,
) -> None:  # fmt: skip
    operator = await stage(api, client, namespace, "mail")
    await api.services.tasks.put_schedule(
        Schedule("tick", Every(3600), Task(ADD, (1, 2), queue="mail"))
    )
    path, body = CASES[case]
    where = f"/namespaces/{namespace}/{path}"
    headers = {"authorization": f"Bearer {operator}", "idempotency-key": "k"}
    content = b"" if body is None else json.dumps(body).encode()
    if content:
        headers["content-type"] = "application/json"
    module = "tests.integration.console.dying_api"
    with api_process(
        control_plane.kubeconfig, redis.url, tmp_path / "api.log", module=module
    ) as process:
        async with httpx.AsyncClient(base_url=process.url) as http:
            with pytest.raises(httpx.RemoteProtocolError):
                await http.post(f"/api/v1{where}", content=content, headers=headers)
    [first] = await jobs(api)
    again = await api.post(where, operator, body, idempotency_key="k")
    assert (again.status_code, code(again)) == (409, "idempotency_key_busy")
    await lost(api)
    again = await api.post(where, operator, body, idempotency_key="k")
    assert await jobs(api) == [first]
    if case == "named":
        # Its creator is unknown; it is not repeated.
        assert (again.status_code, code(again)) == (409, "job_exists")
        return
    assert again.status_code in (200, 201), again.text
    assert again.json()["id"] == first
    assert again.json().get("created", True)
    if case == "unique":
        return
    # It has run meanwhile, and RQ has forgotten it.
    await api.services.redis.delete("rq:queue:mail", f"rq:job:{first}")
    await lost(api)
    again = await api.post(where, operator, body, idempotency_key="k")
    assert again.json()["id"] == first
    assert await jobs(api) == []
    # Another key means another job, and so does another body or another caller.
    await api.post(where, operator, body, idempotency_key="l")
    assert len(await jobs(api)) == 1
    await lost(api)
    other = await api.key("operator", namespace, owner="program:other")
    await api.post(where, other, body, idempotency_key="k")
    assert len(await jobs(api)) == 2
    if body is not None:
        await api.post(where, operator, {**body, "args": [3]}, idempotency_key="k")
        assert len(await jobs(api)) == 3
