"""Enqueues with the RQ of the interpreter that runs it: JSON lines in, JSON lines out."""

import datetime
import inspect
import json
import sys

import redis
import rq
import runtime_jobs
from rq.command import send_stop_job_command
from rq.job import Job
from rq.scheduler import RQScheduler


def main(url):
    connection = redis.Redis.from_url(url)

    def enqueue(queue, func, args, serializer=None, at_front=False, seconds=None, **options):
        target = rq.Queue(queue, connection=connection, serializer=serializer)
        if "retry" in options:
            options["retry"] = rq.Retry(**options["retry"])
        if "repeat" in options:
            options["repeat"] = rq.Repeat(**options["repeat"])
        for name in ("on_success", "on_failure", "on_stopped"):
            if name in options:
                options[name] = rq.Callback(getattr(runtime_jobs, options[name]))
        if "depends_on" in options:
            from rq.job import Dependency

            options["depends_on"] = Dependency(
                [Job.fetch(options["depends_on"], connection=connection)],
                allow_failure=options.pop("allow_failure", False),
            )
        function = getattr(runtime_jobs, func)
        if seconds is not None:
            delta = datetime.timedelta(seconds=seconds)
            return target.enqueue_in(delta, function, *args, **options).id
        return target.enqueue(function, *args, at_front=at_front, **options).id

    def describe(job, serializer=None):
        found = Job.fetch(job, connection=connection, serializer=serializer)
        result = found.latest_result()
        return {
            "status": found.get_status().value,
            "result": found.return_value(),
            "error": result.exc_string if result else None,
            "results": len(found.results()),
            "retries_left": found.retries_left,
            "ttl": connection.ttl(found.key),
            "worker": found.worker_name,
        }

    def cleanup(queue):
        rq.registry.StartedJobRegistry(queue, connection=connection).cleanup()

    def stop(job):
        send_stop_job_command(connection, job)

    def cancel(job):
        Job.fetch(job, connection=connection).cancel()

    def names_schedulers():
        return "name" in inspect.signature(RQScheduler.__init__).parameters

    known = (enqueue, describe, cleanup, stop, cancel, names_schedulers)
    commands = {f.__name__: f for f in known}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": commands[request.pop("do")](**request)}
        except Exception as error:  # noqa: BLE001 - told to the test, which fails of it
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


main(sys.argv[1])
