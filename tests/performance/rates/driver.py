"""A load of its own process: gRPC calls in a closed loop, and both protocols at a fixed rate.

wrk loads HTTP in a closed loop, but knows no fixed rate, and h2load sends one message only. Frames
and heads are made before the load begins, so that a call costs the machine little besides what the
service takes. At a fixed rate the time of an answer counts from when the request was due, whether
it could be sent then or not (Gil Tene's "coordinated omission").

Run as a module with one argument of JSON; prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import struct
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import uvloop

from engineroom.ratelimit.service import rls

if TYPE_CHECKING:
    from collections.abc import Sequence

PATH = b"/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_WINDOW = 2**31 - 1
#: Requests made beforehand; drawn from again and again.
_MADE = 20_000
#: Streams of one connection are numbered up to here.
_LAST = 2**31 - 1


def zipf(count: int, number: int) -> list[int]:
    """So many draws from ``count`` keys of which the nth comes 1/n as often as the first."""
    weights = [1 / (place + 1) for place in range(count)]
    return random.choices(range(count), weights, k=number)


def drawn(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Domain and key of each request: the share ``refused`` of them of few tight keys."""
    keys, number = plan["keys"], _MADE
    places = zipf(keys, number) if plan["zipf"] else random.choices(range(keys), k=number)
    tight = min(keys, 100)
    found = []
    for place in places:
        if random.random() < plan["refused"]:
            found.append((plan["tight"], f"t{random.randrange(tight)}"))
        else:
            found.append((plan["open"], f"k{place}"))
    return found


def message(domain: str, key: str) -> bytes:
    """A RateLimitRequest."""
    request = rls.RateLimitRequest(domain=domain)
    request.descriptors.add().entries.add(key=b"x-api-key", value=key.encode())
    encoded: bytes = request.SerializeToString()
    return encoded


def native(target: str, key: str) -> bytes:
    """A question of Traefik's; ``target`` is namespace/policy."""
    return (
        f"GET /v1/forward/{target} HTTP/1.1\r\nHost: limiter\r\nX-Api-Key: {key}\r\n\r\n"
    ).encode()


def as_json(domain: str, key: str) -> bytes:
    """A RateLimitRequest in JSON."""
    entry = {"key": "x-api-key", "value": key}
    body = json.dumps({"domain": domain, "descriptors": [{"entries": [entry]}]}).encode()
    return b"POST /json HTTP/1.1\r\nHost: limiter\r\nContent-Length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )


class Load:
    """What came of it so far."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.refused = 0
        self.failed = 0


class Http(asyncio.Protocol):
    """A connection with one request under way."""

    def __init__(self, load: Load, idle: deque[Any]) -> None:
        self._load, self._idle = load, idle
        self._due = 0.0
        self._read = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready."""
        self._transport = transport
        self._idle.append(self)

    def send(self, request: bytes, due: float) -> None:
        """Ask."""
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """The answer, or a part of it."""
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if len(body) < length:
            return
        self._load.times.append(time.perf_counter() - self._due)
        status = self._read[9:12]
        if status == b"429":
            self._load.refused += 1
        elif status != b"200":
            self._load.failed += 1
        self._read = b""
        self._idle.append(self)


class Grpc(asyncio.Protocol):
    """A connection with several calls under way."""

    def __init__(self, load: Load, idle: deque[Any], streams: int) -> None:
        self._load, self._idle, self._streams = load, idle, streams
        self._due: dict[int, float] = {}
        self._stream = 1
        self._told: set[int] = set()
        self._read = b""
        self._out: list[bytes] = []
        self._transport: Any = None
        self.on_answer: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello, with a window that never closes."""
        self._transport = transport
        settings = struct.pack(">HI", 4, _WINDOW)
        grown = struct.pack(">I", _WINDOW - 65_535)
        transport.write(  # type: ignore[attr-defined]
            _PREFACE + frame(_SETTINGS, 0, 0, settings) + frame(8, 0, 0, grown)
        )
        self._idle.extend([self] * self._streams)

    def send(self, request: bytes, due: float) -> None:
        """Call."""
        stream = self._stream
        if stream >= _LAST:
            raise RuntimeError("the numbers of streams are used up")
        self._stream = stream + 2
        self._due[stream] = due
        name = stream.to_bytes(4, "big")
        head = len(_BLOCK).to_bytes(3, "big") + bytes((_HEADERS, _END_HEADERS)) + name
        body = len(request).to_bytes(3, "big") + bytes((_DATA, _END_STREAM)) + name
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out += (head, _BLOCK, body, request)

    def _flush(self) -> None:
        out, self._out = self._out, []
        self._transport.write(b"".join(out))

    def data_received(self, data: bytes) -> None:
        """Some frames."""
        data = self._read + data
        at, end = 0, len(data)
        now = time.perf_counter()
        while end - at >= 9:
            length = int.from_bytes(data[at : at + 3], "big")
            if end - at < 9 + length:
                break
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : at + 9], "big")
            body = at + 9
            at = body + length
            if kind == _DATA:
                self._told.add(stream)
                # The message begins with overall_code: OVER_LIMIT.
                if data[body + 5 : body + 7] == b"\x08\x02":
                    self._load.refused += 1
            elif kind == _SETTINGS and not flags & _ACK:
                self._transport.write(frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _PING and not flags & _ACK:
                self._transport.write(frame(_PING, _ACK, 0, data[body:at]))
            elif kind == _GOAWAY:
                raise RuntimeError("the service ends a connection under load")
            if kind == _RESET or (flags & _END_STREAM and kind in (_DATA, _HEADERS)):
                # Without a message it was an error.
                self._load.failed += stream not in self._told
                self._told.discard(stream)
                self._load.times.append(now - self._due.pop(stream))
                self._idle.append(self)
                if self.on_answer is not None:
                    self.on_answer()
        self._read = data[at:]


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    """A frame of HTTP/2."""
    return len(body).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + body


def _literal(name: bytes, value: bytes) -> bytes:
    """A header that no table remembers (RFC 7541, 6.2.2); both shorter than 127 bytes."""
    return b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value


#: Static: POST and http are numbers 3 and 6 of HPACK's table.
_BLOCK = (
    b"\x83\x86"
    + _literal(b":path", PATH)
    + _literal(b":authority", b"limiter")
    + _literal(b"content-type", b"application/grpc")
    + _literal(b"te", b"trailers")
)


async def run(plan: dict[str, Any]) -> dict[str, float]:
    """Do as the plan says; gives done, rate, p50 and p99 in ms, refused and failed."""
    loop = asyncio.get_running_loop()
    load, idle = Load(), deque[Any]()
    wanted = drawn(plan)
    if plan["protocol"] == "grpc":
        made = [message(domain, key) for domain, key in wanted]
        requests = [struct.pack(">BI", 0, len(each)) + each for each in made]
    else:
        make = native if plan["native"] else as_json
        requests = [make(domain, key) for domain, key in wanted]
    for _ in range(plan["connections"]):

        def connection() -> asyncio.Protocol:
            if plan["protocol"] == "grpc":
                return Grpc(load, idle, plan["streams"])
            return Http(load, idle)

        await loop.create_connection(connection, "127.0.0.1", plan["port"])
    await asyncio.sleep(0.05)
    begun = time.perf_counter()
    if plan["rate"]:
        await _at_rate(idle, requests, plan["rate"], plan["seconds"])
    else:
        await _closed(idle, requests, plan["seconds"])
    took = time.perf_counter() - begun
    times = sorted(load.times)
    return {
        "done": len(times),
        "rate": len(times) / took,
        "p50": times[len(times) // 2] * 1000,
        "p99": times[int(len(times) * 0.99)] * 1000,
        "refused": load.refused,
        "failed": load.failed,
    }


async def _closed(idle: deque[Any], requests: Sequence[bytes], seconds: float) -> None:
    """The next call as soon as one is answered; for gRPC, whose connections tell."""
    end = time.perf_counter() + seconds
    done = asyncio.get_running_loop().create_future()
    at = 0

    def feed() -> None:
        nonlocal at
        now = time.perf_counter()
        if now >= end:
            if not done.done():
                done.set_result(None)
            return
        while idle:
            idle.popleft().send(requests[at % len(requests)], now)
            at += 1

    for each in set(idle):
        each.on_answer = feed
    feed()
    await done


async def _at_rate(
    idle: deque[Any], requests: Sequence[bytes], rate: float, seconds: float
) -> None:
    begun = time.perf_counter()
    at, number = 0, int(rate * seconds)
    while at < number:
        now = time.perf_counter()
        while at < number and idle and begun + at / rate <= now:
            idle.popleft().send(requests[at % len(requests)], begun + at / rate)
            at += 1
        await asyncio.sleep(0.0005)
    await asyncio.sleep(0.1)


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(json.loads(sys.argv[1])))))
