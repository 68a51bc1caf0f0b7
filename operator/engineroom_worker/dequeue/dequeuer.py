"""Taking a job so that it is in some list at every moment.

One script at the top of each turn sends the heartbeat, reads the operator's requests, and moves the
first job of the ordered queues to its queue's intermediate list, with a note in the worker's hash.
If there is no job, a worker of one queue waits in BLMOVE, as a stock worker does. A worker of
several queues waits for invalidations (CLIENT TRACKING in broadcasting mode, redirected to a
subscribed connection, which works with RESP2 and any redis-py). It polls each second if the server
has no tracking.

Both waits select on the socket and on the worker's wake-up pipe, so a signal or a nudge ends them
at once. CLIENT UNBLOCK then ends a BLMOVE, and its reply is read in any case, so no job is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from engineroom_worker.dequeue.limits import limit_key
from engineroom_worker.dequeue.take_script import PUT_BACK, TAKE
from engineroom_worker.dequeue.waiting import QueueTracking, WaitingConnection
from engineroom_worker.drain import ControlRequests, paused_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engineroom_worker.wakeup import WakeupPipe

#: RQ's prefix of a queue's key.
QUEUE_PREFIX = "rq:queue:"


@dataclass(frozen=True)
class TakenJob:
    """A job between its queue and its start; ``data`` is its hash, None if the hash is missing."""

    queue_key: str
    job_id: str
    data: dict[bytes, bytes] | None


@dataclass(frozen=True)
class DequeueResult:
    """The result of one poll of Redis."""

    existed: bool
    controls: ControlRequests
    taken: TakenJob | None
    #: Whether all queues are paused or at their limit.
    paused: bool = False
    #: Longest time in seconds until the next poll.
    again: float | None = None
    #: Whether a limit applies, so that only the script may take a job.
    limited: bool = False


class Dequeuer:
    """Takes jobs from the worker's queues, and waits for jobs. ``expiry`` is seconds."""

    def __init__(
        self,
        connection: Any,
        worker_key: str,
        control_keys: Sequence[str],
        job_prefix: str,
        expiry: int,
        wakeup: WakeupPipe,
        blocking: bool = True,
    ) -> None:
        self._connection = connection
        self._worker_key = worker_key
        self._control_keys = list(control_keys)
        self._job_prefix = job_prefix
        self._expiry = expiry
        self._wakeup = wakeup
        self._take = connection.register_script(TAKE)
        self._put_back = connection.register_script(PUT_BACK)
        self._blocking = blocking
        self._blmove: WaitingConnection | None = None
        self._tracking: QueueTracking | None = None
        #: The job that this process took and has yet to start or put back: (queue key, job id).
        self.in_hand: tuple[str, str] | None = None

    def poll(
        self, queue_keys: Sequence[str], fields: Mapping[str, Any], take: bool
    ) -> DequeueResult:
        """Send a heartbeat, read requests, and, with ``take``, take the next job if allowed."""
        keys = [self._worker_key, *self._control_keys]
        for key in queue_keys:
            keys += [key, f"{key}:intermediate", self._paused_key(key)]
        hand = self.in_hand or ("", "")
        args: list[Any] = [self._job_prefix, self._expiry, "1" if take else "", *hand]
        args += [len(queue_keys), *queue_keys]
        for name, value in fields.items():
            args += [name, value]
        reply = list(self._take(keys=keys, args=args))
        existed, rq_suspended, pool_suspended, drain, paused, index, job_id, data = reply[:8]
        again, limited = reply[8:]
        self.in_hand = None
        taken = None
        if job_id is not None:
            queue_key = queue_keys[int(index) - 1]
            taken = TakenJob(queue_key, _text(job_id), dict(zip(data[::2], data[1::2])))  # noqa: B905
            self.in_hand = (queue_key, taken.job_id)
        controls = ControlRequests.read(rq_suspended, pool_suspended, drain)
        return DequeueResult(
            bool(existed),
            controls,
            taken,
            int(paused) == len(queue_keys),
            None if again is None else float(again),
            bool(limited),
        )

    def wait(
        self, queue_keys: Sequence[str], timeout: float, limited: bool = False
    ) -> TakenJob | None:
        """Wait until a job may be there, the worker is woken, or ``timeout`` seconds are over.

        Return the job if there is a single queue and it is not ``limited``. After None the caller
        has to look.
        """
        if self._blocking and len(queue_keys) == 1 and not limited:
            return self._wait_for_one(queue_keys[0], timeout)
        self._wait_for_any(queue_keys, timeout)
        return None

    def stop_watching(self) -> None:
        """Stop watching for changes, before a job starts."""
        if self._tracking is not None:
            self._tracking.turn_off()

    def put_back(self, taken: TakenJob) -> bool:
        """Return a job that was not started to the head of its queue; False if another has it."""
        keys = [taken.queue_key, f"{taken.queue_key}:intermediate", self._worker_key]
        moved = bool(self._put_back(keys=keys, args=[taken.job_id, self._job_prefix]))
        self.in_hand = None
        return moved

    def close(self) -> None:
        """Close the connections for waiting."""
        if self._blmove is not None:
            self._blmove.close()
        if self._tracking is not None:
            self._tracking.close()
        self._blmove = self._tracking = None

    def _wait_for_one(self, queue_key: str, timeout: float) -> TakenJob | None:
        if self._blmove is None:
            self._blmove = WaitingConnection(self._connection)
        connection = self._blmove
        try:
            client_id = connection.client_id()
            intermediate = f"{queue_key}:intermediate"
            connection.send("BLMOVE", queue_key, intermediate, "LEFT", "RIGHT", timeout)
            # The server answers after ``timeout``; later the connection is broken.
            if not connection.wait(timeout + 5, self._wakeup.fileno):
                self._connection.execute_command("CLIENT", "UNBLOCK", client_id, "TIMEOUT")
                if not connection.wait(5, None):
                    raise RedisConnectionError("no answer to BLMOVE")
            reply = connection.read()
        except ResponseError as error:
            if "unknown command" not in str(error).lower():
                raise
            self._blocking = False  # Redis before 6.2
            return None
        except (RedisError, OSError) as error:
            # A job of the lost reply is in the intermediate list, from which it is put back.
            connection.close()
            self._blmove = None
            if isinstance(error, RedisError):
                raise
            raise RedisConnectionError(str(error)) from error
        if reply is None:
            return None
        job_id = _text(reply)
        self.in_hand = (queue_key, job_id)
        with self._connection.pipeline(transaction=False) as pipeline:
            pipeline.hset(
                self._worker_key, mapping={"er_taken": job_id, "er_taken_from": queue_key}
            )
            pipeline.hgetall(self._job_prefix + job_id)
            name = queue_key[len(QUEUE_PREFIX) :]
            pipeline.exists(paused_key(name), limit_key(name))
            _, data, forbidden = pipeline.execute()
        taken = TakenJob(queue_key, job_id, dict(data) or None)
        if forbidden or b"er_limit" in data:
            # The queue was paused or limited during the wait, which BLMOVE does not check.
            self.put_back(taken)
            return None
        return taken

    @staticmethod
    def _paused_key(queue_key: str) -> str:
        return paused_key(queue_key[len(QUEUE_PREFIX) :])

    def _wait_for_any(self, queue_keys: Sequence[str], timeout: float) -> None:
        if self._tracking is None:
            self._tracking = QueueTracking(self._connection, queue_keys)
        tracking = self._tracking
        if tracking.unavailable:
            self._wakeup.wait(min(1.0, timeout))
            return
        if not tracking.on:
            # Changes before this are not published, so the caller has to look once more.
            tracking.turn_on()
            return
        tracking.wait(timeout, self._wakeup.fileno)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
