"""The client against a real API server, and against one that misbehaves."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING, Any

import pytest

from engineroom.core.errors import ConflictError
from engineroom.kube.client.client import Client
from engineroom.kube.client.config import ApiConfig
from engineroom.kube.client.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    ServerFailure,
    Throttled,
    Unauthorized,
    Unreachable,
)
from engineroom.kube.client.resources import CONFIG_MAPS, DEPLOYMENTS, SERVICE_ACCOUNTS, WORKERPOOLS
from tests.integration.faultproxy import Answer, Delay, Drop, Expired, FaultProxy

if TYPE_CHECKING:
    from pathlib import Path


def config_map(namespace: str, name: str = "c", **data: str) -> dict[str, Any]:
    return {"metadata": {"namespace": namespace, "name": name}, "data": data}


def deployment(namespace: str, name: str = "d", replicas: int | None = 1) -> dict[str, Any]:
    labels = {"app": name}
    spec: dict[str, Any] = {
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": labels},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        },
    }
    if replicas is not None:
        spec["replicas"] = replicas
    return {"metadata": {"namespace": namespace, "name": name}, "spec": spec}


async def test_apply_creates_changes_and_writes_nothing_when_nothing_differs(
    client: Client, namespace: str
) -> None:
    made = await client.apply(CONFIG_MAPS, config_map(namespace, a="1"))
    changed = await client.apply(CONFIG_MAPS, config_map(namespace, a="2"))
    again = await client.apply(CONFIG_MAPS, config_map(namespace, a="2"))
    assert made["data"] == {"a": "1"}
    assert changed["data"] == {"a": "2"}
    assert again["metadata"]["resourceVersion"] == changed["metadata"]["resourceVersion"]
    assert (await client.get(CONFIG_MAPS, namespace, "c"))["data"] == {"a": "2"}


async def test_apply_leaves_the_fields_of_others(client: Client, namespace: str) -> None:
    await client.apply(CONFIG_MAPS, config_map(namespace, ours="1"))
    await client.merge_patch(
        CONFIG_MAPS, namespace, "c", {"data": {"theirs": "x"}}, field_manager="somebody"
    )
    after = await client.apply(CONFIG_MAPS, config_map(namespace, ours="2"))
    assert after["data"] == {"ours": "2", "theirs": "x"}
    with pytest.raises(Conflict) as conflict:
        await client.apply(CONFIG_MAPS, config_map(namespace, theirs="y"), force=False)
    assert conflict.value.causes


async def test_a_resource_version_is_a_precondition_of_apply(
    client: Client, namespace: str
) -> None:
    made = await client.apply(CONFIG_MAPS, config_map(namespace, a="1"))
    await client.apply(CONFIG_MAPS, config_map(namespace, a="2"))
    stale = config_map(namespace, a="3")
    stale["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"]
    with pytest.raises(ConflictError):
        await client.apply(CONFIG_MAPS, stale)


async def test_a_uid_keeps_apply_from_making_what_was_deleted(
    client: Client, namespace: str
) -> None:
    made = await client.apply(CONFIG_MAPS, config_map(namespace, a="1"))
    await client.delete(CONFIG_MAPS, namespace, "c")
    ghost = config_map(namespace, a="2")
    ghost["metadata"]["uid"] = made["metadata"]["uid"]
    with pytest.raises(Conflict):
        await client.apply(CONFIG_MAPS, ghost)
    with pytest.raises(NotFound):
        await client.get(CONFIG_MAPS, namespace, "c")


async def test_create_and_replace(client: Client, namespace: str) -> None:
    made = await client.create(CONFIG_MAPS, config_map(namespace, a="1"))
    with pytest.raises(AlreadyExists):
        await client.create(CONFIG_MAPS, config_map(namespace, a="1"))
    made["data"] = {"b": "2"}
    replaced = await client.replace(CONFIG_MAPS, made)
    assert replaced["data"] == {"b": "2"}
    with pytest.raises(Conflict):
        await client.replace(CONFIG_MAPS, made)


async def test_scale_through_the_subresource(client: Client, namespace: str) -> None:
    await client.apply(DEPLOYMENTS, deployment(namespace))
    scale = await client.merge_patch(
        DEPLOYMENTS, namespace, "d", {"spec": {"replicas": 7}}, subresource="scale"
    )
    assert scale["spec"]["replicas"] == 7
    assert (await client.get(DEPLOYMENTS, namespace, "d", subresource="scale"))["kind"] == "Scale"
    assert (await client.get(DEPLOYMENTS, namespace, "d"))["spec"]["replicas"] == 7


async def test_status_is_applied_without_touching_the_spec(client: Client, namespace: str) -> None:
    pool = {
        "metadata": {"namespace": namespace, "name": "mail"},
        "spec": {
            "queues": [{"name": "mail"}],
            "template": {"spec": {"containers": [{"name": "worker", "image": "i"}]}},
        },
    }
    made = await client.apply(WORKERPOOLS, pool)
    status = {
        "metadata": {"namespace": namespace, "name": "mail"},
        "status": {"replicas": 3, "selector": "a=b"},
    }
    written = await client.apply_status(WORKERPOOLS, status)
    assert written["status"]["replicas"] == 3
    assert written["metadata"]["generation"] == made["metadata"]["generation"]
    again = await client.apply_status(WORKERPOOLS, status)
    assert again["metadata"]["resourceVersion"] == written["metadata"]["resourceVersion"]


async def test_delete_with_preconditions(client: Client, namespace: str) -> None:
    made = await client.apply(CONFIG_MAPS, config_map(namespace, a="1"))
    with pytest.raises(Conflict):
        await client.delete(CONFIG_MAPS, namespace, "c", uid="00000000-0000-0000-0000-000000000000")
    with pytest.raises(Conflict):
        await client.delete(CONFIG_MAPS, namespace, "c", resource_version="1")
    await client.delete(CONFIG_MAPS, namespace, "c", uid=made["metadata"]["uid"])
    with pytest.raises(NotFound):
        await client.delete(CONFIG_MAPS, namespace, "c")


async def test_lists_come_in_chunks_with_selector(client: Client, namespace: str) -> None:
    for number in range(7):
        obj = config_map(namespace, f"c{number}")
        obj["metadata"]["labels"] = {"even": str(number % 2 == 0).lower()}
        await client.create(CONFIG_MAPS, obj)
    pages = [
        (len(items), version)
        async for items, version in client.pages(CONFIG_MAPS, namespace, "even=true", limit=3)
    ]
    assert [size for size, _ in pages] == [3, 1]
    assert len({version for _, version in pages}) == 1
    items, version = await client.list(CONFIG_MAPS, namespace, "even", limit=2)
    assert len(items) == 7
    assert version.isdigit()
    assert (await client.list(CONFIG_MAPS, namespace, "even=never"))[0] == []


async def test_a_watch_tells_what_happens_after_a_version(client: Client, namespace: str) -> None:
    _, version = await client.list(CONFIG_MAPS, namespace)
    await client.create(CONFIG_MAPS, config_map(namespace, "w", a="1"))
    await client.apply(CONFIG_MAPS, config_map(namespace, "w", a="2"))
    await client.delete(CONFIG_MAPS, namespace, "w")
    seen = []
    async for kind, obj in client.watch(CONFIG_MAPS, namespace, version, seconds=20):
        if obj["metadata"]["name"] == "w":
            seen.append(kind)
        if kind == "DELETED":
            break
    assert seen == ["ADDED", "MODIFIED", "DELETED"]


async def test_a_watch_ends_with_its_time(client: Client, namespace: str) -> None:
    _, version = await client.list(CONFIG_MAPS, namespace)
    async with asyncio.timeout(10):
        async for _ in client.watch(CONFIG_MAPS, namespace, version, seconds=1):
            pass


async def test_a_large_object_arrives_whole(client: Client, namespace: str) -> None:
    _, version = await client.list(CONFIG_MAPS, namespace)
    await client.create(CONFIG_MAPS, config_map(namespace, "large", a="x" * 900_000))
    async for kind, obj in client.watch(CONFIG_MAPS, namespace, version, seconds=20):
        if kind != "BOOKMARK" and obj["metadata"]["name"] == "large":
            assert len(obj["data"]["a"]) == 900_000
            break


async def test_validation_names_the_fields(client: Client, namespace: str) -> None:
    pool = {"metadata": {"namespace": namespace, "name": "bad"}, "spec": {"queues": []}}
    with pytest.raises(Invalid) as invalid:
        await client.apply(WORKERPOOLS, pool)
    assert any(cause.field == "spec.queues" for cause in invalid.value.causes)


async def test_a_namespace_that_is_not_there(client: Client) -> None:
    with pytest.raises(NotFound):
        await client.apply(CONFIG_MAPS, config_map("never-was"))
    assert (await client.list(CONFIG_MAPS, "never-was"))[0] == []


async def test_a_service_account_without_rights_is_forbidden(
    client: Client, api_config: ApiConfig, namespace: str, tmp_path: Path
) -> None:
    """Also the way of a pod: a token file that is read anew when it is renewed."""
    await client.apply(SERVICE_ACCOUNTS, {"metadata": {"namespace": namespace, "name": "nobody"}})
    answer = await client.create(
        SERVICE_ACCOUNTS,
        {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "metadata": {"name": "nobody"},
            "spec": {"expirationSeconds": 600},
        },
        namespace=namespace,
        subresource="token",
    )
    file = tmp_path / "token"
    file.write_text("not.a.token")
    config = ApiConfig(
        server=api_config.server,
        ca_data=api_config.read_ca(),
        token_file=file,
        namespace=namespace,
    )
    async with Client(config) as nobody:
        with pytest.raises(Unauthorized):
            await nobody.get(CONFIG_MAPS, namespace, "c")
        file.write_text(answer["status"]["token"])
        with pytest.raises(Forbidden):
            await nobody.get(CONFIG_MAPS, namespace, "c")


async def test_a_server_with_another_ca_is_not_talked_to(api_config: ApiConfig) -> None:
    async with Client(ApiConfig(server=api_config.server, token="t")) as client:
        with pytest.raises(Unreachable, match=r"(?i)certificate"):
            await client.request("GET", "/version")


async def test_nobody_there_is_unreachable_quickly() -> None:
    async with Client(ApiConfig(server="http://127.0.0.1:1"), timeout=2) as client:
        with pytest.raises(Unreachable, match="GET /version"):
            await client.request("GET", "/version")


# -- an API server that misbehaves -----------------------------------------------------------------


async def test_throttled_requests_are_tried_again_when_the_server_says_so(
    proxy: FaultProxy, namespace: str
) -> None:
    left = [429, 503]

    def busy(_request: Any) -> Answer | None:
        return Answer(left.pop(0), retry_after=0) if left else None

    proxy.before(busy)
    async with Client(proxy.config) as client:
        await client.apply(CONFIG_MAPS, config_map(namespace, a="1"))
    assert len(proxy.requests) == 3


async def test_a_storm_of_429_gives_up_after_some_attempts(
    proxy: FaultProxy, namespace: str
) -> None:
    proxy.before(lambda _: Answer(429, "TooManyRequests", retry_after=0))
    async with Client(proxy.config, retries=3) as client:
        with pytest.raises(Throttled) as throttled:
            await client.get(CONFIG_MAPS, namespace, "c")
    assert throttled.value.retry_after == 0
    assert len(proxy.requests) == 4


async def test_a_wait_that_is_too_long_is_left_to_the_caller(
    proxy: FaultProxy, namespace: str
) -> None:
    proxy.before(lambda _: Answer(429, retry_after=60))
    async with Client(proxy.config) as client:
        began = time.monotonic()
        with pytest.raises(Throttled) as throttled:
            await client.get(CONFIG_MAPS, namespace, "c")
    assert throttled.value.retry_after == 60
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_failures_of_the_server_are_not_tried_again(
    proxy: FaultProxy, namespace: str, status: int
) -> None:
    proxy.before(lambda _: Answer(status))
    async with Client(proxy.config) as client:
        with pytest.raises(ServerFailure):
            await client.apply(CONFIG_MAPS, config_map(namespace))
    assert len(proxy.requests) == 1


async def test_a_lost_answer_to_a_write_is_unreachable_and_not_written_twice(
    proxy: FaultProxy, namespace: str, client: Client
) -> None:
    proxy.after(lambda request: Drop() if request.write else None)
    async with Client(proxy.config) as through:
        with pytest.raises(Unreachable):
            await through.create(CONFIG_MAPS, config_map(namespace, a="1"))
    assert len(proxy.writes()) == 1
    assert (await client.get(CONFIG_MAPS, namespace, "c"))["data"] == {"a": "1"}


async def test_a_server_that_does_not_answer_is_given_up_on_in_time(
    proxy: FaultProxy, namespace: str
) -> None:
    proxy.before(lambda _: Delay(60))
    async with Client(proxy.config, timeout=0.3) as client:
        began = time.monotonic()
        with pytest.raises(Unreachable):
            await client.get(CONFIG_MAPS, namespace, "c")
        assert time.monotonic() - began < 3


async def test_a_watch_that_breaks_says_so(proxy: FaultProxy, namespace: str) -> None:
    async with Client(proxy.config) as client:
        _, version = await client.list(CONFIG_MAPS, namespace)

        async def watch() -> None:
            async for _ in client.watch(CONFIG_MAPS, namespace, version):
                pass

        task = asyncio.create_task(watch())
        async with asyncio.timeout(5):
            while not await proxy.cut_watches():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        with pytest.raises(Unreachable):
            await task


@pytest.mark.parametrize("way", [Answer(410, "Expired"), Expired()])
async def test_a_watch_from_a_version_that_is_gone_says_so(
    proxy: FaultProxy, namespace: str, way: Answer | Expired
) -> None:
    proxy.before(lambda request: way if request.watch else None)
    async with Client(proxy.config) as client:
        with pytest.raises(Gone):
            async for _ in client.watch(CONFIG_MAPS, namespace, "1"):
                pass


async def test_a_silent_watch_ends(proxy: FaultProxy, namespace: str) -> None:
    """Half-open: the connection is there, but nothing comes through it any more."""
    async with Client(proxy.config, watch_silence=0.5) as client:
        _, version = await client.list(CONFIG_MAPS, namespace)
        async with asyncio.timeout(10):
            async for _ in client.watch(CONFIG_MAPS, namespace, version, seconds=300):
                pass


async def test_requests_are_observed(api_config: ApiConfig, namespace: str) -> None:
    seen: list[tuple[str, int]] = []
    async with Client(api_config, observer=lambda v, s, _: seen.append((v, s))) as client:
        await client.apply(CONFIG_MAPS, config_map(namespace))
        with pytest.raises(NotFound):
            await client.get(CONFIG_MAPS, namespace, "none")
    assert seen == [("PATCH", 201), ("GET", 404)]


async def test_many_requests_at_once_go_over_few_connections(
    api_config: ApiConfig, namespace: str
) -> None:
    async with Client(api_config, connections=8) as client:
        began = time.process_time()
        times: list[float] = []

        async def one(number: int) -> None:
            asked = time.perf_counter()
            await client.apply(CONFIG_MAPS, config_map(namespace, f"c{number % 20}", a=str(number)))
            times.append(time.perf_counter() - asked)

        await asyncio.gather(*(one(number) for number in range(200)))
        spent = (time.process_time() - began) / 200
    # About 0.2 ms on two quiet cores; the bound leaves room for a busy machine.
    assert spent < 0.005
    assert statistics.median(times) < 10
