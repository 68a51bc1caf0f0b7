"""Writes records.json: one of each thing that Engineroom stores in Redis.

Commit 19f616c wrote the file. Run this program with that commit's packages on PYTHONPATH, because
its imports have the names of that time::

    PYTHONPATH=operator:webhooks python write.py records.json

It starts a redis-server of its own. All secrets are dummies, and times are those of ``NOW``.
"""

import asyncio
import base64
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import redis
import redis.asyncio
from engineroom.auth.api_keys import ApiKeys
from engineroom.auth.attempts import Attempts
from engineroom.auth.chain import derived
from engineroom.auth.id_token import Identity
from engineroom.auth.keys import Algorithm, Keys, RedisKeyStore
from engineroom.auth.links import Bound, Links
from engineroom.auth.lockout import ACCOUNT, RedisCounter
from engineroom.auth.revocation import Kind, Revocations
from engineroom.auth.sessions import Sessions
from engineroom.console.operations import Action, Operation, Operations
from engineroom.console.people import People
from engineroom.ratelimit.channel import keys_of
from engineroom.ratelimit.document import CompiledPolicy, Target, part_hash, part_of, write
from engineroom.ratelimit.follow import Follower
from engineroom.ratelimit.limiter import Limiter
from engineroom.ratelimit.model import (
    Distribution,
    DistributionMode,
    Policy,
    Rate,
)
from engineroom.ratelimit.model import (
    Limit as RateLimit,
)
from engineroom.ratelimit.publish import looked, replace

from engineroom.auth.audit import AuditLog, Entry, Outcome
from engineroom.auth.errors import TokenError
from engineroom.auth.permissions import Grant
from engineroom.auth.tokens import Tokens
from engineroom.console.idempotency import Idempotency, Kept
from engineroom.core.clock import FakeClock
from engineroom.core.sealing import Sealer
from engineroom.core.transactions.saga import Coordinator, Line, Saga, Step
from engineroom.core.transactions.saga import Kind as LineKind
from engineroom.core.transactions.sagalog import RedisSagaLog
from engineroom.manifests.apply import Planned, RedisBundles
from engineroom.queue import keys
from engineroom.tasks import (
    AsyncTasks,
    Callback,
    Cron,
    Every,
    Limit,
    Missed,
    Once,
    Retry,
    Schedule,
    State,
    Task,
    Tasks,
    Unique,
    Where,
    chain,
    fan_in,
)
from engineroom.tasks.results import Reporter

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
SECRET = b"a dummy secret for stored records" * 2
PORT = 16399
GRANTS = [Grant("viewer", frozenset({"shop"})), Grant.everywhere("operator")]


def jobs(client: redis.Redis) -> dict[str, str]:
    """Jobs of every kind, with ids that name them; returns what only the library chose."""
    tasks = Tasks(client)
    product = "operator.mul"
    tasks.enqueue(Task("operator.mul", (6, 7), job_id="finished", queue="done"))
    tasks.enqueue(Task("operator.truediv", (1, 0), job_id="failed", queue="done"))
    runtime = subprocess.Popen(
        [sys.executable, "-m", "engineroom_worker"],
        env={**os.environ, "ENGINEROOM_REDIS_URL": f"redis://127.0.0.1:{PORT}/0",
             "ENGINEROOM_POOL": "shop/mail", "ENGINEROOM_POD_NAME": "pod-1",
             "ENGINEROOM_QUEUES": '[{"name": "done", "priority": 0}]', "ENGINEROOM_WORKERS": "1",
             "ENGINEROOM_METRICS_PORT": "16398"},
    )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while {client.hget(keys.job(each), "status") for each in ("finished", "failed")} != {
            b"finished", b"failed"
        }:  # fmt: skip
            assert time.monotonic() < until
            time.sleep(0.1)
        time.sleep(1)
    finally:
        runtime.terminate()
        runtime.wait(30)
    tasks.enqueue(Task(product, (2, 3), job_id="plain"))
    tasks.enqueue(
        Task(
            product, (3, 4), {}, job_id="full", queue="mail", timeout=120, result_ttl=900,
            failure_ttl=800, retry=Retry(3, (10, 60, 300)), meta={"customer": 7}, priority=5,
            description="all fields", on_success=Callback("builtins.print", 30),
            on_failure=Callback("builtins.print"),
        )
    )  # fmt: skip
    tasks.enqueue(Task(product, (4, 5), job_id="delayed", delay=timedelta(days=3000)))
    tasks.enqueue(Task(product, (5, 6), job_id="unique", unique=Unique("order-7", 3600)))
    tasks.enqueue(Task(product, (5, 7), job_id="unique-end", unique=Unique("order-8", 3600, "end")))
    limit = Limit("customer-7", concurrency=2, rate="10/s")
    tasks.enqueue(Task(product, (6, 7), job_id="limited", limit=limit))
    tasks.enqueue(Task(product, (7, 8), job_id="waits", depends_on=["plain"]))
    tasks.enqueue_flow(
        chain(
            Task(product, (1, 2), job_id="flow-1"),
            fan_in(
                [Task(product, (2, 2), job_id="flow-2"), Task(product, (3, 2), job_id="flow-3")],
                Task(product, (4, 2), job_id="flow-4"),
            ),
        )
    )
    tasks.limit_queue("mail", concurrency=5, rate="100/min")
    tasks.create_queue("empty")
    tasks.pause_queue("reports", "the database moves")
    tasks.enqueue(Task(product, (8, 9), job_id="paused", queue="reports"))
    Reporter(client, "plain").report(3, 10, "three of ten")
    client.set(keys.crashes("full"), 2)
    client.set(keys.pool_suspended("shop/mail"), 1)
    client.set(keys.drain("worker-1"), "drain-1")
    requeueing = tasks.start_requeueing("done", Where(exception="*ZeroDivision*"))
    nightly = Cron("30 2 * * *", zone="Europe/Berlin", jitter=5)
    tasks.put_schedule(Schedule("nightly", nightly, Task(product, (9, 9)), Missed.RUN_ALL, 90))
    tasks.put_schedule(Schedule("often", Every(300, jitter=60), Task(product, (9, 8))))
    once = NOW.timestamp() + 300 * 86400
    tasks.put_schedule(Schedule("once", Once(once), Task(product, (9, 7), queue="mail")))
    tasks.pause_schedule("often")
    return {"requeueing": requeueing.operation}


async def records(clock: FakeClock) -> dict[str, str]:
    client = redis.asyncio.Redis(port=PORT)
    made: dict[str, str] = {}

    audit = AuditLog(client, clock, derived(SECRET, "audit"), out=io.StringIO())
    for number in range(3):
        target = f"workerpool/shop/{number}"
        await audit.write(Entry("ada", "pools.pause", target, Outcome.DONE, details={"n": number}))
    signing = Keys(RedisKeyStore(client, derived(SECRET, "signing")), clock)
    await signing.ensure()
    await signing.rotate(overlap=timedelta(days=30), algorithm=Algorithm.ES256)
    revocations = Revocations(client, clock)
    await revocations.read(block_ms=1)
    tokens = Tokens(client, signing, revocations, clock, issuer="https://shop", audience="shop")
    pair = await tokens.issue("ada", GRANTS, ["namespace:jobs:read"])
    made |= {"access": pair.access, "refresh": pair.refresh}
    revoked = await tokens.issue("bob")
    made |= {"revoked": revoked.access}
    await revocations.revoke(Kind.FAMILY, revoked.family)
    await tokens.revoke_subject("eve")
    api_keys = ApiKeys(client, clock, [derived(SECRET, "api-keys")])
    key = await api_keys.create(
        "ada", "deploy", GRANTS, scopes=["namespace:jobs:read"], rate=5, lifetime=timedelta(days=9)
    )
    over = await api_keys.create("ada", "old", GRANTS)
    await api_keys.revoke(over.key.id)
    made |= {"key": key.secret, "revoked_key": over.secret}
    sessions = Sessions(client, clock, derived(SECRET, "sessions"))
    session = await sessions.open("ada", GRANTS, address="198.51.100.7", agent="Firefox")
    made |= {"session": session.id, "csrf": session.csrf}
    links = Links(client, clock, derived(SECRET, "links"))
    made["link"], _ = await links.make(Bound("ada", tuple(GRANTS)))
    counter = RedisCounter(client, clock)
    for _ in range(ACCOUNT.burst):
        await counter.take("account:ada", ACCOUNT)
    wrong = Attempts(counter)
    for _ in range(60):
        await wrong.failed("198.51.100.9", TokenError("signature", "wrong"))
    people = People(client, clock, derived(SECRET, "people"), remember=90 * 86400)
    identity = Identity("https://idp.example", "u-1", "Ada", "ada@example.org", ("dev", "ops"))
    await people.signed_in(identity)
    await people.bar("https://idp.example#u-2")

    sealed = RedisSagaLog(client, sealer=Sealer(derived(SECRET, "sagas"), "saga"))
    plain = RedisSagaLog(client, prefix="{app:sagas}")
    saga = Saga("order", (Step("seat", lambda _: "12A", lambda _: None),
                          Step("bill", lambda _: {"total": 7}, lambda _: None)))  # fmt: skip
    for log in (sealed, plain):
        await Coordinator(log, [saga]).run("order", "o-done", {"seat": "12A"}, by="ada")
        epoch = await log.begin("o-open", "order", {"seat": "12B"}, "bob", 0.001)
        assert epoch is not None
        await log.append("o-open", epoch, [Line(LineKind.DOING, "seat")], 0.001)
        epoch = await log.begin("o-stuck", "order", None, "bob", 60)
        assert epoch is not None
        lines = [Line(LineKind.DOING, "seat"), Line(LineKind.FAILED, "seat", "no"),
                 Line(LineKind.UNDOING, "seat"), Line(LineKind.STUCK, "seat", "no")]  # fmt: skip
        await log.append("o-stuck", epoch, lines, 60)
    bundles = RedisBundles(client, clock, derived(SECRET, "manifests"))
    pool = {"metadata": {"name": "mail"}, "spec": {"replicas": 2}}
    planned = Planned(
        "engineroom.dev/v1alpha1", "WorkerPool", "shop", "mail", "create", None, pool, pool
    )
    await bundles.put("t-1", [planned])
    operations = Operations(client, AsyncTasks(client), clock, derived(SECRET, "operations"))
    await operations.start(
        Operation(
            "op-1", "shop", Action.RETRY, State.FAILED, ("done",), Where(function="operator.*"),
            "ada", NOW.timestamp(), 1,
        )
    )  # fmt: skip
    answers = Idempotency(client)
    place = await answers.begin("ada", "key-1", b"request")
    await answers.keep(place, Kept(201, {"location": "/jobs/1"}, b'{"id": 1}'), secret=False)

    parts = []
    for name, mode in (("web", DistributionMode.STRICT), ("leased", DistributionMode.LEASED)):
        policy = Policy(
            f"shop/{name}", (RateLimit("all", Rate(10, 60.0)),), distribution=Distribution(mode)
        )
        part = part_of(CompiledPolicy("shop", name, policy, (Target("", "Service", name),)))
        parts.append((part, part_hash(part)))
        if mode is DistributionMode.STRICT:
            with redis.Redis(port=PORT) as sync:
                limiter = Limiter(policy, sync)
                for _ in range(10):
                    assert limiter.hit("ada").allowed
        else:
            with redis.Redis(port=PORT) as sync:
                limiter = Limiter(policy, sync)
                assert limiter.hit("ada").allowed
    document = write("shop", parts, revision=1, lineage="first", before={})
    await replace(client, "shop", "", document)
    await looked(client, "first", all_written=True)
    with redis.Redis(port=PORT) as sync:
        follower = Follower(sync, "shop", identity="pod-1")
        follower.__enter__()
        until = time.monotonic() + 10
        while not sync.exists(keys_of("shop").entries):
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        # Taken before the follower signs off.
        made["dump"] = dump(sync)
        follower.close()
    await client.aclose()
    return made


def dump(client: redis.Redis) -> str:
    stored = {}
    for key in sorted(client.scan_iter()):
        client.persist(key)
        stored[key.decode()] = base64.b64encode(client.dump(key)).decode()
    return json.dumps(stored)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            ["redis-server", "--port", str(PORT), "--dir", folder, "--save", ""],
            stdout=subprocess.DEVNULL,
        )
        try:
            client = redis.Redis(port=PORT)
            until = time.monotonic() + 10
            while time.monotonic() < until:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.05)
            made = jobs(client)
            made |= asyncio.run(records(FakeClock(NOW)))
        finally:
            server.terminate()
            server.wait()
    keys_ = json.loads(made.pop("dump"))
    # Encoded, because scanners of leaked secrets would report these dummies.
    secrets = {name: base64.b64encode(value.encode()).decode() for name, value in made.items()}
    document = {"now": NOW.isoformat(), "secrets": secrets, "keys": keys_}
    Path(sys.argv[1]).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    print(len(keys_), "keys")


if __name__ == "__main__":
    main()
