"""``python -m engineroom_worker``: the workers of one pod, configured by the environment."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineroom_worker.config import (
    EX_CONFIG,
    ConfigError,
    Settings,
    connection_options,
    from_environment,
)

if TYPE_CHECKING:
    from collections.abc import Callable

#: Where the kubelet looks for what a container has to say about its end.
TERMINATION_LOG = Path("/dev/termination-log")

#: The oldest RQ whose executions and intermediate queue work as the runtime needs them.
OLDEST_RQ = (2, 4)

log = logging.getLogger("rq.worker")


def main() -> int:
    """Run until told to end; returns the exit code."""
    # The container's first program held these back until somebody could hear them: from here on.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        settings = from_environment()
        _check_rq()
        _check_serializer(settings)
    except ConfigError as error:
        return _refuse(str(error))
    from engineroom_worker import logs, out_of_memory

    logs.configure()

    from engineroom_worker.metrics import Board, MetricsServer
    from engineroom_worker.supervisor import Supervisor

    board = Board(settings.workers)
    out_of_memory.begin(board)
    try:
        server = MetricsServer(board, settings.pool, settings.metrics_port)
    except OSError as error:
        return _refuse(f"ENGINEROOM_METRICS_PORT: cannot listen on it: {error}")
    server.start()

    def work(slot: int) -> int:
        return run_worker(settings, slot, board, server.forget)

    try:
        if settings.workers == 1:
            return work(0)
        return Supervisor(settings.workers, board, work).run()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1


def _leave(signum: int, frame: Any) -> None:
    """Until a worker has handlers of its own it holds nothing, and may go at once."""
    raise SystemExit(0)


def run_worker(
    settings: Settings,
    slot: int,
    board: Any,
    forget: Callable[[], None],
    worker_class: Any | None = None,
) -> int:
    """One worker from birth to end; waits for Redis for as long as it takes."""
    from redis.exceptions import RedisError

    from engineroom_worker.transactions import Patience, is_outage
    from engineroom_worker.watchdog import watch
    from engineroom_worker.worker import PoolWorker

    name = f"{settings.pod_name}.{slot}.{uuid.uuid4().hex[:8]}"
    connection = connect(settings)
    patience = Patience(log.warning, name)
    while True:
        try:
            connection.ping()
            worker = (worker_class or PoolWorker)(
                settings, connection, name, board=board, slot=slot, forget=forget
            )
            break
        except RedisError as error:
            if not is_outage(error):
                raise
            patience.wait(error)
    watch(board, slot)
    worker.work()
    return 0


def connect(settings: Settings) -> Any:
    """A client as the worker needs it: no hidden retries, RESP2 (redis-py of any age)."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options = dict(connection_options(settings))
    if int(redis.__version__.split(".")[0]) >= 5:
        options["protocol"] = 2
    options["retry"] = Retry(NoBackoff(), 0)
    with contextlib.suppress(ImportError):
        # redis-py 8 looks up its own version for each connection, which takes longer than a job's
        # whole bookkeeping, and every work horse makes one; told once, it need not.
        from redis.driver_info import DriverInfo

        options["driver_info"] = DriverInfo()
    return redis.Redis.from_url(settings.redis_url, **options)


def _check_rq() -> None:
    try:
        import rq
    except ImportError:
        raise ConfigError(
            f"RQ is not installed in this image; add rq>=2.4 to what {sys.executable} sees, or "
            "name the interpreter that has it as the container's command"
        ) from None
    numbers: list[int] = [int(part) for part in rq.__version__.split(".")[:2] if part.isdigit()]
    if tuple(numbers) < OLDEST_RQ:
        raise ConfigError(f"RQ {rq.__version__} in this image is too old; install rq>=2.4")


def _check_serializer(settings: Settings) -> None:
    if settings.serializer is None:
        return
    from rq.serializers import resolve_serializer

    try:
        resolve_serializer(settings.serializer)
    except Exception as error:  # noqa: BLE001 - importing it runs the user's code
        raise ConfigError(f"ENGINEROOM_SERIALIZER: {settings.serializer}: {error}") from None


def _refuse(message: str) -> int:
    """One line for people, on stderr and where the operator reads it."""
    line = " ".join(message.split())
    sys.stderr.write(f"engineroom_worker: {line}\n")
    # Where it is not writable, stderr has to do; where the kubelet has not made it, it is not made.
    with contextlib.suppress(OSError):
        if TERMINATION_LOG.exists():
            TERMINATION_LOG.write_text(line)
    return EX_CONFIG


if __name__ == "__main__":
    sys.exit(main())
