"""The settings of sign-in at an OIDC provider, and of what is declared about accounts."""

from __future__ import annotations

import ipaddress
from pathlib import Path  # noqa: TC003 - pydantic needs it at run time
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode

if TYPE_CHECKING:
    from engineroom.auth.oidc.flow import Client

_Listed = Annotated[tuple[str, ...], NoDecode]
_DAY = 86_400


class AccountSettings(BaseSettings):
    """What can be set; the description of each field says what it does."""

    accounts_file: Path | None = Field(
        default=None, description="Roles, accounts and groups, YAML or JSON; read anew on change."
    )
    passwords_directory: Path | None = Field(
        default=None, description="Directory with a file per account: its argon2id hash."
    )
    oidc_issuer: str = Field(default="", description="Issuer of the OIDC provider; empty: none.")
    oidc_client_id: str = Field(default="", description="Our name at the provider.")
    oidc_client_secret: SecretStr | None = Field(default=None, description="Our secret there.")
    oidc_client_secret_file: Path | None = Field(default=None, description="File that holds it.")
    oidc_authentication: Literal["client_secret_basic", "client_secret_post", "none"] = Field(
        default="client_secret_basic",
        description="How a code is exchanged; none: a public client, without a secret.",
    )
    oidc_url: str = Field(
        default="", description="https://host where browsers reach the API; registered there."
    )
    oidc_logout_url: str = Field(
        default="", description="Where the provider sends a browser after signing out, if at all."
    )
    oidc_scopes: _Listed = Field(
        default=("openid", "profile", "email"), description="Scopes to ask for."
    )
    oidc_groups_claim: str = Field(
        default="groups",
        min_length=1,
        description="Claim with the groups; a path by dots.",
    )
    oidc_userinfo: bool = Field(
        default=False, description="Whether claims are asked of the UserInfo endpoint as well."
    )
    oidc_algorithms: _Listed = Field(
        default=("RS256", "ES256", "EdDSA"), description="By which ID tokens may be signed."
    )
    oidc_allowed_networks: _Listed = Field(
        default=(), description="Private networks in which the provider may be, such as 10.0.0.0/8."
    )
    oidc_ca_file: Path | None = Field(
        default=None, description="Certificates (PEM) for the provider; empty: the system's."
    )
    oidc_insecure_loopback: bool = Field(
        default=False, description="Whether the provider may be http on this machine, for tests."
    )
    oidc_remember_days: int = Field(
        default=30, ge=1, le=366,
        description="Days after a sign-in for which somebody's API keys are good.",
    )  # fmt: skip

    @field_validator("oidc_scopes", "oidc_algorithms", "oidc_allowed_networks", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator(
        "accounts_file", "passwords_directory", "oidc_client_secret_file", "oidc_ca_file",
        mode="before",
    )  # fmt: skip
    @classmethod
    def _nothing(cls, value: Any) -> Any:
        return None if value == "" else value

    @property
    def oidc_remember(self) -> float:
        """The same in seconds."""
        return float(self.oidc_remember_days * _DAY)

    def oidc_client(self, callback: str) -> Client | None:
        """What we are to the provider, ``callback`` being our path; None where there is none.

        Raises ValueError for what cannot be right, and OSError.
        """
        if not self.oidc_issuer:
            return None
        from engineroom.auth.oidc.flow import Client
        from engineroom.auth.tokens.signing_keys import Algorithm

        parts = urlsplit(self.oidc_url)
        if parts.path not in {"", "/"} or parts.query or not parts.hostname:
            raise ValueError("ENGINEROOM_OIDC_URL: must be https://host, without a path")
        unknown = set(self.oidc_algorithms) - {each.value for each in Algorithm}
        if unknown:
            raise ValueError(
                f"ENGINEROOM_OIDC_ALGORITHMS: {min(unknown)} is not taken; write RS256, "
                "ES256 or EdDSA"
            )
        for network in self.oidc_allowed_networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(f"ENGINEROOM_OIDC_ALLOWED_NETWORKS: {error}") from error
        if self.oidc_ca_file is not None and not self.oidc_ca_file.is_file():
            raise ValueError(f"ENGINEROOM_OIDC_CA_FILE: {self.oidc_ca_file} is no file")
        file, value = self.oidc_client_secret_file, self.oidc_client_secret
        secret = value.get_secret_value() if value is not None else ""
        try:
            return Client(
                issuer=self.oidc_issuer,
                client_id=self.oidc_client_id,
                redirect_url=self.oidc_url.rstrip("/") + callback,
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
