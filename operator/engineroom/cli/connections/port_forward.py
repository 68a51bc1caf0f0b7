"""Forwarding of a local port to the API process in the cluster, through the API server.

The port listens on the loopback address only. Each connection is forwarded to a ready pod of the
Service like `kubectl port-forward` does: the tunnel uses the TLS and the rights of the kubeconfig.
If the pod itself serves TLS, this module terminates it inside the tunnel. It does not verify the
pod's certificate, which names no local address; the API server authenticates the tunnel's end.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

from engineroom.cli.connections.service_ports import service_connector
from engineroom.cli.errors import (
    CliError,
    ForbiddenError,
    NotFoundError,
    UsageError,
    program,
)
from engineroom.kube.client.resources import DEPLOYMENTS, SECRETS, SERVICES

if TYPE_CHECKING:
    from collections.abc import Callable

    from engineroom.cli.connections.cluster import Cluster
    from engineroom.cli.connections.model import Document

#: Finds the Service and the Deployment of the API process.
LABELS = "app.kubernetes.io/part-of=engineroom,app.kubernetes.io/component=api"
#: Namespaces to search if the account may not list the Services of all namespaces.
NAMESPACES = ("engineroom-system", "engineroom")
#: Name of the port, in the Service and in the pod.
_PORT = "api"
#: Concurrent connections; a browser opens six.
_MAX_CONNECTIONS = 32


class PortForward:
    """A local listener that forwards connections while its ``with`` block runs.

    ``connect`` opens a connection to the pod; with ``tls`` the pod serves TLS.
    """

    def __init__(self, connect: Callable[[], Any], *, tls: bool = False) -> None:
        self._connect = connect
        self._context = _unverified_context() if tls else None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._free_slots = threading.Semaphore(_MAX_CONNECTIONS)
        self._closed = threading.Event()
        #: The error of the last failed connection.
        self.failure: CliError | None = None

    @property
    def url(self) -> str:
        """The URL of the listener."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> PortForward:
        threading.Thread(target=self._accept, name="forward", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        # Wakes the thread that waits for connections; close alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                local, _ = self._listener.accept()
            except OSError:
                return
            if not self._free_slots.acquire(timeout=5):
                local.close()
                continue
            threading.Thread(target=self._serve, args=(local,), daemon=True).start()

    def _serve(self, local: socket.socket) -> None:
        remote: Any = None
        try:
            remote = self._connect()
            if self._context is not None:
                remote = _TlsConnection(remote, self._context)
            responses = threading.Thread(target=_copy, args=(remote, local), daemon=True)
            responses.start()
            _copy(local, remote)
            responses.join()
        except CliError as error:
            self.failure = error
        except OSError:
            pass
        finally:
            self._free_slots.release()
            for connection in (local, remote):
                if connection is not None:
                    with contextlib.suppress(OSError):
                        connection.close()


class _TlsConnection:
    """TLS over a connection, for one thread that reads and one that writes.

    ``ssl.SSLSocket`` is not safe for two threads: OpenSSL has one state for both directions, and
    Python before 3.13 does not lock it. Methods raise OSError (SSLError is one).
    """

    def __init__(self, raw: Any, context: ssl.SSLContext) -> None:
        self._raw = raw
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._to_send)
        self._state = threading.Lock()
        # Held from the encryption of bytes until they are sent, so that records stay in order.
        # Never acquired inside the other lock, so that reading continues while a write blocks.
        self._sending = threading.Lock()
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._send(None)
                self._receive()
            else:
                break
        self._send(None)

    def recv(self, size: int) -> bytes:
        """Return the next bytes, at most ``size``; b"" at the end."""
        while True:
            try:
                with self._state:
                    return self._tls.read(size)
            except ssl.SSLWantReadError:
                pass
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            if self._to_send.pending:
                self._send(None)
            self._receive()

    def sendall(self, data: bytes) -> None:
        """Send all of ``data``."""
        self._send(lambda: self._tls.write(data))

    def shutdown(self, how: int) -> None:
        """Send the end of the stream; ``how`` is ignored."""
        del how

        def end() -> None:
            # Sends the close notification. Waiting for the peer's is left to recv.
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.unwrap()

        self._send(end)

    def close(self) -> None:
        """Close the underlying connection."""
        self._raw.close()

    def _send(self, make: Callable[[], object] | None) -> None:
        with self._sending:
            with self._state:
                if make is not None:
                    make()
                data = self._to_send.read()
            if data:
                self._raw.sendall(data)

    def _receive(self) -> None:
        data = self._raw.recv(65_536)
        with self._state:
            if data:
                self._received.write(data)
            else:
                self._received.write_eof()


def _copy(source: Any, target: Any) -> None:
    """Copy bytes until the end of ``source``, then end the stream of ``target``."""
    with contextlib.suppress(OSError, ValueError):
        while data := source.recv(65_536):
            target.sendall(data)
    with contextlib.suppress(OSError, AttributeError):
        target.shutdown(socket.SHUT_WR)


def _unverified_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def find(cluster: Cluster, namespace: str | None) -> Document:
    """Return the Service of the API process. Raises NotFoundError, ForbiddenError, UsageError."""
    try:
        services = cluster.read_all(SERVICES, namespace, LABELS)
    except ForbiddenError:
        if namespace is not None:
            raise
        services = []
        for name in NAMESPACES:
            with contextlib.suppress(ForbiddenError):
                services += cluster.read_all(SERVICES, name, LABELS)
    # The Service for metrics has the same labels but no such port.
    services = [
        entry for entry in services if any(p.get("name") == _PORT for p in entry["spec"]["ports"])
    ]
    if not services:
        raise NotFoundError(
            "no API process runs in this cluster",
            why=f"no Service with the labels {LABELS}"
            + ("" if namespace is None else f" in {namespace}"),
            fix="install it with the chart's `api.enabled=true`, or give its namespace with -n",
        )
    if len(services) > 1:
        names = ", ".join(f"{s['metadata']['namespace']}/{s['metadata']['name']}" for s in services)
        raise UsageError(
            f"there are {len(services)} API processes in this cluster",
            why=names,
            fix=f"choose one: `{program()} ui -n NAMESPACE`",
        )
    return services[0]


def forward(cluster: Cluster, service: Document) -> PortForward:
    """Return a port forward to a ready pod of the Service.

    Raises UnreachableError if the Service has no ready pod, UsageError if it has no selector.
    """
    metadata = service["metadata"]
    port = next(int(p["port"]) for p in service["spec"]["ports"] if p.get("name") == _PORT)
    host = f"{metadata['name']}.{metadata['namespace']}.svc"
    connect = service_connector(cluster, host, port, metadata["namespace"])
    if connect is None:
        raise UsageError(
            f"Service {metadata['namespace']}/{metadata['name']} selects no pods",
            fix="name the API's URL with --server",
        )
    return PortForward(connect, tls=port == 443)


def admin_password(cluster: Cluster, service: Document) -> str | None:
    """Return the first administrator's password; None if the account may not read its Secret."""
    import base64

    namespace = service["metadata"]["namespace"]
    try:
        for deployment in cluster.read_all(DEPLOYMENTS, namespace, LABELS):
            for volume in deployment["spec"]["template"]["spec"].get("volumes") or ():
                if volume["name"] != "secrets":
                    continue
                secret = cluster.read(SECRETS, namespace, volume["secret"]["secretName"])
                password = (secret.get("data") or {}).get("admin-password")
                return base64.b64decode(password).decode().strip() or None if password else None
    except (ForbiddenError, NotFoundError):
        return None
    return None
