"""The decision service as a process, and policies published for it as the controller does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineroom.core.serving.connection_budget import BudgetLimits, ConnectionBudget
from engineroom.ratelimit.distribution import redis_schema
from engineroom.ratelimit.distribution.document import (
    CompiledPolicy,
    Target,
    part_hash,
    part_of,
    render_document,
)
from tests.support import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import redis

    from engineroom.ratelimit.limits.model import Policy

NAMESPACE = "shop"


def compiled(policy: Policy, targets: Sequence[Target] = ()) -> CompiledPolicy:
    """A policy as the controller compiles it; its name is namespace/name."""
    namespace, _, name = policy.name.partition("/")
    return CompiledPolicy(namespace, name, policy, tuple(targets), {})


def publish(client: redis.Redis, entries: Sequence[CompiledPolicy], revision: int = 1) -> None:
    """Put policies of one namespace where enforcers follow them, and tell them."""
    namespace = entries[0].namespace if entries else NAMESPACE
    parts = [(part, part_hash(part)) for part in map(part_of, entries)]
    document = render_document(namespace, parts, revision=revision, lineage="test", before={})
    keys = redis_schema.keys_of(namespace)
    before = client.get(keys.head) or ""
    before = before.decode() if isinstance(before, bytes) else before
    head = redis_schema.head_text(document.hash, document.revision, document.lineage)
    done: Any = client.eval(
        redis_schema.REPLACE_DOCUMENT.source,
        3,
        keys.document,
        keys.head,
        keys.changes,
        before,
        head,
        document.text,
        0,
    )
    assert int(done) == 1


def budget(connections: int = 10_000, held_bytes: int = 64 * 2**20) -> ConnectionBudget:
    """Return the budget of a service, the same for one address as for all."""
    return ConnectionBudget(BudgetLimits(connections, connections, held_bytes, held_bytes))


class LimiterProcess:
    """``engineroom-limiter`` on free ports."""

    def __init__(self, redis_url: str, log: Path, **settings: str) -> None:
        self.http_port, self.grpc_port, self.admin_port = free_port(), free_port(), free_port()
        self._log = log
        self._environment = os.environ | {
            "ENGINEROOM_LIMITER_REDIS_URL": redis_url,
            "ENGINEROOM_LIMITER_HOST": "127.0.0.1",
            "ENGINEROOM_LIMITER_HTTP_PORT": str(self.http_port),
            "ENGINEROOM_LIMITER_GRPC_PORT": str(self.grpc_port),
            "ENGINEROOM_LIMITER_ADMIN_PORT": str(self.admin_port),
            "ENGINEROOM_LIMITER_LOG_FORMAT": "json",
            **{f"ENGINEROOM_LIMITER_{name.upper()}": value for name, value in settings.items()},
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id. Raises RuntimeError when it does not run."""
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"the limiter does not run:\n{self.tail()}")
        return self._process.pid

    @property
    def url(self) -> str:
        """The URL of HTTP."""
        return f"http://127.0.0.1:{self.http_port}"

    def start(self, seconds: float = 20) -> None:
        """Start it; returns when it is ready."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "engineroom.ratelimit.service.main"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + seconds
        while self.admin("/readyz")[0] != 200:
            assert self.pid
            if time.monotonic() > deadline:
                raise TimeoutError(f"the limiter is not ready:\n{self.tail()}")
            time.sleep(0.02)

    def admin(self, target: str) -> tuple[int, str]:
        """Status and body from its port of probes and metrics; 0 without an answer."""
        return get(f"http://127.0.0.1:{self.admin_port}{target}")

    def ready(self) -> dict[str, Any]:
        """Return its readiness."""
        actual: dict[str, Any] = json.loads(self.admin("/readyz")[1])
        return actual

    def terminate(self) -> None:
        """Begin to end it as Kubernetes does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def stop(self, seconds: float = 15) -> int:
        """End it as Kubernetes does; its exit code."""
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            self._process = None

    def kill(self) -> None:
        """End it as a fault does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def memory(self) -> int:
        """Return its resident memory in bytes."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def processor(self) -> float:
        """Seconds of processor time that it and its processes used."""
        total = 0.0
        for pid in (self.pid, *_children(self.pid)):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return total

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self._log.read_text().splitlines()[-lines:])
        return ""


@contextlib.contextmanager
def limiter_process(redis_url: str, folder: Path, **settings: str) -> Iterator[LimiterProcess]:
    """A running service, ended with the block."""
    process = LimiterProcess(redis_url, folder / "limiter.log", **settings)
    try:
        process.start()
        yield process
    finally:
        process.stop()


def get(url: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Status and body; 0 without an answer."""
    request = urllib.request.Request(url, headers=headers or {})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=90) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def peek(limiter: LimiterProcess, name: str, request: Mapping[str, object]) -> Mapping[str, Any]:
    """Return a policy's explanation of a request; empty while the policy is unknown."""
    namespace, _, policy = name.partition("/")
    query = {"namespace": namespace, "policy": policy, "cost": 0, "request": dict(request)}
    sent = urllib.request.Request(  # noqa: S310
        f"{limiter.url}/v1/decide", data=json.dumps(query).encode(), method="POST"
    )
    try:
        with urllib.request.urlopen(sent, timeout=90) as answer:  # noqa: S310
            actual: Mapping[str, Any] = json.loads(answer.read())
            return actual
    except OSError:
        return {}


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(entry) for entry in text.split()]
