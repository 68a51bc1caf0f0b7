"""The adapter's own: answers of an API server as errors with what, why and fix."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from typing import TYPE_CHECKING

import pytest
import yaml

from engineroom.cli.connections.api_server_errors import answer_error
from engineroom.cli.connections.kubernetes_cluster import KubernetesCluster
from engineroom.cli.connections.remote.api import Api
from engineroom.cli.connections.remote.credentials import ServerAccount
from engineroom.cli.errors import (
    CliError,
    ExitCode,
    ForbiddenError,
    NotFoundError,
    RefusedError,
    UnreachableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVER = "https://192.0.2.10:6443"


def answer(message: str, **details: object) -> str:
    return json.dumps({"kind": "Status", "message": message, "details": details})


@pytest.mark.parametrize(
    ("status", "body", "kind", "code", "fix"),
    [
        (0, "SSLError", UnreachableError, 3, "check that the cluster runs"),
        (400, answer("bad"), RefusedError, 1, "change what the message names"),
        (401, answer("Unauthorized"), ForbiddenError, 5, "log in again"),
        (403, answer("User x cannot"), ForbiddenError, 5, "ask an administrator"),
        (403, answer('admission webhook "w" denied the request: no'), RefusedError, 1, "change"),
        (500, answer("Internal: failed calling webhook"), RefusedError, 1, "`engineroom status`"),
        (404, "404 page not found\n", NotFoundError, 4, "helm install engineroom"),
        (404, answer("not found", name="mail"), NotFoundError, 4, "`engineroom get pools -A`"),
        (409, answer("conflict"), RefusedError, 1, "read the present object"),
        (422, answer("spec.x: Invalid value"), RefusedError, 1, "nothing was written"),
        (503, "", UnreachableError, 3, "try again"),
    ],
)
def test_each_answer_has_its_exit_code_and_fix(
    status: int, body: str, kind: type[CliError], code: int, fix: str
) -> None:
    error = answer_error("WorkerPool default/mail", status, "Reason", body, SERVER)
    assert type(error) is kind
    assert error.exit_code == code
    assert fix in error.fix
    assert error.why


def test_an_answer_in_bytes_that_is_no_json_is_shown_as_it_is() -> None:
    error = answer_error("x", 500, "Internal", b"boom \xff", SERVER)
    assert error.why == "boom \ufffd"


def test_every_exit_code_is_explained() -> None:
    assert [code.value for code in ExitCode] == list(range(6))
    assert all(code.meaning for code in ExitCode)


@contextlib.contextmanager
def answering(status: int, **headers: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that gives one response; the headers of its requests are collected."""
    requests: list[dict[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}", requests
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_takes_a_credential_elsewhere(status: int, tmp_path: Path) -> None:
    """Of the API server's objects, of a forwarded port, and of the API process."""
    with answering(200) as (other, received):
        for scheme in ("http", "ws"):
            with answering(status, location=f"{scheme}://{other}/x") as (address, asked):
                path = tmp_path / "kubeconfig"
                path.write_text(yaml.safe_dump({
                    "apiVersion": "v1", "kind": "Config", "current-context": "c",
                    "clusters": [{"name": "c", "cluster": {"server": f"http://{address}"}}],
                    "users": [{"name": "c", "user": {"token": "s3cret"}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
                }))  # fmt: skip
                cluster = KubernetesCluster(str(path))
                api = Api(ServerAccount(f"http://{address}", "token", access="s3cret"))
                with pytest.raises(CliError):
                    cluster.pools(None)
                with pytest.raises(UnreachableError, match="cannot forward to port 8000"):
                    cluster.open_port("system", "engineroom-api-0", 8000)
                with pytest.raises(UnreachableError):
                    api.get("/whoami")
                sent = [request.get("authorization") for request in asked]
                assert sent == ["Bearer s3cret"] * 3
    assert received == []
