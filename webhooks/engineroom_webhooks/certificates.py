"""The server's certificates: made here, kept in a Secret, rotated without a gap in trust.

``decide`` is pure. Its rule: a leaf is used only when its CA has stood in the webhook
configuration for a while, and a CA leaves the configuration only a while after its last leaf. The
steps, each taken on what was read back after the one before:

1. nothing usable in the Secret: make a CA and a leaf;
2. CA near its end: put the next CA beside it into the Secret (``next-ca``);
3. publish the CAs of the Secret, and for a while the ones that went;
4. the next CA is seen published and has settled: make it the CA, with a leaf of its own;
5. leaf near its end, or for other names: make a new one from the same CA;
6. use the Secret's leaf once its CA is published.

Any number of replicas may do this at once: writing the Secret depends on the resourceVersion that
was read, and so does publishing, where the configuration was read *before* the Secret. Who decided
on something old fails to write and looks again.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Clocks of nodes differ; what is made now must be valid on the slowest of them.
_BACKDATE = timedelta(hours=2)
#: Renewed when this part of the lifetime is left.
_RENEW_AT = 1 / 3

CA_CERTIFICATE, CA_KEY = "ca.crt", "ca.key"
NEXT_CERTIFICATE, NEXT_KEY = "next-ca.crt", "next-ca.key"
LEAF_CERTIFICATE, LEAF_KEY = "tls.crt", "tls.key"
NEXT_SINCE = "next-ca-since"
LEAF_SINCE = "leaf-since"
#: Every key that we keep in the Secret.
KEYS = (
    CA_CERTIFICATE,
    CA_KEY,
    NEXT_CERTIFICATE,
    NEXT_KEY,
    LEAF_CERTIFICATE,
    LEAF_KEY,
    NEXT_SINCE,
    LEAF_SINCE,
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, both PEM."""

    certificate: bytes
    key: bytes = field(repr=False)

    @property
    def parsed(self) -> x509.Certificate:
        """The certificate, parsed."""
        return x509.load_pem_x509_certificate(self.certificate)


@dataclass(frozen=True, slots=True)
class Stored:
    """What the Secret holds, all of it usable; see ``stored``."""

    authority: Pair
    leaf: Pair
    leaf_since: datetime
    next_authority: Pair | None = None
    next_since: datetime | None = None

    def authorities(self) -> tuple[bytes, ...]:
        """Certificates of the CAs, the present one first."""
        found = [self.authority.certificate]
        if self.next_authority is not None:
            found.append(self.next_authority.certificate)
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Policy:
    """For how long, for which names, and how patiently; times in seconds."""

    names: tuple[str, ...]
    leaf_lifetime: float
    authority_lifetime: float
    settle: float
    retire: float


class Step(StrEnum):
    """What is to be written into the Secret."""

    NONE = "none"
    CREATE = "create"
    ADD_NEXT = "add-next-ca"
    #: Note when the next CA was first seen published; it settles from then on.
    MARK_NEXT = "mark-next-ca"
    PROMOTE = "promote-ca"
    RENEW_LEAF = "renew-leaf"


@dataclass(frozen=True, slots=True)
class Decision:
    """The next step: at most one write to the Secret, then looked at anew."""

    step: Step = Step.NONE
    #: The CA bundle that the webhook configuration should have; None: as it is.
    publish: bytes | None = None
    #: Use the Secret's leaf from now on.
    serve: bool = False
    #: Whether what is (or is to be) served is trusted by the configuration.
    trusted: bool = False


def decide(
    now: datetime,
    secret: Stored | None,
    published: tuple[bytes, ...] | None,
    serving: bytes | None,
    policy: Policy,
) -> Decision:
    """The next step, from the Secret, the CAs that are published, and the leaf in use.

    ``published`` is None where publishing is not our business; ``serving`` is the certificate in
    use, None before the first.
    """
    if secret is None:
        return Decision(step=Step.CREATE)
    known = published if published is not None else secret.authorities()
    step = _step(now, secret, known, policy)
    wanted = _wanted(now, secret, known, policy)
    trusted = secret.authority.certificate in known
    old_is_trusted = serving is not None and any(_signed(serving, ca) for ca in known)
    settled = _passed(now, secret.leaf_since, policy.settle)
    # With a leaf that still works in hand there is time for the API servers to learn the new CA.
    serve = serving != secret.leaf.certificate and (
        serving is None or not old_is_trusted or (trusted and settled)
    )
    in_use = secret.leaf.certificate if serve else serving
    return Decision(
        step=step,
        publish=None if published is None or wanted == known else b"".join(wanted),
        serve=serve,
        trusted=in_use is not None and any(_signed(in_use, ca) for ca in known),
    )


def _step(now: datetime, secret: Stored, known: tuple[bytes, ...], policy: Policy) -> Step:
    following = secret.next_authority
    if following is not None:
        seen = following.certificate in known
        if seen and secret.next_since is None:
            return Step.MARK_NEXT
        settled = secret.next_since is not None and _passed(now, secret.next_since, policy.settle)
        # A CA at its very end is of no use to wait with.
        if (seen and settled) or _ends(secret.authority, now):
            return Step.PROMOTE
    elif _due(secret.authority, now):
        return Step.ADD_NEXT
    if _names(secret.leaf.parsed) != set(policy.names):
        return Step.RENEW_LEAF
    # A leaf that ends with its CA cannot be made to live longer.
    longest = secret.authority.parsed.not_valid_after_utc
    if _due(secret.leaf, now) and secret.leaf.parsed.not_valid_after_utc < longest:
        return Step.RENEW_LEAF
    return Step.NONE


def _wanted(
    now: datetime, secret: Stored, known: tuple[bytes, ...], policy: Policy
) -> tuple[bytes, ...]:
    """The CAs to publish: the Secret's, and those that went lately but may still be in use."""
    wanted = list(secret.authorities())
    if not _passed(now, secret.leaf_since, policy.retire):
        wanted += [ca for ca in known if ca not in wanted and not _expired(ca, now)]
    return tuple(wanted)


def _passed(now: datetime, since: datetime, seconds: float) -> bool:
    return (now - since).total_seconds() >= seconds


def _due(pair: Pair, now: datetime) -> bool:
    certificate = pair.parsed
    start = certificate.not_valid_before_utc + _BACKDATE
    lifetime = certificate.not_valid_after_utc - start
    return now >= certificate.not_valid_after_utc - lifetime * _RENEW_AT or now < (
        certificate.not_valid_before_utc
    )


def _ends(pair: Pair, now: datetime) -> bool:
    return now >= pair.parsed.not_valid_after_utc


def _expired(certificate: bytes, now: datetime) -> bool:
    return now >= x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def _signed(leaf: bytes, authority: bytes) -> bool:
    parsed = x509.load_pem_x509_certificate(leaf)
    try:
        parsed.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _names(certificate: x509.Certificate) -> set[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return set()
    return set(found.value.get_values_for_type(x509.DNSName)) | {
        str(address) for address in found.value.get_values_for_type(x509.IPAddress)
    }


# -- making -------------------------------------------------------------------------------------


def carry_out(step: Step, now: datetime, secret: Stored | None, policy: Policy) -> Stored:
    """What the Secret should hold after ``step``; makes keys, so call it outside the event loop."""
    if step is Step.CREATE or secret is None:
        authority = make_authority(now, policy)
        return Stored(authority, make_leaf(now, authority, policy), now)
    if step is Step.ADD_NEXT:
        return replace(secret, next_authority=make_authority(now, policy), next_since=None)
    if step is Step.MARK_NEXT:
        return replace(secret, next_since=now)
    if step is Step.PROMOTE and secret.next_authority is not None:
        authority = secret.next_authority
        return Stored(authority, make_leaf(now, authority, policy), now)
    if step is Step.RENEW_LEAF:
        return replace(secret, leaf=make_leaf(now, secret.authority, policy), leaf_since=now)
    return secret


def make_authority(now: datetime, policy: Policy) -> Pair:
    """A new CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    # The serial in the name tells two CAs apart where chains are built by name.
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"engineroom-webhooks-{serial & 0xFFFFFFFF:08x}")]
    )
    certificate = (
        _builder(now, now + timedelta(seconds=policy.authority_lifetime), key.public_key(), serial)
        .subject_name(name)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair(certificate, key)


def make_leaf(now: datetime, authority: Pair, policy: Policy) -> Pair:
    """A new server certificate, signed by ``authority`` and never outliving it."""
    issuer = authority.parsed
    issuer_key = serialization.load_pem_private_key(authority.key, password=None)
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        message = "the CA's key is of another kind than we make"
        raise TypeError(message)
    key = ec.generate_private_key(ec.SECP256R1())
    end = min(now + timedelta(seconds=policy.leaf_lifetime), issuer.not_valid_after_utc)
    certificate = (
        _builder(now, end, key.public_key(), x509.random_serial_number())
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "engineroom-webhooks")]))
        .issuer_name(issuer.subject)
        .add_extension(x509.SubjectAlternativeName(_general_names(policy.names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256())
    )
    return _pair(certificate, key)


def _builder(
    now: datetime, end: datetime, key: ec.EllipticCurvePublicKey, serial: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(end)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_names(names: Iterable[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


# -- keeping ------------------------------------------------------------------------------------


def stored(data: Mapping[str, bytes], now: datetime) -> Stored | None:
    """What a Secret's data holds; None when anything of CA and leaf is missing, broken or ended.

    A broken next CA is passed over: it is made anew when it is due.
    """
    authority = _usable(data, CA_CERTIFICATE, CA_KEY)
    leaf = _usable(data, LEAF_CERTIFICATE, LEAF_KEY)
    if authority is None or leaf is None or not _signed(leaf.certificate, authority.certificate):
        return None
    following = _usable(data, NEXT_CERTIFICATE, NEXT_KEY)
    if _ends(authority, now) and following is None:
        return None
    return Stored(
        authority,
        leaf,
        _time(data.get(LEAF_SINCE), now),
        following,
        _time(data[NEXT_SINCE], now) if following is not None and data.get(NEXT_SINCE) else None,
    )


def data_of(secret: Stored) -> dict[str, bytes]:
    """The Secret's data for ``secret``."""
    data = {
        CA_CERTIFICATE: secret.authority.certificate,
        CA_KEY: secret.authority.key,
        LEAF_CERTIFICATE: secret.leaf.certificate,
        LEAF_KEY: secret.leaf.key,
        LEAF_SINCE: secret.leaf_since.isoformat().encode(),
    }
    if secret.next_authority is not None:
        data[NEXT_CERTIFICATE] = secret.next_authority.certificate
        data[NEXT_KEY] = secret.next_authority.key
        if secret.next_since is not None:
            data[NEXT_SINCE] = secret.next_since.isoformat().encode()
    return data


def split_bundle(bundle: bytes) -> tuple[bytes, ...]:
    """The certificates of a PEM bundle, each as we write it; what is none is passed over."""
    try:
        found = x509.load_pem_x509_certificates(bundle) if bundle.strip() else []
    except ValueError:
        return ()
    return tuple(one.public_bytes(serialization.Encoding.PEM) for one in found)


def _usable(data: Mapping[str, bytes], certificate: str, key: str) -> Pair | None:
    if not data.get(certificate) or not data.get(key):
        return None
    try:
        parsed = x509.load_pem_x509_certificate(data[certificate])
        private = serialization.load_pem_private_key(data[key], password=None)
    except (ValueError, TypeError):
        return None
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        return None
    if private.public_key() != parsed.public_key():
        return None
    return Pair(parsed.public_bytes(serialization.Encoding.PEM), data[key])


def _time(text: bytes | None, default: datetime) -> datetime:
    try:
        found = datetime.fromisoformat((text or b"").decode())
    except (ValueError, UnicodeDecodeError):
        return default
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
