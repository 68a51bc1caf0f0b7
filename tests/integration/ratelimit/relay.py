"""A way to Redis that can be slow, cut, or led to another server."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Self


class Relay:
    """Listens at a port of its own and passes bytes on; ``delay`` seconds before each answer.

    Connections that are open stay with the server that they were led to, as with a Service whose
    endpoints change.
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self.delay = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: set[socket.socket] = set()
        #: Connections without a server.
        self._silent: list[socket.socket] = []
        self._closed = False

    @property
    def url(self) -> str:
        """Return the address."""
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Close every connection that is open."""
        for entry in list(self._open):
            with suppress(OSError):
                entry.shutdown(socket.SHUT_RDWR)
        self._open.clear()
        while self._silent:
            self._silent.pop().close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                self._silent.append(client)
                continue
            server.settimeout(None)
            self._open |= {client, server}
            for source, sink, late in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pass, args=(source, sink, late), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, late: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if late and self.delay:
                    time.sleep(self.delay)
                sink.sendall(data)
        for entry in (source, sink):
            with suppress(OSError):
                entry.shutdown(socket.SHUT_RDWR)
            entry.close()
            self._open.discard(entry)
