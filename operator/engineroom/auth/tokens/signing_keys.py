"""Keys that sign tokens: made, kept, published, rotated with overlap and without a restart.

A new key is published some time before it signs, so that every replica and every reader of the
JWKS knows it by then; an old one verifies for as long as what it signed may live.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from engineroom.auth.errors import AuthStoreError, KeyStoreError, RotationError
from engineroom.redis.errors import asking, text

if TYPE_CHECKING:
    from pathlib import Path

    from redis.asyncio import Redis

    from engineroom.core.clock import Clock

#: Seconds for which loaded keys count as current.
REFRESH = 5.0
#: Least seconds between two looks for an unknown key id: callers choose ids, not our load.
UNKNOWN_PAUSE = 1.0
#: Seconds for which known keys go on verifying while the store does not answer.
MAX_STALE = 600.0
#: Keys in one set; more is a mistake or an attack.
MAX_KEYS = 50
#: Bytes of one key file.
MAX_KEY_BYTES = 16_384
MIN_RSA_BITS = 2048


class Algorithm(StrEnum):
    """Signature algorithms, all asymmetric; there is no other way to sign a token."""

    EDDSA = "EdDSA"
    ES256 = "ES256"
    RS256 = "RS256"


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A public key and the one algorithm that it is good for."""

    kid: str
    algorithm: Algorithm
    public: Any = field(repr=False)

    def jwk(self) -> dict[str, Any]:
        """As a JSON Web Key (RFC 7517), public half only."""
        jwk = dict(_jwk(self.algorithm, self.public))
        return {**jwk, "kid": self.kid, "alg": self.algorithm.value, "use": "sig"}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key with the times between which it signs and until which it verifies."""

    kid: str
    algorithm: Algorithm
    private: Any = field(repr=False)
    signs_from: datetime
    verifies_until: datetime | None = None

    @classmethod
    def generate(cls, algorithm: Algorithm, signs_from: datetime) -> SigningKey:
        """A new key; its id is its thumbprint (RFC 7638). RSA has 3072 bits."""
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
        """Of an unencrypted private key in PEM. Raises KeyStoreError."""
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            private = load_pem_private_key(pem, None)
        except (ValueError, TypeError) as error:
            raise KeyStoreError("signing key: is no unencrypted private key in PEM") from error
        algorithm = algorithm_of(private.public_key())
        kid = thumbprint(algorithm, private.public_key())
        return cls(kid, algorithm, private, signs_from, verifies_until)

    def pem(self) -> bytes:
        """The private key in PKCS#8 PEM, unencrypted."""
        from cryptography.hazmat.primitives import serialization as form

        pem: bytes = self.private.private_bytes(
            form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
        )
        return pem

    @property
    def verifying(self) -> VerifyingKey:
        """Its public half."""
        return VerifyingKey(self.kid, self.algorithm, self.private.public_key())


def algorithm_of(public: Any) -> Algorithm:
    """The one algorithm for a public key. Raises KeyStoreError for a kind that is not taken."""
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
    """Of a public key, by RFC 7638: SHA-256 over its required members, base64url."""
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
    """All keys at one moment; ``version`` changes with each change of them."""

    keys: tuple[SigningKey, ...] = ()
    version: int = 0

    def signer(self, now: datetime) -> SigningKey:
        """The youngest key whose time has come. Raises KeyStoreError when there is none."""
        ready = [
            key
            for key in self.keys
            if key.signs_from <= now and (key.verifies_until is None or now < key.verifies_until)
        ]
        if not ready:
            raise KeyStoreError("signing keys: none may sign now; rotate to make one")
        return max(ready, key=lambda key: (key.signs_from, key.kid))

    def verifier(self, kid: str, now: datetime) -> VerifyingKey | None:
        """The key of that id while it may verify. One that is to sign soon may already."""
        for key in self.keys:
            if key.kid == kid and (key.verifies_until is None or now < key.verifies_until):
                return key.verifying
        return None

    def jwks(self, now: datetime) -> dict[str, list[dict[str, Any]]]:
        """What is published under ``/.well-known/jwks.json``."""
        shown = (k for k in self.keys if k.verifies_until is None or now < k.verifies_until)
        return {"keys": [key.verifying.jwk() for key in shown]}

    def rotated(self, new: SigningKey, now: datetime, *, overlap: timedelta) -> KeySet:
        """With ``new``; older ones verify until ``overlap`` after it signs; what is over goes."""
        last = new.signs_from + overlap
        kept = [
            replace(key, verifies_until=min(key.verifies_until or last, last))
            for key in self.keys
            if key.verifies_until is None or now < key.verifies_until
        ]
        return KeySet((*kept, new), self.version + 1)


class KeyStore(Protocol):
    """Where signing keys are kept."""

    async def load(self) -> KeySet:
        """All keys. Raises KeyStoreError or AuthStoreError."""
        ...

    async def replace(self, keys: KeySet, expected: int) -> bool:
        """Keep ``keys`` if the version is still ``expected``; False when somebody was faster."""
        ...


class MemoryKeyStore:
    """Keys of one process; for tests and for applications of one process."""

    def __init__(self, keys: KeySet | None = None) -> None:
        self._keys = keys or KeySet()

    async def load(self) -> KeySet:
        """All keys."""
        return self._keys

    async def replace(self, keys: KeySet, expected: int) -> bool:
        """Keep ``keys`` if nobody else changed them."""
        if self._keys.version != expected:
            return False
        self._keys = keys
        return True


class RedisKeyStore:
    """Keys in Redis, encrypted with AES-256-GCM under ``secret`` (at least 32 bytes, any form).

    Whoever reads or writes Redis without the secret can neither read a key nor slip one in.
    """

    def __init__(self, redis: Redis, secret: bytes, *, name: str = "engineroom:auth:keys") -> None:
        if len(secret) < 32:
            msg = "secret: must be at least 32 bytes; make one with openssl rand -base64 48"
            raise ValueError(msg)
        self._redis = redis
        self._secret = hashlib.blake2b(secret, digest_size=32, person=b"er-signing-keys").digest()
        self._name = name

    async def load(self) -> KeySet:
        """All keys. Raises AuthStoreError, or KeyStoreError when another secret sealed them."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        with asking():
            version, sealed = await self._redis.hmget(self._name, ["version", "sealed"])
        if sealed is None:
            return KeySet()
        raw = base64.b64decode(text(sealed))
        try:
            # The version is authenticated with them: an old set cannot pass for the present one.
            document = AESGCM(self._secret).decrypt(raw[:12], raw[12:], text(version).encode())
        except InvalidTag as error:
            raise KeyStoreError(
                "signing keys: were sealed with another secret; restore it or delete "
                f"{self._name} and rotate"
            ) from error
        return KeySet(tuple(map(_from_document, json.loads(document))), int(text(version)))

    async def replace(self, keys: KeySet, expected: int) -> bool:
        """Keep ``keys`` if the version is still ``expected``. Raises AuthStoreError."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        document = json.dumps([_document(key) for key in keys.keys]).encode()
        nonce = os.urandom(12)
        version = str(keys.version)
        sealed = nonce + AESGCM(self._secret).encrypt(nonce, document, version.encode())
        with asking():
            done = await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                _REPLACE, 1, self._name, str(expected), version, base64.b64encode(sealed).decode()
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
    """Keys in a mounted Secret: every ``*.pem`` verifies, the last one by name signs.

    A file ``active`` that holds another one's name makes that one sign. To rotate: add a file and
    let ``active`` name the old one; when all replicas have seen it, let ``active`` name the new
    one; when the last token of the old one is over, take it away.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def load(self) -> KeySet:
        """All keys. Raises KeyStoreError."""
        return await asyncio.to_thread(self._read)

    async def replace(self, keys: KeySet, expected: int) -> bool:
        """A mounted Secret is changed in Kubernetes and not from within. Raises KeyStoreError."""
        raise KeyStoreError("signing keys: come from a mounted Secret; change the Secret instead")

    def _read(self) -> KeySet:
        try:
            paths = sorted(self._directory.glob("*.pem"))[: MAX_KEYS + 1]
            if len(paths) > MAX_KEYS:
                raise KeyStoreError(f"signing keys: more than {MAX_KEYS}; take old ones away")
            pems = {path.name: path.read_bytes()[: MAX_KEY_BYTES + 1] for path in paths}
            chosen = self._directory / "active"
            active = chosen.read_text()[:255].strip() if chosen.exists() else ""
        except OSError as error:
            raise KeyStoreError(
                f"signing keys: {type(error).__name__} while reading them"
            ) from error
        active = active or max(pems, default="")
        if pems and active not in pems:
            raise KeyStoreError(
                "signing keys: the file active names no key; name one that is there"
            )
        first, never = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
        return KeySet(
            tuple(
                SigningKey.from_pem(pem, first if name == active else never)
                for name, pem in pems.items()
            )
        )


class Keys:
    """The keys as one process knows them: cached, and looked for again when they may be new."""

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
        """All keys, at most ``refresh`` seconds old while the store answers.

        Raises KeyStoreError or AuthStoreError when it has not for ``max_stale`` seconds.
        """
        return await self._look(self._refresh)

    async def latest(self) -> KeySet:
        """All keys as the store has them now. Raises KeyStoreError or AuthStoreError."""
        return await self._look(0.0)

    async def verifier(self, kid: str) -> VerifyingKey | None:
        """The key of that id; looks again, at most once a second, when nobody knows it."""
        key = (await self.current()).verifier(kid, self._clock.now())
        if key is None:
            key = (await self._look(UNKNOWN_PAUSE)).verifier(kid, self._clock.now())
        return key

    async def jwks(self) -> dict[str, list[dict[str, Any]]]:
        """What is to be published."""
        return (await self.current()).jwks(self._clock.now())

    async def ensure(self, algorithm: Algorithm = Algorithm.EDDSA) -> None:
        """Make the first key if there is none; replicas that start together make one."""
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
        """Publish a new key that signs from ``lead`` on, and return its id.

        Old ones verify until ``overlap`` after that: no shorter than the longest-lived token.
        Raises RotationError when somebody else rotated at the same moment, or too many verify.
        """
        now = self._clock.now()
        keys = await self._store.load()
        if sum(key.verifies_until is None or now < key.verifies_until for key in keys.keys) >= (
            MAX_KEYS
        ):
            raise RotationError(f"signing keys: {MAX_KEYS} are kept; wait until old ones end")
        new = SigningKey.generate(algorithm, now + lead)
        if not await self._store.replace(keys.rotated(new, now, overlap=overlap), keys.version):
            raise RotationError("signing keys: somebody else rotated them just now; look again")
        self._loaded = self._tried = float("-inf")
        return new.kid

    async def _look(self, age: float) -> KeySet:
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
