"""The service's settings: environment variables ``ENGINEROOM_LIMITER_*``, or flags."""

from __future__ import annotations

import socket
from pathlib import Path  # noqa: TC003 - pydantic needs it at run time
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, CliSuppress, NoDecode, SettingsConfigDict

from engineroom.core.logging import REPEATED


class Settings(BaseSettings):
    """The settings; each field has a description."""

    model_config = SettingsConfigDict(
        env_prefix="ENGINEROOM_LIMITER_",
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        cli_kebab_case=True,
        cli_prog_name="engineroom-limiter",
        cli_hide_none_type=True,
    )

    redis_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        validation_alias=AliasChoices(
            "redis-url", "ENGINEROOM_LIMITER_REDIS_URL", "ENGINEROOM_REDIS_URL"
        ),
        description="Redis where limits are counted and policies are published.",
    )
    redis_url_file: Path | None = Field(
        default=None,
        validation_alias=AliasChoices(
            "redis-url-file", "ENGINEROOM_LIMITER_REDIS_URL_FILE", "ENGINEROOM_REDIS_URL_FILE"
        ),
        description="File that holds the URL; wins over the URL.",
    )
    namespaces: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Namespaces whose policies are followed from the start, comma-separated.",
    )
    only_namespaces: bool = Field(
        default=False, description="Whether no other namespace is ever followed."
    )
    policies: Path | None = Field(
        default=None,
        description="File of RateLimitPolicies to enforce instead of those of a cluster.",
    )
    enforcers: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="With a file of policies: how many processes of all replicas share a rate when "
        "Redis does not decide and failure.mode is Local; 0: those of this service.",
    )
    host: str = Field(
        default="0.0.0.0",  # noqa: S104 # nosec B104 - proxies ask from outside the pod
        description="Address to listen at.",
    )
    http_port: int = Field(default=8080, ge=0, le=65535, description="Port of HTTP.")
    grpc_port: int = Field(default=8081, ge=0, le=65535, description="Port of gRPC.")
    admin_port: int = Field(
        default=9090, ge=0, le=65535, description="Port of probes, metrics and top keys."
    )
    processes: int = Field(
        default=1, ge=1, le=64, description="Processes that share the ports, for more cores."
    )
    max_connections: int = Field(
        default=10_000, ge=1, le=1_000_000,
        description="Connections of one process, as far as its limit of open files permits.",
    )  # fmt: skip
    max_address_connections: int = Field(
        default=2_000, ge=1, le=1_000_000,
        description="Connections from one address to one process.",
    )  # fmt: skip
    max_held_bytes: int = Field(
        default=67_108_864, ge=262_144,
        description="Bytes that one process holds of requests that are incomplete or wait.",
    )  # fmt: skip
    max_address_bytes: int = Field(
        default=16_777_216, ge=262_144, description="The same for the connections of one address."
    )
    request_timeout: float = Field(
        default=10.0, gt=0, le=600,
        description="Seconds in which a request must arrive: the first one from the opening of "
        "its connection, the others from their first byte.",
    )  # fmt: skip
    drain_delay: float = Field(
        default=0.0,
        ge=0,
        le=60,
        description="Seconds to go on after SIGTERM, until no proxy sends here any more.",
    )
    drain_timeout: float = Field(
        default=5.0, ge=0, le=60, description="Seconds for the last answers after that."
    )
    identity: str = Field(
        default="",
        validation_alias=AliasChoices(
            "identity", "ENGINEROOM_LIMITER_IDENTITY", "ENGINEROOM_POD_NAME"
        ),
        description="Name in the policies' status; empty: made of the host's.",
    )
    worker: CliSuppress[str] = Field(
        default="", description="Set by the service itself: the socket of one of its processes."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least level that is logged."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: readable on a terminal, else JSON."
    )
    log_repeat: int = Field(
        default=REPEATED, ge=0,
        description="Lines of the same message that are written in ten seconds; 0: all.",
    )  # fmt: skip

    @field_validator("namespaces", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @property
    def identity_or_host(self) -> str:
        """The identity of this process; the host name if none is set."""
        return self.identity or socket.gethostname()

    def read_redis_url(self) -> str:
        """Return the URL of Redis from the file or the setting. Raises OSError for the file."""
        if self.redis_url_file is not None:
            return self.redis_url_file.read_text().strip()
        return self.redis_url.get_secret_value()
