"""Enqueueing under job ids that the caller chose: one job however often the caller repeats it.

For a caller that cannot know whether an earlier attempt, perhaps of a process that died, wrote the
job. A mark beside the job outlives it, so a job that has run and has been deleted is not written
again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from engineroom.tasks.enqueueing.encode import encode
from engineroom.tasks.enqueueing.enqueue import Enqueued, Reason, enqueue_one, invocation
from engineroom.tasks.errors import JobExistsError
from engineroom.tasks.schedules import store

if TYPE_CHECKING:
    from datetime import datetime

    from engineroom.tasks.enqueueing.task import EnqueueRules, Task
    from engineroom.tasks.redis_steps import Steps


def enqueue(
    task: Task, job_id: str, rules: EnqueueRules, now: datetime, window: int
) -> Steps[Enqueued]:
    """Enqueue the task under ``job_id``, once within ``window`` seconds.

    For a task with a unique key, the guarantee lasts as long as the key's window or the job.
    Raises the errors of enqueueing.
    """
    task = replace(task, job_id=job_id)
    if task.unique is not None:
        try:
            enqueued = yield from enqueue_one(task, rules, now)
        except JobExistsError:
            enqueued = Enqueued(job_id, task.queue)
        if enqueued.job_id == job_id:
            return replace(enqueued, reason=Reason.CREATED)
        return enqueued
    job = encode(task, rules, now)
    yield invocation(job, window)
    return Enqueued(job_id, job.queue)


def run_schedule(name: str, run: str, now: datetime, window: int) -> Steps[str]:
    """Enqueue the schedule's job now, once for each ``run`` within ``window`` seconds.

    Return the job's id. Raises ScheduleNotFoundError.
    """
    return (yield from store.run_now(name, now, (run, window)))
