"""Objects of other owners with a pool's names, and tokens of its pods, on an API server."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from engineroom.kube.client.errors import NotFound
from engineroom.kube.client.resources import DEPLOYMENTS, PDBS, PODS, SERVICE_ACCOUNTS, WORKERPOOLS
from tests.integration.pools import OperatorProcess, Stage, eventually, pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engineroom.kube.client.client import Client
    from engineroom.kube.client.resources import Resource
    from tests.cluster.api import Cluster
    from tests.support import RedisServer

#: Holds an object's deletion back until the test removes it.
HOLD = "example.com/hold"


@pytest.fixture
def stage(client: Client, namespace: str, redis: RedisServer) -> Stage:
    return Stage(client, namespace, redis)


@pytest_asyncio.fixture
async def operator(
    control_plane: Cluster, redis: RedisServer, namespace: str
) -> AsyncIterator[OperatorProcess]:
    process = OperatorProcess(control_plane.kubeconfig, redis.url, namespace)
    await process.start()
    yield process
    await process.stop()


def one_pod(stage: Stage, name: str = "mail", **fields: Any) -> dict[str, Any]:
    document = pool(stage.namespace, name, autoscaling=None, replicas=1)
    document["spec"]["template"]["spec"].update(fields)
    return document


async def has_reason(stage: Stage, kind: str, reason: str, name: str = "mail") -> str:
    """Return the condition's message once it has that reason; "" before."""
    status, found, message = await stage.condition(kind, name)
    return message if (status, found) == ("True", reason) else ""


async def owner_uid(stage: Stage, kind: Resource, name: str) -> str:
    """Return the uid of the object's controller; "" without the object or without one."""
    try:
        found = await stage.client.get(kind, stage.namespace, name)
    except NotFound:
        return ""
    owners = found["metadata"].get("ownerReferences") or [{}]
    return str(owners[0].get("uid", ""))


#: A Deployment that could become the pool's without a change of its selector.
FOREIGN_DEPLOYMENT = {
    "replicas": 0,
    "selector": {"matchLabels": {"engineroom.dev/pool": "deployment"}},
    "template": {
        "metadata": {"labels": {"engineroom.dev/pool": "deployment"}},
        "spec": {"containers": [{"name": "other", "image": "other:1"}]},
    },
}
#: By pool: the kind, name and spec of the object in its place.
FOREIGN = {
    "account": (SERVICE_ACCOUNTS, "account-worker", None),
    "budget": (PDBS, "budget", {"selector": {"matchLabels": {"app": "other"}}}),
    "deployment": (DEPLOYMENTS, "deployment", FOREIGN_DEPLOYMENT),
}


async def test_objects_of_other_owners_are_never_adopted(stage, operator):
    for pool_name, (kind, name, spec) in FOREIGN.items():
        metadata = {"namespace": stage.namespace, "name": name}
        body = {"metadata": metadata, **({"spec": spec} if spec else {})}
        made = await stage.client.create(kind, body)
        await stage.client.create(WORKERPOOLS, one_pod(stage, pool_name))

        message = await eventually(
            "it is stalled", partial(has_reason, stage, "Stalled", "NameTaken", pool_name)
        )
        assert message.startswith(f"{kind.kind} {name} exists and is not owned by this WorkerPool")
        assert (await stage.condition("Ready", pool_name))[:2] == ("False", "NameTaken")
        assert await stage.size(pool_name) == 0
        now = await stage.client.get(kind, stage.namespace, name)
        assert now["metadata"].get("ownerReferences") is None
        assert now.get("spec") == made.get("spec")

    for kind, name, _ in FOREIGN.values():
        await stage.client.delete(kind, stage.namespace, name)
    for pool_name, (kind, name, _) in FOREIGN.items():
        uid = (await stage.pool(pool_name))["metadata"]["uid"]
        await eventually("it is the pool's", partial(is_owned, stage, kind, name, uid))
        await eventually("the pool has its pod", partial(sized, stage, 1, pool_name))


async def is_owned(stage: Stage, kind: Resource, name: str, uid: str) -> bool:
    return await owner_uid(stage, kind, name) == uid


async def sized(stage: Stage, size: int, name: str = "mail") -> bool:
    return await stage.size(name) == size


async def test_a_pool_made_anew_waits_for_the_old_account_s_deletion(stage, operator):
    await stage.client.create(WORKERPOOLS, one_pod(stage))
    await eventually("the pool has its pod", lambda: sized(stage, 1))
    await stage.client.merge_patch(
        SERVICE_ACCOUNTS, stage.namespace, "mail-worker", {"metadata": {"finalizers": [HOLD]}}
    )
    old = (await stage.pool())["metadata"]["uid"]
    await stage.client.delete(WORKERPOOLS, stage.namespace, "mail")
    await eventually("the old pool is gone", lambda: absent(stage, WORKERPOOLS, "mail"))

    await stage.client.create(WORKERPOOLS, one_pod(stage))
    await eventually("it waits", lambda: has_reason(stage, "Reconciling", "AwaitingDeletion"))
    await eventually("the old Deployment is gone", lambda: absent(stage, DEPLOYMENTS, "mail"))
    assert await owner_uid(stage, SERVICE_ACCOUNTS, "mail-worker") == old
    assert (await stage.condition("Stalled"))[0] == "False"
    assert await stage.size() == 0

    await stage.client.merge_patch(
        SERVICE_ACCOUNTS, stage.namespace, "mail-worker", {"metadata": {"finalizers": None}}
    )
    await eventually("the new pool has its pod", lambda: sized(stage, 1))
    uid = (await stage.pool())["metadata"]["uid"]
    assert uid != old
    assert await owner_uid(stage, SERVICE_ACCOUNTS, "mail-worker") == uid


async def absent(stage: Stage, kind: Resource, name: str) -> bool:
    try:
        await stage.client.get(kind, stage.namespace, name)
    except NotFound:
        return True
    return False


async def test_pods_get_a_token_only_if_the_template_asks_for_one(stage, operator):
    pools = {
        "own": ({}, False),
        "named": ({"serviceAccountName": "default"}, False),
        "mounted": ({"automountServiceAccountToken": True}, True),
    }
    for name, (fields, _) in pools.items():
        await stage.client.create(WORKERPOOLS, one_pod(stage, name, **fields))
    await eventually("the account exists", lambda: present(stage, SERVICE_ACCOUNTS, "default"))
    for name, (_, mounted) in pools.items():
        await eventually("the pool has its pod", partial(sized, stage, 1, name))
        found = await stage.client.get(DEPLOYMENTS, stage.namespace, name)
        pod = {"metadata": {"name": name}, "spec": found["spec"]["template"]["spec"]}
        made = await stage.client.request(
            "POST", PODS.path(stage.namespace), params={"dryRun": "All"}, body=pod
        )
        assert has_token(made) is mounted


def has_token(pod: dict[str, Any]) -> bool:
    return any(
        "serviceAccountToken" in source
        for volume in pod["spec"]["volumes"]
        for source in volume.get("projected", {}).get("sources", ())
    )


async def present(stage: Stage, kind: Resource, name: str) -> bool:
    return not await absent(stage, kind, name)
