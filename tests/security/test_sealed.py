"""Whoever writes the API's Redis is not thereby somebody: what gives rights or is done with the
API's own is sealed, and made up, changed or put elsewhere it is refused and told of once."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pydantic import SecretStr

from engineroom.auth.errors import ApiKeyError, LinkError, SessionError
from engineroom.auth.login.login_links import LoginLink, LoginLinks
from engineroom.auth.login.sessions import COOKIE, SessionLimits, Sessions
from engineroom.auth.oidc.id_token import OidcIdentity
from engineroom.auth.permissions import ADMIN, EVERYWHERE, Grant
from engineroom.auth.tokens.api_keys import ApiKeys
from engineroom.console.accounts.oidc_users import OidcUsers
from engineroom.console.background import tampering
from engineroom.console.background.operation_store import Operation, OperationAction, OperationStore
from engineroom.console.main import create_application
from engineroom.console.settings import ApiSettings
from engineroom.core.sealing import MAX_REPORTED, Sealer
from engineroom.core.transactions.journal import EntryKind, JournalEntry
from engineroom.core.transactions.saga import Coordinator, Saga, Step, StepContext
from engineroom.core.transactions.sagalog import RedisSagaLog
from engineroom.kube.client.config import ApiConfig
from engineroom.manifests.apply import RETENTION, PlannedObject, RedisBundles
from engineroom.manifests.errors import ManifestChangedError
from engineroom.tasks.inspection.job_filter import JobFilter
from engineroom.tasks.inspection.jobs import State
from tests.integration.pools import eventually
from tests.support import free_port, revocations_read

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from engineroom.core.clock import FakeClock
    from tests.support import RedisServer

OURS, THEIRS = b"o" * 48, b"t" * 48
ALL = (Grant.everywhere(ADMIN.name),)


@dataclass
class Told:
    """Collects what is said of broken records."""

    names: list[str] = field(default_factory=list)

    def __call__(self, kind: str, name: str) -> None:
        assert kind
        self.names.append(name)


@dataclass
class Stored:
    """A record: its key, fields that are not sealed, and whether it is taken for ours."""

    key: str
    accepted: Callable[[], Awaitable[bool]]
    free: frozenset[str] = frozenset()
    stream: str = ""


async def session(redis: Redis, clock: FakeClock, secret: bytes, told: Told, name: str) -> Stored:
    sessions = Sessions(redis, clock, secret, on_broken=told)
    opened = await sessions.open(f"user:{name}", ALL)
    ours = Sessions(redis, clock, OURS, on_broken=told)

    async def accepted() -> bool:
        listed = await ours.of(f"user:{name}")
        try:
            await ours.resume(opened.id)
        except SessionError:
            assert not listed
            return False
        return len(listed) == 1

    return Stored(sessions._key(opened.id), accepted)


async def link(redis: Redis, clock: FakeClock, secret: bytes, told: Told, name: str) -> Stored:
    links = LoginLinks(redis, clock, secret, on_broken=told)
    code, _ = await links.make(LoginLink(f"user:{name}", ALL))
    ours = LoginLinks(redis, clock, OURS, on_broken=told)

    async def accepted() -> bool:
        kept = await redis.get(links._key(code))
        try:
            await ours.take(code)
        except LinkError:
            return False
        finally:
            await redis.set(links._key(code), kept)
        return True

    return Stored(links._key(code), accepted)


async def api_key(redis: Redis, clock: FakeClock, secret: bytes, told: Told, name: str) -> Stored:
    # The hash is by the pepper too; here only the seal is of another.
    keys = ApiKeys(redis, clock, [OURS], on_broken=told)
    keys._sealer = Sealer(secret, "API key", told)
    ours = ApiKeys(redis, clock, [OURS], on_broken=told)
    if secret == OURS:
        keys = ours
    new = await keys.create(f"user:{name}", name, ALL)

    async def accepted() -> bool:
        shown = await ours.get(new.key.id) is not None
        listed = await ours.of(f"user:{name}")
        try:
            await ours.verify(new.secret)
        except ApiKeyError:
            assert not shown
            assert not listed
            return False
        return shown

    return Stored(keys._record(new.key.id), accepted, frozenset({"last_used"}))


async def person(redis: Redis, clock: FakeClock, secret: bytes, told: Told, name: str) -> Stored:
    people = OidcUsers(redis, clock, secret, remember=1000, on_broken=told)
    subject = f"https://idp.example#{name}"
    await people.remember(OidcIdentity("https://idp.example", name, "", "", ("staff",)))
    ours = OidcUsers(redis, clock, OURS, remember=1000, cache_seconds=0.0, on_broken=told)
    key = people._user_key(hashlib.sha256(subject.encode()).hexdigest()[:40])

    async def accepted() -> bool:
        listed, _ = await ours.page("", 10)
        found = await ours.find(subject)
        assert (found is None) == (subject not in {each.subject for each in listed})
        return found is not None

    return Stored(key, accepted)


async def operation(redis: Redis, clock: FakeClock, secret: bytes, told: Told, name: str) -> Stored:
    operations = OperationStore(redis, secret, on_broken=told)
    asked = Operation(
        name,
        "shop",
        OperationAction.RETRY,
        State.FAILED,
        ("mail",),
        JobFilter(),
        "user:ada",
        1.0,
        7,
    )
    await operations.start(asked)
    ours = OperationStore(redis, OURS, on_broken=told)

    async def accepted() -> bool:
        return await ours.get(name) is not None

    return Stored(f"engineroom:console:operation:{name}", accepted, frozenset({"status"}))


async def bundle(redis: Redis, clock: FakeClock, secret: bytes, told: Told, name: str) -> Stored:
    planned = PlannedObject(
        "engineroom.dev/v1alpha1", "WorkerPool", "shop", name, "create", None, {"a": 1}, {"a": 1}
    )
    await RedisBundles(redis, clock, secret, on_broken=told).put(name, [planned])
    ours = RedisBundles(redis, clock, OURS, on_broken=told)

    async def accepted() -> bool:
        try:
            return bool(await ours.get(name))
        except ManifestChangedError:
            return False

    return Stored(ours._key(name), accepted)


async def saga(redis: Redis, clock: FakeClock, secret: bytes, told: Told, name: str) -> Stored:
    del clock
    log = RedisSagaLog(redis, sealer=Sealer(secret, "saga", told))
    epoch = await log.begin(name, "order", {"n": name}, "user:ada", 60)
    assert epoch == 1
    assert await log.append(name, epoch, [JournalEntry(EntryKind.DOING, "one")], 60)
    ours = RedisSagaLog(redis, sealer=Sealer(OURS, "saga", told))

    async def accepted() -> bool:
        shown = {each.id for each in (await ours.page()).records}
        found = await ours.read(name)
        assert (found is None) == (name not in shown)
        return found is not None

    return Stored(
        log._saga(name), accepted, frozenset({"epoch", "started", "member"}), log._stream(name)
    )


KINDS = [session, link, api_key, person, operation, bundle, saga]


@pytest.fixture
def told() -> Told:
    return Told()


async def altered(redis: Redis, stored: Stored) -> list[Callable[[], Awaitable[Any]]]:
    """One change of each part of a record, each to be tried alone."""
    if await redis.type(stored.key) == b"hash":
        fields = {n.decode() for n in await redis.hkeys(stored.key)} - stored.free

        def change(name: str) -> Callable[[], Awaitable[Any]]:
            async def changed() -> None:
                before = await redis.hget(stored.key, name)
                more = {b"": b"1e12", b"[]": b'[["admin",["*"]]]'}.get(before, before + b"0")
                await redis.hset(stored.key, name, more)

            return changed

        def drop(name: str) -> Callable[[], Awaitable[Any]]:
            return lambda: redis.hdel(stored.key, name)

        return [*map(change, sorted(fields)), *map(drop, sorted(fields))]
    whole = await redis.get(stored.key)

    def put(text: bytes) -> Callable[[], Awaitable[Any]]:
        return lambda: redis.set(stored.key, text)

    # Somewhere in the seal, at each end, and in the middle; and the content without a seal.
    places = (0, 63, 64, len(whole) // 2, len(whole) - 1)
    flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in places]
    return [put(text) for text in (*flipped, whole[64:], b"", b"{}", whole + b" ")]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_we_wrote_is_taken(
    kind: Any, redis: Redis, clock: FakeClock, told: Told
) -> None:
    assert await (await kind(redis, clock, OURS, told, "ada")).accepted()
    assert told.names == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_changed_record_is_refused_and_told_of_once(
    kind: Any, redis: Redis, clock: FakeClock, told: Told
) -> None:
    stored = await kind(redis, clock, OURS, told, "ada")
    whole = await redis.dump(stored.key)
    changes = await altered(redis, stored)
    assert len(changes) >= 4
    for number, change in enumerate(changes):
        await change()
        assert not await stored.accepted(), number
        await redis.restore(stored.key, 0, whole, replace=True)
    assert told.names == [stored.key]
    assert await stored.accepted()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_made_up_record_is_refused(
    kind: Any, redis: Redis, clock: FakeClock, told: Told
) -> None:
    """By somebody who knows everything of the form, and not the secret."""
    assert not await (await kind(redis, clock, THEIRS, told, "mallory")).accepted()
    assert told.names


@pytest.mark.parametrize("kind", KINDS)
async def test_a_record_under_another_name_is_refused(
    kind: Any, redis: Redis, clock: FakeClock, told: Told
) -> None:
    one = await kind(redis, clock, OURS, told, "ada")
    other = await kind(redis, clock, OURS, told, "mallory")
    assert await redis.copy(one.key, other.key, replace=True)
    if one.stream:
        assert await redis.copy(one.stream, other.stream, replace=True)
    assert not await other.accepted()
    assert await one.accepted()


async def test_one_key_is_not_given_the_rights_of_another(
    redis: Redis, clock: FakeClock, told: Told
) -> None:
    """The record of a key that may much, with the hash of one that may little."""
    keys = ApiKeys(redis, clock, [OURS], on_broken=told)
    little, much = [await keys.create("user:m", n, g) for n, g in (("l", ()), ("m", ALL))]
    mine, rich = keys._record(little.key.id), keys._record(much.key.id)
    own = await redis.hget(mine, "hash")
    await redis.copy(rich, mine, replace=True)
    await redis.hset(mine, "hash", own)
    with pytest.raises(ApiKeyError) as refused:
        await keys.verify(little.secret)
    assert refused.value.reason == "seal"


async def test_a_revoked_key_is_not_brought_back_by_taking_the_mark_off(
    redis: Redis, clock: FakeClock, told: Told
) -> None:
    keys = ApiKeys(redis, clock, [OURS], on_broken=told)
    new = await keys.create("user:ada", "k", ALL)
    await keys.revoke(new.key.id)
    await redis.hset(keys._record(new.key.id), "revoked", "")
    with pytest.raises(ApiKeyError) as refused:
        await keys.verify(new.secret)
    assert refused.value.reason == "seal"


async def test_of_two_that_end_a_key_at_once_both_do(redis: Redis, clock: FakeClock) -> None:
    keys = ApiKeys(redis, clock, [OURS])
    new = await keys.create("user:ada", "k", ALL)
    assert await asyncio.gather(*(keys.revoke(new.key.id) for _ in range(8))) == [True] * 8
    found = await keys.get(new.key.id)
    assert found is not None
    assert found.revoked is not None


async def test_ends_are_inside_the_seal(redis: Redis, clock: FakeClock, told: Told) -> None:
    """Redis is told to keep all for ever; what is over is over."""
    sessions = Sessions(
        redis, clock, OURS, limits=SessionLimits(idle=50, absolute=100), on_broken=told
    )
    opened = await sessions.open("user:ada", ALL)
    people = OidcUsers(redis, clock, OURS, remember=1000, on_broken=told)
    await people.remember(OidcIdentity("https://idp.example", "ada", "Ada", "", ("ops",)))
    stored = await bundle(redis, clock, OURS, told, "t")
    old = await redis.dump(sessions._key(opened.id))
    for key in [key async for key in redis.scan_iter("*")]:
        await redis.persist(key)
    clock.advance(40)
    await sessions.resume(opened.id)
    # Set back to how it was, it has been idle since then.
    await redis.restore(sessions._key(opened.id), 0, old, replace=True)
    clock.advance(11)
    with pytest.raises(SessionError):
        await sessions.resume(opened.id)
    clock.advance(1000)
    assert await people.find("https://idp.example#ada") is None
    assert await stored.accepted()
    clock.advance(RETENTION)
    assert not await stored.accepted()
    assert told.names == []


async def test_use_of_a_session_keeps_it_sealed(redis: Redis, clock: FakeClock) -> None:
    sessions = Sessions(redis, clock, OURS)
    opened = await sessions.open("user:ada", ())
    for _ in range(5):
        clock.advance(1000)
        await sessions.resume(opened.id)
        assert (await sessions.resume(opened.id)).last_used == clock.now().timestamp()
    moved = await sessions.elevate(opened.id, ALL)
    assert (await sessions.resume(moved.id)).grants == ALL


# -- sagas ---------------------------------------------------------------------------------------


def coordinator(redis: Redis, told: Told, done: list[str]) -> Coordinator:
    async def act(step: StepContext) -> None:
        done.append(f"did {step.key}")

    async def undo(step: StepContext) -> None:
        done.append(f"undid {step.key}")

    log = RedisSagaLog(redis, sealer=Sealer(OURS, "saga", told))
    return Coordinator(log, [Saga("order", (Step("one", act, undo), Step("two", act, undo)))])


async def test_a_made_up_saga_is_never_carried_out(redis: Redis, told: Told) -> None:
    forger = RedisSagaLog(redis)
    await forger.begin("evil", "order", {}, "user:admin", 0.0)
    done: list[str] = []
    ours = coordinator(redis, told, done)
    await ours.recover()
    await ours.recover()
    assert done == []
    assert told.names == [forger._saga("evil")]
    assert await redis.zcard("{engineroom:sagas}:open") == 0


@pytest.mark.parametrize(
    ("line_kind", "step"), [("failed", "one"), ("undoing", "two"), ("done", "two"), ("resumed", "")]
)
async def test_a_line_that_somebody_added_is_never_followed(
    redis: Redis, told: Told, line_kind: str, step: str
) -> None:
    log = RedisSagaLog(redis, sealer=Sealer(OURS, "saga", told))
    epoch = await log.begin("s", "order", {}, "user:ada", 0.0)
    assert epoch is not None
    await log.append("s", epoch, [JournalEntry(EntryKind.DOING, "one")], 0.0)
    line = {"kind": line_kind, "step": step, "detail": "null", "at": "1", "epoch": "1"}
    [last] = await redis.xrevrange(log._stream("s"), count=1)
    for seal in ("", last[1][b"seal"]):
        await redis.xadd(log._stream("s"), {**line, "seal": seal})
    done: list[str] = []
    await coordinator(redis, told, done).recover()
    assert done == []
    assert told.names == [log._saga("s")]


async def test_a_stuck_saga_is_resumed_under_a_seal(redis: Redis, told: Told) -> None:
    broken = True

    async def act(step: StepContext) -> None:
        raise ValueError("as told")

    async def undo(step: StepContext) -> None:
        if broken:
            raise ValueError("as told")

    log = RedisSagaLog(redis, sealer=Sealer(OURS, "saga", told))
    ours = Coordinator(log, [Saga("order", (Step("one", act, undo),))])
    with pytest.raises(Exception, match="could not be undone"):
        await ours.run("order", "s")
    broken = False
    await ours.resume("s")
    found = await log.read("s")
    assert found is not None
    assert found.status == "rolled_back"
    assert told.names == []


# -- the API as a whole --------------------------------------------------------------------------


async def test_the_api_lets_no_forger_in_and_says_so_once(
    server: RedisServer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finding as it was: a link, a session and a saga, written with redis-cli."""
    monkeypatch.setattr(tampering, "INTERVAL", 0.0)
    settings = ApiSettings(
        redis_url=SecretStr(server.url),
        api_secret=SecretStr("s" * 48),
        admin_password=SecretStr("correct horse battery staple"),
        requests_per_second=1000,
    )
    app = create_application(settings, ApiConfig(server=f"http://127.0.0.1:{free_port()}"))
    code, identity = "A" * 43, "B" * 43
    grants = [["admin", [EVERYWHERE]]]
    said = {"subject": "user:admin", "grants": grants, "person": "", "ends": None, "made": 9e9,
            "expires": 9e9}  # fmt: skip
    hashed = [hashlib.sha256(each.encode()).hexdigest() for each in (code, identity)]
    fields = {"handle": "f" * 16, "subject": "user:admin", "created": "1", "seen": "9e9",
              "ends": "9e9", "grants": json.dumps(grants), "address": "", "agent": "",
              "person": ""}  # fmt: skip
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="https://api.test") as browser,
    ):
        services = app.state.services
        await revocations_read(services.revocations)
        for _ in range(3):
            await redis.set(f"engineroom:auth:link:{hashed[0]}", json.dumps(said))
            refused = await browser.post("/api/v1/sign-in-links/redeem", json={"code": code})
            assert refused.status_code == 401
        await redis.hset(f"engineroom:auth:session:{hashed[1]}", mapping=fields)
        for _ in range(3):
            cookie = {"cookie": f"{COOKIE}={identity}"}
            refused = await browser.get("/api/v1/whoami", headers=cookie)
            assert refused.status_code == 401
        await RedisSagaLog(redis).begin("evil", "manifests.apply.1", {}, "user:admin", 0.0)
        await services.coordinator.recover()

        async def three() -> list[str]:
            found = await refusals(services)
            return found if len(found) >= 3 else []

        found = await eventually("three records", three, 5)
        assert sorted(target.split("/")[0] for target in found) == [
            "saga", "session", "sign-in link",
        ]  # fmt: skip
        assert (await services.audit.verify()).intact


async def refusals(services: Any) -> list[str]:
    records = await services.audit.read(0, 500)
    return [r.body["target"] for r in records if r.body["action"] == tampering.ACTION]


def test_each_name_is_told_of_once_and_memory_is_bounded() -> None:
    told = Told()
    sealer = Sealer(OURS, "thing", told)
    for _ in range(3):
        assert not sealer.holds("", "a", "x")
    assert told.names == ["a"]
    for number in range(MAX_REPORTED * 2):
        assert not sealer.holds("", str(number), "x")
    assert len(sealer._reported) == MAX_REPORTED


def test_texts_do_not_run_into_each_other() -> None:
    sealer = Sealer(OURS, "thing")
    seals = {
        sealer.seal("n", "ab", "c"), sealer.seal("n", "a", "bc"), sealer.seal("n", "abc"),
        sealer.seal("na", "bc"), sealer.seal("n", "ab", "c", ""),
        Sealer(OURS, "other").seal("n", "ab", "c"),
    }  # fmt: skip
    assert len(seals) == 6
    with pytest.raises(ValueError, match="32 bytes"):
        Sealer(b"short", "thing")
