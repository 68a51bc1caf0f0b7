"""A port of this machine that leads to the API process in the cluster, through the API server.

It listens on the loopback address alone. Each connection is forwarded to a ready pod behind the
Service, as `kubectl port-forward` does it: the tunnel has the TLS and the rights of the kubeconfig.
Where the pod itself speaks TLS that is undone here, inside the tunnel, whose other end the API
server vouches for; a certificate for this machine's address there is none to check.
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
#: Where it is looked for by who may not look everywhere.
NAMESPACES = ("engineroom-system", "engineroom")
#: What the port is called, in the Service and in the pod.
_PORT = "api"
#: Connections at one time: a browser opens six.
_MOST = 32


class Forward:
    """Listens while the block runs; ``url`` is where."""

    def __init__(self, connect: Callable[[], Any], *, tls: bool = False) -> None:
        self._connect = connect
        self._context = _unverified() if tls else None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._places = threading.Semaphore(_MOST)
        self._closed = threading.Event()
        #: Why the last connection could not be made.
        self.failure: CliError | None = None

    @property
    def url(self) -> str:
        """The URL of the listener."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Forward:
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
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self._places.acquire(timeout=5):
                near.close()
                continue
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        far: Any = None
        try:
            far = self._connect()
            if self._context is not None:
                far = _Tls(far, self._context)
            back = threading.Thread(target=_pump, args=(far, near), daemon=True)
            back.start()
            _pump(near, far)
            back.join()
        except CliError as error:
            self.failure = error
        except OSError:
            pass
        finally:
            self._places.release()
            for entry in (near, far):
                if entry is not None:
                    with contextlib.suppress(OSError):
                        entry.close()


class _Tls:
    """TLS over a connection, for one thread that reads and one that writes.

    ``ssl.SSLSocket`` is for one thread at a time: OpenSSL changes one state for both directions,
    and Python before 3.13 does not lock it. Raises OSError, of which SSLError is one.
    """

    def __init__(self, raw: Any, context: ssl.SSLContext) -> None:
        self._raw = raw
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._to_send)
        self._state = threading.Lock()
        # Held from taking bytes until they are sent: records go in order. Never taken within the
        # other, so that who reads goes on while who writes waits for the peer.
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
        """Return the next bytes; b"" at the end."""
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
        """Send it."""
        self._send(lambda: self._tls.write(data))

    def shutdown(self, how: int) -> None:
        """Say that nothing more is sent."""
        del how

        def end() -> None:
            # Sends the notice; then it would wait for the other side's, which recv does.
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.unwrap()

        self._send(end)

    def close(self) -> None:
        """Close the connection under it."""
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


def _pump(source: Any, target: Any) -> None:
    """Everything from one to the other, then the end."""
    with contextlib.suppress(OSError, ValueError):
        while data := source.recv(65_536):
            target.sendall(data)
    with contextlib.suppress(OSError, AttributeError):
        target.shutdown(socket.SHUT_WR)


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def find(cluster: Cluster, namespace: str | None) -> Document:
    """The Service of the API process. Raises NotFoundError, ForbiddenError, UsageError."""
    try:
        services = cluster.read_all(SERVICES, namespace, LABELS)
    except ForbiddenError:
        if namespace is not None:
            raise
        services = []
        for name in NAMESPACES:
            with contextlib.suppress(ForbiddenError):
                services += cluster.read_all(SERVICES, name, LABELS)
    # Beside it stands the Service that metrics are read by, with the same labels.
    services = [
        entry for entry in services if any(p.get("name") == _PORT for p in entry["spec"]["ports"])
    ]
    if not services:
        raise NotFoundError(
            "there is no API process in this cluster",
            why=f"no Service with the labels {LABELS}"
            + ("" if namespace is None else f" in {namespace}"),
            fix="install it by the chart's `api.enabled=true`, or name the namespace it is in with "
            "-n",
        )
    if len(services) > 1:
        names = ", ".join(f"{s['metadata']['namespace']}/{s['metadata']['name']}" for s in services)
        raise UsageError(
            f"there are {len(services)} API processes in this cluster",
            why=names,
            fix=f"say which: `{program()} ui -n NAMESPACE`",
        )
    return services[0]


def forward(cluster: Cluster, service: Document) -> Forward:
    """A way to the Service. Raises UnreachableError where no pod stands behind it."""
    metadata = service["metadata"]
    port = next(int(p["port"]) for p in service["spec"]["ports"] if p.get("name") == _PORT)
    host = f"{metadata['name']}.{metadata['namespace']}.svc"
    connect = service_connector(cluster, host, port, metadata["namespace"])
    if connect is None:
        raise UsageError(
            f"Service {metadata['namespace']}/{metadata['name']} selects no pods",
            fix="name the API's URL with --server",
        )
    return Forward(connect, tls=port == 443)


def admin_password(cluster: Cluster, service: Document) -> str | None:
    """The first administrator's password, for who may read the Secret that it is in anyway."""
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
