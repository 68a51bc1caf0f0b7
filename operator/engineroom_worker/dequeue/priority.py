"""The script that moves jobs from the end of a queue to the position of their priority."""

from __future__ import annotations

#: Entries at the end of the list among which a job is searched for.
MAX_SEARCH = 1000

#: A copy of the script in ``engineroom.queue.priority``, which explains it; this package must not
#: import ``engineroom``.
PUT = """
local walk = 150000
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
  local lifted = math.min(size - high, math.floor(walk / 50))
  walk = walk - lifted * 50
  local behind = lifted > 0 and redis.call('RPOP', list, lifted) or {}
  redis.call('RPUSH', list, id)
  for at = #behind, 1, -1 do redis.call('RPUSH', list, behind[at]) end
end
local function put(list, id, priority, stamp, now)
  priority = tonumber(priority) or 0
  local mine = (priority > 0 or now) and seconds(now or stamp)
  if not mine then return redis.call('RPUSH', list, id) end
  mine = mine - priority * 400
  redis.call('HSET', 'rq:job:' .. id, 'er_place', string.format('%.6f@%s', mine, stamp or ''))
  insert(list, id, mine)
end
"""

#: KEYS: queue. ARGV: prefix of job keys, entries at the end to search, then job ids. The script
#: skips a job that a worker has taken, and one whose position is already set for its time of
#: enqueueing.
MOVE_BY_PRIORITY = (
    PUT
    + """
for at = 3, #ARGV do
  local id = ARGV[at]
  local hash = redis.call('HMGET', ARGV[1] .. id, 'er_priority', 'enqueued_at', 'er_place',
                          'status')
  local placed_for = string.match(hash[3] or '', '@(.*)$')
  if hash[1] and hash[2] and hash[4] == 'queued' and placed_for ~= hash[2]
     and redis.call('LPOS', KEYS[1], id, 'RANK', -1, 'MAXLEN', ARGV[2]) then
    redis.call('LREM', KEYS[1], -1, id)
    put(KEYS[1], id, hash[1], hash[2])
  end
end
"""
)
