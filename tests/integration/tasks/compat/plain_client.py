"""Enqueues one job of each kind that RQ knows, with nothing but RQ; run by the RQ under test.

``plain_client.py URL enqueue`` prints {kind: job id}; ``plain_client.py URL look IDS`` prints, for
the ids as JSON, what RQ says of each.
"""

import datetime
import json
import sys

import plain_jobs
from plain_jobs import Account, Reversed
from redis import Redis
from rq import Callback, Queue, Repeat, Retry
from rq.group import Group
from rq.job import Dependency, Job


def enqueue(connection):
    queue = Queue("default", connection=connection)
    soon = datetime.timedelta(seconds=1)
    jobs = {
        "function": queue.enqueue(plain_jobs.add, 1, right=2),
        "string": queue.enqueue("plain_jobs.add", 2, 3),
        "call": queue.enqueue_call(plain_jobs.add, args=(4,), kwargs={"right": 5}),
        "method": queue.enqueue(Account("Ada").greet, "hello"),
        "callable": queue.enqueue(Account("Ada"), "hello"),
        "static": queue.enqueue(Account.static, "loud"),
        "class": queue.enqueue("plain_jobs.Account.built", "Bob"),
        "builtin": queue.enqueue(max, 3, 9),
        "coroutine": queue.enqueue(plain_jobs.later, 7),
        "meta": queue.enqueue(plain_jobs.meta, meta={"given": 21}, description="with meta"),
        "failed": queue.enqueue(plain_jobs.boom, failure_ttl=500),
        "retried": queue.enqueue(plain_jobs.fails_until, 2, retry=Retry(max=3)),
        "retried later": queue.enqueue(
            plain_jobs.fails_until, 1, retry=Retry(max=2, interval=[1, 2])
        ),
        "asked again": queue.enqueue(plain_jobs.asks_for_another, 2),
        "no result": queue.enqueue(plain_jobs.add, 1, result_ttl=0),
        "in": queue.enqueue_in(soon, plain_jobs.add, 10),
        "at": queue.enqueue_at(datetime.datetime.now().astimezone() + soon, plain_jobs.add, 11),
        "repeated": queue.enqueue(plain_jobs.tick, repeat=Repeat(times=2, interval=1)),
        "succeeded": queue.enqueue(plain_jobs.add, 1, on_success=Callback(plain_jobs.said)),
        "failed with a callback": queue.enqueue(
            plain_jobs.boom, on_failure=Callback("plain_jobs.said", timeout=5)
        ),
    }
    first, failed = jobs["function"], jobs["failed"]
    jobs["dependent"] = queue.enqueue(plain_jobs.of_parents, depends_on=[first, jobs["string"]])
    jobs["of a dependent"] = queue.enqueue(plain_jobs.of_parents, depends_on=jobs["dependent"])
    jobs["despite a failure"] = queue.enqueue(
        plain_jobs.add, 5, depends_on=Dependency([failed, first], allow_failure=True)
    )
    jobs["never"] = queue.enqueue(plain_jobs.add, 5, depends_on=failed)
    one, two = queue.enqueue_many(
        [Queue.prepare_data(plain_jobs.add, (n,), description="one of many") for n in (1, 2)]
    )
    jobs["one of many"], jobs["another of many"] = one, two
    group = Group.create(connection)
    [jobs["of a group"]] = group.enqueue_many(queue, [Queue.prepare_data(plain_jobs.add, (8,))])
    tagged = Queue("tagged", connection=connection, serializer=Reversed)
    jobs["serialized"] = tagged.enqueue(plain_jobs.add, 1, right=1)
    return jobs


def describe(connection, kind, job_id):
    serializer = Reversed if kind == "serialized" else None
    if not Job.exists(job_id, connection=connection):
        return {"status": "gone"}
    job = Job.fetch(job_id, connection=connection, serializer=serializer)
    latest = job.latest_result()
    return {
        "status": job.get_status().value,
        "result": job.return_value(),
        "error": (latest.exc_string or "").strip().splitlines()[-1:] if latest else [],
        "meta": job.meta,
        "group": job.group_id,
        "said": connection.llen(f"said:{job_id}"),
    }


def main(url, do, *rest):
    connection = Redis.from_url(url)
    if do == "enqueue":
        jobs = enqueue(connection)
        answer = {kind: job.id for kind, job in jobs.items()}
    else:
        answer = {}
        for kind, job_id in json.loads(rest[0]).items():
            answer[kind] = describe(connection, kind, job_id)
    sys.stdout.write(json.dumps(answer))


main(*sys.argv[1:])
