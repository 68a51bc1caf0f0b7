"""The credentials file of `engineroom login`, readable by its owner alone.

``$XDG_CONFIG_HOME/engineroom/credentials.json`` is replaced as a whole, under a lock. A refresh
token can be used once: of two programs that refresh at the same time, the second one reads the
tokens of the first.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from engineroom.cli.errors import ForbiddenError, UsageError, program

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from engineroom.cli.connections.options import ConnectionOptions

SERVER, TOKEN, CA_FILE = "ENGINEROOM_SERVER", "ENGINEROOM_TOKEN", "ENGINEROOM_CA_FILE"  # nosec B105
#: Longer ones are no credentials of ours.
MAX_FILE = 1 << 20
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

Kind = Literal["token", "tokens", "kube"]


@dataclass(frozen=True, slots=True)
class ServerAccount:
    """An account at one server.

    ``token``: a token or API key that was given. ``tokens``: those of a sign-in, refreshed when
    they are due. ``kube``: no secret at all; the kubeconfig's own token is asked for each time.
    """

    server: str
    kind: Kind
    subject: str = ""
    ca_file: str | None = None
    namespace: str | None = None
    access: str = field(default="", repr=False)
    refresh: str = field(default="", repr=False)
    #: When ``access`` expires (Unix seconds).
    expires: float = 0.0
    kubeconfig: str | None = None
    context: str | None = None


_FIELDS = frozenset(field.name for field in fields(ServerAccount)) - {"server"}


class AccountStore:
    """The file. A missing one is an empty one."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()

    def accounts(self) -> dict[str, ServerAccount]:
        """Every account by its server. Raises UsageError for a file that cannot be used."""
        return {
            server: ServerAccount(server, **{k: v for k, v in values.items() if k in _FIELDS})
            for server, values in self._read().get("servers", {}).items()
        }

    def current(self) -> str | None:
        """The server that the last login chose."""
        return self._read().get("current")

    def put(self, account: ServerAccount, *, choose: bool = False) -> None:
        """Keep an account; under ``locked`` only."""
        document = self._read()
        values = {k: v for k, v in asdict(account).items() if k != "server" and v not in (None, "")}
        document.setdefault("servers", {})[account.server] = values
        if choose:
            document["current"] = account.server
        self._write(document)

    def drop(self, server: str) -> None:
        """Forget an account; under ``locked`` only."""
        document = self._read()
        document.get("servers", {}).pop(server, None)
        if document.get("current") == server:
            del document["current"]
        self._write(document)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the file for a change; others wait."""
        import fcntl

        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _read(self) -> dict[str, Any]:
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or status.st_uid != os.geteuid():
                    raise UsageError(
                        f"{self.path} can be read by others",
                        why="it holds credentials",
                        fix=f"`chmod 600 {self.path}`, and log in again if others may have read it",
                    )
                document = json.loads(file.read(MAX_FILE))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(
                f"{self.path} cannot be read",
                why=type(error).__name__,
                fix=f"remove it and `{program()} login` again",
            ) from error
        if not isinstance(document, dict) or not _sound(document):
            raise UsageError(
                f"{self.path} is not what login writes",
                fix=f"remove it and `{program()} login` again",
            )
        return document

    def _write(self, document: Mapping[str, Any]) -> None:
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=".credentials-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(document, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self.path)
        except BaseException:
            Path(name).unlink()
            raise


def _sound(document: Mapping[str, Any]) -> bool:
    servers = document.get("servers", {})
    return isinstance(servers, dict) and all(
        isinstance(value, dict) and value.get("kind") in ("token", "tokens", "kube")
        for value in servers.values()
    )


def default_path() -> Path:
    """Return the default path of the file."""
    base = os.environ.get("XDG_CONFIG_HOME") or ""
    root = Path(base) if base.startswith("/") else Path("~/.config").expanduser()
    return root / "engineroom" / "credentials.json"


def checked_url(url: str) -> str:
    """The URL of a server in one form. Raises UsageError for what cannot be one.

    Without TLS only to this machine: a token must not go over a network in the clear.
    """
    problem = ""
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").lower()
        if parts.scheme not in ("https", "http") or not host:
            problem = "it is not https://HOST"
        elif parts.username or parts.password:
            problem = "credentials do not belong into it"
        elif parts.path.strip("/") or parts.query or parts.fragment:
            problem = "there is something behind the host"
        elif parts.scheme == "http" and host not in _LOOPBACK:
            problem = "without TLS everybody on the way could read your token"
    except ValueError:
        problem = "its port is no number"
    if problem:
        raise UsageError(
            "the server's URL cannot be used",
            why=problem,
            fix="write https://HOST[:PORT], without anything behind it",
        )
    name = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{name}{f':{port}' if port else ''}"


def selected_server(shared: ConnectionOptions, store: AccountStore | None = None) -> str | None:
    """The server that a command goes to; None where it goes by the kubeconfig.

    --server before --context and --kubeconfig, before ENGINEROOM_SERVER, before the last login.
    """
    if shared.server:
        if shared.kube_context or shared.kubeconfig:
            raise UsageError(
                "--server and --context or --kubeconfig exclude each other",
                why="one leads to the API process, the others to the cluster",
                fix="leave out one of them",
            )
        return checked_url(shared.server)
    if shared.kube_context or shared.kubeconfig:
        return None
    if named := os.environ.get(SERVER):
        return checked_url(named)
    return (store or AccountStore()).current()


def server_of(shared: ConnectionOptions, store: AccountStore) -> str | None:
    """The server that `login` and `logout` mean, whatever else of a cluster is named."""
    named = shared.server or os.environ.get(SERVER)
    return checked_url(named) if named else store.current()


def account_of(
    server: str, shared: ConnectionOptions, store: AccountStore | None = None
) -> ServerAccount:
    """Return the account for the server. Raises ForbiddenError if not logged in."""
    ca_file = shared.ca_file or os.environ.get(CA_FILE) or None
    if token := os.environ.get(TOKEN):
        return ServerAccount(server, "token", ca_file=ca_file, access=token.strip())
    account = (store or AccountStore()).accounts().get(server)
    if account is None:
        raise ForbiddenError(
            f"you are not logged in at {server}",
            fix=f"`{program()} login --server {server}`, or give a token or key in {TOKEN}",
        )
    if ca_file is None:
        return account
    from dataclasses import replace

    return replace(account, ca_file=ca_file)
