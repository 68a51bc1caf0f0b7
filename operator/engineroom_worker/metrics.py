"""What the pod's workers do, as Prometheus text on a small HTTP server of the standard library.

The numbers live in memory that is shared by the processes of the pod (supervisor, workers, work
horses), so no request ever asks Redis or waits for a worker.  Each process writes its own cells:
the work horse counts jobs, the worker reports its state.
"""

from __future__ import annotations

import mmap
import os
import socket
import socketserver
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineroom_worker.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

_FIELDS = (
    "alive",  # 1 while the worker process lives
    "state",  # index in STATES
    "drain",  # index in DRAIN_STATES
    "heartbeat",  # unix seconds of the last heartbeat that reached Redis
    "memory",  # bytes
    "cpu",  # cores, lately
    "cpu_seconds",
    "started",  # unix seconds of the start of the job in hand, 0 when idle
    "finished",
    "failed",
    "busy_seconds",
    "outages",
    "restarts",
    "oom_kills",  # processes of the container killed for memory, as far as reported
    "looped",  # monotonic seconds of the last turn of the loop
)
_CELL = struct.Struct("d")
_SLOT = _CELL.size * len(_FIELDS)
_TICKS = os.sysconf("SC_CLK_TCK")
STATES = ("idle", "busy", "suspended")
DRAIN_STATES = ("", "draining", "drained", "retired")

#: A worker that has not turned its loop for so long hangs, Redis or not. Longer than the callbacks
#: of abandoned jobs, which RQ runs in the worker and stops after a minute each.
STUCK_SECONDS = 300.0


class Board:
    """The shared numbers, one slot a worker."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._memory = mmap.mmap(-1, _SLOT * slots)

    def get(self, slot: int, field: str) -> float:
        """Value of one cell."""
        (value,) = _CELL.unpack_from(self._memory, self._offset(slot, field))
        return float(value)

    def set(self, slot: int, field: str, value: float) -> None:
        """Set one cell; a cell has one writer at a time."""
        _CELL.pack_into(self._memory, self._offset(slot, field), value)

    def add(self, slot: int, field: str, value: float = 1.0) -> None:
        """Add to one cell."""
        self.set(slot, field, self.get(slot, field) + value)

    def healthy(self, now: float) -> bool:
        """Whether no living worker has been stuck; ``now`` is monotonic."""
        return not any(self.stuck(slot, now) for slot in range(self.slots))

    def stuck(self, slot: int, now: float) -> bool:
        """Whether the slot's worker lives and its loop has not turned for too long."""
        return bool(self.get(slot, "alive")) and now - self.get(slot, "looped") >= STUCK_SECONDS

    def _offset(self, slot: int, field: str) -> int:
        return slot * _SLOT + _FIELDS.index(field) * _CELL.size


def render(board: Board, pool: str, now: float) -> str:
    """The board as Prometheus text; ``now`` is in unix seconds."""
    lines: list[str] = []

    def family(
        name: str, kind: str, text: str, samples: list[tuple[str, float]], unit: Callable[..., str]
    ) -> None:
        lines.append(f"# HELP {name} {text}")
        lines.append(f"# TYPE {name} {kind}")
        lines.extend(f"{name}{{{labels}}} {unit(value)}" for labels, value in samples)

    slots = range(board.slots)
    base = f'pool="{_escape(pool)}"'

    def each(field: str) -> list[tuple[str, float]]:
        return [(f'{base},slot="{slot}"', board.get(slot, field)) for slot in slots]

    states = dict.fromkeys(STATES, 0)
    for slot in slots:
        if board.get(slot, "alive"):
            states[STATES[int(board.get(slot, "state"))]] += 1
    family(
        "rq_workers",
        "gauge",
        "Workers of this pod by state.",
        [(f'{base},state="{state}"', float(count)) for state, count in states.items()],
        _whole,
    )
    finished = sum(board.get(slot, "finished") for slot in slots)
    failed = sum(board.get(slot, "failed") for slot in slots)
    family(
        "rq_workers_success_total",
        "counter",
        "Jobs that ended well in this pod.",
        [(base, finished)],
        _whole,
    )
    family(
        "rq_workers_failed_total",
        "counter",
        "Jobs that failed in this pod.",
        [(base, failed)],
        _whole,
    )
    family(
        "rq_workers_working_time_total",
        "counter",
        "Seconds that jobs have run in this pod.",
        [(base, sum(board.get(slot, "busy_seconds") for slot in slots))],
        _plain,
    )
    busy = [(labels, float(value == 1)) for labels, value in each("state")]
    family("engineroom_worker_busy", "gauge", "Whether the worker has a job.", busy, _whole)
    family(
        "engineroom_worker_memory_bytes",
        "gauge",
        "Resident memory of worker and work horse.",
        each("memory"),
        _whole,
    )
    family(
        "engineroom_worker_cpu_seconds_total",
        "counter",
        "Processor time of worker and work horses.",
        each("cpu_seconds"),
        _plain,
    )
    ages = [
        (f'{base},slot="{slot}"', now - board.get(slot, "started"))
        for slot in slots
        if board.get(slot, "started")
    ]
    family("engineroom_worker_job_age_seconds", "gauge", "Age of the job in hand.", ages, _plain)
    drains = [
        (
            f'{base},slot="{slot}",state="{state or "none"}"',
            float(int(board.get(slot, "drain")) == index),
        )
        for slot in slots
        for index, state in enumerate(DRAIN_STATES)
    ]
    family("engineroom_worker_drain", "gauge", "Which drain state holds.", drains, _whole)
    family(
        "engineroom_worker_heartbeat_timestamp_seconds",
        "gauge",
        "When a heartbeat last reached Redis.",
        each("heartbeat"),
        _plain,
    )
    family(
        "engineroom_worker_redis_outages_total",
        "counter",
        "How often Redis was found away.",
        each("outages"),
        _whole,
    )
    family(
        "engineroom_worker_restarts_total",
        "counter",
        "How often the supervisor started the worker anew.",
        each("restarts"),
        _whole,
    )
    family(
        "engineroom_worker_oom_kills_total",
        "counter",
        "Processes of the container killed for memory.",
        [(base, max(board.get(slot, "oom_kills") for slot in slots))],
        _whole,
    )
    family(
        "engineroom_worker_info",
        "gauge",
        "Version of the runtime.",
        [(f'{base},version="{VERSION}"', 1.0)],
        _whole,
    )
    return "\n".join(lines) + "\n"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # Without HTTPServer's look-up of the machine's full name, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "", self.server_address[1]


class _DualStackServer(_Server):
    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class MetricsServer:
    """Serves ``/metrics`` and ``/healthz`` from a daemon thread."""

    def __init__(self, board: Board, pool: str, port: int) -> None:
        handler = type("Handler", (_Handler,), {"board": board, "pool": pool})
        try:
            self._server: _Server = _DualStackServer(("::", port), handler)
        except OSError:
            self._server = _Server(("", port), handler)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def forget(self) -> None:
        """In a forked child: drop the listening socket, which is the parent's."""
        self._server.socket.close()


class _Handler(BaseHTTPRequestHandler):
    board: Board
    pool: str
    # A client that connects and says nothing must not hold a thread for ever.
    timeout = 10

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            text = render(self.board, self.pool, time.time())
            self._answer(200, "text/plain; version=0.0.4; charset=utf-8", text)
        elif path == "/healthz":
            healthy = self.board.healthy(time.monotonic())
            self._answer(200 if healthy else 503, "text/plain", "ok\n" if healthy else "stuck\n")
        else:
            self._answer(404, "text/plain", "not found\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the library
        """Scrapes are no news."""

    def _answer(self, status: int, content_type: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def resident_bytes(*pids: int) -> int:
    """Resident memory of the processes; those that are gone count nothing."""
    total = 0
    for pid in pids:
        try:
            statm = Path(f"/proc/{pid}/statm").read_bytes()
            total += int(statm.split()[1]) * mmap.PAGESIZE
        except (OSError, IndexError, ValueError):
            continue
    return total


def cpu_seconds(*pids: int) -> float:
    """Processor time of this process and of its children that have ended, and of ``pids``."""
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


def _plain(value: float) -> str:
    return f"{value:.3f}"
