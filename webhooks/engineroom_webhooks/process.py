"""The admission process: load a certificate, serve until SIGTERM, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from typing import TYPE_CHECKING

from aiohttp import web

from engineroom.api import kinds, validation
from engineroom.core.clock import SystemClock
from engineroom.core.logging import get_logger
from engineroom.kube.client.client import Client
from engineroom_webhooks.authorization import AllowAll, ClusterAuthorizer
from engineroom_webhooks.certificate_manager import (
    ClusterCertificateStore,
    ServingCertificate,
    keep,
    keep_files,
)
from engineroom_webhooks.certificates import RotationPolicy
from engineroom_webhooks.server import admission, probes

if TYPE_CHECKING:
    from engineroom.core.clock import Clock
    from engineroom_webhooks.authorization import Authorizer
    from engineroom_webhooks.settings import Settings

#: Seconds. Longer than clients keep idle connections (Go: 90 s), so that the server never closes a
#: connection that a client is about to use.
_KEEPALIVE = 300.0
_SHUTDOWN = 10.0

logger = get_logger(__name__)


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    clock: Clock = SystemClock()
    async with contextlib.AsyncExitStack() as stack:
        client: Client | None = None
        if settings.review_authors or settings.certificates == "self":
            client = await stack.enter_async_context(
                Client.load(timeout=5.0, user_agent="engineroom-webhooks")
            )
        authorizer = _authorizer(settings, client, clock)
        serving_certificate = ServingCertificate()
        listening = asyncio.Event()

        def ready() -> str:
            return unready(serving_certificate, listening=listening.is_set(), ending=stop.is_set())

        probe_server = probes(ready)
        stack.callback(probe_server.close)
        await probe_server.listen(settings.host, settings.probe_port)
        keeping = asyncio.create_task(_keeping(settings, client, serving_certificate, clock))
        stack.push_async_callback(_cancel, keeping)
        if not await _first(serving_certificate.loaded, stop, keeping):
            return
        warm()
        server = admission(authorizer, settings.body_limit, settings.body_timeout)
        runner = web.AppRunner(
            server, access_log=None, keepalive_timeout=_KEEPALIVE, shutdown_timeout=_SHUTDOWN
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(
            runner,
            settings.host,
            settings.port,
            ssl_context=serving_certificate.context,
            backlog=1024,
            reuse_address=True,
        )
        await site.start()
        listening.set()
        logger.info("listening", port=settings.port)
        await _first(stop, keeping)
        # Endpoints are updated with a delay; requests that still arrive are answered.
        logger.info("draining", seconds=settings.drain)
        await asyncio.sleep(settings.drain)
    logger.info("ended")


def _authorizer(settings: Settings, client: Client | None, clock: Clock) -> Authorizer:
    if not settings.review_authors or client is None:
        return AllowAll()
    trusted = (name.strip() for name in settings.trusted_authors.split(","))
    return ClusterAuthorizer(client, clock, frozenset(filter(None, trusted)), settings.namespace)


def unready(serving_certificate: ServingCertificate, *, listening: bool, ending: bool) -> str:
    """Return the reason why the process is not ready; empty if it is."""
    if ending:
        return "draining"
    if serving_certificate.context is None:
        return "no certificate yet"
    if not listening:
        return "not listening yet"
    return "" if serving_certificate.trusted else "the certificate's CA is not published yet"


def warm() -> None:
    """Do before the first request what is slow the first time. Raises KindError."""
    validation.check_registry(kinds.registry())
    validation.problems(
        {
            "apiVersion": "engineroom.dev/v1alpha1",
            "kind": "WorkerPool",
            "metadata": {"name": "warm", "namespace": "warm"},
            "spec": {
                "queues": [{"name": "warm"}],
                "autoscaling": {
                    "schedules": [
                        {"name": "warm", "cron": "0 8 * * 1-5", "timeZone": "-", "minReplicas": 1}
                    ]
                },
                "template": {"spec": {"containers": [{"name": "warm", "image": "warm:1"}]}},
            },
        }
    )
    # Objects created so far never become garbage; excluding them keeps collections short.
    gc.collect()
    gc.freeze()


async def _keeping(
    settings: Settings, client: Client | None, serving_certificate: ServingCertificate, clock: Clock
) -> None:
    if settings.certificates == "files" or client is None:
        await keep_files(serving_certificate, settings.certificate_folder, settings.check_interval)
        return
    policy = RotationPolicy(
        settings.names(),
        settings.leaf_lifetime,
        settings.authority_lifetime,
        settings.settle,
        settings.retire,
    )
    store = ClusterCertificateStore(
        client, settings.namespace, settings.secret, settings.configuration
    )
    await keep(serving_certificate, store, policy, clock, settings.check_interval)


async def _first(event: asyncio.Event, *awaitables: asyncio.Event | asyncio.Task[None]) -> bool:
    """Wait for the first of all; return whether ``event`` is set. Raises a task's error."""
    events = [event, *(other for other in awaitables if isinstance(other, asyncio.Event))]
    waits = {asyncio.create_task(waiter.wait()) for waiter in events}
    tasks = {task for task in awaitables if isinstance(task, asyncio.Task)}
    await asyncio.wait([*waits, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    for task in tasks:
        if task.done():
            task.result()
    return event.is_set()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
