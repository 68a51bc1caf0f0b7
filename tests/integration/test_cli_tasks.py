"""The command line on jobs, queues, schedules and workers, against a real Redis."""

from __future__ import annotations

import contextlib
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from redis import Redis

from engineroom.cli import session as sessions
from engineroom.cli.main import main
from engineroom.tasks import State, Task, Tasks
from tests.integration.tasks.test_failures import fail
from tests.integration.tasks.work import add, boom
from tests.support import RedisServer, redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSWORD = "pa55-word"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


class Line:
    """The program, run in this process; what it printed and how it ended."""

    def __init__(self, redis: Redis, capsys: pytest.CaptureFixture[str]) -> None:
        self.redis = redis
        self.tasks = Tasks(redis)
        self._capsys = capsys
        self.err = ""

    def __call__(self, *arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, self.err = self._capsys.readouterr()
        assert ended.value.code == code, f"{arguments}: {ended.value.code}\n{out}{self.err}"
        assert "Traceback" not in self.err
        assert PASSWORD not in out + self.err
        return out

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "-o", "json"))

    def refused(self, *arguments: str, code: int, says: str) -> None:
        """It ends with the code, says why, and leaves Redis as it was."""
        before = self.state()
        assert self(*arguments, code=code) == ""
        assert says in self.err, self.err
        assert self.err.startswith("error: ")
        assert self.state() == before

    def state(self) -> dict[bytes, bytes]:
        return {key: self.redis.dump(key) or b"" for key in self.redis.scan_iter()}


@pytest.fixture
def line(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Line]:
    monkeypatch.setenv("ENGINEROOM_REDIS_URL", f"redis://:{PASSWORD}@127.0.0.1:{server.port}/0")
    monkeypatch.setenv("COLUMNS", "200")
    with contextlib.closing(Redis(port=server.port)) as client:
        client.flushall()
        # Any password will do for the user that needs none.
        yield Line(client, capsys)


def waiting(line: Line, count: int, queue: str = "mail") -> list[str]:
    made = line.tasks.enqueue_many([Task(add, (at,), queue=queue) for at in range(count)])
    return [each.job_id for each in made]


# -- looking ---------------------------------------------------------------------------------------


def test_jobs_are_listed_in_every_shape(line: Line) -> None:
    ids = waiting(line, 3)
    out = line("jobs", "list")
    assert out.splitlines()[0].split() == ["ID", "STATE", "QUEUE", "FUNCTION", "WHEN", "ABOUT"]
    assert [row.split()[0] for row in out.splitlines()[1:]] == ids
    assert "WORKER" in line("jobs", "list", "-o", "wide")
    assert line("jobs", "list", "-o", "name").split() == ids
    document = line.json("jobs", "list")
    assert document["next"] is None
    assert set(document["items"][0]) == {
        "job_id", "queue", "state", "function", "description", "created_at", "enqueued_at",
        "started_at", "ended_at", "due_at", "worker", "exception", "message", "category",
        "crashes", "retries_left",
    }  # fmt: skip
    assert document["items"][0]["enqueued_at"].endswith("Z")
    assert yaml.safe_load(line("jobs", "list", "-o", "yaml")) == document


def test_pages_follow_each_other_by_the_cursor_that_stands_below(line: Line) -> None:
    ids = fail(line.tasks, 30, "mail")
    seen: list[str] = []
    more: list[str] = []
    for _ in range(4):
        seen += line("jobs", "list", "-s", "failed", "--limit", "8", "-o", "name", *more).split()
        found = re.search(r"--after (\S+)", line.err)
        more = ["--after", found[1]] if found else []
    assert more == []
    assert sorted(seen) == sorted(ids)


def test_filters_of_the_list(line: Line) -> None:
    [waits, *_] = waiting(line, 2)
    later = line.tasks.enqueue(Task(boom, queue="mail", delay=7200)).job_id
    fail(line.tasks, 1, "other")
    assert line("jobs", "list", "-s", "scheduled", "-o", "name").split() == [later]
    assert line("jobs", "list", "--function", "*.boom", "-q", "mail", "-o", "name").split() == [
        later
    ]
    assert line("jobs", "list", "--id", waits[:13], "-o", "name").split() == [waits]
    assert line("jobs", "list", "-s", "waiting", "--since", "1h", "-o", "name").split()
    assert line("jobs", "list", "-s", "waiting", "--until", "1h", "-o", "name") == ""
    assert "no such jobs" in line.err
    assert line("jobs", "list", "-s", "waiting", "--until", "2020-01-01", "-o", "name") == ""
    line("jobs", "list", "--text", "nothing like it")


def test_one_job_is_shown_with_why_it_failed(line: Line) -> None:
    made = line.tasks.enqueue(Task(boom, ("disk full",), queue="mail", meta={"a": 1}))
    from rq import SimpleWorker

    SimpleWorker(["mail"], connection=line.redis).work(burst=True)
    out = line("jobs", "show", made.job_id)
    for part in ("RuntimeError: disk full", "raise RuntimeError", "Time line", '"disk full"'):
        assert part in out
    document = line.json("jobs", "show", made.job_id)
    assert (document["status"], document["call"]["args"]) == ("failed", ["disk full"])
    assert document["attempts"][0]["traceback"]
    line.refused("jobs", "show", "nothing", code=4, says="no job 'nothing'")


def test_queues_and_workers_are_listed(line: Line) -> None:
    waiting(line, 2)
    line.redis.sadd("rq:workers", "rq:worker:w1")
    line.redis.hset("rq:worker:w1", mapping={"state": "busy", "current_job": "j", "hostname": "h"})
    [row] = line("queues", "list").splitlines()[1:]
    assert row.split()[:3] == ["mail", "open", "2"]
    assert line.json("queues", "list")["items"][0]["waiting"] == 2
    assert line("workers", "list", "-o", "name") == "w1\n"
    assert "busy" in line("workers", "list", "-o", "wide")


# -- changing --------------------------------------------------------------------------------------


def test_a_queue_is_paused_resumed_moved_and_emptied(line: Line) -> None:
    waiting(line, 5)
    assert "resume mail" in line("queues", "pause", "mail", "--reason", "down")
    assert line.json("queues", "list")["items"][0]["reason"] == "down"
    assert "already paused" in line("queues", "pause", "mail")
    assert "is resumed" in line("queues", "resume", "mail")
    assert "2 jobs moved" in line("queues", "move", "mail", "late", "--limit", "2", "--create")
    assert line.json("queues", "empty", "mail", "--confirm", "mail") == {
        "name": "mail", "deleted": 3,
    }  # fmt: skip
    assert [each.waiting for each in line.tasks.counts(["mail", "late"])] == [0, 2]


def test_what_waits_is_deleted_only_by_its_queues_name(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting(line, 2)
    line.refused("queues", "empty", "mail", code=2, says="confirm")
    line.refused("queues", "empty", "mail", "--confirm", "male", code=2, says="confirm")
    typed = iter(["", "mail"])
    original = sessions.Session

    def asked(shared: sessions.Shared) -> sessions.Session:
        return original(shared, interactive=True, enter=lambda _: next(typed))

    monkeypatch.setattr(sessions, "Session", asked)
    line.refused("queues", "empty", "mail", code=2, says="confirm")
    assert "2 jobs deleted" in line("queues", "empty", "mail")


def test_failed_jobs_are_put_back_by_id_and_by_filter(line: Line) -> None:
    one, *rest = fail(line.tasks, 130, "mail")
    assert f"job {one} is back on mail" in line("jobs", "retry", one)
    done = line.json("jobs", "retry", "--queue", "mail", "--all", "--yes")
    assert "matches 129 jobs" in line.err
    assert (done["requeued"], done["done"]) == (129, True)
    assert line.redis.llen("rq:queue:mail") == 130
    line.refused("jobs", "retry", rest[0], code=1, says="no failed job")


def test_an_interrupted_retry_is_resumed(line: Line) -> None:
    fail(line.tasks, 60, "mail")
    operation = line.tasks.start_requeueing("mail").operation
    assert "60 jobs put back on mail" in line("jobs", "retry", "--resume", operation)
    line.refused("jobs", "retry", "--resume", "unheard-of", code=2, says="operation")


def test_jobs_are_cancelled_with_what_waits_for_them(line: Line) -> None:
    from rq import Queue
    from rq.job import Job

    ids = waiting(line, 3)
    parent = Job.fetch(ids[0], connection=line.redis)
    child = Queue("mail", connection=line.redis).enqueue(add, 1, depends_on=parent).id
    assert sorted(line.json("jobs", "cancel", ids[0])["canceled"]) == sorted([ids[0], child])
    done = line.json("jobs", "cancel", "-q", "mail", "-s", "waiting", "--function", "*.add", "-y")
    assert sorted(done["canceled"]) == sorted(ids[1:])
    assert line.tasks.count_jobs(State.CANCELED).matched == 4
    line.refused("jobs", "cancel", "nothing", code=4, says="nothing")


def test_a_job_is_enqueued_as_it_is_said(line: Line) -> None:
    waiting(line, 1)
    name = "tests.integration.tasks.work.add"
    made = line.json("enqueue", name, "--arg", "1", "--kwarg", 'right={"a": [2]}', "-q", "mail")
    call = line.tasks.job(made["job_id"]).call
    assert (call.function, call.args, call.kwargs) == (name, (1,), {"right": {"a": [2]}})
    for option, value in (("--delay", "2h"), ("--at", "2030-01-01T00:00Z")):
        made = line.json("enqueue", name, option, value, "-q", "mail")
        assert line.tasks.job(made["job_id"]).job.state is State.SCHEDULED
    first = line.json("enqueue", name, "--unique", "k", "--window", "1d", "-q", "mail")
    again = line.json("enqueue", name, "--unique", "k", "--window", "1d", "-q", "mail")
    assert (first["created"], again["created"]) == (True, False)
    assert again["job_id"] == first["job_id"]
    made = line.json("enqueue", name, "--retry", "3:10,60", "-q", "new", "--create-queue",
                     "--id", "my-job", "--serializer", "json")  # fmt: skip
    assert line.tasks.job("my-job").retry_intervals[:2] == (10, 60)


# -- what is wrong ---------------------------------------------------------------------------------

NAME = "tests.integration.tasks.work.add"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["enqueue", NAME, "-q", "male"], 2, "queue: 'male' is not known"),
        (["enqueue", NAME, "-q", "mail", "--arg", "hello"], 2, "--arg 1 is no JSON"),
        (["enqueue", NAME, "-q", "mail", "--kwarg", "a"], 2, "names no argument"),
        (["enqueue", NAME, "-q", "mail", "--kwarg", "a=1", "--kwarg", "a=2"], 2, "there twice"),
        (["enqueue", "no function", "-q", "mail"], 2, "function"),
        (["enqueue", NAME, "-q", "mail", "--max-bytes", "20", "--arg", '"xxxxxxxx"'], 2, "args"),
        (["enqueue", NAME, "-q", "mail", "--delay", "soon"], 2, "--delay soon"),
        (["enqueue", NAME, "-q", "mail", "--at", "2020-13-01"], 2, "--at"),
        (["enqueue", NAME, "-q", "mail", "--retry", "x"], 2, "--retry x"),
        (["enqueue", NAME, "-q", "mail", "--retry", "0"], 2, "maximum"),
        (["enqueue", NAME, "-q", "mail", "--unique", "k", "--window", "0"], 2, "window"),
        (["jobs", "list", "-q", "male"], 2, "'male' is not known"),
        (["jobs", "list", "-s", "broken"], 2, "--state broken"),
        (["jobs", "list", "--since", "yesterday"], 2, "--since yesterday"),
        (["jobs", "list", "--after", "xyz"], 2, "cursor"),
        (["jobs", "list", "--category", "odd"], 2, "--category odd"),
        (["jobs", "retry"], 2, "either ids"),
        (["jobs", "retry", "-q", "mail"], 2, "which failed jobs"),
        (["jobs", "retry", "-q", "mail", "--all"], 4, "matches none"),
        (["jobs", "retry", "-q", "mail", "--error", "Nobody"], 4, "matches none"),
        (["jobs", "retry", "--error", "Nobody"], 4, "no failed job"),
        (["jobs", "cancel"], 2, "either ids"),
        (["jobs", "cancel", "-q", "mail", "-s", "failed", "--all"], 2, "one state"),
        (["jobs", "cancel", "-q", "mail", "-s", "waiting"], 2, "which waiting jobs"),
        (["jobs", "cancel", "-q", "mail", "-s", "waiting", "--function", "no"], 4, "matches none"),
        (["queues", "pause", "male"], 2, "'male' is not known"),
        (["queues", "empty", "male", "--confirm", "male"], 2, "'male' is not known"),
        (["queues", "move", "mail", "male"], 2, "'male' is not known"),
        (["queues", "move", "mail", "mail"], 2, "both source and target"),
    ],
)
def test_bad_input_is_told_and_changes_nothing(
    line: Line, arguments: list[str], code: int, says: str
) -> None:
    waiting(line, 1)
    line.refused(*arguments, code=code, says=says)


def test_arguments_never_show_up_in_errors(line: Line) -> None:
    waiting(line, 1)
    line("enqueue", NAME, "-q", "mail", "--arg", f"{PASSWORD}", code=2)


@pytest.mark.parametrize(
    ("url", "code", "says"),
    [
        (f"http://u:{PASSWORD}@h/0", 2, "its scheme is http"),
        (f"redis://u:{PASSWORD}@/0", 2, "names no host"),
        (f"redis://u:{PASSWORD}@h:port/0", 2, "no number"),
        (f"redis://u:{PASSWORD}@h/mail", 2, "no number"),
        (f"redis://u:{PASSWORD}@127.0.0.1:1/0", 3, "Redis"),
    ],
)
def test_a_redis_that_cannot_be_used_is_told_without_the_password(
    line: Line, url: str, code: int, says: str
) -> None:
    line("queues", "list", "--redis-url", url, code=code)
    assert says in line.err
    line("queues", "list", "--redis-url", url, "--pool", "mail", code=2)
    assert "exclude each other" in line.err
