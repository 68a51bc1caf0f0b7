"""Maintenance of the certificate: observe, decide, take one step, observe again."""

from __future__ import annotations

import asyncio
import base64
import random
import ssl
from typing import TYPE_CHECKING, Any, Protocol

from cryptography import x509

from engineroom.core.errors import ConflictError, EngineroomError
from engineroom.core.logging import get_logger
from engineroom.kube.client.errors import ApiError, NotFound
from engineroom.kube.client.resources import SECRETS, VALIDATING_WEBHOOKS
from engineroom_webhooks import certificates, metrics, tls
from engineroom_webhooks.certificates import CertificatePair, RotationPolicy, RotationStep

if TYPE_CHECKING:
    from pathlib import Path

    from engineroom.core.clock import Clock
    from engineroom.kube.client.client import Client

#: Field manager of caBundle, so that Helm and GitOps tools leave it unchanged.
FIELD_MANAGER = "engineroom-webhooks"
#: Above the steps of a full rotation; ends a quarrel of two replicas.
_MOST_STEPS = 8

logger = get_logger(__name__)


class CertificateStore(Protocol):
    """Storage of certificate and CA bundle; each write has a version as its precondition."""

    async def published(self) -> tuple[tuple[bytes, ...] | None, str]:
        """Return the published CAs and their version; None if we do not publish them."""
        ...

    async def read(self) -> tuple[dict[str, bytes], str]:
        """Return the Secret's data and version; no data and "" if it does not exist."""
        ...

    async def write(self, data: dict[str, bytes], version: str) -> None:
        """Replace the Secret's data; raises ConflictError when ``version`` is not the latest."""
        ...

    async def publish(self, bundle: bytes, version: str) -> None:
        """Replace the CA bundle; raises ConflictError when ``version`` is not the latest."""
        ...


class ClusterCertificateStore:
    """Secret and ValidatingWebhookConfiguration in a cluster."""

    def __init__(self, client: Client, namespace: str, secret: str, configuration: str) -> None:
        self._client = client
        self._namespace = namespace
        self._secret = secret
        self._configuration = configuration
        self._entries: list[str] = []

    async def published(self) -> tuple[tuple[bytes, ...] | None, str]:
        """See Store."""
        if not self._configuration:
            return None, ""
        try:
            configuration = await self._client.get(VALIDATING_WEBHOOKS, None, self._configuration)
        except NotFound:
            # No webhook is registered yet; the CAs are published as soon as one is.
            self._entries = []
            return (), ""
        entries = configuration.get("webhooks") or []
        self._entries = [str(entry.get("name")) for entry in entries]
        bundles = [_bundle(entry) for entry in entries]
        common = (
            tuple(
                certificate for certificate in bundles[0] if all(certificate in b for b in bundles)
            )
            if bundles
            else ()
        )
        return common, str(configuration["metadata"]["resourceVersion"])

    async def read(self) -> tuple[dict[str, bytes], str]:
        """See Store."""
        try:
            secret = await self._client.get(SECRETS, self._namespace, self._secret)
        except NotFound:
            return {}, ""
        data = {}
        for key, value in (secret.get("data") or {}).items():
            try:
                data[key] = base64.b64decode(value, validate=True)
            except ValueError:
                continue
        return data, str(secret["metadata"]["resourceVersion"])

    async def write(self, data: dict[str, bytes], version: str) -> None:
        """See Store."""
        encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
        if not version:
            await self._client.create(
                SECRETS,
                {
                    "metadata": {"namespace": self._namespace, "name": self._secret},
                    "type": "Opaque",
                    "data": encoded,
                },
            )
            return
        removed = {key: None for key in certificates.KEYS if key not in data}
        await self._client.merge_patch(
            SECRETS,
            self._namespace,
            self._secret,
            {"metadata": {"resourceVersion": version}, "data": {**encoded, **removed}},
            field_manager=FIELD_MANAGER,
        )

    async def publish(self, bundle: bytes, version: str) -> None:
        """See Store."""
        if not self._entries:
            return
        text = base64.b64encode(bundle).decode()
        await self._client.apply(
            VALIDATING_WEBHOOKS,
            {
                "metadata": {"name": self._configuration, "resourceVersion": version},
                "webhooks": [
                    {"name": name, "clientConfig": {"caBundle": text}} for name in self._entries
                ],
            },
            field_manager=FIELD_MANAGER,
        )


def _bundle(entry: dict[str, Any]) -> tuple[bytes, ...]:
    text = (entry.get("clientConfig") or {}).get("caBundle") or ""
    try:
        return certificates.split_bundle(base64.b64decode(text))
    except ValueError:
        return ()


class ServingCertificate:
    """The TLS context in use, and whether API servers trust its certificate."""

    def __init__(self) -> None:
        self._serving: CertificatePair | None = None
        self.context: ssl.SSLContext | None = None
        self.trusted = False
        #: Set when a certificate is loaded.
        self.loaded = asyncio.Event()

    @property
    def serving(self) -> bytes | None:
        """The certificate in use (PEM)."""
        return None if self._serving is None else self._serving.certificate

    def serve(self, pair: CertificatePair) -> None:
        """Use ``pair`` for new connections."""
        if self.context is None:
            self.context = tls.context(pair)
        else:
            tls.change(self.context, pair)
        self._serving = pair
        end = x509.load_pem_x509_certificate(pair.certificate).not_valid_after_utc
        metrics.CERTIFICATE_END.set(end.timestamp())
        logger.info("serving certificate", not_after=end.isoformat())
        self.loaded.set()


async def reconcile(
    serving_certificate: ServingCertificate,
    store: CertificateStore,
    policy: RotationPolicy,
    clock: Clock,
) -> None:
    """Bring Secret, configuration and server to their desired state.

    Raises ConflictError if another replica wrote first, and the store's errors.
    """
    for _ in range(_MOST_STEPS):
        # The order matters: see certificates.
        published, configuration_version = await store.published()
        data, secret_version = await store.read()
        now = clock.now()
        secret = certificates.stored(data, now)
        decision = certificates.decide(now, secret, published, serving_certificate.serving, policy)
        if decision.step is not RotationStep.NONE:
            changed = await asyncio.to_thread(
                certificates.carry_out, decision.step, now, secret, policy
            )
            await store.write(certificates.data_of(changed), secret_version)
            metrics.ROTATIONS.labels(step=decision.step.value).inc()
            logger.info("certificates changed", step=decision.step.value)
            continue
        if decision.publish is not None and configuration_version:
            await store.publish(decision.publish, configuration_version)
            metrics.ROTATIONS.labels(step="publish").inc()
            logger.info("authorities published")
            continue
        if decision.serve and secret is not None:
            serving_certificate.serve(secret.leaf)
        serving_certificate.trusted = decision.trusted
        return


async def keep(
    serving_certificate: ServingCertificate,
    store: CertificateStore,
    policy: RotationPolicy,
    clock: Clock,
    interval: float,
) -> None:
    """Maintain the certificate until cancelled; errors are logged and retried."""
    pause = 1.0
    while True:
        try:
            await reconcile(serving_certificate, store, policy, clock)
            pause = interval
        except ConflictError:
            # Another replica took the step; read its result at once.
            pause = 0.05
        except (EngineroomError, ssl.SSLError) as error:
            reason = error.reason if isinstance(error, ApiError) else type(error).__name__
            logger.warning("certificates could not be maintained", reason=reason, error=str(error))
            pause = min(max(pause, 1.0) * 2, interval)
        await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 # nosec B311


async def keep_files(
    serving_certificate: ServingCertificate, folder: Path, interval: float
) -> None:
    """Serve ``tls.crt`` and ``tls.key`` of ``folder``; reload them when they change."""
    while True:
        try:
            pair = await asyncio.to_thread(_read_files, folder)
            if pair.certificate != serving_certificate.serving:
                serving_certificate.serve(pair)
                serving_certificate.trusted = True
        except (OSError, ssl.SSLError, ValueError) as error:
            # Only one file has changed so far; the next check reads both.
            logger.warning("certificate files cannot be used", folder=str(folder), error=str(error))
        await asyncio.sleep(min(interval, 5.0) if serving_certificate.trusted else 0.5)


def _read_files(folder: Path) -> CertificatePair:
    return CertificatePair(
        (folder / certificates.LEAF_CERTIFICATE).read_bytes(),
        (folder / certificates.LEAF_KEY).read_bytes(),
    )
