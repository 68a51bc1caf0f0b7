"""Signing keys of tokens, with publication as a JWKS and rotation without a restart.

A new key is published some time before it signs, so all replicas and readers of the JWKS know it by
then. An old key verifies for the lifetime of the tokens that it signed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from engineroom.auth.encryption import RecordCipher
from engineroom.auth.errors import AuthStoreError, KeyStoreError, RotationError
from engineroom.auth.store_errors import store_errors
from engineroom.core import key_prefixes
from engineroom.core.redis_replies import text

if TYPE_CHECKING:
    from pathlib import Path

    from redis.asyncio import Redis

    from engineroom.core.clock import Clock

#: Seconds for which loaded keys are used without a reload.
REFRESH = 5.0
#: Least seconds between two lookups of unknown key ids, which limits the load by callers.
UNKNOWN_PAUSE = 1.0
#: Seconds for which loaded keys keep verifying while the store does not answer.
MAX_STALE = 600.0
#: Most keys of a set; more is a mistake or an attack.
MAX_KEYS = 50
#: Most bytes of a key file.
MAX_KEY_BYTES = 16_384
MIN_RSA_BITS = 2048


class Algorithm(StrEnum):
    """The supported signature algorithms, all asymmetric."""

    EDDSA = "EdDSA"
    ES256 = "ES256"
    RS256 = "RS256"


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A public key with its only algorithm."""

    kid: str
    algorithm: Algorithm
    public: Any = field(repr=False)

    def jwk(self) -> dict[str, Any]:
        """Return the public key as a JSON Web Key (RFC 7517)."""
        jwk = dict(_jwk(self.algorithm, self.public))
        return {**jwk, "kid": self.kid, "alg": self.algorithm.value, "use": "sig"}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key with the time from which it signs and the time until which it verifies."""

    kid: str
    algorithm: Algorithm
    private: Any = field(repr=False)
    signs_from: datetime
    verifies_until: datetime | None = None

    @classmethod
    def generate(cls, algorithm: Algorithm, signs_from: datetime) -> SigningKey:
        """Generate a key; its id is its thumbprint (RFC 7638). RSA keys have 3072 bits."""
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

        private: Any
        if algorithm is Algorithm.EDDSA:
            private = ed25519.Ed25519PrivateKey.generate()
        elif algorithm is Algorithm.ES256:
            private = ec.generate_private_key(ec.SECP256R1())
        else:
            private = rsa.generate_private_key(public_exponent=65537, key_size=3072)
        return cls(thumbprint(algorithm, private.public_key()), algorithm, private, signs_from)

    @classmethod
    def from_pem(
        cls, pem: bytes, signs_from: datetime, verifies_until: datetime | None = None
    ) -> SigningKey:
        """Load an unencrypted private key in PEM; raise KeyStoreError."""
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            private = load_pem_private_key(pem, None)
        except (ValueError, TypeError) as error:
            raise KeyStoreError("signing key: is not an unencrypted private key in PEM") from error
        algorithm = algorithm_of(private.public_key())
        kid = thumbprint(algorithm, private.public_key())
        return cls(kid, algorithm, private, signs_from, verifies_until)

    def pem(self) -> bytes:
        """Return the private key as unencrypted PKCS#8 PEM."""
        from cryptography.hazmat.primitives import serialization as form

        pem: bytes = self.private.private_bytes(
            form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
        )
        return pem

    @property
    def verifying(self) -> VerifyingKey:
        """The public key."""
        return VerifyingKey(self.kid, self.algorithm, self.private.public_key())


def algorithm_of(public: Any) -> Algorithm:
    """Return the algorithm of a public key; raise KeyStoreError for an unsupported kind."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(public, ed25519.Ed25519PublicKey):
        return Algorithm.EDDSA
    if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
        return Algorithm.ES256
    if isinstance(public, rsa.RSAPublicKey) and public.key_size >= MIN_RSA_BITS:
        return Algorithm.RS256
    raise KeyStoreError(
        f"key: must be Ed25519, EC on P-256, or RSA of at least {MIN_RSA_BITS} bits"
    )


def thumbprint(algorithm: Algorithm, public: Any) -> str:
    """Return the thumbprint of a public key (RFC 7638): SHA-256 of its required members."""
    jwk = _jwk(algorithm, public)
    members = {name: jwk[name] for name in ("crv", "e", "kty", "n", "x", "y") if name in jwk}
    document = json.dumps(members, sort_keys=True, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(hashlib.sha256(document).digest()).rstrip(b"=").decode()


def _jwk(algorithm: Algorithm, public: Any) -> dict[str, Any]:
    from jwt import algorithms

    if algorithm is Algorithm.EDDSA:
        return algorithms.OKPAlgorithm.to_jwk(public, as_dict=True)
    if algorithm is Algorithm.ES256:
        return algorithms.ECAlgorithm.to_jwk(public, as_dict=True)
    jwk = algorithms.RSAAlgorithm.to_jwk(public, as_dict=True)
    return {name: jwk[name] for name in ("kty", "n", "e")}


@dataclass(frozen=True, slots=True)
class KeySet:
    """A set of keys; ``version`` changes with each change."""

    keys: tuple[SigningKey, ...] = ()
    version: int = 0

    def signer(self, now: datetime) -> SigningKey:
        """Return the newest key that may sign; raise KeyStoreError if there is none."""
        ready = [
            key
            for key in self.keys
            if key.signs_from <= now and (key.verifies_until is None or now < key.verifies_until)
        ]
        if not ready:
            raise KeyStoreError("signing keys: none may sign now; rotate to make one")
        return max(ready, key=lambda key: (key.signs_from, key.kid))

    def verifier(self, kid: str, now: datetime) -> VerifyingKey | None:
        """Return the key with that id if it may verify, including one that will sign soon."""
        for key in self.keys:
            if key.kid == kid and (key.verifies_until is None or now < key.verifies_until):
                return key.verifying
        return None

    def jwks(self, now: datetime) -> dict[str, list[dict[str, Any]]]:
        """Return the JWKS for ``/.well-known/jwks.json``."""
        public = (k for k in self.keys if k.verifies_until is None or now < k.verifies_until)
        return {"keys": [key.verifying.jwk() for key in public]}

    def rotated(self, new: SigningKey, now: datetime, *, overlap: timedelta) -> KeySet:
        """Return a set with ``new`` added and ended keys removed.

        The remaining keys verify until ``overlap`` after ``new`` begins to sign.
        """
        last = new.signs_from + overlap
        remaining = [
            replace(key, verifies_until=min(key.verifies_until or last, last))
            for key in self.keys
            if key.verifies_until is None or now < key.verifies_until
        ]
        return KeySet((*remaining, new), self.version + 1)


class KeyStore(Protocol):
    """A store of signing keys."""

    async def load(self) -> KeySet:
        """Return all keys; raise KeyStoreError or AuthStoreError."""
        ...

    async def replace(self, keys: KeySet, expected: int) -> bool:
        """Store ``keys`` if the version is still ``expected``; return False otherwise."""
        ...


class MemoryKeyStore:
    """A store in memory, for tests and for applications with one process."""

    def __init__(self, keys: KeySet | None = None) -> None:
        self._keys = keys or KeySet()

    async def load(self) -> KeySet:
        """Return all keys."""
        return self._keys

    async def replace(self, keys: KeySet, expected: int) -> bool:
        """Store ``keys`` if the version is still ``expected``; return False otherwise."""
        if self._keys.version != expected:
            return False
        self._keys = keys
        return True


class RedisKeyStore:
    """A store in Redis, encrypted with AES-256-GCM under ``secret`` (at least 32 bytes).

    Access to Redis without the secret permits neither reading nor adding a key.
    """

    def __init__(
        self, redis: Redis, secret: bytes, *, name: str = key_prefixes.SIGNING_KEYS
    ) -> None:
        self._redis = redis
        self._cipher = RecordCipher(secret, b"er-signing-keys")
        self._name = name

    async def load(self) -> KeySet:
        """Return all keys; raise AuthStoreError, or KeyStoreError if the secret is wrong."""
        with store_errors():
            version, encrypted = await self._redis.hmget(self._name, ["version", "sealed"])
        if encrypted is None:
            return KeySet()
        # The version is the record's name, so an older set does not pass for the current one.
        document = self._cipher.decrypt(text(version), text(encrypted))
        if document is None:
            raise KeyStoreError(
                "signing keys: were encrypted with another secret; restore it or delete "
                f"{self._name} and rotate"
            )
        return KeySet(tuple(map(_from_document, json.loads(document))), int(text(version)))

    async def replace(self, keys: KeySet, expected: int) -> bool:
        """Store ``keys`` if the version is still ``expected``; raise AuthStoreError."""
        document = json.dumps([_document(key) for key in keys.keys]).encode()
        version = str(keys.version)
        encrypted = self._cipher.encrypt(version, document)
        with store_errors():
            done = await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                _REPLACE, 1, self._name, str(expected), version, encrypted
            )
        return bool(done)


_REPLACE = """
local version = redis.call('HGET', KEYS[1], 'version') or '0'
if version ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'sealed', ARGV[3])
return 1
"""


def _document(key: SigningKey) -> dict[str, str]:
    until = key.verifies_until.isoformat() if key.verifies_until else ""
    return {"pem": key.pem().decode(), "from": key.signs_from.isoformat(), "until": until}


def _from_document(document: dict[str, str]) -> SigningKey:
    until = datetime.fromisoformat(document["until"]) if document["until"] else None
    return SigningKey.from_pem(
        document["pem"].encode(), datetime.fromisoformat(document["from"]), until
    )


class DirectoryKeyStore:
    """A store in a mounted Secret: every ``*.pem`` verifies, the last one by name signs.

    A file ``active`` may name another file that signs. To rotate: add a key while ``active`` names
    the old one; once all replicas have loaded it, let ``active`` name the new one; once the last
    token of the old one has expired, remove it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def load(self) -> KeySet:
        """Return all keys; raise KeyStoreError."""
        return await asyncio.to_thread(self._read)

    async def replace(self, keys: KeySet, expected: int) -> bool:
        """Raise KeyStoreError, because a mounted Secret is read-only."""
        raise KeyStoreError("signing keys: come from a mounted Secret; change the Secret instead")

    def _read(self) -> KeySet:
        try:
            paths = sorted(self._directory.glob("*.pem"))[: MAX_KEYS + 1]
            if len(paths) > MAX_KEYS:
                raise KeyStoreError(f"signing keys: more than {MAX_KEYS}; remove old ones")
            pems = {path.name: path.read_bytes()[: MAX_KEY_BYTES + 1] for path in paths}
            chosen = self._directory / "active"
            active = chosen.read_text()[:255].strip() if chosen.exists() else ""
        except OSError as error:
            raise KeyStoreError(
                f"signing keys: {type(error).__name__} while reading them"
            ) from error
        active = active or max(pems, default="")
        if pems and active not in pems:
            raise KeyStoreError("signing keys: the file active names no existing key")
        first, never = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
        return KeySet(
            tuple(
                SigningKey.from_pem(pem, first if name == active else never)
                for name, pem in pems.items()
            )
        )


class SigningKeyCache:
    """A cache of the keys for one process, reloaded when they may have changed."""

    def __init__(
        self,
        store: KeyStore,
        clock: Clock,
        *,
        refresh: float = REFRESH,
        max_stale: float = MAX_STALE,
    ) -> None:
        self._store = store
        self._clock = clock
        self._refresh = refresh
        self._max_stale = max_stale
        self._keys: KeySet | None = None
        self._loaded = self._tried = float("-inf")
        self._lock = asyncio.Lock()

    async def current(self) -> KeySet:
        """Return all keys, at most ``refresh`` seconds old while the store answers.

        Raises KeyStoreError or AuthStoreError if it has not answered for ``max_stale`` seconds.
        """
        return await self._read_keys(self._refresh)

    async def latest(self) -> KeySet:
        """Return all keys, reloaded now; raise KeyStoreError or AuthStoreError."""
        return await self._read_keys(0.0)

    async def verifier(self, kid: str) -> VerifyingKey | None:
        """Return the key with that id; reload for an unknown one, at most once a second."""
        key = (await self.current()).verifier(kid, self._clock.now())
        if key is None:
            key = (await self._read_keys(UNKNOWN_PAUSE)).verifier(kid, self._clock.now())
        return key

    async def jwks(self) -> dict[str, list[dict[str, Any]]]:
        """Return the JWKS to publish."""
        return (await self.current()).jwks(self._clock.now())

    async def ensure(self, algorithm: Algorithm = Algorithm.EDDSA) -> None:
        """Create the first key if there is none; concurrent replicas create only one."""
        if not (await self._store.load()).keys:
            now = self._clock.now()
            first = KeySet((SigningKey.generate(algorithm, now),), 1)
            await self._store.replace(first, 0)
        self._loaded = self._tried = float("-inf")

    async def rotate(
        self,
        *,
        overlap: timedelta,
        lead: timedelta = timedelta(minutes=1),
        algorithm: Algorithm = Algorithm.EDDSA,
    ) -> str:
        """Publish a new key that begins to sign after ``lead``, and return its id.

        Old keys verify until ``overlap`` after that, which must be at least the longest lifetime of
        a token. Raises RotationError after a concurrent rotation, or with too many keys.
        """
        now = self._clock.now()
        keys = await self._store.load()
        if sum(key.verifies_until is None or now < key.verifies_until for key in keys.keys) >= (
            MAX_KEYS
        ):
            raise RotationError(f"signing keys: {MAX_KEYS} are kept; wait until old ones end")
        new = SigningKey.generate(algorithm, now + lead)
        if not await self._store.replace(keys.rotated(new, now, overlap=overlap), keys.version):
            raise RotationError("signing keys: were rotated concurrently; check and try again")
        self._loaded = self._tried = float("-inf")
        return new.kid

    async def _read_keys(self, age: float) -> KeySet:
        if self._keys is not None and self._clock.monotonic() - self._tried < age:
            return self._keys
        async with self._lock:
            now = self._clock.monotonic()
            if self._keys is not None and now - self._tried < age:
                return self._keys
            self._tried = now
            try:
                self._keys = await self._store.load()
            except (KeyStoreError, AuthStoreError):
                if self._keys is None or now - self._loaded > self._max_stale:
                    self._tried = float("-inf")
                    raise
            else:
                self._loaded = now
            return self._keys
