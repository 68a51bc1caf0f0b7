"""Settings of the declared accounts and of sign-in at an OIDC provider."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path  # noqa: TC003 - pydantic needs it at run time
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engineroom.auth.oidc.flow import Oidc, OidcClient
    from engineroom.core.clock import Clock

#: URL path to which the provider redirects a browser.
CALLBACK_PATH = "/api/v1/oidc/callback"

_Listed = Annotated[tuple[str, ...], NoDecode]
_DAY = 86_400


class AccountSettings(BaseSettings):
    """Settings of accounts; the description of a field explains it."""

    accounts_file: Path | None = Field(
        default=None,
        description="Roles, accounts and groups, YAML or JSON; reloaded when it changes.",
    )
    passwords_directory: Path | None = Field(
        default=None,
        description="Directory with one file per account that holds its argon2id hash.",
    )
    oidc_issuer: str = Field(default="", description="Issuer of the OIDC provider; empty: none.")
    oidc_client_id: str = Field(default="", description="Client id at the provider.")
    oidc_client_secret: SecretStr | None = Field(
        default=None, description="Client secret at the provider."
    )
    oidc_client_secret_file: Path | None = Field(
        default=None, description="File with the client secret."
    )
    oidc_authentication: Literal["client_secret_basic", "client_secret_post", "none"] = Field(
        default="client_secret_basic",
        description="Client authentication at the token endpoint; none: a public client.",
    )
    oidc_url: str = Field(
        default="",
        description="https://host at which browsers reach the API; registered at the provider.",
    )
    oidc_logout_url: str = Field(
        default="",
        description="URL to which the provider redirects a browser after sign-out; optional.",
    )
    oidc_scopes: _Listed = Field(
        default=("openid", "profile", "email"), description="Scopes to request."
    )
    oidc_groups_claim: str = Field(
        default="groups",
        min_length=1,
        description="Claim with the groups; dots separate the fields of a path.",
    )
    oidc_userinfo: bool = Field(
        default=False, description="Read claims from the UserInfo endpoint as well."
    )
    oidc_algorithms: _Listed = Field(
        default=("RS256", "ES256", "EdDSA"),
        description="Accepted signature algorithms of ID tokens.",
    )
    oidc_allowed_networks: _Listed = Field(
        default=(), description="Private networks that the provider may be in, such as 10.0.0.0/8."
    )
    oidc_ca_file: Path | None = Field(
        default=None, description="CA certificates (PEM) of the provider; empty: the system's."
    )
    oidc_insecure_loopback: bool = Field(
        default=False, description="Accept an http provider on this machine, for tests."
    )
    oidc_remember_days: int = Field(
        default=30, ge=1, le=366,
        description="Days after the last sign-in for which a user's API keys are valid.",
    )  # fmt: skip

    @field_validator("oidc_scopes", "oidc_algorithms", "oidc_allowed_networks", mode="before")
    @classmethod
    def _parse_oidc_lists(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator(
        "accounts_file", "passwords_directory", "oidc_client_secret_file", "oidc_ca_file",
        mode="before",
    )  # fmt: skip
    @classmethod
    def _unset_account_paths(cls, value: Any) -> Any:
        return None if value == "" else value

    @property
    def oidc_remember(self) -> float:
        """The same in seconds."""
        return float(self.oidc_remember_days * _DAY)

    def oidc_client(self) -> OidcClient | None:
        """Return the client registered at the provider, or None without a provider.

        Raises ValueError for invalid settings, and OSError.
        """
        if not self.oidc_issuer:
            return None
        from engineroom.auth.oidc.flow import OidcClient
        from engineroom.auth.tokens.signing_keys import Algorithm

        parts = urlsplit(self.oidc_url)
        if parts.path not in {"", "/"} or parts.query or not parts.hostname:
            raise ValueError("ENGINEROOM_OIDC_URL: must be https://host, without a path")
        unknown = set(self.oidc_algorithms) - {algorithm.value for algorithm in Algorithm}
        if unknown:
            raise ValueError(
                f"ENGINEROOM_OIDC_ALGORITHMS: {min(unknown)} is not supported; write RS256, "
                "ES256 or EdDSA"
            )
        for network in self.oidc_allowed_networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(f"ENGINEROOM_OIDC_ALLOWED_NETWORKS: {error}") from error
        if self.oidc_ca_file is not None and not self.oidc_ca_file.is_file():
            raise ValueError(f"ENGINEROOM_OIDC_CA_FILE: {self.oidc_ca_file} is not a file")
        file, value = self.oidc_client_secret_file, self.oidc_client_secret
        secret = value.get_secret_value() if value is not None else ""
        try:
            return OidcClient(
                issuer=self.oidc_issuer,
                client_id=self.oidc_client_id,
                redirect_url=self.oidc_url.rstrip("/") + CALLBACK_PATH,
                client_secret=file.read_text().strip() if file is not None else secret,
                authentication=self.oidc_authentication,
                scopes=self.oidc_scopes,
                groups=self.oidc_groups_claim,
                userinfo=self.oidc_userinfo,
                algorithms=frozenset(map(Algorithm, self.oidc_algorithms)),
                insecure_loopback=self.oidc_insecure_loopback,
            )
        except ValueError as error:
            raise ValueError(f"OIDC: {error}") from error

    def oidc_provider(self, redis: Redis, clock: Clock) -> Oidc | None:
        """Return the provider, or None if there is none. Raises as ``oidc_client``."""
        client = self.oidc_client()
        if client is None:
            return None
        from engineroom.auth.oidc.flow import Oidc
        from engineroom.auth.outbound import Outbound, Rules

        rules = Rules.of(
            allow=self.oidc_allowed_networks,
            schemes=("https", "http") if client.insecure_loopback else ("https",),
        )
        tls = None
        if self.oidc_ca_file is not None:
            tls = ssl.create_default_context(cafile=str(self.oidc_ca_file))
        return Oidc(client, Outbound(rules, tls=tls), redis, clock)
