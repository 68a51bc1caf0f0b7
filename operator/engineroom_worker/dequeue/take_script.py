"""Lua scripts that take a job off its queue and put it back."""

from __future__ import annotations

from engineroom_worker.dequeue.limits import LIMITS, MAX_HELD

#: KEYS: worker hash, RQ's suspension key, the pool's, the worker's drain key, then for each queue:
#: list, intermediate list, key that pauses it.
#: ARGV: job key prefix, time to live of the worker hash, take ("1" or ""), queue key and job id
#: that this worker has in hand (or ""), number of queues, the queues' keys, then fields and values
#: of the heartbeat.
#: Returns {hash existed, RQ suspended, pool suspended, drain, number of queues that are paused or
#: at their limit, index of queue, job id, job hash, seconds after which to look again or nothing,
#: number of limits that apply}.
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
-- A worker that looks runs no job: a job that it took and did not start returns to the head.
local taken = redis.call('HMGET', worker, 'er_taken_from', 'er_taken')
if taken[2] and taken[2] ~= '' then put_back(taken[1], taken[2]) end
if ARGV[5] ~= '' and ARGV[5] ~= taken[2] then put_back(ARGV[4], ARGV[5]) end
local requests = redis.call('MGET', KEYS[2], KEYS[3], KEYS[4])
local drain, drain_id = '', ''
if requests[3] then
  local verb, id = string.match(requests[3], '^(%w+):?(.*)$')
  drain, drain_id = verb == 'retire' and 'retired' or 'drained', id or ''
end
local state = (requests[1] or requests[2]) and 'suspended' or 'idle'
redis.call('HSET', worker, 'state', state, 'er_drain', drain, 'er_drain_id', drain_id,
           'er_taken', '', unpack(ARGV, 7 + queues))
redis.call('EXPIRE', worker, ARGV[2])
local reply = {existed, requests[1], requests[2], requests[3], 0, false, false, false, false, 0}
if ARGV[3] == '' or requests[1] or requests[2] or requests[3] then return reply end
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
  -- Usually none of the three keys exists, which one command can check.
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
          if held >= @@MAX_HELD@@ then
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
).replace("@@MAX_HELD@@", str(MAX_HELD))

#: KEYS: queue, intermediate list, worker hash. ARGV: job id, job key prefix. Returns 1 if the job
#: returned to its queue.
PUT_BACK = """
redis.call('HSET', KEYS[3], 'er_taken', '')
if redis.call('LREM', KEYS[2], 1, ARGV[1]) == 0 then return 0 end
redis.call('LPUSH', KEYS[1], ARGV[1])
local key = redis.call('HGET', ARGV[2] .. ARGV[1], 'er_limit')
if key then redis.call('ZREM', 'engineroom:slots:' .. key, ARGV[1]) end
return 1
"""
