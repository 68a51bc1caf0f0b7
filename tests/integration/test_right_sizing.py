"""Right-sizing on a real API server: what is recommended, what pods are resized to, and what not.

The metrics API is a custom resource here, so that a test can say what a pod uses.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from engineroom.core.errors import EngineroomError
from engineroom.kube.client.errors import NotFound
from engineroom.kube.client.resources import (
    CRDS,
    DEPLOYMENTS,
    EVENTS,
    POD_METRICS,
    PODS,
    WORKERPOOLS,
    Resource,
)
from tests.integration.hollow import HollowKubelet
from tests.integration.pools import OperatorProcess, Stage, eventually, pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from engineroom.kube.client.client import Client
    from tests.cluster.api import Cluster
    from tests.support import RedisServer

LIMIT_RANGES = Resource("", "v1", "limitranges", "LimitRange")
METRICS_CRD = {
    "metadata": {
        "name": "pods.metrics.k8s.io",
        "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"},
    },
    "spec": {
        "group": "metrics.k8s.io",
        "scope": "Namespaced",
        "names": {"plural": "pods", "kind": "PodMetrics", "listKind": "PodMetricsList"},
        "versions": [
            {
                "name": "v1beta1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}
#: What a container of these tests asks for; its worker uses 40 to 60 MiB.
TEMPLATE = {
    "requests": {"cpu": "1", "memory": "512Mi"},
    "limits": {"memory": "1Gi"},
}


@pytest.fixture
def stage(client: Client, namespace: str, redis: RedisServer) -> Stage:
    return Stage(client, namespace, redis)


@pytest_asyncio.fixture
async def kubelet(client: Client, namespace: str) -> AsyncIterator[HollowKubelet]:
    async with HollowKubelet(client, namespace) as running:
        yield running


@pytest_asyncio.fixture
async def operator(
    control_plane: Cluster, redis: RedisServer, namespace: str
) -> AsyncIterator[Callable[..., Awaitable[OperatorProcess]]]:
    started: list[OperatorProcess] = []

    async def start(patience: float = 0.0) -> OperatorProcess:
        made = OperatorProcess(
            control_plane.kubeconfig, redis.url, namespace, use_interval=0.4, use_patience=patience
        )
        started.append(made)
        await made.start()
        return made

    yield start
    for process in started:
        await process.stop()


@pytest_asyncio.fixture
async def metrics(client: Client, stage: Stage) -> AsyncIterator[Metrics]:
    await client.apply(CRDS, METRICS_CRD)
    await eventually("the metrics API is there", lambda: served(client))
    async with Metrics(stage) as running:
        yield running


@pytest_asyncio.fixture
async def no_metrics(client: Client) -> None:
    try:
        await client.delete(CRDS, None, "pods.metrics.k8s.io")
    except NotFound:
        return

    async def gone() -> bool:
        return not await served(client)

    await eventually("the metrics API is gone", gone)


async def served(client: Client) -> bool:
    try:
        await client.list(POD_METRICS)
    except EngineroomError:
        return False
    return True


class Metrics:
    """Says again and again what the pods use, as metrics-server does."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._task: asyncio.Task[None] | None = None
        self.cpu, self.memory = "250m", "300Mi"

    async def __aenter__(self) -> Metrics:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        for turn in itertools.count():
            for pod in await self._stage.pods():
                usage = {"cpu": self.cpu, "memory": self.memory}
                body = {
                    "metadata": {
                        "namespace": self._stage.namespace,
                        "name": pod["metadata"]["name"],
                        "labels": pod["metadata"]["labels"],
                    },
                    "timestamp": f"turn {turn}",
                    "window": "10s",
                    "containers": [{"name": "app", "usage": usage}],
                }
                await self._stage.client.apply(POD_METRICS, body)
            await asyncio.sleep(0.3)


def sized(stage: Stage, mode: str, resources: dict[str, Any] = TEMPLATE, **spec: Any) -> Any:
    made = pool(stage.namespace, rightSizing={"mode": mode}, replicas=1, **spec)
    del made["spec"]["autoscaling"]
    made["spec"]["template"]["spec"]["containers"][0]["resources"] = resources
    return made


async def recommended(stage: Stage) -> dict[str, Any]:
    return ((await stage.pool()).get("status") or {}).get("recommendedResources") or {}


async def given(stage: Stage) -> list[dict[str, Any]]:
    return [pod["spec"]["containers"][0]["resources"] for pod in await stage.pods()]


async def reasons_of_events(stage: Stage) -> list[str]:
    items, _ = await stage.client.list(EVENTS, stage.namespace)
    return [item["reason"] for item in items if item["regarding"]["kind"] == "WorkerPool"]


async def fits(stage: Stage) -> bool:
    return (await stage.condition("RightSized"))[:2] == ("True", "ResourcesFit")


async def test_it_recommends_and_changes_nothing_and_then_writes_nothing(
    stage, kubelet, metrics, operator
):
    await operator()
    await stage.client.create(WORKERPOOLS, sized(stage, "Recommend"))
    stage.enqueue(1, 30)
    await eventually("cpu is recommended", lambda: cpu_request_of(stage, "290m"), 40)
    found = await recommended(stage)
    assert found == {
        "requests": {"cpu": "290m", "memory": "368Mi"},
        "limits": {"memory": "384Mi"},
    }
    status, reason, message = await stage.condition("RightSized")
    assert (status, reason) == ("False", "ResourcesDiffer")
    assert "limits.memory 384Mi instead of 1024Mi" in message
    deployment = await stage.client.get(DEPLOYMENTS, stage.namespace, "mail")
    template = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert template == TEMPLATE
    assert await given(stage) == [TEMPLATE]
    await asyncio.sleep(2.5)  # figures of the job that runs are written
    before = (await stage.pool())["metadata"]["resourceVersion"]
    await asyncio.sleep(2)
    assert (await stage.pool())["metadata"]["resourceVersion"] == before


async def cpu_request_of(stage: Stage, value: str) -> bool:
    return (await recommended(stage)).get("requests", {}).get("cpu") == value


async def cpu_asked_for(stage: Stage, value: str) -> bool:
    return [resources["requests"]["cpu"] for resources in await given(stage)] == [value]


async def test_pods_are_resized_in_place_new_ones_too_and_the_template_stays(
    stage, kubelet, metrics, operator
):
    await operator()
    await stage.client.create(WORKERPOOLS, sized(stage, "InPlace"))
    stage.enqueue(2, 30)
    wanted = {"requests": {"cpu": "290m", "memory": "368Mi"}, "limits": {"memory": "384Mi"}}

    async def all_resized(count: int) -> bool:
        return await given(stage) == [wanted] * count

    await eventually("the pod is resized", lambda: all_resized(1), 40)
    await eventually("the condition says so", lambda: fits(stage), 10)
    await stage.client.merge_patch(
        WORKERPOOLS, stage.namespace, "mail", {"spec": {"replicas": 2}}, subresource="scale"
    )
    await eventually("the new pod too", lambda: all_resized(2), 40)
    deployment = await stage.client.get(DEPLOYMENTS, stage.namespace, "mail")
    template = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert template == TEMPLATE
    assert deployment["status"].get("observedGeneration") == deployment["metadata"]["generation"]
    restarts = [p["status"]["containerStatuses"][0]["restartCount"] for p in await stage.pods()]
    assert restarts == [0, 0]
    assert "Resized" in await reasons_of_events(stage)


@pytest.mark.parametrize("answer", ["Deferred", "Infeasible"])
async def test_a_node_that_does_not_resize_is_not_asked_again_and_it_is_told(
    stage, kubelet, metrics, operator, answer
):
    kubelet.resize = answer
    await operator()
    await stage.client.create(WORKERPOOLS, sized(stage, "InPlace"))
    stage.enqueue(1, 60)

    async def told() -> bool:
        return (await stage.condition("RightSized"))[:2] == ("False", f"Resize{answer}")

    await eventually("the condition says so", told, 40)
    assert "the hollow node says so" in (await stage.condition("RightSized"))[2]
    await eventually("cpu is known, too", lambda: cpu_request_of(stage, "290m"), 40)
    await eventually("and asked for", lambda: cpu_asked_for(stage, "290m"), 10)
    before = [pod["metadata"]["generation"] for pod in await stage.pods()]
    await asyncio.sleep(1.5)
    assert [pod["metadata"]["generation"] for pod in await stage.pods()] == before
    assert (await stage.condition("Ready"))[0] == "True"
    # Room is made: the kubelet does by itself what was asked for.
    kubelet.resize = ""
    (pod,) = await stage.pods()
    await stage.client.merge_patch(
        PODS, stage.namespace, pod["metadata"]["name"], {"metadata": {"annotations": {"a": "b"}}}
    )
    await eventually("it fits", lambda: fits(stage), 20)


async def test_a_kill_for_memory_raises_the_limit_once_and_shows_as_an_event(
    stage, kubelet, metrics, operator
):
    process = await operator(patience=3600)
    await stage.client.create(WORKERPOOLS, sized(stage, "InPlace"))
    (name,) = await eventually("it runs", kubelet.pods)
    kubelet.out_of_memory(name)

    async def raised() -> str:
        return (await recommended(stage)).get("limits", {}).get("memory", "")

    assert await eventually("more is recommended", raised, 20) == "1280Mi"

    async def resized() -> bool:
        return [r["limits"]["memory"] for r in await given(stage)] == ["1280Mi"]

    await eventually("and given", resized, 20)
    assert (await given(stage))[0]["requests"] == TEMPLATE["requests"]
    items, _ = await stage.client.list(EVENTS, stage.namespace)
    (note,) = [item["note"] for item in items if item["reason"] == "WorkerOutOfMemory"]
    assert "at its limit of 1024Mi; recommended is 1280Mi now" in note
    assert (await stage.pool())["status"]["lastOutOfMemoryTime"]
    await asyncio.sleep(1.5)  # what was seen once is seen again at each look
    assert await raised() == "1280Mi"
    # A successor sees the same pod with the same past, and knows that it was dealt with.
    process.kill()
    await process.gone()
    await operator(patience=3600)
    await stage.client.merge_patch(
        WORKERPOOLS,
        stage.namespace,
        "mail",
        {"spec": {"rightSizing": {"maxAllowed": {"cpu": "8"}}}},
    )

    async def looked() -> bool:
        found = await stage.pool()
        return found["status"]["observedGeneration"] == found["metadata"]["generation"]

    await eventually("it is at work", looked)
    await asyncio.sleep(2)
    assert await raised() == "1280Mi"


async def test_without_a_metrics_api_use_is_known_from_the_workers(
    stage, kubelet, no_metrics, operator
):
    await operator()
    await stage.client.create(WORKERPOOLS, sized(stage, "Recommend"))
    await eventually("memory is recommended", lambda: recommended(stage), 40)
    await eventually("it is what they use", lambda: other_than_the_template(stage), 20)
    found = await recommended(stage)
    assert 30 <= int(found["limits"]["memory"].removesuffix("Mi")) <= 200
    assert found["requests"]["cpu"] == "1000m"  # the template's: of an idle worker nothing counts
    assert "there is no metrics API" in (await stage.condition("RightSized"))[2]
    stage.enqueue(1, 20)  # it sleeps
    await eventually("a job's cpu is known", lambda: little_cpu(stage), 30)
    assert (await stage.condition("Ready"))[0] == "True"


async def little_cpu(stage: Stage) -> bool:
    asked = (await recommended(stage))["requests"]["cpu"]
    return asked.endswith("m") and int(asked.removesuffix("m")) < 500


async def other_than_the_template(stage: Stage) -> bool:
    return (await recommended(stage))["requests"]["memory"] != TEMPLATE["requests"]["memory"]


async def test_off_says_nothing_and_takes_back_what_was_said(stage, kubelet, metrics, operator):
    await operator()
    await stage.client.create(WORKERPOOLS, sized(stage, "Recommend"))
    await eventually("memory is recommended", lambda: recommended(stage), 40)
    await stage.client.merge_patch(
        WORKERPOOLS, stage.namespace, "mail", {"spec": {"rightSizing": {"mode": "Off"}}}
    )

    async def silent() -> bool:
        return not await recommended(stage) and await stage.condition("RightSized") == ("", "", "")

    await eventually("nothing is said", silent, 20)


async def test_what_the_api_server_refuses_is_told_and_not_tried_again_at_once(
    stage, kubelet, metrics, operator
):
    await stage.client.create(
        LIMIT_RANGES,
        {
            "metadata": {"namespace": stage.namespace, "name": "small"},
            "spec": {"limits": [{"type": "Container", "max": {"memory": "1Gi"}}]},
        },
    )
    metrics.memory = "2Gi"
    # Request and limit alike: there is one thing to ask for, however much more is learned.
    alike = {kind: {"memory": "1Gi"} for kind in ("requests", "limits")}
    await operator(patience=3600)
    await stage.client.create(WORKERPOOLS, sized(stage, "InPlace", alike))

    async def refused() -> bool:
        return (await stage.condition("RightSized"))[:2] == ("False", "ResizeRefused")

    await eventually("the condition says so", refused, 30)
    assert "maximum memory usage per Container is 1Gi" in (await stage.condition("RightSized"))[2]
    assert await given(stage) == [alike]
    assert (await stage.condition("Ready"))[0] == "True"
    await stage.client.delete(LIMIT_RANGES, stage.namespace, "small")
    await asyncio.sleep(1.5)
    assert await given(stage) == [alike]


async def test_a_container_that_would_be_restarted_is_left_alone(stage, kubelet, metrics, operator):
    made = sized(stage, "InPlace")
    made["spec"]["template"]["spec"]["containers"][0]["resizePolicy"] = [
        {"resourceName": "memory", "restartPolicy": "RestartContainer"}
    ]
    # No job runs, so what the processor does says nothing.
    metrics.cpu, metrics.memory = "8", "2Gi"
    await operator(patience=3600)
    await stage.client.create(WORKERPOOLS, made)

    async def left_alone() -> bool:
        return (await stage.condition("RightSized"))[:2] == ("False", "ResizeNeedsRestart")

    await eventually("the condition says so", left_alone, 30)
    assert "memory of container app" in (await stage.condition("RightSized"))[2]
    await eventually("requests are known, too", lambda: other_than_the_template(stage), 20)
    assert (await recommended(stage))["requests"]["cpu"] == "1000m"
    assert await given(stage) == [TEMPLATE]
