"""Names of keys in Redis: RQ's own (the same in RQ 2 and 3) and ours beside them."""

from __future__ import annotations

_QUEUE = "rq:queue:"
_SCHEDULED = "rq:scheduled:"

#: Prefixes whose changes mean that a pool may have work.
PUSH_PREFIXES = (_QUEUE, _SCHEDULED)


def queue(name: str) -> str:
    """RQ's list of waiting job ids."""
    return f"{_QUEUE}{name}"


def intermediate(name: str) -> str:
    """RQ's list of job ids that were taken and not started yet."""
    return f"{_QUEUE}{name}:intermediate"


def started(name: str) -> str:
    """RQ's sorted set of `job:execution`, scored by when it counts as abandoned."""
    return f"rq:wip:{name}"


def scheduled(name: str) -> str:
    """RQ's sorted set of job ids, scored by when they are due."""
    return f"{_SCHEDULED}{name}"


def failed(name: str) -> str:
    """RQ's sorted set of failed job ids, scored by when they expire."""
    return f"rq:failed:{name}"


def job(job_id: str) -> str:
    """RQ's hash of one job."""
    return f"rq:job:{job_id}"


def worker(name: str) -> str:
    """RQ's hash of one worker."""
    return f"rq:worker:{name}"


def executions_of_worker(name: str) -> str:
    """RQ 3's set of a worker's executions."""
    return f"rq:worker:{name}:executions"


def worker_channel(name: str) -> str:
    """RQ's channel of commands to one worker."""
    return f"rq:pubsub:{name}"


def pool_workers(pool: str) -> str:
    """Set of the names of the pool's workers; ``pool`` is ``namespace/name``."""
    return f"engineroom:workers:{{{pool}}}"


def pool_suspended(pool: str) -> str:
    """Exists while the pool's workers take no job."""
    return f"engineroom:suspended:{{{pool}}}"


def paused(queue_name: str) -> str:
    """Exists while no worker of ours takes a job from the queue; holds the reason given."""
    return f"engineroom:paused:{queue_name}"


def emptying(queue_name: str) -> str:
    """Hash of the lists of jobs that were taken out of the queue to be deleted.

    Each with when that was, "" for those that were aside.
    """
    return f"engineroom:emptying:{queue_name}"


def limit(queue_name: str) -> str:
    """Hash of a queue's limits: concurrency, and count jobs for each so many ms."""
    return f"engineroom:limit:{queue_name}"


def limited(queue_name: str) -> str:
    """Sorted set of the keys of which jobs are set aside, by when there may be room (seconds)."""
    return f"engineroom:limited:{queue_name}"


def held(queue_name: str, key: str) -> str:
    """List of the queue's jobs that are set aside until their limit ``key`` has room."""
    return f"engineroom:held:{len(queue_name.encode())}:{queue_name}:{key}"


def slots(key: str) -> str:
    """Sorted set of the jobs that hold a place of the limit ``key``, by when their lease ends."""
    return f"engineroom:slots:{key}"


def drain(worker_name: str) -> str:
    """What the operator wants of one worker: ``drain:<id>`` or ``retire:<id>``."""
    return f"engineroom:drain:{worker_name}"


def stats(queue_name: str) -> str:
    """Hash of a queue's totals: finished, failed, busy_ms, wait_ms."""
    return f"engineroom:stats:{queue_name}"


def crashes(job_id: str) -> str:
    """How often the job took its worker down within the poison window."""
    return f"engineroom:crashes:{job_id}"


def settle(queue_name: str) -> str:
    """List of jobs failed by the operator whose callbacks and dependents a worker sees to."""
    return f"engineroom:settle:{queue_name}"


def strays(queue_name: str) -> str:
    """Hash of when each entry of the intermediate list was first seen lying there."""
    return f"engineroom:intermediate:{queue_name}"


def queue_of(key: bytes | str) -> str | None:
    """The queue whose waiting list or schedule ``key`` is; None for any other key."""
    text = key.decode("utf-8", "replace") if isinstance(key, bytes) else key
    if text.startswith(_QUEUE):
        name = text[len(_QUEUE) :]
        return None if name.endswith(":intermediate") else name
    if text.startswith(_SCHEDULED):
        return text[len(_SCHEDULED) :]
    return None
