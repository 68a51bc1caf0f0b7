"""The audit log stays bounded and whole, strangers cannot fill it, and it misses nothing of weight;
signing keys are renewed, by hand and by age, over two replicas that go on running."""

from __future__ import annotations

import asyncio
import io
import json
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio
from jwt import decode, get_unverified_header
from pydantic import SecretStr

from engineroom.auth.audit.log import AuditEntry, AuditLog, AuditOutcome
from engineroom.auth.errors import TokenError
from engineroom.auth.login.sessions import COOKIE, CSRF_HEADER
from engineroom.auth.permissions import ADMIN, VIEWER, Grant
from engineroom.auth.tokens import signing_keys
from engineroom.console.background.housekeeping import Housekeeping
from engineroom.console.background.signing_key_restoration import SigningKeyRestoration
from engineroom.console.metrics import ApiMetrics
from engineroom.console.rest.app import application
from engineroom.console.route_table import ROUTES
from engineroom.console.services import open_services
from engineroom.console.settings import ApiSettings
from engineroom.core.clock import FakeClock, SystemClock
from engineroom.core.validation.requests import Limits
from engineroom.kube.client.config import ApiConfig
from tests.support import free_port, revocations_read

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from tests.support import RedisServer

PASSWORD = "correct horse battery staple"
ALL = (Grant.everywhere(ADMIN.name),)
DAY = 86_400


class Site:
    """A replica of the API."""

    def __init__(self, app: Any, metrics: ApiMetrics) -> None:
        self.services = app.state.services
        self.metrics = metrics
        transport = httpx.ASGITransport(app)
        self.http = httpx.AsyncClient(transport=transport, base_url="https://api.test")

    async def records(self) -> list[dict[str, Any]]:
        return [dict(each.body) for each in await self.services.audit.read(0, 500)]


@asynccontextmanager
async def site(server: RedisServer, clock: Any = None, **changed: Any) -> AsyncIterator[Site]:
    settings = ApiSettings(
        redis_url=SecretStr(server.url),
        api_secret=SecretStr("s" * 48),
        admin_password=SecretStr(PASSWORD),
        requests_per_second=10_000,
        **changed,
    )
    config = ApiConfig(server=f"http://127.0.0.1:{free_port()}")
    metrics = ApiMetrics()
    app = application(
        lambda: open_services(settings, config, clock, metrics), ROUTES, Limits(), metrics
    )
    async with app.router.lifespan_context(app):
        made = Site(app, metrics)
        await revocations_read(made.services.revocations)
        async with made.http:
            yield made


@pytest_asyncio.fixture
async def api(server: RedisServer, redis: Redis) -> AsyncIterator[Site]:
    del redis  # empties it
    async with site(server) as made:
        yield made


# -- what strangers cannot do ----------------------------------------------------------------------


async def test_malformed_requests_of_nobody_do_not_lengthen_the_chain(
    api: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (await api.services.audit.head()).sequence
    capsys.readouterr()
    paths = ["tokens", "tokens/refresh", "tokens/revoke", "sessions", "sign-in-links/redeem"]
    for path in paths:
        for body in ({}, {"refresh": "x"}, {"code": "A" * 43}, []):
            for _ in range(5):
                answer = await api.http.post(f"/api/v1/{path}", json=body)
                assert answer.status_code in (401, 422), answer.text
    assert (await api.services.audit.head()).sequence == before
    counted = api.metrics.exposition().decode()
    assert 'engineroom_requests_unrecorded_total{action="token.refresh",code="' in counted
    told = capsys.readouterr().out
    assert told.count("unauthenticated requests failed") == 1
    assert "A" * 43 not in told


async def test_who_is_locked_out_writes_no_record(api: Site) -> None:
    said = {"name": "admin", "password": "wrong"}
    statuses = [(await api.http.post("/api/v1/sessions", json=said)).status_code for _ in range(14)]
    assert statuses == [401] * 10 + [429] * 4
    assert len(await api.records()) == 10


# -- what is in the log all the same ---------------------------------------------------------------


async def test_a_failed_sign_in_says_which_account_was_tried(api: Site, redis: Redis) -> None:
    typed = "hunter2-in-the-wrong-field"
    for path in ("sessions", "tokens"):
        for name in ("admin", typed, typed):
            said = {"name": name, "password": "wrong"}
            assert (await api.http.post(f"/api/v1/{path}", json=said)).status_code == 401
    tried = [each["details"]["account"] for each in await api.records()]
    assert tried[0] == tried[3] == "admin"
    assert {*tried[1:3], *tried[4:]} == {tried[1]}  # the same name under one pseudonym
    assert tried[1].startswith("unknown:")
    assert typed not in json.dumps(await api.records())
    assert typed.encode() not in b"".join(
        [value for _, row in await redis.xrange("engineroom:auth:audit") for value in row.values()]
    )
    done = {"name": "admin", "password": PASSWORD}
    assert (await api.http.post("/api/v1/sessions", json=done)).status_code == 201
    last = (await api.records())[-1]
    assert last["details"] == {"account": "admin", "subject": "user:admin"}


async def test_a_change_without_its_sessions_token_is_recorded(api: Site) -> None:
    opened_ = await api.services.sessions.open("user:admin", ALL)
    cookie = {"cookie": f"{COOKIE}={opened_.id}"}
    for headers in (cookie, {**cookie, CSRF_HEADER: "0" * 64}):
        refused = await api.http.post("/api/v1/keys", json={"name": "k"}, headers=headers)
        assert refused.status_code == 403
    # Nobody's cookie tells of nobody.
    unknown = {"cookie": f"{COOKIE}={'A' * 43}"}
    assert (await api.http.post("/api/v1/keys", json={}, headers=unknown)).status_code == 401
    found = await api.records()
    assert [(r["who"], r["action"], r["outcome"]) for r in found] == [
        ("user:admin", "key.make", "denied")
    ] * 2
    assert found[0]["reason"].startswith("csrf_token_invalid")
    assert found[0]["how"] == f"session {opened_.session.handle}"


# -- retention -------------------------------------------------------------------------------------


def entry(number: int) -> AuditEntry:
    return AuditEntry(
        "ada", "namespace:pools:scale", f"workerpool/shop/p{number}", AuditOutcome.DONE
    )


def audit_log(redis: Redis, clock: Any = None, out: Any = None) -> AuditLog:
    return AuditLog(redis, clock or SystemClock(), b"a" * 32, out=out or io.StringIO())


async def test_records_go_by_number_and_by_age(redis: Redis, clock: FakeClock) -> None:
    log = audit_log(redis, clock)
    for number in range(700):
        await log.write(entry(number))
        clock.advance(10)
    now = clock.now().timestamp()
    anchor = await log.head()
    assert await log.trim(650) == 50
    assert await log.trim(650, before=now - 6_000) == 50  # 100 to 700 are younger
    assert await log.trim(10_000, before=now - 6_000) == 0
    found = await log.verify(anchor)
    assert (found.intact, found.records) == (True, 600)
    # The last one stays, however old it is, and the chain goes on.
    assert await log.trim(10_000, before=now + 1) == 599
    await log.write(entry(701))
    found = await log.verify(anchor)
    assert (found.intact, found.records, found.head.sequence) == (True, 2, 701)


async def test_the_log_is_whole_while_it_is_shortened_written_and_read(redis: Redis) -> None:
    out = io.StringIO()
    logs = [audit_log(redis, out=out) for _ in range(3)]
    for number in range(300):
        await logs[0].write(entry(number))
    writing = True
    problems: list[str] = []
    most = 0

    async def write(log: AuditLog) -> None:
        for number in range(300):
            await log.write(entry(number))

    async def trim(log: AuditLog) -> None:
        nonlocal most
        while writing:
            await log.trim(20)
            most = max(most, await redis.xlen("engineroom:auth:audit"))

    async def verify() -> None:
        while writing:
            problems.extend((await audit_log(redis).verify()).problems)

    others = [asyncio.create_task(trim(log)) for log in logs[1:]]
    others.append(asyncio.create_task(verify()))
    await asyncio.gather(*map(write, logs[:2]))
    writing = False
    await asyncio.gather(*others)
    assert problems == []
    await logs[0].trim(20)
    found = await logs[0].verify()
    assert (found.intact, found.records, found.head.sequence) == (True, 20, 900)
    assert most < 300
    # What is gone from Redis is on standard output.
    lines = [json.loads(line)["audit"]["seq"] for line in out.getvalue().splitlines()]
    assert sorted(lines) == list(range(1, 901))


async def test_one_that_was_slow_does_not_set_the_beginning_back(redis: Redis) -> None:
    log = audit_log(redis)
    for number in range(50):
        await log.write(entry(number))

    class Slow:
        """A client, and while its answer is on the way another replica trims further."""

        def __getattr__(self, name: str) -> Any:
            return getattr(redis, name)

        async def xrange(self, *said: Any, **options: Any) -> Any:
            rows = await redis.xrange(*said, **options)
            assert await log.trim(5) == 45
            return rows

    slow = audit_log(Slow())  # type: ignore[arg-type]
    assert await slow.trim(20) == 0
    assert (await log.verify()).intact


async def test_the_setting_holds_in_the_process(server: RedisServer, redis: Redis) -> None:
    del redis
    async with site(server, audit_keep_records=1000) as api:
        for number in range(1_050):
            await api.services.audit.write(entry(number))
        await api.services.housekeeping.run_once()
        found = await api.services.audit.verify()
        assert (found.intact, found.records, found.head.sequence) == (True, 1000, 1050)


async def test_of_two_replicas_one_has_the_turn(server: RedisServer, redis: Redis) -> None:
    async with site(server) as api:
        services = api.services
        # By another name than that of the API itself, which looks for its own turn meanwhile.
        one, other = (
            Housekeeping(
                redis, services.audit, services.signing_keys, services.clock, records=1, days=0,
                key_days=0, overlap=timedelta(0), name="test:upkeep",
            )
            for _ in range(2)
        )  # fmt: skip
        assert [await each._take_turn() for each in (one, other, one)] == [True, False, False]


# -- signing keys ----------------------------------------------------------------------------------


async def bearer(api: Site, token: str) -> int:
    await api.services.revocations.read(1)
    headers = {"authorization": f"Bearer {token}"}
    return (await api.http.get("/api/v1/whoami", headers=headers)).status_code


def kid_of(token: str) -> str:
    return str(get_unverified_header(token)["kid"])


async def test_keys_rotate_over_two_replicas_without_a_restart(
    server: RedisServer, redis: Redis, clock: FakeClock
) -> None:
    del redis
    async with site(server, clock) as one, site(server, clock) as other:
        before = await one.services.tokens.issue("user:admin", ALL)
        authorization = {"authorization": f"Bearer {before.access}"}
        path = "/api/v1/signing-keys"
        [old] = (await other.http.get(path, headers=authorization)).json()["items"]
        assert (old["state"], old["kid"], old["verifiesUntil"]) == (
            "signing", kid_of(before.access), None,
        )  # fmt: skip
        rotated = await one.http.post(f"{path}/rotate", headers=authorization)
        assert rotated.status_code == 201, rotated.text
        new, old = rotated.json()["items"]
        assert (new["state"], old["state"]) == ("next", "signing")
        assert "d" not in new["jwk"]
        # What was signed last is good as long as it may be.
        said = decode(before.refresh, options={"verify_signature": False})
        assert old["verifiesUntil"] >= new["signsFrom"] + said["exp"] - said["iat"]
        clock.advance(61)
        for replica in (one, other):
            pair = await replica.services.tokens.issue("user:admin", ALL)
            assert kid_of(pair.access) == new["kid"]
            for reader in (one, other):
                assert await bearer(reader, pair.access) == 200
                assert await bearer(reader, before.access) == 200
        refreshed = await other.http.post(
            "/api/v1/tokens/refresh", json={"refresh": before.refresh}
        )
        assert refreshed.status_code == 201, refreshed.text
        assert kid_of(refreshed.json()["access"]) == new["kid"]
        last = [r for r in await one.records() if r["action"] == "signing-key.rotate"]
        assert [(r["who"], r["details"]["key"]) for r in last] == [("user:admin", new["kid"])]


async def test_only_who_may_sees_and_rotates(api: Site) -> None:
    pair = await api.services.tokens.issue("user:ada", [Grant.everywhere(VIEWER.name)])
    made = await api.services.api_keys.create("program:x", "x", [Grant.everywhere(VIEWER.name)])
    del pair
    headers = {"authorization": f"Bearer {made.secret}"}
    assert (await api.http.get("/api/v1/signing-keys", headers=headers)).status_code == 403
    refused = await api.http.post("/api/v1/signing-keys/rotate", headers=headers)
    assert refused.status_code == 403
    assert (await api.http.post("/api/v1/signing-keys/rotate")).status_code == 401
    assert len((await api.services.signing_keys.latest()).keys) == 1


async def test_too_many_keys_are_a_conflict(api: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing_keys, "MAX_KEYS", 2)
    pair = await api.services.tokens.issue("user:admin", ALL)
    headers = {"authorization": f"Bearer {pair.access}"}
    answers = [await api.http.post("/api/v1/signing-keys/rotate", headers=headers) for _ in "12"]
    assert [each.status_code for each in answers] == [201, 409]
    assert answers[1].json()["code"] == "signing_keys_not_rotated"


async def test_keys_are_renewed_by_age_once(
    server: RedisServer, redis: Redis, clock: FakeClock
) -> None:
    del redis
    async with site(server, clock) as one, site(server, clock) as other:
        first = (await one.services.signing_keys.latest()).keys[0].kid
        clock.advance(30 * DAY - 1)
        await one.services.housekeeping.run_once()
        assert len((await one.services.signing_keys.latest()).keys) == 1
        clock.advance(1)
        # Also where both have the turn.
        await asyncio.gather(
            *(each.services.housekeeping.run_once() for each in (one, other)),
            return_exceptions=True,
        )
        for each in (one, other):
            await each.services.housekeeping.run_once()
        found = (await other.services.signing_keys.latest()).keys
        assert found[0].kid == first
        assert len(found) == 2
        assert found[1].signs_from == clock.now() + timedelta(minutes=1)
        records = [r for r in await one.records() if r["action"] == "signing-key.rotate"]
        assert [r["who"] for r in records] == ["(engineroom)"]
    async with site(server, clock, signing_key_days=0) as never:
        clock.advance(365 * DAY)
        await never.services.housekeeping.run_once()
        assert len((await never.services.signing_keys.latest()).keys) == 2


# -- Redis has lost its data -----------------------------------------------------------------------


async def test_lost_signing_keys_are_made_anew_and_the_replica_is_unready_until_then(
    api: Site, redis: Redis
) -> None:
    services = api.services
    # Without a cluster the pools are never listed; the keys are what is tested here.
    services.hub.pools.synced.set()
    assert (await api.http.get("/readyz")).status_code == 200
    before = await services.tokens.issue("user:admin", ALL)
    (old,) = (await services.signing_keys.latest()).keys

    await redis.flushall()
    restoration = SigningKeyRestoration(services.signing_keys)
    unready = await api.http.get("/readyz")
    made = await restoration.check()
    ready = await api.http.get("/readyz")

    (new,) = (await services.signing_keys.latest()).keys
    assert new.kid != old.kid
    assert ready.status_code == 200
    # The replica's own task may have been first.
    assert made or unready.status_code == 200
    assert (unready.status_code == 503) is made
    assert await restoration.check() is False
    # A token of the lost key stays invalid: its revocation may be lost, too.
    with pytest.raises(TokenError):
        await services.tokens.verify(before.access)
    after = await services.tokens.issue("user:admin", ALL)
    assert (await services.tokens.verify(after.access)).subject == "user:admin"
