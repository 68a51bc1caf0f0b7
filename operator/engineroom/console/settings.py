"""Settings of the API process: those shared with the operator, and its own."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic needs it at run time
from typing import Annotated, Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from engineroom.console.accounts.oidc_settings import AccountSettings
from engineroom.settings import Settings


class ApiSettings(AccountSettings, Settings):
    """Settings of the API process; the description of a field explains it."""

    listen_host: str = Field(
        default="0.0.0.0",  # noqa: S104 # nosec B104 - requests come from outside the pod
        description="Address on which the API listens.",
    )
    listen_port: int = Field(default=8000, ge=0, le=65535, description="Port of the API.")
    metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="Port of /metrics; empty: none."
    )
    probe_port: int | None = Field(
        default=None, ge=0, le=65535,
        description="Port of /healthz and /readyz, which clients of the API cannot exhaust; empty: "
        "none besides those of the API.",
    )  # fmt: skip
    max_connections: int = Field(
        default=2_000, ge=1, le=1_000_000,
        description="Connections to the API, as far as the limit of open files permits.",
    )  # fmt: skip
    max_address_connections: int = Field(
        default=64, ge=1, le=1_000_000,
        description="Connections of one address (IPv6: /64). With trusted proxies the addresses "
        "are theirs, and only the limit of all connections applies.",
    )  # fmt: skip
    request_head_timeout: float = Field(
        default=10.0, gt=0, le=600,
        description="Seconds in which the head of a request, or TLS's handshake, must arrive.",
    )  # fmt: skip
    request_body_rate: int = Field(
        default=1024, ge=1, le=1_000_000,
        description="Bytes per second that the body of a request must bring, over 5 seconds.",
    )  # fmt: skip
    tls_certificate: Path | None = Field(
        default=None, description="Certificate chain (PEM); empty: a proxy terminates TLS."
    )
    tls_key: Path | None = Field(default=None, description="Private key (PEM) of the certificate.")
    issuer: str = Field(
        default="https://engineroom.local",
        description="Issuer and audience of the tokens that the API issues.",
    )
    api_secret: SecretStr | None = Field(
        default=None,
        description="At least 32 random characters; seals the audit log, keys and sessions.",
    )
    api_secret_file: Path | None = Field(default=None, description="File with the secret.")
    admin_password: SecretStr | None = Field(
        default=None, description="Password of the administrator; empty: no such account."
    )
    admin_password_file: Path | None = Field(
        default=None, description="File with the administrator's password."
    )
    kubernetes_identities: bool = Field(
        default=True, description="Accept tokens of the cluster (TokenReview)."
    )
    audiences: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="A token of the cluster needs one of these; empty: the API server's own.",
    )
    trusted_proxy_hops: int = Field(
        default=0,
        ge=0,
        le=32,
        description="Number of proxies in front that append to X-Forwarded-For.",
    )
    requests_per_second: int = Field(
        default=50,
        ge=1,
        le=100_000,
        description="Requests per second of one caller; the burst is ten times as many.",
    )

    audit_keep_records: int = Field(
        default=50_000, ge=1_000, le=10_000_000,
        description="Audit records stored in Redis; standard output has all of them.",
    )  # fmt: skip
    audit_keep_days: int = Field(
        default=0, ge=0, le=3650, description="Maximum age of an audit record in days; 0: no limit."
    )
    signing_key_days: int = Field(
        default=30, ge=0, le=366,
        description="Days after which the signing key is replaced; 0: only on request.",
    )  # fmt: skip

    @field_validator("audiences", mode="before")
    @classmethod
    def _parse_audiences(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator(
        "tls_certificate", "tls_key", "api_secret_file", "admin_password_file", mode="before"
    )
    @classmethod
    def _unset_api_paths(cls, value: Any) -> Any:
        return None if value == "" else value

    def read_secret(self) -> bytes:
        """Return the secret. Raises ValueError if it is missing or too short, OSError."""
        secret = _read(self.api_secret_file, self.api_secret)
        if len(secret) < 32:
            raise ValueError(
                "ENGINEROOM_API_SECRET: needs 32 bytes; create it with openssl rand -base64 48"
            )
        return secret.encode()

    def read_admin_password(self) -> str:
        """Return the administrator's password, or "". Raises OSError."""
        return _read(self.admin_password_file, self.admin_password)


def _read(file: Path | None, value: SecretStr | None) -> str:
    if file is not None:
        return file.read_text().strip()
    return value.get_secret_value() if value is not None else ""
