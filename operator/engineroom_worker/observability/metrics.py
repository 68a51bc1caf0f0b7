"""Prometheus metrics of the pod's workers, on an HTTP server of the standard library.

The values are in memory that the pod's processes share (supervisor, workers, work horses), so a
request neither reads Redis nor waits for a worker. Each process writes its own cells: the work
horse counts jobs, and the worker reports its state.
"""

from __future__ import annotations

import mmap
import os
import socket
import socketserver
import struct
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from engineroom_worker.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

_FIELDS = (
    "alive",  # 1 while the worker process lives
    "state",  # index in STATES
    "drain",  # index in DRAIN_STATES
    "heartbeat",  # Unix seconds of the last heartbeat that reached Redis
    "memory",  # bytes
    "cpu",  # cores, recently
    "cpu_seconds",
    "started",  # Unix seconds of the start of the current job, 0 when idle
    "finished",
    "failed",
    "busy_seconds",
    "outages",
    "restarts",
    "oom_kills",  # processes of the container killed for memory, as last read
    "looped",  # monotonic seconds of the last turn of the loop
)
_CELL = struct.Struct("d")
_SLOT = _CELL.size * len(_FIELDS)
_TICKS = os.sysconf("SC_CLK_TCK")
STATES = ("idle", "busy", "suspended")
DRAIN_STATES = ("", "draining", "drained", "retired")

#: Connections to the server of probes and metrics at the same time.
MAX_CONNECTIONS = 32
#: Time without a turn of the loop after which a worker hangs, even in an outage of Redis (seconds).
#: It is longer than the callbacks of abandoned jobs, each of which RQ stops after a minute.
STUCK_SECONDS = 300.0


class SharedMetrics:
    """The shared values, one slot per worker."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._memory = mmap.mmap(-1, _SLOT * slots)

    def get(self, slot: int, field: str) -> float:
        """Return the value of one cell."""
        (value,) = _CELL.unpack_from(self._memory, self._offset(slot, field))
        return float(value)

    def set(self, slot: int, field: str, value: float) -> None:
        """Set one cell; it must have one writer at a time."""
        _CELL.pack_into(self._memory, self._offset(slot, field), value)

    def add(self, slot: int, field: str, value: float = 1.0) -> None:
        """Add to one cell; it must have one writer at a time."""
        self.set(slot, field, self.get(slot, field) + value)

    def healthy(self, now: float) -> bool:
        """Return whether no running worker is stuck; ``now`` is monotonic."""
        return not any(self.stuck(slot, now) for slot in range(self.slots))

    def stuck(self, slot: int, now: float) -> bool:
        """Return whether the slot's worker runs and its loop has not turned for too long."""
        return bool(self.get(slot, "alive")) and now - self.get(slot, "looped") >= STUCK_SECONDS

    def _offset(self, slot: int, field: str) -> int:
        return slot * _SLOT + _FIELDS.index(field) * _CELL.size


class SlotMetrics:
    """The shared values of one worker."""

    def __init__(self, metrics: SharedMetrics, slot: int) -> None:
        self._metrics = metrics
        self._slot = slot

    def get(self, field: str) -> float:
        """Return a value."""
        return self._metrics.get(self._slot, field)

    def set(self, field: str, value: float) -> None:
        """Set a value."""
        self._metrics.set(self._slot, field, value)

    def add(self, field: str, value: float = 1.0) -> None:
        """Add to a value."""
        self._metrics.add(self._slot, field, value)


class MetricFamily(NamedTuple):
    """A metric family; ``samples`` are label sets and values."""

    name: str
    kind: str
    help: str
    samples: list[tuple[str, float]]
    format: Callable[[float], str]


def render(metrics: SharedMetrics, pool: str, now: float) -> str:
    """Return all metrics as Prometheus text; ``now`` is in Unix seconds."""
    lines: list[str] = []
    base = f'pool="{_escape(pool)}"'
    for family in (*_pool_families(metrics, base), *_worker_families(metrics, base, now)):
        lines.append(f"# HELP {family.name} {family.help}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        lines.extend(
            f"{family.name}{{{labels}}} {family.format(value)}" for labels, value in family.samples
        )
    return "\n".join(lines) + "\n"


def _pool_families(metrics: SharedMetrics, base: str) -> list[MetricFamily]:
    """Return the metrics of the pod as a whole."""
    slots = range(metrics.slots)

    def total(field: str) -> float:
        return sum(metrics.get(slot, field) for slot in slots)

    states = dict.fromkeys(STATES, 0)
    for slot in slots:
        if metrics.get(slot, "alive"):
            states[STATES[int(metrics.get(slot, "state"))]] += 1
    return [
        MetricFamily(
            "rq_workers",
            "gauge",
            "Workers of this pool by state.",
            [(f'{base},state="{state}"', float(count)) for state, count in states.items()],
            _whole,
        ),
        MetricFamily(
            "rq_workers_success_total",
            "counter",
            "Jobs that ended well in this pod.",
            [(base, total("finished"))],
            _whole,
        ),
        MetricFamily(
            "rq_workers_failed_total",
            "counter",
            "Jobs that failed in this pod.",
            [(base, total("failed"))],
            _whole,
        ),
        MetricFamily(
            "rq_workers_working_time_total",
            "counter",
            "Seconds that jobs have run in this pod.",
            [(base, total("busy_seconds"))],
            _decimal,
        ),
        MetricFamily(
            "engineroom_worker_oom_kills_total",
            "counter",
            "Processes of the container killed for memory.",
            [(base, max(metrics.get(slot, "oom_kills") for slot in slots))],
            _whole,
        ),
        MetricFamily(
            "engineroom_worker_info",
            "gauge",
            "Version of the runtime.",
            [(f'{base},version="{VERSION}"', 1.0)],
            _whole,
        ),
    ]


def _worker_families(metrics: SharedMetrics, base: str, now: float) -> list[MetricFamily]:
    """Return the metrics of the pod's workers."""
    slots = range(metrics.slots)

    def by_slot(field: str) -> list[tuple[str, float]]:
        return [(f'{base},slot="{slot}"', metrics.get(slot, field)) for slot in slots]

    ages = [(labels, now - started) for labels, started in by_slot("started") if started]
    drains = [
        (f'{labels},state="{state or "none"}"', float(int(value) == index))
        for labels, value in by_slot("drain")
        for index, state in enumerate(DRAIN_STATES)
    ]
    return [
        MetricFamily(
            "engineroom_worker_busy",
            "gauge",
            "Whether the worker has a job.",
            [(labels, float(value == STATES.index("busy"))) for labels, value in by_slot("state")],
            _whole,
        ),
        MetricFamily(
            "engineroom_worker_memory_bytes",
            "gauge",
            "Resident memory of worker and work horse.",
            by_slot("memory"),
            _whole,
        ),
        MetricFamily(
            "engineroom_worker_cpu_seconds_total",
            "counter",
            "Processor time of worker and work horses.",
            by_slot("cpu_seconds"),
            _decimal,
        ),
        MetricFamily(
            "engineroom_worker_job_age_seconds", "gauge", "Age of the job in hand.", ages, _decimal
        ),
        MetricFamily(
            "engineroom_worker_drain", "gauge", "Which drain state holds.", drains, _whole
        ),
        MetricFamily(
            "engineroom_worker_heartbeat_timestamp_seconds",
            "gauge",
            "When a heartbeat last reached Redis.",
            by_slot("heartbeat"),
            _decimal,
        ),
        MetricFamily(
            "engineroom_worker_redis_outages_total",
            "counter",
            "How often Redis was found away.",
            by_slot("outages"),
            _whole,
        ),
        MetricFamily(
            "engineroom_worker_restarts_total",
            "counter",
            "How often the supervisor started the worker anew.",
            by_slot("restarts"),
            _whole,
        ),
    ]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        # The open connections, oldest first.
        self._connections: dict[Any, None] = {}
        self._lock = threading.Lock()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        # Each connection has a thread. Responses take no time, so the oldest is a silent client's.
        with self._lock:
            if len(self._connections) >= MAX_CONNECTIONS:
                oldest = next(iter(self._connections))
                del self._connections[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            self._connections[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def server_bind(self) -> None:
        # HTTPServer would look up the machine's full name, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "", self.server_address[1]


class _DualStackServer(_Server):
    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class MetricsServer:
    """Serves ``/metrics`` and ``/healthz`` from a daemon thread."""

    def __init__(self, metrics: SharedMetrics, pool: str, port: int) -> None:
        handler = type("Handler", (_Handler,), {"metrics": metrics, "pool": pool})
        try:
            self._server: _Server = _DualStackServer(("::", port), handler)
        except OSError:
            self._server = _Server(("", port), handler)

    @property
    def port(self) -> int:
        """The port of the server."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Answer requests in a thread."""
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def close_inherited(self) -> None:
        """Close the listening socket in a forked child."""
        self._server.socket.close()


class _Handler(BaseHTTPRequestHandler):
    metrics: SharedMetrics
    pool: str
    # A silent client must not hold a thread forever (seconds).
    timeout = 10

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            text = render(self.metrics, self.pool, time.time())
            self._answer(200, "text/plain; version=0.0.4; charset=utf-8", text)
        elif path == "/healthz":
            healthy = self.metrics.healthy(time.monotonic())
            self._answer(200 if healthy else 503, "text/plain", "ok\n" if healthy else "stuck\n")
        else:
            self._answer(404, "text/plain", "not found\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Log no scrapes."""

    def _answer(self, status: int, content_type: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def resident_bytes(*pids: int) -> int:
    """Return the resident memory of the processes that exist."""
    total = 0
    for pid in pids:
        try:
            statm = Path(f"/proc/{pid}/statm").read_bytes()
            total += int(statm.split()[1]) * mmap.PAGESIZE
        except (OSError, IndexError, ValueError):
            continue
    return total


def cpu_seconds(*pids: int) -> float:
    """Return the processor seconds of this process, its ended children, and ``pids``."""
    total = sum(os.times()[:4])
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            total += sum(int(field) for field in fields[11:15]) / _TICKS
        except (OSError, IndexError, ValueError):
            continue
    return total


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _whole(value: float) -> str:
    return str(int(value))


def _decimal(value: float) -> str:
    return f"{value:.3f}"
