"""A connection to a port of a pod through the API server, as `kubectl port-forward` opens it."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from socket import socket

_PROTOCOL = "v4.channel.k8s.io"
#: The status of a response that accepts the upgrade.
_SWITCHING_PROTOCOLS = 101


def open_pod_port(
    configuration: Any, url: str, port: int, authorization: Mapping[str, str]
) -> socket:
    """Connect to a port by the URL of a pod's subresource ``portforward``.

    The client's own function follows redirects, with the credential in their headers; this one
    follows none. Raises OSError or websocket.WebSocketException.
    """
    from kubernetes.stream import ws_client
    from websocket import WebSocket, WebSocketException

    client: Any = ws_client
    address = client.get_websocket_url(url, [("ports", str(port))])
    headers = [f"{name.lower()}: {value}" for name, value in authorization.items()]
    options = {"header": [*headers, f"sec-websocket-protocol: {_PROTOCOL}"], "redirect_limit": 0}
    if configuration.proxy or configuration.proxy_headers:
        options = client.websocket_proxycare(options, configuration, address, authorization)
    connection: Any = WebSocket(sslopt=_tls(configuration, address), skip_utf8_validation=False)
    connection.connect(address, **options)
    # Older versions of the library return a redirect that they may not follow like a connection.
    if connection.getstatus() != _SWITCHING_PROTOCOLS:
        connection.shutdown()
        raise WebSocketException(f"Handshake status {connection.getstatus()}")
    opened: socket = client.PortForward(connection, [port]).socket(port)
    return opened


def _tls(configuration: Any, address: str) -> dict[str, Any]:
    """Return the TLS settings of the kubeconfig in the form of the WebSocket library."""
    settings: dict[str, Any] = {"cert_reqs": ssl.CERT_NONE}
    if address.startswith("wss://") and configuration.verify_ssl:
        settings["cert_reqs"] = ssl.CERT_REQUIRED
        # Without a CA of the kubeconfig, those of the machine verify the server.
        if configuration.ssl_ca_cert:
            settings["ca_certs"] = configuration.ssl_ca_cert
        if configuration.assert_hostname is not None:
            settings["check_hostname"] = configuration.assert_hostname
    named = {
        "certfile": configuration.cert_file,
        "keyfile": configuration.key_file,
        "server_hostname": configuration.tls_server_name,
    }
    return settings | {name: value for name, value in named.items() if value}
