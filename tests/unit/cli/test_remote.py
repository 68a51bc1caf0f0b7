"""Which server, as whom, and what its answers mean to people."""

from __future__ import annotations

import http.server
import json
import os
import socket
import ssl
import stat
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.cli.commands.access.ui import ui
from engineroom.cli.connections.manifest_files import gather, namespace_of
from engineroom.cli.connections.options import ConnectionOptions
from engineroom.cli.connections.port_forward import PortForward
from engineroom.cli.connections.remote.api import Api, problem
from engineroom.cli.connections.remote.cluster import ApiCluster, labels_of
from engineroom.cli.connections.remote.credentials import (
    AccountStore,
    ServerAccount,
    account_of,
    checked_url,
    selected_server,
)
from engineroom.cli.errors import (
    CliError,
    ExitCode,
    ForbiddenError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from engineroom.core.error_responses import problem_document
from engineroom.core.errors import Category, EngineroomError
from tests.cluster.certificates import Authority

from .memory import MemoryCluster, Trial

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SERVER", "TOKEN", "CA_FILE"):
        monkeypatch.delenv(f"ENGINEROOM_{name}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


# -- which server -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "is_"),
    [
        ("https://Engineroom.Example", "https://engineroom.example"),
        ("https://x.example:8443/", "https://x.example:8443"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_urls_have_one_form(said: str, is_: str) -> None:
    assert checked_url(said) == is_


@pytest.mark.parametrize(
    "said",
    [
        "http://x.example", "ftp://x", "x.example", "https://", "https://u:p@x", "https://x/path",
        "https://x?a=1", "https://x#a", "https://x:port", "http://127.0.0.1.evil.example", "",
        "http://localhost.evil.example", "https://[::1",
    ],
)  # fmt: skip
def test_what_is_no_url_of_a_server_is_refused_and_not_repeated(said: str) -> None:
    with pytest.raises(UsageError) as caught:
        checked_url(said)
    assert "u:p" not in str(caught.value)


def test_the_way_is_chosen_by_what_stands_closest(monkeypatch: pytest.MonkeyPatch) -> None:
    store = AccountStore()
    assert selected_server(ConnectionOptions()) is None
    with store.locked():
        store.put(ServerAccount("https://login", "token", access="x"), choose=True)
    assert selected_server(ConnectionOptions()) == "https://login"
    monkeypatch.setenv("ENGINEROOM_SERVER", "https://variable")
    assert selected_server(ConnectionOptions()) == "https://variable"
    assert selected_server(ConnectionOptions(server="https://option")) == "https://option"
    assert selected_server(ConnectionOptions(kube_context="kind")) is None
    assert selected_server(ConnectionOptions(kubeconfig="file")) is None
    with pytest.raises(UsageError, match="exclude"):
        selected_server(ConnectionOptions(server="https://option", kube_context="kind"))


def test_who_asks_is_the_variable_before_the_login(monkeypatch: pytest.MonkeyPatch) -> None:
    store = AccountStore()
    with pytest.raises(ForbiddenError, match="not logged in"):
        account_of("https://x", ConnectionOptions())
    with store.locked():
        store.put(ServerAccount("https://x", "tokens", access="a", refresh="r", expires=5.0))
    assert account_of("https://x", ConnectionOptions(ca_file="/ca")).ca_file == "/ca"
    monkeypatch.setenv("ENGINEROOM_TOKEN", "key\n")
    assert account_of("https://x", ConnectionOptions()).access == "key"


def test_the_file_is_the_owners_and_secrets_are_in_no_repr() -> None:
    store = AccountStore()
    account = ServerAccount("https://x", "tokens", access="s3cret", refresh="r3fresh", expires=5.0)
    with store.locked():
        store.put(account)
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    assert store.accounts() == {"https://x": account}
    assert "s3cret" not in repr(account)
    assert "r3fresh" not in repr(account)
    for broken in ("[]", "{", '{"servers": 1}', '{"servers": {"x": {"kind": "y"}}}'):
        store.path.write_text(broken)
        with pytest.raises(UsageError):
            store.accounts()


# -- what answers mean --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("category", "kind", "code"),
    [
        (Category.VALIDATION, UsageError, ExitCode.USAGE),
        (Category.AUTHENTICATION, ForbiddenError, ExitCode.FORBIDDEN),
        (Category.PERMISSION, ForbiddenError, ExitCode.FORBIDDEN),
        (Category.NOT_FOUND, NotFoundError, ExitCode.NOT_FOUND),
        (Category.CONFLICT, RefusedError, ExitCode.PROBLEM),
        (Category.LIMIT, RefusedError, ExitCode.PROBLEM),
        (Category.DEPENDENCY, UnreachableError, ExitCode.UNREACHABLE),
        (Category.TRANSIENT, UnreachableError, ExitCode.UNREACHABLE),
        (Category.PERMANENT, CliError, ExitCode.PROBLEM),
        (Category.BUG, CliError, ExitCode.PROBLEM),
    ],
)
def test_every_category_of_the_server_has_its_exit_code(
    category: Category, kind: type[CliError], code: ExitCode
) -> None:
    error = type("Made", (EngineroomError,), {"code": "made", "category": category})("what; fix")
    body = json.dumps(problem_document(error).body).encode()
    found = problem(400, body, "", "https://x")
    assert type(found) is kind
    assert found.exit_code is code
    assert "[made]" in found.what


@given(st.binary(max_size=300), st.integers(100, 599))
def test_any_answer_at_all_is_an_error_and_no_crash(data: bytes, status: int) -> None:
    assert isinstance(problem(status, data, "Reason", "https://x"), CliError)


class Server(http.server.BaseHTTPRequestHandler):
    """Sends everybody elsewhere, and notes what it was shown."""

    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("authorization", ""))
        self.send_response(302)
        self.send_header("location", "https://evil.example/")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    seen: list[str] = []
    handler = type("Handler", (Server,), {"seen": seen})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}", seen
        running.shutdown()
        thread.join()


def test_a_token_goes_nowhere_else(server: tuple[str, list[str]]) -> None:
    url, seen = server
    with pytest.raises(UnreachableError, match="302"):
        Api(ServerAccount(url, "token", access="s3cret")).get("/whoami")
    assert seen == ["Bearer s3cret"]


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers with an empty object, and what it is sent with the same."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def do_POST(self) -> None:
        said = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    "path",
    ["@other.example/sign-in#code", ".other.example/sign-in#code", "/sign-in#a\"><script>", "/x",
     "/sign-in#", "//other.example/sign-in#code", None],
)  # fmt: skip
def test_a_sign_in_link_leads_to_the_servers_own_page_only(path: str | None) -> None:
    class Links(Answers):
        def do_POST(self) -> None:
            body = json.dumps({"path": path}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Links) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            trial = Trial(MemoryCluster())
            url = f"http://127.0.0.1:{running.server_address[1]}"
            connections = trial.context.connections
            connections.options = ConnectionOptions(server=url)
            connections.connect_api = lambda _: Api(ServerAccount(url, "token", access="x"))
            with pytest.raises(UnreachableError, match="its own sign-in page"):
                ui(trial.context, no_browser=True)
            assert trial.out == ""
        finally:
            running.shutdown()
            thread.join()


def test_an_answer_may_take_longer_than_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Answers):
        def do_GET(self) -> None:
            answering.wait(10)
            super().do_GET()

    answering = threading.Event()
    monkeypatch.setattr("engineroom.cli.connections.remote.api._TIMEOUT", (0.2, 10.0))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        later = threading.Timer(0.5, answering.set)
        later.start()
        try:
            url = f"http://127.0.0.1:{running.server_address[1]}"
            assert Api(ServerAccount(url, "token", access="x")).get("/whoami") == {}
        finally:
            later.cancel()
            answering.set()
            running.shutdown()
            thread.join()


def test_certificates_are_verified_by_the_ca_that_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    authority.ensure()
    certificate, key = authority.issue("server", "localhost", hosts=["DNS:localhost"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        running.socket = context.wrap_socket(running.socket, server_side=True)
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            port = running.server_address[1]
            known = ServerAccount(
                f"https://localhost:{port}", "token", access="x", ca_file=str(authority.certificate)
            )
            assert Api(known).get("/whoami") == {}
            # Nobody vouches for it; somebody does, for another name; the file is none.
            with pytest.raises(UnreachableError, match="--ca-file"):
                Api(replace(known, ca_file=None)).get("/whoami")
            with pytest.raises(UnreachableError, match="--ca-file"):
                Api(replace(known, server=f"https://127.0.0.1:{port}")).get("/whoami")
            with pytest.raises(UsageError, match="CA file"):
                Api(replace(known, ca_file=str(key))).get("/whoami")
        finally:
            running.shutdown()
            thread.join()


# -- the rest of the way --------------------------------------------------------------------------


def test_what_the_api_has_no_route_for_names_the_way_round() -> None:
    cluster = ApiCluster(Api(ServerAccount("https://x", "token")))
    for work in (
        lambda: cluster.pods(None),
        lambda: cluster.pools(None),
        lambda: cluster.installation(),
        lambda: cluster.open_port("a", "b", 1),
        lambda: cluster.bearer(),
    ):
        with pytest.raises(UsageError, match="--context"):
            work()


def test_selectors_are_of_equality_alone() -> None:
    assert labels_of("app=mail, tier==one") == {"app": "mail", "tier": "one"}
    assert labels_of(None) == {}
    for said in ("app", "app!=x", "app in (a,b)"):
        with pytest.raises(UsageError):
            labels_of(said)


def test_manifests_keep_the_lines_of_their_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1\n---\nb: 1\n")
    (tmp_path / "b.yml").write_text("# c\nc: 1")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "d.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("x")
    found = gather([str(tmp_path)])
    assert found.text == "a: 1\n---\nb: 1\n---\n# c\nc: 1\n"
    assert found.in_files("document at line 6: x") == f"{tmp_path}/b.yml, document at line 2: x"
    assert found.in_files("document at line 3: x") == f"{tmp_path}/a.yaml, document at line 3: x"
    assert "{}" in gather([str(tmp_path)], recursive=True).text
    for bad in ([str(tmp_path / "nothing")], [str(tmp_path / "below" / "x")], []):
        with pytest.raises(UsageError):
            gather(bad)
    (tmp_path / "big.yaml").write_text("x" * 600_000)
    with pytest.raises(UsageError, match="one transaction"):
        gather([str(tmp_path)])
    (tmp_path / "big.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="UTF-8"):
        gather([str(tmp_path)])


def test_the_namespace_is_the_one_that_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("metadata: {namespace: shop}\n---\nmetadata: {name: x}\n---\n- 1\n")
    assert namespace_of(gather([str(file)]), None) == "shop"
    assert namespace_of(gather([str(file)]), "other") == "other"
    file.write_text("metadata: {namespace: shop}\n---\nmetadata: {namespace: mail}\n")
    with pytest.raises(UsageError, match="mail, shop"):
        namespace_of(gather([str(file)]), None)
    file.write_text("a: 1\n")
    assert namespace_of(gather([str(file)]), None) is None


def test_a_forwarded_port_carries_both_ways_and_listens_to_this_machine_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as behind:

        def echo() -> None:
            for _ in range(3):
                far, _ = behind.accept()
                with far:
                    while data := far.recv(65_536):
                        far.sendall(data.upper())

        thread = threading.Thread(target=echo)
        thread.start()
        with PortForward(lambda: socket.create_connection(behind.getsockname())) as way:
            host, _, port = way.url.removeprefix("http://").partition(":")
            assert host == "127.0.0.1"
            for _ in range(3):
                with socket.create_connection((host, int(port))) as near:
                    near.sendall(b"x" * 300_000)
                    near.shutdown(socket.SHUT_WR)
                    got = b"".join(iter(lambda: near.recv(65_536), b""))
                assert got == b"X" * 300_000
        thread.join()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((host, int(port)))


def fetched(url: str, body: bytes) -> bytes:
    request = urllib.request.Request(f"{url}/echo", data=body)  # noqa: S310
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
        return bytes(answer.read())


def test_tls_of_the_pod_is_undone_inside_the_tunnel(tmp_path: Path) -> None:
    """Also of many connections, each of which is read and written at once."""
    body = os.urandom(1 << 20)
    authority = Authority(tmp_path / "ca")
    authority.ensure()
    certificate, key = authority.issue("server", "api", hosts=["DNS:engineroom-api.svc"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        running.socket = context.wrap_socket(running.socket, server_side=True)
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            address = ("127.0.0.1", running.server_address[1])
            with PortForward(lambda: socket.create_connection(address), tls=True) as way:
                assert Api(ServerAccount(way.url, "token", access="x")).get("/whoami") == {}
                with ThreadPoolExecutor(8) as threads:
                    asked = [threads.submit(fetched, way.url, body) for _ in range(40)]
                    assert all(entry.result() == body for entry in asked)
        finally:
            running.shutdown()
            thread.join()


def test_a_way_that_fails_says_why() -> None:
    def refused() -> Any:
        raise ForbiddenError("you may not forward")

    with PortForward(refused) as way:
        port = int(way.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as near:
            assert near.recv(1) == b""
        assert "may not forward" in str(way.failure)
