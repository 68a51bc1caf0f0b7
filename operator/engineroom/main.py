"""The operator: one process with the controllers of the kinds that ``api/kinds.py`` assigns it."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING

from pydantic import ValidationError

from engineroom import __version__
from engineroom.api import kinds, validation
from engineroom.api.kinds import KindError
from engineroom.core import tracing
from engineroom.core.logging import REPEAT_SECONDS, configure, get_logger
from engineroom.kube.client import config as kube_config
from engineroom.kube.client.config import SERVICE_ACCOUNT
from engineroom.kube.client.errors import ClientConfigError
from engineroom.kube.runtime.process import EXIT_CONFIG, ControllerProcess
from engineroom.settings import Settings

if TYPE_CHECKING:
    from engineroom.kube.client.config import ApiConfig
    from engineroom.kube.runtime.controller import Controller

log = get_logger(__name__)

#: How long a thread may keep the interpreter while another one waits for it (seconds).
SWITCH_INTERVAL = 0.0005


def pools(settings: Settings) -> Controller:
    """Return the controller of WorkerPools."""
    from engineroom.scheduling import TaskSchedules
    from engineroom.workers.controller import WorkerPoolController
    from engineroom.workers.objects import RuntimeImage

    return WorkerPoolController(
        RuntimeImage(settings.runtime_image, settings.runtime_image_pull_policy),
        settings.read_redis_url() or "",
        TaskSchedules(),
        use_interval=settings.use_interval,
        use_patience=settings.use_patience,
    )


def policies(settings: Settings) -> Controller:
    """Return the controller of RateLimitPolicies."""
    from engineroom.ratelimit.reconcile.controller import RateLimitPolicyController

    return RateLimitPolicyController(settings.read_redis_url() or "")


def controllers(settings: Settings) -> list[Controller]:
    """Return the controllers of the operator's kinds. Raises KindError for one that is missing."""
    entries = kinds.registry().of_process(kinds.Process.OPERATOR)
    return [entry.controller.load()(settings) for entry in entries]


def load_config(settings: Settings) -> ApiConfig:
    """Return the API server's address and credentials. Raises ConfigError."""
    if settings.kubeconfig is not None or settings.context is not None:
        return kube_config.from_kubeconfig(settings.kubeconfig, settings.context)
    if (SERVICE_ACCOUNT / "token").exists() and not os.environ.get("KUBECONFIG"):
        return kube_config.in_cluster()
    return kube_config.load()


async def _run(settings: Settings) -> int:
    process = ControllerProcess(settings, load_config(settings), controllers(settings))
    code = await process.run()
    if process.abandon:
        tracing.stop()
        logging.shutdown()
        os._exit(code)
    return code


def main() -> int:
    """Run ``python -m engineroom.main`` with settings from the environment."""
    try:
        settings = Settings()
    except ValidationError as error:
        configure()
        for problem in error.errors(include_input=False, include_url=False):
            name = "_".join(str(part) for part in problem["loc"]).upper()
            log.error("a setting is wrong", setting=name, problem=problem["msg"])  # noqa: TRY400
        return EXIT_CONFIG
    configure(settings.log_level, settings.log_format, repeat=(settings.log_repeat, REPEAT_SECONDS))
    logging.captureWarnings(capture=True)
    # Kopf's thread must not keep a push of Redis waiting for Python's 5 ms.
    sys.setswitchinterval(SWITCH_INTERVAL)
    tracing.start("engineroom-operator", __version__)
    try:
        validation.check_registry(kinds.registry())
        return asyncio.run(_run(settings))
    except (ClientConfigError, KindError, OSError) as error:
        log.error("the operator cannot start", error=str(error))  # noqa: TRY400
        return EXIT_CONFIG
    finally:
        tracing.stop()


if __name__ == "__main__":
    sys.exit(main())
