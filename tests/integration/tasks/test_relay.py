"""The relay as a process: probes, outages of both sides, SIGTERM and SIGKILL, two at once."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import yaml
from redis import Redis

from engineroom import relay
from engineroom.tasks import Task
from engineroom.tasks.outbox import TABLE, add
from tests.integration.runtime.lab import eventually
from tests.integration.tasks.work import add as plus
from tests.support import ROOT, RedisServer, free_port, redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import psycopg

    from engineroom.tasks import Tasks


class Process:
    """One relay; ended by force if a test leaves it running."""

    def __init__(self, folder: Path, database: str, redis: str, *more: str) -> None:
        self.port = free_port()
        for name, url in (("database", database), ("redis", redis)):
            (folder / name).write_text(f"{url}\n")
        self.log = folder / f"relay-{self.port}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "engineroom.relay",
                    "--database-url-file", str(folder / "database"),
                    "--redis-url-file", str(folder / "redis"),
                    "--host", "127.0.0.1", "--port", str(self.port), *more,
                ],
                stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT / "operator")},
            )  # fmt: skip

    def asked(self, path: str) -> tuple[int, str]:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def ready(self) -> bool:
        return self.asked("/readyz")[0] == 200

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture
def start(tmp_path: Path, address: str, server: RedisServer) -> Iterator[Any]:
    running: list[Process] = []

    def begin(*more: str, database: str = address, redis: str = server.url) -> Process:
        running.append(Process(tmp_path, database, redis, *more))
        return running[-1]

    yield begin
    for each in running:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


def queued(redis: Redis) -> list[str]:
    return [each.decode() for each in redis.lrange("rq:queue:default", 0, -1)]


def test_two_relays_carry_each_job_once_though_one_is_killed(
    redis: Redis, database: psycopg.Connection[Any], start: Any, tasks: Tasks
) -> None:
    first, second = start(), start()
    eventually(first.ready, "one to be ready")
    eventually(second.ready, "both to be ready")
    expected = []
    for number in range(600):
        expected.append(add(database, tasks, Task(plus, (number,))))
        if number == 250:
            assert first.end(signal.SIGKILL) == -signal.SIGKILL
    eventually(lambda: redis.llen("rq:queue:default") >= 600, "all to be carried")
    eventually(lambda: not database.execute("SELECT 1 FROM engineroom_outbox").fetchall(), "none")
    assert sorted(queued(redis)) == sorted(expected)
    _, metrics = second.asked("/metrics")
    written = re.search(
        r'^engineroom_outbox_jobs_total\{outcome="written"\} (\S+)', metrics, re.MULTILINE
    )
    assert written is not None
    assert 300 < float(written[1]) <= 600
    assert second.end() == relay.EXIT_OK


def test_a_committed_job_is_there_at_once(
    redis: Redis, database: psycopg.Connection[Any], start: Any, tasks: Tasks
) -> None:
    process = start("--poll", "0.05")
    eventually(process.ready, "it to be ready")
    waits = []
    for number in range(15):
        began = time.monotonic()
        add(database, tasks, Task(plus, (number,)))
        while redis.llen("rq:queue:default") <= number:
            assert time.monotonic() - began < 10
            time.sleep(0.002)
        waits.append(time.monotonic() - began)
    assert sorted(waits)[len(waits) // 2] < 0.5


def test_outages_of_redis_are_waited_for(
    tmp_path: Path, database: psycopg.Connection[Any], start: Any, tasks: Tasks
) -> None:
    with redis_server(durable=True) as its_own:
        process = start(redis=its_own.url)
        eventually(process.ready, "it to be ready")
        its_own.stop()
        job = add(database, tasks, Task(plus, (1,)))
        eventually(lambda: process.asked("/readyz")[0] == 503, "it to say so")
        assert "Redis" in process.asked("/readyz")[1]
        # A restart would not help.
        assert process.asked("/healthz")[0] == 200
        # Nor does it hold its row while it waits.
        eventually(lambda: free(database), "the row to be free")
        its_own.start()
        eventually(process.ready, "it to be ready again")
        with contextlib.closing(Redis(port=its_own.port)) as client:
            eventually(lambda: queued(client) == [job], "the job to be carried")
        its_own.stop()
        assert process.end() == relay.EXIT_OK


def test_rows_that_cannot_be_read_are_set_aside_and_keep_nobody_back(
    redis: Redis, database: psycopg.Connection[Any], start: Any, tasks: Tasks
) -> None:
    add(database, tasks, Task(plus, (1,)))
    [(good,)] = database.execute("DELETE FROM engineroom_outbox RETURNING job").fetchall()
    entry = json.loads(good)
    bad = [
        "", "{}", "[]", "null", "7", good[:-1],
        json.dumps({**entry, "of_tomorrow": 1}),
        json.dumps({**entry, "fields": [*entry["fields"], "odd"]}),
        json.dumps({**entry, "fields": [None, None]}),
        json.dumps({**entry, "queue": None}),
        json.dumps({**entry, "priority": "9"}),
        json.dumps({**entry, "unique": {"key": "", "window": 1, "until": "window"}}),
        json.dumps({"flow_id": "f", "unique": None, "jobs": [{}]}),
    ]  # fmt: skip
    for each in bad:
        database.execute("INSERT INTO engineroom_outbox (job) VALUES (%s)", (each,))
    job = add(database, tasks, Task(plus, (2,)))
    process = start("--poll", "0.05")
    eventually(lambda: queued(redis) == [job], "the job behind them to be carried")
    eventually(process.ready, "it to be ready")
    left = database.execute("SELECT job, problem FROM engineroom_outbox ORDER BY id").fetchall()
    assert [content for content, _ in left] == bad
    assert all(problem for _, problem in left)
    assert "of_tomorrow" in left[6][1]
    # Given back, as after an update of the relay, they are looked at again.
    database.execute(
        "UPDATE engineroom_outbox SET problem = NULL, job = %s WHERE job = ''", (good,)
    )
    eventually(lambda: len(queued(redis)) == 2, "the mended one to be carried")
    # The first look at what waits may have been before the rows were set aside.
    eventually(
        lambda: f"engineroom_outbox_set_aside {len(bad) - 1}.0" in process.asked("/metrics")[1],
        "the metric to say so",
    )


def free(database: psycopg.Connection[Any]) -> bool:
    rows = "SELECT id FROM engineroom_outbox FOR UPDATE SKIP LOCKED"
    return bool(database.execute(rows).fetchall())


def test_a_table_that_is_missing_and_connections_that_are_cut_are_survived(
    redis: Redis,
    database: psycopg.Connection[Any],
    start: Any,
    monkeypatch: pytest.MonkeyPatch,
    tasks: Tasks,
) -> None:
    database.execute("DROP TABLE engineroom_outbox")
    process = start()
    eventually(
        lambda: "engineroom_outbox" in process.asked("/readyz")[1], "it to say what is missing"
    )
    database.execute(TABLE)
    eventually(process.ready, "it to be ready")
    database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'engineroom-relay'"
    )
    job = add(database, tasks, Task(plus, (1,)))
    eventually(lambda: queued(redis) == [job], "the job to be carried")
    eventually(process.ready, "it to be ready again")


def test_what_is_wrong_with_its_settings_ends_it_and_no_secret_is_told(
    tmp_path: Path, start: Any
) -> None:
    assert start("--poll", "0").process.wait(20) == relay.EXIT_CONFIG
    assert start(database="").process.wait(20) == relay.EXIT_CONFIG
    process = start(database="postgresql://app:hunter2@127.0.0.1:1/app")
    eventually(lambda: "127.0.0.1" in process.asked("/readyz")[1], "it to say who does not answer")
    assert process.end() == relay.EXIT_OK
    assert "hunter2" not in process.log.read_text() + process.asked("/readyz")[1]


def test_the_manifest_of_the_page_starts_it() -> None:
    page = (ROOT / "docs/tasks.md").read_text()
    texts = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    found = [yaml.safe_load(text) for text in texts]
    [deployment] = [each for each in found if each["kind"] == "Deployment"]
    spec = deployment["spec"]["template"]["spec"]
    [container] = spec["containers"]
    assert container["command"] == ["python", "-m", "engineroom.relay"]
    wanted = relay.parser().parse_args(container["args"])
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {
        str(file.parent) for file in (wanted.database_url_file, wanted.redis_url_file)
    } <= mounts
    probes = {container[each]["httpGet"]["path"] for each in ("livenessProbe", "readinessProbe")}
    assert probes == {"/healthz", "/readyz"}
    assert container["livenessProbe"]["httpGet"]["port"] == wanted.port
    grace = spec["terminationGracePeriodSeconds"]
    assert grace > relay.STATEMENT_TIMEOUT + relay.REDIS_TIMEOUT
