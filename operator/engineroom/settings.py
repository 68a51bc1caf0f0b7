"""The operator's settings: environment variables ``ENGINEROOM_*``, and nothing else.

Not in ``core``: pydantic-settings is an extra that applications do not install.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path  # noqa: TC003 - pydantic needs it at run time
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from engineroom.core.logging import REPEATED


class Settings(BaseSettings):
    """Settings of the operator; each field's description says what it does."""

    model_config = SettingsConfigDict(env_prefix="ENGINEROOM_", extra="ignore", frozen=True)

    namespaces: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Namespaces to look after, comma-separated; empty: all."
    )
    redis_url: SecretStr | None = Field(
        default=None, description="Redis of the installation, for pools that name no other."
    )
    redis_url_file: Path | None = Field(
        default=None, description="File that holds the URL; wins over ENGINEROOM_REDIS_URL."
    )
    runtime_image: str = Field(
        default="engineroom-worker-runtime:latest",
        description="Image of the init container that brings the worker runtime.",
    )
    runtime_image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="Its pull policy."
    )
    leader_election: bool = Field(
        default=True, description="Whether to write only while holding the lease."
    )
    lease_namespace: str = Field(
        default="", description="Namespace of the lease; empty: the operator's own."
    )
    lease_name: str = Field(default="engineroom-operator", description="Name of the lease.")
    identity: str = Field(
        default="",
        validation_alias=AliasChoices("ENGINEROOM_IDENTITY", "ENGINEROOM_POD_NAME", "identity"),
        description="Name in the lease and in events; empty: host name and process.",
    )
    host: str = Field(
        default="0.0.0.0",  # noqa: S104 # nosec B104 - the kubelet asks from outside the pod
        description="Address that probes and metrics listen at.",
    )
    metrics_port: int | None = Field(
        default=8080, ge=0, le=65535, description="Port of /metrics; empty: none."
    )
    probe_port: int | None = Field(
        default=8081, ge=0, le=65535, description="Port of /healthz and /readyz; empty: none."
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
    concurrency: int = Field(default=16, ge=1, le=256, description="Reconciles at a time.")
    reconcile_timeout: float = Field(
        default=30.0, gt=0, description="Seconds that one reconcile may take."
    )
    resync_seconds: float = Field(
        default=450.0,
        gt=0,
        description="Seconds between comparisons of the caches with lists, give or take a third.",
    )
    api_timeout: float = Field(
        default=10.0, gt=0, description="Seconds that one request to the API server may take."
    )
    shutdown_grace: float = Field(
        default=20.0, ge=0, description="Seconds that running reconciles get to finish at the end."
    )
    use_interval: float = Field(
        default=30.0, ge=0.1, description="Seconds between looks at what workers use."
    )
    use_patience: float = Field(
        default=3600.0,
        ge=0,
        description="Seconds of use to be watched before less than there is is recommended.",
    )
    kubeconfig: Path | None = Field(
        default=None, description="Kubeconfig to use; empty: $KUBECONFIG, else the pod's own."
    )
    context: str | None = Field(default=None, description="Context of the kubeconfig.")

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

    @field_validator("metrics_port", "probe_port", "kubeconfig", "context", mode="before")
    @classmethod
    def _empty(cls, value: Any) -> Any:
        return None if value == "" else value

    @property
    def who(self) -> str:
        """The identity, made up when none is set."""
        return self.identity or f"{socket.gethostname()}-{os.getpid()}"

    @property
    def resync(self) -> tuple[float, float]:
        """Bounds of the time between comparisons."""
        return self.resync_seconds * 2 / 3, self.resync_seconds * 4 / 3

    def read_redis_url(self) -> str | None:
        """The installation's Redis, from the file or the environment; None when there is none.

        Raises OSError when the file cannot be read.
        """
        if self.redis_url_file is not None:
            return self.redis_url_file.read_text().strip() or None
        return (self.redis_url.get_secret_value() or None) if self.redis_url else None
