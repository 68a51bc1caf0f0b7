"""CRD and admission server on a real API server: what a person at kubectl meets."""

from __future__ import annotations

import asyncio
import base64
import json
import tempfile
import time
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from engineroom.api import kinds
from engineroom.api.v1alpha1.workerpool import WorkerPool
from engineroom.api.validation import parse
from engineroom.core.errors import EngineroomError
from engineroom.kube.client.errors import ApiError
from engineroom.kube.client.resources import NAMESPACES, SECRETS, VALIDATING_WEBHOOKS, WORKERPOOLS
from engineroom_webhooks import certificates
from tests.integration.webhooks import SECRET, Admission
from tests.unit.api.specs import pool
from tests.unit.api.test_crd import served, with_defaults
from tests.unit.api.test_validation import VALID
from tests.unit.api.test_wrong_specs import WRONG

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from engineroom.kube.client.client import Client
    from tests.cluster.api import Cluster

POD = "spec.template.spec"
CONTAINER = f"{POD}.containers[0]"
#: Not an object that could be sent at all.
NOT_SENT = {"api-version", "kind", "name-missing", "name-number", "metadata-list"}


async def kubectl(cluster: Cluster, *arguments: str, stdin: Any = None) -> tuple[int, str]:
    # Other tests add kinds and remove them: what kubectl discovered for one is wrong for the next.
    with tempfile.TemporaryDirectory() as cache:
        process = await asyncio.create_subprocess_exec(
            "kubectl",
            *arguments,
            env={**cluster.env(), "KUBECACHEDIR": cache},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        text = None if stdin is None else json.dumps(stdin).encode()
        out, _ = await process.communicate(text)
    return process.returncode or 0, out.decode()


def here(namespace: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    made = pool(changes)
    made["metadata"]["namespace"] = namespace
    return made


async def rehearse(client: Client, namespace: str, obj: dict[str, Any]) -> dict[str, Any]:
    """Create as a dry run; unknown fields are refused, as kubectl has it."""
    return await client.request(
        "POST",
        WORKERPOOLS.path(namespace),
        params={"dryRun": "All", "fieldValidation": "Strict"},
        body=obj,
    )


@pytest_asyncio.fixture
async def admission(
    control_plane: Cluster, client: Client, namespace: str, tmp_path: Path
) -> AsyncIterator[Admission]:
    made = Admission(client, control_plane.kubeconfig, namespace, tmp_path)
    yield made
    await made.close()


# -- the CRD alone ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"spec.replicas": 3, "spec.autoscaling": {}},
            "spec.replicas: Invalid value: conflicts with spec.autoscaling; remove one of the two",
        ),
        (
            {"spec.autoscaling": {"minReplicas": 5, "maxReplicas": 3}},
            (
                "spec.autoscaling.minReplicas: Invalid value: is more than maxReplicas; lower "
                "it or raise maxReplicas"
            ),
        ),
        (
            {"spec.metricOutage": {"mode": "Fallback"}},
            "spec.metricOutage.mode: Invalid value: Fallback needs a size; set replicas, too",
        ),
        (
            {"spec.metricOutage": {"replicas": 1}},
            (
                "spec.metricOutage.replicas: Invalid value: is set, but mode is KeepReplicas; "
                "write mode: Fallback or remove it"
            ),
        ),
        (
            {
                "spec.autoscaling": {
                    "schedules": [{"name": "a", "cron": "0 8 * * *", "minReplicas": 50}]
                }
            },
            (
                "spec.autoscaling.schedules[].minReplicas: is more than maxReplicas; lower it or "
                "raise maxReplicas"
            ),
        ),
        (
            {"spec.drain": {"maxJobDuration": "0s"}},
            (
                'spec.drain.maxJobDuration: Invalid value: "0s": is zero; write more '
                "than zero, such as 30s"
            ),
        ),
        (
            {
                "spec.queues[0].targetLatency": "1s",
                "spec.autoscaling": {"targetBacklogPerWorker": 5},
            },
            (
                "spec.queues[].targetLatency: is set, but the pool scales by "
                "targetBacklogPerWorker; remove one of the two"
            ),
        ),
        (
            {"spec.autoscaling": {"targetBacklogPerWorker": 5, "targetLatency": "1s"}},
            "conflicts with targetLatency; remove one of the two",
        ),
        (
            {
                "spec.autoscaling": {"maxReplicas": 5},
                "spec.metricOutage": {"mode": "Fallback", "replicas": 9},
            },
            (
                "is outside minReplicas and maxReplicas of spec.autoscaling; write a number "
                "between them"
            ),
        ),
        ({"metadata.name": "m" * 53}, "shorten it to at most 52 characters"),
        ({"metadata.name": "a.b"}, "has a dot; write a DNS label"),
        (
            {
                "spec.autoscaling": {
                    "schedules": [{"name": "a", "cron": "@daily", "minReplicas": 5}]
                }
            },
            "is a nickname; write the five fields, such as 0 8 * * 1-5",
        ),
    ],
)
async def test_api_server_itself_refuses(
    client: Client, namespace: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ApiError) as caught:
        await rehearse(client, namespace, here(namespace, changes))

    assert caught.value.status == 422
    assert message in caught.value.message


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spec.autoscaling": {"schedules": [{"name": "a", "cron": "0 8 * * *", "minReplicas": 1}]}},
    ],
)
async def test_stored_defaults_are_the_models(
    client: Client, namespace: str, changes: dict[str, Any]
) -> None:
    obj = here(namespace, changes)

    stored = await client.create(WORKERPOOLS, obj)

    assert stored["spec"] == with_defaults(
        served(kinds.WORKER_POOL)["properties"]["spec"], obj["spec"]
    )
    assert parse(WorkerPool, stored).spec == parse(WorkerPool, obj).spec


async def test_every_field_explains_itself(
    control_plane: Cluster, client: Client, namespace: str
) -> None:
    del namespace
    async with asyncio.timeout(60):
        while True:  # published a moment after the CRD
            try:
                document = await client.request("GET", "/openapi/v3/apis/engineroom.dev/v1alpha1")
                break
            except EngineroomError:
                await asyncio.sleep(0.2)
    schema = document["components"]["schemas"]["dev.engineroom.v1alpha1.WorkerPool"]

    def mute(node: dict[str, Any], path: str) -> list[str]:
        found = []
        for name, inner in node.get("properties", {}).items():
            if path or name in {"spec", "status"}:
                if not inner.get("description"):
                    found.append(f"{path}.{name}")
                found += mute(inner, f"{path}.{name}")
        return found + (mute(node["items"], f"{path}[]") if "items" in node else [])

    assert mute(schema, "") == []
    status, text = await kubectl(control_plane, "explain", "wp.spec.drain.maxJobDuration")
    assert status == 0
    assert "Longest time that a job may run on a worker that ends" in text


async def test_kubectl_scale(control_plane: Cluster, client: Client, namespace: str) -> None:
    await client.create(WORKERPOOLS, here(namespace))
    scale = ("scale", "wp/mail", "-n", namespace)

    assert (await kubectl(control_plane, *scale, "--replicas=3"))[0] == 0
    stored = await client.get(WORKERPOOLS, namespace, "mail")
    assert stored["spec"]["replicas"] == 3

    patch = {"spec": {"replicas": None, "autoscaling": {"maxReplicas": 5}}}
    await client.merge_patch(WORKERPOOLS, namespace, "mail", patch)
    status, text = await kubectl(control_plane, *scale, "--replicas=2")
    assert status == 1
    assert "conflicts with spec.autoscaling; remove one of the two" in text


async def test_columns(control_plane: Cluster, client: Client, namespace: str) -> None:
    await client.create(WORKERPOOLS, here(namespace))
    await client.apply_status(
        WORKERPOOLS,
        {
            "metadata": {"name": "mail", "namespace": namespace},
            "status": {
                "desiredReplicas": 7,
                "readyReplicas": 5,
                "busyWorkers": 4,
                "waitingJobs": 840,
                "decision": "7 pods: 840 waiting",
                "conditions": [
                    {
                        "type": "Ready",
                        "status": "True",
                        "reason": "AsWanted",
                        "lastTransitionTime": "2026-01-01T00:00:00Z",
                    }
                ],
            },
        },
    )

    _, text = await kubectl(control_plane, "get", "engineroom", "-n", namespace)

    head, row = text.splitlines()
    assert head.split() == ["NAME", "READY", "SIZE", "PODS", "BUSY", "WAITING", "AGE"]
    # With the kind before it: the category has more than one.
    assert row.split()[:-1] == ["workerpool.engineroom.dev/mail", "True", "7", "5", "4", "840"]


# -- with the admission server ------------------------------------------------------------------


async def test_author_reads_field_problem_and_fix(
    control_plane: Cluster, admission: Admission, namespace: str
) -> None:
    await admission.start()
    wrong = here(namespace, {f"{CONTAINER}.args": ["a"], f"{POD}.hostNetwork": True})

    status, text = await kubectl(control_plane, "create", "-f", "-", stdin=wrong)

    assert status == 1
    assert text.splitlines()[-2:] == [
        (
            "* spec.template.spec.containers[0].args: is set, but Engineroom starts the workers in "
            "this container; remove it; command may name the Python interpreter"
        ),
        (
            "* spec.template.spec.hostNetwork: is true, which Pod Security level restricted "
            "forbids; remove it, or label the namespace "
            "pod-security.kubernetes.io/enforce=privileged"
        ),
    ]


async def test_every_wrong_spec_is_refused_and_every_valid_one_taken(
    client: Client, admission: Admission, namespace: str
) -> None:
    await admission.start()
    answers: dict[str, int] = {}

    for name, (changes, _) in WRONG.items():
        if name in NOT_SENT:
            continue
        try:
            await rehearse(client, namespace, here(namespace, changes))
        except ApiError as error:
            answers[name] = error.status
        else:
            answers[name] = 201
    assert {name: status for name, status in answers.items() if not 400 <= status < 500} == {}
    for name, changes in VALID.items():
        try:
            obj = here(namespace, changes)
            obj["metadata"].pop("uid", None)
            obj["metadata"].pop("managedFields", None)
            obj["metadata"].pop("ownerReferences", None)
            await rehearse(client, namespace, obj)
        except ApiError as error:
            pytest.fail(f"{name}: {error.message}")


async def test_warning_reaches_kubectl(
    control_plane: Cluster, admission: Admission, namespace: str
) -> None:
    await admission.start()

    status, text = await kubectl(
        control_plane, "create", "-f", "-", stdin=here(namespace, {f"{CONTAINER}.image": "shop"})
    )

    assert status == 0
    assert 'Warning: spec.template.spec.containers[0].image: "shop" names no fixed' in text


async def allow_ann(cluster: Cluster, namespace: str, resource: str) -> None:
    name = resource.partition(".")[0]
    there = ("-n", namespace)
    rule = ("--verb=create,get,update,patch", f"--resource={resource}")
    await kubectl(cluster, "create", "role", name, *there, *rule)
    binding = (f"--role={name}", "--user=ann")
    await kubectl(cluster, "create", "rolebinding", name, *there, *binding)


async def allowed_later(cluster: Cluster, *command: str, stdin: dict[str, Any]) -> None:
    """Repeat until the author's new right counts: a refusal is cached for seconds."""
    deadline = time.monotonic() + 20
    while True:
        status, text = await kubectl(cluster, *command, stdin=stdin)
        if status == 0:
            return
        assert time.monotonic() < deadline, text
        await asyncio.sleep(0.5)


async def test_an_author_gains_nothing_that_kubectl_does_not_give(
    control_plane: Cluster, admission: Admission, namespace: str
) -> None:
    await admission.start()
    await allow_ann(control_plane, namespace, "workerpools.engineroom.dev")
    create, update = ("create", "--as=ann", "-f", "-"), ("replace", "--as=ann", "-f", "-")
    redis = {"spec.redis": {"urlSecretRef": {"name": "redis", "key": "url"}}}

    status, text = await kubectl(control_plane, *create, stdin=here(namespace))
    assert status == 1
    assert (
        "spec.template, spec.queues: only authors who may create pods in namespace "
        f"{namespace} may set this, and ann may not; remove it or get that right"
    ) in text

    # An administrator's pool: the author may scale it, and changes neither image nor Secret.
    assert (await kubectl(control_plane, "create", "-f", "-", stdin=here(namespace, redis)))[0] == 0
    scaled = here(namespace, {**redis, "spec.replicas": 2})
    assert (await kubectl(control_plane, *update, stdin=scaled))[0] == 0
    leak = here(namespace, {**redis, f"{CONTAINER}.image": "evil:1", "spec.replicas": 2})
    status, text = await kubectl(control_plane, *update, stdin=leak)
    assert (status, "spec.template: only authors who may create pods" in text) == (1, True)

    await allow_ann(control_plane, namespace, "pods")
    other = here(namespace)
    other["metadata"]["name"] = "other"
    await allowed_later(control_plane, *create, stdin=other)
    status, text = await kubectl(control_plane, *update, stdin=leak)
    assert status == 1
    assert (
        f"spec.redis.urlSecretRef: only authors who may get Secret {namespace}/redis may name it"
    ) in text

    await allow_ann(control_plane, namespace, "secrets")
    await allowed_later(control_plane, *update, stdin=leak)


async def test_host_network_is_for_privileged_namespaces(
    client: Client, admission: Admission, namespace: str
) -> None:
    await admission.start()
    wants = here(namespace, {f"{POD}.hostNetwork": True})
    with pytest.raises(ApiError, match="which Pod Security level restricted forbids"):
        await rehearse(client, namespace, wants)

    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}}
    await client.merge_patch(NAMESPACES, None, namespace, label)

    deadline = time.monotonic() + 30  # the level is remembered for seconds
    while True:
        try:
            await rehearse(client, namespace, wants)
            return
        except ApiError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.5)


async def test_invalid_object_from_before_can_be_labelled_and_deleted(
    client: Client, admission: Admission, namespace: str
) -> None:
    wrong = here(namespace, {f"{CONTAINER}.args": ["a"], "metadata.finalizers": ["a.dev/b"]})
    await client.create(WORKERPOOLS, wrong)
    await admission.start()

    await client.merge_patch(WORKERPOOLS, namespace, "mail", {"metadata": {"labels": {"a": "b"}}})
    with pytest.raises(ApiError, match="Engineroom starts the workers"):
        await client.merge_patch(WORKERPOOLS, namespace, "mail", {"spec": {"suspend": True}})
    await client.delete(WORKERPOOLS, namespace, "mail")
    await client.merge_patch(WORKERPOOLS, namespace, "mail", {"metadata": {"finalizers": None}})


async def test_server_ends_in_order(admission: Admission) -> None:
    await admission.start()

    assert await admission.servers[0].stop() == 0
    assert '"event": "ended"' in admission.servers[0].log.read_text()


async def test_certificates_rotate_under_load_without_losing_a_request(
    client: Client, admission: Admission, namespace: str
) -> None:
    """Two replicas, both asked for every request, while CA and leaves change every few seconds."""
    await admission.start(
        2, leaf_lifetime="12", authority_lifetime="24", settle="1", retire="3", check_interval="0.4"
    )
    seen: set[bytes] = set()
    bundles: set[int] = set()
    failures: list[str] = []
    sent = 0
    end = time.monotonic() + 40

    async def load() -> None:
        nonlocal sent
        while time.monotonic() < end:
            try:
                await rehearse(client, namespace, here(namespace))
            except EngineroomError as error:
                failures.append(str(error))
            sent += 1
            await asyncio.sleep(0.05)

    async def watch() -> None:
        while time.monotonic() < end:
            found = await client.get(VALIDATING_WEBHOOKS, None, admission.configuration)
            for entry in found["webhooks"]:
                bundle = base64.b64decode(entry["clientConfig"]["caBundle"])
                authorities = certificates.split_bundle(bundle)
                bundles.add(len(authorities))
                seen.update(authorities)
            await asyncio.sleep(0.2)

    await asyncio.gather(*(load() for _ in range(4)), watch())

    assert failures == []
    assert sent >= 200
    assert len(seen) >= 3, "the CA was not rotated twice"
    assert 2 in bundles, "the next CA was never published beside the old"


async def test_lost_secret_is_made_anew_while_requests_go_on(
    client: Client, admission: Admission, namespace: str
) -> None:
    await admission.start(2, settle="1", retire="3", check_interval="0.4")
    before = await client.get(SECRETS, namespace, SECRET)
    await client.merge_patch(SECRETS, namespace, SECRET, {"data": None})

    deadline = time.monotonic() + 8
    while time.monotonic() < deadline:
        await rehearse(client, namespace, here(namespace))
        await asyncio.sleep(0.05)

    after = await client.get(SECRETS, namespace, SECRET)
    assert after["data"]["ca.crt"] != before["data"]["ca.crt"]
    for server in admission.servers:
        assert await server.metric("engineroom_admission_requests_total") > 0
