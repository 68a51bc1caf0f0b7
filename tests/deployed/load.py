"""Sends requests at a fixed rate and counts the responses. Runs in a pod, with the standard library
only.

It prints one line of JSON per second and at the end a line with the key `result`. SIGTERM ends it
early.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import time
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """All responses so far; times are wall-clock seconds."""

    statuses: Counter[str] = field(default_factory=Counter)
    #: Sent and received, of requests that a policy counted: admitted ones, and the others.
    admitted: list[tuple[float, float]] = field(default_factory=list)
    refused: list[tuple[float, float]] = field(default_factory=list)

    def note(self, status: str, *, counted: bool, sent: float) -> None:
        """Count a response."""
        self.statuses[status] += 1
        if counted and status in ("200", "429"):
            (self.admitted if status == "200" else self.refused).append((sent, time.time()))


class Client:
    """One connection, which is opened again when it was closed."""

    def __init__(self, host: str, port: int, tally: Tally) -> None:
        self._host, self._port = host, port
        self._tally = tally
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._request = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()

    async def ask(self) -> None:
        """Send a request and count its response or error."""
        sent = time.time()
        try:
            async with asyncio.timeout(10):
                status, counted = await self._exchange()
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            self._close()
            self._tally.note(type(error).__name__, counted=False, sent=sent)
        else:
            self._tally.note(status, counted=counted, sent=sent)

    async def _exchange(self) -> tuple[str, bool]:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        self._writer.write(self._request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        headers = dict(line.partition(": ")[::2] for line in head.split("\r\n")[1:])
        await self._reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self._close()
        return head.split(" ")[1], "ratelimit" in headers

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


async def run(options: argparse.Namespace, tally: Tally) -> None:
    """Send requests until the time is over or `stop` is set."""
    began = time.monotonic()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    steps = iter(range(int(options.rate * options.seconds)))

    async def one() -> None:
        client = Client(options.host, options.port, tally)
        for step in steps:
            # Several at once: what they meet is not one after the other.
            due = began + step // options.together * options.together / options.rate
            await asyncio.sleep(due - time.monotonic())
            if stop.is_set():
                return
            await client.ask()

    async def tell() -> None:
        before = (0, 0, 0, 0)
        while True:
            await asyncio.sleep(1)
            now = (
                sum(tally.statuses.values()), tally.statuses["200"], tally.statuses["429"],
                len(tally.admitted) + len(tally.refused),
            )  # fmt: skip
            sent, admitted, refused, counted = (a - b for a, b in zip(now, before, strict=True))
            line = {"sent": sent, "admitted": admitted, "refused": refused, "counted": counted}
            print(json.dumps({"at": time.monotonic() - began, **line}), flush=True)
            before = now

    teller = asyncio.create_task(tell())
    await asyncio.gather(*(one() for _ in range(options.connections)))
    teller.cancel()


def worst(admitted: list[tuple[float, float]], burst: float, rate: float) -> float:
    """Return the largest ratio of admitted requests to burst + rate x window, over all windows.

    A window begins when a request is sent and ends when a response arrives, so it is at least as
    long as the time in which its requests were decided.
    """
    by_end = sorted(admitted, key=lambda record: record[1])
    largest = 0.0
    for begin, _ in admitted:
        inside = 0
        for sent, received in by_end:
            if sent >= begin:
                inside += 1
                largest = max(largest, inside / (burst + rate * (received - begin)))
    return largest


def possible(decided: list[float], burst: float, rate: float) -> int:
    """Return the number of requests that one exact token bucket admits.

    Args:
        decided: Wall-clock seconds at which the bucket decides each request.
        burst: Size of the bucket, which is full at the first request.
        rate: Tokens that it gains per second.
    """
    tokens, before, admitted = burst, min(decided, default=0.0), 0
    for now in sorted(decided):
        tokens = min(burst, tokens + rate * (now - before))
        before = now
        if tokens >= 1:
            tokens -= 1
            admitted += 1
    return admitted


def result(tally: Tally, burst: float, rate: float) -> dict[str, object]:
    """Return the totals."""
    counted = tally.admitted + tally.refused
    first = min((sent for sent, _ in counted), default=0.0)
    last = max((received for _, received in counted), default=0.0)
    return {
        "statuses": dict(tally.statuses),
        "admitted": len(tally.admitted),
        "refused": len(tally.refused),
        "window": last - first,
        "worst": worst(tally.admitted, burst, rate),
        "possible": possible([received for _, received in counted], burst, rate),
        "firstCounted": min((received for _, received in counted), default=None),
        "firstRefused": min((received for _, received in tally.refused), default=None),
    }


def main() -> None:
    """Send the requests and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, default=80)
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--together", type=int, default=15, help="requests sent at once")
    parser.add_argument("--bound-burst", type=float, required=True)
    parser.add_argument("--bound-rate", type=float, required=True, help="requests a second")
    options = parser.parse_args()
    tally = Tally()
    asyncio.run(run(options, tally))
    print(
        json.dumps({"result": result(tally, options.bound_burst, options.bound_rate)}), flush=True
    )


if __name__ == "__main__":
    main()
