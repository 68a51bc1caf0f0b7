"""Calls to Redis for whoever makes many: replies go to callbacks, in order, over one connection.

A call through redis-py's client takes 150 microseconds of processor time, most of it for the pool,
the streams and the tasks; here it takes 10. redis-py still makes the connection, with everything
that an address can say (TLS, authentication, Unix sockets), and hands over its transport.
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

#: Seconds that making a connection may take, and that answers nobody waits for are waited for.
PATIENCE = 1.0
#: Connections that only wait for such answers; the oldest is closed for one more.
MAX_LEFT = 4
_NOTHING: Final = object()
_FAILURES = (RedisError, OSError, TimeoutError)
_ERRORS: dict[str, type[ResponseError]] = {"NOSCRIPT": NoScriptError, "READONLY": ReadOnlyError}


class Call:
    """A call under way."""

    __slots__ = ("command", "done", "task", "wire")

    def __init__(self, command: tuple[Part, ...], done: Callable[[Any], None]) -> None:
        self.command = command
        #: Told the reply, or an exception; None once nobody waits any more.
        self.done: Callable[[Any], None] | None = done
        self.wire: _Wire | None = None
        self.task: asyncio.Task[None] | None = None

    def tell(self, reply: Any) -> None:
        """The reply is there."""
        done, self.done = self.done, None
        if done is not None:
            done(reply)


class Calls(Protocol):
    """Something that carries calls to Redis."""

    def send(self, command: tuple[Part, ...], done: Callable[[Any], None]) -> Call:
        """Call Redis; ``done`` is told the reply or an exception, never from within."""
        ...

    def give_up(self, call: Call) -> None:
        """Nobody waits for this call any more, because it took too long."""
        ...

    def renew(self) -> None:
        """Connect anew for further calls."""
        ...

    async def close(self) -> None:
        """Close; calls under way are told so."""
        ...


class Line:
    """One connection, made when it is needed and again after it is lost.

    A call that takes too long leaves its connection to the answers that others wait for; the next
    call has a new one.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._wire: _Wire | None = None
        self._left: deque[_Wire] = deque()
        self._queued: list[Call] = []
        self._opening: asyncio.Task[None] | None = None

    def send(self, command: tuple[Part, ...], done: Callable[[Any], None]) -> Call:
        """Call Redis; ``done`` is told the reply or an exception, never from within."""
        call = Call(command, done)
        wire = self._wire
        if wire is not None and wire.open:
            wire.send(call)
        else:
            self._queued.append(call)
            if self._opening is None:
                self._opening = asyncio.get_running_loop().create_task(self._open())
        return call

    def give_up(self, call: Call) -> None:
        """Nobody waits for this call any more, because it took too long."""
        call.done = None
        if call.wire is None:
            if call in self._queued:
                self._queued.remove(call)
        elif call.wire is self._wire:
            self.renew()

    def renew(self) -> None:
        """Connect anew for further calls; those under way still get their replies."""
        wire, self._wire = self._wire, None
        if wire is None:
            return
        wire.finish()
        self._left.append(wire)
        while len(self._left) > MAX_LEFT:
            self._left.popleft().abort()

    async def close(self) -> None:
        """Close; calls under way are told so."""
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
            await asyncio.wait([opening])
        # A task that was cancelled before it began has not said so.
        self._refuse(RedisConnectionError("the connection is being closed"))
        wires = [*self._left, self._wire] if self._wire is not None else list(self._left)
        self._left.clear()
        self._wire = None
        for wire in wires:
            wire.abort()
        if wires:
            await asyncio.wait([wire.closed for wire in wires])

    async def _open(self) -> None:
        try:
            wire = self._wire = _Wire(await self._connected())
        except _FAILURES as error:
            self._refuse(error)
        else:
            queued, self._queued = self._queued, []
            for call in queued:
                wire.send(call)
        finally:
            self._opening = None

    async def _connected(self) -> Any:
        connection: Any = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(PATIENCE):
                await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    def _refuse(self, error: BaseException) -> None:
        queued, self._queued = self._queued, []
        for call in queued:
            call.tell(error)


class _Wire(asyncio.Protocol):
    """A connection that redis-py has made, and the calls on it."""

    def __init__(self, connection: Any) -> None:
        loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=_error, notEnoughData=_NOTHING)
        self._calls: deque[Call] = deque()
        self._finishing: asyncio.TimerHandle | None = None
        self.closed: asyncio.Future[None] = loop.create_future()
        self.open = True
        # The streams are kept until the end: they close the transport when they are forgotten.
        self._writer: Any = connection._writer
        self._transport: Any = self._writer.transport
        self._before: asyncio.BaseProtocol = self._transport.get_protocol()
        # Nothing is left unread in them: every command of the handshake was answered.
        self._transport.set_protocol(self)
        connection._writer = connection._reader = None
        if self._transport.is_closing():
            self.connection_lost(None)

    def send(self, call: Call) -> None:
        """Write a call."""
        call.wire = self
        self._calls.append(call)
        # Its stub says a tuple of one part.
        command: Any = call.command
        self._transport.write(hiredis.pack_command(command))

    def data_received(self, data: bytes) -> None:
        """Some replies."""
        reader, calls = self._reader, self._calls
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _NOTHING:
                if type(reply) is hiredis.PushNotification:
                    continue
                if not calls:
                    self.abort()
                    return
                calls.popleft().tell(reply)
        except hiredis.HiredisError:
            # After what is no reply nothing can be trusted.
            self.abort()
            return
        if not calls and self._finishing is not None:
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone, and with it all replies."""
        if self.closed.done():
            return
        self.open = False
        self.closed.set_result(None)
        self._before.connection_lost(error)
        if self._finishing is not None:
            self._finishing.cancel()
        lost = RedisConnectionError("the connection was lost")
        while self._calls:
            self._calls.popleft().tell(lost)

    def finish(self) -> None:
        """Close after the last reply, or when it takes too long."""
        self.open = False
        if self._calls:
            loop = asyncio.get_running_loop()
            self._finishing = loop.call_later(PATIENCE, self._transport.abort)
        else:
            self._transport.abort()

    def abort(self) -> None:
        """Close now."""
        self.open = False
        self._transport.abort()


class Tasks:
    """The same with a task for each call and redis-py's client: for pools of other kinds, which ask
    a Sentinel first or block."""

    def __init__(self, client: Redis) -> None:
        self._client: Any = client
        self._running: set[asyncio.Task[None]] = set()

    def send(self, command: tuple[Part, ...], done: Callable[[Any], None]) -> Call:
        """Call Redis; ``done`` is told the reply or an exception."""
        call = Call(command, done)
        task = call.task = asyncio.get_running_loop().create_task(self._run(call))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return call

    def give_up(self, call: Call) -> None:
        """Nobody waits for this call any more."""
        call.done = None
        if call.task is not None:
            call.task.cancel()

    def renew(self) -> None:
        """Connect anew for further calls."""
        task = asyncio.get_running_loop().create_task(self._client.connection_pool.disconnect())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """End the calls under way."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(set(self._running))

    async def _run(self, call: Call) -> None:
        try:
            reply = await self._client.execute_command(*call.command)
        except _FAILURES as error:
            call.tell(error)
        except BaseException:
            call.tell(RedisConnectionError("the call was ended"))
            raise
        else:
            call.tell(reply)


def calls_of(client: Redis) -> Calls:
    """Calls to the Redis of a client, over connections of their own where its pool is a plain one.

    The client's pool must not be one that others configured: its settings are used as they are.
    """
    pool = client.connection_pool
    return Line(pool) if type(pool) is ConnectionPool else Tasks(client)


def _error(message: str) -> ResponseError:
    kind, _, rest = message.partition(" ")
    known = _ERRORS.get(kind)
    return ResponseError(message) if known is None else known(rest)
