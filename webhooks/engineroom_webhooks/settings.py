"""Settings of the admission server, from ENGINEROOM_WEBHOOKS_* variables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from engineroom.core.logging import REPEATED


class Settings(BaseSettings):
    """Times are in seconds. The defaults are those of the Helm chart."""

    model_config = SettingsConfigDict(env_prefix="ENGINEROOM_WEBHOOKS_", extra="ignore")

    host: str | None = Field(default=None, description="Address to listen on; empty: all.")
    port: int = Field(default=9443, ge=0, le=65535)
    #: Probes and metrics, without TLS.
    probe_port: int = Field(default=8081, ge=0, le=65535)

    #: ``self``: created, stored in the Secret and rotated here. ``files``: read from a folder that
    #: cert-manager maintains, and reloaded when they change.
    certificates: Literal["self", "files"] = "self"
    certificate_folder: Path = Path("/certificates")
    namespace: str = "engineroom"
    secret: str = "engineroom-webhooks-tls"  # noqa: S105  a name
    service: str = "engineroom-webhooks"
    #: The ValidatingWebhookConfiguration that gets the CA; empty: none is written.
    configuration: str = ""
    #: More names and addresses for the certificate, comma-separated.
    extra_names: str = ""
    leaf_lifetime: float = Field(default=90 * 86400, ge=10)
    authority_lifetime: float = Field(default=730 * 86400, ge=20)
    #: How long a new CA is published beside the old one before its first leaf is used.
    settle: float = Field(default=60, ge=0)
    #: How long the old CA stays after its last leaf was replaced.
    retire: float = Field(default=900, ge=0)
    check_interval: float = Field(default=15, gt=0)

    #: Whether to check authors (SubjectAccessReview) and labels of namespaces. Without, everything
    #: above restricted is refused, and an author of a WorkerPool can use any ServiceAccount and
    #: Secret of its namespace through the pods.
    review_authors: bool = True

    #: Authors that check the rights of the people they write for, comma-separated: the API's own
    #: account.
    trusted_authors: str = ""

    body_limit: int = Field(default=4 * 1024 * 1024, ge=1024)
    body_timeout: float = Field(default=5, gt=0)
    #: How long requests are still answered after SIGTERM, while endpoints are updated.
    drain: float = Field(default=5, ge=0)
    log_level: str = "INFO"
    log_format: Literal["auto", "json", "console"] = "auto"
    #: Most lines of the same message in ten seconds; 0: all.
    log_repeat: int = Field(default=REPEATED, ge=0)

    @model_validator(mode="after")
    def _lifetimes(self) -> Self:
        if self.authority_lifetime < 2 * self.leaf_lifetime:
            message = "must be at least twice LEAF_LIFETIME, so that a CA outlives its leaves"
            raise ValueError(message)
        return self

    def names(self) -> tuple[str, ...]:
        """DNS names and addresses that the certificate is for."""
        service = f"{self.service}.{self.namespace}"
        extra = [name.strip() for name in self.extra_names.split(",")]
        dns_names = [f"{service}.svc", f"{service}.svc.cluster.local", service]
        return tuple(dict.fromkeys([*dns_names, *filter(None, extra)]))
