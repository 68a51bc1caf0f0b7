"""Forwarding of a local port to the API process in the cluster, through the API server.

The port listens on the loopback address only. Each connection is forwarded to a ready pod of the
API's Deployment like `kubectl port-forward` does: the tunnel uses the TLS and the rights of the
kubeconfig. If the pod itself serves TLS, this module terminates it inside the tunnel. It does not
verify the pod's certificate, which names no local address; the API server authenticates the
tunnel's end.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

from engineroom.cli.connections.release import deployment_pods, release_deployment
from engineroom.cli.connections.service_ports import is_ready
from engineroom.cli.errors import CliError, ForbiddenError, NotFoundError, UnreachableError
from engineroom.kube.client.resources import SECRETS

if TYPE_CHECKING:
    from collections.abc import Callable

    from engineroom.cli.connections.cluster import Cluster
    from engineroom.cli.connections.model import Document
    from engineroom.cli.connections.release import Release

#: Name of the container and of its port.
_PORT = "api"
#: Port of a process whose Deployment names none.
_DEFAULT_PORT = 8000
#: Set if the pod itself serves TLS.
_TLS = "ENGINEROOM_TLS_CERTIFICATE"
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


def find_api(cluster: Cluster, release: Release) -> Document:
    """Return the Deployment of the API process. Raises NotFoundError, ForbiddenError."""
    deployment = release_deployment(cluster, release, "api")
    if deployment is None:
        raise NotFoundError(
            f"no API process is installed in namespace {release.namespace}",
            why=f"it has no Deployment {release.deployment_name('api') or 'of the API'}",
            fix="install it with the chart's `api.enabled=true`, or name the namespace of the "
            "installation with -n",
        )
    return deployment


def forward(cluster: Cluster, deployment: Document) -> PortForward:
    """Return a port forward to a ready pod of the API's Deployment.

    Raises UnreachableError if it has no ready pod.
    """
    metadata = deployment["metadata"]
    ready = [pod for pod in deployment_pods(cluster, deployment) if is_ready(pod)]
    if not ready:
        raise UnreachableError(
            f"Deployment {metadata['namespace']}/{metadata['name']} has no ready pod",
            why="its pods are not running, or not ready yet",
            fix=f"`kubectl describe -n {metadata['namespace']} deployment/{metadata['name']}` "
            "shows why",
        )
    container = _container(deployment)
    ports = (p["containerPort"] for p in container.get("ports") or () if p.get("name") == _PORT)
    port = next(ports, _DEFAULT_PORT)
    tls = any(variable["name"] == _TLS for variable in container.get("env") or ())
    pod = ready[0]["metadata"]["name"]
    return PortForward(lambda: cluster.open_port(metadata["namespace"], pod, port), tls=tls)


def _container(deployment: Document) -> Document:
    """Return the container of the API process."""
    containers: list[Document] = deployment["spec"]["template"]["spec"]["containers"]
    named = (container for container in containers if container["name"] == _PORT)
    return next(named, containers[0])


def admin_password(cluster: Cluster, deployment: Document) -> str | None:
    """Return the first administrator's password; None if the account may not read its Secret."""
    import base64

    namespace = deployment["metadata"]["namespace"]
    try:
        for volume in deployment["spec"]["template"]["spec"].get("volumes") or ():
            if volume["name"] != "secrets":
                continue
            secret = cluster.read(SECRETS, namespace, volume["secret"]["secretName"])
            password = (secret.get("data") or {}).get("admin-password")
            return base64.b64decode(password).decode().strip() or None if password else None
    except (ForbiddenError, NotFoundError):
        return None
    return None
