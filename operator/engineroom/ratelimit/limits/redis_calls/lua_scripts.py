"""The Lua scripts by which Redis decides, and the arguments and replies of each.

``algorithms`` describes how the limits count and holds the same decisions in Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.ratelimit.limits.algorithms import SLICES, LimitResult, LimitStatus
from engineroom.redis.scripts import Script

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engineroom.ratelimit.limits.algorithms import LimitCheck, LimitTerms

#: The scripts' only source of time. It takes no argument, so that no caller can choose the time.
CLOCK = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
"""
#: The expiry in milliseconds of a state that matters for a number of microseconds.
LIFETIME = """
local function lifetime(matters) return math.max(1, math.ceil(matters / 1000)) end
"""

#: Functions that read, evaluate and write states. `%.0f`, because tostring() keeps 14 digits only.
LIBRARY = (
    CLOCK
    + LIFETIME
    + """
local function text(number) return string.format('%.0f', number) end
local kinds = {t = {}, s = {}, f = {}}

-- Reads a state, once per call. An unreadable value counts as absent and is overwritten.
local function read(key)
  local raw = redis.pcall('GET', key)
  if type(raw) ~= 'string' or #raw > 4096 then return '' end
  return raw
end

function kinds.t.parse(raw)
  if string.match(raw, '^%d+$') and #raw <= 16 then return tonumber(raw) end
  return 0
end
function kinds.t.check(terms, state, tokens)
  local full, repaired = math.max(state, now), false
  if full - now > terms.capacity then full, repaired = now + terms.capacity, true end
  local taken = tokens * terms.unit
  if taken > terms.capacity then
    local left = math.floor((now + terms.capacity - full) / terms.unit)
    return 2, left, 0, full - now, full, repaired
  end
  local wait = full + taken - now - terms.capacity
  if wait > 0 then
    local left = math.floor((now + terms.capacity - full) / terms.unit)
    return 0, left, wait, full - now, full, repaired
  end
  full = full + taken
  return 1, math.floor((now + terms.capacity - full) / terms.unit), 0, full - now, full, repaired
end
function kinds.t.matters(terms, state) return state - now end
function kinds.t.write(state) return text(state) end

function kinds.s.parse(raw)
  local slices = {}
  for first, last, count in string.gmatch(raw, '(%d+),(%d+),(%d+);') do
    slices[#slices + 1] = {tonumber(first), tonumber(last), tonumber(count)}
  end
  return slices
end
function kinds.s.check(terms, state, tokens)
  local period, slices, total, repaired = terms.unit, {}, 0, false
  for _, slice in ipairs(state) do
    local first, last, count = slice[1], slice[2], slice[3]
    if last > now then first, last, repaired = math.min(first, now), now, true end
    if last > now - period then
      slices[#slices + 1] = {first, last, count}
      total = total + count
    end
  end
  local newest = slices[#slices]
  local reset = newest and newest[2] + period - now or 0
  local left = math.max(0, terms.capacity - total)
  if tokens > terms.capacity then return 2, left, 0, reset, slices, repaired end
  if tokens > 0 and total + tokens > terms.capacity then
    for _, slice in ipairs(slices) do
      total = total - slice[3]
      if total + tokens <= terms.capacity then
        return 0, left, slice[2] + period - now, reset, slices, repaired
      end
    end
  end
  if tokens == 0 then return 1, left, 0, reset, slices, repaired end
  if newest and now - newest[1] < math.max(1, math.floor(period / SLICES)) then
    newest[2], newest[3] = now, newest[3] + tokens
  else
    slices[#slices + 1] = {now, now, tokens}
  end
  return 1, left - tokens, 0, period, slices, repaired
end
function kinds.s.matters(terms, state)
  local newest = state[#state]
  return newest and newest[2] + terms.unit - now or 0
end
function kinds.s.write(state)
  local parts = {}
  for at, slice in ipairs(state) do
    parts[at] = text(slice[1]) .. ',' .. text(slice[2]) .. ',' .. text(slice[3]) .. ';'
  end
  return table.concat(parts)
end

function kinds.f.parse(raw)
  local start, count = string.match(raw, '^(%d+),(%d+)$')
  return {tonumber(start or 0), tonumber(count or 0)}
end
function kinds.f.check(terms, state, tokens)
  local period = terms.unit
  local start, count = now - now % period, 0
  if state[1] >= start then count = state[2] end
  local repaired = state[1] > start
  local left, reset = math.max(0, terms.capacity - count), start + period - now
  local kept = {start, count}
  if tokens > terms.capacity then return 2, left, 0, reset, kept, repaired end
  if tokens > 0 and count + tokens > terms.capacity then
    return 0, left, reset, reset, kept, repaired
  end
  if tokens == 0 then return 1, left, 0, reset, kept, repaired end
  return 1, left - tokens, 0, reset, {start, count + tokens}, repaired
end
function kinds.f.matters(terms, state) return state[1] + terms.unit - now end
function kinds.f.write(state) return text(state[1]) .. ',' .. text(state[2]) end

local states, changed = {}, {}
local function save(key, terms, state) states[key], changed[key] = state, terms end
local function flush()
  for key, terms in pairs(changed) do
    local kind, state = kinds[terms.code], states[key]
    local matters = kind.matters(terms, state)
    if matters > 0 then
      redis.call('SET', key, kind.write(state), 'PX', text(lifetime(matters)))
    else
      redis.call('DEL', key)
    end
  end
end
local function load(key, terms)
  local state = states[key]
  if state == nil then
    state = kinds[terms.code].parse(read(key))
    states[key] = state
  end
  return state
end
""".replace("SLICES", str(SLICES))
)

#: Decides any number of requests of one policy at one time, in order.
#: KEYS: one per check. ARGV: the number of limits; for each limit its code, unit, capacity and 1 if
#: enforced; then for each request the number of checks, and for each check the limit's index and
#: the tokens. Returns status, remaining, retry and reset of each check.
DECIDE = Script(
    LIBRARY
    + """
local limits, at = {}, 2
for place = 1, tonumber(ARGV[1]) do
  limits[place] = {
    code = ARGV[at], unit = tonumber(ARGV[at + 1]), capacity = tonumber(ARGV[at + 2]),
    enforced = ARGV[at + 3] == '1',
  }
  at = at + 4
end
local answers, key = {}, 0
while at <= #ARGV do
  local checks, all = {}, true
  local count = tonumber(ARGV[at])
  at = at + 1
  for place = 1, count do
    key = key + 1
    local terms, tokens = limits[tonumber(ARGV[at]) + 1], tonumber(ARGV[at + 1])
    at = at + 2
    local name = KEYS[key]
    local state = load(name, terms)
    local status, left, wait, reset, after, repaired = kinds[terms.code].check(terms, state, tokens)
    checks[place] = {name, terms, tokens, status, left, wait, reset, after, repaired}
    if terms.enforced and status ~= 1 then all = false end
  end
  for place = 1, count do
    local check = checks[place]
    local name, terms, tokens, status = check[1], check[2], check[3], check[4]
    local left, wait, reset, after, repaired = check[5], check[6], check[7], check[8], check[9]
    if status == 1 and not all and tokens > 0 then
      status, left, wait, reset, after, repaired =
        kinds[terms.code].check(terms, states[name], 0)
    end
    if tokens > 0 and (repaired or (all and status == 1)) then save(name, terms, after) end
    local to = #answers
    answers[to + 1], answers[to + 2], answers[to + 3], answers[to + 4] = status, left, wait, reset
  end
end
flush()
return answers
"""
)
#: DECIDE for the most frequent case: one token bucket per request, and no cost above its burst.
#: KEYS: one per request. ARGV: the tolerance in microseconds, and the microseconds that each
#: request takes, or one value for all. Returns for each request the microseconds until
#: its bucket is full, including what was taken; for a refused request -1 minus that number.
DECIDE_BUCKETS = Script(
    CLOCK
    + LIFETIME
    + """
local capacity, separate, fulls, changed = tonumber(ARGV[1]), #ARGV > 2, {}, {}
local raws, answers, taken = redis.call('MGET', unpack(KEYS)), {}, tonumber(ARGV[2])
for place, key in ipairs(KEYS) do
  local full, raw = fulls[key], raws[place]
  if not full then
    full = raw and #raw <= 16 and string.find(raw, '^%d+$') and tonumber(raw) or 0
  end
  if separate then taken = tonumber(ARGV[place + 1]) end
  local write = full - now > capacity
  if write then full = now + capacity elseif full < now then full = now end
  if full + taken - now > capacity then
    answers[place] = now - full - 1
  else
    full, write = full + taken, true
    answers[place] = full - now
  end
  if taken > 0 then
    fulls[key] = full
    if write then changed[key] = true end
  end
end
-- Redis itself may write a large number as 1e+15.
local write = string.format
for key in pairs(changed) do
  local full = fulls[key]
  redis.call('SET', key, write('%.0f', full), 'PX', write('%.0f', lifetime(full - now)))
end
return answers
"""
)

#: Takes tokens for work that was done already: as many as there are, and no more.
#: KEYS: one per charge. ARGV: for each charge the limit's code, unit and capacity, and the tokens.
#: Returns the tokens that were taken for each.
CHARGE = Script(
    LIBRARY
    + """
local taken = {}
for place, key in ipairs(KEYS) do
  local at = place * 4 - 3
  local terms = {code = ARGV[at], unit = tonumber(ARGV[at + 1]), capacity = tonumber(ARGV[at + 2])}
  local kind, state = kinds[terms.code], load(key, terms)
  local _, left, _, _, after = kind.check(terms, state, 0)
  local tokens = math.max(0, math.min(left, tonumber(ARGV[at + 3])))
  if tokens > 0 then
    _, _, _, _, after = kind.check(terms, after, tokens)
    save(key, terms, after)
  end
  taken[place] = tokens
end
flush()
return taken
"""
)


def bucket_result(terms: LimitTerms, tokens: int, value: int) -> LimitResult:
    """Return the result of one request from DECIDE_BUCKETS' reply."""
    if value >= 0:
        return LimitResult(LimitStatus.ADMITTED, (terms.capacity - value) // terms.unit, 0, value)
    full = -1 - value
    wait = full + tokens * terms.unit - terms.capacity
    return LimitResult(LimitStatus.REFUSED, (terms.capacity - full) // terms.unit, wait, full)


def charge_arguments(
    terms: Sequence[LimitTerms], charges: Sequence[LimitCheck]
) -> tuple[list[str], list[str | int]]:
    """Return KEYS and ARGV for CHARGE."""
    arguments: list[str | int] = []
    for _, index, tokens in charges:
        limit = terms[index]
        arguments += (limit.code, limit.unit, limit.capacity, tokens)
    return [charge.key for charge in charges], arguments


def decide_arguments(
    terms: Sequence[LimitTerms], requests: Sequence[Sequence[LimitCheck]]
) -> tuple[list[str], list[str | int]]:
    """Return KEYS and ARGV for DECIDE."""
    keys: list[str] = []
    arguments: list[str | int] = [len(terms)]
    for limit in terms:
        arguments += (limit.code, limit.unit, limit.capacity, 1 if limit.enforced else 0)
    for checks in requests:
        arguments.append(len(checks))
        for key, index, tokens in checks:
            keys.append(key)
            arguments.append(index)
            arguments.append(tokens)
    return keys, arguments


def parse_results(
    reply: Sequence[int], requests: Sequence[Sequence[object]]
) -> list[list[LimitResult]]:
    """Return the results in DECIDE's reply, by request.

    Only the number of checks of each request matters.
    """
    results = []
    offset = 0
    for checks in requests:
        row = []
        for _ in checks:
            row.append(LimitResult(*reply[offset : offset + 4]))
            offset += 4
        results.append(row)
    return results
