"""Taking a job without a moment in which it is nowhere.

One script at the top of each loop sends the heartbeat, reads what the operator asks, and moves the
first job of the ordered queues to its queue's intermediate list, noting it in the worker's hash.
When there is nothing to take, a worker of one queue waits in BLMOVE as RQ's own does; a worker of
several waits for Redis to say that one of them changed (CLIENT TRACKING in broadcasting mode,
redirected to a subscribed connection, so RESP2 and any redis-py will do), or, where the server has
no tracking, looks each second.

Both waits select on the socket and on the worker's wake-up pipe, so that a signal or a nudge ends
them at once; a BLMOVE is then ended by CLIENT UNBLOCK and its reply read, whichever it is, so no
job can slip between.
"""

from __future__ import annotations

import select
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from engineroom_worker.drain import Controls, paused_key
from engineroom_worker.limits import LIMITS, MOST_HELD, limit_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

#: KEYS: worker hash, RQ's suspension key, the pool's, the worker's drain key, then for each queue:
#: list, intermediate list, key that pauses it.
#: ARGV: job key prefix, expiry of the hash, take ("1" or ""), queue key and job id that this worker
#: remembers having taken (or ""), number of queues, the queues' names, then fields and values of
#: the heartbeat.
#: Returns {hash existed, rq suspended, pool suspended, drain, number of queues that are paused or
#: at their limit, index of queue, job id, job hash, seconds after which to look again or nothing,
#: whether a limit has a say}.
TAKE = (
    LIMITS
    + """
local worker, queues = KEYS[1], tonumber(ARGV[6])
local existed = redis.call('EXISTS', worker)
local function put_back(queue, job)
  if redis.call('LREM', queue .. ':intermediate', 1, job) > 0 then
    redis.call('LPUSH', queue, job)
    give_up(ARGV[1], job)
  end
end
-- Whoever asks holds nothing: what was taken and never started goes back to the head.
local taken = redis.call('HMGET', worker, 'er_taken_from', 'er_taken')
if taken[2] and taken[2] ~= '' then put_back(taken[1], taken[2]) end
if ARGV[5] ~= '' and ARGV[5] ~= taken[2] then put_back(ARGV[4], ARGV[5]) end
local asked = redis.call('MGET', KEYS[2], KEYS[3], KEYS[4])
local drain, drain_id = '', ''
if asked[3] then
  local verb, id = string.match(asked[3], '^(%w+):?(.*)$')
  drain, drain_id = verb == 'retire' and 'retired' or 'drained', id or ''
end
local state = (asked[1] or asked[2]) and 'suspended' or 'idle'
redis.call('HSET', worker, 'state', state, 'er_drain', drain, 'er_drain_id', drain_id,
           'er_taken', '', unpack(ARGV, 7 + queues))
redis.call('EXPIRE', worker, ARGV[2])
local reply = {existed, asked[1], asked[2], asked[3], 0, false, false, false, false, 0}
if ARGV[3] == '' or asked[1] or asked[2] or asked[3] then return reply end
local function take(index, job, hash)
  redis.call('RPUSH', KEYS[3 + 3 * index], job)
  redis.call('HSET', worker, 'er_taken', job, 'er_taken_from', KEYS[2 + 3 * index])
  reply[6], reply[7], reply[8] = index, job, hash
  return reply
end
local held = 0
for index = 1, queues do
  local queue = KEYS[2 + 3 * index]
  local name, open = string.sub(queue, 10), true
  local count, ms, job, hash
  -- Mostly none of the three is there, which one look tells.
  local limits = {'engineroom:limit:' .. name, 'engineroom:limited:' .. name}
  if redis.call('EXISTS', KEYS[4 + 3 * index], unpack(limits)) > 0 then
    open = redis.call('EXISTS', KEYS[4 + 3 * index]) == 0
    reply[10] = reply[10] + redis.call('EXISTS', unpack(limits))
    if open then open, count, ms = queue_is_open(name, KEYS[3 + 3 * index]) end
    if open then job, hash = released(name, ARGV[1]) end
  end
  if not open then
    reply[5] = reply[5] + 1
  else
    for _ = 1, 1000 do
      if job then
        if count then spend('engineroom:rate:queue:' .. name, count, ms) end
        return take(index, job, hash)
      end
      local first = redis.call('LPOP', queue)
      if not first then break end
      hash = redis.call('HGETALL', ARGV[1] .. first)
      if #hash > 0 then
        if admitted(name, first, hash, ARGV[1]) then
          job = first
        else
          held, reply[10] = held + 1, 1
          if held >= @@MOST@@ then
            soon(0)
            break
          end
        end
      end
    end
    if job then
      if count then spend('engineroom:rate:queue:' .. name, count, ms) end
      return take(index, job, hash)
    end
  end
end
if again then reply[9] = tostring(again) end
return reply
"""
).replace("@@MOST@@", str(MOST_HELD))

#: KEYS: queue, intermediate list, worker hash.  ARGV: job id, job key prefix.  Returns 1 when the
#: job went back.
PUT_BACK = """
redis.call('HSET', KEYS[3], 'er_taken', '')
if redis.call('LREM', KEYS[2], 1, ARGV[1]) == 0 then return 0 end
redis.call('LPUSH', KEYS[1], ARGV[1])
local key = redis.call('HGET', ARGV[2] .. ARGV[1], 'er_limit')
if key then redis.call('ZREM', 'engineroom:slots:' .. key, ARGV[1]) end
return 1
"""

#: What RQ puts before a queue's name.
QUEUE_PREFIX = "rq:queue:"

INVALIDATIONS = b"__redis__:invalidate"


@dataclass(frozen=True)
class Taken:
    """A job on its way from queue to start; ``data`` is its hash, None when it has none."""

    queue_key: str
    job_id: str
    data: dict[bytes, bytes] | None


@dataclass(frozen=True)
class Look:
    """What one look at Redis brought."""

    existed: bool
    controls: Controls
    taken: Taken | None
    #: Every queue that was looked at is paused or at its limit.
    paused: bool = False
    #: Look again after so many seconds, whatever happens or not.
    again: float | None = None
    #: A limit has a say: what comes must not be taken without asking.
    limited: bool = False


class Desk:
    """Where a worker gets its jobs.

    ``pause`` blocks for at most so many seconds and returns whether something woke it; ``wakeup``
    is the file descriptor that it waits on.
    """

    def __init__(
        self,
        connection: Any,
        worker_key: str,
        control_keys: Sequence[str],
        job_prefix: str,
        expiry: int,
        wakeup: int,
        pause: Callable[[float], bool],
        blocking: bool = True,
    ) -> None:
        self._connection = connection
        self._worker_key = worker_key
        self._control_keys = list(control_keys)
        self._job_prefix = job_prefix
        self._expiry = expiry
        self._wakeup = wakeup
        self._pause = pause
        self._take = connection.register_script(TAKE)
        self._put_back = connection.register_script(PUT_BACK)
        self._blocking = blocking
        self._blmove: _Channel | None = None
        self._tracking: _Tracking | None = None
        #: Taken by this process and not yet started or put back: (queue key, job id).
        self.in_hand: tuple[str, str] | None = None

    def look(self, queue_keys: Sequence[str], fields: Mapping[str, Any], take: bool) -> Look:
        """Heartbeat, read what is asked, and take the next job if ``take`` and nothing forbids."""
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
            taken = Taken(queue_key, _text(job_id), dict(zip(data[::2], data[1::2])))  # noqa: B905
            self.in_hand = (queue_key, taken.job_id)
        controls = Controls.read(rq_suspended, pool_suspended, drain)
        return Look(
            bool(existed),
            controls,
            taken,
            int(paused) == len(queue_keys),
            None if again is None else float(again),
            bool(limited),
        )

    def wait(
        self, queue_keys: Sequence[str], timeout: float, limited: bool = False
    ) -> Taken | None:
        """Until a job may be there, something wakes the worker, or ``timeout`` seconds are over.

        A single queue's job is taken here, unless the queue is ``limited``; otherwise None is
        returned and the caller looks.
        """
        if self._blocking and len(queue_keys) == 1 and not limited:
            return self._wait_for_one(queue_keys[0], timeout)
        self._wait_for_any(queue_keys, timeout)
        return None

    def watching(self) -> bool:
        """Whether changes of the queues are being told: a look after this misses nothing."""
        return self._tracking is not None and self._tracking.on

    def stop_watching(self) -> None:
        """Stop being told about changes, before a job is started."""
        if self._tracking is not None:
            self._tracking.turn_off()

    def put_back(self, taken: Taken) -> bool:
        """Return a job that was not started to the head of its queue; False if it was not ours."""
        keys = [taken.queue_key, f"{taken.queue_key}:intermediate", self._worker_key]
        moved = bool(self._put_back(keys=keys, args=[taken.job_id, self._job_prefix]))
        self.in_hand = None
        return moved

    def close(self) -> None:
        """Drop the connections that waiting needs."""
        if self._blmove is not None:
            self._blmove.close()
        if self._tracking is not None:
            self._tracking.close()
        self._blmove = self._tracking = None

    def _wait_for_one(self, queue_key: str, timeout: float) -> Taken | None:
        if self._blmove is None:
            self._blmove = _Channel(self._connection)
        channel = self._blmove
        try:
            client_id = channel.client_id()
            intermediate = f"{queue_key}:intermediate"
            channel.send("BLMOVE", queue_key, intermediate, "LEFT", "RIGHT", timeout)
            # The server answers after `timeout`; what is beyond it is a broken connection.
            if not channel.wait(timeout + 5, self._wakeup):
                self._connection.execute_command("CLIENT", "UNBLOCK", client_id, "TIMEOUT")
                if not channel.wait(5, None):
                    raise RedisConnectionError("no answer to BLMOVE")
            reply = channel.read()
        except ResponseError as error:
            if "unknown command" not in str(error).lower():
                raise
            self._blocking = False  # Redis before 6.2
            return None
        except (RedisError, OSError) as error:
            # Whatever the lost reply held lies in the intermediate list, and is put back from it.
            channel.close()
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
        taken = Taken(queue_key, job_id, dict(data) or None)
        if forbidden or b"er_limit" in data:
            # Paused or limited while the worker waited: Redis hands out all the same.
            self.put_back(taken)
            return None
        return taken

    @staticmethod
    def _paused_key(queue_key: str) -> str:
        return paused_key(queue_key[len(QUEUE_PREFIX) :])

    def _wait_for_any(self, queue_keys: Sequence[str], timeout: float) -> None:
        if self._tracking is None:
            self._tracking = _Tracking(self._connection, queue_keys)
        tracking = self._tracking
        if tracking.unavailable:
            self._pause(min(1.0, timeout))
            return
        if not tracking.on:
            # What came before it was on is not told: the caller looks once more.
            tracking.turn_on()
            return
        tracking.wait(timeout, self._wakeup)


class _Channel:
    """A connection of its own, on which the worker waits for replies."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection.connection_pool.make_connection()
        self._socket: Any = None
        self._client_id: Any = None

    def client_id(self) -> Any:
        """Redis' number for this connection; connects when needed."""
        if self._socket is None or self._connection._sock is not self._socket:
            self._connection.connect()
            self._socket = self._connection._sock
            self.send("CLIENT", "ID")
            self._client_id = self.read()
        return self._client_id

    def send(self, *command: Any) -> None:
        """Send one command without waiting for its reply."""
        self._connection.send_command(*command)

    def read(self) -> Any:
        """The next reply."""
        return self._connection.read_response()

    def ready(self) -> bool:
        """Whether a reply can be read without waiting."""
        return bool(self._connection.can_read(timeout=0))

    def wait(self, timeout: float, wakeup: int | None) -> bool:
        """Whether a reply came before the wake-up and the time-out."""
        if self.ready():
            return True
        waited_for: list[Any] = [self._socket] if wakeup is None else [self._socket, wakeup]
        readable, _, _ = select.select(waited_for, [], [], timeout)
        return self._socket in readable

    def close(self) -> None:
        """Drop the connection."""
        self._connection.disconnect()
        self._socket = None


class _Tracking:
    """Being told which of the queues changed, while it is turned on."""

    def __init__(self, connection: Any, queue_keys: Sequence[str]) -> None:
        self._connection = connection
        self._keys = {key.encode() for key in queue_keys}
        self._teller: _Channel | None = None
        self._listener: _Channel | None = None
        self.on = False
        self.unavailable = False

    def turn_on(self) -> None:
        """Connect, and ask to be told."""
        try:
            if self._listener is None or self._teller is None:
                self._listener = _Channel(self._connection)
                self._teller = _Channel(self._connection)
                listener_id = self._listener.client_id()
                self._listener.send("SUBSCRIBE", INVALIDATIONS)
                self._listener.read()
                self._teller.client_id()
                self._listener_id = listener_id
            command: list[Any] = ["CLIENT", "TRACKING", "ON", "BCAST"]
            command += ["REDIRECT", self._listener_id]
            for prefix in _prefixes(self._keys):
                command += ["PREFIX", prefix]
            self._teller.send(*command)
            self._teller.read()
            self.on = True
        except ResponseError:
            # Before Redis 6, or forbidden to this user: look each second instead.
            self.close()
            self.unavailable = True
        except (RedisError, OSError) as error:
            self.close()
            raise RedisConnectionError(str(error)) from error

    def turn_off(self) -> None:
        """Stop being told; Redis would otherwise keep telling a worker that is busy."""
        if not self.on or self._teller is None or self._listener is None:
            return
        try:
            self._teller.send("CLIENT", "TRACKING", "OFF")
            self._teller.read()
            self.on = False
            while self._listener.ready():
                self._listener.read()
        except (RedisError, OSError):
            self.close()

    def wait(self, timeout: float, wakeup: int) -> None:
        """Until one of the queues changed, something woke the worker, or the time is over."""
        if self._listener is None:
            return
        try:
            while self._listener.wait(timeout, wakeup):
                if self._names_a_queue(self._listener.read()):
                    return
            # Nothing is ever sent on the other connection: readable means that it is closed, and
            # with it the tracking.
            if self._teller is not None and self._teller.ready():
                self._teller.read()
        except (RedisError, OSError) as error:
            self.close()
            raise RedisConnectionError(str(error)) from error

    def close(self) -> None:
        """Drop both connections."""
        for channel in (self._teller, self._listener):
            if channel is not None:
                channel.close()
        self._teller = self._listener = None
        self.on = False

    def _names_a_queue(self, message: Any) -> bool:
        if not isinstance(message, list) or len(message) < 3:
            return False
        # No list of keys: everything changed (FLUSHALL, or Redis dropped its memory of us).
        changed = message[2]
        return not isinstance(changed, list) or not self._keys.isdisjoint(changed)


def _prefixes(keys: Iterable[bytes]) -> list[bytes]:
    """The keys without those that begin with another: Redis refuses overlapping prefixes."""
    chosen: list[bytes] = []
    for key in sorted(keys):
        if not chosen or not key.startswith(chosen[-1]):
            chosen.append(key)
    return chosen


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
