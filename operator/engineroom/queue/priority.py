"""The position of a job with a priority in its queue; see docs/decisions/0008.

A priority counts as an earlier arrival by a number of seconds, and RQ's list is sorted by that
arrival time. There is no index beside the list: a bisection of the list finds the position, from
the times in the jobs' hashes.
"""

from __future__ import annotations

#: The highest priority; 0 is the lowest, and that of jobs of plain RQ.
MAX_PRIORITY = 9
#: Seconds of waiting that one step of priority is worth; the highest priority is worth an hour.
SECONDS = 400
#: Seconds of waiting that the highest priority is worth.
MAX_BOOST = MAX_PRIORITY * SECONDS

#: List entries that one script may walk over to insert jobs; it blocks Redis for 2 to 3 ms (LINSERT
#: takes 15 ns per entry).
WALK = 150_000
#: Cost of removing an entry from the end of the list and appending it, in entries walked over.
LIFT = 50

#: Lua: ``put(list, id, priority, enqueued_at, now)`` inserts a job that is in no list at its
#: position; ``now`` overrides the time of enqueueing in its hash. ``insert(list, id, time)``
#: inserts by arrival time, and ``came(id)`` returns a job's arrival time.
#: The field ``er_place`` holds the arrival time, and the time of enqueueing for which it is valid:
#: another program that enqueues the job again appends it, and then it counts as arrived at that
#: time. The search starts at the end of the list, so it does not read jobs that were put back at
#: the head, which are unsorted. If the position is too far to walk to, the job is inserted as far
#: from the end as the walk allows, and never before a job that it must not overtake.
PUT = f"""
local walk = {WALK}
local function seconds(stamp)
  local year, month, day, hour, minute, second =
    string.match(stamp or '', '^(%d+)-(%d+)-(%d+)T(%d+):(%d+):([%d.]+)Z$')
  if not year then return nil end
  -- Days since 1970 by Howard Hinnant's days_from_civil.
  month = tonumber(month)
  if month <= 2 then year = year - 1 end
  local days = math.floor(365.25 * year) - math.floor(year / 100) + math.floor(year / 400)
             + math.floor((153 * (month > 2 and month - 3 or month + 9) + 2) / 5) + day - 719469
  return days * 86400 + hour * 3600 + minute * 60 + second
end
local function came(id)
  local hash = redis.call('HMGET', 'rq:job:' .. id, 'er_place', 'enqueued_at')
  local time, stamp = string.match(hash[1] or '', '^([^@]+)@(.*)$')
  if time and stamp == (hash[2] or '') then return tonumber(time) end
  -- Any job may overtake a job whose hash is missing.
  return seconds(hash[2]) or math.huge
end
local function insert(list, id, mine)
  local size = redis.call('LLEN', list)
  local low, high, step = 0, size, 1
  while high > 0 do
    local at = math.max(size - step, 0)
    if came(redis.call('LINDEX', list, at)) <= mine then
      low = at + 1
      break
    end
    high, step = at, step * 2
  end
  while low < high do
    local middle = math.floor((low + high) / 2)
    if came(redis.call('LINDEX', list, middle)) > mine then high = middle else low = middle + 1 end
  end
  if high == size then return redis.call('RPUSH', list, id) end
  if high == 0 then return redis.call('LPUSH', list, id) end
  if high <= walk then
    walk = walk - high
    return redis.call('LINSERT', list, 'BEFORE', redis.call('LINDEX', list, high), id)
  end
  local lifted = math.min(size - high, math.floor(walk / {LIFT}))
  walk = walk - lifted * {LIFT}
  local behind = lifted > 0 and redis.call('RPOP', list, lifted) or {{}}
  redis.call('RPUSH', list, id)
  for at = #behind, 1, -1 do redis.call('RPUSH', list, behind[at]) end
end
local function put(list, id, priority, stamp, now)
  priority = tonumber(priority) or 0
  local mine = (priority > 0 or now) and seconds(now or stamp)
  if not mine then return redis.call('RPUSH', list, id) end
  mine = mine - priority * {SECONDS}
  redis.call('HSET', 'rq:job:' .. id, 'er_place', string.format('%.6f@%s', mine, stamp or ''))
  insert(list, id, mine)
end
"""
