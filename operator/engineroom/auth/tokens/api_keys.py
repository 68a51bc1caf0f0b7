"""API keys for programs, stored as a keyed hash in a sealed record.

Format: ``erk_<id>_<secret><check>`` with an id of 16, a secret of 43 (256 bits) and a checksum of 6
characters of 0-9A-Za-z. The checksum is the CRC-32 of all preceding characters in base 62, by which
scanners of leaked secrets can recognise a key offline. As a regular expression:
``erk_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engineroom.auth.audit.hash_chain import derive_secret
from engineroom.auth.errors import ApiKeyError, AuthStoreError
from engineroom.auth.permissions import Grant, scope_of
from engineroom.auth.store_errors import store_errors
from engineroom.auth.tokens.access_tokens import grants_of, scopes_of
from engineroom.core import key_prefixes
from engineroom.core.redis_replies import text, texts
from engineroom.core.sealing import Sealer, log_broken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import timedelta

    from redis.asyncio import Redis

    from engineroom.core.clock import Clock

PREFIX = "erk"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID, _SECRET, _CHECK = 16, 43, 6
#: The pattern for scanners of leaked secrets; the checksum excludes false positives.
PATTERN = re.compile(rf"{PREFIX}_[0-9A-Za-z]{{{_ID}}}_[0-9A-Za-z]{{{_SECRET + _CHECK}}}")
#: Least seconds between two updates of a key's time of last use.
USED_EVERY = 60.0
#: Seconds for which the record of an ended key is kept.
REMEMBERED = 30 * 86_400
#: Most keys of one owner.
MAX_KEYS = 100
#: Most retries of a change after concurrent changes.
MAX_TRIES = 20


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The stored data of a key. Times are Unix seconds; None is never."""

    id: str
    owner: str
    name: str
    created: float
    grants: tuple[Grant, ...] = ()
    scopes: frozenset[str] | None = None
    expires: float | None = None
    last_used: float | None = None
    revoked: float | None = None
    #: Requests in a second, for the application's rate limiter; None for the general limit.
    rate: int | None = None


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A new key: ``secret`` is the whole key and is not stored."""

    key: ApiKey
    secret: str = field(repr=False)


def looks_like_key(candidate: str) -> bool:
    """Return whether a text has the format and the checksum of a key."""
    return bool(PATTERN.fullmatch(candidate)) and hmac.compare_digest(
        _check(candidate[:-_CHECK]), candidate[-_CHECK:]
    )


class ApiKeys:
    """Creates, verifies, rotates and revokes keys in Redis.

    ``peppers`` are server secrets of at least 32 bytes: the first one hashes and seals new keys,
    all of them verify. To change a pepper, rotate all keys. ``on_broken``: see ``Sealer``.
    """

    def __init__(
        self,
        redis: Redis,
        clock: Clock,
        peppers: Sequence[bytes],
        *,
        name: str = key_prefixes.API_KEYS,
        on_broken: Callable[[str, str], None] = log_broken,
    ) -> None:
        if not peppers or any(len(pepper) < 32 for pepper in peppers):
            msg = "peppers: needs one of at least 32 bytes; make it with openssl rand -base64 48"
            raise ValueError(msg)
        self._redis = redis
        self._clock = clock
        self._peppers = tuple(peppers)
        self._name = name
        seals = [derive_secret(pepper, "seal") for pepper in peppers]
        self._sealer = Sealer(seals[0], "API key", on_broken, older=seals[1:])

    async def create(
        self,
        owner: str,
        name: str,
        grants: Iterable[Grant],
        *,
        scopes: Iterable[str] | None = None,
        lifetime: timedelta | None = None,
        rate: int | None = None,
    ) -> NewApiKey:
        """Create a key of ``owner``; the caller must check that the owner has ``grants``.

        ``rate`` is requests in a second, for a rate limiter. Raises ValueError for an invalid name,
        scope or rate, or too many keys; AuthStoreError.
        """
        if not 0 < len(owner) <= 255 or not 0 < len(name) <= 100:
            msg = "API key: owner needs 1 to 255 characters and name 1 to 100"
            raise ValueError(msg)
        if rate is not None and rate < 1:
            raise ValueError(f"API key: rate is {rate}; write 1 or more requests in a second")
        wanted = None if scopes is None else frozenset(scopes)
        for scope in wanted or ():
            scope_of(scope)
        now = self._clock.now().timestamp()
        key = ApiKey(
            id=_random(_ID),
            owner=owner,
            name=name,
            created=now,
            grants=tuple(grants),
            scopes=wanted,
            expires=None if lifetime is None else now + lifetime.total_seconds(),
            rate=rate,
        )
        body = f"{PREFIX}_{key.id}_{_random(_SECRET)}"
        secret = body + _check(body)
        await self._store(key, secret, lifetime)
        return NewApiKey(key, secret)

    async def _store(self, key: ApiKey, secret: str, lifetime: timedelta | None) -> None:
        fields = {
            "hash": self._hash(self._peppers[0], secret),
            "owner": key.owner,
            "name": key.name,
            "created": repr(key.created),
            "grants": json.dumps([[g.role, sorted(g.namespaces)] for g in key.grants]),
            "scopes": json.dumps(None if key.scopes is None else sorted(key.scopes)),
            "expires": "" if key.expires is None else repr(key.expires),
            "rate": "" if key.rate is None else str(key.rate),
            "revoked": "",
        }
        fields["seal"] = self._sealer.seal_fields(self._record(key.id), fields)
        with store_errors():
            stored = await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                _CREATE,
                2,
                self._record(key.id),
                self._owner_key(key.owner),
                key.id,
                str(MAX_KEYS),
                repr(key.created),
                "" if lifetime is None else str(int(lifetime.total_seconds()) + REMEMBERED),
                *(part for pair in fields.items() for part in pair),
            )
        if not stored:
            msg = f"API key: {key.owner} has {MAX_KEYS} keys already; revoke one first"
            raise ValueError(msg)

    async def verify(self, candidate: str) -> ApiKey:
        """Verify a key and return its data; raise ApiKeyError or AuthStoreError."""
        if not looks_like_key(candidate):
            raise ApiKeyError("malformed")
        identity = candidate.split("_")[1]
        with store_errors():
            fields = texts(await self._redis.hgetall(self._record(identity)))
        # Compares with every pepper, and with a dummy for an unknown id: the time reveals neither
        # the pepper nor whether the key exists.
        stored = fields.get("hash", "0" * 64)
        matches = [
            hmac.compare_digest(self._hash(pepper, candidate), stored) for pepper in self._peppers
        ]
        if not fields:
            raise ApiKeyError("unknown")
        if not any(matches):
            raise ApiKeyError("secret")
        key = self._verify_fields(identity, fields)
        if key is None:
            raise ApiKeyError("seal")
        now = self._clock.now().timestamp()
        if key.revoked is not None:
            raise ApiKeyError("revoked")
        if key.expires is not None and now >= key.expires:
            raise ApiKeyError("expired")
        if key.last_used is None or now - key.last_used >= USED_EVERY:
            with store_errors():
                await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                    _USED, 1, self._record(identity), repr(now), repr(USED_EVERY)
                )
        return key

    async def get(self, identity: str) -> ApiKey | None:
        """Return the data of a key by its id, or None; raise AuthStoreError."""
        with store_errors():
            fields = texts(await self._redis.hgetall(self._record(identity)))
        return self._verify_fields(identity, fields) if fields else None

    async def of(self, owner: str) -> list[ApiKey]:
        """Return all keys of an owner, newest first, including recently ended ones."""
        with store_errors():
            ids = [text(member) for member in await self._redis.smembers(self._owner_key(owner))]
            pipeline = self._redis.pipeline(transaction=False)
            for identity in ids:
                pipeline.hgetall(self._record(identity))
            rows = await pipeline.execute() if ids else []
        keys = [
            self._verify_fields(identity, texts(row))
            for identity, row in zip(ids, rows, strict=True)
            if row
        ]
        return sorted(
            (key for key in keys if key is not None), key=lambda key: (-key.created, key.id)
        )

    async def rotate(self, identity: str, overlap: timedelta) -> NewApiKey:
        """Create a key with the rights of an old one, which stays valid for ``overlap`` at most.

        The new key has the lifetime of the old one. Raises ApiKeyError if the old one has ended,
        and ValueError and AuthStoreError as ``create`` does.
        """
        old = await self.get(identity)
        now = self._clock.now().timestamp()
        if old is None or old.revoked is not None or (old.expires or now + 1) <= now:
            raise ApiKeyError("over")
        from datetime import timedelta as seconds

        lifetime = None if old.expires is None else seconds(seconds=old.expires - old.created)
        new = await self.create(
            old.owner, old.name, old.grants, scopes=old.scopes, lifetime=lifetime, rate=old.rate
        )
        last = now + overlap.total_seconds()
        await self._end(identity, "expires", min(old.expires or last, last))
        return new

    async def revoke(self, identity: str) -> bool:
        """Revoke a key at once; return False if there is none. Raises AuthStoreError."""
        return await self._end(identity, "revoked", self._clock.now().timestamp())

    async def _end(self, identity: str, how: str, at: float) -> bool:
        """Set the end of a key; return False if there is none."""
        life = int(max(0.0, at - self._clock.now().timestamp())) + REMEMBERED
        record = self._record(identity)
        for _ in range(MAX_TRIES):
            with store_errors():
                fields = texts(await self._redis.hgetall(record))
            if not fields or self._verify_fields(identity, fields) is None:
                return False
            before, after = fields["seal"], {**_sealed_fields(fields), how: repr(at)}
            seal = self._sealer.seal_fields(record, after)
            with store_errors():
                # Compares the seal that was read: of two concurrent changes one retries.
                if await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                    _END, 1, record, before, how, repr(at), seal, str(life)
                ):
                    return True
        raise AuthStoreError("API key: it keeps changing meanwhile; try again")

    def _verify_fields(self, identity: str, fields: dict[str, str]) -> ApiKey | None:
        """Return the key, or None if the fields have no valid seal for this id."""
        seal, sealed = fields.get("seal", ""), _sealed_fields(fields)
        holds = self._sealer.fields_hold(seal, self._record(identity), sealed)
        return _key(identity, fields) if holds else None

    def _hash(self, pepper: bytes, candidate: str) -> str:
        return hmac.new(pepper, candidate.encode(), hashlib.sha256).hexdigest()

    def _record(self, identity: str) -> str:
        return f"{self._name}:{identity}"

    def _owner_key(self, owner: str) -> str:
        return f"{self._name}s:{hashlib.sha256(owner.encode()).hexdigest()}"


# Also removes ids without a record from the owner's set.
_CREATE = """
local prefix = string.sub(KEYS[1], 1, #KEYS[1] - #ARGV[1])
for _, id in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  if redis.call('EXISTS', prefix .. id) == 0 then redis.call('SREM', KEYS[2], id) end
end
local active = 0
for _, id in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  local key = redis.call('HMGET', prefix .. id, 'revoked', 'expires')
  local over = (key[1] and key[1] ~= '') or (key[2] ~= '' and tonumber(key[2]) <= tonumber(ARGV[3]))
  if not over then active = active + 1 end
end
if active >= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
if ARGV[4] ~= '' then redis.call('EXPIRE', KEYS[1], ARGV[4]) end
redis.call('SADD', KEYS[2], ARGV[1])
return 1
"""

# Only if the key exists: a late write must not create a partial record.
_USED = """
local last = redis.call('HMGET', KEYS[1], 'hash', 'last_used')
if not last[1] then return 0 end
if last[2] and tonumber(ARGV[1]) - tonumber(last[2]) < tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'last_used', ARGV[1])
return 1
"""

_END = """
if redis.call('HGET', KEYS[1], 'seal') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3], 'seal', ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[5])
return 1
"""


def _sealed_fields(fields: dict[str, str]) -> dict[str, str]:
    """Return the sealed fields of a record: all but the seal and the time of last use."""
    return {name: value for name, value in fields.items() if name not in {"seal", "last_used"}}


def _key(identity: str, fields: dict[str, str]) -> ApiKey:
    scopes: Any = json.loads(fields["scopes"])
    return ApiKey(
        id=identity,
        owner=fields["owner"],
        name=fields["name"],
        created=float(fields["created"]),
        grants=grants_of(json.loads(fields["grants"])),
        scopes=scopes_of(scopes),
        expires=_moment(fields.get("expires")),
        last_used=_moment(fields.get("last_used")),
        revoked=_moment(fields.get("revoked")),
        rate=int(fields["rate"]) if fields.get("rate") else None,
    )


def _moment(value: str | None) -> float | None:
    try:
        return float(value) if value else None
    except ValueError:  # ``last_used`` is not sealed and may have been tampered with
        return None


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _check(body: str) -> str:
    number, digits = zlib.crc32(body.encode()), ""
    for _ in range(_CHECK):
        number, digit = divmod(number, 62)
        digits = _ALPHABET[digit] + digits
    return digits
