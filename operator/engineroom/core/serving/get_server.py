"""A server of GET requests for probes and metrics, on a port of its own.

Each connection serves one request and has time limits for its head, its handler and its response.
Connections are few in total and for each address, and a silent one makes room for a new one, so
that silent clients do not keep probes out.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from engineroom.core.serving.connection_budget import BudgetLimits, ConnectionBudget, address_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    #: A function from query parameters to status, content type and body.
    Handler = Callable[[Mapping[str, str]], Awaitable[tuple[int, str, bytes]]]

JSON, TEXT = "application/json", "text/plain; version=0.0.4; charset=utf-8"
#: Longest request (bytes); most connections, and those of one address.
MAX_REQUEST, MAX_CONNECTIONS, MAX_ADDRESS_CONNECTIONS = 16_384, 64, 16
#: Timeouts in seconds: of a request's head, of its handler, and of writing the response.
READ_TIMEOUT, HANDLER_TIMEOUT, WRITE_TIMEOUT = 5.0, 90.0, 10.0


class _GetConnection:
    """One connection in the budget."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport

    def abort(self) -> None:
        """Close now."""
        self._transport.abort()


class GetServer:
    """A server for GET requests, one per connection."""

    def __init__(self, routes: Mapping[str, Handler]) -> None:
        self._routes = routes
        self._server: asyncio.Server | None = None
        self._budget = ConnectionBudget(BudgetLimits(MAX_CONNECTIONS, MAX_ADDRESS_CONNECTIONS))

    async def listen(self, host: str | None, port: int) -> int:
        """Serve on a port, 0 for any; return the port. Raises OSError."""
        self._server = await asyncio.start_server(
            self._serve, host, port, limit=MAX_REQUEST, reuse_address=True
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def listen_at(self, path: str) -> None:
        """Serve on a Unix socket, whose clients have no address. Raises OSError."""
        self._budget = ConnectionBudget(BudgetLimits(MAX_CONNECTIONS, MAX_CONNECTIONS))
        self._server = await asyncio.start_unix_server(self._serve, path, limit=MAX_REQUEST)

    def close(self) -> None:
        """Stop serving, and close all connections."""
        if self._server is not None:
            self._server.close()
        for connection in self._budget.connections:
            connection.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _GetConnection(writer.transport)
        if not self._budget.admit(connection, address_of(writer.get_extra_info("peername"))):
            connection.abort()
            return
        try:
            await self._answer(connection, reader, writer)
            async with asyncio.timeout(WRITE_TIMEOUT):
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._budget.release(connection)
            connection.abort()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer(
        self,
        connection: _GetConnection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        async with asyncio.timeout(READ_TIMEOUT):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        self._budget.record_request(connection)
        method, _, rest = head.partition(" ")
        path, _, query = rest.partition(" ")[0].partition("?")
        handler = self._routes.get(path)
        status, kind, body = 404, TEXT, b"not found\n"
        if handler is not None and method in ("GET", "HEAD"):
            async with asyncio.timeout(HANDLER_TIMEOUT):
                status, kind, body = await handler(_parameters(query))
        response_head = (
            f"HTTP/1.1 {status} -\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        async with asyncio.timeout(WRITE_TIMEOUT):
            writer.write(response_head.encode() + (b"" if method == "HEAD" else body))
            await writer.drain()


def _parameters(query: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(query, max_num_fields=16))
    except ValueError:
        return {}
