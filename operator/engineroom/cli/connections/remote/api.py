"""Requests to the API process; its problem documents become errors of the command line."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engineroom import __version__
from engineroom.cli.connections.remote.credentials import AccountStore, ServerAccount
from engineroom.cli.errors import (
    CliError,
    ForbiddenError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    UsageError,
    program,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from engineroom.cli.connections.cluster import Cluster
    from engineroom.cli.connections.model import Document
    from engineroom.cli.connections.options import ConnectionOptions

BASE = "/api/v1"
#: Time-outs in seconds: of the connection, and of the response (an apply of 50 objects is slow).
_TIMEOUT = (5.0, 120.0)
#: An access token is renewed this many seconds before it expires.
_RENEW_EARLY = 30.0
#: Largest response that is read, in bytes.
_MAX_RESPONSE = 64 << 20


class Api:
    """A client of the API process for one account. All methods raise CliError."""

    def __init__(
        self,
        account: ServerAccount,
        store: AccountStore | None = None,
        *,
        now: Callable[[], float] = time.time,
        kube_token: Callable[[ServerAccount], str] | None = None,
    ) -> None:
        self.account = account
        self._store = store or AccountStore()
        self._now = now
        self._kube_token = kube_token or token_of_kubeconfig
        self._pool: Any = None

    @property
    def server(self) -> str:
        """URL of the API process."""
        return self.account.server

    def get(self, path: str, **query: object) -> Document:
        """Send GET and return the JSON response; parameters that are None, "" or 0 are omitted."""
        return self.request("GET", path, query=query)

    def post(
        self, path: str, body: Document | None = None, headers: Mapping[str, str] | None = None
    ) -> Document:
        """Send POST and return the JSON response."""
        return self.request("POST", path, body=body, headers=headers)

    def delete(self, path: str) -> None:
        """Send DELETE."""
        self.request("DELETE", path)

    def items(self, path: str, limit: int | None = None, **query: object) -> Iterator[Document]:
        """Yield the items of a list up to ``limit``, reading page by page."""
        cursor: str | None = None
        yielded = 0
        while True:
            page = self.get(path, cursor=cursor, limit=min(200, limit or 200), **query)
            for item in page["items"]:
                yield item
                yielded += 1
                if yielded == limit:
                    return
            cursor = page.get("nextCursor")
            if cursor is None:
                return

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: Document | None = None,
        headers: Mapping[str, str] | None = None,
        credentials: bool = True,
    ) -> Document:
        """Send one request below /api/v1; returns the JSON response, {} if it is empty."""
        status, data, reason = self._send(method, path, query, body, headers, credentials)
        if status == 401 and credentials and self.account.kind == "tokens":
            # The server may have revoked the token, or the clocks differ.
            self._renew_token(force=True)
            status, data, reason = self._send(method, path, query, body, headers, credentials)
        if not 200 <= status < 300:
            raise problem(status, data, reason, self.server)
        if not data:
            return {}
        try:
            document: Document = json.loads(data)
        except ValueError as error:
            raise UnreachableError(
                f"the server at {self.server} is not Engineroom's API",
                why="its response is not JSON",
                fix="check the URL; a proxy may answer in its place",
            ) from error
        return document

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None,
        body: Document | None,
        headers: Mapping[str, str] | None,
        credentials: bool,
    ) -> tuple[int, bytes, str]:
        from urllib.parse import quote, urlencode

        from urllib3.exceptions import HTTPError
        from urllib3.util import Timeout

        connect_timeout, read_timeout = _TIMEOUT
        parameters = {k: str(v) for k, v in (query or {}).items() if v not in (None, "", 0, False)}
        url = f"{BASE}{quote(path, safe='/:@+')}" + (
            f"?{urlencode(parameters)}" if parameters else ""
        )
        all_headers = {"Accept": "application/json", "User-Agent": f"engineroom-cli/{__version__}"}
        all_headers |= headers or {}
        if credentials:
            all_headers["Authorization"] = f"Bearer {self._token()}"
        data = None
        if body is not None:
            all_headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        try:
            # No redirects: a token must go only to the named server.
            response = self._connections().request(
                method, url, body=data, headers=all_headers, retries=False, redirect=False,
                timeout=Timeout(connect=connect_timeout, read=read_timeout), preload_content=False,
            )  # fmt: skip
            try:
                content = response.read(_MAX_RESPONSE)
            finally:
                response.release_conn()
        except (HTTPError, OSError) as error:
            raise self._unreachable(error) from error
        return int(response.status), bytes(content), str(response.reason or "")

    def _connections(self) -> Any:
        if self._pool is None:
            import ssl

            from urllib3 import connection_from_url

            options: dict[str, Any] = {}
            if self.server.startswith("https://"):
                try:
                    context = ssl.create_default_context(cafile=self.account.ca_file)
                except (OSError, ssl.SSLError) as error:
                    raise UsageError(
                        f"the CA file {self.account.ca_file} cannot be used",
                        why=str(error),
                        fix="give a file with PEM certificates with --ca-file",
                    ) from error
                options["ssl_context"] = context
            self._pool = connection_from_url(self.server, maxsize=2, **options)
        return self._pool

    def _unreachable(self, error: Exception) -> UnreachableError:
        why = " ".join(str(error).split())[:300]
        fix = "check the URL, and that the pods of the API are ready"
        if "CERTIFICATE_VERIFY_FAILED" in why:
            fix = "give the CA of its certificate with --ca-file; verification cannot be disabled"
        return UnreachableError(f"cannot reach the API at {self.server}", why=why, fix=fix)

    # -- credentials -----------------------------------------------------------------------------

    def _token(self) -> str:
        if self.account.kind == "kube":
            return self._kube_token(self.account)
        if self.account.kind == "tokens" and self.account.expires - self._now() < _RENEW_EARLY:
            self._renew_token()
        return self.account.access

    def _renew_token(self, *, force: bool = False) -> None:
        """Renew the tokens, or use those that another process has just renewed."""
        before = self.account
        with self._store.locked():
            stored = self._store.accounts().get(before.server)
            if stored is None or stored.kind != "tokens":
                raise _logged_out(before.server)
            stored = replace(stored, ca_file=before.ca_file)
            fresh = stored.expires - self._now() >= _RENEW_EARLY
            if fresh and (not force or stored.access != before.access):
                self.account = stored
                return
            try:
                pair = self.request(
                    "POST", "/tokens/refresh", body={"refresh": stored.refresh}, credentials=False
                )
            except ForbiddenError as error:
                raise _logged_out(before.server) from error
            self.account = replace(
                stored, access=pair["access"], refresh=pair["refresh"], expires=pair["expires"]
            )
            # Stored before its first use, because the old refresh token is already invalid.
            self._store.put(self.account)


def _logged_out(server: str) -> ForbiddenError:
    return ForbiddenError(
        f"your login at {server} has expired or was revoked",
        fix=f"`{program()} login --server {server}`",
    )


def token_of_kubeconfig(account: ServerAccount) -> str:
    """Return a fresh token of the account's kubeconfig."""
    from engineroom.cli.connections.kubernetes_cluster import KubernetesCluster

    return bearer(KubernetesCluster(account.kubeconfig, account.context))


def bearer(cluster: Cluster) -> str:
    """Return the bearer token of a kubeconfig. Raises ForbiddenError if it has none."""
    token = cluster.bearer()
    if token is None:
        raise ForbiddenError(
            "your kubeconfig has no token that could be sent to the API",
            why="a client certificate authenticates you only to the Kubernetes API server",
            fix=f"`kubectl create token SERVICEACCOUNT | {program()} login --server URL "
            "--token-stdin`, or log in with name and password",
        )
    return token


_BY_CATEGORY: dict[str, type[CliError]] = {
    "validation": UsageError,
    "authentication": ForbiddenError,
    "permission": ForbiddenError,
    "not_found": NotFoundError,
    "conflict": RefusedError,
    "limit": RefusedError,
    "dependency": UnreachableError,
    "transient": UnreachableError,
}


def problem(status: int, data: bytes, reason: str, server: str) -> CliError:
    """Return a problem document (RFC 9457) as an error with cause and fix."""
    try:
        document = json.loads(data)
    except ValueError:
        document = None
    if not isinstance(document, dict) or not isinstance(document.get("code"), str):
        return UnreachableError(
            f"{server} answered {status} {reason}".rstrip(),
            why=data[:200].decode(errors="replace").strip(),
            fix="check the URL; a proxy may answer in place of Engineroom's API",
        )
    code, detail = document["code"], str(document.get("detail") or document.get("title") or "")
    kind = _BY_CATEGORY.get(str(document.get("category")), CliError)
    errors = [error for error in document.get("errors") or () if isinstance(error, dict)]
    fix = ""
    if errors:
        what = f"{len(errors)} to correct [{code}]"
        why = "\n       ".join(
            f"{e.get('field')}: {e.get('problem')}; {e.get('fix')}" for e in errors
        )
    else:
        what, _, why = detail.partition("; ")
        what = f"{what} [{code}]"
        fix, why = why, ""
    if status == 401:
        fix = f"`{program()} login --server {server}`"
    elif document.get("retry_after"):
        fix = f"try again in {document['retry_after']} s"
    elif kind is UnreachableError and not fix:
        fix = "try again"
    error = kind(what, why=why, fix=fix)
    error.context = {"code": code, "status": status, "retry_after": document.get("retry_after")}
    return error


def open_api(shared: ConnectionOptions, store: AccountStore | None = None) -> Api:
    """Return the API that a command's options select. Raises UsageError if they select none."""
    from engineroom.cli.connections.remote.credentials import account_of, selected_server

    server = selected_server(shared, store)
    if server is None:
        raise UsageError(
            "this command needs the API process, and no server is selected",
            fix=f"run `{program()} login --server URL` once, or give --server",
        )
    return Api(account_of(server, shared, store), store)
