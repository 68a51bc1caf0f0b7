"""API keys: for programs, shown once, kept as a keyed hash, and sealed with all that they give.

Form: ``erk_<id>_<secret><check>``, the id 16, the secret 43 (256 bits) and the check 6 characters
of 0-9A-Za-z; the check is the CRC-32 of all before it in base 62, so that a scanner of
leaked secrets needs no look-up to tell a key from a text that looks like one. As a pattern:
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

from engineroom.auth.audit.hash_chain import derived
from engineroom.auth.errors import ApiKeyError, AuthStoreError
from engineroom.auth.permissions import Grant, scope_of
from engineroom.auth.tokens.access_tokens import grants_of, scopes_of
from engineroom.core.sealing import Sealer, log_broken
from engineroom.redis.errors import asking, text, texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import timedelta

    from redis.asyncio import Redis

    from engineroom.core.clock import Clock

PREFIX = "erk"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID, _SECRET, _CHECK = 16, 43, 6
#: What scanners of leaked secrets may look for; the check removes what only looks like one.
PATTERN = re.compile(rf"{PREFIX}_[0-9A-Za-z]{{{_ID}}}_[0-9A-Za-z]{{{_SECRET + _CHECK}}}")
#: Seconds between two writes of when a key was last used.
USED_EVERY = 60.0
#: Seconds for which the record of a key that is over stays, for whoever asks what it was.
REMEMBERED = 30 * 86_400
#: Keys that one owner may have.
MAX_KEYS = 100
#: Times that a change of a key starts over because another one was faster.
MAX_TRIES = 20


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is kept of a key. Times are Unix seconds; None: never."""

    id: str
    owner: str
    name: str
    created: float
    grants: tuple[Grant, ...] = ()
    scopes: frozenset[str] | None = None
    expires: float | None = None
    last_used: float | None = None
    revoked: float | None = None
    #: Requests in a second, kept by whoever limits; None: as many as anybody.
    rate: int | None = None


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A key just made: ``secret`` is the whole key, and this is the only time that it is seen."""

    key: ApiKey
    secret: str = field(repr=False)


def looks_like_key(candidate: str) -> bool:
    """Whether it has the form and the check of a key; needs no look-up."""
    return bool(PATTERN.fullmatch(candidate)) and hmac.compare_digest(
        _check(candidate[:-_CHECK]), candidate[-_CHECK:]
    )


class ApiKeys:
    """Makes, recognises, rotates and revokes keys, in Redis.

    ``peppers`` are server secrets of at least 32 bytes: the first one hashes and seals new keys,
    all of them recognise, so that a pepper can be changed as keys are rotated. ``on_broken`` hears
    of records that somebody else wrote; see ``Sealer``.
    """

    def __init__(
        self,
        redis: Redis,
        clock: Clock,
        peppers: Sequence[bytes],
        *,
        name: str = "engineroom:auth:apikey",
        on_broken: Callable[[str, str], None] = log_broken,
    ) -> None:
        if not peppers or any(len(pepper) < 32 for pepper in peppers):
            msg = "peppers: needs one of at least 32 bytes; make it with openssl rand -base64 48"
            raise ValueError(msg)
        self._redis = redis
        self._clock = clock
        self._peppers = tuple(peppers)
        self._name = name
        seals = [derived(pepper, "seal") for pepper in peppers]
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
        """A new key of ``owner``. The caller has checked that he has what ``grants`` give.

        ``rate`` is requests in a second, for whoever limits by key. Raises ValueError for a name, a
        scope, a rate or a number of keys out of bounds; AuthStoreError.
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
        fields = {
            "hash": self._hash(self._peppers[0], secret),
            "owner": owner,
            "name": name,
            "created": repr(now),
            "grants": json.dumps([[g.role, sorted(g.namespaces)] for g in key.grants]),
            "scopes": json.dumps(None if wanted is None else sorted(wanted)),
            "expires": "" if key.expires is None else repr(key.expires),
            "rate": "" if rate is None else str(rate),
            "revoked": "",
        }
        fields["seal"] = self._sealer.seal_fields(self._record(key.id), fields)
        with asking():
            made = await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                _CREATE,
                2,
                self._record(key.id),
                self._owned(owner),
                key.id,
                str(MAX_KEYS),
                repr(now),
                "" if lifetime is None else str(int(lifetime.total_seconds()) + REMEMBERED),
                *(part for pair in fields.items() for part in pair),
            )
        if not made:
            msg = f"API key: {owner} has {MAX_KEYS} keys already; revoke one first"
            raise ValueError(msg)
        return NewApiKey(key, secret)

    async def verify(self, candidate: str) -> ApiKey:
        """The key that this is. Raises ApiKeyError, and AuthStoreError."""
        if not looks_like_key(candidate):
            raise ApiKeyError("malformed")
        identity = candidate.split("_")[1]
        with asking():
            fields = texts(await self._redis.hgetall(self._record(identity)))
        # Every pepper is tried, and an unknown id is compared like a known one: how long it
        # takes tells neither which pepper nor whether there is such a key.
        stored = fields.get("hash", "0" * 64)
        matches = [
            hmac.compare_digest(self._hash(pepper, candidate), stored) for pepper in self._peppers
        ]
        if not fields:
            raise ApiKeyError("unknown")
        if not any(matches):
            raise ApiKeyError("secret")
        key = self._opened(identity, fields)
        if key is None:
            raise ApiKeyError("seal")
        now = self._clock.now().timestamp()
        if key.revoked is not None:
            raise ApiKeyError("revoked")
        if key.expires is not None and now >= key.expires:
            raise ApiKeyError("expired")
        if key.last_used is None or now - key.last_used >= USED_EVERY:
            with asking():
                await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                    _USED, 1, self._record(identity), repr(now), repr(USED_EVERY)
                )
        return key

    async def get(self, identity: str) -> ApiKey | None:
        """What is kept of a key, by its id. Raises AuthStoreError."""
        with asking():
            fields = texts(await self._redis.hgetall(self._record(identity)))
        return self._opened(identity, fields) if fields else None

    async def of(self, owner: str) -> list[ApiKey]:
        """All keys of somebody, the youngest first, those that are over included for a while."""
        with asking():
            ids = [text(member) for member in await self._redis.smembers(self._owned(owner))]
            pipeline = self._redis.pipeline(transaction=False)
            for identity in ids:
                pipeline.hgetall(self._record(identity))
            rows = await pipeline.execute() if ids else []
        found = [
            self._opened(identity, texts(row))
            for identity, row in zip(ids, rows, strict=True)
            if row
        ]
        return sorted(
            (key for key in found if key is not None), key=lambda key: (-key.created, key.id)
        )

    async def rotate(self, identity: str, overlap: timedelta) -> NewApiKey:
        """A new key with the rights of an old one, which goes on for ``overlap`` at most.

        The new one lives as long from now as the old one did from its start.
        Raises ApiKeyError when the old one is over; ValueError and AuthStoreError as create.
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
        """End a key at once, everywhere; False if there is none. Raises AuthStoreError."""
        return await self._end(identity, "revoked", self._clock.now().timestamp())

    async def _end(self, identity: str, how: str, at: float) -> bool:
        """Note when a key is over; False if there is none."""
        life = int(max(0.0, at - self._clock.now().timestamp())) + REMEMBERED
        record = self._record(identity)
        for _ in range(MAX_TRIES):
            with asking():
                fields = texts(await self._redis.hgetall(record))
            if not fields or self._opened(identity, fields) is None:
                return False
            before, after = fields["seal"], {**_sealed(fields), how: repr(at)}
            seal = self._sealer.seal_fields(record, after)
            with asking():
                # Only over what was read: of two that end a key one looks again.
                if await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                    _END, 1, record, before, how, repr(at), seal, str(life)
                ):
                    return True
        raise AuthStoreError(f"API key: {MAX_TRIES} others changed it meanwhile; try again")

    def _opened(self, identity: str, fields: dict[str, str]) -> ApiKey | None:
        """The key, or None where these are not fields that were sealed for this id."""
        seal, sealed = fields.get("seal", ""), _sealed(fields)
        holds = self._sealer.fields_hold(seal, self._record(identity), sealed)
        return _key(identity, fields) if holds else None

    def _hash(self, pepper: bytes, candidate: str) -> str:
        return hmac.new(pepper, candidate.encode(), hashlib.sha256).hexdigest()

    def _record(self, identity: str) -> str:
        return f"{self._name}:{identity}"

    def _owned(self, owner: str) -> str:
        return f"{self._name}s:{hashlib.sha256(owner.encode()).hexdigest()}"


# Ids whose record is over are dropped from the owner's set when the next one is made.
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

# Only where the key is still there: a late write must not bring half of a record back.
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


def _sealed(fields: dict[str, str]) -> dict[str, str]:
    """What of a record is sealed: all but the seal, and when the key was last used."""
    return {name: said for name, said in fields.items() if name not in {"seal", "last_used"}}


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
    except ValueError:  # not sealed, and not as we write it
        return None


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _check(body: str) -> str:
    number, digits = zlib.crc32(body.encode()), ""
    for _ in range(_CHECK):
        number, digit = divmod(number, 62)
        digits = _ALPHABET[digit] + digits
    return digits
