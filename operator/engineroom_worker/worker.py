"""The worker: RQ's own, with the ways to lose, double or orphan a job taken out.

``PoolWorkerMixin`` goes before ``rq.Worker`` of RQ 2.4 or later or RQ 3.  What runs the job, its
retries, callbacks, results and dependents stays RQ's code; what is changed is how a job is taken,
how its start and end are booked, how the worker waits, and how it leaves.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from rq import worker_registration
from rq.command import handle_command, parse_payload
from rq.exceptions import NoSuchJobError
from rq.executions import ExecutionRegistry
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.registry import FailedJobRegistry
from rq.suspension import WORKERS_SUSPENDED
from rq.utils import now, utcformat
from rq.worker import Worker

from engineroom_worker import drain, limits, logs, out_of_memory, tracing
from engineroom_worker.dequeue import Desk, Taken
from engineroom_worker.housekeeping import EXECUTION_TTL, RQ_MAJOR, Housekeeper, bind_status
from engineroom_worker.metrics import DRAIN_STATES, STATES, Board, cpu_seconds, resident_bytes
from engineroom_worker.transactions import (
    Command,
    Guard,
    GuardedConnection,
    NotHeldError,
    OutageError,
    Patience,
    is_outage,
    recorded,
)
from engineroom_worker.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from engineroom_worker.config import Settings

#: Heartbeats come at least so often, idle or busy.
HEARTBEAT_SECONDS = 4
#: The worker's hash outlives its worker so long, for the operator to read what it held.
RECORD_TTL = 480
#: After a start or an outage live workers get this long to show themselves before anybody is
#: declared dead by maintenance.
GRACE_SECONDS = 30.0
#: A retired worker's process makes room for a fresh one after so long.
RETIRED_SECONDS = 900.0
#: A worker that is told to end while a job runs lets go of it this long before the kill.
DEADLINE_MARGIN = 10.0

_PR_SET_PDEATHSIG = 1

log = logging.getLogger("rq.worker")


#: ``rq.Worker`` stands behind the mixin; its types differ between RQ 2 and RQ 3.
_Behind: Any = object


class PoolWorkerMixin(_Behind):  # type: ignore[misc]
    """What a worker of a pool does differently from ``rq.Worker``, which stands behind it."""

    # RQ's own, whose types differ between its versions.
    connection: Any
    _executions: Any
    _stopped_job_id: Any

    retired_seconds = RETIRED_SECONDS
    heartbeat_seconds = HEARTBEAT_SECONDS
    maintenance_grace = GRACE_SECONDS

    # -- birth ---------------------------------------------------------------------------------

    def __init__(
        self,
        settings: Settings,
        connection: Any,
        name: str,
        board: Board | None = None,
        slot: int = 0,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        """``forget`` is called in work horses, to drop what is the worker's alone."""
        self.settings = settings
        self._board = board or Board(slot + 1)
        self._slot = slot
        self._forget = forget
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._nudged = threading.Event()
        self._stopping_since: float | None = None
        self._horse_exit: tuple[Any, Any, Any] | None = None
        self._let_go = False
        self._outcome = ""
        self._controls = drain.Controls()
        self._retired_since: float | None = None
        self._drain_shown = ""
        self._running: Any = None
        self._has_priority = False
        self._tracing: tracing.Tracing | tracing.NoTracing = tracing.NoTracing()
        self._limit = ""
        self._born = False
        self._next_weighing = 0.0
        self._spent, self._weighed = cpu_seconds(), time.monotonic()
        self._quiet_until = time.monotonic() + self.maintenance_grace
        self._failures = 0
        super().__init__(
            list(settings.queues),
            name=name,
            connection=connection,
            job_monitoring_interval=5,
            serializer=settings.serializer,
        )
        self._dequeue_strategy = {
            "Priority": "default",
            "RoundRobin": "round_robin",
            "Random": "random",
        }[settings.strategy]
        self._patience = Patience(log.warning, name, sleep=self._pause)
        self._desk = Desk(
            self.connection,
            self.key,
            (WORKERS_SUSPENDED, drain.suspended_key(settings.pool), drain.drain_key(name)),
            self.job_class.redis_job_namespace_prefix,
            RECORD_TTL,
            self._wake_read,
            self._pause,
        )
        self._housekeeper = Housekeeper(self, self._patience)

    @property
    def dequeue_timeout(self) -> int:
        """Seconds to wait for a job before the next heartbeat."""
        return self.heartbeat_seconds

    @property
    def connection_timeout(self) -> int:
        """Seconds within which Redis answers any command."""
        return 10

    def register_birth(self) -> None:
        """Announce the worker to RQ and to the pool."""
        try:
            super().register_birth()
        except ValueError:
            # The name is random: it is taken only by an attempt of ours whose reply was lost.
            if not self._born:
                raise
        finally:
            self._born = True
        self._announce()

    def register_death(self) -> None:
        """Take back what ``register_birth`` announced; gives up at once when Redis is away."""
        self._housekeeper.leave()
        try:
            super().register_death()
            self.connection.srem(drain.workers_key(self.settings.pool), self.name)
        except RedisError as error:
            log.warning("Worker %s: left without saying so to Redis: %s", self.name, error)

    def _announce(self) -> None:
        """Write the whole record, as at birth; needed again when Redis has lost it."""
        born = self.birth_date or now()
        fields: dict[str, Any] = {
            "birth": utcformat(born),
            "last_heartbeat": utcformat(now()),
            "queues": ",".join(self.queue_names()),
            "pid": self.pid,
            "hostname": self.hostname or "",
            "ip_address": self.ip_address,
            "version": self.version,
            "python_version": self.python_version,
            "er_pool": self.settings.pool,
            "er_pod": self.settings.pod_name,
            "er_pod_uid": self.settings.pod_uid,
            "er_version": VERSION,
            "er_memory": resident_bytes(os.getpid()),
        }
        held = self._held_execution()
        fields.update(self._holding(held) if held else self._holding_nothing())
        with self.connection.pipeline(transaction=False) as pipeline:
            pipeline.hset(self.key, mapping=fields)
            for field in ("er_drain", "er_drain_id"):
                pipeline.hsetnx(self.key, field, "")
            pipeline.expire(self.key, RECORD_TTL)
            worker_registration.register(self, pipeline)
            pipeline.sadd(drain.workers_key(self.settings.pool), self.name)
            pipeline.execute()

    # -- the loop ------------------------------------------------------------------------------

    def work(
        self,
        burst: bool = False,
        logging_level: str | None = None,
        max_jobs: int | None = None,
        **_ignored: Any,
    ) -> bool:
        """Work until told to end; with ``burst`` until there is nothing to do.

        Redis being away never ends it.  Scheduled jobs are promoted by the worker itself.
        """
        self._install_signal_handlers()
        self._tracing = tracing.start(self.settings.pool, VERSION)
        self._until_redis(lambda: self.bootstrap(logging_level or self.settings.log_level))
        self._board.set(self._slot, "alive", 1)
        done = 0
        try:
            while not self._stop_requested and (max_jobs is None or done < max_jobs):
                try:
                    worked = self._turn(burst)
                    self._failures = 0
                except RedisError as error:
                    if is_outage(error):
                        self._outage(error)
                        continue
                    log.exception("Worker %s: Redis refuses", self.name)
                    self._stumble()
                    continue
                except NotHeldError as error:
                    log.warning("Worker %s: %s is no longer mine, let go", self.name, error)
                    continue
                except Exception:  # one bad job must not take the worker down
                    log.exception("Worker %s: a turn of the loop failed", self.name)
                    self._stumble()
                    continue
                if worked is None:
                    break
                done += worked
                if self._retired_since is not None and (
                    time.monotonic() - self._retired_since > self.retired_seconds
                ):
                    log.info("Worker %s: retired, making room for a fresh one", self.name)
                    break
        finally:
            self._board.set(self._slot, "alive", 0)
            self._desk.close()
            self.teardown()
            self._tracing.stop()
        return bool(done)

    def _turn(self, burst: bool) -> int | None:
        """One look at Redis and what follows: jobs done (0 or 1), or None to end."""
        self._board.set(self._slot, "looped", time.monotonic())
        self._reap_strangers()
        self._housekeeper.promote()
        if self.should_run_maintenance_tasks and time.monotonic() > self._quiet_until:
            self.run_maintenance_tasks()
        keys = [queue.key for queue in self._ordered_queues]
        wanted = not self._stop_requested and self._retired_since is None
        look = self._desk.look(keys, self._vital_signs(), take=wanted)
        self._answered()
        if not look.existed:
            self._announce()
        self._heed(look.controls)
        taken = look.taken
        if taken is None:
            if burst:
                return None
            if look.controls.suspended or look.paused or self._resting():
                self._desk.stop_watching()
                self._pause(1.0 if look.again is None else min(1.0, look.again))
                return 0
            seconds = self._idle_seconds()
            if look.again is not None:
                seconds = max(0.01, min(seconds, look.again))
            taken = self._desk.wait(keys, seconds, look.limited)
            if taken is None:
                return 0
        self._desk.stop_watching()
        if self._stop_requested:
            self._desk.put_back(taken)
            return 0
        return self._run(taken)

    def _run(self, taken: Taken) -> int:
        queue = next(queue for queue in self.queues if queue.key == taken.queue_key)
        job = self._job_of(taken, queue)
        if job is None:
            return 0
        self.reorder_queues(queue)
        job.redis_server_version = self.get_redis_server_version()
        described = job.description if self.log_job_description else ""
        log.info("Worker %s: %s: %s (%s)", self.name, queue.name, described, job.id)
        self._desk_queue = queue
        started = time.monotonic()
        self._board.set(self._slot, "started", time.time())
        try:
            with self._tracing.job(job, queue.name) as traced:
                ids = {**logs.ids_of(job.meta), **traced}
                with logs.bound(**{**ids, "object": self.settings.pool, "job_id": job.id}):
                    self.execute_job(job, queue)
        finally:
            self._board.set(self._slot, "started", 0)
            self._board.set(self._slot, "state", STATES.index("idle"))
            self._board.add(self._slot, "busy_seconds", time.monotonic() - started)
            self._drop_executions()
            self._horse_pid = 0
        return 1

    def _job_of(self, taken: Taken, queue: Queue) -> Job | None:
        """The job as RQ makes it of its hash; a hash that makes no job is failed, not dropped."""
        if not taken.data:
            self.connection.lrem(queue.intermediate_queue_key, 1, taken.job_id)
            self._desk.in_hand = None
            return None
        job: Job = self.job_class(
            taken.job_id, connection=self.connection, serializer=self.serializer
        )
        try:
            job.restore(taken.data)
        except Exception as error:
            log.exception("Worker %s: job %s cannot be read", self.name, taken.job_id)
            with self.connection.pipeline() as pipeline:
                pipeline.lrem(queue.intermediate_queue_key, 1, taken.job_id)
                if not isinstance(error, NoSuchJobError):
                    pipeline.hset(job.key, mapping={"status": "failed"})
                    expiry = time.time() + self.settings.dead_letter_ttl
                    registry = FailedJobRegistry(queue=queue)
                    pipeline.zadd(registry.key, {taken.job_id: expiry})
                pipeline.execute()
            self._desk.in_hand = None
            return None
        self._has_priority = b"er_priority" in taken.data
        leased = b"er_limit_concurrency" in taken.data
        self._limit = taken.data.get(b"er_limit", b"").decode() if leased else ""
        # What has no time to live of its own in the failed registry gets the pool's.
        if job.failure_ttl is None:
            job.failure_ttl = self.settings.dead_letter_ttl
        return job

    def _vital_signs(self) -> dict[str, Any]:
        self.last_heartbeat = now()
        fields: dict[str, Any] = {"last_heartbeat": utcformat(self.last_heartbeat)}
        at = time.monotonic()
        if at >= self._next_weighing:
            # Not with every job: reading it costs as much as a round trip to Redis.
            self._next_weighing = at + self.heartbeat_seconds / 2
            horse = [self._horse_pid] if self._horse_pid else []
            fields["er_memory"] = resident_bytes(os.getpid(), *horse)
            self._board.set(self._slot, "memory", fields["er_memory"])
            fields.update(out_of_memory.news(self._board, self._slot))
            spent = cpu_seconds(*horse)
            cores = max(0.0, spent - self._spent) / max(0.1, at - self._weighed)
            self._spent, self._weighed = spent, at
            fields["er_cpu"] = f"{cores:.3f}"
            self._board.set(self._slot, "cpu", cores)
            self._board.set(self._slot, "cpu_seconds", spent)
        if self._shutdown_requested_date is not None:
            fields["shutdown_requested_date"] = utcformat(self._shutdown_requested_date)
        return fields

    def _heed(self, controls: drain.Controls) -> None:
        """Take note of what is asked; the script has already written the answer."""
        if controls != self._controls:
            log.info("Worker %s: now %s", self.name, _say(controls))
        self._controls = controls
        self._state = "suspended" if controls.suspended else "idle"
        if controls.retired and self._retired_since is None:
            self._retired_since = time.monotonic()
        self._board.set(self._slot, "state", STATES.index(self._state))
        self._board.set(self._slot, "drain", DRAIN_STATES.index(controls.drain))

    def _resting(self) -> bool:
        return self._controls.leaving or self._retired_since is not None

    def _answered(self) -> None:
        self._patience.over()
        self._board.set(self._slot, "heartbeat", time.time())

    def _outage(self, error: BaseException) -> None:
        if not self._patience.waiting:
            self._board.add(self._slot, "outages")
        self._quiet_until = time.monotonic() + self.maintenance_grace
        self._board.set(self._slot, "looped", time.monotonic())
        self._housekeeper.outage()
        self._desk.close()
        self._patience.wait(error)

    def _stumble(self) -> None:
        """Something unforeseen: go on, unless it is all that happens."""
        self._failures += 1
        if self._failures >= 10:
            raise SystemExit(1)
        self._pause(min(30.0, 0.5 * 2**self._failures))

    def _until_redis(self, action: Callable[[], Any]) -> Any:
        while True:
            try:
                result = action()
            except RedisError as error:
                if not is_outage(error):
                    raise
                if self._stop_requested:
                    raise SystemExit(0) from None
                self._patience.wait(error)
                continue
            self._patience.over()
            return result

    # -- signals and waiting -------------------------------------------------------------------

    def _install_signal_handlers(self) -> None:
        # Python writes the number of each handled signal to the pipe that all waits select on.
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self.request_stop)
        signal.signal(signal.SIGINT, self.request_stop)
        signal.signal(signal.SIGCHLD, _take_note)

    def request_stop(self, signum: Any, frame: Any) -> None:
        """Finish the job in hand and go; said again it changes nothing.

        Only notes the wish: nothing is ever thrown into whatever is going on, so there is no
        moment between dequeue and start at which a job could be dropped (rq issue 2236).
        """
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
            self._shutdown_requested_date = now()
        self._stop_requested = True

    def _pause(self, seconds: float) -> bool:
        """Wait for at most ``seconds``; True when a signal or a nudge came."""
        self._board.set(self._slot, "looped", time.monotonic())
        readable, _, _ = select.select([self._wake_read], [], [], max(0.0, seconds))
        if readable:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 65536)
        return bool(readable)

    def _nudge(self) -> None:
        """Make the main thread look at Redis now; called from the pubsub thread."""
        self._nudged.set()
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    def handle_payload(self, message: dict[str, Any]) -> None:
        """A command from RQ's pubsub channel of this worker."""
        try:
            payload = parse_payload(message)
            if payload.get("command") == drain.WAKE_COMMAND:
                self._nudge()
            else:
                handle_command(self, payload)
        except Exception:
            log.exception("Worker %s: could not handle a command", self.name)

    def _pubsub_exception_handler(self, exc: Exception, pubsub: Any, pubsub_thread: Any) -> None:
        """Keep listening whatever Redis does; what is lost meanwhile costs time only."""
        log.debug("Worker %s: listening for commands again: %s", self.name, exc)
        time.sleep(1.0)

    def unsubscribe(self) -> None:
        """Stop listening for commands; never waits for a Redis that is away."""
        thread = self.pubsub_thread
        if thread is not None:
            with contextlib.suppress(RedisError, OSError):
                self.pubsub.unsubscribe()
            thread.stop()
            thread.join(timeout=0.2)

    def _reap_strangers(self) -> None:
        """As PID 1, collect the orphans of jobs; called while there is no work horse."""
        if os.getpid() != 1:
            return
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    def set_state(self, state: Any, pipeline: Any = None) -> None:
        """The state is written with the next heartbeat, except inside a transaction."""
        self._state = state
        if pipeline is not None:
            super().set_state(state, pipeline=pipeline)

    def set_current_job_working_time(self, seconds: float, pipeline: Any = None) -> None:
        """RQ 2's running time of the job, written with the heartbeat."""
        self.current_job_working_time = seconds
        if pipeline is not None:
            pipeline.hset(self.key, "current_job_working_time", seconds)

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Heartbeats are sent by the loop and while a job runs; RQ's own calls join a pipeline."""
        if pipeline is not None:
            self.last_heartbeat = now()
            pipeline.hset(self.key, "last_heartbeat", utcformat(self.last_heartbeat))
            pipeline.expire(self.key, RECORD_TTL)

    # -- start ---------------------------------------------------------------------------------

    def prepare_execution(self, job: Job) -> Any:
        """Start the job: RQ's transaction, applied only if the job is still in our hand.

        Also does what RQ's work horse would do on its own connection a moment later, so that the
        job is started for everybody from this transaction on.
        """
        queue: Queue = self._desk_queue
        self._horse_exit = None
        self._let_go = False
        self._started_at = now()
        self._waited = self._started_at - job.enqueued_at if job.enqueued_at else timedelta(0)
        guard = Guard(
            "start",
            (queue.intermediate_queue_key, job.started_job_registry.key),
            member=lambda: self._execution_of().composite_key,
            token=lambda: job.id,
            extra=lambda: self._start_extras(job, queue),
            patience=self._patience,
        )
        try:
            with self._guarded(guard, job):
                prepared = super().prepare_execution(job)
        except NotHeldError:
            self._drop_executions()
            self._desk.in_hand = None
            raise
        self._desk.in_hand = None
        self._running = self._execution_of()
        self._board.set(self._slot, "state", STATES.index("busy"))
        return prepared

    def _start_extras(self, job: Job, queue: Queue) -> list[Command]:
        execution = self._execution_of()
        stamp = utcformat(self._started_at)
        fields = {
            **self._vital_signs(),
            **self._holding((job.id, execution.id, queue.name)),
            "er_job_timeout": Queue.DEFAULT_TIMEOUT if job.timeout is None else job.timeout,
            "er_taken": "",
        }
        if RQ_MAJOR < 3:
            fields.update({"current_job": job.id, "current_job_working_time": 0})
        job.worker_name = self.name
        job.started_at = job.last_heartbeat = self._started_at
        return [
            ("HSET", self.key, *_flat(fields)),
            ("EXPIRE", self.key, RECORD_TTL),
            (
                "HSET",
                job.key,
                "status",
                JobStatus.STARTED.value,
                "started_at",
                stamp,
                "last_heartbeat",
                stamp,
                "worker_name",
                self.name,
            ),
            ("PERSIST", job.key),
        ]

    def prepare_job_execution(self, job: Job, remove_from_intermediate_queue: bool = False) -> None:
        """In the work horse: all that RQ books here was booked with the start."""
        job._status = JobStatus.STARTED
        if RQ_MAJOR < 3:
            self._skip_persist(job)
        self.procline(f"Processing {job.func_name} from {job.origin} since {time.time()}")

    def _skip_persist(self, job: Job) -> None:
        """RQ 2 persists the job's key just before it calls the function; the start did that.

        Were Redis away in this moment, the job would fail without having run.
        """
        connection: Any = job.connection

        def persist(name: str) -> bool:
            del connection.persist
            return True

        connection.persist = persist

    # -- while it runs -------------------------------------------------------------------------

    def fork_work_horse(self, job: Job, queue: Queue) -> None:
        """Fork the process that runs the job."""
        self._parent_pid = os.getpid()
        super().fork_work_horse(job, queue)
        # The horse does so too; until it has, killing its group would kill this worker.
        with contextlib.suppress(OSError):
            os.setpgid(self._horse_pid, self._horse_pid)

    def setup_work_horse_signals(self) -> None:
        """In the work horse: RQ's signals, and an end together with its worker.

        Without the latter a job would go on after its worker was killed, while the operator gives
        it to another worker.
        """
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _die_with_parent(self._parent_pid)
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._forget()
        # The main thread is this one; RQ's retries of Redis wait here without the worker's pipe.
        limit = max(600.0, float(self.settings.max_job_duration))
        self._patience = Patience(log.warning, self.name, limit)
        super().setup_work_horse_signals()

    def monitor_work_horse(self, job: Job, queue: Queue, *execution: Any) -> None:
        """Wait for the work horse, then let RQ see to an end that was not a normal one."""
        self._job_in_hand = job
        while True:
            try:
                if not self._let_go:
                    super().monitor_work_horse(job, queue, *execution)
                if self._let_go:
                    self._part_with(job, queue)
                return
            except NotHeldError as error:
                log.warning("Worker %s: %s was settled by another", self.name, error)
                return
            except RedisError as error:
                if not is_outage(error):
                    raise
                self._outage(error)

    def wait_for_horse(self) -> tuple[Any, Any, Any]:
        """Watch over the work horse until it ends, keeping up heartbeats; RQ calls this."""
        # RQ set an alarm for its own heartbeats; this loop needs none.
        signal.alarm(0)
        if self._horse_exit is None:
            self._horse_exit = self._watch_horse()
        # After a parting RQ must not book the exit as an accident.
        return (self._horse_exit[0], os.EX_OK, None) if self._let_go else self._horse_exit

    def _watch_horse(self) -> tuple[Any, Any, Any]:
        job = self._job_in_hand
        started = time.monotonic()
        beat = started + self.heartbeat_seconds
        killed = False
        while True:
            try:
                pid, status, usage = os.wait4(self._horse_pid, os.WNOHANG)
            except ChildProcessError:
                return None, None, None
            if pid:
                return pid, status, usage
            at = time.monotonic()
            self._board.set(self._slot, "looped", at)
            timeout = job.timeout if job.timeout is not None else Queue.DEFAULT_TIMEOUT
            overdue = timeout > 0 and at - started > timeout + 60
            deadline = self._deadline(started)
            if not killed and deadline is not None and at >= deadline:
                self._let_go = killed = True
                self.kill_horse()
            elif not killed and overdue:
                # The horse's own alarm did not go off: its interpreter hangs.
                killed = True
                self.kill_horse()
            if at >= beat or self._nudged.is_set():
                self._nudged.clear()
                beat = at + self.heartbeat_seconds
                try:
                    self._beat(job, at - started)
                except RedisError as error:
                    self._quiet_until = at + self.maintenance_grace
                    if not self._patience.waiting:
                        self._board.add(self._slot, "outages")
                        with contextlib.suppress(OutageError):
                            self._patience.wait(error)
                    beat = time.monotonic() + 1.0
            self._housekeeper.promote()
            wake = min(beat, deadline or beat, self._housekeeper.due())
            self._pause(wake - time.monotonic())

    def _deadline(self, started: float) -> float | None:
        """When to let go of the job: None as long as nobody wants the worker to leave.

        The job gets its ``maxJobDuration`` from its start, but never longer than until shortly
        before the kubelet kills the container. A worker that drains is in no such hurry; yet its
        pod could not leave before the job, so the same duration holds.
        """
        longest = float(self.settings.max_job_duration)
        if self._stopping_since is None:
            return started + longest if self._controls.leaving else None
        margin = min(DEADLINE_MARGIN, longest / 10)
        return min(started + longest, self._stopping_since + longest - margin)

    def _beat(self, job: Job, running: float) -> None:
        """Heartbeat of worker, execution and job, and what is asked, in one round trip."""
        execution = self._running
        fields = self._vital_signs()
        if RQ_MAJOR < 3:
            fields["current_job_working_time"] = running
        guard = Guard(
            "end",
            (job.started_job_registry.key, self.key),
            member=lambda: execution.composite_key,
            token=lambda: "",
            extra=list,
            patience=self._patience,
        )
        execution.last_heartbeat = now()

        def refresh(pipeline: Any) -> None:
            # All of it, not RQ's refresh: what expired in an outage must come back whole.
            execution.save(EXECUTION_TTL, pipeline=pipeline)
            ExecutionRegistry(job.id, connection=pipeline).add(
                execution, ttl=EXECUTION_TTL, pipeline=pipeline
            )
            job.started_job_registry.add_execution(execution, pipeline=pipeline, ttl=EXECUTION_TTL)
            job.heartbeat(now(), EXECUTION_TTL, pipeline=pipeline)
            if RQ_MAJOR >= 3:
                pipeline.sadd(self.executions_key, execution.composite_key)
                pipeline.expire(self.executions_key, RECORD_TTL)
            if self._limit:
                slots = limits.slots_key(self._limit)
                pipeline.zadd(slots, {job.id: time.time() + limits.LEASE})
                pipeline.expire(slots, 2 * limits.LEASE)

        with self.connection.pipeline(transaction=False) as pipeline:
            pipeline.exists(self.key)
            pipeline.hset(self.key, mapping=fields)
            pipeline.expire(self.key, RECORD_TTL)
            pipeline.mget(
                WORKERS_SUSPENDED,
                drain.suspended_key(self.settings.pool),
                drain.drain_key(self.name),
            )
            pipeline.execute_command(*guard.command(recorded(self.connection, refresh)))
            existed, _, _, asked, _ = pipeline.execute()
        self._answered()
        if not existed:
            self._announce()
        self._show_drain(drain.Controls.read(*asked))

    def _show_drain(self, controls: drain.Controls) -> None:
        """A busy worker that is asked to leave says that it heard so; drained it is only later."""
        shown = drain.DRAINING if controls.leaving else ""
        if shown == self._drain_shown and controls.drain_id == self._controls.drain_id:
            return
        self.connection.hset(
            self.key, mapping={"er_drain": shown, "er_drain_id": controls.drain_id}
        )
        self._drain_shown = shown
        self._controls = controls
        self._board.set(self._slot, "drain", DRAIN_STATES.index(shown))

    def get_heartbeat_ttl(self, job: Job, *_working_time: Any) -> int:
        """How long an execution is believed in without a heartbeat."""
        return EXECUTION_TTL

    # -- end -----------------------------------------------------------------------------------

    def handle_execution_ended(self, job: Job, queue: Queue, heartbeat_ttl: int) -> None:
        """Note the end; the heartbeat that RQ sends here goes with the transaction that follows.

        A round trip of its own would fail the job if Redis were away just now.
        """
        job.ended_at = job.last_heartbeat = now()

    def handle_job_success(self, job: Job, queue: Queue, *args: Any, **kwargs: Any) -> None:
        """RQ's end of a job that went well, once, and however long Redis is away."""
        self._settle("finished", job, queue, super().handle_job_success, args, kwargs)

    def handle_job_failure(self, job: Job, queue: Queue, *args: Any, **kwargs: Any) -> None:
        """RQ's end of a job that failed, once, and however long Redis is away."""
        self._settle("failed", job, queue, super().handle_job_failure, args, kwargs)

    def handle_job_retry(self, job: Job, queue: Queue, *args: Any, **kwargs: Any) -> None:
        """RQ's end of a job that returned a Retry, once, and however long Redis is away."""
        self._settle("failed", job, queue, super().handle_job_retry, args, kwargs)

    def _settle(
        self,
        outcome: str,
        job: Job,
        queue: Queue,
        book: Callable[..., None],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        execution = kwargs.get("execution") or self._running
        if execution is None or self._outcome:
            # Called by RQ from within one of the others, whose guard holds already.
            book(job, queue, *args, **kwargs)
            return
        guard = self._end_guard(job, queue, execution, outcome)
        before = (dict(job.__dict__), self._remembered_executions(), self._stopped_job_id)
        self._outcome = outcome
        try:
            while True:
                try:
                    with self._guarded(guard, job):
                        book(job, queue, *args, **kwargs)
                    break
                except RedisError as error:
                    if not is_outage(error):
                        raise
                    self._patience.wait(error)
                    # RQ counts down retries and repeats on the job as it books: from the start.
                    job.__dict__.clear()
                    job.__dict__.update(before[0])
                    self._remember_executions(before[1])
                    self._stopped_job_id = before[2]
        except NotHeldError:
            log.warning("Worker %s: job %s was settled by another", self.name, job.id)
            self._forget_job(job, execution)
        finally:
            self._outcome = ""
        if guard.applied:
            self._board.add(self._slot, outcome)
            if self._has_priority and outcome == "failed":
                # Perhaps tried again at once, which RQ does from the end of the queue.
                with contextlib.suppress(RedisError):
                    self._housekeeper.to_places(queue.key, [job.id])
            if self._limit:
                with contextlib.suppress(RedisError):
                    self._housekeeper.freed(self._limit)
        if guard.repeated:
            self._housekeeper.promote_ready()

    def _end_guard(self, job: Job, queue: Queue, execution: Any, outcome: str) -> Guard:
        return Guard(
            "end",
            (job.started_job_registry.key, self.key),
            member=lambda: execution.composite_key,
            token=lambda: execution.id,
            extra=lambda: self._end_extras(job, queue, execution, outcome),
            patience=self._patience,
        )

    def _end_extras(self, job: Job, queue: Queue, execution: Any, outcome: str) -> list[Command]:
        ended, started = job.ended_at or now(), job.started_at or self._started_at
        busy = max(0, round((ended - started).total_seconds() * 1000))
        waited = max(0, round(self._waited.total_seconds() * 1000))
        stats = drain.stats_key(queue.name)
        return [
            ("HINCRBY", stats, outcome, 1),
            ("HINCRBY", stats, "busy_ms", busy),
            ("HINCRBY", stats, "wait_ms", waited),
            ("HSET", self.key, "er_settled", execution.id, *_flat(self._holding_nothing())),
            *self._give_up_place(job),
        ]

    def _give_up_place(self, job: Job) -> list[Command]:
        """The job's place of its limit; who is next hears of it a moment later."""
        return [("ZREM", limits.slots_key(self._limit), job.id)] if self._limit else []

    def _forget_job(self, job: Job, execution: Any) -> None:
        """Another decided what becomes of the job: remove this execution's traces only."""
        with contextlib.suppress(RedisError), self.connection.pipeline() as pipeline:
            execution.delete(job=job, pipeline=pipeline)
            pipeline.hset(self.key, mapping=self._holding_nothing())
            pipeline.execute()
        self._drop_executions()

    def _part_with(self, job: Job, queue: Queue) -> None:
        """The time to leave has come before the job's end: requeue or fail it."""
        execution = self._running
        longest = self.settings.max_job_duration
        if self.settings.on_deadline == "Requeue":
            log.warning("Worker %s: job %s requeued, not done in %d s", self.name, job.id, longest)
            guard = self._end_guard(job, queue, execution, "requeued")
            with self._guarded(guard, job), self.connection.pipeline() as pipeline:
                job.started_at = None
                job.worker_name = None
                queue._enqueue_job(job, pipeline=pipeline, at_front=True)
                self.cleanup_execution(job, pipeline, *([execution] * (RQ_MAJOR >= 3)))
                pipeline.execute()
            if self._limit:
                with contextlib.suppress(RedisError):
                    self._housekeeper.freed(self._limit)
        else:
            job.ended_at = now()
            reason = (
                f"Job stopped: its worker was told to leave and the job did not end within "
                f"drain.maxJobDuration ({longest} s)."
            )
            log.warning("Worker %s: job %s failed: %s", self.name, job.id, reason)
            more = {"execution": execution} if RQ_MAJOR >= 3 else {}
            self.handle_job_failure(job, queue, exc_string=reason, **more)
        self._horse_pid = 0
        self._drop_executions()

    # -- executions, in both versions ----------------------------------------------------------

    def _execution_of(self) -> Any:
        if RQ_MAJOR >= 3:
            return next(iter(self.executions.values()), None)
        return self.execution

    def _drop_executions(self) -> None:
        if RQ_MAJOR >= 3:
            self.executions.clear()
            self._executions = []
        else:
            self.execution = None
        self._running = None

    def _remembered_executions(self) -> Any:
        return dict(self.executions) if RQ_MAJOR >= 3 else self.execution

    def _remember_executions(self, remembered: Any) -> None:
        if RQ_MAJOR >= 3:
            self.executions = dict(remembered)
        else:
            self.execution = remembered

    def _held_execution(self) -> tuple[str, str, str] | None:
        execution = self._running
        if execution is None:
            return None
        return execution.job_id, execution.id, self._desk_queue.name

    def _holding(self, held: tuple[str, str, str]) -> dict[str, Any]:
        job_id, execution_id, queue = held
        return {
            "state": "busy",
            "er_job": job_id,
            "er_execution": execution_id,
            "er_queue": queue,
            "er_job_started": f"{self._started_at.timestamp():.3f}",
        }

    @staticmethod
    def _holding_nothing() -> dict[str, Any]:
        return {
            "er_job": "",
            "er_execution": "",
            "er_queue": "",
            "er_job_started": "",
            "er_job_timeout": "",
        }

    @contextlib.contextmanager
    def _guarded(self, guard: Guard, job: Job) -> Iterator[None]:
        """Let RQ's code of this worker get guarded pipelines."""
        connection = self.connection
        self.connection = GuardedConnection(connection, guard)
        bind_status(job, guard)
        try:
            yield
        finally:
            self.connection = connection
            job.__dict__.pop("set_status", None)

    # -- keeping time --------------------------------------------------------------------------

    def _idle_seconds(self) -> float:
        """How long to wait for a job before something else is due."""
        due = self._housekeeper.due() - time.monotonic()
        return max(0.05, min(float(self.heartbeat_seconds), due))

    def clean_registries(self) -> None:
        """RQ's maintenance, with the parts that can double a job replaced."""
        for queue in self.queues:
            self._housekeeper.clean(queue)
        self.last_cleaned_at = now()


class PoolWorker(PoolWorkerMixin, Worker):  # type: ignore[misc]
    """The worker that ``python -m engineroom_worker`` runs."""


def _say(controls: drain.Controls) -> str:
    if controls.drain:
        return f"{controls.drain} ({controls.drain_id})"
    return "suspended" if controls.suspended else "taking jobs"


def _flat(fields: Mapping[str, Any]) -> list[Any]:
    return [word for pair in fields.items() for word in pair]


def _take_note(signum: int, frame: Any) -> None:
    """A handler that does nothing makes Python write to the wake-up pipe."""


try:
    _LIBC: Any = ctypes.CDLL(None)
except OSError:
    _LIBC = None


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when ``parent`` dies, or exit if it has died already."""
    if _LIBC is not None:
        with contextlib.suppress(AttributeError):
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
