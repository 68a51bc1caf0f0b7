"""Jobs under ids of the caller's, written once however often they are asked for.

For who cannot know whether an earlier try, perhaps of a process that died, has written them. A mark
beside the job outlives it: one that has run and is gone is not written again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from engineroom.tasks import schedules
from engineroom.tasks.enqueueing.enqueue import Enqueued, Reason, enqueue_one, invocation
from engineroom.tasks.enqueueing.task import encode
from engineroom.tasks.errors import JobExistsError

if TYPE_CHECKING:
    from datetime import datetime

    from engineroom.tasks.enqueueing.task import Rules, Task
    from engineroom.tasks.redis_steps import Steps


def enqueue(task: Task, job_id: str, rules: Rules, now: datetime, window: int) -> Steps[Enqueued]:
    """The task under that id, once within ``window`` seconds.

    Of a task with a unique key it holds as long as the key's window or the job lasts. Raises what
    enqueueing does.
    """
    task = replace(task, job_id=job_id)
    if task.unique is not None:
        try:
            done = yield from enqueue_one(task, rules, now)
        except JobExistsError:
            done = Enqueued(job_id, task.queue)
        return replace(done, reason=Reason.CREATED) if done.job_id == job_id else done
    job = encode(task, rules, now)
    yield invocation(job, window)
    return Enqueued(job_id, job.queue)


def run_schedule(name: str, run: str, now: datetime, window: int) -> Steps[str]:
    """The schedule's job now, once for each ``run`` within ``window`` seconds; the job's id.

    Raises ScheduleNotFoundError.
    """
    return (yield from schedules.run_now(name, now, (run, window)))
