"""The worker: RQ's own, with the cases removed in which it loses, doubles or orphans a job.

``PoolWorkerMixin`` precedes ``rq.Worker`` of RQ 2.4 or later or RQ 3 in the class order. RQ's code
still runs the job, its retries, callbacks, results and dependents. The mixin changes how a job is
taken, how its start and end are written, how the worker waits, and how it leaves. It overrides RQ's
methods here; the work is done by ``loop``, ``bookkeeping``, ``horse_monitor`` and ``housekeeping``.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from rq.command import handle_command, parse_payload
from rq.job import Job, JobStatus
from rq.suspension import WORKERS_SUSPENDED
from rq.utils import now, utcformat
from rq.worker import Worker

from engineroom_worker import drain, executions
from engineroom_worker.bookkeeping import Bookkeeper
from engineroom_worker.dequeue.dequeuer import Dequeuer
from engineroom_worker.horse_monitor import HorseMonitor
from engineroom_worker.housekeeping import Housekeeper
from engineroom_worker.loop import WorkLoop
from engineroom_worker.observability.metrics import SharedMetrics, SlotMetrics
from engineroom_worker.record import RECORD_TTL, WorkerRecord
from engineroom_worker.state import WorkerState
from engineroom_worker.transactions import RedisRetry
from engineroom_worker.wakeup import WakeupPipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from rq.queue import Queue

    from engineroom_worker.config import Settings

#: The longest time between two heartbeats, idle or busy (seconds).
HEARTBEAT_SECONDS = 4
#: Time after a start or an outage in which maintenance declares no worker dead, so that living
#: workers can send a heartbeat (seconds).
GRACE_SECONDS = 30.0
#: Time after which the process of a retired worker exits and a new one replaces it (seconds).
RETIRED_SECONDS = 900.0
#: The longest time in which a work horse waits for Redis, unless the pool's jobs may run longer
#: (seconds).
HORSE_RETRY_SECONDS = 600.0

_STRATEGIES = {"Priority": "default", "RoundRobin": "round_robin", "Random": "random"}
_PR_SET_PDEATHSIG = 1

log = logging.getLogger("rq.worker")

#: ``rq.Worker`` follows the mixin in the class order; its types differ between RQ 2 and RQ 3.
_NextClass: Any = object


class PoolWorkerMixin(_NextClass):  # type: ignore[misc]
    """The methods of ``rq.Worker`` that a pool's worker overrides."""

    # RQ's own, whose types differ between its versions.
    connection: Any
    _executions: Any
    _stopped_job_id: Any

    retired_seconds = RETIRED_SECONDS
    heartbeat_seconds = HEARTBEAT_SECONDS
    maintenance_grace = GRACE_SECONDS

    # -- start and end of the worker -----------------------------------------------------------

    def __init__(
        self,
        settings: Settings,
        connection: Any,
        name: str,
        metrics: SharedMetrics | None = None,
        slot: int = 0,
        close_inherited: Callable[[], None] = lambda: None,
    ) -> None:
        """Create the worker of a slot; work horses call ``close_inherited`` after the fork."""
        self.settings = settings
        self._close_inherited = close_inherited
        self._registered = False
        super().__init__(
            list(settings.queues),
            name=name,
            connection=connection,
            job_monitoring_interval=5,
            serializer=settings.serializer,
        )
        self._dequeue_strategy = _STRATEGIES[settings.strategy]
        self._shared = state = self._make_state(
            SlotMetrics(metrics or SharedMetrics(slot + 1), slot)
        )
        self._record = WorkerRecord(self, state)
        self._housekeeper = Housekeeper(self, state.retry)
        self._bookkeeper = Bookkeeper(self, state, self._record, self._housekeeper)
        self._monitor = HorseMonitor(self, state, self._record, self._housekeeper, self._bookkeeper)
        self._loop = WorkLoop(self, state, self._record, self._housekeeper, self._bookkeeper)

    def _make_state(self, metrics: SlotMetrics) -> WorkerState:
        wakeup = WakeupPipe(metrics)
        control_keys = (
            WORKERS_SUSPENDED,
            drain.suspended_key(self.settings.pool),
            drain.drain_key(self.name),
        )
        dequeuer = Dequeuer(
            self.connection,
            self.key,
            control_keys,
            self.job_class.redis_job_namespace_prefix,
            RECORD_TTL,
            wakeup,
        )
        return WorkerState(
            settings=self.settings,
            metrics=metrics,
            wakeup=wakeup,
            retry=RedisRetry(log.warning, self.name, sleep=wakeup.wait),
            dequeuer=dequeuer,
            quiet_until=time.monotonic() + self.maintenance_grace,
        )

    @property
    def dequeue_timeout(self) -> int:
        """Seconds to wait for a job before the next heartbeat."""
        return self.heartbeat_seconds

    @property
    def connection_timeout(self) -> int:
        """Seconds within which Redis answers any command."""
        return 10

    def register_birth(self) -> None:
        """Register the worker with RQ and with the pool."""
        try:
            super().register_birth()
        except ValueError:
            # The name is random: only an earlier attempt of this worker can have registered it.
            if not self._registered:
                raise
        finally:
            self._registered = True
        self._record.write()

    def register_death(self) -> None:
        """Undo ``register_birth``; give up at once while Redis is unavailable."""
        self._housekeeper.leave()
        try:
            super().register_death()
            self.connection.srem(drain.workers_key(self.settings.pool), self.name)
        except RedisError as error:
            log.warning("Worker %s: left without saying so to Redis: %s", self.name, error)

    def work(
        self,
        burst: bool = False,
        logging_level: str | None = None,
        max_jobs: int | None = None,
        **_ignored: Any,
    ) -> bool:
        """Run jobs until told to stop; with ``burst``, until the queues are empty.

        Outages of Redis never end the worker. It promotes scheduled jobs itself. Return whether any
        job ran.
        """
        self._install_signal_handlers()
        level = logging_level or self.settings.log_level
        return self._loop.run(level, burst=burst, max_jobs=max_jobs)

    # -- signals and commands ------------------------------------------------------------------

    def _install_signal_handlers(self) -> None:
        self._shared.wakeup.catch_signals()
        signal.signal(signal.SIGTERM, self.request_stop)
        signal.signal(signal.SIGINT, self.request_stop)
        signal.signal(signal.SIGCHLD, _ignore_signal)

    def request_stop(self, signum: Any, frame: Any) -> None:
        """Stop after the current job; further signals have no effect.

        The handler only records the request and raises nothing, so there is no moment between
        dequeue and start at which a job could be lost (rq issue 2236).
        """
        if self._shared.stopping_since is None:
            self._shared.stopping_since = time.monotonic()
            self._shutdown_requested_date = now()
        self._stop_requested = True

    def handle_payload(self, message: dict[str, Any]) -> None:
        """Handle a command from the worker's pubsub channel; runs in the listener's thread."""
        try:
            payload = parse_payload(message)
            if payload.get("command") == drain.WAKE_COMMAND:
                self._shared.wakeup.nudge()
            else:
                handle_command(self, payload)
        except Exception:
            log.exception("Worker %s: could not handle a command", self.name)

    def _pubsub_exception_handler(self, exc: Exception, pubsub: Any, pubsub_thread: Any) -> None:
        """Keep listening through errors; a lost command only delays the worker."""
        log.debug("Worker %s: listening for commands again: %s", self.name, exc)
        time.sleep(1.0)

    def unsubscribe(self) -> None:
        """Stop listening for commands, without waiting for Redis."""
        thread = self.pubsub_thread
        if thread is not None:
            with contextlib.suppress(RedisError, OSError):
                self.pubsub.unsubscribe()
            thread.stop()
            thread.join(timeout=0.2)

    # -- heartbeats ----------------------------------------------------------------------------

    def set_state(self, state: Any, pipeline: Any = None) -> None:
        """Set the state; the next heartbeat writes it, unless a transaction does."""
        self._state = state
        if pipeline is not None:
            super().set_state(state, pipeline=pipeline)

    def set_current_job_working_time(self, seconds: float, pipeline: Any = None) -> None:
        """Set RQ 2's running time of the job; the next heartbeat writes it."""
        self.current_job_working_time = seconds
        if pipeline is not None:
            pipeline.hset(self.key, "current_job_working_time", seconds)

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Add RQ's heartbeat to a pipeline; the loop and the monitor send all others."""
        if pipeline is not None:
            self.last_heartbeat = now()
            pipeline.hset(self.key, "last_heartbeat", utcformat(self.last_heartbeat))
            pipeline.expire(self.key, RECORD_TTL)

    def get_heartbeat_ttl(self, job: Job, *_working_time: Any) -> int:
        """Return the seconds for which an execution is valid without a heartbeat."""
        return executions.EXECUTION_TTL

    # -- start of a job ------------------------------------------------------------------------

    def prepare_execution(self, job: Job) -> Any:
        """Start the job, unless it is no longer in this worker's hand. Raises NotHeldError."""
        self._monitor.reset()
        prepare = super().prepare_execution
        return self._bookkeeper.start(job, lambda: prepare(job))

    def prepare_job_execution(self, job: Job, remove_from_intermediate_queue: bool = False) -> None:
        """Write nothing in the work horse: the start has written all of it."""
        job._status = JobStatus.STARTED
        if executions.RQ_MAJOR < 3:
            _skip_persist(job)
        self.procline(f"Processing {job.func_name} from {job.origin} since {time.time()}")

    def fork_work_horse(self, job: Job, queue: Queue) -> None:
        """Fork the process that runs the job."""
        self._parent_pid = os.getpid()
        super().fork_work_horse(job, queue)
        # The horse does so too; until then, killing its group would kill this worker.
        with contextlib.suppress(OSError):
            os.setpgid(self._horse_pid, self._horse_pid)

    def setup_work_horse_signals(self) -> None:
        """Prepare the work horse: RQ's signals, no pipes of the worker, death with the worker.

        Otherwise a job would go on after its worker was killed, while the operator gives it to
        another worker.
        """
        self._shared.wakeup.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _die_with_parent(self._parent_pid)
        self._close_inherited()
        limit = max(HORSE_RETRY_SECONDS, float(self.settings.max_job_duration))
        self._shared.retry.limit_to(limit)
        super().setup_work_horse_signals()

    # -- while the job runs --------------------------------------------------------------------

    def monitor_work_horse(self, job: Job, queue: Queue, *execution: Any) -> None:
        """Wait for the work horse, and let RQ handle an abnormal end."""
        wait = functools.partial(super().monitor_work_horse, job, queue, *execution)
        self._monitor.monitor(job, queue, wait, self._loop.on_outage)

    def wait_for_horse(self) -> tuple[Any, Any, Any]:
        """Return pid, status and resource usage of the work horse after its end."""
        # RQ set an alarm for its own heartbeats, which the monitor does not need.
        signal.alarm(0)
        return self._monitor.wait_for_exit()

    # -- end of a job --------------------------------------------------------------------------

    def handle_execution_ended(self, job: Job, queue: Queue, heartbeat_ttl: int) -> None:
        """Record the time of the end; the transaction that follows includes RQ's heartbeat.

        A round trip of its own would fail the job in an outage of Redis.
        """
        job.ended_at = job.last_heartbeat = now()

    def handle_job_success(self, job: Job, queue: Queue, *args: Any, **kwargs: Any) -> None:
        """Write RQ's end of a successful job once, through outages of Redis."""
        self._bookkeeper.end("finished", job, queue, super().handle_job_success, args, kwargs)

    def handle_job_failure(self, job: Job, queue: Queue, *args: Any, **kwargs: Any) -> None:
        """Write RQ's end of a failed job once, through outages of Redis."""
        self._bookkeeper.end("failed", job, queue, super().handle_job_failure, args, kwargs)

    def handle_job_retry(self, job: Job, queue: Queue, *args: Any, **kwargs: Any) -> None:
        """Write RQ's end of a job that returned a Retry once, through outages of Redis."""
        self._bookkeeper.end("failed", job, queue, super().handle_job_retry, args, kwargs)

    def clean_registries(self) -> None:
        """Run RQ's maintenance, without the parts that can double a job."""
        for queue in self.queues:
            self._housekeeper.clean(queue)
        self.last_cleaned_at = now()


class PoolWorker(PoolWorkerMixin, Worker):  # type: ignore[misc]
    """The worker that ``python -m engineroom_worker`` runs."""


def _ignore_signal(signum: int, frame: Any) -> None:
    """Do nothing; having a handler makes Python write the signal to the wake-up pipe."""


def _skip_persist(job: Job) -> None:
    """Skip the PERSIST that RQ 2 sends just before it calls the function.

    The start has sent it already, and in an outage of Redis the job would fail without having run.
    """
    connection: Any = job.connection

    def persist(name: str) -> bool:
        del connection.persist
        return True

    connection.persist = persist


try:
    _LIBC: Any = ctypes.CDLL(None)
except OSError:
    _LIBC = None


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when ``parent`` dies; exit if it has died already."""
    if _LIBC is not None:
        with contextlib.suppress(AttributeError):
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
