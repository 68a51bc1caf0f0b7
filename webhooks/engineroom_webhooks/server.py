"""The HTTP server of the reviews: limits, statuses, probes, metrics."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import orjson
import prometheus_client
from aiohttp import web

from engineroom.api import kinds
from engineroom.core.logging import get_logger
from engineroom.core.serving.get_server import TEXT, GetServer
from engineroom_webhooks import metrics
from engineroom_webhooks.review import UnreadableReviewError, answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engineroom_webhooks.authorization import Authorizer

logger = get_logger(__name__)


def admission(authorizer: Authorizer, body_limit: int, body_timeout: float) -> web.Application:
    """Build the application behind TLS: ``POST /validate`` and ``/validate/<plural of a kind>``."""

    async def validate(request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(body_timeout):
                body = await request.read()
        except TimeoutError:
            return _refused(408, f"the body did not arrive within {body_timeout:g} s")
        except web.HTTPRequestEntityTooLarge:
            return _refused(413, f"the body is larger than {body_limit} bytes")
        started = time.perf_counter()
        try:
            review = orjson.loads(body)
            verdict = await answer(review, authorizer)
        except orjson.JSONDecodeError as error:
            return _refused(400, f"the body is not JSON: {error}")
        except UnreadableReviewError as error:
            return _refused(400, str(error))
        except Exception:
            metrics.REQUESTS.labels(operation="unknown", outcome="failed").inc()
            logger.exception("a review could not be answered")
            return _problem(500, "a fault inside the admission server; its log has the trace")
        text = orjson.dumps(verdict.document())
        metrics.REQUESTS.labels(
            operation=verdict.operation if verdict.operation in _OPERATIONS else "unknown",
            outcome=verdict.outcome,
        ).inc()
        metrics.DURATION.observe(time.perf_counter() - started)
        if not verdict.allowed:
            logger.info(
                "refused",
                operation=verdict.operation,
                name=verdict.name,
                outcome=verdict.outcome,
                # Fields only: values may be secrets.
                fields=[problem.field for problem in verdict.problems[:10]],
            )
        return web.Response(body=text, content_type="application/json")

    app = web.Application(client_max_size=body_limit)
    app.router.add_post("/validate", validate)
    for kind in kinds.registry():
        app.router.add_post(f"/validate/{kind.plural}", validate)
    return app


_OPERATIONS = frozenset({"CREATE", "UPDATE", "DELETE", "CONNECT"})


def _refused(status: int, message: str) -> web.Response:
    metrics.REQUESTS.labels(operation="unknown", outcome="unread").inc()
    return _problem(status, message)


def _problem(status: int, message: str) -> web.Response:
    body = orjson.dumps({"status": status, "title": "admission review", "detail": message[:500]})
    return web.Response(status=status, body=body, content_type="application/problem+json")


def probes(ready: Callable[[], str]) -> GetServer:
    """Build ``/healthz``, ``/readyz`` and ``/metrics``; ``ready`` returns why not ready, or ""."""

    async def healthz(_parameters: Mapping[str, str]) -> tuple[int, str, bytes]:
        return 200, TEXT, b"ok\n"

    async def readyz(_parameters: Mapping[str, str]) -> tuple[int, str, bytes]:
        reason = ready()
        return 503 if reason else 200, TEXT, f"{reason or 'ok'}\n".encode()

    async def show_metrics(_parameters: Mapping[str, str]) -> tuple[int, str, bytes]:
        return 200, prometheus_client.CONTENT_TYPE_LATEST, prometheus_client.generate_latest()

    return GetServer({"/healthz": healthz, "/readyz": readyz, "/metrics": show_metrics})
