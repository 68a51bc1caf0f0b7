"""Names of keys in Redis: RQ's own, which are the same in RQ 2 and 3, and Engineroom's."""

from __future__ import annotations

from engineroom.core import key_prefixes
from engineroom.core.redis_replies import text

_QUEUE = "rq:queue:"
_SCHEDULED = "rq:scheduled:"

#: Prefixes of keys whose changes mean that a pool may have work.
PUSH_PREFIXES = (_QUEUE, _SCHEDULED)


def queue(name: str) -> str:
    """Return the key of RQ's list of waiting job ids."""
    return f"{_QUEUE}{name}"


def intermediate(name: str) -> str:
    """Return the key of RQ's list of job ids that were taken and have yet to start."""
    return f"{_QUEUE}{name}:intermediate"


def started(name: str) -> str:
    """Return the key of RQ's sorted set of ``job:execution``, by the time of abandonment."""
    return f"rq:wip:{name}"


def scheduled(name: str) -> str:
    """Return the key of RQ's sorted set of scheduled job ids, by due time."""
    return f"{_SCHEDULED}{name}"


def failed(name: str) -> str:
    """Return the key of RQ's sorted set of failed job ids, by expiry time."""
    return f"rq:failed:{name}"


def finished(name: str) -> str:
    """Return the key of RQ's sorted set of finished job ids, by expiry time."""
    return f"rq:finished:{name}"


def deferred(name: str) -> str:
    """Return the key of RQ's sorted set of job ids that wait for other jobs."""
    return f"rq:deferred:{name}"


def canceled(name: str) -> str:
    """Return the key of RQ's sorted set of canceled job ids, by expiry time."""
    return f"rq:canceled:{name}"


def job(job_id: str) -> str:
    """Return the key of RQ's hash of a job."""
    return f"rq:job:{job_id}"


def worker(name: str) -> str:
    """Return the key of RQ's hash of a worker."""
    return f"rq:worker:{name}"


def executions_of_worker(name: str) -> str:
    """Return the key of RQ 3's set of a worker's executions."""
    return f"rq:worker:{name}:executions"


def worker_channel(name: str) -> str:
    """Return RQ's channel for commands to a worker."""
    return f"rq:pubsub:{name}"


def pool_workers(pool: str) -> str:
    """Return the key of the set of the pool's worker names; ``pool`` is ``namespace/name``."""
    return f"{key_prefixes.POOL_WORKERS}{{{pool}}}"


def pool_suspended(pool: str) -> str:
    """Return the key that exists while the pool's workers must take no jobs."""
    return f"{key_prefixes.POOL_SUSPENDED}{{{pool}}}"


def paused(queue_name: str) -> str:
    """Return the key that exists while the queue is paused; it holds the reason."""
    return f"{key_prefixes.PAUSED}{queue_name}"


def emptying(queue_name: str) -> str:
    """Return the key of the hash of lists of jobs that were taken out of the queue for deletion.

    Its values are the time of removal, or "" for jobs that a limit held.
    """
    return f"{key_prefixes.EMPTYING}{queue_name}"


def limit(queue_name: str) -> str:
    """Return the key of the queue's limits: concurrency, and count per ms."""
    return f"{key_prefixes.LIMIT}{queue_name}"


def limited(queue_name: str) -> str:
    """Return the key of the sorted set of limit keys with held jobs, by when there may be room."""
    return f"{key_prefixes.LIMITED}{queue_name}"


def held(queue_name: str, key: str) -> str:
    """Return the key of the list of jobs that wait until their limit ``key`` has room."""
    return f"{key_prefixes.HELD}{len(queue_name.encode())}:{queue_name}:{key}"


def slots(key: str) -> str:
    """Return the key of the sorted set of jobs that hold a slot, by the end of their lease."""
    return f"{key_prefixes.SLOTS}{key}"


def drain(worker_name: str) -> str:
    """Return the key of the request to a worker: ``drain:<id>`` or ``retire:<id>``."""
    return f"{key_prefixes.DRAIN}{worker_name}"


def stats(queue_name: str) -> str:
    """Return the key of the queue's totals: finished, failed, busy_ms, wait_ms."""
    return f"{key_prefixes.STATS}{queue_name}"


def crashes(job_id: str) -> str:
    """Return the key of the number of workers that the job crashed within the poison window."""
    return f"{key_prefixes.CRASHES}{job_id}"


def settle(queue_name: str) -> str:
    """Return the key of the list of jobs that the operator failed, for workers to settle."""
    return f"{key_prefixes.SETTLE}{queue_name}"


def strays(queue_name: str) -> str:
    """Return the key of the hash of times at which intermediate entries were first seen."""
    return f"{key_prefixes.STRAYS}{queue_name}"


def queue_of(key: bytes | str) -> str | None:
    """Return the queue of a waiting list or schedule; None for any other key."""
    full = text(key)
    if full.startswith(_QUEUE):
        name = full[len(_QUEUE) :]
        return None if name.endswith(":intermediate") else name
    if full.startswith(_SCHEDULED):
        return full[len(_SCHEDULED) :]
    return None
