"""Limits of concurrency and rate, for the jobs of a queue or of a key.

The script that takes a job enforces them. It skips a queue at its limit, like a paused one. It
moves a job whose key is at its limit to a list of that key and queue, in the same order, so that
the job does not block those behind it. When the key has room, the job is taken from there, before
the jobs of the queue.

A running job holds a slot of its key by a lease. Heartbeats renew the lease and the end of the job
releases it; the lease of a dead worker expires.
"""

from __future__ import annotations

from engineroom_worker import key_prefixes
from engineroom_worker.dequeue.priority import PUT

#: Time to live of a lease without a heartbeat, as of an execution (seconds).
LEASE = 90
#: The longest time until the next poll of a key without room, if no free slot is announced
#: (seconds).
RECHECK_SECONDS = 10
#: Jobs that one poll holds at most, and keys with held jobs that it reads.
MAX_HELD, MAX_KEYS = 200, 20


def limit_key(queue: str) -> str:
    """Return the key of the queue's limits: concurrency, and count per ms."""
    return f"{key_prefixes.LIMIT}{queue}"


def limited_key(queue: str) -> str:
    """Return the key of the sorted set of limit keys with held jobs, by when there may be room."""
    return f"{key_prefixes.LIMITED}{queue}"


def slots_key(key: str) -> str:
    """Return the key of the sorted set of jobs that hold a slot, by the end of their lease."""
    return f"{key_prefixes.SLOTS}{key}"


def holding_key(key: str) -> str:
    """Return the key of the set of queues with held jobs of the limit key."""
    return f"{key_prefixes.HOLDING}{key}"


#: KEYS: queues with held jobs of the key. ARGV: the key. Runs when one of the key's jobs has ended:
#: workers then look at these queues at once.
ANNOUNCE_FREE_SLOT = """
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local index = 'engineroom:limited:' .. name
  if redis.call('ZSCORE', index, ARGV[1]) then
    redis.call('ZADD', index, 0, ARGV[1])
  else
    redis.call('SREM', KEYS[1], name)
  end
end
"""

#: Lua for the script that takes jobs. ``room`` and ``spend`` implement GCRA: a bucket of ``count``
#: that refills within ``ms``. ``soon(seconds)`` sets the latest time of the next look.
LIMITS = (
    PUT
    + f"""
local now, again
local function read_time()
  if now then return end
  local clock = redis.call('TIME')
  now = clock[1] + clock[2] / 1000000
end
local function soon(delay)
  if not again or delay < again then again = math.max(delay, 0) end
end
local function room(key, count, ms)
  local free = tonumber(redis.call('GET', key) or '') or 0
  return math.max(0, free - now * 1000 - (ms - ms / count) - 0.001) / 1000
end
local function spend(key, count, ms)
  local free = math.max(tonumber(redis.call('GET', key) or '') or 0, now * 1000) + ms / count
  redis.call('SET', key, string.format('%.3f', free), 'PX', math.ceil(free - now * 1000) + 1)
end
local function queue_is_open(name, intermediate)
  read_time()
  local limit = redis.call('HMGET', 'engineroom:limit:' .. name, 'concurrency', 'count', 'ms')
  local most, count = tonumber(limit[1] or ''), tonumber(limit[2] or '')
  local ms = tonumber(limit[3] or '')
  if not most and not count then return true end
  local started = most and redis.call('ZCOUNT', 'rq:wip:' .. name, now, '+inf')
  if most and started + redis.call('LLEN', intermediate) >= most then
    -- A job between queue and worker may return soon: BLMOVE checks no limits.
    soon(started >= most and 1 or 0.05)
    return false
  end
  local wait = count and room('engineroom:rate:queue:' .. name, count, ms) or 0
  if wait > 0 then soon(wait) end
  return wait == 0, count, ms
end
local function fields(hash)
  local selected = {{}}
  for at = 1, #hash, 2 do
    local name = hash[at]
    if name == 'enqueued_at' or name == 'status' or string.sub(name, 1, 3) == 'er_' then
      selected[name] = hash[at + 1]
    end
  end
  return selected
end
local function admit(id, job)
  local key, most = job.er_limit, tonumber(job.er_limit_concurrency or '')
  local count, ms = tonumber(job.er_limit_count or ''), tonumber(job.er_limit_ms or '')
  local slots, rate = 'engineroom:slots:' .. key, 'engineroom:rate:key:' .. key
  if most then
    redis.call('ZREMRANGEBYSCORE', slots, '-inf', now)
    if redis.call('ZCARD', slots) >= most and not redis.call('ZSCORE', slots, id) then
      local first = redis.call('ZRANGE', slots, 0, 0, 'WITHSCORES')
      return false, math.min(tonumber(first[2]), now + {RECHECK_SECONDS})
    end
  end
  local wait = count and room(rate, count, ms) or 0
  if wait > 0 then return false, now + wait end
  if count then spend(rate, count, ms) end
  if most then
    redis.call('ZADD', slots, now + {LEASE}, id)
    redis.call('EXPIRE', slots, {2 * LEASE})
  end
  return true
end
local function held_list(name, key)
  return 'engineroom:held:' .. #name .. ':' .. name .. ':' .. key
end
-- The first held job whose key has room, as id and hash.
local function released(name, prefix)
  local index = 'engineroom:limited:' .. name
  local keys = redis.call('ZRANGEBYSCORE', index, '-inf', now, 'LIMIT', 0, {MAX_KEYS})
  local left = {MAX_HELD}
  for _, key in ipairs(keys) do
    local held = held_list(name, key)
    while left > 0 do
      left = left - 1
      local id = redis.call('LINDEX', held, 0)
      if not id then
        redis.call('ZREM', index, key)
        break
      end
      local hash = redis.call('HGETALL', prefix .. id)
      local job = fields(hash)
      -- Skip a job that was enqueued again, cancelled or deleted while it was held.
      if job.status == 'queued' and job.er_limit and job.er_held == job.enqueued_at then
        local yes, at = admit(id, job)
        if not yes then
          redis.call('ZADD', index, at, key)
          break
        end
        redis.call('LPOP', held)
        redis.call('HDEL', prefix .. id, 'er_held')
        if redis.call('LLEN', held) == 0 then redis.call('ZREM', index, key) end
        return id, hash
      end
      redis.call('LPOP', held)
    end
  end
  local first = redis.call('ZRANGE', index, 0, 0, 'WITHSCORES')
  if #first > 0 then soon(math.min(1, first[2] - now)) end
end
-- Whether a job of the queue may be taken; otherwise it is held.
local function admitted(name, id, hash, prefix)
  local limited
  for at = 1, #hash, 2 do limited = limited or hash[at] == 'er_limit' end
  if not limited then return true end
  read_time()
  local job = fields(hash)
  local held, index = held_list(name, job.er_limit), 'engineroom:limited:' .. name
  -- Held jobs that came before it go first.
  if redis.call('EXISTS', held) == 0 then
    local yes, at = admit(id, job)
    if yes then return true end
    redis.call('ZADD', index, at, job.er_limit)
    soon(math.min(1, at - now))
  end
  redis.call('SADD', 'engineroom:holding:' .. job.er_limit, name)
  redis.call('EXPIRE', 'engineroom:holding:' .. job.er_limit, 86400)
  redis.call('HSET', prefix .. id, 'er_held', job.enqueued_at or '')
  insert(held, id, came(id))
  return false
end
local function give_up(prefix, id)
  local key = redis.call('HGET', prefix .. id, 'er_limit')
  if key then redis.call('ZREM', 'engineroom:slots:' .. key, id) end
end
"""
)
