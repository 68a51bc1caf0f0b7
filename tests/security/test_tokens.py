"""The JWT attack corpus, rotation of keys, families of refresh tokens, revocation."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import serialization
from jwt import PyJWS
from redis.asyncio import Redis

from engineroom.auth.errors import (
    AuthStoreError,
    KeyStoreError,
    RefreshReusedError,
    RotationError,
    TokenError,
)
from engineroom.auth.permissions import Grant
from engineroom.auth.tokens.access_tokens import MAX_TOKEN, TokenLifetimes, Tokens
from engineroom.auth.tokens.revocation import RevocationKind, Revocations
from engineroom.auth.tokens.signing_keys import (
    Algorithm,
    DirectoryKeyStore,
    KeySet,
    MemoryKeyStore,
    RedisKeyStore,
    SigningKey,
    SigningKeyCache,
)
from engineroom.core.clock import FakeClock, SystemClock
from tests.support import RedisServer, redis_server

if TYPE_CHECKING:
    from pathlib import Path

ISSUER = "https://engineroom.test"
AUDIENCE = "engineroom"
SECRET = b"s" * 48


@dataclass
class Desk:
    tokens: Tokens
    keys: SigningKeyCache
    key: SigningKey
    revocations: Revocations
    clock: FakeClock

    def payload(self, **changed: Any) -> dict[str, Any]:
        now = self.clock.now().timestamp()
        claims = {
            "iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "iat": now, "nbf": now,
            "exp": now + 60, "jti": "one", "fam": "family",
        }  # fmt: skip
        return {k: v for k, v in {**claims, **changed}.items() if v is not None}

    def signed(self, payload: Any = None, key: SigningKey | None = None, **header: Any) -> str:
        key = key or self.key
        document = json.dumps(self.payload() if payload is None else payload).encode()
        headers = {"kid": key.kid, "typ": "at+jwt", **header}
        return PyJWS().encode(document, key.private, algorithm=key.algorithm.value, headers=headers)


async def desk(redis: Redis, clock: FakeClock, algorithm: Algorithm) -> Desk:
    key = SigningKey.generate(algorithm, clock.now())
    keys = SigningKeyCache(MemoryKeyStore(KeySet((key,), 1)), clock)
    revocations = Revocations(redis, clock)
    await revocations.read(1)
    tokens = Tokens(redis, keys, revocations, clock, issuer=ISSUER, audience=AUDIENCE)
    return Desk(tokens, keys, key, revocations, clock)


@pytest_asyncio.fixture(params=list(Algorithm))
async def each(request: pytest.FixtureRequest, redis: Redis, clock: FakeClock) -> Desk:
    return await desk(redis, clock, request.param)


@pytest_asyncio.fixture
async def one(redis: Redis, clock: FakeClock) -> Desk:
    return await desk(redis, clock, Algorithm.EDDSA)


def b64(document: Any) -> str:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


async def refused(desk: Desk, token: str) -> str:
    with pytest.raises(TokenError) as caught:
        await desk.tokens.verify(token)
    assert len(token) < 20 or token not in str(caught.value)
    return caught.value.reason


async def test_what_we_signed_is_taken(each: Desk) -> None:
    grants = (Grant("viewer", frozenset({"shop"})),)
    pair = await each.tokens.issue("ada", grants, ["namespace:jobs:read"])
    claims = await each.tokens.verify(pair.access)
    assert (claims.subject, claims.grants) == ("ada", grants)
    assert claims.scopes == {"namespace:jobs:read"}
    assert (await each.tokens.verify(each.signed())).subject == "ada"
    assert pair.access not in repr(pair)
    assert pair.refresh not in repr(pair)


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", ""])
async def test_no_signature_is_no_signature(each: Desk, algorithm: str) -> None:
    header = {"alg": algorithm, "kid": each.key.kid, "typ": "at+jwt"}
    for signature in ("", b64(b"x" * 64)):
        token = f"{b64(header)}.{b64(each.payload())}.{signature}"
        assert await refused(each, token) == "algorithm"


async def test_a_public_key_is_no_shared_secret(each: Desk) -> None:
    """Key confusion: HMAC over the public key in each form in which somebody could have it."""
    public = each.key.private.public_key()
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for secret in (pem, pem.strip(), json.dumps(each.key.verifying.jwk()).encode(), b""):
        for algorithm, digest in (("HS256", hashlib.sha256), ("HS512", hashlib.sha512)):
            signed = f"{b64({'alg': algorithm, 'kid': each.key.kid})}.{b64(each.payload())}"
            mac = hmac.new(secret, signed.encode(), digest).digest()
            assert await refused(each, f"{signed}.{b64(mac)}") == "algorithm"


async def test_the_key_pins_its_algorithm(redis: Redis, clock: FakeClock) -> None:
    here = await desk(redis, clock, Algorithm.RS256)
    for algorithm in ("RS512", "PS256", "ES256", "EdDSA"):
        header = {"alg": algorithm, "kid": here.key.kid, "typ": "at+jwt"}
        signed = f"{b64(header)}.{b64(here.payload())}"
        assert await refused(here, f"{signed}.{b64(b'x' * 384)}") == "algorithm"


@pytest.mark.parametrize(
    "kid",
    ["../../../../dev/null", "/dev/null", "' UNION SELECT 'x", "key\x00", "a" * 129, "", "x|id",
     "https://evil.test/jwks", 7, None, ["a"], {"a": 1}],
)  # fmt: skip
async def test_a_key_id_is_looked_up_and_never_followed(one: Desk, kid: Any) -> None:
    header = {"alg": "EdDSA", "kid": kid, "typ": "at+jwt"}
    signed = f"{b64(header)}.{b64(one.payload())}"
    token = f"{signed}.{b64(one.key.private.sign(signed.encode()))}"
    assert await refused(one, token) in {"no_kid", "unknown_key"}


async def test_a_key_that_a_token_brings_along_is_not_used(one: Desk) -> None:
    evil = SigningKey.generate(Algorithm.EDDSA, one.clock.now())
    brought = {
        "jwk": evil.verifying.jwk(), "jku": "http://127.0.0.1:1/jwks",
        "x5u": "http://127.0.0.1:1/cert", "x5c": ["AAAA"],
    }  # fmt: skip
    for header in ({name: value} for name, value in brought.items()):
        assert await refused(one, one.signed(key=evil, **header)) == "unknown_key"
        forged = one.signed(key=evil, kid=one.key.kid, **header)
        assert await refused(one, forged) == "signature"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"exp": 0}, "expired"), ({"exp": None}, "time"), ({"exp": "9999999999"}, "time"),
        ({"exp": True}, "time"), ({"exp": -1}, "time"), ({"exp": 1e300}, "time"),
        ({"iat": None}, "time"), ({"nbf": 4e9}, "not_before"), ({"iat": 4e9}, "issued_later"),
        ({"iss": "https://evil.test"}, "issuer"), ({"iss": None}, "issuer"),
        ({"iss": [ISSUER]}, "issuer"), ({"iss": ISSUER + "/"}, "issuer"),
        ({"aud": "other"}, "audience"), ({"aud": None}, "audience"), ({"aud": []}, "audience"),
        ({"aud": {AUDIENCE: 1}}, "audience"), ({"aud": "engineroom2"}, "audience"),
        ({"sub": None}, "subject"), ({"sub": 7}, "subject"), ({"sub": ""}, "subject"),
        ({"sub": "a" * 256}, "subject"), ({"jti": None}, "token_id"), ({"jti": 3}, "token_id"),
        ({"fam": None}, "token_id"),
    ],
)  # fmt: skip
async def test_claims_are_required_and_of_their_type(
    one: Desk, changed: dict[str, Any], reason: str
) -> None:
    assert await refused(one, one.signed(one.payload(**changed))) == reason


async def test_leeway_is_a_bound(one: Desk) -> None:
    token = one.signed()
    one.clock.advance(60 + 29)
    await one.revocations.read(1)
    await one.tokens.verify(token)
    one.clock.advance(1)
    assert await refused(one, token) == "expired"


async def test_a_changed_part_breaks_the_signature(each: Desk) -> None:
    head, body, signature = each.signed().split(".")
    forged = b64(each.payload(sub="root"))
    assert await refused(each, f"{head}.{forged}.{signature}") == "signature"
    other = b64({"alg": each.key.algorithm.value, "kid": each.key.kid, "typ": "rt+jwt"})
    assert await refused(each, f"{other}.{body}.{signature}") == "signature"
    assert await refused(each, f"{head}.{body}.") == "signature"
    assert await refused(each, f"{head}.{body}.{b64(bytes(64))}") == "signature"


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "...", "a.b.c", "a.b", "null", b64(b"[]") + ".e30.e30", b64(b"[" * 3000) + "..",
     "é.é.é", "e30.e30.e30", b64(b'{"alg":"EdDSA","kid":"a"') + ".e30.", "x" * (MAX_TOKEN + 1)],
)  # fmt: skip
async def test_what_is_no_token_is_refused_and_never_a_crash(one: Desk, token: str) -> None:
    assert await refused(one, token)


@pytest.mark.parametrize("payload", [[], "text", 7, None])
async def test_a_payload_is_an_object(one: Desk, payload: Any) -> None:
    document = json.dumps(payload).encode()
    token = PyJWS().encode(
        document, one.key.private, algorithm="EdDSA", headers={"kid": one.key.kid}
    )
    assert await refused(one, token) == "malformed"


@pytest.mark.parametrize("header", [{"crit": ["exp"]}, {"b64": False}, {"zip": "DEF"}])
async def test_critical_headers_that_nobody_understands(one: Desk, header: dict[str, Any]) -> None:
    head = {"alg": "EdDSA", "kid": one.key.kid, "typ": "at+jwt", **header}
    assert await refused(one, f"{b64(head)}.{b64(one.payload())}.x") == "critical_header"


async def test_one_kind_of_token_is_not_the_other(one: Desk) -> None:
    pair = await one.tokens.issue("ada")
    assert await refused(one, pair.refresh) == "type"
    with pytest.raises(TokenError) as caught:
        await one.tokens.refresh(pair.access)
    assert caught.value.reason == "type"
    assert await refused(one, one.signed(typ="JWT")) == "type"


# ---- refresh families -----------------------------------------------------------------------


async def test_a_refresh_token_used_twice_ends_its_family(one: Desk) -> None:
    first = await one.tokens.issue("ada")
    second = await one.tokens.refresh(first.refresh)
    await one.tokens.verify(second.access)
    with pytest.raises(RefreshReusedError) as caught:
        await one.tokens.refresh(first.refresh)
    assert caught.value.subject == "ada"
    with pytest.raises(TokenError):
        await one.tokens.refresh(second.refresh)
    for pair in (first, second):
        assert await refused(one, pair.access) == "revoked_family"


async def test_of_many_that_refresh_at_once_one_wins(one: Desk) -> None:
    pair = await one.tokens.issue("ada")
    outcomes = await asyncio.gather(
        *(one.tokens.refresh(pair.refresh) for _ in range(20)), return_exceptions=True
    )
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, RefreshReusedError) for outcome in outcomes) == 1


async def test_a_refresh_asks_what_the_subject_may_now(one: Desk) -> None:
    pair = await one.tokens.issue("ada", [Grant.everywhere("admin")])

    async def fewer(subject: str) -> list[Grant]:
        return [Grant("viewer", frozenset({subject}))]

    claims = await one.tokens.verify((await one.tokens.refresh(pair.refresh, fewer)).access)
    assert claims.grants == (Grant("viewer", frozenset({"ada"})),)


async def test_one_family_ends_and_the_other_lives(one: Desk) -> None:
    phone, laptop = await one.tokens.issue("ada"), await one.tokens.issue("ada")
    await one.tokens.revoke_family(phone.family)
    assert await refused(one, phone.access) == "revoked_family"
    await one.tokens.verify(laptop.access)
    await one.tokens.refresh(laptop.refresh)
    with pytest.raises(TokenError):
        await one.tokens.refresh(phone.refresh)


async def test_out_everywhere_holds_at_a_replica_that_has_not_heard(
    one: Desk, redis: Redis
) -> None:
    pair = await one.tokens.issue("ada")
    deaf = Revocations(redis, one.clock)
    await deaf.read(1)
    late = Tokens(redis, one.keys, deaf, one.clock, issuer=ISSUER, audience=AUDIENCE)
    await one.tokens.revoke_subject("ada")
    with pytest.raises(TokenError) as caught:
        await late.refresh(pair.refresh)
    assert caught.value.reason == "family_over"
    assert await refused(one, pair.access) == "revoked_subject"
    one.clock.advance(0.01)
    again = await one.tokens.issue("ada")
    await one.tokens.verify(again.access)
    await one.tokens.refresh(again.refresh)


# ---- revocation -----------------------------------------------------------------------------


async def test_a_revocation_reaches_every_replica_within_a_second(server: RedisServer) -> None:
    clock = SystemClock()
    clients = [Redis.from_url(server.url) for _ in range(4)]
    replicas = [Revocations(client, clock) for client in clients]
    tasks = [asyncio.create_task(replica.run()) for replica in replicas]
    try:
        for number in range(20):
            token = f"{time.monotonic()}-{number}"
            started = time.monotonic()
            await replicas[0].revoke(RevocationKind.TOKEN, token)
            async with asyncio.timeout(1):
                while not all(_known(replica, token) for replica in replicas):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            assert time.monotonic() - started < 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in clients:
            await client.aclose()


def _known(replica: Revocations, token: str) -> bool:
    try:
        return bool(replica.revoked(token=token, family="", subject="", issued=0))
    except AuthStoreError:
        return False


async def test_what_came_while_the_connection_was_down_is_read_after_it(
    redis: Redis, clock: FakeClock
) -> None:
    reader = Revocations(redis, clock)
    await reader.read(1)
    writer = Revocations(redis, clock)
    await writer.revoke(RevocationKind.TOKEN, "missed")
    await redis.client_kill_filter(_type="normal", skipme=False)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            await reader.read(1)
        except AuthStoreError:
            continue
        break
    assert reader.revoked(token="missed", family="", subject="", issued=0) == "token"


async def test_a_replica_that_hears_nothing_lets_nobody_in(one: Desk) -> None:
    pair = await one.tokens.issue("ada")
    one.clock.advance(9)
    await one.tokens.verify(pair.access)
    one.clock.advance(2)
    with pytest.raises(AuthStoreError):
        await one.tokens.verify(pair.access)
    await one.revocations.read(1)
    await one.tokens.verify(pair.access)


async def test_without_redis_it_is_an_outage_and_no_yes(clock: FakeClock) -> None:
    with redis_server() as server:
        client = Redis.from_url(server.url)
        here = await desk(client, clock, Algorithm.EDDSA)
        pair = await here.tokens.issue("ada")
        server.stop()
        with pytest.raises(AuthStoreError):
            await here.tokens.refresh(pair.refresh)
        with pytest.raises(AuthStoreError):
            await here.revocations.revoke(RevocationKind.TOKEN, "x")
        await client.aclose()


# ---- keys -----------------------------------------------------------------------------------


async def test_keys_rotate_without_a_restart_and_without_a_gap(
    redis: Redis, clock: FakeClock
) -> None:
    replicas = [SigningKeyCache(RedisKeyStore(redis, SECRET), clock) for _ in range(2)]
    await asyncio.gather(*(replica.ensure() for replica in replicas))
    assert len((await replicas[0].current()).keys) == 1
    revocations = Revocations(redis, clock)
    lives = TokenLifetimes(access=600, refresh=600)
    tokens = [
        Tokens(redis, keys, revocations, clock, issuer=ISSUER, audience=AUDIENCE, lives=lives)
        for keys in replicas
    ]

    async def taken_everywhere(access: str) -> None:
        await revocations.read(1)
        for desk in tokens:
            await desk.verify(access)

    old = await tokens[0].issue("ada")
    await taken_everywhere(old.access)
    kid = await replicas[0].rotate(overlap=timedelta(seconds=630), algorithm=Algorithm.ES256)
    assert {key["kid"] for key in (await replicas[0].jwks())["keys"]} > {kid}
    # Until its time comes the new key is only published.
    early = await tokens[0].issue("ada")
    assert json.loads(base64.urlsafe_b64decode(early.access.split(".")[0] + "=="))["kid"] != kid
    clock.advance(61)
    new = await tokens[1].issue("ada")
    assert json.loads(base64.urlsafe_b64decode(new.access.split(".")[0] + "=="))["kid"] == kid
    for pair in (old, early, new):
        await taken_everywhere(pair.access)
    clock.advance(631)
    with pytest.raises(TokenError, match="by one of our keys"):
        await tokens[1].verify(old.access)
    assert {key["kid"] for key in (await replicas[1].jwks())["keys"]} == {kid}


async def test_two_that_rotate_at_once_do_not_lose_a_key(redis: Redis, clock: FakeClock) -> None:
    replicas = [SigningKeyCache(RedisKeyStore(redis, SECRET), clock) for _ in range(4)]
    await replicas[0].ensure()
    outcomes = await asyncio.gather(
        *(r.rotate(overlap=timedelta(hours=1)) for r in replicas), return_exceptions=True
    )
    made = {outcome for outcome in outcomes if isinstance(outcome, str)}
    assert made
    assert all(isinstance(o, str | RotationError) for o in outcomes)
    assert made < {key.kid for key in (await RedisKeyStore(redis, SECRET).load()).keys}


async def test_keys_in_redis_are_sealed(redis: Redis, clock: FakeClock) -> None:
    store = RedisKeyStore(redis, SECRET)
    keys = SigningKeyCache(store, clock)
    await keys.ensure()
    stored = b"".join((await redis.hgetall("engineroom:auth:keys")).values())
    pem = (await store.load()).keys[0].pem()
    assert pem not in stored
    assert base64.b64encode(pem) not in stored
    with pytest.raises(KeyStoreError, match="another secret"):
        await RedisKeyStore(redis, b"t" * 48).load()
    # An older set put back under a newer version does not pass.
    await redis.hset("engineroom:auth:keys", "version", "7")
    with pytest.raises(KeyStoreError):
        await store.load()


async def test_unknown_key_ids_do_not_make_us_look_each_time(clock: FakeClock) -> None:
    class Counting(MemoryKeyStore):
        looks = 0

        async def load(self) -> KeySet:
            self.looks += 1
            return await super().load()

    store = Counting(KeySet((SigningKey.generate(Algorithm.EDDSA, clock.now()),), 1))
    keys = SigningKeyCache(store, clock)
    for number in range(1000):
        assert await keys.verifier(f"guess-{number}") is None
    assert store.looks <= 2


async def test_a_mounted_secret_rotates_by_its_files(tmp_path: Path, clock: FakeClock) -> None:
    keys = SigningKeyCache(DirectoryKeyStore(tmp_path), clock, refresh=0)
    with pytest.raises(KeyStoreError, match="none may sign"):
        (await keys.current()).signer(clock.now())
    made = [SigningKey.generate(Algorithm.EDDSA, clock.now()) for _ in range(2)]
    (tmp_path / "a.pem").write_bytes(made[0].pem())
    assert (await keys.current()).signer(clock.now()).kid == made[0].kid
    (tmp_path / "active").write_text("a.pem\n")
    (tmp_path / "b.pem").write_bytes(made[1].pem())
    assert (await keys.current()).signer(clock.now()).kid == made[0].kid
    assert await keys.verifier(made[1].kid) is not None
    (tmp_path / "active").write_text("b.pem")
    assert (await keys.current()).signer(clock.now()).kid == made[1].kid
    (tmp_path / "a.pem").unlink()
    assert await keys.verifier(made[0].kid) is None


def test_what_is_published_and_shown_has_no_private_half(clock: FakeClock) -> None:
    for algorithm in Algorithm:
        key = SigningKey.generate(algorithm, clock.now())
        jwk = key.verifying.jwk()
        assert not {"d", "p", "q", "dp", "dq", "qi", "k"} & set(jwk)
        assert jwk["alg"] == algorithm.value
        assert "PRIVATE" not in repr(key)


def test_the_thumbprint_is_that_of_the_standard() -> None:
    """RFC 8037, appendix A.3."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from engineroom.auth.tokens.signing_keys import thumbprint

    raw = base64.urlsafe_b64decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
    public = Ed25519PublicKey.from_public_bytes(raw)
    expected = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    assert thumbprint(Algorithm.EDDSA, public) == expected
