"""Where in a queue a job of some priority stands: docs/decisions/0008.

A job counts as come as many seconds earlier as its priority is worth, and jobs stand in RQ's list
by that time. Nothing beside the list says so: the place is found in the list itself by bisection,
with what stands in the jobs' hashes.
"""

from __future__ import annotations

#: Priorities go from 0, which is what any job of plain RQ has, to this.
MAX_PRIORITY = 9
#: So many seconds of waiting each step of priority is worth; the highest an hour.
SECONDS = 400
#: The longest that a job which comes later can have been given (seconds).
MAX_BOOST = MAX_PRIORITY * SECONDS

#: Entries that one script may walk over to put jobs in their places; Redis serves nobody else
#: meanwhile, for 2 to 3 ms (LINSERT: 15 ns an entry).
WALK = 150_000
#: What taking an entry off the end of the list and putting it back costs, in entries walked over.
LIFT = 50

#: Lua: ``put(list, id, priority, enqueued_at, now)`` puts a job that is in no list into its place;
#: ``now`` is given where it counts as come at another time than the one in its hash.
#: ``insert(list, id, time)`` does so for the time at which a job counts as come, ``came(id)``.
#: ``er_place`` says what time the job counts as come, and is good for the time of enqueueing that
#: it names: whoever else enqueues the job anew puts it at the end, where it counts as come then.
#: The search begins at the end, so that disorder at the head (jobs that went back there) is not
#: looked at. Where the place is too deep to walk to, the job goes as far ahead from the end as the
#: walk allows: never before a job that it must not overtake.
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
  -- What is left of a job that is gone may be overtaken by any.
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
