"""Probes, metrics and top keys on a port of their own, which clients of proxies cannot reach."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    #: A function from query parameters to status, content type and body.
    Handler = Callable[[Mapping[str, str]], Awaitable[tuple[int, str, bytes]]]

JSON, TEXT = "application/json", "text/plain; version=0.0.4; charset=utf-8"
#: Longest request (bytes), seconds for a whole exchange, and most connections.
_MAX_REQUEST, _TIMEOUT, _MAX_CONNECTIONS = 16_384, 90.0, 64
_READ_TIMEOUT = 5.0
#: Metrics with the same value in every process.
_SHARED = frozenset({"engineroom_ratelimit_policies", "process_start_time_seconds"})


class AdminServer:
    """A server for GET requests, one per connection."""

    def __init__(self, routes: Mapping[str, Handler]) -> None:
        self._routes = routes
        self._server: asyncio.Server | None = None
        self._open = 0

    async def listen(self, host: str, port: int) -> int:
        """Serve on a port, 0 for any; return the port."""
        self._server = await asyncio.start_server(
            self._serve, host, port, limit=_MAX_REQUEST, reuse_address=True
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def listen_at(self, path: str) -> None:
        """Serve on a Unix socket."""
        self._server = await asyncio.start_unix_server(self._serve, path, limit=_MAX_REQUEST)

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= _MAX_CONNECTIONS:
                async with asyncio.timeout(_TIMEOUT):
                    await self._answer(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open -= 1
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_READ_TIMEOUT):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, _, rest = head.partition(" ")
        path, _, query = rest.partition(" ")[0].partition("?")
        handler = self._routes.get(path)
        status, kind, body = 404, TEXT, b"not found\n"
        if handler is not None and method in ("GET", "HEAD"):
            status, kind, body = await handler(dict(parse_qsl(query, max_num_fields=16)))
        response_head = (
            f"HTTP/1.1 {status} -\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        writer.write(response_head.encode() + (b"" if method == "HEAD" else body))
        await writer.drain()


async def fetch(path: str, target: str, seconds: float) -> tuple[int, bytes]:
    """Return status and body of a request to a Unix socket; raise OSError or TimeoutError."""
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            writer.write(f"GET {target} HTTP/1.1\r\nHost: limiter\r\n\r\n".encode())
            answer = await reader.read()
        finally:
            writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 2:
        raise OSError("the process closed the connection")
    return int(words[1]), body


def merge_metrics(texts: Sequence[bytes]) -> bytes:
    """Merge the expositions of several processes: add samples of the same name and labels.

    Suits counters, histograms, and gauges that count per process.
    """
    comments: dict[str, None] = {}
    values: dict[str, float] = {}
    order: dict[str, list[str]] = {}
    for text in texts:
        family = ""
        for line in text.decode().splitlines():
            if line.startswith("#"):
                comments[line] = None
                family = line.split(" ", 3)[2]
                continue
            name, _, value = line.rpartition(" ")
            if name not in values:
                order.setdefault(family, []).append(name)
            before = values.get(name, 0.0)
            values[name] = max(before, float(value)) if name in _SHARED else before + float(value)
    lines = []
    for comment in comments:
        lines.append(comment)
        if comment.startswith("# TYPE "):
            lines += [f"{name} {values[name]}" for name in order.get(comment.split(" ", 3)[2], ())]
    return ("\n".join(lines) + "\n").encode()


def merge_top(documents: Iterable[bytes], many: int) -> bytes:
    """Merge the top keys of several processes."""
    counts: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    total = 0
    for document in documents:
        recording = json.loads(document)
        total += recording["total"]
        for key in recording["keys"]:
            counts[key["key"]] += key["count"]
            errors[key["key"]] += key["error"]
    keys = [
        {"key": key, "count": count, "error": errors[key]}
        for key, count in counts.most_common(many)
    ]
    return json.dumps({"total": total, "keys": keys}).encode()
