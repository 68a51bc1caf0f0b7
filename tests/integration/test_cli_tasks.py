"""The command line on jobs, queues, schedules and workers, against a real Redis."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import yaml
from redis import Redis
from rq import SimpleWorker

from engineroom.cli.app.context import CommandContext
from engineroom.cli.app.main import main
from engineroom.cli.commands.tasks.queue_names import complete_queues
from engineroom.cli.connections.factory import Connections
from engineroom.tasks import QueueLimit, Reporter, State, Task, Tasks
from tests.integration.tasks.test_failures import fail
from tests.integration.tasks.work import add, boom, step
from tests.support import ROOT, RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engineroom.cli.connections.options import ConnectionOptions

PASSWORD = "pa55-word"


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
        "jobId", "queue", "state", "function", "description", "createdAt", "enqueuedAt",
        "startedAt", "endedAt", "dueAt", "worker", "exception", "message", "category",
        "crashes", "retriesLeft",
    }  # fmt: skip
    assert document["items"][0]["enqueuedAt"].endswith("Z")
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
    SimpleWorker(["mail"], connection=line.redis).work(burst=True)
    out = line("jobs", "show", made.job_id)
    for part in ("RuntimeError: disk full", "raise RuntimeError", "Time line", '"disk full"'):
        assert part in out
    document = line.json("jobs", "show", made.job_id)
    assert (document["status"], document["call"]["args"]) == ("failed", ["disk full"])
    assert document["attempts"][0]["traceback"]
    line.refused("jobs", "show", "nothing", code=4, says="no job 'nothing'")


def test_a_job_is_shown_with_the_progress_that_it_reports(line: Line) -> None:
    made = line.tasks.enqueue(Task(step, (5,), queue="mail"))
    before = line.json("jobs", "show", made.job_id)
    assert before["progress"] is None
    assert "Progress" not in line("jobs", "show", made.job_id)
    SimpleWorker(["mail"], connection=line.redis).work(burst=True)
    shown = line("jobs", "show", made.job_id)
    assert re.search(r"Progress\n\s+5 of 5 \(100%\), step 5; \d+s ago", shown), shown
    progress = line.json("jobs", "show", made.job_id)["progress"]
    assert (progress["count"], progress["total"], progress["message"]) == (5, 5, "step 5")
    assert progress["at"].endswith("Z")
    # Of a job that knows no total there is no share, and a report in the middle is shown as such.
    Reporter(line.redis, made.job_id).report(40, None, "importing")
    assert re.search(r"\n\s+40, importing; \d+s ago", line("jobs", "show", made.job_id))
    Reporter(line.redis, made.job_id).report(40, 100, "importing")
    assert "40 of 100 (40%), importing; " in line("jobs", "show", made.job_id)


def test_queues_and_workers_are_listed(line: Line) -> None:
    waiting(line, 2)
    line.redis.sadd("rq:workers", "rq:worker:w1")
    line.redis.hset("rq:worker:w1", mapping={"state": "busy", "current_job": "j", "hostname": "h"})
    [row] = line("queues", "list").splitlines()[1:]
    assert row.split()[:3] == ["mail", "open", "2"]
    assert line.json("queues", "list")["items"][0]["waiting"] == 2
    assert line("workers", "list", "-o", "name") == "w1\n"
    assert "busy" in line("workers", "list", "-o", "wide")
    line.redis.sadd("rq:workers", "rq:worker:gone")
    assert "ghost" in line("workers", "list")
    assert "worker gone taken off" in line("workers", "clear")
    assert "0 workers taken off" in line("workers", "clear")


# -- changing --------------------------------------------------------------------------------------


def test_a_queue_is_paused_resumed_moved_and_emptied(line: Line) -> None:
    waiting(line, 5)
    assert "resume mail" in line("queues", "pause", "mail", "--reason", "down")
    assert line.json("queues", "list")["items"][0]["reason"] == "down"
    assert "already paused" in line("queues", "pause", "mail")
    assert "is resumed" in line("queues", "resume", "mail")
    move = ("queues", "move", "mail", "late", "--limit", "2", "--create")
    line(*move, code=2)
    assert "add --yes" in line.err
    assert "2 jobs moved" in line(*move, "--yes")
    assert line.json("queues", "empty", "mail", "--confirm", "mail") == {
        "name": "mail", "deleted": 3,
    }  # fmt: skip
    assert [each.waiting for each in line.tasks.counts(["mail", "late"])] == [0, 2]


def test_a_queue_is_limited_and_not_any_more(line: Line) -> None:
    waiting(line, 1)
    line.refused("queues", "limit", "mail", code=2, says="--concurrency")
    line.refused("queues", "limit", "mail", "--rate", "fast", code=2, says="rate")
    line.refused("queues", "limit", "male", "--rate", "1/s", code=2, says="not known")
    assert line.tasks.counts(["mail"])[0].limit is None
    line("queues", "limit", "mail", "--concurrency", "2", "--rate", "10/s")
    assert line.tasks.counts(["mail"])[0].limit == QueueLimit(2, "10/s")
    assert "2 at once, 10/s" in line("queues", "list")
    assert line.json("queues", "list")["items"][0]["limit"] == {"concurrency": 2, "rate": "10/s"}
    assert "not limited any more" in line("queues", "unlimit", "mail")
    assert "had no limit" in line("queues", "unlimit", "mail")
    assert line.tasks.counts(["mail"])[0].limit is None


def test_an_urgent_job_goes_first_and_a_key_has_its_limit(line: Line) -> None:
    waiting(line, 2)
    line.refused("enqueue", "shop.jobs.go", "--queue", "mail", "--rate", "1/s", code=2, says="KEY")
    line.refused(
        "enqueue", "shop.jobs.go", "--queue", "mail", "--priority", "10", code=2, says="priority"
    )
    urgent = line.json(
        "enqueue", "shop.jobs.go", "--queue", "mail", "--priority", "9",
        "--limit", "customer-7", "--concurrency", "1", "--rate", "10/s",
    )["jobId"]  # fmt: skip
    assert line.json("jobs", "list", "--queue", "mail")["items"][0]["jobId"] == urgent
    key = line.tasks.redis.hgetall(f"rq:job:{urgent}")
    assert (key[b"er_priority"], key[b"er_limit"]) == (b"9", b"customer-7")
    assert (key[b"er_limit_concurrency"], key[b"er_limit_count"]) == (b"1", b"10")


def test_what_waits_is_deleted_only_by_its_queues_name(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting(line, 2)
    line.refused("queues", "empty", "mail", code=2, says="confirm")
    line.refused("queues", "empty", "mail", "--confirm", "male", code=2, says="confirm")
    typed = iter(["", "mail"])

    def interactive(options: ConnectionOptions) -> CommandContext:
        return CommandContext(Connections(options), interactive=True, prompt=lambda _: next(typed))

    monkeypatch.setattr(CommandContext, "of", interactive)
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
    assert sorted(line.json("jobs", "cancel", ids[0], "--yes")["canceled"]) == sorted(
        [ids[0], child]
    )
    done = line.json("jobs", "cancel", "-q", "mail", "-s", "waiting", "--function", "*.add", "-y")
    assert sorted(done["canceled"]) == sorted(ids[1:])
    assert line.tasks.count_jobs(State.CANCELED).matched == 4
    line.refused("jobs", "cancel", "nothing", "--yes", code=4, says="nothing")


def test_a_job_is_enqueued_as_it_is_said(line: Line) -> None:
    waiting(line, 1)
    name = "tests.integration.tasks.work.add"
    made = line.json("enqueue", name, "--arg", "1", "--kwarg", 'right={"a": [2]}', "-q", "mail")
    call = line.tasks.job(made["jobId"]).call
    assert (call.function, call.args, call.kwargs) == (name, (1,), {"right": {"a": [2]}})
    for option, value in (("--delay", "2h"), ("--at", "2030-01-01T00:00Z")):
        made = line.json("enqueue", name, option, value, "-q", "mail")
        assert line.tasks.job(made["jobId"]).job.state is State.SCHEDULED
    first = line.json("enqueue", name, "--unique", "k", "--window", "1d", "-q", "mail")
    again = line.json("enqueue", name, "--unique", "k", "--window", "1d", "-q", "mail")
    assert (first["created"], again["created"]) == (True, False)
    assert again["jobId"] == first["jobId"]
    made = line.json("enqueue", name, "--retry", "3:10,60", "-q", "new", "--create-queue",
                     "--id", "my-job", "--serializer", "json")  # fmt: skip
    assert line.tasks.job("my-job").retry_intervals[:2] == (10, 60)


def test_a_job_waits_for_others_and_is_kept_as_long_as_is_said(line: Line) -> None:
    one, two = waiting(line, 2)
    name = "tests.integration.tasks.work.outcomes"
    after = ("enqueue", name, "-q", "mail", "--depends-on", one, "--depends-on", two)
    assert f"of mail follows {one}, {two}" in line(*after, "--id", "third")
    anyway = line.json(
        "enqueue", name, "-q", "mail", "--depends-on", two, "--allow-failure",
        "--ttl", "1d", "--result-ttl", "-1", "--failure-ttl", "2h",
    )["jobId"]  # fmt: skip
    assert [each.job_id for each in line.tasks.job("third").depends_on] == [one, two]
    fields = line.redis.hgetall(f"rq:job:{anyway}")
    assert (fields[b"ttl"], fields[b"result_ttl"], fields[b"failure_ttl"]) == (
        b"86400", b"-1", b"7200",
    )  # fmt: skip
    # As long as one of them waits, so do both.
    line.redis.lrem("rq:queue:mail", 1, two)
    SimpleWorker(["mail"], connection=line.redis).work(burst=True)
    assert [line.tasks.job(each).job.state for each in ("third", anyway)] == [State.DEFERRED] * 2
    line.redis.rpush("rq:queue:mail", two)
    SimpleWorker(["mail"], connection=line.redis).work(burst=True)
    assert line.tasks.result("third").value == ["finished"] * 2


def test_a_key_is_free_when_its_window_is_over_or_already_at_the_end(line: Line) -> None:
    waiting(line, 1)
    key = ("enqueue", NAME, "--arg", "1", "-q", "mail", "--unique")
    kept = [
        line.json(*key, "window")["created"],
        line.json(*key, "end", "--until", "end")["created"],
    ]
    assert kept == [True, True]
    assert line.json(*key, "end", "--until", "end")["created"] is False
    SimpleWorker(["mail"], connection=line.redis).work(burst=True)
    assert line.json(*key, "window")["created"] is False
    assert line.json(*key, "end", "--until", "end")["created"] is True


def test_what_a_schedule_enqueues_has_its_priority_limit_and_times(line: Line) -> None:
    waiting(line, 1)
    add = ("schedules", "add", "hourly", NAME, "--arg", "1", "-q", "mail", "--cron", "0 * * * *")
    made = line.json(
        *add, "--jitter", "5m", "--priority", "7", "--limit", "customer-7", "--concurrency", "2",
        "--rate", "10/s", "--ttl", "1h", "--result-ttl", "0", "--failure-ttl", "7d",
    )  # fmt: skip
    assert made["trigger"] == {"line": "0 * * * *", "zone": "UTC", "jitter": 300.0}
    assert "0 * * * * UTC (up to 5m later)" in line("schedules", "list", "-o", "wide")
    # Each later by what is drawn for it, and none by more than was said.
    ticks = re.findall(r"\d\d:(\d\d):\d\d UTC", line("schedules", "show", "hourly"))
    assert len(ticks) == 5
    assert {int(minute) for minute in ticks} <= set(range(5))
    job = line("schedules", "run", "hourly", "-o", "name").strip()
    fields = line.redis.hgetall(f"rq:job:{job}")
    wanted = {
        "er_priority": "7", "er_limit": "customer-7", "er_limit_concurrency": "2",
        "er_limit_count": "10", "ttl": "3600", "result_ttl": "0", "failure_ttl": "604800",
    }  # fmt: skip
    assert {name: fields[name.encode()].decode() for name in wanted} == wanted


def test_a_schedule_is_made_looked_at_and_steered(line: Line) -> None:
    waiting(line, 1)
    name = "tests.integration.tasks.work.add"
    nightly = ("schedules", "add", "nightly", name, "--arg", "1", "-q", "mail")
    made = line.json(*nightly, "--cron", "30 2 * * *", "--zone", "Europe/Berlin")
    assert (made["trigger"]["zone"], made["missed"], made["paused"]) == (
        "Europe/Berlin", "run_once", False,
    )  # fmt: skip
    assert made["next"].endswith("Z")
    assert "is up to date" in line(*nightly, "--cron", "30 2 * * *", "--zone", "Europe/Berlin")
    line("schedules", "add", "sync", name, "--every", "5m", "--jitter", "30s", "-q", "mail")
    line("schedules", "add", "later", name, "--at", "2h", "-q", "mail", "--missed", "skip")
    assert line("schedules", "list", "-o", "name").split()[0] == "sync"
    assert "every 5m" in line("schedules", "list", "-o", "wide")
    shown = line("schedules", "show", "nightly")
    assert shown.count("02:30") + shown.count("01:30") + shown.count("00:30") >= 5
    assert "is paused" in line("schedules", "pause", "nightly")
    assert line.json("schedules", "show", "nightly")["paused"] is True
    assert "next tick" in line("schedules", "resume", "nightly")
    job = line("schedules", "run", "nightly", "-o", "name").strip()
    assert line.tasks.job(job).job.state is State.WAITING
    assert "deleted" in line("schedules", "delete", "nightly", "--yes")
    assert line("schedules", "list", "--limit", "1", "-o", "name") == "sync\n"
    assert "--after sync" in line.err
    assert line("schedules", "list", "--after", "sync", "-o", "name") == "later\n"


# -- what is wrong ---------------------------------------------------------------------------------

NAME = "tests.integration.tasks.work.add"
ADD = ("schedules", "add", "n", NAME, "-q", "mail")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["enqueue", NAME, "-q", "male"], 2, "queue: 'male' is not known"),
        (["enqueue", NAME, "-q", "mail", "--arg", "hello"], 2, "--arg 1 is not JSON"),
        (["enqueue", NAME, "-q", "mail", "--kwarg", "a"], 2, "is not NAME=JSON"),
        (["enqueue", NAME, "-q", "mail", "--kwarg", "a=1", "--kwarg", "a=2"], 2, "given twice"),
        (["enqueue", "no function", "-q", "mail"], 2, "function"),
        (["enqueue", NAME, "-q", "mail", "--max-bytes", "20", "--arg", '"xxxxxxxx"'], 2, "args"),
        (["enqueue", NAME, "-q", "mail", "--delay", "soon"], 2, "--delay soon"),
        (["enqueue", NAME, "-q", "mail", "--at", "2020-13-01"], 2, "--at"),
        (["enqueue", NAME, "-q", "mail", "--retry", "x"], 2, "--retry x"),
        (["enqueue", NAME, "-q", "mail", "--retry", "0"], 2, "maximum"),
        (["enqueue", NAME, "-q", "mail", "--unique", "k", "--window", "0"], 2, "window"),
        (["enqueue", NAME, "-q", "mail", "--window", "1h"], 2, "add --unique KEY"),
        (["enqueue", NAME, "-q", "mail", "--until", "end"], 2, "add --unique KEY"),
        (["enqueue", NAME, "-q", "mail", "--depends-on", "nobody"], 4, "--depends-on nobody"),
        (["enqueue", NAME, "-q", "mail", "--depends-on", "no id"], 4, "--depends-on no id"),
        (["enqueue", NAME, "-q", "mail", "--id", "a", "--depends-on", "a"], 4, "no such job"),
        (["enqueue", NAME, "-q", "mail", "--depends-on", "a", "--delay", "1h"], 4, "no such job"),
        (["enqueue", NAME, "-q", "mail", "--allow-failure"], 2, "add --depends-on ID"),
        (["enqueue", NAME, "-q", "mail", "--ttl", "0"], 2, "ttl: 0"),
        (["enqueue", NAME, "-q", "mail", "--ttl", "-1"], 2, "ttl: -1"),
        (["enqueue", NAME, "-q", "mail", "--ttl", "1.5"], 2, "--ttl 1.5"),
        (["enqueue", NAME, "-q", "mail", "--result-ttl", "long"], 2, "--result-ttl long"),
        (["enqueue", NAME, "-q", "mail", "--failure-ttl", "-2"], 2, "--failure-ttl -2"),
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
        (["schedules", "add", "n", NAME, "-q", "mail", "--cron", "61 2 * * *"], 2, "cron"),
        (["schedules", "add", "n", NAME, "-q", "mail", "--cron", "0 0 30 2 *"], 2, "never comes"),
        (
            [
                "schedules",
                "add",
                "n",
                NAME,
                "-q",
                "mail",
                "--cron",
                "0 0 * * *",
                "--zone",
                "Mars/Base",
            ],
            2,
            "zone",
        ),
        (["schedules", "add", "n", NAME, "-q", "male", "--every", "5m"], 2, "'male' is not known"),
        (["schedules", "add", "n", NAME, "-q", "mail", "--every", "0.1"], 2, "every"),
        ([*ADD, "--every", "5m", "--zone", "UTC"], 2, "--zone belongs to --cron"),
        ([*ADD, "--at", "2h", "--zone", "Europe/Rome"], 2, "--zone belongs to --cron"),
        ([*ADD, "--at", "2h", "--jitter", "5m"], 2, "--jitter belongs to"),
        ([*ADD, "--cron", "0 3 * * *", "--jitter", "2h"], 2, "jitter"),
        ([*ADD, "--every", "5m", "--jitter", "soon"], 2, "--jitter soon"),
        ([*ADD, "--every", "5m", "--rate", "1/s"], 2, "add --limit KEY"),
        ([*ADD, "--every", "5m", "--limit", "k"], 2, "limits nothing"),
        ([*ADD, "--every", "5m", "--priority", "10"], 2, "priority"),
        ([*ADD, "--every", "5m", "--ttl", "0"], 2, "ttl: 0"),
        (["schedules", "add", "n", NAME, "-q", "mail", "--at", "2020-01-01"], 2, "past"),
        (["schedules", "add", "n", NAME, "-q", "mail"], 2, "exactly one trigger"),
        (["schedules", "add", "n n", NAME, "-q", "mail", "--every", "5m"], 2, "name"),
        (["schedules", "show", "nobody"], 4, "nobody"),
        (["schedules", "pause", "nobody"], 4, "nobody"),
        (["schedules", "run", "nobody"], 4, "nobody"),
        (["schedules", "delete", "nobody", "--yes"], 4, "nobody"),
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
        (f"http://u:{PASSWORD}@h/0", 2, "its scheme is not one of"),
        (f"redis://u:{PASSWORD}@/0", 2, "has no host"),
        (f"redis://u:{PASSWORD}@h:port/0", 2, "its host or port is invalid"),
        (f"redis://u:{PASSWORD}@h/mail", 2, "not a number"),
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


def test_the_examples_of_the_page_about_tasks_run_in_their_order(line: Line) -> None:
    page = (ROOT / "docs/tasks.md").read_text().split("## From the command line")[1]
    commands = [
        shlex.split(command)
        for block in re.findall(r"^```console\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        for command in re.findall(r"^\$ engineroom (.*)$", block, re.MULTILINE)
    ]
    assert len(commands) >= 20
    worked = False
    for command in commands:
        if "failed" in command and not worked:
            # There is no such module as the examples': the job fails as they say.
            SimpleWorker(["mail"], connection=line.redis).work(burst=True)
            worked = True
        # The page shows what a person types, who is asked.
        asks = command[:2] in (
            ["jobs", "retry"], ["jobs", "cancel"], ["schedules", "delete"], ["queues", "move"],
        )  # fmt: skip
        out = line(*command, *(["--yes"] if asks and "--yes" not in command else []))
        if command[:2] == ["jobs", "show"] and worked:
            assert "ValueError" in out
        if command[:2] == ["jobs", "retry"]:
            assert "1 job put back on mail" in out
        if command[:2] == ["jobs", "cancel"]:
            # With the one that waits for it.
            assert "2 jobs cancelled" in out
    assert worked
    assert not line.tasks.schedules()


def test_queues_are_completed_and_a_shell_never_sees_an_error(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting(line, 1)
    url = os.environ["ENGINEROOM_REDIS_URL"]
    context = SimpleNamespace(params={"redis_url": url})
    assert complete_queues(cast("Any", context), "ma") == ["mail"]
    assert complete_queues(cast("Any", context), "x") == []
    for gone in ("redis://127.0.0.1:1", "http://x"):
        assert complete_queues(cast("Any", SimpleNamespace(params={"redis_url": gone})), "") == []
    monkeypatch.setenv("KUBECONFIG", "/nonexistent")
    assert complete_queues(cast("Any", SimpleNamespace(params={})), "") == []
