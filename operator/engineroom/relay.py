"""The outbox's relay as a process of its own: ``python -m engineroom.relay``, in the application.

It needs what the application has and the operator has not: the database's credentials. Any number
may run at once, and each may be killed at any time. Needs ``engineroom[postgres]``, and for
``/metrics`` ``engineroom[metrics]``. The table is looked at again and again instead of being
listened to: NOTIFY takes a lock that all of a database's commits wait for, one after the other.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engineroom.core import tracing
from engineroom.core.clock import Clock, SystemClock
from engineroom.core.error_translation import describe
from engineroom.core.errors import Category, EngineroomError
from engineroom.core.logging import REPEAT_SECONDS, REPEATED, configure, get_logger
from engineroom.core.recovery import NullMetrics, Recovery, RetryPolicy
from engineroom.tasks.enqueueing.enqueue import Reason
from engineroom.tasks.outbox import CHUNK, Relay

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engineroom.core.recovery import RecoveryMetrics
    from engineroom.tasks.enqueueing.enqueue import Enqueued

log = get_logger(__name__)

EXIT_OK, EXIT_CONFIG = 0, 2
#: Seconds between looks at an empty table, unless told otherwise.
POLL = 0.2
#: Seconds without a turn of the loop after which a restart would help; a turn that goes well is
#: never longer ago than the other while the relay is ready.
STUCK, UNREADY = 90.0, 15.0
#: What is wrong and does not heal by trying, such as a table that is missing: so long between
#: tries (seconds).
PATIENCE = 5.0
#: What waits in the table is asked for so often (seconds).
OLDEST_EVERY = 5.0
#: Bounds of single steps, in seconds: less than STUCK together.
CONNECT_TIMEOUT, STATEMENT_TIMEOUT, REDIS_TIMEOUT = 5, 20, 5.0
_DATABASE_OPTIONS = (
    f"-c statement_timeout={STATEMENT_TIMEOUT}s -c idle_in_transaction_session_timeout=60s"
)
_AGAIN = RetryPolicy(attempts=6, base=0.2, longest=PATIENCE, total=60.0)
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
    """Where the relay counts."""

    def carried(self, jobs: Sequence[Enqueued]) -> None:
        """Jobs were written, or found written before."""
        ...

    def waiting(self, oldest: float, set_aside: int) -> None:
        """Age in seconds of the oldest row to be carried; how many cannot be carried."""
        ...

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format."""
        ...


class NoMetrics:
    """Counts nothing; where prometheus-client is not installed."""

    def carried(self, jobs: Sequence[Enqueued]) -> None:
        """Not counted."""

    def waiting(self, oldest: float, set_aside: int) -> None:
        """Not kept."""

    def exposition(self) -> bytes:
        """Why there is nothing."""
        return b"# pip install engineroom[metrics]\n"


class PrometheusMetrics:
    """``engineroom_outbox_*``, and the errors of ``engineroom.core.prometheus``."""

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
        """Jobs were written, or found written before."""
        for job in jobs:
            self._carried.labels(_OUTCOMES[job.reason]).inc()

    def waiting(self, oldest: float, set_aside: int) -> None:
        """Age in seconds of the oldest row to be carried; how many cannot be carried."""
        self._oldest.set(oldest)
        self._set_aside.set(set_aside)

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class Host:
    """Runs a relay until told to stop, through outages of both sides."""

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
        # A second try inside the client would be one in a transaction that holds rows.
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
                                   _AGAIN),
            metrics=recovery_metrics or NullMetrics(),
            clock=self._clock,
            sleep=lambda seconds: self._rest(seconds),
        )  # fmt: skip
        self._connection: Any = None
        self._asked = float("-inf")
        self._turned = self._went_well = self._clock.monotonic()
        #: What went wrong last; "" while all is well.
        self.trouble = "not connected yet"

    def stop(self) -> None:
        """End ``run`` after the transaction that is under way."""
        self._stop.set()

    def run(self) -> None:
        """Carry jobs until ``stop``."""
        while not self._stop.is_set():
            self._turned = self._clock.monotonic()
            try:
                carried = self._recovery.call(self._turn)
            except EngineroomError as error:
                self._complain(str(error))
                self._rest(PATIENCE)
                continue
            if self.trouble:
                log.info("outbox is relayed")
            self.trouble, self._went_well = "", self._clock.monotonic()
            if carried < CHUNK:
                self._rest(self._poll)
        self._disconnect()
        self._redis.close()

    def health(self) -> str:
        """What a restart would help against; "" for nothing."""
        silent = self._clock.monotonic() - self._turned
        return f"the loop is stuck for {silent:.0f} s" if silent > STUCK else ""

    def readiness(self) -> str:
        """What keeps jobs from being carried; "" for nothing."""
        if self.trouble:
            return self.trouble
        silent = self._clock.monotonic() - self._went_well
        return f"nothing was looked at for {silent:.0f} s" if silent > UNREADY else ""

    def _turn(self) -> int:
        """One look; how many jobs were carried. The connection goes with any error of it."""
        import psycopg

        self._turned = self._clock.monotonic()
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
            self._look_at_what_waits()
        except psycopg.Error as error:
            self._disconnect()
            self._complain(describe(error))
            raise
        except EngineroomError as error:
            self._complain(str(error))
            raise
        self._metrics.carried(jobs)
        return len(jobs)

    def _look_at_what_waits(self) -> None:
        now = self._clock.monotonic()
        if now - self._asked < OLDEST_EVERY:
            return
        self._asked = now
        oldest, set_aside = self._connection.execute(_WAITING).fetchone()
        self._metrics.waiting(max(0.0, float(oldest or 0)), set_aside)

    def _complain(self, trouble: str) -> None:
        if trouble != self.trouble:
            log.warning("outbox cannot be relayed", error=trouble)
        self.trouble = trouble

    def _rest(self, seconds: float) -> None:
        self._turned = self._clock.monotonic()
        self._stop.wait(seconds)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.close()


def serve(host: Host, metrics: RelayMetrics, address: tuple[str, int]) -> ThreadingHTTPServer:
    """``/healthz``, ``/readyz`` and ``/metrics``, in a thread of their own."""

    class Handler(BaseHTTPRequestHandler):
        """Answers GET."""

        def do_GET(self) -> None:
            """One of the three."""
            told = {"/healthz": host.health, "/readyz": host.readiness}.get(self.path)
            if told is not None:
                trouble = told()
                self._answer(503 if trouble else 200, f"{trouble or 'ok'}\n".encode())
            elif self.path == "/metrics":
                self._answer(200, metrics.exposition())
            else:
                self._answer(404, b"use /healthz, /readyz or /metrics\n")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
            """Probes are not worth a line."""

    server = ThreadingHTTPServer(address, Handler)
    threading.Thread(target=server.serve_forever, name="probes", daemon=True).start()
    return server


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(
        prog="python -m engineroom.relay",
        description="Carry jobs from the outbox in PostgreSQL to Redis. URLs come from files, or "
        "from ENGINEROOM_DATABASE_URL and ENGINEROOM_REDIS_URL.",
    )
    made.add_argument("--database-url-file", type=Path, help="file with the PostgreSQL URL")
    made.add_argument("--redis-url-file", type=Path, help="file with the Redis URL")
    made.add_argument(
        "--poll", type=float, default=POLL, help=f"seconds between looks when idle [{POLL:g}]"
    )
    made.add_argument("--host", default="0.0.0.0", help="address of the probes [all]")  # noqa: S104 # nosec B104 - the kubelet asks from outside the pod
    made.add_argument("--port", type=int, default=8081, help="port of the probes [8081]")
    made.add_argument(
        "--log-repeat", type=int, default=REPEATED,
        help=f"lines of the same message that are written in ten seconds; 0: all [{REPEATED}]",
    )  # fmt: skip
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""
    wanted = parser().parse_args(arguments)
    configure(repeat=(max(0, wanted.log_repeat), REPEAT_SECONDS))
    try:
        database_url = _url("database", wanted.database_url_file)
        redis_url = _url("redis", wanted.redis_url_file)
        _check(wanted.poll)
        metrics: NoMetrics | PrometheusMetrics = NoMetrics()
        counted: RecoveryMetrics = NullMetrics()
        if importlib.util.find_spec("prometheus_client") is not None:
            metrics = PrometheusMetrics()
            counted = metrics.recovery
        host = Host(
            database_url, redis_url, poll=wanted.poll, metrics=metrics, recovery_metrics=counted
        )
        server = serve(host, metrics, (wanted.host, wanted.port))
    except (ValueError, OSError) as error:
        log.error("the relay cannot start", problem=str(error))  # noqa: TRY400
        return EXIT_CONFIG
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: host.stop())
    log.info("relay starting", port=server.server_address[1])
    tracing.start("engineroom-relay")
    host.run()
    tracing.stop()
    server.shutdown()
    log.info("relay ends")
    return EXIT_OK


def _check(poll: float) -> None:
    """Raises ValueError where it could not run."""
    if not 0.01 <= poll <= 60:
        raise ValueError("--poll: use 0.01 to 60 seconds")
    if importlib.util.find_spec("psycopg") is None:
        raise ValueError("psycopg is not installed: pip install 'engineroom[postgres]'")


def _url(name: str, file: Path | None) -> str:
    """From the file, else from the environment. Raises ValueError, OSError."""
    variable = f"ENGINEROOM_{name.upper()}_URL"
    said = file.read_text().strip() if file is not None else os.environ.get(variable, "")
    if not said:
        raise ValueError(f"no {name} URL: set --{name}-url-file or {variable}")
    return said


if __name__ == "__main__":
    sys.exit(main())
