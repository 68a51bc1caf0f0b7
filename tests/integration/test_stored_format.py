"""Data that an earlier version stored in Redis stays readable, and its jobs run.

``tests/data/stored_format/records.json`` holds one of each thing that Engineroom stores, as
payloads of DUMP without expiry. Commit 19f616c wrote it with ``write.py`` beside it, before modules
and classes were renamed::

    git worktree add /tmp/base 19f616c PYTHONPATH=/tmp/base/operator:/tmp/base/webhooks python
    tests/data/stored_format/write.py records.json
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio

from engineroom.auth.audit.hash_chain import derive_secret
from engineroom.auth.audit.log import AuditLog
from engineroom.auth.errors import ApiKeyError, LockedOutError, TokenError
from engineroom.auth.login.credential_throttle import CredentialThrottle
from engineroom.auth.login.lockout import ACCOUNT, RedisAttemptCounter
from engineroom.auth.login.login_links import LoginLinks
from engineroom.auth.login.sessions import Sessions
from engineroom.auth.permissions import Grant
from engineroom.auth.tokens.access_tokens import Tokens
from engineroom.auth.tokens.api_keys import ApiKeys
from engineroom.auth.tokens.revocation import Revocations
from engineroom.auth.tokens.signing_keys import RedisKeyStore, SigningKeyCache
from engineroom.console.accounts.oidc_users import OidcUsers
from engineroom.console.background.operation_store import OperationStatus, OperationStore
from engineroom.console.idempotency import Idempotency, StoredResponse
from engineroom.core.clock import FakeClock
from engineroom.core.errors import LimitError
from engineroom.core.sealing import Sealer
from engineroom.core.transactions.saga import Coordinator, Saga, Step
from engineroom.core.transactions.sagalog import RedisSagaLog
from engineroom.manifests.apply import RedisBundles
from engineroom.queue import keys
from engineroom.ratelimit.distribution.document import parse_document, parse_head
from engineroom.ratelimit.distribution.policy_follower import Follower
from engineroom.ratelimit.distribution.redis_schema import Acknowledgement, keys_of
from engineroom.ratelimit.limits.limiter import Limiter
from engineroom.tasks import (
    Cron,
    Every,
    JobFilter,
    Missed,
    Once,
    Scheduler,
    State,
    Task,
    Tasks,
    Unique,
)
from tests.integration.runtime.lab import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.support import RedisServer

DATA = json.loads(
    (Path(__file__).parents[1] / "data" / "stored_format" / "records.json").read_text()
)
ROOT = Path(__file__).parents[2]
NOW = datetime.fromisoformat(DATA["now"])
SECRET = b"a dummy secret for stored records" * 2
GRANTS = (Grant("viewer", frozenset({"shop"})), Grant.everywhere("operator"))


def stored(name: str) -> str:
    """Return a dummy credential of the records."""
    return base64.b64decode(DATA["secrets"][name]).decode()


def derived(purpose: str) -> bytes:
    return derive_secret(SECRET, purpose)


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as opened:
        opened.flushall()
        for key, payload in DATA["keys"].items():
            opened.restore(key, 0, base64.b64decode(payload))
        yield opened


@pytest.fixture
async def aio(server: RedisServer, client: redis.Redis) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis.from_url(server.url) as opened:
        yield opened


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW)


@pytest.fixture
def tasks(client: redis.Redis) -> Tasks:
    return Tasks(client)


# -- tasks --------------------------------------------------------------------------------------


def test_jobs_of_every_kind_are_read(tasks: Tasks) -> None:
    states = {
        "plain": State.WAITING,
        "full": State.WAITING,
        "delayed": State.SCHEDULED,
        "unique": State.WAITING,
        "unique-end": State.WAITING,
        "limited": State.WAITING,
        "waits": State.DEFERRED,
        "flow-1": State.WAITING,
        "flow-2": State.DEFERRED,
        "flow-3": State.DEFERRED,
        "flow-4": State.DEFERRED,
        "paused": State.WAITING,
        "finished": State.FINISHED,
        "failed": State.FAILED,
    }
    details = {job_id: tasks.job(job_id) for job_id in states}
    assert {job_id: detail.job.state for job_id, detail in details.items()} == states
    full = details["full"]
    assert (full.timeout, full.result_ttl, full.failure_ttl) == (120, 900, 800)
    assert full.retry_intervals == (10, 60, 300)
    assert (full.job.queue, full.job.description, full.job.crashes) == ("mail", "all fields", 2)
    assert [job.job_id for job in details["flow-4"].depends_on] == ["flow-2", "flow-3"]
    progress = tasks.progress("plain")
    assert progress is not None
    assert (progress.count, progress.total, progress.message) == (3, 10, "three of ten")


def test_results_failures_and_their_categories_are_read(tasks: Tasks) -> None:
    assert tasks.result("finished").value == 42
    (failure,) = tasks.failures("done", JobFilter(exception="*ZeroDivision*")).failures
    assert (failure.job_id, failure.function) == ("failed", "operator.truediv")
    (attempt,) = tasks.attempts("failed")
    assert "ZeroDivisionError" in attempt.exception


def test_queues_with_limits_and_pauses_are_read(tasks: Tasks) -> None:
    counts = {each.name: each for each in tasks.counts()}
    assert counts["mail"].limit is not None
    assert counts["mail"].limit.concurrency == 5
    assert counts["reports"].paused
    assert "empty" in counts


def test_unique_keys_still_hold(tasks: Tasks) -> None:
    again = tasks.enqueue(Task("operator.mul", (1, 1), unique=Unique("order-7", 3600)))
    assert (again.job_id, again.created) == ("unique", False)
    again = tasks.enqueue(Task("operator.mul", (1, 1), unique=Unique("order-8", 3600, "end")))
    assert (again.job_id, again.created) == ("unique-end", False)


def test_a_requeueing_goes_on(tasks: Tasks) -> None:
    assert tasks.carry_on_requeueing(stored("requeueing")).requeued == 1
    assert tasks.job("failed").job.state is State.WAITING


def test_schedules_are_read_and_run(tasks: Tasks, client: redis.Redis) -> None:
    schedules = {each.name: each for each in tasks.schedules()}
    nightly, often, once = (schedules[name] for name in ("nightly", "often", "once"))
    assert nightly.trigger == Cron("30 2 * * *", zone="Europe/Berlin", jitter=5)
    assert (nightly.missed, nightly.grace) == (Missed.RUN_ALL, 90)
    assert isinstance(often.trigger, Every)
    assert often.paused
    assert once.trigger == Once(NOW.timestamp() + 300 * 86400)
    assert tasks.job(tasks.run_schedule("nightly")).job.function == "operator.mul"
    assert once.next is not None
    late = FakeClock(datetime.fromtimestamp(once.next + 1, NOW.tzinfo))
    Scheduler(client, late).once()
    assert tasks.schedule("once").last_job


def test_the_runtime_of_now_runs_stored_jobs(
    server: RedisServer, client: redis.Redis, tasks: Tasks
) -> None:
    import sys

    runtime = subprocess.Popen(
        [sys.executable, "-m", "engineroom_worker"],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "operator"),
            "ENGINEROOM_REDIS_URL": server.url,
            "ENGINEROOM_POOL": "shop/new",
            "ENGINEROOM_POD_NAME": "pod-2",
            "ENGINEROOM_QUEUES": json.dumps(
                [{"name": name, "priority": 0} for name in ("default", "mail", "reports")]
            ),
            "ENGINEROOM_WORKERS": "1",
            "ENGINEROOM_METRICS_PORT": "0",
        },
    )
    products = {
        "plain": 6, "full": 12, "unique": 30, "unique-end": 35, "limited": 42, "waits": 56,
        "flow-1": 2, "flow-2": 4, "flow-3": 6, "flow-4": 8,
    }  # fmt: skip
    try:
        eventually(
            lambda: {client.hget(keys.job(each), "status") for each in products} == {b"finished"},
            "the stored jobs to finish",
            60,
        )
    finally:
        runtime.terminate()
        runtime.wait(30)
    assert {job_id: tasks.result(job_id).value for job_id in products} == products
    assert client.hget(keys.job("paused"), "status") == b"queued"
    again = tasks.enqueue(Task("operator.mul", (1, 1), unique=Unique("order-8", 3600, "end")))
    assert again.created


# -- authentication -----------------------------------------------------------------------------


async def test_tokens_signing_keys_and_revocations(
    aio: redis.asyncio.Redis, clock: FakeClock
) -> None:
    signing = SigningKeyCache(RedisKeyStore(aio, derived("signing")), clock)
    assert len((await signing.jwks())["keys"]) == 2
    revocations = Revocations(aio, clock)
    await revocations.read(block_ms=1)
    tokens = Tokens(aio, signing, revocations, clock, issuer="https://shop", audience="shop")
    claims = await tokens.verify(stored("access"))
    assert (claims.subject, claims.grants) == ("ada", GRANTS)
    assert claims.scopes == frozenset({"namespace:jobs:read"})
    with pytest.raises(TokenError) as caught:
        await tokens.verify(stored("revoked"))
    assert caught.value.reason == "revoked_family"
    assert await tokens.ended("eve", NOW.timestamp())
    new = await tokens.refresh(stored("refresh"))
    assert (await tokens.verify(new.access)).subject == "ada"


async def test_api_keys(aio: redis.asyncio.Redis, clock: FakeClock) -> None:
    api_keys = ApiKeys(aio, clock, [derived("api-keys")])
    key = await api_keys.verify(stored("key"))
    assert (key.owner, key.name, key.grants, key.rate) == ("ada", "deploy", GRANTS, 5)
    assert key.expires == NOW.timestamp() + 9 * 86400
    with pytest.raises(ApiKeyError) as caught:
        await api_keys.verify(stored("revoked_key"))
    assert caught.value.reason == "revoked"
    assert {each.name for each in await api_keys.of("ada")} == {"deploy", "old"}


async def test_sessions_and_links(aio: redis.asyncio.Redis, clock: FakeClock) -> None:
    sessions = Sessions(aio, clock, derived("sessions"))
    session = await sessions.resume(stored("session"))
    assert (session.subject, session.grants, session.agent) == ("ada", GRANTS, "Firefox")
    assert session.last_used == NOW.timestamp()
    sessions.check_csrf(stored("session"), stored("csrf"))
    assert [each.handle for each in await sessions.of("ada")] == [session.handle]
    link = await LoginLinks(aio, clock, derived("links")).take(stored("link"))
    assert (link.subject, link.grants, link.created) == ("ada", GRANTS, NOW.timestamp())


async def test_counted_attempts(aio: redis.asyncio.Redis, clock: FakeClock) -> None:
    counter = RedisAttemptCounter(aio, clock)
    assert await counter.take("account:ada", ACCOUNT) > 0
    with pytest.raises(LimitError):
        await CredentialThrottle(counter).count_failure(
            "198.51.100.9", TokenError("signature", "wrong")
        )
    assert LockedOutError(1.0).retryable


async def test_the_audit_log_is_intact(aio: redis.asyncio.Redis, clock: FakeClock) -> None:
    log = AuditLog(aio, clock, derived("audit"))
    verification = await log.verify()
    assert (verification.records, verification.problems) == (3, ())
    record = (await log.read())[2]
    assert record.body["target"] == "workerpool/shop/2"
    assert record.body["details"] == {"n": 2}


async def test_users_of_a_provider(aio: redis.asyncio.Redis, clock: FakeClock) -> None:
    users = OidcUsers(aio, clock, derived("people"), remember=90 * 86400)
    user = await users.find("https://idp.example#u-1")
    assert user is not None
    assert (user.name, user.email, user.groups) == ("Ada", "ada@example.org", ("dev", "ops"))
    assert await users.blocked("https://idp.example#u-2")
    assert not await users.blocked("https://idp.example#u-1")


# -- transactions, bulk changes and repeated requests -------------------------------------------


@pytest.mark.parametrize("sealed", [True, False])
async def test_sagas_are_read_recovered_and_resumed(aio: redis.asyncio.Redis, sealed: bool) -> None:
    log = (
        RedisSagaLog(aio, sealer=Sealer(derived("sagas"), "saga"))
        if sealed
        else RedisSagaLog(aio, prefix="{app:sagas}")
    )
    records = {record.id: record for record in (await log.page()).records}
    done = records["o-done"]
    assert (done.name, done.by, done.input, done.status) == (
        "order", "ada", {"seat": "12A"}, "committed",
    )  # fmt: skip
    assert (records["o-open"].status, records["o-stuck"].status) == ("running", "stuck")
    saga = Saga(
        "order",
        (
            Step("seat", lambda context: context.input, lambda _: None),
            Step("bill", lambda _: None, lambda _: None),
        ),
    )
    coordinator = Coordinator(log, [saga])
    answers = {"seat": "12A", "bill": {"total": 7}}
    assert await coordinator.run("order", "o-done", {"seat": "12A"}) == answers
    assert await coordinator.recover() == 1
    await coordinator.resume("o-stuck")
    ends = {record.id: record.status for record in (await log.page()).records}
    assert ends == {"o-done": "committed", "o-open": "committed", "o-stuck": "rolled_back"}


async def test_objects_of_a_transaction(aio: redis.asyncio.Redis, clock: FakeClock) -> None:
    (planned,) = await RedisBundles(aio, clock, derived("manifests")).get("t-1")
    assert (planned.kind, planned.name, planned.action) == ("WorkerPool", "mail", "create")


async def test_a_bulk_change(aio: redis.asyncio.Redis) -> None:
    store = OperationStore(aio, derived("operations"))
    operation = await store.get("op-1")
    assert operation is not None
    assert (operation.namespace, operation.queues, operation.by) == ("shop", ("done",), "ada")
    assert operation.where == JobFilter(function="operator.*")
    assert operation.status is OperationStatus.RUNNING
    assert list(await store.open_ids()) == ["op-1"]


async def test_a_stored_response(aio: redis.asyncio.Redis) -> None:
    answer = await Idempotency(aio).begin("ada", "key-1", b"request")
    assert answer == StoredResponse(201, {"location": "/jobs/1"}, b'{"id": 1}')


# -- rate limits --------------------------------------------------------------------------------


def test_policies_their_acknowledgements_and_buckets(client: redis.Redis) -> None:
    names = keys_of("shop")
    document: Any = client.get(names.document)
    snapshot = parse_document(document)
    assert parse_head(document).revision == 1
    policies = {name: snapshot.get(name) for name in ("web", "leased")}
    entries: Any = client.hgetall(names.entries)
    acknowledgement = Acknowledgement.parse(entries[b"pod-1"].decode())
    assert acknowledgement is not None
    with Follower(client, "shop", identity="pod-2") as follower:
        assert follower.current.get("web") == policies["web"]
    buckets = set(client.scan_iter("er:rl:*"))
    for compiled in policies.values():
        assert compiled is not None
        assert Limiter(compiled.policy, client).hit("ada").allowed
    assert set(client.scan_iter("er:rl:*")) == buckets
