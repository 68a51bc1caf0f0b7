"""Entry point of the API process: ``engineroom-api``, or ``python -m engineroom.console.main``."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import sys
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from pydantic import ValidationError

from engineroom import __version__
from engineroom.api import kinds, validation
from engineroom.api.kinds import KindError
from engineroom.console.accounts import account_config
from engineroom.console.http_server import (
    ApiServer,
    ConnectionGuard,
    ConnectionTimeouts,
    protocol_factory,
)
from engineroom.console.metrics import ApiMetrics
from engineroom.console.rest.app import application
from engineroom.console.rest.meta import check_ready
from engineroom.console.route_table import ROUTES
from engineroom.console.services import open_services
from engineroom.console.settings import ApiSettings
from engineroom.core import tracing
from engineroom.core.error_responses import problem_document
from engineroom.core.errors import EngineroomError, InvalidInputError
from engineroom.core.logging import REPEAT_SECONDS, configure, get_logger
from engineroom.core.serving.connection_budget import (
    BudgetLimits,
    ConnectionBudget,
    connections_within_files,
)
from engineroom.core.serving.get_server import JSON
from engineroom.core.validation.requests import Limits
from engineroom.kube.client import config as kube_config
from engineroom.kube.client.errors import ClientConfigError
from engineroom.kube.runtime.health import HttpServer

if TYPE_CHECKING:
    from collections.abc import Mapping
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
) -> ApiServer:
    """Create the HTTP server, not yet started. Raises OSError for the certificate."""
    metrics = metrics or ApiMetrics()
    connections = connections_within_files(settings.max_connections)
    # Behind trusted proxies all connections are theirs.
    of_address = connections if settings.trusted_proxy_hops else settings.max_address_connections
    guard = ConnectionGuard(
        ConnectionBudget(BudgetLimits(connections, min(connections, of_address))),
        ConnectionTimeouts(settings.request_head_timeout, settings.request_body_rate),
    )
    metrics.read_refusals(guard.budget.refusals)
    metrics.gauge(
        "engineroom_http_connections", "Open connections.", lambda: float(len(guard.budget))
    )
    return ApiServer(
        uvicorn.Config(
            create_application(settings, config, metrics),
            host=settings.listen_host,
            port=settings.listen_port,
            http=cast("Any", protocol_factory(guard, _tls_context(settings))),
            ws="none",
            # Services.address reads X-Forwarded-For itself.
            proxy_headers=False,
            server_header=False,
            access_log=False,
            log_config=None,
            lifespan="on",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=GRACE,
        ),
        guard,
    )


def _tls_context(settings: ApiSettings) -> ssl.SSLContext | None:
    if settings.tls_certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    return context


def probe_server(running: ApiServer, settings: ApiSettings) -> HttpServer:
    """Return the server of the probes, on a port of their own; with port None it serves nothing."""

    async def healthz(_parameters: Mapping[str, str]) -> tuple[int, str, bytes]:
        return 200, JSON, b'{"status":"ok"}\n'

    async def readyz(_parameters: Mapping[str, str]) -> tuple[int, str, bytes]:
        problem = ""
        if not running.started or running.should_exit:
            problem = "starting" if not running.started else "ending"
        else:
            try:
                await check_ready(cast("Any", running.config.app).state.services)
            except (EngineroomError, TimeoutError) as error:
                problem = str(problem_document(error).body["detail"])
        state = {"status": problem or "ok"}
        return 503 if problem else 200, JSON, json.dumps(state).encode()

    return HttpServer(settings.probe_port, {"/healthz": healthz, "/readyz": readyz}, settings.host)


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
        metrics = ApiMetrics()
        running = server(settings, config, metrics)
    except (ClientConfigError, InvalidInputError, KindError, OSError, ValueError) as error:
        log.error("the API cannot start", error=str(error))  # noqa: TRY400
        return EXIT_CONFIG
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


async def _serve(running: ApiServer, metrics: ApiMetrics, settings: ApiSettings) -> None:
    async with (
        metrics.server(settings.metrics_port, settings.host),
        probe_server(running, settings),
    ):
        await running.serve()


if __name__ == "__main__":
    sys.exit(main())
