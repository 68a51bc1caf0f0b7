"""Memory of the API process while it refuses a body of 1 GiB: announced, unannounced, inflated."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

from tests.performance.outcome import Goal, outcome
from tests.support import free_port, redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator

REASONS = {
    "body_mib": "the size of the run",
    "resident_mib": "the promise is the growth",
    "requests": "the size of the run",
}
GOALS = (Goal("growth_mib", 1.0), Goal("refused", 3, at_least=True))
PIECE = b" " * 65536
MIB = 1024 * 1024


def _head(extra: str) -> bytes:
    return (
        "POST /api/v1/tokens HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"{extra}\r\n\r\n"
    ).encode()


def _announced(size: int) -> Iterator[bytes]:
    yield _head(f"Content-Length: {size}")
    for _ in range(size // len(PIECE)):
        yield PIECE


def _chunked(size: int) -> Iterator[bytes]:
    yield _head("Transfer-Encoding: chunked")
    for _ in range(size // len(PIECE)):
        yield f"{len(PIECE):x}\r\n".encode() + PIECE + b"\r\n"


def _inflated(size: int) -> Iterator[bytes]:
    packer = zlib.compressobj(9, wbits=31)
    packed = b"".join(packer.compress(PIECE) for _ in range(size // len(PIECE))) + packer.flush()
    yield _head(f"Content-Encoding: gzip\r\nContent-Length: {len(packed)}") + packed


def _send(port: int, pieces: Iterator[bytes]) -> str:
    """Return the first line of the answer, which arrives before the whole body is sent."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.settimeout(10)
        with suppress(OSError):
            for piece in pieces:
                connection.sendall(piece)
        answer = b""
        with suppress(OSError):
            while b"\r\n" not in answer and (part := connection.recv(4096)):
                answer += part
        return answer.partition(b"\r\n")[0].decode()


def _highest(pid: int) -> int:
    """Return the highest resident memory of the process so far, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    line = next(text for text in lines if text.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main() -> int:
    """Print the growth of the process' highest memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the body")
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    size, port = wanted.mib * MIB, free_port()
    with redis_server() as redis, tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "kubeconfig"
        config.write_text(
            '{"clusters": [{"name": "x", "cluster": {"server": "http://127.0.0.1:9"}}],'
            '"contexts": [{"name": "x", "context": {"cluster": "x"}}], "current-context": "x"}'
        )
        environment = os.environ | {
            "KUBECONFIG": str(config),
            "ENGINEROOM_REDIS_URL": redis.url,
            "ENGINEROOM_API_SECRET": "s" * 48,
            "ENGINEROOM_LISTEN_HOST": "127.0.0.1",
            "ENGINEROOM_LISTEN_PORT": str(port),
            "ENGINEROOM_LOG_LEVEL": "ERROR",
        }
        command = [sys.executable, "-m", "engineroom.console.main"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            try:
                figures = _measured(process.pid, port, size, wanted.rounds)
            finally:
                process.terminate()
    return outcome("body_limits", {"body_mib": wanted.mib, **figures}, GOALS, REASONS)


def _measured(pid: int, port: int, size: int, rounds: int) -> dict[str, float | int]:
    deadline = time.monotonic() + 60
    while True:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2):
            break
        if time.monotonic() > deadline:
            raise RuntimeError("the API did not start")
        time.sleep(0.05)
    ways = (_announced, _chunked, _inflated)
    for _ in range(3):  # modules and buffers of the first requests are no growth
        for way in ways:
            _send(port, way(32 * MIB))
    before = _highest(pid)
    answers = [_send(port, way(size)) for _ in range(rounds) for way in ways]
    refused = sum(answer.startswith("HTTP/1.1 413") for answer in answers)
    return {
        "growth_mib": round((_highest(pid) - before) / MIB, 3),
        "resident_mib": round(before / MIB, 1),
        "requests": len(answers),
        "refused": refused,
    }


if __name__ == "__main__":
    raise SystemExit(main())
