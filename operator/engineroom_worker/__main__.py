"""``python -m engineroom_worker``: runs the workers of one pod, configured by the environment."""

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
    Settings,
    WorkerConfigError,
    connection_options,
    from_environment,
)

if TYPE_CHECKING:
    from collections.abc import Callable

#: The file from which the kubelet reads a container's termination message.
TERMINATION_LOG = Path("/dev/termination-log")

#: The oldest RQ with the executions and the intermediate queue that the runtime needs.
OLDEST_RQ = (2, 4)

log = logging.getLogger("rq.worker")


def main() -> int:
    """Run until told to stop; return the exit code."""
    # The container's first program blocked these signals until a handler exists.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        settings = from_environment()
        _check_rq()
        _check_serializer(settings)
    except WorkerConfigError as error:
        return _refuse(str(error))
    from engineroom_worker import out_of_memory
    from engineroom_worker.observability import logs

    logs.configure()

    from engineroom_worker.observability.metrics import MetricsServer, SharedMetrics
    from engineroom_worker.supervisor import Supervisor

    metrics = SharedMetrics(settings.workers)
    out_of_memory.set_baseline(metrics)
    try:
        server = MetricsServer(metrics, settings.pool, settings.metrics_port)
    except OSError as error:
        return _refuse(f"ENGINEROOM_METRICS_PORT: cannot listen on it: {error}")
    server.start()

    def work(slot: int) -> int:
        return run_worker(settings, slot, metrics, server.close_inherited)

    try:
        if settings.workers == 1:
            return work(0)
        return Supervisor(settings.workers, metrics, work).run()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1


def _exit(signum: int, frame: Any) -> None:
    """Exit at once: before a worker has its own handlers, it holds no job."""
    raise SystemExit(0)


def run_worker(
    settings: Settings,
    slot: int,
    metrics: Any,
    close_inherited: Callable[[], None],
    worker_class: Any | None = None,
) -> int:
    """Run one worker until its end; wait for Redis without a limit."""
    from redis.exceptions import RedisError

    from engineroom_worker.transactions import RedisRetry, is_outage
    from engineroom_worker.watchdog import watch
    from engineroom_worker.worker import PoolWorker

    name = f"{settings.pod_name}.{slot}.{uuid.uuid4().hex[:8]}"
    connection = connect(settings)
    retry = RedisRetry(log.warning, name)
    while True:
        try:
            connection.ping()
            worker = (worker_class or PoolWorker)(
                settings, connection, name, metrics, slot, close_inherited
            )
            break
        except RedisError as error:
            if not is_outage(error):
                raise
            retry.wait(error)
    watch(metrics, slot)
    worker.work()
    return 0


def connect(settings: Settings) -> Any:
    """Return a client without hidden retries, with RESP2 for any version of redis-py."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options = dict(connection_options(settings))
    if int(redis.__version__.split(".")[0]) >= 5:
        options["protocol"] = 2
    options["retry"] = Retry(NoBackoff(), 0)
    with contextlib.suppress(ImportError):
        # Each work horse opens a connection, for which redis-py 8 looks up its own version. That
        # takes longer than all bookkeeping of a job, unless the version is passed.
        from redis.driver_info import DriverInfo

        options["driver_info"] = DriverInfo()
    return redis.Redis.from_url(settings.redis_url, **options)


def _check_rq() -> None:
    try:
        import rq
    except ImportError:
        raise WorkerConfigError(
            f"RQ is not installed in this image; add rq>=2.4 to what {sys.executable} sees, or "
            "name the interpreter that has it as the container's command"
        ) from None
    numbers: list[int] = [int(part) for part in rq.__version__.split(".")[:2] if part.isdigit()]
    if tuple(numbers) < OLDEST_RQ:
        raise WorkerConfigError(f"RQ {rq.__version__} in this image is too old; install rq>=2.4")


def _check_serializer(settings: Settings) -> None:
    if settings.serializer is None:
        return
    from rq.serializers import resolve_serializer

    try:
        resolve_serializer(settings.serializer)
    except Exception as error:  # noqa: BLE001 - importing it runs the user's code
        raise WorkerConfigError(f"ENGINEROOM_SERIALIZER: {settings.serializer}: {error}") from None


def _refuse(message: str) -> int:
    """Write the message to stderr and to the termination message; return the exit code."""
    line = " ".join(message.split())
    sys.stderr.write(f"engineroom_worker: {line}\n")
    # The kubelet creates the file; if it is missing or not writable, stderr has to suffice.
    with contextlib.suppress(OSError):
        if TERMINATION_LOG.exists():
            TERMINATION_LOG.write_text(line)
    return EX_CONFIG


if __name__ == "__main__":
    sys.exit(main())
