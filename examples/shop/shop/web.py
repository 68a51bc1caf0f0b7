"""The shop's web application: `python -m shop.web`. It knows of no limit; nginx asks before it."""

from __future__ import annotations

import argparse
import json
import signal
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOODS = {"lamp": 39, "chair": 120, "table": 480}


class Page(BaseHTTPRequestHandler):
    """What there is to buy, whatever is asked for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps({"goods": GOODS, "from": socket.gethostname()}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """nginx keeps the log."""


class Server(ThreadingHTTPServer):
    """One thread a connection; as many may wait as come at once."""

    daemon_threads = True
    request_queue_size = 256


def main() -> None:
    """Serve until Kubernetes ends the pod."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    server = Server(("", parser.parse_args().port), Page)
    # Not from the handler itself: shutdown waits for the loop that the handler has interrupted.
    signal.signal(
        signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown, daemon=True).start()
    )
    server.serve_forever(poll_interval=0.1)


if __name__ == "__main__":
    main()
