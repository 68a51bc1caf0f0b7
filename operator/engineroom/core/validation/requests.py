"""Limits on requests, for any ASGI application: refused at the limit and not after it.

What is refused gets a problem document and the application is not told, or, where it is reading
already, gets an error from ``receive`` that becomes the document. The connection is closed after.
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
    """The request has more or longer headers than are accepted; send fewer."""

    code = "headers_too_large"
    http_status = 431


class SlowBodyError(EngineroomError):
    """The body came too slowly; send it again over a better connection."""

    code = "slow_body"
    category = Category.LIMIT
    http_status = 408


class EncodingError(EngineroomError):
    """The body's Content-Encoding is not accepted or the body is not so encoded; send it plain."""

    code = "content_encoding"
    category = Category.VALIDATION
    http_status = 415


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes are bytes, ``seconds`` is for the whole body, ``ratio`` of inflated to sent."""

    body: int = 1024 * 1024
    headers: int = 100
    header_bytes: int = 16 * 1024
    seconds: float = 30.0
    ratio: int = 100


class Inflater:
    """Inflates gzip piece by piece and refuses to make more than ``most`` bytes of it.

    More than ``ratio`` times what was sent is refused too, after the first 64 KiB.
    """

    _FREE = 64 * 1024

    def __init__(self, most: int, ratio: int) -> None:
        self._inflate = zlib.decompressobj(wbits=31)
        self._most = most
        self._ratio = ratio
        self._sent = 0
        self._made = 0

    def feed(self, data: bytes) -> bytes:
        """What ``data`` inflates to. Raises TooLargeError and EncodingError."""
        self._sent += len(data)
        parts = []
        # In pieces, so that a bomb is known by its first one and not by all that it makes.
        while True:
            try:
                made = self._inflate.decompress(data, self._FREE)
            except zlib.error as error:
                raise EncodingError("the body is no gzip; send it plain") from error
            self._made += len(made)
            if self._made > self._most:
                raise TooLargeError(f"the body inflates to more than {self._most} bytes; send less")
            taken = self._sent - len(self._inflate.unconsumed_tail)
            if self._made > self._FREE and self._made > self._ratio * taken:
                raise TooLargeError(f"the body inflates to over {self._ratio} times its size")
            if self._inflate.unused_data:
                raise EncodingError("something follows the gzip body; send one member")
            parts.append(made)
            data = self._inflate.unconsumed_tail
            if not data and len(made) < self._FREE:  # a full piece may leave more within
                return b"".join(parts)

    def close(self) -> None:
        """Raises EncodingError when the end is missing."""
        if not self._inflate.eof:
            raise EncodingError("the gzip body ends too early; send all of it")


class RequestLimits:
    """ASGI middleware that holds every HTTP request to ``Limits``.

    Bodies in gzip are inflated on the way, so that the application sees them plain. ``headers`` are
    given to its own answers, as others are given them by what stands behind it.
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
            body = self._checked(scope)
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
            # It holds the frames that raised it, and they hold the reader and what was read.
            reader.refused = None

    def _checked(self, scope: Message) -> Inflater | None:
        """What the headers say; an inflater where the body is in gzip."""
        limits, headers = self._limits, scope.get("headers") or ()
        if len(headers) > limits.headers:
            raise HeadersTooLargeError(f"there are over {limits.headers} headers; send fewer")
        if sum(len(name) + len(value) for name, value in headers) > limits.header_bytes:
            raise HeadersTooLargeError(f"the headers have over {limits.header_bytes} bytes")
        given = {bytes(name).lower(): bytes(value) for name, value in headers}
        length = given.get(b"content-length", b"0")
        if not (length.isdigit() and len(length) < 20) or int(length) > limits.body:
            raise TooLargeError(f"the body has over {limits.body} bytes; send less")
        encoding = given.get(b"content-encoding", b"identity").strip().lower()
        if encoding == b"gzip":
            return Inflater(limits.body, limits.ratio)
        if encoding != b"identity":
            raise EncodingError("Content-Encoding must be gzip or absent; send the body plain")
        return None


class _Reader:
    """The application's ``receive``: counts, inflates and keeps the time."""

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
            return await self._receive()  # only a disconnect can come now
        loop = asyncio.get_running_loop()
        if self._until is None:
            self._until = loop.time() + self._limits.seconds
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
            return self._taken(message)
        except TimeoutError as error:
            self.refused = SlowBodyError(f"the body took over {self._limits.seconds:g} s")
            raise self.refused from error
        except EngineroomError as error:
            self.refused = error
            raise

    def _taken(self, message: Message) -> Message:
        if message["type"] != "http.request":
            return message
        data = message.get("body", b"")
        self._size += len(data)
        if self._size > self._limits.body:
            raise TooLargeError(f"the body has over {self._limits.body} bytes; send less")
        self._ended = not message.get("more_body", False)
        if self._inflater is None:
            return message
        made = self._inflater.feed(data)
        if self._ended:
            self._inflater.close()
        return {**message, "body": made}


class Problems:
    """ASGI middleware: an EngineroomError that nobody answered becomes a problem document.

    For applications without ``AuthMiddleware``, which does so too. What is no EngineroomError is
    raised on: it is for the server's log.
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
    headers = {k.lower(): v for each in (more, own) for k, v in each.items()}
    await send(
        {
            "type": "http.response.start",
            "status": document.status,
            "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
