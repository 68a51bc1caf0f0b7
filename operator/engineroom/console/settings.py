"""The settings of the API process: those of the operator that it shares, and its own."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic needs it at run time
from typing import Annotated, Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from engineroom.console.identity.oidc_settings import AccountSettings
from engineroom.settings import Settings


class ApiSettings(AccountSettings, Settings):
    """What can be set; the description of each field says what it does."""

    listen_host: str = Field(
        default="0.0.0.0",  # noqa: S104 # nosec B104 - requests come from outside the pod
        description="Address that the API listens at.",
    )
    listen_port: int = Field(default=8000, ge=0, le=65535, description="Port of the API.")
    metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="Port of /metrics; empty: none."
    )
    tls_certificate: Path | None = Field(
        default=None, description="Certificate chain (PEM); empty: TLS ends before this process."
    )
    tls_key: Path | None = Field(default=None, description="Its private key (PEM).")
    issuer: str = Field(
        default="https://engineroom.local", description="Issuer and audience of our tokens."
    )
    api_secret: SecretStr | None = Field(
        default=None,
        description="At least 32 random bytes as text: seals audit log, keys and sessions.",
    )
    api_secret_file: Path | None = Field(default=None, description="File that holds it.")
    admin_password: SecretStr | None = Field(
        default=None, description="Password of the first administrator; empty: there is none."
    )
    admin_password_file: Path | None = Field(default=None, description="File that holds it.")
    kubernetes_identities: bool = Field(
        default=True, description="Whether tokens of the cluster are taken (TokenReview)."
    )
    audiences: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Audiences of which such a token needs one; empty: the API server's own.",
    )
    trusted_proxy_hops: int = Field(
        default=0, ge=0, le=32, description="Proxies in front that append to X-Forwarded-For."
    )
    requests_per_second: int = Field(
        default=50, ge=1, le=100_000, description="Rate of one caller; ten times as many at once."
    )

    audit_keep_records: int = Field(
        default=50_000, ge=1_000, le=10_000_000,
        description="Records of the audit log that stay in Redis; each is on standard output too.",
    )  # fmt: skip
    audit_keep_days: int = Field(
        default=0, ge=0, le=3650, description="Days for which they stay at most; 0: of any age."
    )
    signing_key_days: int = Field(
        default=30, ge=0, le=366,
        description="Days after which a new key signs our tokens; 0: when somebody asks.",
    )  # fmt: skip

    @field_validator("audiences", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator(
        "tls_certificate", "tls_key", "api_secret_file", "admin_password_file", mode="before"
    )
    @classmethod
    def _absent(cls, value: Any) -> Any:
        return None if value == "" else value

    def read_secret(self) -> bytes:
        """The secret. Raises ValueError when it is missing or short, OSError."""
        said = _read(self.api_secret_file, self.api_secret)
        if len(said) < 32:
            raise ValueError(
                "ENGINEROOM_API_SECRET: needs 32 bytes; make it with openssl rand -base64 48"
            )
        return said.encode()

    def read_admin_password(self) -> str:
        """The administrator's password, or the empty text. Raises OSError."""
        return _read(self.admin_password_file, self.admin_password)


def _read(file: Path | None, value: SecretStr | None) -> str:
    if file is not None:
        return file.read_text().strip()
    return value.get_secret_value() if value is not None else ""
