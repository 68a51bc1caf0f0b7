"""The outbox's relay as a process of the application: ``python -m engineroom.relay``.

It needs the database's credentials, which the operator does not have. Any number may run at once,
and each may be killed at any time. It needs ``engineroom[postgres]``, and ``engineroom[metrics]``
for ``/metrics``. It polls the table, because NOTIFY takes a lock that serialises all commits of the
database.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engineroom.core import tracing
from engineroom.core.clock import Clock, SystemClock
from engineroom.core.error_translation import describe
from engineroom.core.errors import Category, EngineroomError
from engineroom.core.logging import REPEAT_SECONDS, REPEATED, configure, get_logger
from engineroom.core.recovery import NullMetrics, Recovery, RetryPolicy
from engineroom.core.serving.get_server import TEXT, GetServer
from engineroom.tasks.enqueueing.enqueue import Reason
from engineroom.tasks.outbox import CHUNK, Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engineroom.core.recovery import RecoveryMetrics
    from engineroom.core.serving.get_server import Handler
    from engineroom.tasks.enqueueing.enqueue import Enqueued

log = get_logger(__name__)

EXIT_OK, EXIT_CONFIG = 0, 2
#: Default of the seconds between two polls of an empty table.
POLL = 0.2
#: Seconds without a turn of the loop after which the relay is stuck, and without a successful turn
#: after which it is not ready.
STUCK, UNREADY = 90.0, 15.0
#: Pause after an error that retrying does not solve, such as a missing table (seconds).
ERROR_PAUSE = 5.0
#: Interval of the measurements of waiting rows (seconds).
OLDEST_EVERY = 5.0
#: Time limits of single steps, together less than STUCK (seconds).
CONNECT_TIMEOUT, STATEMENT_TIMEOUT, REDIS_TIMEOUT = 5, 20, 5.0
_DATABASE_OPTIONS = (
    f"-c statement_timeout={STATEMENT_TIMEOUT}s -c idle_in_transaction_session_timeout=60s"
)
_RETRY = RetryPolicy(attempts=6, base=0.2, longest=ERROR_PAUSE, total=60.0)
_WAITING = (
    "SELECT (SELECT extract(epoch FROM clock_timestamp() - created_at) FROM engineroom_outbox "
    "WHERE problem IS NULL ORDER BY id LIMIT 1), "
    "(SELECT count(*) FROM engineroom_outbox WHERE problem IS NOT NULL)"
)


_OUTCOMES = {
    Reason.CREATED: "written", Reason.PARENT_CANCELED: "canceled", Reason.UNIQUE: "known",
    Reason.EXISTS: "known",
}  # fmt: skip


class RelayMetrics(Protocol):
    """The metrics that the relay updates."""

    def carried(self, jobs: Sequence[Enqueued]) -> None:
        """Count jobs that were written now, or had been written before."""
        ...

    def waiting(self, oldest: float, set_aside: int) -> None:
        """Set the age in seconds of the oldest waiting row, and the number of rows set aside."""
        ...

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        ...


class NoMetrics:
    """Counts nothing, without prometheus-client."""

    def carried(self, jobs: Sequence[Enqueued]) -> None:
        """Count nothing."""

    def waiting(self, oldest: float, set_aside: int) -> None:
        """Set nothing."""

    def exposition(self) -> bytes:
        """Return a comment on how to get metrics."""
        return b"# pip install engineroom[metrics]\n"


class PrometheusMetrics:
    """The metrics ``engineroom_outbox_*``, and those of ``engineroom.core.prometheus``."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge

        from engineroom.core.prometheus import PrometheusRecovery

        self.registry = CollectorRegistry()
        self._carried = Counter(
            "engineroom_outbox_jobs",
            "Rows carried: written, canceled as what they wait for is, or known because an earlier "
            "job stood for them.",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in _OUTCOMES.values():
            self._carried.labels(outcome)
        self._oldest = Gauge(
            "engineroom_outbox_oldest_seconds", "Age of the oldest row.", registry=self.registry
        )
        self._set_aside = Gauge(
            "engineroom_outbox_set_aside", "Rows that cannot be carried.", registry=self.registry
        )
        self.recovery = PrometheusRecovery(self.registry)

    def carried(self, jobs: Sequence[Enqueued]) -> None:
        """Count jobs that were written now, or had been written before."""
        for job in jobs:
            self._carried.labels(_OUTCOMES[job.reason]).inc()

    def waiting(self, oldest: float, set_aside: int) -> None:
        """Set the age in seconds of the oldest waiting row, and the number of rows set aside."""
        self._oldest.set(oldest)
        self._set_aside.set(set_aside)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class RelayRunner:
    """Runs a relay until told to stop, through outages of PostgreSQL and Redis."""

    def __init__(
        self,
        database_url: str,
        redis_url: str,
        *,
        poll: float = POLL,
        clock: Clock | None = None,
        metrics: RelayMetrics | None = None,
        recovery_metrics: RecoveryMetrics | None = None,
    ) -> None:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._database_url = database_url
        # The client must not retry inside a transaction that locks rows.
        self._redis = Redis.from_url(
            redis_url,
            socket_timeout=REDIS_TIMEOUT,
            socket_connect_timeout=REDIS_TIMEOUT,
            retry=Retry(NoBackoff(), 0),
            client_name="engineroom-relay",
        )
        self._poll = poll
        self._clock = clock or SystemClock()
        self._metrics = metrics or NoMetrics()
        self._stop = threading.Event()
        self._recovery = Recovery(
            "outbox relay",
            policies=dict.fromkeys((Category.DEPENDENCY, Category.TRANSIENT, Category.CONFLICT),
                                   _RETRY),
            metrics=recovery_metrics or NullMetrics(),
            clock=self._clock,
            sleep=lambda seconds: self._rest(seconds),
        )  # fmt: skip
        self._connection: Any = None
        self._measured_at = float("-inf")
        self._turned_at = self._succeeded_at = self._clock.monotonic()
        #: The last error; empty after a success.
        self.trouble = "not connected yet"

    def stop(self) -> None:
        """End ``run`` after the current transaction."""
        self._stop.set()

    def run(self) -> None:
        """Move jobs until ``stop``."""
        while not self._stop.is_set():
            self._turned_at = self._clock.monotonic()
            try:
                moved = self._recovery.call(self._turn)
            except EngineroomError as error:
                self._report(str(error))
                self._rest(ERROR_PAUSE)
                continue
            if self.trouble:
                log.info("outbox is relayed")
            self.trouble, self._succeeded_at = "", self._clock.monotonic()
            if moved < CHUNK:
                self._rest(self._poll)
        self._disconnect()
        self._redis.close()

    def health(self) -> str:
        """Return the problem that a restart may solve, or ""."""
        silent = self._clock.monotonic() - self._turned_at
        return f"the loop is stuck for {silent:.0f} s" if silent > STUCK else ""

    def readiness(self) -> str:
        """Return the problem that keeps the relay from moving jobs, or ""."""
        if self.trouble:
            return self.trouble
        silent = self._clock.monotonic() - self._succeeded_at
        return f"nothing was looked at for {silent:.0f} s" if silent > UNREADY else ""

    def _turn(self) -> int:
        """Move the waiting jobs once; return their number. A driver error closes the connection."""
        import psycopg

        self._turned_at = self._clock.monotonic()
        try:
            if self._connection is None:
                self._connection = psycopg.connect(
                    self._database_url,
                    autocommit=True,
                    connect_timeout=CONNECT_TIMEOUT,
                    application_name="engineroom-relay",
                    options=_DATABASE_OPTIONS,
                )
            with tracing.span("relay") as span:
                jobs = Relay(self._connection, self._redis, self._clock).once()
                span.note(messaging__batch__message_count=len(jobs))
            self._measure_waiting()
        except psycopg.Error as error:
            self._disconnect()
            self._report(describe(error))
            raise
        except EngineroomError as error:
            self._report(str(error))
            raise
        self._metrics.carried(jobs)
        return len(jobs)

    def _measure_waiting(self) -> None:
        now = self._clock.monotonic()
        if now - self._measured_at < OLDEST_EVERY:
            return
        self._measured_at = now
        oldest, set_aside = self._connection.execute(_WAITING).fetchone()
        self._metrics.waiting(max(0.0, float(oldest or 0)), set_aside)

    def _report(self, trouble: str) -> None:
        if trouble != self.trouble:
            log.warning("outbox cannot be relayed", error=trouble)
        self.trouble = trouble

    def _rest(self, seconds: float) -> None:
        self._turned_at = self._clock.monotonic()
        self._stop.wait(seconds)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.close()


class ProbeThread:
    """Serves ``/healthz``, ``/readyz`` and ``/metrics`` on an event loop in a thread."""

    def __init__(self, host: RelayRunner, metrics: RelayMetrics) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="probes", daemon=True)

        def probe(report: Callable[[], str]) -> Handler:
            async def answer(_parameters: Mapping[str, str]) -> tuple[int, str, bytes]:
                trouble = report()
                return 503 if trouble else 200, TEXT, f"{trouble or 'ok'}\n".encode()

            return answer

        async def expose(_parameters: Mapping[str, str]) -> tuple[int, str, bytes]:
            return 200, TEXT, metrics.exposition()

        self._server = GetServer(
            {"/healthz": probe(host.health), "/readyz": probe(host.readiness), "/metrics": expose}
        )

    def start(self, address: str, port: int) -> int:
        """Listen and return the port. Raises OSError."""
        chosen = self._loop.run_until_complete(self._server.listen(address, port))
        self._thread.start()
        return chosen

    def stop(self) -> None:
        """Stop serving."""
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


def parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    arguments = argparse.ArgumentParser(
        prog="python -m engineroom.relay",
        description="Carry jobs from the outbox in PostgreSQL to Redis. URLs come from files, or "
        "from ENGINEROOM_DATABASE_URL and ENGINEROOM_REDIS_URL.",
    )
    arguments.add_argument("--database-url-file", type=Path, help="file with the PostgreSQL URL")
    arguments.add_argument("--redis-url-file", type=Path, help="file with the Redis URL")
    arguments.add_argument(
        "--poll", type=float, default=POLL, help=f"seconds between polls when idle [{POLL:g}]"
    )
    arguments.add_argument("--host", default="0.0.0.0", help="address of the probes [all]")  # noqa: S104 # nosec B104 - the kubelet connects from outside the pod
    arguments.add_argument("--port", type=int, default=8081, help="port of the probes [8081]")
    arguments.add_argument(
        "--log-repeat", type=int, default=REPEATED,
        help=f"lines of the same message that are written in ten seconds; 0: all [{REPEATED}]",
    )  # fmt: skip
    return arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; return the exit code."""
    options = parser().parse_args(arguments)
    configure(repeat=(max(0, options.log_repeat), REPEAT_SECONDS))
    try:
        database_url = _url("database", options.database_url_file)
        redis_url = _url("redis", options.redis_url_file)
        _check(options.poll)
        metrics: NoMetrics | PrometheusMetrics = NoMetrics()
        recovery_metrics: RecoveryMetrics = NullMetrics()
        if importlib.util.find_spec("prometheus_client") is not None:
            metrics = PrometheusMetrics()
            recovery_metrics = metrics.recovery
        host = RelayRunner(
            database_url,
            redis_url,
            poll=options.poll,
            metrics=metrics,
            recovery_metrics=recovery_metrics,
        )
        probes = ProbeThread(host, metrics)
        port = probes.start(options.host, options.port)
    except (ValueError, OSError) as error:
        log.error("the relay cannot start", problem=str(error))  # noqa: TRY400
        return EXIT_CONFIG
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: host.stop())
    log.info("relay starting", port=port)
    tracing.start("engineroom-relay")
    host.run()
    tracing.stop()
    probes.stop()
    log.info("relay ends")
    return EXIT_OK


def _check(poll: float) -> None:
    """Raise ValueError for options with which the relay cannot run."""
    if not 0.01 <= poll <= 60:
        raise ValueError("--poll: use 0.01 to 60 seconds")
    if importlib.util.find_spec("psycopg") is None:
        raise ValueError("psycopg is not installed: pip install 'engineroom[postgres]'")


def _url(name: str, file: Path | None) -> str:
    """Return the URL from the file or from the environment. Raises ValueError, OSError."""
    variable = f"ENGINEROOM_{name.upper()}_URL"
    url = file.read_text().strip() if file is not None else os.environ.get(variable, "")
    if not url:
        raise ValueError(f"no {name} URL: set --{name}-url-file or {variable}")
    return url


if __name__ == "__main__":
    sys.exit(main())
