"""``engineroom-limiter``: one serving process, or several with a supervisor."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import structlog
from pydantic import ValidationError
from pydantic_settings import CliApp
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError

from engineroom import __version__
from engineroom.core.errors import EngineroomError
from engineroom.core.logging import REPEAT_SECONDS, configure
from engineroom.core.serving.connection_budget import (
    BudgetLimits,
    ConnectionBudget,
    connections_within_files,
)
from engineroom.core.serving.get_server import JSON, TEXT, GetServer
from engineroom.ratelimit.limits.cluster import refuse_shards
from engineroom.ratelimit.limits.errors import RedisClusterError
from engineroom.ratelimit.service import admin
from engineroom.ratelimit.service.directory import FixedDirectory, FollowingDirectory
from engineroom.ratelimit.service.engine import DecisionEngine
from engineroom.ratelimit.service.file import read_namespaces
from engineroom.ratelimit.service.grpc import GrpcService
from engineroom.ratelimit.service.http import HttpService
from engineroom.ratelimit.service.metrics import Exposition, ServiceCounts
from engineroom.ratelimit.service.settings import Settings
from engineroom.ratelimit.service.top import Recordings

if TYPE_CHECKING:
    from collections.abc import Mapping

log = structlog.get_logger(__name__)

EXIT_OK, EXIT_CONFIG, EXIT_LOST = 0, 2, 3
#: Default and longest duration of a recording of top keys, seconds.
_TOP_SECONDS, _MAX_TOP_SECONDS = 5.0, 60.0
_MAX_TOP = 1000
#: Seconds until a process that ended is restarted.
_RESTART = 1.0
_FETCH_TIMEOUT = 3.0
#: Timeout of the check for Redis Cluster, and seconds until its repetition.
_SHARD_TIMEOUT, _SHARD_RETRY = 1.0, 5.0
_BACKLOG = 1024
#: Thresholds of the garbage collector. Python's default of 700, 10, 10 stops a busy service several
#: times a second, for up to 20 ms.
_COLLECT = (50_000, 20, 100)
_MODULE = "engineroom.ratelimit.service.main"


class Service:
    """One serving process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._redis = Redis.from_url(settings.read_redis_url())
        self.counts = ServiceCounts()
        self._exposition = Exposition(self.counts)
        self._recordings = Recordings()
        self.directory: FixedDirectory | FollowingDirectory
        if settings.policies is not None:
            sharing = settings.enforcers or settings.processes
            self.directory = FixedDirectory(
                read_namespaces(settings.policies, self._redis, sharing)
            )
        else:
            self.directory = FollowingDirectory(
                self._redis,
                settings.namespaces,
                only_configured=settings.only_namespaces,
                identity=f"{settings.identity_or_host}-{os.getpid()}",
            )
        self.counts.read_breakers(self.directory.breakers)
        engine = DecisionEngine(self.directory, self.counts, self._recordings)
        self.budget = create_budget(settings)
        timeout = settings.request_timeout
        self.http = HttpService(engine, self.counts, self.budget, request_timeout=timeout)
        self.grpc = GrpcService(engine, self.counts, self.budget, request_timeout=timeout)
        self.counts.read_refusals(lambda: self.budget.refusals)
        self.draining = False
        #: Why this Redis cannot enforce limits; the process is then never ready.
        self.trouble = ""
        self._looking: asyncio.Task[None] | None = None
        self.ports: dict[str, int] = {}
        self._servers: list[asyncio.Server] = []
        self._admin = GetServer(
            {"/healthz": self._health, "/readyz": self._ready, "/metrics": self._metrics,
             "/top": self._top},
        )  # fmt: skip
        self.counts.gauge(
            "engineroom_ratelimit_http_connections",
            "Open HTTP connections.",
            lambda: len(self.http.connections),
        )
        self.counts.gauge(
            "engineroom_ratelimit_grpc_connections",
            "Open gRPC connections.",
            lambda: len(self.grpc.connections),
        )
        self.counts.gauge(
            "engineroom_ratelimit_held_bytes",
            "Bytes of requests that are incomplete or wait, as far as the budget counts them.",
            lambda: self.budget.held,
        )
        self.counts.gauge(
            "engineroom_ratelimit_policies",
            "Policies that are enforced.",
            lambda: sum(len(snapshot.entries) for snapshot in self.directory.policies()),
        )

    async def start(self) -> None:
        """Listen on all ports, and set ``ports``. Raises RedisClusterError."""
        settings = self._settings
        loop = asyncio.get_running_loop()
        if not await self._checked_shards():
            self._looking = loop.create_task(self._check_shards())
        if isinstance(self.directory, FollowingDirectory):
            self.directory.start()
        shared = bool(settings.worker)
        for name, factory, port in (
            ("http", self.http.connection, settings.http_port),
            ("grpc", self.grpc.connection, settings.grpc_port),
        ):
            server = await loop.create_server(
                factory, settings.host, port, reuse_port=shared or None, backlog=_BACKLOG
            )
            self._servers.append(server)
            self.ports[name] = int(server.sockets[0].getsockname()[1])
        self.http.start()
        self.grpc.start()
        if shared:
            await self._admin.listen_at(settings.worker)
        else:
            self.ports["admin"] = await self._admin.listen(settings.host, settings.admin_port)
        log.info("limiter listens", version=__version__, **self.ports)

    async def stop(self) -> None:
        """Become unready, drain connections, return leases."""
        self.draining = True
        await asyncio.sleep(self._settings.drain_delay)
        for server in self._servers:
            server.close()
        timeout = self._settings.drain_timeout
        await asyncio.gather(self.http.drain(timeout), self.grpc.drain(timeout))
        if self._looking is not None:
            self._looking.cancel()
        await self.directory.close()
        await self._redis.aclose()
        self._admin.close()
        log.info("limiter ends")

    async def _health(self, _: Mapping[str, str]) -> tuple[int, str, bytes]:
        return 200, JSON, b'{"status":"ok"}\n'

    async def _ready(self, _: Mapping[str, str]) -> tuple[int, str, bytes]:
        # An unreachable Redis is not a reason: the policies' failure mode then decides.
        ready = self.directory.ready and not self.draining and not self.trouble
        state: dict[str, object] = {
            "ready": ready,
            "draining": self.draining,
            "policies": self.directory.ready,
        }
        if self.trouble:
            state["trouble"] = self.trouble
        return 200 if ready else 503, JSON, json.dumps(state).encode()

    async def _checked_shards(self) -> bool:
        """Return whether Redis answered the check, or refused it; raise RedisClusterError."""
        try:
            async with asyncio.timeout(_SHARD_TIMEOUT):
                await refuse_shards(self._redis)
        except NoPermissionError:
            return True
        except (RedisError, OSError, TimeoutError):
            return False
        return True

    async def _check_shards(self) -> None:
        """Repeat the check until Redis answers."""
        try:
            while not await self._checked_shards():  # noqa: ASYNC110
                await asyncio.sleep(_SHARD_RETRY)
        except RedisClusterError as error:
            self.trouble = str(error)
            log.error("limits cannot be enforced", problem=self.trouble)  # noqa: TRY400

    async def _metrics(self, _: Mapping[str, str]) -> tuple[int, str, bytes]:
        return 200, TEXT, self._exposition.text()

    async def _top(self, parameters: Mapping[str, str]) -> tuple[int, str, bytes]:
        seconds, many = top_parameters(parameters)
        recording = self._recordings.start()
        if recording is None:
            return 503, JSON, b'{"detail":"too many recordings run; try again in some seconds"}\n'
        try:
            await asyncio.sleep(seconds)
        finally:
            self._recordings.stop(recording)
        keys = [
            {"key": key.key, "count": key.times, "error": key.error} for key in recording.top(many)
        ]
        return 200, JSON, json.dumps({"total": recording.total, "keys": keys}).encode()


def create_budget(settings: Settings) -> ConnectionBudget:
    """Create the budget of one serving process, within its limit of open files."""
    connections = connections_within_files(settings.max_connections)
    if connections < settings.max_connections:
        log.warning(
            "the limit of open files permits fewer connections",
            setting=settings.max_connections,
            connections=connections,
        )
    limits = BudgetLimits(
        connections,
        min(connections, settings.max_address_connections),
        settings.max_held_bytes,
        min(settings.max_held_bytes, settings.max_address_bytes),
    )
    return ConnectionBudget(limits)


def top_parameters(parameters: Mapping[str, str]) -> tuple[float, int]:
    """Return the duration of a recording (seconds) and the number of keys, within their limits."""
    try:
        seconds = min(max(0.1, float(parameters.get("seconds", _TOP_SECONDS))), _MAX_TOP_SECONDS)
        many = min(max(1, int(parameters.get("keys", "20"))), _MAX_TOP)
    except (ValueError, OverflowError):
        return _TOP_SECONDS, 20
    return seconds, many


class Supervisor:
    """Starts and restarts processes that share the ports, and serves their probes and metrics."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._sockets = [str(folder / f"{number}") for number in range(settings.processes)]
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._code = EXIT_OK
        self._admin = GetServer(
            {"/healthz": self._all, "/readyz": self._all_ready, "/metrics": self._metrics,
             "/top": self._top},
        )  # fmt: skip

    async def run(self, stop: asyncio.Event) -> int:
        """Run until ``stop``, or until a process cannot start; return the exit code."""
        await self._admin.listen(self._settings.host, self._settings.admin_port)
        keepers = [asyncio.create_task(self._keep(socket, stop)) for socket in self._sockets]
        await stop.wait()
        for process in self._running.values():
            if process.returncode is None:
                process.terminate()
        await asyncio.wait(keepers)
        self._admin.close()
        return self._code

    async def _keep(self, socket: str, stop: asyncio.Event) -> None:
        while not stop.is_set():
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", _MODULE, *sys.argv[1:], "--worker", socket
            )
            self._running[socket] = process
            if stop.is_set():
                # Started after the others were terminated.
                process.terminate()
            code = await process.wait()
            if stop.is_set():
                return
            log.error("a process of the limiter ended", code=code)
            if code == EXIT_CONFIG:
                # A restart would fail in the same way: end the whole service.
                self._code = code
                stop.set()
                return
            await asyncio.sleep(_RESTART)

    async def _fetch_all(self, target: str, seconds: float) -> list[tuple[int, bytes]]:
        calls = (admin.fetch(socket, target, seconds) for socket in self._sockets)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        return [answer if isinstance(answer, tuple) else (503, b"") for answer in answers]

    async def _all(self, _: Mapping[str, str]) -> tuple[int, str, bytes]:
        return await self._worst("/healthz")

    async def _all_ready(self, _: Mapping[str, str]) -> tuple[int, str, bytes]:
        return await self._worst("/readyz")

    async def _worst(self, target: str) -> tuple[int, str, bytes]:
        status, body = max(
            await self._fetch_all(target, _FETCH_TIMEOUT), key=lambda answer: answer[0]
        )
        return status, JSON, body

    async def _metrics(self, _: Mapping[str, str]) -> tuple[int, str, bytes]:
        answers = await self._fetch_all("/metrics", _FETCH_TIMEOUT)
        bodies = [body for status, body in answers if status == 200]
        return 200, TEXT, admin.merge_metrics(bodies)

    async def _top(self, parameters: Mapping[str, str]) -> tuple[int, str, bytes]:
        seconds, many = top_parameters(parameters)
        answers = await self._fetch_all(
            f"/top?seconds={seconds}&keys={_MAX_TOP}", seconds + _FETCH_TIMEOUT
        )
        bodies = [body for status, body in answers if status == 200]
        if not bodies:
            return 503, JSON, b"{}"
        return 200, JSON, admin.merge_top(bodies, many)


async def _serve(settings: Settings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if settings.processes > 1 and not settings.worker:
        with tempfile.TemporaryDirectory(prefix="limiter-") as folder:
            return await Supervisor(settings, Path(folder)).run(stop)
    service = Service(settings)
    await service.start()
    # The objects of the start stay for ever: exclude them from collection.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT)
    await stop.wait()
    await service.stop()
    return EXIT_OK


def main() -> int:
    """Read settings from flags and the environment, and run."""
    try:
        settings = CliApp.run(Settings)
    except ValidationError as error:
        configure()
        for problem in error.errors(include_input=False, include_url=False):
            name = "_".join(str(part) for part in problem["loc"])
            log.error("a setting is wrong", setting=name, problem=problem["msg"])  # noqa: TRY400
        return EXIT_CONFIG
    configure(settings.log_level, settings.log_format, repeat=(settings.log_repeat, REPEAT_SECONDS))
    logging.captureWarnings(capture=True)
    try:
        return _run(settings)
    except (EngineroomError, OSError, ValueError) as error:
        log.error("the limiter cannot start", error=str(error))  # noqa: TRY400
        return EXIT_CONFIG


def _run(settings: Settings) -> int:
    # Faster than asyncio's own event loop, and not available on every platform.
    try:
        import uvloop
    except ImportError:
        return asyncio.run(_serve(settings))
    return uvloop.run(_serve(settings))


def run() -> NoReturn:
    """Run the command."""
    sys.exit(main())


if __name__ == "__main__":
    run()
