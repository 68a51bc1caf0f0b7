"""``engineroom-limiter``: one process that answers, or several behind one that looks after them."""

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
from engineroom.ratelimit.limits.cluster import refuse_shards
from engineroom.ratelimit.limits.errors import RedisClusterError
from engineroom.ratelimit.service import admin
from engineroom.ratelimit.service.admin import JSON, TEXT, Admin
from engineroom.ratelimit.service.directory import FixedDirectory, FollowingDirectory
from engineroom.ratelimit.service.engine import Engine
from engineroom.ratelimit.service.file import read_rooms
from engineroom.ratelimit.service.grpc import GrpcService
from engineroom.ratelimit.service.http import HttpService
from engineroom.ratelimit.service.metrics import Counts, Exposition
from engineroom.ratelimit.service.settings import Settings
from engineroom.ratelimit.service.top import Recordings

if TYPE_CHECKING:
    from collections.abc import Mapping

log = structlog.get_logger(__name__)

EXIT_OK, EXIT_CONFIG, EXIT_LOST = 0, 2, 3
#: Seconds that a recording of top keys lasts unless asked otherwise, and at most.
_TOP_SECONDS, _TOP_MOST = 5.0, 60.0
_MAX_TOP = 1000
#: Seconds until a process that ended is started again.
_RESTART = 1.0
_FETCH_TIMEOUT = 3.0
#: Seconds for Redis to say whether it is a cluster, and until it is asked again.
_LOOK_TIMEOUT, _LOOK_AGAIN = 1.0, 5.0
_BACKLOG = 1024
#: Objects made and not freed until young ones are looked through for cycles, and how many times
#: that happens until the older ones are. Python's own 700, 10, 10 stop a busy service some times a
#: second, for up to 20 ms.
_COLLECT = (50_000, 20, 100)
_MODULE = "engineroom.ratelimit.service.main"


class Service:
    """One process that answers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._redis = Redis.from_url(settings.read_redis_url())
        self.counts = Counts()
        self._exposition = Exposition(self.counts)
        self._recordings = Recordings()
        self.directory: FixedDirectory | FollowingDirectory
        if settings.policies is not None:
            sharing = settings.enforcers or settings.processes
            self.directory = FixedDirectory(read_rooms(settings.policies, self._redis, sharing))
        else:
            self.directory = FollowingDirectory(
                self._redis,
                settings.namespaces,
                only_given=settings.only_namespaces,
                identity=f"{settings.who}-{os.getpid()}",
            )
        self.counts.breakers(self.directory.breakers)
        engine = Engine(self.directory, self.counts, self._recordings)
        self.http = HttpService(engine, self.counts)
        self.grpc = GrpcService(engine, self.counts)
        self.draining = False
        #: Why limits cannot be enforced at all with this Redis; then it is never ready.
        self.trouble = ""
        self._looking: asyncio.Task[None] | None = None
        self.ports: dict[str, int] = {}
        self._servers: list[asyncio.Server] = []
        self._admin = Admin(
            {"/healthz": self._health, "/readyz": self._ready, "/metrics": self._metrics,
             "/top": self._top},
        )  # fmt: skip
        self.counts.gauge(
            "engineroom_ratelimit_http_connections",
            "Open connections of HTTP.",
            lambda: len(self.http.connections),
        )
        self.counts.gauge(
            "engineroom_ratelimit_grpc_connections",
            "Open connections of gRPC.",
            lambda: len(self.grpc.connections),
        )
        self.counts.gauge(
            "engineroom_ratelimit_policies",
            "Policies that are enforced.",
            lambda: sum(len(each.entries) for each in self.directory.policies()),
        )

    async def start(self) -> None:
        """Listen; ``ports`` then says where. Raises RedisClusterError."""
        settings = self._settings
        loop = asyncio.get_running_loop()
        if not await self._looked_for_shards():
            self._looking = loop.create_task(self._look_for_shards())
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
        """Say that it is not ready, answer what still comes, give leases back."""
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
        # Redis away is no reason: then the policies' failure mode decides, here as anywhere.
        ready = self.directory.ready and not self.draining and not self.trouble
        state: dict[str, object] = {
            "ready": ready,
            "draining": self.draining,
            "policies": self.directory.ready,
        }
        if self.trouble:
            state["trouble"] = self.trouble
        return 200 if ready else 503, JSON, json.dumps(state).encode()

    async def _looked_for_shards(self) -> bool:
        """Whether Redis has said what it is, or would not; raises RedisClusterError."""
        try:
            async with asyncio.timeout(_LOOK_TIMEOUT):
                await refuse_shards(self._redis)
        except NoPermissionError:
            return True
        except (RedisError, OSError, TimeoutError):
            return False
        return True

    async def _look_for_shards(self) -> None:
        """Of a Redis that did not answer at the start."""
        try:
            while not await self._looked_for_shards():  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_AGAIN)
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
            {"key": each.key, "count": each.times, "error": each.error}
            for each in recording.top(many)
        ]
        return 200, JSON, json.dumps({"total": recording.total, "keys": keys}).encode()


def top_parameters(parameters: Mapping[str, str]) -> tuple[float, int]:
    """How long to record, seconds, and how many keys to tell; nonsense is drawn into the bounds."""
    try:
        seconds = min(max(0.1, float(parameters.get("seconds", _TOP_SECONDS))), _TOP_MOST)
        many = min(max(1, int(parameters.get("keys", "20"))), _MAX_TOP)
    except (ValueError, OverflowError):
        return _TOP_SECONDS, 20
    return seconds, many


class Supervisor:
    """Starts processes that share the ports, and again when they end, and speaks for all."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._sockets = [str(folder / f"{number}") for number in range(settings.processes)]
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._code = EXIT_OK
        self._admin = Admin(
            {"/healthz": self._all, "/readyz": self._all_ready, "/metrics": self._metrics,
             "/top": self._top},
        )  # fmt: skip

    async def run(self, stop: asyncio.Event) -> int:
        """Until ``stop``, or until a process says that it cannot start; the exit code."""
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
                # It came too late to be ended with the others.
                process.terminate()
            code = await process.wait()
            if stop.is_set():
                return
            log.error("a process of the limiter ended", code=code)
            if code == EXIT_CONFIG:
                # It would say the same again: whoever runs the service is to see that it ended.
                self._code = code
                stop.set()
                return
            await asyncio.sleep(_RESTART)

    async def _fetch_all(self, target: str, seconds: float) -> list[tuple[int, bytes]]:
        calls = (admin.fetch(each, target, seconds) for each in self._sockets)
        found = await asyncio.gather(*calls, return_exceptions=True)
        return [each if isinstance(each, tuple) else (503, b"") for each in found]

    async def _all(self, _: Mapping[str, str]) -> tuple[int, str, bytes]:
        return await self._worst("/healthz")

    async def _all_ready(self, _: Mapping[str, str]) -> tuple[int, str, bytes]:
        return await self._worst("/readyz")

    async def _worst(self, target: str) -> tuple[int, str, bytes]:
        status, body = max(await self._fetch_all(target, _FETCH_TIMEOUT), key=lambda each: each[0])
        return status, JSON, body

    async def _metrics(self, _: Mapping[str, str]) -> tuple[int, str, bytes]:
        found = await self._fetch_all("/metrics", _FETCH_TIMEOUT)
        return 200, TEXT, admin.merge_metrics([body for status, body in found if status == 200])

    async def _top(self, parameters: Mapping[str, str]) -> tuple[int, str, bytes]:
        seconds, many = top_parameters(parameters)
        found = await self._fetch_all(
            f"/top?seconds={seconds}&keys={_MAX_TOP}", seconds + _FETCH_TIMEOUT
        )
        bodies = [body for status, body in found if status == 200]
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
    # What is there now stays: collecting it again and again would only take time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT)
    await stop.wait()
    await service.stop()
    return EXIT_OK


def main() -> int:
    """Settings from flags and the environment, then run."""
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
    # Imported here: it is quicker than asyncio's own loop, and not on every platform.
    try:
        import uvloop
    except ImportError:
        return asyncio.run(_serve(settings))
    return uvloop.run(_serve(settings))


def run() -> NoReturn:
    """The command."""
    sys.exit(main())


if __name__ == "__main__":
    run()
