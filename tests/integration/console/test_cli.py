"""The command line through the API process, and the same commands through a kubeconfig."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio
import redis as redis_client

from engineroom.api import ANNOTATION_DRAIN_PODS
from engineroom.kube.client.errors import NotFound
from engineroom.kube.client.resources import (
    RATELIMITPOLICIES,
    WORKERPOOLS,
)
from engineroom.manifests.apply import content
from engineroom.tasks import Reporter, Task, Tasks
from tests.integration import releases
from tests.integration.console.api import ADMIN_PASSWORD, POOLS, manifest, pool
from tests.integration.console.command import CODE, Command, kubeconfig_of
from tests.integration.console.process import ApiProcess, api_process
from tests.integration.pools import eventually, record_owned
from tests.integration.ratelimit.policies import policy
from tests.integration.test_cli import Place
from tests.integration.test_cli import kubeconfig_of as release_user
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from engineroom.kube.client.client import Client
    from tests.cluster.api import Cluster
    from tests.support import RedisServer

pytestmark = pytest.mark.usefixtures("namespace")


@pytest.fixture(scope="module")
def process(
    control_plane: Cluster, redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiProcess]:
    log = tmp_path_factory.mktemp("api") / "log"
    with redis_client.Redis.from_url(redis.url) as connection:
        connection.flushall()
    with api_process(control_plane.kubeconfig, redis.url, log) as running:
        running.log = log  # type: ignore[attr-defined]
        yield running


@pytest.fixture
def command(tmp_path: Path, control_plane: Cluster, namespace: str) -> Command:
    return Command(tmp_path / "home", control_plane.kubeconfig, namespace)


@pytest_asyncio.fixture
async def admin(command: Command, process: ApiProcess) -> AsyncIterator[Command]:
    """A command that is logged in as the administrator."""
    sign_in(command, process)
    yield command


def sign_in(command: Command, process: ApiProcess) -> None:
    done = command.run(
        "login", "--server", process.url, "--user", "admin", "--password-stdin",
        said=ADMIN_PASSWORD + "\n",
    )  # fmt: skip
    assert "as user:admin" in done.stdout


async def live(client: Client, namespace: str, name: str) -> dict[str, Any] | None:
    try:
        return await client.get(WORKERPOOLS, namespace, name)
    except NotFound:
        return None


# -- who ----------------------------------------------------------------------------------------


async def test_a_login_is_stored_for_its_owner_and_revoked_by_logout(
    admin: Command, process: ApiProcess
) -> None:
    assert stat.S_IMODE(admin.credentials.stat().st_mode) == 0o600
    stored = json.loads(admin.credentials.read_text())
    assert ADMIN_PASSWORD not in admin.credentials.read_text()
    who = admin.json("whoami")
    assert (who["subject"], who["how"], who["server"]) == ("user:admin", "token", process.url)
    assert "namespace:manifests:apply" in who["access"][admin.namespace]
    admin.run("logout")
    assert json.loads(admin.credentials.read_text()) == {"servers": {}}
    # An earlier copy is worthless.
    admin.credentials.write_text(json.dumps(stored))
    refused = admin.run("whoami", code=5)
    assert "login" in refused.stderr
    log = process.log.read_text()  # type: ignore[attr-defined]
    assert "token.revoke" in log
    secrets = stored["servers"][process.url]
    assert ADMIN_PASSWORD not in log
    assert secrets["access"] not in log
    assert secrets["refresh"] not in log


async def test_a_credentials_file_readable_by_other_users_is_refused(admin: Command) -> None:
    admin.credentials.chmod(0o640)
    assert "can be read by others" in admin.run("whoami", code=2).stderr


async def test_concurrent_refreshes_keep_the_login(admin: Command, process: ApiProcess) -> None:
    stored = json.loads(admin.credentials.read_text())
    stored["servers"][process.url]["expires"] = 1.0
    admin.credentials.write_text(json.dumps(stored))
    with ThreadPoolExecutor(4) as threads:
        ran = [threads.submit(admin.json, "whoami") for _ in range(4)]
    assert {item.result()["subject"] for item in ran} == {"user:admin"}
    now = json.loads(admin.credentials.read_text())["servers"][process.url]
    assert now["refresh"] != stored["servers"][process.url]["refresh"]
    assert stat.S_IMODE(admin.credentials.stat().st_mode) == 0o600
    admin.json("whoami")


async def test_a_wrong_password_stores_nothing(command: Command, process: ApiProcess) -> None:
    done = command.run(
        "login", "--server", process.url, "--user", "admin", "--password-stdin",
        said="wrong\n", code=5,
    )  # fmt: skip
    assert "credentials_invalid" in done.stderr
    assert not command.credentials.exists()


async def test_a_token_is_not_sent_without_tls(command: Command) -> None:
    done = command.run(
        "login", "--server", "http://engineroom.example", "--token-stdin", said="x", code=2
    )
    assert "without TLS" in done.stderr
    assert "not logged in" in command.run("whoami", "--server", "https://x.example", code=5).stderr
    assert "no server is selected" in command.run("whoami", code=2).stderr


@pytest.mark.parametrize("by_exec", [False, True], ids=["token", "exec"])
async def test_a_kubeconfig_login_stores_no_secret(
    command: Command,
    process: ApiProcess,
    control_plane: Cluster,
    namespace: str,
    person: Any,
    tmp_path: Path,
    by_exec: bool,
) -> None:
    token = await person("reader", {**POOLS, "verbs": ["get", "list"]})
    config = kubeconfig_of(
        tmp_path / "person", control_plane.kubeconfig, token, namespace, by_exec=by_exec
    )
    command.run("login", "--server", process.url, KUBECONFIG=str(config))
    assert token not in command.credentials.read_text()
    assert token.rpartition(".")[0] not in command.credentials.read_text()
    command.environment["KUBECONFIG"] = str(config)
    who = command.json("whoami")
    assert who["subject"] == f"kubernetes:system:serviceaccount:{namespace}:reader"
    assert who["access"][namespace] == [
        "namespace:manifests:read", "namespace:pools:read", "self:identity:read",
        "self:sessions:end", "self:sessions:read",
    ]  # fmt: skip
    assert command.run("get").returncode == 0
    # By the cluster's own RBAC, which is asked each time.
    assert "permission_denied" in command.run("keys", "list", code=5).stderr
    assert "may not" in command.run("audit", "list", code=5).stderr


async def test_a_client_certificate_cannot_log_in(command: Command, process: ApiProcess) -> None:
    done = command.run("login", "--server", process.url, "--kube", code=5)
    assert "client certificate" in done.stderr


async def test_a_key_is_printed_once_and_alone(admin: Command, process: ApiProcess) -> None:
    narrow = ["keys", "create", "narrow", "--role", "viewer", "--in", admin.namespace]
    refused = admin.run(*narrow, code=5)
    assert refused.stdout == ""
    assert "you do not have the role viewer in all these namespaces" in refused.stderr
    created = admin.run("keys", "create", "ci", "--scope", "namespace:pools:read")
    key = created.stdout.strip()
    assert "\n" not in key
    assert key not in created.stderr
    listed = admin.json("keys", "list")["items"]
    assert [item["name"] for item in listed] == ["ci"]
    assert key not in json.dumps(listed)
    by_key = {"ENGINEROOM_TOKEN": key, "ENGINEROOM_SERVER": process.url}
    assert admin.run("get", **by_key).returncode == 0
    assert "permission_denied" in admin.run("queues", "list", code=5, **by_key).stderr
    newer = admin.run("keys", "rotate", listed[0]["id"], "--overlap", "0s").stdout.strip()
    assert newer != key
    assert "api_key_invalid" in admin.run("get", code=5, **by_key).stderr
    fresh = next(item for item in admin.json("keys", "list")["items"] if not item["revoked"]
                 and item["id"] != listed[0]["id"])  # fmt: skip
    admin.run("keys", "revoke", fresh["id"], "--yes")
    by_key["ENGINEROOM_TOKEN"] = newer
    assert "api_key_invalid" in admin.run("get", code=5, **by_key).stderr


async def test_signing_keys_are_listed_and_renewed(admin: Command) -> None:
    before = admin.json("signing-keys", "list")["items"]
    newer = admin.json("signing-keys", "rotate", "--yes")["items"]
    assert [item["kid"] for item in newer[1:]] == [item["kid"] for item in before]
    assert newer[0]["state"] == "next"
    listing = admin.run("signing-keys", "list").stdout
    assert newer[0]["kid"] in listing
    assert "signing" in listing
    # Who rotates stays signed in.
    assert "user:admin" in admin.run("whoami").stdout


# -- what was done ------------------------------------------------------------------------------


async def test_the_audit_log_is_verified_at_the_server_and_in_an_export(
    admin: Command, tmp_path: Path, process: ApiProcess
) -> None:
    admin.run("keys", "create", "one")
    checked = admin.run("audit", "verify").stdout
    assert "intact" in checked
    anchor = checked.strip().rpartition(" ")[2]
    admin.run("keys", "create", "two")
    assert "intact" in admin.run("audit", "verify", "--anchor", anchor).stdout
    number, _, mac = anchor.partition(":")
    other = f"{number}:{'0' * 64 if mac[0] != '0' else '1' * 64}"
    assert (
        "differs from the anchor" in admin.run("audit", "verify", "--anchor", other, code=1).stdout
    )
    export = tmp_path / "export.json"
    export.write_text(admin.run("audit", "list", "--all", "-o", "json").stdout)
    secret = {"ENGINEROOM_API_SECRET": "s" * 48}
    offline = ["audit", "verify", "--file", str(export)]
    assert "installation's secret" in admin.run(*offline, code=2).stderr
    assert "intact" in admin.run(*offline, **secret).stdout
    assert "intact" in admin.run(*offline, "--anchor", anchor, **secret).stdout
    # The pods' own output says the same.
    lines = tmp_path / "log"
    lines.write_bytes(process.log.read_bytes())  # type: ignore[attr-defined]
    assert "intact" in admin.run("audit", "verify", "--file", str(lines), **secret).stdout
    document = json.loads(export.read_text())
    edited = json.loads(json.dumps(document))
    edited["items"][1]["body"]["who"] = "user:nobody"
    shortened = {"items": document["items"][:1] + document["items"][2:]}
    for said, problem in (
        (edited, "record 2: it or an earlier record was edited"),
        (shortened, "record 2: missing"),
    ):
        export.write_text(json.dumps(said))
        assert problem in admin.run(*offline, code=1, **secret).stdout
    export.write_text("{}")
    assert "no record" in admin.run(*offline, code=1, **secret).stdout


async def test_sessions_are_listed_and_ended(admin: Command, process: ApiProcess) -> None:
    body = {"name": "admin", "password": ADMIN_PASSWORD}
    async with httpx.AsyncClient(base_url=process.url) as http:
        opened = (await http.post("/api/v1/sessions", json=body)).json()["session"]
    listed = admin.json("sessions", "list")["items"]
    assert opened["handle"] in [item["handle"] for item in listed]
    admin.run("sessions", "end", opened["handle"], "--yes")
    assert "not_found" in admin.run("sessions", "end", opened["handle"], "--yes", code=4).stderr
    admin.run("sessions", "end", "--all", "--of", "user:admin", "--yes")
    # That was our own login too.
    assert "has expired or was revoked" in admin.run("whoami", code=5).stderr


# -- commands that were there before --------------------------------------------------------------


async def test_pools_queues_and_jobs_go_through_the_api(
    admin: Command, client: Client, redis: RedisServer
) -> None:
    namespace = admin.namespace
    queue = f"mail-{namespace}"
    spec = {"queues": [{"name": queue}], "autoscaling": {"minReplicas": 0, "maxReplicas": 3}}
    manifest = pool("mail", **spec)
    manifest["metadata"] |= {"namespace": namespace, "labels": {"team": "mail"}}
    await client.apply(WORKERPOOLS, manifest, field_manager="kubectl")
    await record_owned(client, manifest)
    await client.apply(
        WORKERPOOLS,
        {**pool("bills", replicas=1), "metadata": {"namespace": namespace, "name": "bills"}},
        field_manager="kubectl",
    )
    names = admin.run("get", "-o", "name").stdout.split()
    assert [name.rpartition("/")[2] for name in names] == ["bills", "mail"]
    assert "mail" in admin.run("get", "-l", "team=mail").stdout
    mail = admin.json("get", "mail")
    assert "template" not in mail["spec"]
    admin.run("scale", "bills", "3")
    admin.run("scale", "mail", "--max", "7")
    admin.run("pause", "mail", "-d", "in")
    spec = (await client.get(WORKERPOOLS, namespace, "mail"))["spec"]["autoscaling"]
    assert (spec["maxReplicas"], spec["pause"]) == (7, "ScaleIn")
    assert (await client.get(WORKERPOOLS, namespace, "bills"))["spec"]["replicas"] == 3
    admin.run("resume", "mail")
    with redis_client.Redis.from_url(redis.url) as connection:
        tasks = Tasks(connection)
        ours = tasks.enqueue(Task("shop.jobs.send", args=(1, 2), queue=queue)).job_id

        async def seen() -> bool:
            return queue in admin.run("queues", "list", "-o", "name").stdout.split()

        await eventually("the API has seen the pool's queue", seen, 10)
        assert admin.json("queues", "list", queue)["items"][0]["waiting"] == 1
        listed = admin.json("jobs", "list", "--state", "waiting")["items"]
        assert [item["jobId"] for item in listed] == [ours]
        assert admin.json("jobs", "show", ours)["call"]["args"] == [1, 2]
        assert "1 job cancelled" in admin.run("jobs", "cancel", ours, "--yes").stdout
        assert "not_failed" in admin.run("jobs", "retry", ours, code=1).stderr
    assert "no policies in namespace" in admin.run("get", "policies").stderr
    for refused in (
        ["version"],
        ["workers", "clear"],
        ["queues", "empty", queue, "--confirm", queue],
        ["jobs", "list", "--since", "1h"],
        ["scale", "bills", "4", "--dry-run=server"],
    ):
        assert "--context" in admin.run(*refused, code=2).stderr
    everywhere = Command(admin.home, admin.environment["KUBECONFIG"])
    for command in ("get", "top"):
        assert "--context" in everywhere.run(command, "-A", code=2).stderr
    # Past the API, by the kubeconfig.
    config = admin.environment["KUBECONFIG"]
    assert "bills" in admin.run("get", "--kubeconfig", config).stdout


async def stage(admin: Command, client: Client, **spec: Any) -> str:
    """Create a pool `mail` with its own queue, and wait until the API has seen it."""
    queue = f"mail-{admin.namespace}"
    manifest = pool("mail", queues=[{"name": queue}], **spec)
    manifest["metadata"]["namespace"] = admin.namespace
    await client.apply(WORKERPOOLS, manifest, field_manager="kubectl")
    await record_owned(client, manifest)

    async def seen() -> bool:
        return queue in admin.run("queues", "list", "-o", "name").stdout.split()

    await eventually("the API has seen the pool's queue", seen, 10)
    return queue


def fail(redis: redis_client.Redis, queue: str, number: int, function: str) -> list[str]:
    """Create failed jobs."""
    enqueued = Tasks(redis).enqueue_many([Task(function, (n,), queue=queue) for n in range(number)])
    with redis.pipeline(transaction=True) as pipeline:
        pipeline.delete(f"rq:queue:{queue}")
        for place, item in enumerate(enqueued):
            ended = {"status": "failed", "ended_at": "2026-01-01T00:00:00.000000Z"}
            pipeline.hset(f"rq:job:{item.job_id}", mapping=ended)
            pipeline.zadd(f"rq:failed:{queue}", {item.job_id: 1e12 + place})
        pipeline.execute()
    return [item.job_id for item in enqueued]


@pytest.fixture
def rows(redis: RedisServer) -> Iterator[redis_client.Redis]:
    with redis_client.Redis.from_url(redis.url) as connection:
        yield connection


async def test_a_queue_is_paused_and_limited_through_the_api(
    admin: Command, client: Client
) -> None:
    queue = await stage(admin, client)
    assert "is paused" in admin.run("queues", "pause", queue, "--reason", "upgrade").stdout
    assert "already paused" in admin.run("queues", "pause", queue, "--reason", "upgrade").stdout
    limited = admin.run("queues", "limit", queue, "--concurrency", "3", "--rate", "10/s").stdout
    assert "3 at once and 10/s" in limited
    [listed] = admin.json("queues", "list", queue)["items"]
    assert (listed["paused"], listed["reason"]) == (True, "upgrade")
    assert listed["limit"] == {"concurrency": 3, "rate": "10/s"}
    assert "not limited any more" in admin.run("queues", "unlimit", queue).stdout
    assert "had no limit" in admin.run("queues", "unlimit", queue).stdout
    assert "is resumed" in admin.run("queues", "resume", queue).stdout
    assert "was not paused" in admin.run("queues", "resume", queue).stdout
    assert "task_invalid" in admin.run("queues", "limit", queue, "--rate", "x", code=2).stderr
    assert "is not known" in admin.run("queues", "pause", "other", code=2).stderr


async def test_jobs_and_schedules_are_created_through_the_api(
    admin: Command, client: Client, redis: RedisServer
) -> None:
    queue = await stage(admin, client)
    enqueue = ["enqueue", "shop.jobs.send", "-q", queue, "--arg", "1", "--kwarg", 'to="x"']
    enqueued = admin.json(*enqueue, "--unique", "u", "--retry", "2:5", "--priority", "3")
    again = admin.json(*enqueue, "--unique", "u")
    assert (enqueued["created"], again) == (
        True,
        {**enqueued, "created": False, "reason": "unique"},
    )
    job = admin.json("jobs", "show", enqueued["jobId"])
    assert (job["call"]["args"], job["call"]["kwargs"]) == ([1], {"to": "x"})
    assert job["job"]["retriesLeft"] == 2
    later = admin.json(*enqueue, "--delay", "1h", "--id", "later", "--serializer", "json")
    assert later["jobId"] == "later"
    assert admin.json("jobs", "show", "later")["job"]["state"] == "scheduled"
    timed = admin.json(*enqueue, "--ttl", "1d", "--result-ttl", "0", "--failure-ttl", "-1")
    connection = redis_client.Redis.from_url(redis.url)
    fields = connection.hgetall(f"rq:job:{timed['jobId']}")
    assert (fields[b"ttl"], fields[b"result_ttl"], fields[b"failure_ttl"]) == (
        b"86400", b"0", b"-1",
    )  # fmt: skip
    Reporter(connection, timed["jobId"]).report(40, 100, "importing")
    assert "40 of 100 (40%), importing; " in admin.run("jobs", "show", timed["jobId"]).stdout
    large = ["--arg", json.dumps("x" * 300_000)]
    for refused, why in (
        (["--limit", "k", "--concurrency", "1"], "--context"),
        (["--depends-on", enqueued["jobId"]], "--context"),
        (["--unique", "v", "--until", "end"], "--context"),
        (["--timeout", "-1"], "--context"),
        (large, "more than 262144"),
        (["--max-bytes", "10"], "more than 10"),
        (["--queue", "elsewhere"], "not known"),
        (["--queue", "elsewhere", "--create-queue"], "not_found"),
    ):
        code = 4 if "--create-queue" in refused else 2
        assert why in admin.run(*enqueue, *refused, code=code).stderr
    name = f"nightly-{admin.namespace}"
    add = ["schedules", "add", name, "shop.jobs.send", "-q", queue, "--arg", "7"]
    cron = ["--cron", "0 3 * * 1", "--zone", "Europe/Rome", "--jitter", "30s"]
    limited = admin.run(*add, *cron, "--limit", "k", "--concurrency", "1", code=2).stderr
    assert "--context" in limited
    assert f"{name} created" in admin.run(*add, *cron, "--priority", "4", "--ttl", "1h").stdout
    assert "jitter=30.0" in admin.json("schedules", "show", name)["trigger"]
    first = admin.run("schedules", "run", name, "-o", "name").stdout.strip()
    fields = connection.hgetall(f"rq:job:{first}")
    connection.close()
    assert (fields[b"er_priority"], fields[b"ttl"]) == (b"4", b"3600")
    assert "is up to date" in admin.run(*add, "--every", "1h", "--missed", "run-all").stdout
    changed = admin.json("schedules", "show", name)
    assert (changed["missed"], changed["version"]) == ("run_all", 2)
    assert admin.json("schedules", "pause", name)["paused"] is True
    ran = admin.run("schedules", "run", name, "-o", "name").stdout.strip()
    assert admin.json("jobs", "show", ran)["call"]["args"] == [7]
    assert admin.json("schedules", "resume", name)["next"] is not None
    admin.run("schedules", "delete", name, "--yes")
    assert "does not exist" in admin.run("schedules", "show", name, code=4).stderr


#: Interrupts the command when it first looks how far its operation is.
INTERRUPTED = """
import os, signal
from engineroom.cli.connections.remote.api import Api
get = Api.get
def getting(self, path, **query):
    if "/operations/" in path:
        os.kill(os.getpid(), signal.SIGINT)
    return get(self, path, **query)
Api.get = getting
"""


async def test_many_jobs_are_changed_by_an_operation(
    admin: Command, client: Client, rows: redis_client.Redis
) -> None:
    queue = await stage(admin, client)
    mails = fail(rows, queue, 3, "shop.mail.send")
    fail(rows, queue, 2, "shop.bills.make")
    nothing = admin.run("jobs", "retry", "--function", "shop.none", code=4).stderr
    assert "matches none of the failed jobs" in nothing
    done = admin.run("jobs", "retry", "--function", "shop.mail.*", "--since", "2025-01-01", "-y")
    assert f"matches 3 jobs of queue {queue}" in done.stderr
    assert "3 jobs put back" in done.stdout
    assert sorted(rows.lrange(f"rq:queue:{queue}", 0, -1)) == sorted(m.encode() for m in mails)
    # Interrupted, it goes on at the server and can be looked after.
    left = admin.run(
        "jobs", "retry", "--all", "-q", queue, "-y", code=130, runner=INTERRUPTED + CODE
    )
    assert "the operation goes on" in left.stderr
    operation = admin.run("operations", "list", "-o", "name").stdout.split()[0]
    assert f"operations stop {operation}" in left.stderr
    finished = admin.json("operations", "show", operation, "--wait")
    assert (finished["status"], finished["done"]) == ("done", 2)
    assert "2 jobs put back" in admin.run("jobs", "retry", "--resume", operation).stdout
    assert "is done: 2 of 2" in admin.run("operations", "stop", operation).stdout
    assert rows.llen(f"rq:queue:{queue}") == 5
    cancel = ["jobs", "cancel", "-q", queue, "--state", "waiting", "--yes"]
    canceled = admin.run(*cancel, "--function", "shop.bills.*")
    assert "2 jobs cancelled" in canceled.stdout
    assert sorted(rows.lrange(f"rq:queue:{queue}", 0, -1)) == sorted(m.encode() for m in mails)
    assert [item["action"] for item in admin.json("operations", "list")["items"]] == [
        "cancel", "retry", "retry",
    ]  # fmt: skip
    # By id: one that is not failed keeps no other from being put back.
    [bad] = fail(rows, queue, 1, "shop.mail.send")
    refused = admin.run("jobs", "retry", mails[0], bad, code=1)
    assert f"job {bad} is back on {queue}" in refused.stdout


async def test_pools_are_explained_and_drained_through_the_api(
    admin: Command, client: Client, rows: redis_client.Redis
) -> None:
    namespace = admin.namespace
    await stage(admin, client, replicas=1)
    unseen = admin.json("explain", "mail")
    assert (unseen["decision"], unseen["pods"], unseen["events"]) == (None, None, None)

    async def told(**more: Any) -> None:
        generation = (await client.get(WORKERPOOLS, namespace, "mail"))["metadata"]["generation"]
        status = {"observedGeneration": generation, "decision": "set by hand: 1", "replicas": 1}
        await client.merge_patch(
            WORKERPOOLS, namespace, "mail", {"status": status | more}, subresource="status"
        )

    await told()
    assert "set by hand: 1" in admin.run("explain", "mail").stdout
    assert "1 queue, 0 waiting" in admin.run("status").stdout
    cut_off = {"type": "RedisReachable", "status": "False", "reason": "X", "message": "gone",
               "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}  # fmt: skip
    await told(conditions=[cut_off])
    ill = admin.json("status", code=1)
    assert (ill["healthy"], ill["components"]) == (False, None)
    await told(conditions=None)
    # The pool as a whole: the operator, played here, says when nobody has a job any more.
    assert "take no more jobs" in admin.run("drain", "mail", "--no-wait", "--yes").stdout
    assert (await client.get(WORKERPOOLS, namespace, "mail"))["spec"]["suspend"] is True
    await told(busyWorkers=1)
    busy = admin.run("drain", "mail", "--timeout", "1s", code=1).stderr
    assert "1 of 0 workers hold a job" in busy
    await told(busyWorkers=0)
    assert "is drained" in admin.run("drain", "mail").stdout
    assert "takes jobs again" in admin.run("resume", "mail").stdout
    assert (await client.get(WORKERPOOLS, namespace, "mail"))["spec"]["suspend"] is False
    # One pod, which is known by its worker.
    key = f"rq:worker:w-{namespace}"
    fields = {"er_pool": f"{namespace}/mail", "er_pod": "mail-1-x", "state": "busy",
            "last_heartbeat": "2999-01-01T00:00:00.000000Z", "queues": "mail",
            "er_job": "j", "er_memory": f"{3 * 2**20}", "er_cpu": "0.25"}  # fmt: skip
    rows.hset(key, mapping=fields)
    rows.sadd("rq:workers", key)
    [worker] = admin.json("workers", "list")["items"]
    assert (worker["pool"], worker["pod"], worker["job"]) == (
        f"{namespace}/mail", "mail-1-x", "j",
    )  # fmt: skip
    [pod] = admin.json("top", "workers", "mail")["workers"]
    assert (pod["name"], pod["state"], pod["usage"]) == (
        "mail-1-x", "busy", {"memory": 3 * 2**20, "cpu": 250},
    )  # fmt: skip
    top = {pool["name"]: pool for pool in admin.json("top")["pools"]}
    assert (top["mail"]["memory"], top["mail"]["cpu"]) == (3 * 2**20, 250)
    assert "no worker is in a pod" in admin.run("drain", "mail", "other", code=4).stderr
    late = admin.run("drain", "mail", "mail-1-x", "--timeout", "1s", "--yes", code=1).stderr
    assert "finishing its job" in late
    assert f"resume mail mail-1-x -n {namespace}" in late

    async def asked() -> str:
        notes = (await client.get(WORKERPOOLS, namespace, "mail"))["metadata"].get("annotations")
        return str((notes or {}).get(ANNOTATION_DRAIN_PODS, ""))

    assert await asked() == "mail-1-x"
    assert "takes jobs again" in admin.run("resume", "mail", "mail-1-x").stdout
    assert await asked() == ""
    assert "was not asked" in admin.run("resume", "mail", "mail-1-x").stdout
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(admin.run, "drain", "mail", "mail-1-x", "--yes")

        async def marked() -> bool:
            return await asked() == "mail-1-x"

        await eventually("the pod is asked to leave", marked, 10)
        rows.delete(key)
        rows.srem("rq:workers", key)
        done = await asyncio.to_thread(waiting.result)
    assert "pod mail-1-x is gone" in done.stdout.replace(f"{namespace}/", "")


async def test_errors_of_the_api_have_the_documented_exit_codes(
    admin: Command, process: ApiProcess
) -> None:
    missing = admin.run("get", "nobody", code=4).stderr
    assert "kubernetes_not_found" in missing
    assert "error:" in missing
    wrong = admin.run("keys", "create", "x", "--scope", "nonsense", code=2).stderr
    assert "body.scopes[0]" in wrong
    away = admin.run("whoami", "--server", "http://127.0.0.1:9", code=5).stderr
    assert "not logged in" in away
    by_token = {"ENGINEROOM_TOKEN": "x"}
    unreachable = admin.run("whoami", "--server", "http://127.0.0.1:9", code=3, **by_token).stderr
    assert "cannot reach the API" in unreachable
    refused = admin.run("whoami", "--server", process.url, code=5, **by_token).stderr
    assert "token_invalid" in refused


# -- manifests ----------------------------------------------------------------------------------


@pytest.fixture(params=["api", "kubeconfig"])
def way(request: pytest.FixtureRequest, command: Command, process: ApiProcess) -> Command:
    if request.param == "api":
        sign_in(command, process)
    return command


async def test_apply_and_diff_with_and_without_the_api(
    way: Command, client: Client, tmp_path: Path
) -> None:
    namespace = way.namespace
    before = {**pool("mail", replicas=1)}
    before["metadata"] = {"name": "mail", "namespace": namespace}
    await client.apply(WORKERPOOLS, before, field_manager="kubectl")
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "a.yaml").write_text(manifest(pool("bills"), pool("ads")))
    changed = {**pool("mail", replicas=1), "metadata": {"name": "mail", "labels": {"tier": "one"}}}
    (folder / "b.json").write_text(json.dumps(changed))
    (folder / "notes.txt").write_text("no manifest")
    output = way.run("diff", "-f", str(folder), code=1).stdout
    assert "create WorkerPool/bills" in output
    assert '+ metadata.labels.tier: "one"' in output
    assert await live(client, namespace, "bills") is None
    planned = way.json("apply", "-f", str(folder), "--dry-run=server")
    assert planned["outcome"] == "planned"
    assert await live(client, namespace, "bills") is None
    done = way.run("apply", "-f", str(folder))
    assert done.stdout.splitlines() == [
        "WorkerPool/bills created", "WorkerPool/ads created", "WorkerPool/mail configured",
    ]  # fmt: skip
    bills = await live(client, namespace, "bills")
    assert bills is not None
    # One manager by both ways, and owned as by an apply: what is left out next time goes.
    assert [(f["manager"], f["operation"]) for f in bills["metadata"]["managedFields"]] == [
        ("engineroom-api", "Apply")
    ]
    assert "nothing differs" in way.run("diff", "-f", str(folder)).stdout
    same = way.run("apply", "-f", "-", said=(folder / "a.yaml").read_text())
    names = way.run("apply", "-f", str(folder / "a.yaml"), "-o", "name").stdout.splitlines()
    assert names == ["workerpool.engineroom.dev/bills", "workerpool.engineroom.dev/ads"]
    assert same.stdout.splitlines() == ["WorkerPool/bills unchanged", "WorkerPool/ads unchanged"]
    listed = way.json("transactions", "list")["items"]
    assert [item["status"] for item in listed] == ["committed"]
    steps = way.json("transactions", "show", listed[0]["id"])["steps"]
    assert [step["kind"] for step in steps][-1] == "committed"
    assert listed[0]["id"] in done.stderr
    state = way.home / "state" / "engineroom"
    assert not list(state.rglob("*.objects"))


async def test_problems_name_the_file_and_change_nothing(
    way: Command, client: Client, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(manifest(pool("good")))
    bad.write_text(
        "\n\n" + manifest({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}})
    )
    refused = way.run("apply", "-f", str(good), "-f", str(bad), code=2).stderr
    assert f"{bad}, document at line 3: kind" in refused
    bad.write_text(manifest(pool("bad", autoscaling={"minReplicas": 9, "maxReplicas": 1})))
    refused = way.run("apply", "-f", str(good), "-f", str(bad), code=2).stderr
    assert "WorkerPool/bad: spec.autoscaling" in refused
    for text in ("a: 1\na: 2\n", ""):
        bad.write_text(text)
        way.run("apply", "-f", str(bad), code=2)
    assert await live(client, way.namespace, "good") is None
    other = {**pool("a"), "metadata": {"name": "a", "namespace": "other"}}
    bad.write_text(manifest(pool("b"), other))
    assert "apply each namespace by itself" in way.run("apply", "-f", str(bad), code=2).stderr


async def test_policies_are_linted_and_applied_with_and_without_the_api(
    way: Command, client: Client, tmp_path: Path
) -> None:
    limits = {"apiVersion": "engineroom.dev/v1alpha1", "kind": "RateLimitPolicy",
              **policy(way.namespace)}  # fmt: skip
    file = tmp_path / "limits.yaml"
    file.write_text(manifest(pool("mail"), limits))
    assert "create RateLimitPolicy/api" in way.run("diff", "-f", str(file), code=1).stdout
    assert "RateLimitPolicy/api created" in way.run("apply", "-f", str(file)).stdout
    assert await client.get(RATELIMITPOLICIES, way.namespace, "api")
    assert "nothing differs" in way.run("diff", "-f", str(file)).stdout
    # Without a server, and by whatever is chosen: what is wrong is wrong.
    alone = Command(way.home, "/dev/null")
    assert "2 objects checked" in alone.run("lint", str(file)).stdout
    limits["spec"] = {**limits["spec"], "limits": []}
    file.write_text(manifest(pool("other"), limits))
    assert "spec.limits" in alone.run("lint", str(file), code=1).stdout
    assert "spec.limits" in way.run("apply", "-f", str(file), code=2).stderr
    assert await live(client, way.namespace, "other") is None


async def test_fields_of_other_managers_are_a_conflict_unless_forced(
    way: Command, client: Client, tmp_path: Path
) -> None:
    mine = {**pool("mail", replicas=1), "metadata": {"name": "mail", "namespace": way.namespace}}
    await client.apply(WORKERPOOLS, mine, field_manager="kubectl")
    file = tmp_path / "mail.yaml"
    file.write_text(manifest(pool("mail", replicas=4)))
    refused = way.run("apply", "-f", str(file), code=1).stderr
    assert "kubectl" in refused
    assert "manifest_changed" in refused
    way.run("apply", "-f", str(file), "--force")
    current = await live(client, way.namespace, "mail")
    assert current is not None
    assert current["spec"]["replicas"] == 4


#: Runs the command and kills it by SIGKILL, or interrupts it, at one of its writes.
DYING = """
import os, signal, sys
from engineroom.cli.connections.kubernetes_cluster import KubernetesCluster
number, when, kind = int(os.environ["DIE_AT"]), os.environ["DIE_WHEN"], int(os.environ["DIE_BY"])
send = KubernetesCluster.send
def sending(self, method, path, query=None, body=None, content_type=""):
    global number
    write = method != "GET" and not (query or {}).get("dryRun")
    if write:
        number -= 1
    if write and number == -1 and when == "before":
        os.kill(os.getpid(), kind)
    answer = send(self, method, path, query, body, content_type)
    if write and number == -1 and when == "after":
        os.kill(os.getpid(), kind)
    return answer
KubernetesCluster.send = sending
"""


@pytest.mark.parametrize(
    ("number", "when"),
    [
        (0, "before"),
        (0, "after"),
        (1, "after"),
        (2, "before"),
        (2, "after"),
        (4, "before"),
        (4, "after"),
        (5, "before"),
    ],
)
async def test_recovery_after_a_kill_at_every_write(
    command: Command, client: Client, tmp_path: Path, number: int, when: str
) -> None:
    namespace = command.namespace
    mine = {**pool("mail", replicas=1), "metadata": {"name": "mail", "namespace": namespace}}
    before = await client.apply(WORKERPOOLS, mine, field_manager="kubectl")
    file = tmp_path / "manifest.yaml"
    file.write_text(manifest(pool("alpha"), pool("mail", replicas=4), pool("zeta")))
    arguments = ["apply", "-f", str(file), "--force"]
    die = {"DIE_AT": str(number), "DIE_WHEN": when, "DIE_BY": "9"}
    # A creation is two writes and an update one: five, and one that kills nothing.
    code = 0 if number == 5 else -9
    command.run(*arguments, code=code, runner=DYING + CODE, **die)
    if code:
        if number == 0:
            assert "--recover" in command.run(*arguments, code=1).stderr
        left = list((command.home / "state").rglob("*.objects"))
        assert [stat.S_IMODE(item.stat().st_mode) for item in left] == [0o600]
        recovered = command.json("apply", "--recover")["items"]
        assert [item["status"] for item in recovered] == ["rolled_back"]
        names = {o["metadata"]["name"] for o in (await client.list(WORKERPOOLS, namespace))[0]}
        assert names == {"mail"}
        now = await live(client, namespace, "mail")
        assert now is not None
        assert content(now) == content(before)
        assert [f["manager"] for f in now["metadata"]["managedFields"]] == ["kubectl"]
    assert not list((command.home / "state").rglob("*.objects"))
    if (number, when) == (0, "after"):
        assert "nothing to put back" in command.run("apply", "--recover").stderr
        command.run(*arguments)


@pytest.mark.parametrize("kind", ["2", "15"], ids=["SIGINT", "SIGTERM"])
async def test_an_interrupted_apply_is_undone(
    command: Command, client: Client, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "manifest.yaml"
    file.write_text(manifest(pool("alpha"), pool("beta"), pool("zeta")))
    die = {"DIE_AT": "2", "DIE_WHEN": "after", "DIE_BY": kind}
    done = command.run("apply", "-f", str(file), code=130, runner=DYING + CODE, **die)
    assert "rolling back" in done.stderr
    assert (await client.list(WORKERPOOLS, command.namespace))[0] == []
    assert "nothing to put back" in command.run("apply", "--recover").stderr


async def test_a_running_apply_is_not_recovered(
    command: Command, client: Client, tmp_path: Path
) -> None:
    file = tmp_path / "manifest.yaml"
    file.write_text(manifest(pool("alpha"), pool("beta")))
    stopped = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DYING + CODE, "-n", command.namespace, "apply", "-f", str(file),
        env=command.environment | {"DIE_AT": "2", "DIE_WHEN": "before", "DIE_BY": "19"},
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:

        async def standing() -> bool:
            state = await asyncio.to_thread(Path(f"/proc/{stopped.pid}/stat").read_text)
            return state.rpartition(")")[2].split()[0] == "T"

        await eventually("it has stopped itself", standing, 30)
        assert "nothing to put back" in command.run("apply", "--recover").stderr
        stopped.send_signal(signal.SIGCONT)
        assert await asyncio.wait_for(stopped.wait(), 30) == 0
    finally:
        if stopped.returncode is None:
            stopped.kill()
            await stopped.wait()
    assert await live(client, command.namespace, "beta") is not None


# -- a browser ----------------------------------------------------------------------------------


async def test_a_login_creates_links(admin: Command, process: ApiProcess) -> None:
    link = admin.run("ui", "--no-browser").stdout.strip()
    base, _, code = link.partition("/sign-in#")
    assert base == process.url
    async with httpx.AsyncClient(base_url=process.url) as browser:
        assert "sign-in.js" in (await browser.get("/sign-in")).text
        done = await browser.post("/api/v1/sign-in-links/redeem", json={"code": code})
        assert done.json()["session"]["subject"] == "user:admin"
        again = await browser.post("/api/v1/sign-in-links/redeem", json={"code": code})
    assert again.status_code == 401
    log = await asyncio.to_thread(process.log.read_text)  # type: ignore[attr-defined]
    assert "link.make" in log
    assert code not in log


@contextlib.asynccontextmanager
async def signing_in(
    command: Command, folder: Path, ports: dict[str, int], *arguments: str
) -> AsyncIterator[str]:
    """Run `ui` until Ctrl-C at the end of the block; the link that it prints."""
    running = await asyncio.create_subprocess_exec(
        *releases.PROGRAM, *arguments, "ui",
        env=command.environment | releases.environment(folder, ports),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert running.stdout is not None
        yield (await asyncio.wait_for(running.stdout.readline(), 60)).decode().strip()
        running.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(running.wait(), 20) == 0
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()


@pytest.mark.parametrize("who", ["token", "certificate"])
async def test_sign_in_with_a_kubeconfig_only(
    command: Command,
    process: ApiProcess,
    control_plane: Cluster,
    person: Any,
    tmp_path: Path,
    who: str,
) -> None:
    namespace = command.namespace
    place = Place(control_plane, namespace)
    pods = releases.install(place, "api", admin=ADMIN_PASSWORD)
    subject = "user:admin"
    if who == "token":
        subject = f"kubernetes:system:serviceaccount:{namespace}:reader"
        # The rights of docs/cli.md.
        rules = [
            {"apiGroups": ["apps"], "resources": ["deployments", "replicasets"], "verbs": ["list"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        ]
        token = await person("reader", {**POOLS, "verbs": ["get"]}, *rules)
        command.environment["KUBECONFIG"] = str(
            kubeconfig_of(tmp_path / "person", control_plane.kubeconfig, token, namespace)
        )
    port = int(process.url.rpartition(":")[2])
    async with signing_in(command, tmp_path, {namespace: port}, "-n", namespace) as link:
        base, _, code = link.partition("/sign-in#")
        assert base.startswith("http://127.0.0.1:")
        assert base != process.url
        async with httpx.AsyncClient(base_url=base) as browser:
            done = await browser.post("/api/v1/sign-in-links/redeem", json={"code": code})
            assert done.json()["session"]["subject"] == subject, done.text
            name, _, value = done.headers["set-cookie"].partition(";")[0].partition("=")
            # A browser takes a Secure cookie of the loopback address; this client does not.
            response = await browser.get("/api/v1/whoami", headers={"cookie": f"{name}={value}"})
            assert response.json()["how"] == "session"
    assert {tuple(entry) for entry in releases.opened(tmp_path)} == {
        (namespace, pods["api"], "8000")
    }


async def test_a_tenants_copy_of_the_api_receives_no_credential(
    command: Command, process: ApiProcess, control_plane: Cluster, tmp_path: Path
) -> None:
    """It is older and has the same names and labels; the victim is a cluster administrator."""
    link = b'{"path": "/sign-in#stolen", "code": "stolen", "expires": 1}'
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(link)}\r\nConnection: close\r\n\r\n"
    attacker = releases.Recorder(head.encode() + link)
    system = Place(control_plane, command.namespace)
    command.namespace = ""
    account = f"{system.namespace}:victim"
    with releases.namespace(control_plane, f"a-tenant-{system.namespace}") as tenant:
        releases.install(tenant, "api")
        config = release_user(system, "victim", tmp_path)
        grant = ("clusterrolebinding", system.namespace)
        admin = ("--clusterrole=cluster-admin", f"--serviceaccount={account}")
        system.kubectl("create", *grant, *admin)
        command.environment["KUBECONFIG"] = str(config)
        ports = {
            tenant.namespace: attacker.port,
            system.namespace: int(process.url.rpartition(":")[2]),
        }
        try:
            # The copy alone; and the installation without an API.
            forwarded = {"runner": releases.FORWARDED + CODE}
            forwarded |= releases.environment(tmp_path, ports)
            done = command.run("ui", "--no-browser", code=4, **forwarded)
            assert "--system-namespace" in done.stderr
            with releases.registered(system):
                done = command.run("ui", "--no-browser", code=4, **forwarded)
                assert f"no API process is installed in namespace {system.namespace}" in done.stderr
                assert releases.opened(tmp_path) == []
                pods = releases.install(system, "api", admin=ADMIN_PASSWORD)
                async with signing_in(command, tmp_path, ports) as printed:
                    assert "/sign-in#" in printed
        finally:
            system.kubectl("delete", *grant)
            attacker.close()
    assert {tuple(entry) for entry in releases.opened(tmp_path)} == {
        (system.namespace, pods["api"], "8000")
    }
    assert attacker.received == []


async def test_without_an_api_process_there_is_no_link(command: Command) -> None:
    assert "no API process" in command.run("ui", "--no-browser", code=4).stderr
