"""What a pool wants of its schedules, and what is told of them."""

from __future__ import annotations

from typing import Any

from engineroom.core import reasons
from engineroom.scheduling import schedule_of, stored_name
from engineroom.tasks import Cron, Every, Missed, Once
from engineroom.workers.job_schedules.declarations import (
    LOOK_AT_LEAST,
    ScheduleFacts,
    newly_missed,
    next_look,
    schedules_condition,
    status_rows,
)
from engineroom.workers.plan import Plan, plan_of
from tests.unit.workers.builders import NOW, pool

TICK = {"name": "tick", "every": "1m", "function": "a.b"}


def plan(*schedules: dict[str, Any], **spec: Any) -> Plan:
    return plan_of(pool(schedules=list(schedules), **spec))


def facts(name: str = "tick", **fields: Any) -> ScheduleFacts:
    defaults: dict[str, Any] = {
        "next": NOW + 60, "last": NOW, "last_job": "job", "missed": 0, "version": 1,
    }  # fmt: skip
    return ScheduleFacts(name, **{**defaults, **fields})


def test_a_declared_schedule_is_one_of_the_library_s() -> None:
    cron = {
        "name": "nightly", "cron": "30 2 * * *", "timeZone": "Europe/Berlin", "jitter": "5m",
        "function": "a.b", "args": [1], "kwargs": {"c": None, "d": 2}, "queue": "fax",
        "timeout": "2m", "resultTTL": "1h", "retry": {"max": 3, "intervals": ["10s", "1m"]},
        "missed": "Skip",
    }  # fmt: skip
    at = {"name": "once", "at": "2026-03-01T08:00:00+01:00", "function": "a.b", "suspend": True}
    jobs = plan(cron, TICK, at, queues=[{"name": "mail"}, {"name": "fax"}]).jobs
    nightly, tick, once = (schedule_of("shop/mail", job) for job in jobs)

    assert nightly.name == "shop_mail_nightly"
    assert nightly.trigger == Cron("30 2 * * *", "Europe/Berlin", 300.0)
    assert (nightly.missed, nightly.paused) == (Missed.SKIP, False)
    task = nightly.task
    assert (task.function, task.args, task.queue) == ("a.b", [1], "fax")
    assert (task.timeout, task.result_ttl) == (120, 3600)
    assert task.retry is not None
    assert task.retry.for_rq() == [10, 60, 60]
    assert (tick.trigger, tick.task.queue, tick.missed) == (Every(60), "mail", Missed.RUN_ONCE)
    assert (once.trigger, once.paused) == (Once(1772348400), True)


def test_the_longest_names_fit() -> None:
    owner = f"{'n' * 63}/{'p' * 52}"
    job = plan({**TICK, "name": "s" * 40}).jobs[0]

    assert len(schedule_of(owner, job).name) == 157
    assert stored_name("a/b", "c") == "a_b_c"


def test_workers_that_read_json_get_json() -> None:
    worker = {"name": "worker", "image": "i"}
    env = [{"name": "ENGINEROOM_SERIALIZER", "value": "rq.serializers.JSONSerializer"}]
    sidecar = {"name": "other", "image": "i", "env": env}

    def reads(*containers: dict[str, Any]) -> bool:
        return plan(TICK, template={"spec": {"containers": list(containers)}}).jobs[0].json

    assert reads({**worker, "env": env})
    assert reads(sidecar)
    assert not reads(sidecar, worker)
    assert not reads(worker)


def test_status_tells_what_is_known_and_keeps_it_while_blind() -> None:
    two = plan(TICK, {**TICK, "name": "other"})
    told = status_rows(
        {}, two.jobs, [facts(missed=2), facts("other", next=None, last=None, last_job="")]
    )

    assert told == [
        {
            "name": "tick", "lastTime": "2027-01-15T08:00:00Z", "lastJobID": "job",
            "nextTime": "2027-01-15T08:01:00Z", "missed": 2,
        },
        {"name": "other", "missed": 0},
    ]  # fmt: skip
    assert status_rows({"schedules": told}, two.jobs, None) == told
    assert status_rows({"schedules": told}, plan().jobs, ()) == []


def test_only_what_was_missed_since_is_news() -> None:
    old = {"schedules": [{"name": "tick", "missed": 2}]}

    assert newly_missed(old, [facts(missed=5), facts("new", missed=4)]) == [("tick", 3)]
    assert newly_missed(old, [facts(missed=2)]) == []
    assert newly_missed(old, None) == []


def test_verdicts() -> None:
    asleep = plan({**TICK, "suspend": True})

    assert schedules_condition(plan(TICK).jobs, [facts()], {})[:2] == ("True", reasons.RECONCILED)
    assert schedules_condition(asleep.jobs, [facts()], {})[:2] == ("False", reasons.SUSPENDED)
    assert schedules_condition(plan(TICK).jobs, None, {})[:2] == (
        "Unknown",
        reasons.REDIS_UNREACHABLE,
    )
    status, reason, message = schedules_condition(plan(TICK).jobs, [], {"tick": "shop/other"})
    assert (status, reason) == ("False", reasons.SCHEDULE_NAME_TAKEN)
    assert "belongs to WorkerPool shop/other" in message


def test_the_next_look_is_just_after_the_next_tick() -> None:
    assert next_look([facts(next=NOW + 5), facts(next=None)], plan(TICK).jobs, NOW) == 5.7
    assert next_look([facts(next=NOW - 50)], plan(TICK).jobs, NOW) == 0.5
    assert next_look([facts(next=None)], plan(TICK).jobs, NOW) == LOOK_AT_LEAST
    assert next_look(None, plan(TICK).jobs, NOW) == LOOK_AT_LEAST
    assert next_look((), plan().jobs, NOW) is None
