"""The server's certificates: created here, stored in a Secret, rotated without a gap in trust.

``decide`` is pure. Its rule: a leaf is used only after its CA has been in the webhook configuration
for some time, and a CA is removed from it only some time after its last leaf. The steps; each
follows from a new reading of the cluster:

1. nothing usable in the Secret: create a CA and a leaf;
2. CA near its end: put the next CA beside it into the Secret (``next-ca``);
3. publish the CAs of the Secret, and the removed ones for some time;
4. the next CA has been published for long enough: make it the CA, with a leaf of its own;
5. leaf near its end, or for other names: create a new one from the same CA;
6. use the Secret's leaf once its CA is published.

Any number of replicas may do this at once: writing the Secret depends on the resourceVersion that
was read, and so does publishing, where the configuration was read *before* the Secret. A replica
that decided on old data fails to write and starts again.
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

#: Clocks of nodes differ; a new certificate must be valid on the slowest of them.
_BACKDATE = timedelta(hours=2)
#: A certificate is renewed when this part of its lifetime is left.
_RENEW_AT = 1 / 3

CA_CERTIFICATE, CA_KEY = "ca.crt", "ca.key"
NEXT_CERTIFICATE, NEXT_KEY = "next-ca.crt", "next-ca.key"
LEAF_CERTIFICATE, LEAF_KEY = "tls.crt", "tls.key"
NEXT_SINCE = "next-ca-since"
LEAF_SINCE = "leaf-since"
#: Every key of the Secret's data.
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
class CertificatePair:
    """A certificate and its key, both PEM."""

    certificate: bytes
    key: bytes = field(repr=False)

    @property
    def parsed(self) -> x509.Certificate:
        """The certificate, parsed."""
        return x509.load_pem_x509_certificate(self.certificate)


@dataclass(frozen=True, slots=True)
class StoredCertificates:
    """The Secret's content, checked for use; see ``stored``."""

    authority: CertificatePair
    leaf: CertificatePair
    leaf_since: datetime
    next_authority: CertificatePair | None = None
    next_since: datetime | None = None

    def authorities(self) -> tuple[bytes, ...]:
        """Certificates of the CAs, the present one first."""
        authorities = [self.authority.certificate]
        if self.next_authority is not None:
            authorities.append(self.next_authority.certificate)
        return tuple(authorities)


@dataclass(frozen=True, slots=True)
class RotationPolicy:
    """Names, lifetimes and waits of certificates; times in seconds."""

    names: tuple[str, ...]
    leaf_lifetime: float
    authority_lifetime: float
    settle: float
    retire: float


class RotationStep(StrEnum):
    """A change of the Secret."""

    NONE = "none"
    CREATE = "create"
    ADD_NEXT = "add-next-ca"
    #: Note when the next CA was first published; its settling time starts then.
    MARK_NEXT = "mark-next-ca"
    PROMOTE = "promote-ca"
    RENEW_LEAF = "renew-leaf"


@dataclass(frozen=True, slots=True)
class RotationDecision:
    """The next step: at most one write to the Secret, then a new observation."""

    step: RotationStep = RotationStep.NONE
    #: The CA bundle that the webhook configuration should have; None: as it is.
    publish: bytes | None = None
    #: Use the Secret's leaf from now on.
    serve: bool = False
    #: Whether API servers trust the certificate that is served.
    trusted: bool = False


def decide(
    now: datetime,
    secret: StoredCertificates | None,
    published: tuple[bytes, ...] | None,
    serving: bytes | None,
    policy: RotationPolicy,
) -> RotationDecision:
    """Decide the next step from the Secret, the published CAs and the leaf in use.

    ``published`` is None if we do not publish CAs; ``serving`` is the certificate in use, None
    before the first.
    """
    if secret is None:
        return RotationDecision(step=RotationStep.CREATE)
    trusted_authorities = published if published is not None else secret.authorities()
    step = _step(now, secret, trusted_authorities, policy)
    wanted = _trusted_cas(now, secret, trusted_authorities, policy)
    trusted = secret.authority.certificate in trusted_authorities
    old_is_trusted = serving is not None and any(_signed(serving, ca) for ca in trusted_authorities)
    settled = _has_passed(now, secret.leaf_since, policy.settle)
    # While the old leaf works, API servers have time to load the new CA.
    serve = serving != secret.leaf.certificate and (
        serving is None or not old_is_trusted or (trusted and settled)
    )
    in_use = secret.leaf.certificate if serve else serving
    return RotationDecision(
        step=step,
        publish=None if published is None or wanted == trusted_authorities else b"".join(wanted),
        serve=serve,
        trusted=in_use is not None and any(_signed(in_use, ca) for ca in trusted_authorities),
    )


def _step(
    now: datetime, secret: StoredCertificates, trusted: tuple[bytes, ...], policy: RotationPolicy
) -> RotationStep:
    following = secret.next_authority
    if following is not None:
        is_published = following.certificate in trusted
        if is_published and secret.next_since is None:
            return RotationStep.MARK_NEXT
        settled = secret.next_since is not None and _has_passed(
            now, secret.next_since, policy.settle
        )
        # A CA at its very end is of no use to wait with.
        if (is_published and settled) or _ends(secret.authority, now):
            return RotationStep.PROMOTE
    elif _due(secret.authority, now):
        return RotationStep.ADD_NEXT
    if _names(secret.leaf.parsed) != set(policy.names):
        return RotationStep.RENEW_LEAF
    # A leaf that ends with its CA cannot be made to live longer.
    longest = secret.authority.parsed.not_valid_after_utc
    if _due(secret.leaf, now) and secret.leaf.parsed.not_valid_after_utc < longest:
        return RotationStep.RENEW_LEAF
    return RotationStep.NONE


def _trusted_cas(
    now: datetime, secret: StoredCertificates, trusted: tuple[bytes, ...], policy: RotationPolicy
) -> tuple[bytes, ...]:
    """Return the CAs to publish: the Secret's, and removed ones that may still be in use."""
    wanted = list(secret.authorities())
    if not _has_passed(now, secret.leaf_since, policy.retire):
        wanted += [ca for ca in trusted if ca not in wanted and not _expired(ca, now)]
    return tuple(wanted)


def _has_passed(now: datetime, since: datetime, seconds: float) -> bool:
    return (now - since).total_seconds() >= seconds


def _due(pair: CertificatePair, now: datetime) -> bool:
    certificate = pair.parsed
    start = certificate.not_valid_before_utc + _BACKDATE
    lifetime = certificate.not_valid_after_utc - start
    return now >= certificate.not_valid_after_utc - lifetime * _RENEW_AT or now < (
        certificate.not_valid_before_utc
    )


def _ends(pair: CertificatePair, now: datetime) -> bool:
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
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return set()
    return set(extension.value.get_values_for_type(x509.DNSName)) | {
        str(address) for address in extension.value.get_values_for_type(x509.IPAddress)
    }


# -- creating -------------------------------------------------------------------------------------


def carry_out(
    step: RotationStep, now: datetime, secret: StoredCertificates | None, policy: RotationPolicy
) -> StoredCertificates:
    """Return the Secret's content after ``step``. Generates keys: call it in a thread."""
    if step is RotationStep.CREATE or secret is None:
        authority = make_authority(now, policy)
        return StoredCertificates(authority, make_leaf(now, authority, policy), now)
    if step is RotationStep.ADD_NEXT:
        return replace(secret, next_authority=make_authority(now, policy), next_since=None)
    if step is RotationStep.MARK_NEXT:
        return replace(secret, next_since=now)
    if step is RotationStep.PROMOTE and secret.next_authority is not None:
        authority = secret.next_authority
        return StoredCertificates(authority, make_leaf(now, authority, policy), now)
    if step is RotationStep.RENEW_LEAF:
        return replace(secret, leaf=make_leaf(now, secret.authority, policy), leaf_since=now)
    return secret


def make_authority(now: datetime, policy: RotationPolicy) -> CertificatePair:
    """Create a CA."""
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


def make_leaf(now: datetime, authority: CertificatePair, policy: RotationPolicy) -> CertificatePair:
    """Create a server certificate, signed by ``authority`` and ending no later than it."""
    issuer = authority.parsed
    issuer_key = serialization.load_pem_private_key(authority.key, password=None)
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        message = "the CA's key is not an elliptic-curve key"
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
    general_names: list[x509.GeneralName] = []
    for name in names:
        try:
            general_names.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            general_names.append(x509.DNSName(name))
    return general_names


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> CertificatePair:
    return CertificatePair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


# -- storing ------------------------------------------------------------------------------------


def stored(data: Mapping[str, bytes], now: datetime) -> StoredCertificates | None:
    """Read a Secret's data; None if a part of CA or leaf is missing, broken or expired.

    A broken next CA is ignored, and created again when it is due.
    """
    authority = _usable(data, CA_CERTIFICATE, CA_KEY)
    leaf = _usable(data, LEAF_CERTIFICATE, LEAF_KEY)
    if authority is None or leaf is None or not _signed(leaf.certificate, authority.certificate):
        return None
    following = _usable(data, NEXT_CERTIFICATE, NEXT_KEY)
    if _ends(authority, now) and following is None:
        return None
    return StoredCertificates(
        authority,
        leaf,
        _time(data.get(LEAF_SINCE), now),
        following,
        _time(data[NEXT_SINCE], now) if following is not None and data.get(NEXT_SINCE) else None,
    )


def data_of(secret: StoredCertificates) -> dict[str, bytes]:
    """Return the Secret's data for ``secret``."""
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
    """Split a PEM bundle into certificates in one form; anything else gives none."""
    try:
        certificates = x509.load_pem_x509_certificates(bundle) if bundle.strip() else []
    except ValueError:
        return ()
    return tuple(
        certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates
    )


def _usable(data: Mapping[str, bytes], certificate: str, key: str) -> CertificatePair | None:
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
    return CertificatePair(parsed.public_bytes(serialization.Encoding.PEM), data[key])


def _time(text: bytes | None, default: datetime) -> datetime:
    try:
        time = datetime.fromisoformat((text or b"").decode())
    except (ValueError, UnicodeDecodeError):
        return default
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
