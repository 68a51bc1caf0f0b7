"""Several objects in one transaction: all or nothing, after any failure or crash."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from engineroom.kube.client.errors import NotFound
from engineroom.kube.client.resources import WORKERPOOLS
from engineroom.manifests import apply as applying
from engineroom.manifests.apply import ANNOTATION, content, mark_of, merge_patch
from tests.integration.console.api import PODS, POOLS, Api, code, manifest, pool
from tests.integration.pools import eventually
from tests.support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from engineroom.kube.client.client import Client
    from tests.cluster.api import Cluster
    from tests.support import RedisServer


def path(namespace: str) -> str:
    return f"/namespaces/{namespace}/manifests"


async def live(client: Client, namespace: str, name: str) -> dict[str, Any] | None:
    try:
        return await client.get(WORKERPOOLS, namespace, name)
    except NotFound:
        return None


async def by_kubectl(client: Client, namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    """Apply the object as a user did before, with that user's fields and ownership."""
    body = pool(name, **spec)
    body["metadata"] |= {"namespace": namespace, "labels": {"team": "mail"}}
    body["metadata"]["annotations"] = {"example.com/note": "by hand"}
    return await client.apply(WORKERPOOLS, body, field_manager="kubectl")


def owners(obj: dict[str, Any]) -> list[tuple[str, str, str]]:
    return sorted(
        (f["manager"], f["operation"], json.dumps(f["fieldsV1"], sort_keys=True))
        for f in obj["metadata"]["managedFields"]
    )


async def test_all_are_applied_and_the_log_names_the_user(
    api: Api, client: Client, namespace: str
) -> None:
    before = await by_kubectl(client, namespace, "mail", replicas=1)
    admin = await api.key("admin", namespace)
    text = manifest(pool("bills"), {**pool("mail", replicas=1), "metadata": {
        "name": "mail", "labels": {"team": "mail", "tier": "one"}}})  # fmt: skip
    planned = await api.post(path(namespace), admin, {"manifest": text, "dryRun": True})
    assert planned.json()["outcome"] == "planned"
    assert await live(client, namespace, "bills") is None
    assert (await live(client, namespace, "mail")) == before
    done = await api.post(path(namespace), admin, {"manifest": text})
    assert done.status_code == 200, done.text
    body = done.json()
    assert [(o["name"], o["action"]) for o in body["objects"]] == [
        ("bills", "create"), ("mail", "update"),
    ]  # fmt: skip
    assert body["objects"][1]["changes"] == [
        {"path": "metadata.labels.tier", "before": None, "after": '"one"'}
    ]
    now = await live(client, namespace, "bills")
    assert now is not None
    assert mark_of(now) == body["transaction"]
    # Owned as by an apply: a field that is left out next time goes.
    assert [f["operation"] for f in now["metadata"]["managedFields"]] == ["Apply"]
    here = f"/namespaces/{namespace}/transactions"
    transaction = (await api.get(f"{here}/{body['transaction']}", admin)).json()
    assert (transaction["status"], transaction["by"]) == ("committed", "program:admin")
    assert transaction["objects"] == ["create WorkerPool/bills", "update WorkerPool/mail"]
    listed = (await api.get(f"{here}?limit=1", admin)).json()
    assert [item["id"] for item in listed["items"]] == [body["transaction"]]
    again = await api.post(path(namespace), admin, {"manifest": text})
    assert (again.json()["outcome"], again.json()["transaction"]) == ("unchanged", None)
    assert [k async for k in api.services.redis.scan_iter("engineroom:console:manifests:*")] == []


async def test_no_environment_value_is_returned_or_stored(api: Api, namespace: str) -> None:
    admin = await api.key("admin", namespace)

    async def applied(*names: str) -> str:
        env = [{"name": name, "value": f"hunter2-{name}"} for name in names]
        made = pool("mail", replicas=1)
        made["spec"]["template"]["spec"]["containers"][0]["env"] = env
        body = {"manifest": manifest(made)}
        rehearsed = await api.post(path(namespace), admin, {**body, "dryRun": True})
        done = await api.post(path(namespace), admin, body, idempotency_key="-".join(names))
        assert done.status_code == 200, done.text
        return rehearsed.text + done.text

    # Made, a list that grows, and one that shrinks.
    for names in (("A",), ("A", "B"), ("B",)):
        text = await applied(*names)
        assert '\\"B\\"' in text or names == ("A",)
        assert "hunter2" not in text
    redis = api.services.redis
    values = [
        await redis.hgetall(item) async for item in redis.scan_iter("engineroom:console:once*:*:*")
    ]
    assert len(values) == 3
    assert b"hunter2" not in b"".join(value for item in values for value in item.values())


async def test_a_viewer_can_diff(api: Api, client: Client, namespace: str, person: Any) -> None:
    before = await by_kubectl(client, namespace, "mail", replicas=1)
    viewer = await api.key("viewer", namespace)
    changed = {**pool("mail", replicas=2), "metadata": {"name": "mail"}}
    body = {"manifest": manifest(changed), "force": True}
    refused = await api.post(path(namespace), viewer, {**body, "dryRun": True})
    assert (refused.status_code, code(refused)) == (403, "permission_denied")
    response = await api.post(f"{path(namespace)}/diff", viewer, body)
    assert response.status_code == 200, response.text
    [change] = response.json()["objects"]
    assert {"path": "spec.replicas", "before": "1", "after": "2"} in change["changes"]
    assert (await live(client, namespace, "mail")) == before
    # By the cluster's RBAC it is a patch, as for kubectl.
    reader = await person("reader", {**POOLS, "verbs": ["get", "list"]})
    assert (await api.post(f"{path(namespace)}/diff", reader, body)).status_code == 403
    writer = await person("writer", {**POOLS, "verbs": ["get", "create", "patch"]},
                          {**PODS, "verbs": ["create"]})  # fmt: skip
    assert (await api.post(f"{path(namespace)}/diff", writer, body)).status_code == 200


async def test_another_namespace_sees_no_transaction(
    api: Api, client: Client, namespace: str
) -> None:
    admin = await api.key("admin", namespace)
    done = await api.post(path(namespace), admin, {"manifest": manifest(pool("mail"))})
    other = await api.key("admin", "other")
    where = "/namespaces/other/transactions"
    assert (await api.get(f"{where}/{done.json()['transaction']}", other)).status_code == 404
    assert (await api.get(where, other)).json()["items"] == []


async def test_a_failing_object_undoes_all_others(
    api: Api, client: Client, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await by_kubectl(client, namespace, "mail", replicas=1)
    admin = await api.key("admin", namespace)
    notes = {"example.com/note": "new", "example.com/more": "1"}
    changed = pool("mail", replicas=4)
    changed["metadata"]["annotations"] = notes
    rehearsed = api.services.bundles.put

    async def then_somebody_else(transaction: str, objects: Any) -> None:
        await rehearsed(transaction, objects)
        # Between dry run and write, another client creates the last object.
        await by_kubectl(client, namespace, "zeta")

    monkeypatch.setattr(api.services.bundles, "put", then_somebody_else)
    text = manifest(pool("bills"), changed, pool("zeta"))
    answer = await api.post(path(namespace), admin, {"manifest": text, "force": True})
    assert (answer.status_code, code(answer)) == (409, "manifest_undone")
    assert await live(client, namespace, "bills") is None
    after = await live(client, namespace, "mail")
    assert after is not None
    assert content(after) == content(before)
    assert after["metadata"]["annotations"] == before["metadata"]["annotations"]
    assert owners(after) == owners(before)
    zeta = await live(client, namespace, "zeta")
    assert zeta is not None
    assert zeta["metadata"]["annotations"] == {"example.com/note": "by hand"}
    log = (await api.get(f"/namespaces/{namespace}/transactions", admin)).json()["items"]
    assert [item["status"] for item in log] == ["rolled_back"]


async def test_an_undo_keeps_concurrent_changes(api: Api, client: Client, namespace: str) -> None:
    before = await by_kubectl(client, namespace, "mail", replicas=1)
    wanted = {**pool("mail", replicas=4), "metadata": {"name": "mail", "namespace": namespace}}
    after = await client.apply(
        WORKERPOOLS, wanted, field_manager="engineroom-api", dry_run=True, force=True
    )
    planned = applying.PlannedObject(
        "engineroom.dev/v1alpha1", "WorkerPool", namespace, "mail", "update", before, wanted, after
    )
    await api.services.bundles.put("t1", [planned])
    applier = applying.Applier(client, api.services.bundles, _clock())
    step = _step("t1")
    await applier.apply(step)
    await client.merge_patch(
        WORKERPOOLS, namespace, "mail", {"metadata": {"labels": {"other": "x"}}},
        field_manager="somebody",
    )  # fmt: skip
    for _ in range(2):  # an undo may be called again
        await applier.undo(step)
    now = await live(client, namespace, "mail")
    assert now is not None
    assert now["spec"]["replicas"] == 1
    assert now["metadata"]["labels"] == {"team": "mail", "other": "x"}
    assert ANNOTATION not in now["metadata"]["annotations"]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "body.manifest"),
        ("# nothing\n", "body.manifest"),
        ("- a\n", "document at line 1: (document)"),
        ("apiVersion: v1\nkind: Secret\nmetadata: {name: x}\n", "document at line 1: kind"),
        (
            manifest({**pool("a"), "metadata": {"name": "a", "namespace": "kube-system"}}),
            "document at line 1: metadata.namespace",
        ),
        (
            manifest({**pool("a"), "metadata": {"name": "a", "ownerReferences": []}}),
            "document at line 1: metadata.ownerReferences",
        ),
    ],
)
async def test_a_forbidden_object_is_named(api: Api, namespace: str, text: str, field: str) -> None:
    answer = await api.post(path(namespace), await api.key("admin"), {"manifest": text})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field


async def test_invalid_yaml_and_specs_change_nothing(
    api: Api, client: Client, namespace: str
) -> None:
    admin = await api.key("admin")
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\n" + "c: [*b, *b]\n" * 40
    for text in ("a: [", "a: !!python/object:os.system {}", bomb, "a: 1\na: 2\n"):
        answer = await api.post(path(namespace), admin, {"manifest": text})
        assert answer.status_code == 422, answer.text
    text = manifest(pool("good"), pool("bad", autoscaling={"minReplicas": 9, "maxReplicas": 1}))
    answer = await api.post(path(namespace), admin, {"manifest": text})
    assert (answer.status_code, code(answer)) == (422, "invalid_spec")
    assert await live(client, namespace, "good") is None


async def test_rbac_decides_what_kubernetes_users_may_apply(
    api: Api, client: Client, namespace: str, person: Any
) -> None:
    verbs = ["get", "create", "patch"]
    without_pods = await person("editor", {**POOLS, "verbs": verbs})
    text = {"manifest": manifest(pool("mail"))}
    refused = await api.post(path(namespace), without_pods, text)
    assert (refused.status_code, code(refused)) == (403, "permission_denied")
    assert "create pods" in refused.json()["detail"]
    token = await person("author", {**POOLS, "verbs": verbs}, {**PODS, "verbs": ["create"]})
    done = await api.post(path(namespace), token, text)
    assert done.status_code == 200, done.text


async def test_a_repeated_apply_is_one_transaction(
    api: Api, client: Client, namespace: str
) -> None:
    admin = await api.key("admin", namespace)
    text = {"manifest": manifest(pool("mail"))}
    first = await api.post(path(namespace), admin, text, idempotency_key="a")
    await client.delete(WORKERPOOLS, namespace, "mail")
    again = await api.post(path(namespace), admin, text, idempotency_key="a")
    assert again.json() == first.json()
    assert await live(client, namespace, "mail") is None


def test_a_merge_patch_transforms_one_object_into_the_other() -> None:
    source = {"a": 1, "b": {"c": [1], "d": 2}, "e": {}}
    target = {"a": 1, "b": {"c": [2]}, "f": 3}
    patch = merge_patch(source, target)
    assert patch == {"b": {"c": [2], "d": None}, "e": None, "f": 3}


# -- killed at every step ------------------------------------------------------------------------

#: The writes of one transaction of three objects (a creation is two, an update one), and one more,
#: that kills nothing: the process dies before and after each write.
STEPS = 6


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(STEPS))
async def test_a_kill_at_every_write_leaves_all_or_nothing(
    api: Api,
    client: Client,
    namespace: str,
    control_plane: Cluster,
    redis: RedisServer,
    tmp_path: Path,
    number: int,
    after: bool,
) -> None:
    before = await by_kubectl(client, namespace, "mail", replicas=1)
    changed = {**pool("mail", replicas=4), "metadata": {"name": "mail"}}
    bundle = tmp_path / "manifest.yaml"
    bundle.write_text(manifest(pool("alpha"), changed, pool("zeta")))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.console.dying",
        str(control_plane.kubeconfig), redis.url, namespace, str(bundle), str(number),
        "after" if after else "before",
        cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}/operator"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    died = process.returncode == -signal.SIGKILL
    assert died or process.returncode == 0, errors.decode()

    async def ended() -> str:
        # This process is the other replica; its own loop looks for what is left too.
        with contextlib.suppress(Exception):
            await api.services.coordinator.recover()
        record = await api.services.sagas.read("crash")
        return "" if record is None or record.ended is None else record.status

    record = await api.services.sagas.read("crash")
    status = await eventually("the saga has ended", ended, 10) if record else "never begun"
    names = {o["metadata"]["name"] for o in (await client.list(WORKERPOOLS, namespace))[0]}
    mail = await live(client, namespace, "mail")
    assert mail is not None
    if status == "committed":
        assert names == {"alpha", "mail", "zeta"}
        assert mail["spec"]["replicas"] == 4
    else:
        assert status in {"rolled_back", "never begun"}
        assert names == {"mail"}
        assert content(mail) == content(before)
        assert owners(mail) == owners(before)
    assert died or output.decode().strip() == "committed"

    async def recorded() -> list[dict[str, Any]]:
        records = [dict(item.body) for item in await api.services.audit.read(0, 500)]
        return [record for record in records if record["action"] == "transaction.recover"]

    if record and died:
        [entry] = await eventually("its end is in the audit log", recorded, 10)
        assert (entry["who"], entry["namespace"], entry["outcome"]) == ("test", namespace, "done")
        assert entry["details"] == {"transaction": "crash", "ended": status}
    elif not record:
        assert await recorded() == []


def _step(saga: str) -> Any:
    from engineroom.core.transactions.saga import StepContext

    return StepContext(saga, "object-1", f"{saga}/object-1", 1, {"force": True}, {})


def _clock() -> Any:
    from engineroom.core.clock import SystemClock

    return SystemClock()
