"""A real Redis, real workers of one version of RQ, and what tests do to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from engineroom.queue import keys
from tests.support import ROOT, RedisServer, coverage_environment

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
POOL = "apps/mail"


def eventually(check: Callable[[], Any], what: str, seconds: float = 15) -> Any:
    """The first true value of ``check``; fails the test after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            message = f"not within {seconds} s: {what}"
            raise AssertionError(message)
        time.sleep(0.02)


class WorkerProcess:
    """One worker of the runtime, with its record in Redis."""

    def __init__(self, lab: Lab, pod: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self._lab = lab
        self.pod = pod
        self.process = process
        self.log = log

    @property
    def name(self) -> str:
        """The worker's name, once it is born."""

        def find() -> str | None:
            assert self.process.poll() is None, self.log.read_text()
            names = self._lab.redis.smembers(keys.pool_workers(POOL))
            mine = [name.decode() for name in names if name.decode().startswith(f"{self.pod}.")]
            return mine[0] if mine else None

        return str(eventually(find, f"a worker of pod {self.pod}"))

    def record(self) -> dict[str, str]:
        """The worker's hash."""
        hash_ = self._lab.redis.hgetall(keys.worker(self.name))
        return {key.decode(): value.decode() for key, value in hash_.items()}

    def field(self, name: str, value: str, seconds: float = 15) -> None:
        """Wait until a field of the record has a value."""
        eventually(lambda: self.record().get(name) == value, f"{name}={value}", seconds)

    def signal(self, number: int) -> None:
        """Send a signal to the worker."""
        self.process.send_signal(number)

    def stopped(self, point: str) -> int:
        """Wait until some process of the worker has stopped at the point; its pid."""
        marker = self._lab.directory / f"{self.pod}" / f"stopped-{point}"
        eventually(marker.exists, f"stop at {point}; {self.log.read_text()[-2000:]}")
        pid = int(marker.read_text())
        eventually(lambda: _state(pid) in ("T", "t"), f"{pid} to be stopped")
        return pid

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait(10)

    def end(self, seconds: float = 10) -> int:
        """SIGTERM and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.process.send_signal(signal.SIGCONT)
        return self.process.wait(seconds)


class Lab:
    """Everything that a test of the runtime needs; ``close`` ends all that it started."""

    def __init__(self, python: str, directory: Path, *, durable: bool = False) -> None:
        self.python = python
        self.directory = directory
        self.server = RedisServer(durable=durable)
        self.server.start()
        self.redis: Any = redis.Redis(port=self.server.port)
        self.workers: list[WorkerProcess] = []
        self._client: subprocess.Popen[str] | None = None

    def worker(
        self, pod: str = "pod-1", queues: tuple[str, ...] = ("default",), **settings: Any
    ) -> WorkerProcess:
        """Start a worker; lower-case settings go to the test's wrapper, others are environment."""
        home = self.directory / pod
        home.mkdir(exist_ok=True)
        options = {name: settings.pop(name) for name in list(settings) if not name.isupper()}
        options.update(
            {
                name: settings.pop(name)
                for name in ("EXECUTION_TTL", "STRAY_SECONDS", "LOCK_SECONDS", "SETTLING_SECONDS")
                if name in settings
            }
        )
        environment = {
            **_plain_environment(),
            "PYTHONPATH": f"{ROOT / 'operator'}:{HERE}:{ROOT}",
            "ENGINEROOM_REDIS_URL": self.server.url,
            "ENGINEROOM_POOL": POOL,
            "ENGINEROOM_POD_NAME": pod,
            "ENGINEROOM_POD_UID": f"uid-{pod}",
            "ENGINEROOM_QUEUES": json.dumps(
                [{"name": name, "priority": -at} for at, name in enumerate(queues)]
            ),
            **{f"ENGINEROOM_{name}": str(value) for name, value in settings.items()},
        }
        log = home / "log"
        options["directory"] = str(home)
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [self.python, str(HERE / "runtime_worker.py"), json.dumps(options)],
                env=environment,
                stdout=stream,
                stderr=stream,
            )
        worker = WorkerProcess(self, pod, process, log)
        self.workers.append(worker)
        return worker

    def enqueue(self, func: str, *args: Any, queue: str = "default", **options: Any) -> str:
        """Enqueue with the workers' RQ; the job's id."""
        return str(self.ask("enqueue", queue=queue, func=func, args=list(args), **options))

    def describe(self, job: str, **options: Any) -> dict[str, Any]:
        """The job as RQ reads it."""
        answer = self.ask("describe", job=job, **options)
        assert isinstance(answer, dict)
        return answer

    def status(self, job: str) -> str:
        """The job's status, empty when it is gone."""
        return (self.redis.hget(keys.job(job), "status") or b"").decode()

    def becomes(self, job: str, status: str, seconds: float = 15) -> None:
        """Wait until the job has the status."""
        eventually(
            lambda: self.status(job) == status,
            f"{job} {status}, is {self.status(job)}; {self._logs()}",
            seconds,
        )

    def ran(self, what: str = "ran") -> list[str]:
        """Ids of jobs that said so, in order."""
        return [each.decode() for each in self.redis.lrange(f"test:{what}", 0, -1)]

    def traces(self) -> dict[str, list[str]]:
        """Keys that no job may leave behind."""
        patterns = ("rq:wip:*", "rq:execution:*", "rq:queue:*:intermediate", "rq:executions:*")
        found = {
            pattern: [key.decode() for key in self.redis.scan_iter(pattern, count=1000)]
            for pattern in patterns
        }
        return {pattern: names for pattern, names in found.items() if names}

    def ask(self, do: str, **request: Any) -> Any:
        """Have the client of the workers' RQ version do something."""
        if self._client is None:
            self._client = subprocess.Popen(
                [self.python, str(HERE / "runtime_client.py"), self.server.url],
                env={**_plain_environment(), "PYTHONPATH": str(HERE)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        self._client.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self._client.stdin.flush()
        answer = json.loads(self._client.stdout.readline())
        assert "error" not in answer, answer
        return answer["ok"]

    @property
    def lock_seconds(self) -> float:
        """How long nobody may promote after the holder of RQ's scheduler lock was killed.

        The first RQ 2 does not say in the lock who holds it: it has to expire.
        """
        return 8 if self.ask("names_schedulers") else 80

    def reset(self) -> None:
        """End the workers and forget all data, for the next test."""
        self._end_workers()
        if not self.server.running:
            self.server.start()
        self.redis.flushall()
        for path in sorted(self.directory.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()

    def close(self) -> None:
        """End every process and Redis."""
        self._end_workers()
        if self._client is not None:
            assert self._client.stdin is not None
            assert self._client.stdout is not None
            self._client.stdin.close()
            self._client.wait(10)
            self._client.stdout.close()
        self.redis.close()
        self.server.close()

    def _end_workers(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()
        self.workers.clear()

    def _logs(self) -> str:
        return "".join(worker.log.read_text()[-1500:] for worker in self.workers)


def _plain_environment() -> dict[str, str]:
    plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return plain | coverage_environment()


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
