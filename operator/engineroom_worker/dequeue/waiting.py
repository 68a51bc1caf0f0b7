"""Connections on which the worker waits for Redis and for its wake-up pipe at the same time."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: The channel on which Redis publishes invalidations.
INVALIDATIONS = b"__redis__:invalidate"


class WaitingConnection:
    """A dedicated connection on which the worker waits for replies."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection.connection_pool.make_connection()
        self._socket: Any = None
        self._client_id: Any = None

    def client_id(self) -> Any:
        """Return Redis' id of this connection; connect if necessary."""
        if self._socket is None or self._connection._sock is not self._socket:
            self._connection.connect()
            self._socket = self._connection._sock
            self.send("CLIENT", "ID")
            self._client_id = self.read()
        return self._client_id

    def send(self, *command: Any) -> None:
        """Send one command without waiting for its reply."""
        self._connection.send_command(*command)

    def read(self) -> Any:
        """Return the next reply."""
        return self._connection.read_response()

    def ready(self) -> bool:
        """Return whether a reply can be read without waiting."""
        return bool(self._connection.can_read(timeout=0))

    def wait(self, timeout: float, wakeup: int | None) -> bool:
        """Wait for a reply; return False if the wake-up pipe or the timeout came first."""
        if self.ready():
            return True
        sources: list[Any] = [self._socket] if wakeup is None else [self._socket, wakeup]
        readable, _, _ = select.select(sources, [], [], timeout)
        return self._socket in readable

    def close(self) -> None:
        """Drop the connection."""
        self._connection.disconnect()
        self._socket = None


class QueueTracking:
    """Waits for a change of any queue, by CLIENT TRACKING; it can be turned off and on."""

    def __init__(self, connection: Any, queue_keys: Sequence[str]) -> None:
        self._connection = connection
        self._keys = {key.encode() for key in queue_keys}
        self._tracker: WaitingConnection | None = None
        self._listener: WaitingConnection | None = None
        self.on = False
        self.unavailable = False

    def turn_on(self) -> None:
        """Connect, and have Redis publish changes."""
        try:
            if self._listener is None or self._tracker is None:
                self._listener = WaitingConnection(self._connection)
                self._tracker = WaitingConnection(self._connection)
                listener_id = self._listener.client_id()
                self._listener.send("SUBSCRIBE", INVALIDATIONS)
                self._listener.read()
                self._tracker.client_id()
                self._listener_id = listener_id
            command: list[Any] = ["CLIENT", "TRACKING", "ON", "BCAST"]
            command += ["REDIRECT", self._listener_id]
            for prefix in _prefixes(self._keys):
                command += ["PREFIX", prefix]
            self._tracker.send(*command)
            self._tracker.read()
            self.on = True
        except ResponseError:
            # Redis before 6, or an ACL forbids it: the caller polls instead.
            self.close()
            self.unavailable = True
        except (RedisError, OSError) as error:
            self.close()
            raise RedisConnectionError(str(error)) from error

    def turn_off(self) -> None:
        """Stop the publishing of changes, which a busy worker does not read."""
        if not self.on or self._tracker is None or self._listener is None:
            return
        try:
            self._tracker.send("CLIENT", "TRACKING", "OFF")
            self._tracker.read()
            self.on = False
            while self._listener.ready():
                self._listener.read()
        except (RedisError, OSError):
            self.close()

    def wait(self, timeout: float, wakeup: int) -> None:
        """Wait for a change of a queue, the wake-up pipe, or the timeout (seconds)."""
        if self._listener is None:
            return
        try:
            while self._listener.wait(timeout, wakeup):
                if self._names_a_queue(self._listener.read()):
                    return
            # Redis sends nothing on the other connection: if it is readable, it is closed, and the
            # tracking has ended.
            if self._tracker is not None and self._tracker.ready():
                self._tracker.read()
        except (RedisError, OSError) as error:
            self.close()
            raise RedisConnectionError(str(error)) from error

    def close(self) -> None:
        """Drop both connections."""
        for channel in (self._tracker, self._listener):
            if channel is not None:
                channel.close()
        self._tracker = self._listener = None
        self.on = False

    def _names_a_queue(self, message: Any) -> bool:
        if not isinstance(message, list) or len(message) < 3:
            return False
        # Without a list of keys everything changed: FLUSHALL, or a full tracking table.
        changed = message[2]
        return not isinstance(changed, list) or not self._keys.isdisjoint(changed)


def _prefixes(keys: Iterable[bytes]) -> list[bytes]:
    """Return the keys that do not begin with another key: Redis refuses overlapping prefixes."""
    chosen: list[bytes] = []
    for key in sorted(keys):
        if not chosen or not key.startswith(chosen[-1]):
            chosen.append(key)
    return chosen
