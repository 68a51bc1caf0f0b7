"""The workers' server of probes and metrics, with silent clients."""

from __future__ import annotations

import socket
import threading
import urllib.request

from engineroom_worker.observability.metrics import MAX_CONNECTIONS, MetricsServer, SharedMetrics


def test_silent_clients_keep_no_probe_out_and_hold_few_threads() -> None:
    before = threading.active_count()
    server = MetricsServer(SharedMetrics(1), "mail", 0)
    server.start()
    url = f"http://127.0.0.1:{server.port}/healthz"
    connections = []
    try:
        for _ in range(5 * MAX_CONNECTIONS):
            connections.append(socket.create_connection(("127.0.0.1", server.port), 10))
            connections[-1].sendall(b"GET /healthz HTTP/1.1\r\n")
        for _ in range(3):
            with urllib.request.urlopen(url, timeout=5) as response:
                assert response.read() == b"ok\n"
        assert threading.active_count() - before <= MAX_CONNECTIONS + 2
    finally:
        for connection in connections:
            connection.close()
        server._server.shutdown()
        server._server.server_close()
