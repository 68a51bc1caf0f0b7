"""The pool controller over an API server and a Redis in memory: state in, event, state out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from engineroom.api import LABEL_POOL
from engineroom.kube.client.errors import Conflict, Forbidden, Unreachable
from engineroom.kube.client.resources import (
    DEPLOYMENTS,
    NAMESPACES,
    PDBS,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    WORKERPOOLS,
)
from engineroom.queue.observe import WorkerFacts
from engineroom.workers.controller import WorkerPoolController
from engineroom.workers.objects import RuntimeImage
from engineroom.workers.projections import DELETION_COST
from engineroom.workers.wake_ups import LEAST_BETWEEN_LOOKS
from tests.memory_api import Scenario, refuse
from tests.support import pool_document, shared_namespace
from tests.unit.workers.memory_redis import MemoryConnections, MemorySchedules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engineroom.core.clock import FakeClock
    from engineroom.kube.client.resources import Resource

URL = "redis://redis:6379/0"


def pool(**spec: Any) -> dict[str, Any]:
    return pool_document(**{"rightSizing": {"mode": "Off"}, **spec})


class Stage:
    """A scenario with the pool controller, and what Deployment controller and kubelet would do."""

    def __init__(self) -> None:
        self.controller = WorkerPoolController(
            RuntimeImage("runtime:1"),
            URL,
            MemorySchedules(),
            connections=self._open,
        )
        self.scenario = Scenario(self.controller)
        self.api = self.scenario.api
        self.clock: FakeClock = self.scenario.clock

    def _open(self, *arguments: Any, **options: Any) -> Any:
        self.connections = MemoryConnections(*arguments, **options)
        return self.connections

    @property
    def redis(self) -> Any:
        return self.connections.connection.redis

    @property
    def seen(self) -> Any:
        return self.connections.connection.observer

    async def apply(self, **spec: Any) -> None:
        self.api.put(WORKERPOOLS, pool(**spec))
        await self.scenario.settle()

    async def enqueue(self, jobs: int) -> None:
        self.seen.queue = {"waiting": jobs}
        self.clock.advance(LEAST_BETWEEN_LOOKS)
        self.connections.push("shop/mail")
        await self.scenario.settle()

    @property
    def deployment(self) -> dict[str, Any]:
        found = self.api.find(DEPLOYMENTS, "shop", "mail")
        assert found is not None
        return found

    @property
    def size(self) -> int | None:
        found = self.api.find(DEPLOYMENTS, "shop", "mail")
        return None if found is None else int(found["spec"]["replicas"])

    async def run_pods(self, *names: str, ready: bool = True) -> None:
        """Have the pods exist, with a registered worker each, and the Deployment report them."""
        for name in names:
            self.api.put(
                PODS,
                {
                    "metadata": {
                        "namespace": "shop",
                        "name": name,
                        "labels": {LABEL_POOL: "mail"},
                    },
                    "spec": {"nodeName": "node"},
                    "status": {
                        "phase": "Running",
                        "conditions": [{"type": "Ready", "status": str(ready)}],
                    },
                },
            )
        self.seen.workers = tuple(self.worker(name) for name in names)
        await self.report(ready=len(names) if ready else 0, replicas=len(names))

    def worker(self, pod: str, **fields: Any) -> WorkerFacts:
        found = self.api.find(PODS, "shop", pod)
        now = self.clock.now().timestamp()
        uid = found["metadata"]["uid"] if found else ""
        defaults: dict[str, Any] = {"heartbeat": now + 3600, "birth": now, "pod_uid": uid}
        return WorkerFacts(name=f"{pod}.0", pod=pod, **{**defaults, **fields})

    async def report(self, *, ready: int, replicas: int, **status: Any) -> None:
        generation = self.deployment["metadata"]["generation"]
        self.api.edit(
            DEPLOYMENTS,
            "shop",
            "mail",
            status={
                "observedGeneration": generation,
                "replicas": replicas,
                "updatedReplicas": replicas,
                "readyReplicas": ready,
                **status,
            },
        )
        await self.scenario.settle()

    def condition(self, kind: str) -> tuple[str, str, str]:
        return self.scenario.condition("shop", "mail", kind)

    def events(self) -> list[str]:
        return [reason for _, _, reason, _ in self.scenario.recorder.events]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    async with stage.scenario:
        stage.api.put(NAMESPACES, shared_namespace("shop"))
        yield stage


async def test_a_pool_without_work_has_no_objects_and_is_ready(stage: Stage) -> None:
    await stage.apply(autoscaling={})
    assert stage.size is None
    assert stage.condition("Ready")[0] == "True"
    assert stage.condition("Reconciling")[0] == "False"
    assert [write.plural for write in stage.api.writes] == ["workerpools/status"]


async def test_the_first_job_makes_the_deployment_and_all_that_its_pods_need(stage: Stage) -> None:
    await stage.apply(autoscaling={})
    await stage.enqueue(3)
    assert stage.size == 3
    for kind, name in ((SERVICE_ACCOUNTS, "mail-worker"), (PDBS, "mail")):
        assert stage.api.find(kind, "shop", name) is not None
    assert any(write.plural == SECRETS.plural for write in stage.api.writes)
    assert stage.events() == ["ScaledUp"]
    assert stage.scenario.status("shop", "mail")["desiredReplicas"] == 3


async def test_nothing_is_written_at_the_fixed_point(stage: Stage) -> None:
    await stage.apply(replicas=1)
    await stage.run_pods("a")
    await stage.scenario.advance(3)
    writes = len(stage.api.writes)
    await stage.scenario.advance(30, step=0.5)
    assert stage.api.writes[writes:] == []
    assert stage.seen.looks > 10


async def test_growing_is_one_write_of_the_scale(stage: Stage) -> None:
    await stage.apply(autoscaling={"minReplicas": 1})
    await stage.run_pods("a")
    await stage.scenario.advance(1)
    # The first growth says in an annotation that what pods need exists.
    await stage.enqueue(2)
    await stage.scenario.advance(1)
    writes = len(stage.api.writes)
    await stage.enqueue(5)
    assert next(write.plural for write in stage.api.writes[writes:]) == "deployments/scale"
    assert stage.size == 5


async def test_a_pod_leaves_in_steps_and_only_then_the_size_falls(stage: Stage) -> None:
    await stage.apply(replicas=2)
    await stage.run_pods("a", "b")
    stage.seen.workers = (stage.worker("a", state="busy", job="j1"), stage.worker("b"))
    await stage.apply(replicas=1)
    assert stage.redis.drain_request("b.0").startswith("drain:")
    assert stage.redis.drain_request("a.0") == ""
    assert stage.size == 2
    assert stage.condition("Draining")[0] == "True"

    stage.seen.workers = (stage.worker("a"), stage.worker("b", drain="drained"))
    await stage.scenario.advance(0.5)
    assert stage.redis.drain_request("b.0").startswith("retire:")
    assert stage.size == 2

    stage.seen.workers = (stage.worker("a"), stage.worker("b", drain="retired"))
    await stage.scenario.advance(0.5)
    marked = stage.api.find(PODS, "shop", "b")
    assert marked is not None
    assert marked["metadata"]["annotations"][DELETION_COST] == "-1000"
    assert stage.size == 1
    assert stage.events()[-1] == "ScaledDown"


async def test_a_draining_pod_is_called_back_when_demand_returns(stage: Stage) -> None:
    await stage.apply(replicas=2)
    await stage.run_pods("a", "b")
    await stage.apply(replicas=1)
    drained = next(name for name in ("a.0", "b.0") if stage.redis.drain_request(name))
    stage.seen.workers = tuple(
        stage.worker(pod, drain="drained" if drained == f"{pod}.0" else "") for pod in "ab"
    )
    await stage.apply(replicas=2)
    assert stage.redis.drain_request(drained) == ""
    assert stage.size == 2


async def test_the_size_is_kept_while_redis_does_not_answer(stage: Stage) -> None:
    await stage.apply(autoscaling={"minReplicas": 1})
    await stage.run_pods("a")
    stage.seen.outage = "no answer"
    await stage.scenario.advance(3)
    assert stage.size == 1
    assert stage.condition("RedisReachable")[1] == "RedisUnreachable"
    assert stage.condition("Ready")[1] == "RedisUnreachable"
    assert stage.condition("Stalled")[0] == "False"
    stage.seen.outage = ""
    await stage.scenario.advance(3)
    assert stage.condition("Ready")[0] == "True"


async def test_a_missing_secret_is_named_and_stalls_the_pool_after_ten_minutes(
    stage: Stage,
) -> None:
    await stage.apply(replicas=1, redis={"urlSecretRef": {"name": "redis", "key": "url"}})
    assert stage.condition("Reconciling")[:2] == ("True", "SecretNotFound")
    assert "Secret redis does not exist" in stage.condition("Ready")[2]
    await stage.scenario.advance(590, step=10)
    assert stage.condition("Stalled")[0] == "False"
    await stage.scenario.advance(20, step=10)
    assert stage.condition("Stalled")[:2] == ("True", "ProgressDeadlineExceeded")

    stage.api.put(
        SECRETS,
        {
            "metadata": {"namespace": "shop", "name": "redis"},
            "data": {"url": "cmVkaXM6Ly9vdGhlcjo2Mzc5LzA="},
        },
    )
    await stage.scenario.advance(5)
    await stage.run_pods("a")
    await stage.scenario.advance(2)
    assert stage.connections.addresses[-1].url == "redis://other:6379/0"
    assert stage.condition("Stalled")[0] == "False"
    assert stage.condition("Ready")[0] == "True"


async def test_a_pool_at_work_under_load_is_never_reconciling(stage: Stage) -> None:
    await stage.apply(autoscaling={"minReplicas": 1, "scaleDown": {"stabilizationWindow": "0s"}})
    await stage.run_pods("a")
    await stage.scenario.advance(2)
    for jobs, pods in ((4, "a"), (4, "abcd"), (0, "abcd"), (2, "abcd"), (9, "abcd")):
        await stage.enqueue(jobs)
        await stage.run_pods(*pods)
        await stage.scenario.advance(1)
        assert stage.condition("Reconciling")[0] == "False"
        assert stage.condition("Ready")[0] == "True"


async def test_what_the_api_server_refuses_is_in_the_status(stage: Stage) -> None:
    stage.api.fault = refuse(Forbidden("exceeded quota: small", status=403), "apply", "deployments")
    await stage.apply(replicas=1)
    assert stage.condition("Ready") == ("False", "QuotaExceeded", "exceeded quota: small")
    assert stage.condition("Reconciling")[:2] == ("True", "QuotaExceeded")
    stage.api.fault = lambda *_: None
    await stage.scenario.advance(11)
    assert stage.size == 1


def owned_by(name: str, uid: str) -> dict[str, Any]:
    owner = {"apiVersion": "engineroom.dev/v1alpha1", "kind": "WorkerPool", "name": name}
    return {"ownerReferences": [{**owner, "uid": uid, "controller": True}]}


def existing(name: str, **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "shop", "name": name, **metadata}, "spec": {}}


@pytest.mark.parametrize(
    ("kind", "name"), [(SERVICE_ACCOUNTS, "mail-worker"), (PDBS, "mail"), (DEPLOYMENTS, "mail")]
)
@pytest.mark.parametrize(
    "metadata",
    [
        {},
        owned_by("orders", "uid-of-orders"),
        {
            "ownerReferences": [
                {"kind": "Deployment", "name": "mail", "uid": "u", "controller": True}
            ]
        },
    ],
)
async def test_an_object_of_another_owner_is_not_used(
    stage: Stage, kind: Resource, name: str, metadata: dict[str, Any]
) -> None:
    stage.api.put(kind, existing(name, **metadata))
    await stage.apply(replicas=1)
    await stage.scenario.advance(11)

    for condition, status in (("Ready", "False"), ("Stalled", "True"), ("Reconciling", "False")):
        assert stage.condition(condition)[0] == status
    _, reason, message = stage.condition("Stalled")
    assert reason == "NameTaken"
    assert message.startswith(f"{kind.kind} {name} exists and is not owned by this WorkerPool")
    assert "delete it" in message
    assert stage.api.find(kind, "shop", name)["metadata"].get("ownerReferences") == metadata.get(  # type: ignore[index]
        "ownerReferences"
    )
    assert kind is DEPLOYMENTS or stage.size is None

    stage.api.remove(kind, "shop", name)
    await stage.scenario.advance(11)
    assert stage.size == 1
    assert stage.condition("Stalled")[0] == "False"


async def test_the_message_of_a_foreign_account_names_both_ways_out(stage: Stage) -> None:
    stage.api.put(SERVICE_ACCOUNTS, existing("mail-worker"))
    await stage.apply(replicas=1)
    message = (
        "ServiceAccount mail-worker exists and is not owned by this WorkerPool, which therefore "
        "does not use it; to use it, name it in spec.template.spec.serviceAccountName (the author "
        "needs the right to create pods), else delete it"
    )
    assert stage.condition("Ready") == ("False", "NameTaken", message)

    template = {
        "spec": {
            "serviceAccountName": "mail-worker",
            "containers": [{"name": "app", "image": "shop:1"}],
        }
    }
    await stage.apply(replicas=1, template=template)
    assert stage.size == 1
    assert stage.deployment["spec"]["template"]["spec"]["serviceAccountName"] == "mail-worker"
    assert stage.condition("Stalled")[0] == "False"


async def test_a_running_pool_does_not_grow_or_roll_out_with_a_foreign_account(
    stage: Stage,
) -> None:
    await stage.apply(replicas=1)
    await stage.run_pods("a")
    stage.api.remove(SERVICE_ACCOUNTS, "shop", "mail-worker")
    stage.api.put(SERVICE_ACCOUNTS, existing("mail-worker"))
    before = stage.deployment["spec"]["template"]
    await stage.apply(replicas=2, workersPerPod=2)
    assert stage.size == 1
    assert stage.deployment["spec"]["template"] == before
    assert stage.condition("Stalled")[:2] == ("True", "NameTaken")


@pytest.mark.parametrize(
    ("kind", "name"), [(SERVICE_ACCOUNTS, "mail-worker"), (PDBS, "mail"), (DEPLOYMENTS, "mail")]
)
async def test_a_pool_made_anew_waits_for_the_deletion_of_the_old_one_s_objects(
    stage: Stage, kind: Resource, name: str
) -> None:
    stage.api.put(kind, existing(name, **owned_by("mail", "uid-of-the-old-pool")))
    await stage.apply(replicas=1)
    assert stage.condition("Ready")[:2] == ("False", "AwaitingDeletion")
    assert stage.condition("Reconciling")[:2] == ("True", "AwaitingDeletion")
    assert stage.condition("Stalled")[0] == "False"
    assert kind is DEPLOYMENTS or stage.size is None

    await stage.scenario.advance(5)
    stage.api.remove(kind, "shop", name)
    await stage.scenario.advance(1.1)
    made = stage.api.find(kind, "shop", name)
    pool_now = stage.api.find(WORKERPOOLS, "shop", "mail")
    assert made is not None
    assert pool_now is not None
    assert made["metadata"]["ownerReferences"][0]["uid"] == pool_now["metadata"]["uid"]
    assert stage.condition("Reconciling")[1] != "AwaitingDeletion"


async def test_an_own_object_that_is_being_deleted_is_awaited(stage: Stage) -> None:
    await stage.apply(autoscaling={})
    uid = stage.api.find(WORKERPOOLS, "shop", "mail")["metadata"]["uid"]  # type: ignore[index]
    owned = owned_by("mail", uid)
    deleted = "2026-01-01T00:00:00Z"
    stage.api.put(SERVICE_ACCOUNTS, existing("mail-worker", **owned, deletionTimestamp=deleted))
    await stage.enqueue(1)
    assert stage.condition("Ready")[1] == "AwaitingDeletion"


async def test_own_objects_of_an_earlier_try_are_used(stage: Stage) -> None:
    stage.api.fault = refuse(Forbidden("no", status=403), "apply", "deployments")
    await stage.apply(replicas=1)
    assert stage.api.find(SERVICE_ACCOUNTS, "shop", "mail-worker") is not None
    stage.api.fault = lambda *_: None
    await stage.scenario.advance(11)
    assert stage.size == 1


async def test_a_template_with_an_account_makes_none(stage: Stage) -> None:
    template = {
        "spec": {
            "serviceAccountName": "reports",
            "containers": [{"name": "app", "image": "shop:1"}],
        }
    }
    await stage.apply(replicas=1, template=template)
    assert stage.size == 1
    assert not any(write.plural == "serviceaccounts" for write in stage.api.writes)


async def test_an_edit_of_the_deployment_is_undone(stage: Stage) -> None:
    await stage.apply(replicas=1)
    await stage.run_pods("a")
    stage.api.edit(DEPLOYMENTS, "shop", "mail", spec={"progressDeadlineSeconds": 5})
    await stage.scenario.settle()
    assert stage.deployment["spec"]["progressDeadlineSeconds"] == 600


async def test_a_deployment_that_changed_meanwhile_is_not_shrunk(stage: Stage) -> None:
    await stage.apply(replicas=2)
    await stage.run_pods("a", "b")
    stage.api.fault = refuse(Conflict("changed", status=409), "patch", "deployments")
    await stage.apply(replicas=1)
    stage.seen.workers = (stage.worker("a"), stage.worker("b", drain="retired"))
    await stage.scenario.advance(1)
    assert stage.size == 2
    assert "ScaledDown" not in stage.events()


async def test_an_api_server_that_is_away_is_an_error_of_the_queue(stage: Stage) -> None:
    stage.api.fault = refuse(Unreachable("no route"), "apply", "deployments")
    with pytest.raises(Unreachable):
        await stage.apply(replicas=1)


async def test_an_invalid_spec_keeps_the_running_pool(stage: Stage) -> None:
    await stage.apply(replicas=1)
    await stage.run_pods("a")
    await stage.apply(replicas=1, queues=[{"name": ""}])
    assert stage.condition("Stalled")[:2] == ("True", "InvalidSpec")
    assert stage.size == 1


async def test_suspension_is_a_command_and_keeps_the_size(stage: Stage) -> None:
    await stage.apply(autoscaling={"minReplicas": 1})
    await stage.run_pods("a")
    await stage.apply(autoscaling={"minReplicas": 1}, suspend=True)
    assert "1" in stage.redis.values.values()
    assert stage.size == 1
    assert stage.condition("ScalingActive")[:2] == ("False", "Suspended")


async def test_a_deleted_pool_leaves_its_connection(stage: Stage) -> None:
    await stage.apply(replicas=1)
    assert stage.connections.connection.pools == {"shop/mail"}
    stage.api.remove(WORKERPOOLS, "shop", "mail")
    await stage.scenario.settle()
    assert stage.connections.connection.pools == set()
    assert stage.controller.memories == {}


async def test_a_lost_push_is_found_by_the_check_of_idle_pools(stage: Stage) -> None:
    await stage.apply(autoscaling={})
    stage.seen.queue = {"waiting": 1}
    await stage.scenario.advance(11)
    assert stage.size == 1


async def test_a_namespace_without_the_label_gets_neither_pods_nor_the_url(stage: Stage) -> None:
    stage.api.edit(
        NAMESPACES, "", "shop", metadata={"labels": {"engineroom.dev/shared-redis": None}}
    )
    await stage.apply(autoscaling={"minReplicas": 2})
    assert stage.condition("Stalled")[:2] == ("True", "RedisNotShared")
    assert [write.plural for write in stage.api.writes] == ["workerpools/status"]
    assert stage.connections.addresses == []


async def test_a_pool_that_may_not_use_its_redis_any_more_loses_its_pods(stage: Stage) -> None:
    await stage.apply(replicas=2)
    await stage.run_pods("a", "b")
    assert stage.scenario.status("shop", "mail")["ownedQueues"][0]["name"] == "mail"
    stage.api.edit(
        NAMESPACES, "", "shop", metadata={"labels": {"engineroom.dev/shared-redis": None}}
    )
    await stage.scenario.settle()
    assert stage.size == 0
    assert stage.condition("Stalled")[:2] == ("True", "RedisNotShared")
    assert stage.scenario.status("shop", "mail")["ownedQueues"] == []


async def test_a_queue_of_another_namespace_is_neither_read_nor_served(stage: Stage) -> None:
    stage.connections.connection.owners.namespaces["mail"] = "bank"
    await stage.apply(autoscaling={"minReplicas": 1})
    state, reason, message = stage.condition("Stalled")
    assert (state, reason) == ("True", "QueueOwnedElsewhere")
    assert "bank" not in message
    assert (stage.seen.looks, stage.size) == (0, None)
