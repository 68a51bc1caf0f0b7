"""Lua scripts of schedules. Redis runs each one atomically."""

from __future__ import annotations

from engineroom.queue.priority import PUT
from engineroom.tasks.redis_steps import LuaScript
from engineroom.tasks.schedules.model import FIELDS

#: KEYS: index, schedule, template, the owner's set. ARGV: name, first tick, spec, maximum of
#: schedules, owner or '', whether an owned schedule is paused, trigger, expected version or '', the
#: job's fields. Returns {status, owner}: 1 created, 0 existed, -1 too many schedules, -2 owned by
#: another, -3 not in the expected version.
PUT_SCHEDULE = LuaScript("""
local index, schedule, template, owned = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local name, first, spec, owner, trigger = ARGV[1], ARGV[2], ARGV[3], ARGV[5], ARGV[7]
local now = redis.call('HMGET', schedule, 'spec', 'owner', 'paused', 'trigger', 'version')
local new = not now[1]
-- The version of a schedule that does not exist is 0.
if ARGV[8] ~= '' and (new and '0' or now[5] or '0') ~= ARGV[8] then return {-3, ''} end
if new and redis.call('ZCARD', index) >= tonumber(ARGV[4]) then return {-1, ''} end
if not new and (now[2] or '') ~= owner then return {-2, now[2] or ''} end
local was_paused = now[3] == '1'
local paused = was_paused
if owner ~= '' then paused = ARGV[6] == '1' end
local fields, same = {}, now[1] == spec and paused == was_paused
for at = 9, #ARGV do fields[#fields + 1] = ARGV[at] end
if same then
  same = redis.call('HLEN', template) == #fields / 2
  for at = 1, #fields, 2 do
    same = same and redis.call('HGET', template, fields[at]) == fields[at + 1]
  end
end
if owner ~= '' and redis.call('SISMEMBER', owned, name) == 0 then
  redis.call('SADD', owned, name)
end
if same then return {0, ''} end
redis.call('HSET', schedule, 'spec', spec, 'trigger', trigger)
if owner ~= '' then redis.call('HSET', schedule, 'owner', owner) end
if paused then redis.call('HSET', schedule, 'paused', '1')
elseif was_paused then redis.call('HDEL', schedule, 'paused') end
redis.call('HINCRBY', schedule, 'version', 1)
redis.call('DEL', template)
redis.call('HSET', template, unpack(fields))
if paused then redis.call('ZADD', index, 'inf', name)
-- Unless the trigger changed, a tick that is due stays due.
elseif new or was_paused or now[4] ~= trigger then redis.call('ZADD', index, first, name) end
return {new and 1 or 0, ''}
""")

#: KEYS: index, schedule, template, the owner's set. ARGV: name, owner or '', optionally the
#: expected version. Returns {status, owner}: 1 removed, 0 not found, -2 owned by another, -3 not in
#: the expected version.
REMOVE = LuaScript("""
local owner = redis.call('HMGET', KEYS[2], 'owner', 'spec')
if ARGV[2] ~= '' then redis.call('SREM', KEYS[4], ARGV[1]) end
if not owner[2] then return {0, ''} end
if (owner[1] or '') ~= ARGV[2] then return {-2, owner[1] or ''} end
if ARGV[3] and (redis.call('HGET', KEYS[2], 'version') or '0') ~= ARGV[3] then return {-3, ''} end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2], KEYS[3])
return {1, ''}
""")

#: KEYS: index, schedule. ARGV: name, new score. Returns {status, owner} as REMOVE does.
PAUSE = LuaScript("""
local owner = redis.call('HMGET', KEYS[2], 'owner', 'spec')
if not owner[2] then return {0, ''} end
if (owner[1] or '') ~= '' then return {-2, owner[1]} end
redis.call('HSET', KEYS[2], 'paused', '1')
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
return {1, ''}
""")

#: KEYS, ARGV and result as of PAUSE. A schedule that is not paused keeps its next tick.
RESUME = LuaScript("""
local owner = redis.call('HMGET', KEYS[2], 'owner', 'spec')
if not owner[2] then return {0, ''} end
if (owner[1] or '') ~= '' then return {-2, owner[1]} end
if redis.call('HDEL', KEYS[2], 'paused') == 1 then redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1]) end
return {1, ''}
""")

#: KEYS: schedule, template, waiting list, set of queues, optionally the mark of this run. ARGV:
#: name, job id, time, seconds that the mark lasts. Returns 1, or 0 if there is no such schedule.
RUN_NOW = LuaScript(
    PUT
    + """
local fields = redis.call('HGETALL', KEYS[2])
if #fields == 0 then return 0 end
if KEYS[5] and not redis.call('SET', KEYS[5], '1', 'NX', 'EX', ARGV[4]) then return 1 end
local job = 'rq:job:' .. ARGV[2]
redis.call('HSET', job, 'created_at', ARGV[3], 'enqueued_at', ARGV[3], 'er_schedule', ARGV[1],
           unpack(fields))
local ttl = tonumber(redis.call('HGET', KEYS[2], 'ttl') or '')
if ttl then redis.call('EXPIRE', job, ttl) end
if redis.call('HEXISTS', KEYS[2], 'enqueue_at_front') == 1 then
  redis.call('LPUSH', KEYS[3], ARGV[2])
else
  put(KEYS[3], ARGV[2], redis.call('HGET', KEYS[2], 'er_priority'), ARGV[3])
end
redis.call('SADD', KEYS[4], KEYS[3])
redis.call('HSET', KEYS[1], 'last_job', ARGV[2])
return 1
"""
)

#: ``row(name, score)`` returns name, score and FIELDS of a schedule, or nil.
_ROW = """
local function row(name, score)
  local hash = redis.call('HMGET', 'engineroom:schedule:' .. name, FIELDS)
  if not hash[1] then return nil end
  return {name, score, unpack(hash, 1, 7)}
end
""".replace("FIELDS", ", ".join(map(repr, FIELDS)))

#: KEYS: index, schedule. ARGV: name. Returns the row, or {}.
GET = LuaScript(
    _ROW
    + """
return row(ARGV[1], redis.call('ZSCORE', KEYS[1], ARGV[1])) or {}
"""
)

#: KEYS: the owner's set, index. Returns the rows.
OWNED = LuaScript(
    _ROW
    + """
local rows = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  rows[#rows + 1] = row(name, redis.call('ZSCORE', KEYS[2], name))
end
return rows
"""
)

#: KEYS: index. ARGV: name before the page or '', rows on the page. Returns the rows.
LIST = LuaScript(
    _ROW
    + """
local first, rows = 0, {}
if ARGV[1] ~= '' then first = (redis.call('ZRANK', KEYS[1], ARGV[1]) or -1) + 1 end
local members = redis.call('ZRANGE', KEYS[1], first, first + ARGV[2] - 1, 'WITHSCORES')
for at = 1, #members, 2 do rows[#rows + 1] = row(members[at], members[at + 1]) end
return rows
"""
)

#: KEYS: index. ARGV: latest tick, maximum of rows. Returns the rows, and the next tick of all
#: schedules if there are no rows.
DUE = LuaScript(
    _ROW
    + """
local rows = {}
local members = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'WITHSCORES',
                           'LIMIT', 0, ARGV[2])
for at = 1, #members, 2 do
  local schedule = row(members[at], members[at + 1])
  -- The hash may be missing: evicted, or deleted by hand.
  if schedule then rows[#rows + 1] = schedule else redis.call('ZREM', KEYS[1], members[at]) end
end
if #rows > 0 then return {rows, false} end
local head = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(inf', 'WITHSCORES', 'LIMIT', 0, 1)
return {rows, head[2] or false}
"""
)

#: KEYS: index. ARGV: name, expected tick, new score. Returns 0 if the schedule has moved on.
POSTPONE = LuaScript("""
if redis.call('ZSCORE', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
return redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
""")

#: KEYS: index, schedule, template, waiting list, set of queues. ARGV: name, expected tick, version,
#: time, next tick or '', number of dropped ticks, then the ticks to run. Returns the number of
#: jobs.
TICK = LuaScript(
    PUT
    + """
local index, schedule, template, list = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local name, now, following = ARGV[1], ARGV[4], ARGV[5]
if redis.call('ZSCORE', index, name) ~= ARGV[2] then return 0 end
if redis.call('HGET', schedule, 'version') ~= ARGV[3] then return 0 end
local fields = redis.call('HGETALL', template)
local ttl = tonumber(redis.call('HGET', template, 'ttl') or '')
local priority = redis.call('HGET', template, 'er_priority')
local at_front = redis.call('HEXISTS', template, 'enqueue_at_front') == 1
local ahead = {}
for at = 7, #ARGV do
  local id = name .. '-' .. string.gsub(ARGV[at], '[.]', '_')
  local job = 'rq:job:' .. id
  redis.call('HSET', job, 'created_at', now, 'enqueued_at', now, 'er_schedule', name,
             'er_tick', ARGV[at], unpack(fields))
  if ttl then redis.call('EXPIRE', job, ttl) end
  if at_front then table.insert(ahead, 1, id) else put(list, id, priority, now) end
  redis.call('HSET', schedule, 'last', ARGV[at], 'last_job', id)
end
-- LPUSH reverses its arguments, and so does insert at 1.
if #ahead > 0 then redis.call('LPUSH', list, unpack(ahead)) end
if #ARGV > 6 then redis.call('SADD', KEYS[5], list) end
if ARGV[6] ~= '0' then redis.call('HINCRBY', schedule, 'dropped', ARGV[6]) end
redis.call('ZADD', index, following == '' and 'inf' or following, name)
return #ARGV - 6
"""
)
