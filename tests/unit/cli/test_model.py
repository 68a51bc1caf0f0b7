"""What is read of objects, and that it is what the API's models write."""

from __future__ import annotations

from typing import Any

import pytest

from engineroom.api.v1alpha1.workerpool import (
    Autoscaling,
    QueueStatus,
    WorkerPool,
    WorkerPoolStatus,
)
from engineroom.cli.connections.parsing import (
    parse_component,
    parse_event,
    parse_pod,
    parse_pool,
    parse_quantity,
    parse_usage,
)

from .samples import deployment, event, pod, pool


def test_the_sample_status_has_only_fields_of_the_api() -> None:
    """The tests here would show nothing if the operator wrote other names."""
    status = pool(status={"recommendedResources": {}, "drainingReplicas": 0})["status"]
    WorkerPoolStatus.model_validate(status)


def test_every_number_of_the_api_is_read() -> None:
    queue = QueueStatus(name="default", depth=1, running=2, scheduled=3, failed=4)
    written = WorkerPoolStatus(
        observed_generation=3,
        replicas=5,
        ready_replicas=6,
        desired_replicas=7,
        busy_workers=8,
        draining_replicas=9,
        jobs_per_minute=10,
        decision="why",
        queues=[queue],
    ).model_dump(by_alias=True, mode="json")
    read = parse_pool(pool() | {"status": written})
    assert read.status is not None
    numbers = (
        read.status.replicas,
        read.status.ready,
        read.status.desired,
        read.status.busy_workers,
        read.status.draining,
        read.status.jobs_per_minute,
    )
    assert numbers == (5, 6, 7, 8, 9, 10)
    found = next(queue for queue in read.queues if queue.name == "default")
    assert (found.depth, found.running, found.scheduled, found.failed) == (1, 2, 3, 4)


def test_defaults_are_those_of_the_api() -> None:
    """An object that was never stored has none; the CRD's defaults are the models' own."""
    bare = pool(autoscaling={})
    read, model = parse_pool(bare), WorkerPool.model_validate(bare).spec
    assert read.workers_per_pod == model.workers_per_pod
    assert read.strategy == model.dequeue_strategy
    assert read.max_job_duration == model.drain.max_job_duration
    assert read.suspend == model.suspend
    auto, declared = read.autoscaling, Autoscaling()
    assert auto is not None
    assert (auto.minimum, auto.maximum) == (declared.min_replicas, declared.max_replicas)
    assert auto.target_latency == declared.target_latency
    assert auto.idle_timeout == declared.idle_timeout
    assert auto.stabilization_window == declared.scale_down.stabilization_window
    assert auto.pause == declared.pause
    assert {queue.target_latency for queue in read.queues} == {declared.target_latency}


def test_what_was_not_said_is_none_and_not_zero() -> None:
    unseen = parse_pool(pool())
    assert (unseen.status, unseen.workers, unseen.total("depth")) == (None, None, None)
    partly = parse_pool(pool(status={"queues": [{"name": "urgent"}]}))
    assert [queue.depth for queue in partly.queues] == [0, None]
    assert parse_pod(pod()).busy is None


def test_fields_of_a_newer_operator_do_no_harm() -> None:
    newer: dict[str, Any] = {"brandNew": 1, "conditions": [{"type": "Ready", "color": "red"}]}
    assert parse_pool(pool(status=newer)).status is not None


@pytest.mark.parametrize(
    ("document", "trouble"),
    [
        (pod(), ""),
        (pod(container={"state": {"waiting": {"reason": "ContainerCreating"}}}), ""),
        (pod(container={"state": {"waiting": {"reason": "ErrImagePull"}}}), "ErrImagePull"),
        (pod(container={"lastState": {"terminated": {"reason": "OOMKilled"}}}), "OOMKilled"),
        (
            pod(
                conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]
            ),
            "Unschedulable",
        ),
    ],
)
def test_trouble_of_a_pod(document: dict[str, Any], trouble: str) -> None:
    assert parse_pod(document).trouble == trouble


def test_events_of_both_apis() -> None:
    old = parse_event(event("ScaledUp", " text ", 4))
    assert (old.message, old.count) == ("text", 2)
    new = event("ScaledUp", "text", 4) | {
        "series": {"count": 9, "lastObservedTime": "2026-11-23T11:59:00.000000Z"}
    }
    assert parse_event(new).count == 9
    assert str(parse_event(new).last) == "2026-11-23 11:59:00+00:00"


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("engineroom:0.1.0", "0.1.0"),
        ("example.com:5000/team/engineroom:0.1.0@sha256:abc", "0.1.0"),
        ("example.com:5000/engineroom@sha256:abc", ""),
    ],
)
def test_version_of_a_component_is_its_images_tag(image: str, version: str) -> None:
    document = deployment("operator", lease="engineroom-operator")
    document["spec"]["template"]["spec"]["containers"][0]["image"] = image
    component = parse_component("Deployment", document)
    assert (component.version, component.lease) == (version, "engineroom-operator")


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0.0), ("250m", 0.25), ("12345n", 1.2345e-05), ("64Mi", 64 * 2**20), ("2k", 2000.0)],
)
def test_quantities(text: str, number: float) -> None:
    assert parse_quantity(text) == pytest.approx(number)


def test_what_is_no_quantity_is_refused() -> None:
    with pytest.raises(ValueError, match="'12Zi'"):
        parse_quantity("12Zi")


def test_usage_is_the_sum_of_the_containers() -> None:
    container = {"usage": {"memory": "64Mi", "cpu": "250m"}}
    usage = parse_usage({"containers": [container, container]})
    assert (usage.memory, usage.cpu) == (128 * 2**20, 500)
