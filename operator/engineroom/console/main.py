"""Entry point of the API process: ``engineroom-api``, or ``python -m engineroom.console.main``."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING

import uvicorn
from pydantic import ValidationError

from engineroom import __version__
from engineroom.api import kinds, validation
from engineroom.api.kinds import KindError
from engineroom.console.accounts import account_config
from engineroom.console.metrics import ApiMetrics
from engineroom.console.rest.app import application
from engineroom.console.route_table import ROUTES
from engineroom.console.services import open_services
from engineroom.console.settings import ApiSettings
from engineroom.core import tracing
from engineroom.core.errors import InvalidInputError
from engineroom.core.logging import REPEAT_SECONDS, configure, get_logger
from engineroom.core.validation.requests import Limits
from engineroom.kube.client import config as kube_config
from engineroom.kube.client.errors import ClientConfigError

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from starlette.applications import Starlette

    from engineroom.console.services import Services
    from engineroom.kube.client.config import ApiConfig

log = get_logger(__name__)

EXIT_CONFIG = 2
#: Seconds for which requests may finish at shutdown; event streams end at once.
GRACE = 10


def create_application(
    settings: ApiSettings, config: ApiConfig, metrics: ApiMetrics | None = None
) -> Starlette:
    """Create the ASGI application with all routes."""
    metrics = metrics or ApiMetrics()

    def services() -> AbstractAsyncContextManager[Services]:
        return open_services(settings, config, metrics=metrics)

    return application(services, ROUTES, Limits(), metrics)


def server(
    settings: ApiSettings, config: ApiConfig, metrics: ApiMetrics | None = None
) -> uvicorn.Server:
    """Create the HTTP server, not yet started."""
    return uvicorn.Server(
        uvicorn.Config(
            create_application(settings, config, metrics),
            host=settings.listen_host,
            port=settings.listen_port,
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
            # Services.address reads X-Forwarded-For itself.
            proxy_headers=False,
            server_header=False,
            access_log=False,
            log_config=None,
            lifespan="on",
            h11_max_incomplete_event_size=32 * 1024,
            limit_concurrency=2_000,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=GRACE,
        )
    )


def main() -> int:
    """Read the settings from the environment, serve until SIGTERM and return the exit status."""
    try:
        settings = ApiSettings()
    except ValidationError as error:
        configure()
        for problem in error.errors(include_input=False, include_url=False):
            name = "_".join(str(part) for part in problem["loc"]).upper()
            log.error("a setting is wrong", setting=name, problem=problem["msg"])  # noqa: TRY400
        return EXIT_CONFIG
    configure(settings.log_level, settings.log_format, repeat=(settings.log_repeat, REPEAT_SECONDS))
    logging.captureWarnings(capture=True)
    try:
        validation.check_registry(kinds.registry())
        settings.read_secret()
        settings.oidc_client()
        account_config.parse(
            account_config.read(settings.accounts_file, settings.passwords_directory)
        )
        config = kube_config.load(settings.kubeconfig, settings.context)
    except (ClientConfigError, InvalidInputError, KindError, OSError, ValueError) as error:
        log.error("the API cannot start", error=str(error))  # noqa: TRY400
        return EXIT_CONFIG
    metrics = ApiMetrics()
    running = server(settings, config, metrics)
    log.info("api starting", version=__version__, port=settings.listen_port)
    tracing.start("engineroom-api", __version__)
    try:
        asyncio.run(_serve(running, metrics, settings))
    except OSError as error:
        log.error("the API cannot start", error=str(error))  # noqa: TRY400
        return EXIT_CONFIG
    finally:
        tracing.stop()
    return 0 if running.started else 1


async def _serve(running: uvicorn.Server, metrics: ApiMetrics, settings: ApiSettings) -> None:
    async with metrics.server(settings.metrics_port, settings.host):
        await running.serve()


if __name__ == "__main__":
    sys.exit(main())
