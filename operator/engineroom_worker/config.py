"""The worker's settings, which the operator passes in the environment."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

#: ``sysexits.h``: a configuration error, which a restart does not fix.
EX_CONFIG = 78

STRATEGIES = ("Priority", "RoundRobin", "Random")
ON_DEADLINE = ("Requeue", "Fail")
DEFAULT_METRICS_PORT = 9477


class WorkerConfigError(Exception):
    """The environment does not describe a worker; the message names the variable and the fix."""


@dataclass(frozen=True)
class Settings:
    """The settings of a worker process; durations are seconds.

    ``queues`` have the order in which the worker reads them.
    """

    redis_url: str
    pool: str
    pod_name: str
    queues: tuple[str, ...]
    pod_uid: str = ""
    redis_ca_file: str | None = None
    redis_insecure: bool = False
    strategy: str = "Priority"
    workers: int = 1
    max_job_duration: int = 3600
    on_deadline: str = "Fail"
    dead_letter_ttl: int = 30 * 86400
    metrics_port: int = DEFAULT_METRICS_PORT
    serializer: str | None = None
    log_level: str = "INFO"


def from_environment(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the variables ``ENGINEROOM_*``. Raises ConfigError for the first invalid one."""
    env = os.environ if environment is None else environment
    if env.get("RQ_KEY_PREFIX", "rq") != "rq":
        raise WorkerConfigError("RQ_KEY_PREFIX: Engineroom looks at RQ's keys under 'rq'; unset it")
    strategy = _one_of(env, "ENGINEROOM_DEQUEUE_STRATEGY", "Priority", STRATEGIES)
    on_deadline = _one_of(env, "ENGINEROOM_ON_DEADLINE", "Fail", ON_DEADLINE)
    pool = _require(env, "ENGINEROOM_POOL")
    if pool.count("/") != 1 or pool.startswith("/") or pool.endswith("/"):
        raise WorkerConfigError(f"ENGINEROOM_POOL: {pool!r} is not <namespace>/<name>")
    return Settings(
        redis_url=_redis_url(env),
        pool=pool,
        pod_name=_require(env, "ENGINEROOM_POD_NAME"),
        pod_uid=env.get("ENGINEROOM_POD_UID", ""),
        queues=_queues(_require(env, "ENGINEROOM_QUEUES")),
        redis_ca_file=env.get("ENGINEROOM_REDIS_CA_FILE") or None,
        redis_insecure=env.get("ENGINEROOM_REDIS_INSECURE", "").lower() in ("1", "true", "yes"),
        strategy=strategy,
        workers=_number(env, "ENGINEROOM_WORKERS", 1, 1, 64),
        max_job_duration=_number(env, "ENGINEROOM_MAX_JOB_DURATION", 3600, 1, 10**8),
        on_deadline=on_deadline,
        dead_letter_ttl=_number(env, "ENGINEROOM_DEAD_LETTER_TTL", 30 * 86400, 1, 10**9),
        metrics_port=_number(env, "ENGINEROOM_METRICS_PORT", DEFAULT_METRICS_PORT, 0, 65535),
        serializer=env.get("ENGINEROOM_SERIALIZER") or None,
        log_level=env.get("ENGINEROOM_LOG_LEVEL") or "INFO",
    )


def connection_options(settings: Settings) -> Mapping[str, Any]:
    """Return the keyword arguments for ``Redis.from_url``."""
    options: dict[str, Any] = {
        # Long enough for any command; also the time to notice a half-open connection (seconds).
        "socket_timeout": 15,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
    }
    if settings.redis_url.startswith("rediss://"):
        if settings.redis_ca_file:
            options["ssl_ca_certs"] = settings.redis_ca_file
        if settings.redis_insecure:
            options["ssl_cert_reqs"] = "none"
            options["ssl_check_hostname"] = False
    return options


def _require(env: Mapping[str, str], name: str) -> str:
    value = env.get(name, "")
    if not value:
        raise WorkerConfigError(f"{name}: is not set; the operator sets it on the worker container")
    return value


def _redis_url(env: Mapping[str, str]) -> str:
    url = _require(env, "ENGINEROOM_REDIS_URL")
    if not url.startswith(("redis://", "rediss://", "unix://")):
        # The message omits the value, which holds credentials.
        raise WorkerConfigError(
            "ENGINEROOM_REDIS_URL: must start with redis://, rediss:// or unix://; fix the Secret"
        )
    return url


def _one_of(env: Mapping[str, str], name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = env.get(name) or default
    if value not in allowed:
        raise WorkerConfigError(f"{name}: {value!r} is none of {', '.join(allowed)}")
    return value


def _number(env: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = env.get(name) or str(default)
    try:
        value = int(text)
    except ValueError:
        raise WorkerConfigError(f"{name}: {text!r} is not a whole number") from None
    if not least <= value <= most:
        raise WorkerConfigError(f"{name}: {value} is not between {least} and {most}")
    return value


def _queues(text: str) -> tuple[str, ...]:
    try:
        entries = json.loads(text)
        names = [
            entry["name"]
            for entry in sorted(entries, key=lambda entry: -int(entry.get("priority", 0)))
        ]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise WorkerConfigError(
            'ENGINEROOM_QUEUES: must be a JSON list like [{"name": "default", "priority": 0}]'
        ) from None
    if not names or not all(isinstance(name, str) and name for name in names):
        raise WorkerConfigError("ENGINEROOM_QUEUES: needs at least one queue, each with a name")
    if len(set(names)) != len(names):
        raise WorkerConfigError("ENGINEROOM_QUEUES: a queue is named twice")
    return tuple(names)
