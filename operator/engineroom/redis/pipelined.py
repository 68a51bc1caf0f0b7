"""Pipelined commands to Redis over one connection, with callbacks for the replies.

A command through redis-py's client costs 150 microseconds of processor time, most of it for the
pool, the streams and the tasks; here it costs 10. redis-py still opens the connection, with all
options of an address (TLS, authentication, Unix sockets), and hands over its transport.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

import hiredis
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    Part = str | bytes | int | float

#: Seconds until opening a connection fails, and until a replaced connection is closed even though
#: replies are missing.
GRACE_SECONDS = 1.0
#: Replaced connections that stay open for their last replies; one more closes the oldest.
MAX_REPLACED = 4
_INCOMPLETE: Final = object()
_FAILURES = (RedisError, OSError, TimeoutError)
_ERRORS: dict[str, type[ResponseError]] = {"NOSCRIPT": NoScriptError, "READONLY": ReadOnlyError}


class PendingCommand:
    """A command without a reply so far."""

    __slots__ = ("command", "done", "protocol", "task")

    def __init__(self, command: tuple[Part, ...], done: Callable[[Any], None]) -> None:
        self.command = command
        #: Called with the reply or an exception; None once the command was abandoned.
        self.done: Callable[[Any], None] | None = done
        self.protocol: _RedisProtocol | None = None
        self.task: asyncio.Task[None] | None = None

    def deliver(self, reply: Any) -> None:
        """Call ``done`` with the reply, once."""
        done, self.done = self.done, None
        if done is not None:
            done(reply)


class CommandSender(Protocol):
    """Sends commands to Redis and delivers the replies to callbacks."""

    def send(self, command: tuple[Part, ...], done: Callable[[Any], None]) -> PendingCommand:
        """Send a command; ``done`` is called later with the reply or an exception."""
        ...

    def abandon(self, command: PendingCommand) -> None:
        """Drop the callback of a command that took too long."""
        ...

    def reconnect(self) -> None:
        """Open a new connection for further commands."""
        ...

    async def close(self) -> None:
        """Close; pending commands get an exception."""
        ...


class PipelinedConnection:
    """One connection, opened when it is needed and again after it is lost.

    A command that takes too long leaves its connection to the replies of the other commands; the
    next command opens a new one.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._protocol: _RedisProtocol | None = None
        self._replaced: deque[_RedisProtocol] = deque()
        self._queued: list[PendingCommand] = []
        self._opening: asyncio.Task[None] | None = None

    def send(self, command: tuple[Part, ...], done: Callable[[Any], None]) -> PendingCommand:
        """Send a command; ``done`` is called later with the reply or an exception."""
        pending = PendingCommand(command, done)
        protocol = self._protocol
        if protocol is not None and protocol.open:
            protocol.send(pending)
        else:
            self._queued.append(pending)
            if self._opening is None:
                self._opening = asyncio.get_running_loop().create_task(self._open())
        return pending

    def abandon(self, command: PendingCommand) -> None:
        """Drop the callback of a command that took too long, and reconnect."""
        command.done = None
        if command.protocol is None:
            if command in self._queued:
                self._queued.remove(command)
        elif command.protocol is self._protocol:
            self.reconnect()

    def reconnect(self) -> None:
        """Open a new connection for further commands; pending ones still get their replies."""
        protocol, self._protocol = self._protocol, None
        if protocol is None:
            return
        protocol.finish()
        self._replaced.append(protocol)
        while len(self._replaced) > MAX_REPLACED:
            self._replaced.popleft().abort()

    async def close(self) -> None:
        """Close; pending commands get an exception."""
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
            await asyncio.wait([opening])
        # A task that was cancelled before its first step has not failed its commands.
        self._fail_queued(RedisConnectionError("the connection is being closed"))
        protocols = list(self._replaced)
        if self._protocol is not None:
            protocols.append(self._protocol)
        self._replaced.clear()
        self._protocol = None
        for protocol in protocols:
            protocol.abort()
        if protocols:
            await asyncio.wait([protocol.closed for protocol in protocols])

    async def _open(self) -> None:
        try:
            protocol = self._protocol = _RedisProtocol(await self._connect())
        except _FAILURES as error:
            self._fail_queued(error)
        else:
            queued, self._queued = self._queued, []
            for command in queued:
                protocol.send(command)
        finally:
            self._opening = None

    async def _connect(self) -> Any:
        connection: Any = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    def _fail_queued(self, error: BaseException) -> None:
        queued, self._queued = self._queued, []
        for command in queued:
            command.deliver(error)


class _RedisProtocol(asyncio.Protocol):
    """A connection opened by redis-py, and the pending commands on it."""

    def __init__(self, connection: Any) -> None:
        loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=_error, notEnoughData=_INCOMPLETE)
        self._pending: deque[PendingCommand] = deque()
        self._finishing: asyncio.TimerHandle | None = None
        self.closed: asyncio.Future[None] = loop.create_future()
        self.open = True
        # The streams stay referenced: they close the transport when they are collected.
        self._writer: Any = connection._writer
        self._transport: Any = self._writer.transport
        self._stream_protocol: asyncio.BaseProtocol = self._transport.get_protocol()
        # The streams hold no unread data: every command of the handshake was answered.
        self._transport.set_protocol(self)
        connection._writer = connection._reader = None
        if self._transport.is_closing():
            self.connection_lost(None)

    def send(self, pending: PendingCommand) -> None:
        """Write a command."""
        pending.protocol = self
        self._pending.append(pending)
        # The stub of pack_command declares a tuple of one part.
        command: Any = pending.command
        self._transport.write(hiredis.pack_command(command))

    def data_received(self, data: bytes) -> None:
        """Deliver the replies in the data."""
        reader, pending = self._reader, self._pending
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _INCOMPLETE:
                if type(reply) is hiredis.PushNotification:
                    continue
                if not pending:
                    self.abort()
                    return
                pending.popleft().deliver(reply)
        except hiredis.HiredisError:
            # After a protocol error the boundaries of replies are unknown.
            self.abort()
            return
        if not pending and self._finishing is not None:
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Fail all pending commands."""
        if self.closed.done():
            return
        self.open = False
        self.closed.set_result(None)
        self._stream_protocol.connection_lost(error)
        if self._finishing is not None:
            self._finishing.cancel()
        lost = RedisConnectionError("the connection was lost")
        while self._pending:
            self._pending.popleft().deliver(lost)

    def finish(self) -> None:
        """Close after the last reply, at the latest after GRACE_SECONDS."""
        self.open = False
        if self._pending:
            loop = asyncio.get_running_loop()
            self._finishing = loop.call_later(GRACE_SECONDS, self._transport.abort)
        else:
            self._transport.abort()

    def abort(self) -> None:
        """Close now."""
        self.open = False
        self._transport.abort()


class TaskPerCommand:
    """A command sender with a task and redis-py's client for each command.

    For pools that cannot hand over a connection: those that ask a Sentinel first, or block.
    """

    def __init__(self, client: Redis) -> None:
        self._client: Any = client
        self._running: set[asyncio.Task[None]] = set()

    def send(self, command: tuple[Part, ...], done: Callable[[Any], None]) -> PendingCommand:
        """Send a command; ``done`` is called later with the reply or an exception."""
        pending = PendingCommand(command, done)
        task = pending.task = asyncio.get_running_loop().create_task(self._run(pending))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return pending

    def abandon(self, command: PendingCommand) -> None:
        """Cancel a command that took too long."""
        command.done = None
        if command.task is not None:
            command.task.cancel()

    def reconnect(self) -> None:
        """Open a new connection for further commands."""
        task = asyncio.get_running_loop().create_task(self._client.connection_pool.disconnect())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Cancel the pending commands."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(set(self._running))

    async def _run(self, command: PendingCommand) -> None:
        try:
            reply = await self._client.execute_command(*command.command)
        except _FAILURES as error:
            command.deliver(error)
        except BaseException:
            command.deliver(RedisConnectionError("the command was cancelled"))
            raise
        else:
            command.deliver(reply)


def command_sender(client: Redis) -> CommandSender:
    """Return a sender to the Redis of a client, with connections of its own where the pool allows.

    The pool's settings are used unchanged, including its timeouts.
    """
    pool = client.connection_pool
    return PipelinedConnection(pool) if type(pool) is ConnectionPool else TaskPerCommand(client)


def _error(message: str) -> ResponseError:
    code, _, rest = message.partition(" ")
    error_class = _ERRORS.get(code)
    return ResponseError(message) if error_class is None else error_class(rest)
