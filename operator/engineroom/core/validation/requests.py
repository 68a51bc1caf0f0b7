"""Limits on requests for any ASGI application, enforced while the request arrives.

A refused request gets a problem document, and the connection is closed. The application is not
called, or, if it is already reading, ``receive`` raises an error that becomes the document.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from engineroom.core.error_responses import problem_document
from engineroom.core.errors import Category, EngineroomError, TooLargeError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class HeadersTooLargeError(TooLargeError):
    """The request has too many or too long headers; send fewer."""

    code = "headers_too_large"
    http_status = 431


class SlowBodyError(EngineroomError):
    """The body arrived too slowly; send it again over a better connection."""

    code = "slow_body"
    category = Category.LIMIT
    http_status = 408


class EncodingError(EngineroomError):
    """The body's Content-Encoding is not accepted, or the body does not match it; send it plain."""

    code = "content_encoding"
    category = Category.VALIDATION
    http_status = 415


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a request.

    Sizes are in bytes, ``seconds`` is the time for the whole body, ``ratio`` is uncompressed to
    compressed size.
    """

    body: int = 1024 * 1024
    headers: int = 100
    header_bytes: int = 16 * 1024
    seconds: float = 30.0
    ratio: int = 100


class Inflater:
    """An incremental gzip decompressor with limits.

    It refuses more than ``most`` bytes of output and, after the first 64 KiB, more than ``ratio``
    times the input.
    """

    _FREE = 64 * 1024

    def __init__(self, most: int, ratio: int) -> None:
        self._inflate = zlib.decompressobj(wbits=31)
        self._most = most
        self._ratio = ratio
        self._sent = 0
        self._size = 0

    def feed(self, data: bytes) -> bytes:
        """Return the decompressed ``data``; raise TooLargeError or EncodingError."""
        self._sent += len(data)
        parts = []
        # In chunks, to detect a bomb before all of it is inflated.
        while True:
            try:
                chunk = self._inflate.decompress(data, self._FREE)
            except zlib.error as error:
                raise EncodingError("the body is not gzip; send it plain") from error
            self._size += len(chunk)
            if self._size > self._most:
                raise TooLargeError(f"the body inflates to more than {self._most} bytes; send less")
            taken = self._sent - len(self._inflate.unconsumed_tail)
            if self._size > self._FREE and self._size > self._ratio * taken:
                raise TooLargeError(f"the body inflates to over {self._ratio} times its size")
            if self._inflate.unused_data:
                raise EncodingError("something follows the gzip body; send one member")
            parts.append(chunk)
            data = self._inflate.unconsumed_tail
            if not data and len(chunk) < self._FREE:  # a full chunk may leave output buffered
                return b"".join(parts)

    def close(self) -> None:
        """Raise EncodingError if the end is missing."""
        if not self._inflate.eof:
            raise EncodingError("the gzip body ends too early; send all of it")


class RequestLimits:
    """ASGI middleware that enforces ``Limits`` on every HTTP request.

    It decompresses gzip bodies for the application. ``headers`` are added to the middleware's own
    responses, like those that inner middleware adds to the application's.
    """

    def __init__(
        self, app: App, limits: Limits | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        self._app = app
        self._limits = limits or Limits()
        self._headers = headers or {}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            body = self._check_message(scope)
        except EngineroomError as error:
            await _refuse(error, send, self._headers)
            return
        reader = _Reader(receive, self._limits, body)
        if body is not None:
            dropped = {b"content-encoding", b"content-length"}
            scope = {
                **scope,
                "headers": [(k, v) for k, v in scope["headers"] if k.lower() not in dropped],
            }
        try:
            await self._app(scope, reader, answer)
        except Exception as error:
            if reader.refused is None or started:
                raise
            await _refuse(reader.refused, send, self._headers)
            if error is not reader.refused and not isinstance(error, EngineroomError):
                raise
        finally:
            # The error's traceback refers to frames that hold the reader and its buffers.
            reader.refused = None

    def _check_message(self, scope: Message) -> Inflater | None:
        """Check the headers; return an inflater for a gzip body."""
        limits, headers = self._limits, scope.get("headers") or ()
        if len(headers) > limits.headers:
            raise HeadersTooLargeError(f"there are over {limits.headers} headers; send fewer")
        if sum(len(name) + len(value) for name, value in headers) > limits.header_bytes:
            raise HeadersTooLargeError(f"the headers have over {limits.header_bytes} bytes")
        by_name = {bytes(name).lower(): bytes(value) for name, value in headers}
        length = by_name.get(b"content-length", b"0")
        if not (length.isdigit() and len(length) < 20) or int(length) > limits.body:
            raise TooLargeError(f"the body has over {limits.body} bytes; send less")
        encoding = by_name.get(b"content-encoding", b"identity").strip().lower()
        if encoding == b"gzip":
            return Inflater(limits.body, limits.ratio)
        if encoding != b"identity":
            raise EncodingError("Content-Encoding must be gzip or absent; send the body plain")
        return None


class _Reader:
    """The application's ``receive``: counts bytes, decompresses and enforces the time limit."""

    def __init__(self, receive: Receive, limits: Limits, inflater: Inflater | None) -> None:
        self._receive = receive
        self._limits = limits
        self._inflater = inflater
        self._size = 0
        self._until: float | None = None
        self._ended = False
        self.refused: EngineroomError | None = None

    async def __call__(self) -> Message:
        if self.refused is not None:
            raise self.refused
        if self._ended:
            return await self._receive()  # only a disconnect can follow
        loop = asyncio.get_running_loop()
        if self._until is None:
            self._until = loop.time() + self._limits.seconds
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
            return self._check_message(message)
        except TimeoutError as error:
            self.refused = SlowBodyError(f"the body took over {self._limits.seconds:g} s")
            raise self.refused from error
        except EngineroomError as error:
            self.refused = error
            raise

    def _check_message(self, message: Message) -> Message:
        if message["type"] != "http.request":
            return message
        data = message.get("body", b"")
        self._size += len(data)
        if self._size > self._limits.body:
            raise TooLargeError(f"the body has over {self._limits.body} bytes; send less")
        self._ended = not message.get("more_body", False)
        if self._inflater is None:
            return message
        plain = self._inflater.feed(data)
        if self._ended:
            self._inflater.close()
        return {**message, "body": plain}


class Problems:
    """ASGI middleware that turns an unhandled EngineroomError into a problem document.

    Not needed with ``AuthMiddleware``, which does the same. Other exceptions propagate to the
    server and its log.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except EngineroomError as error:
            if started or scope["type"] != "http":
                raise
            await _refuse(error, send)


async def _refuse(
    error: EngineroomError, send: Send, more: Mapping[str, str] = MappingProxyType({})
) -> None:
    document = problem_document(error)
    body = json.dumps(document.body).encode()
    own = {**document.headers, "Content-Length": str(len(body)), "Connection": "close"}
    headers = {k.lower(): v for part in (more, own) for k, v in part.items()}
    await send(
        {
            "type": "http.response.start",
            "status": document.status,
            "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
