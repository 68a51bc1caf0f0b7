"""How limits count: one Lua script for Redis, and the same in Python.

TokenBucket is the generic cell rate algorithm (ITU-T I.371, in its virtual scheduling form): the
state is the one moment at which the bucket will be full again. SlidingWindow counts in slices of a
sixteenth of the period and lets go of a slice when all of it has left the window, so no window of
that length ever holds more than ``requests``. FixedWindow counts from tick to tick.

All times are whole microseconds, which doubles hold exactly. States are plain strings; the key
names algorithm and version but not the rate, so an edited policy keeps what was consumed and a
changed algorithm never meets another's value. A state that lies in the future of any possible one
(a clock that went back, a policy made smaller) is drawn in, and written, so that it heals.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b, sha1
from typing import TYPE_CHECKING, NamedTuple

from engineroom.ratelimit.limits.model import Algorithm, Mode

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

    from engineroom.ratelimit.limits.model import Limit, Policy

#: Slices of a sliding window.
SLICES = 16
#: Version of what is stored; part of every key.
SCHEMA = 1

_CODES = {
    Algorithm.TOKEN_BUCKET: "t",
    Algorithm.SLIDING_WINDOW: "s",
    Algorithm.FIXED_WINDOW: "f",
}


class Status(IntEnum):
    """What one limit says of a request."""

    REFUSED = 0
    ADMITTED = 1
    #: The cost is more than the limit ever admits at once.
    NEVER = 2


@dataclass(frozen=True, slots=True)
class Terms:
    """A limit as the script needs it.

    ``unit`` and ``most`` are interval and tolerance in microseconds for a token bucket, period in
    microseconds and requests for a window.
    """

    code: str
    unit: int
    most: int
    enforced: bool = True

    @classmethod
    def of(cls, limit: Limit) -> Terms:
        """The terms of a declared limit."""
        enforced = limit.mode is Mode.ENFORCE
        if limit.algorithm is Algorithm.TOKEN_BUCKET:
            return cls("t", limit.rate.interval_us, limit.tolerance_us, enforced)
        return cls(_CODES[limit.algorithm], limit.rate.period_us, limit.rate.requests, enforced)


class Check(NamedTuple):
    """One limit asked for ``tokens`` under ``key``; ``terms`` is an index. 0 tokens peek."""

    key: str
    terms: int
    tokens: int


class Answer(NamedTuple):
    """What a limit said; times in microseconds.

    ``retry`` is how long the same request has to wait, 0 unless refused. When another limit
    refused the request, ``remaining`` and ``reset`` are those of a limit that gave nothing away.
    """

    status: int
    remaining: int
    retry: int
    reset: int


def bucket_key(policy: Policy, limit: Limit, subject: str, prefix: str = "er:rl") -> str:
    """Where a limit's state for ``subject`` is kept.

    All keys of a policy share a hash tag, so that one script may touch them in a Redis Cluster.
    Of the subject only a digest is stored: it may be long, and it may be somebody's API key.
    """
    return bucket_prefix(policy, limit, prefix) + digest(subject)


def bucket_prefix(policy: Policy, limit: Limit, prefix: str = "er:rl") -> str:
    """What the keys of all subjects of a limit begin with."""
    return f"{prefix}:{{{policy.name}}}:{limit.name}:{_CODES[limit.algorithm]}{SCHEMA}:"


def digest(subject: str) -> str:
    """What stands for a subject in its key."""
    return blake2b(subject.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


#: The script's only source of time. It takes no argument, so no caller can tell it the time.
CLOCK = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
"""
#: Milliseconds that a state is kept which matters for so many microseconds.
LIFETIME = """
local function lifetime(matters) return math.max(1, math.ceil(matters / 1000)) end
"""

#: Reading, judging and writing states. `%.0f` because tostring() keeps 14 digits only.
LIBRARY = (
    CLOCK
    + LIFETIME
    + """
local function text(number) return string.format('%.0f', number) end
local kinds = {t = {}, s = {}, f = {}}

-- A state is read once a call; what cannot be read counts as none and is overwritten.
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
  if full - now > terms.most then full, repaired = now + terms.most, true end
  local taken = tokens * terms.unit
  if taken > terms.most then
    local left = math.floor((now + terms.most - full) / terms.unit)
    return 2, left, 0, full - now, full, repaired
  end
  local wait = full + taken - now - terms.most
  if wait > 0 then
    local left = math.floor((now + terms.most - full) / terms.unit)
    return 0, left, wait, full - now, full, repaired
  end
  full = full + taken
  return 1, math.floor((now + terms.most - full) / terms.unit), 0, full - now, full, repaired
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
  local left = math.max(0, terms.most - total)
  if tokens > terms.most then return 2, left, 0, reset, slices, repaired end
  if tokens > 0 and total + tokens > terms.most then
    for _, slice in ipairs(slices) do
      total = total - slice[3]
      if total + tokens <= terms.most then
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
  local left, reset = math.max(0, terms.most - count), start + period - now
  local kept = {start, count}
  if tokens > terms.most then return 2, left, 0, reset, kept, repaired end
  if tokens > 0 and count + tokens > terms.most then
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

#: Decides any number of requests of one policy at one moment, in order.
#: KEYS: one a check. ARGV: how many limits; for each its code, unit, most and 1 if enforced; then
#: for each request how many checks, and for each the limit's place and tokens.
#: Answers status, remaining, retry, reset of each check.
SCRIPT = (
    LIBRARY
    + """
local limits, at = {}, 2
for place = 1, tonumber(ARGV[1]) do
  limits[place] = {
    code = ARGV[at], unit = tonumber(ARGV[at + 1]), most = tonumber(ARGV[at + 2]),
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
#: What EVALSHA calls it.
SCRIPT_SHA = sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()

#: SCRIPT for what is asked most: one token bucket a request, and no cost above its burst.
#: KEYS: one a request. ARGV: tolerance in microseconds, and what is taken, in microseconds, by each
#: request or once for all. Answers for each in how many microseconds its bucket will be full: with
#: what was taken, or -1 less that number when it was refused.
BUCKET_SCRIPT = (
    CLOCK
    + LIFETIME
    + """
local most, each, fulls, changed = tonumber(ARGV[1]), #ARGV > 2, {}, {}
local raws, answers, taken = redis.call('MGET', unpack(KEYS)), {}, tonumber(ARGV[2])
for place, key in ipairs(KEYS) do
  local full, raw = fulls[key], raws[place]
  if not full then
    full = raw and #raw <= 16 and string.find(raw, '^%d+$') and tonumber(raw) or 0
  end
  if each then taken = tonumber(ARGV[place + 1]) end
  local write = full - now > most
  if write then full = now + most elseif full < now then full = now end
  if full + taken - now > most then
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
BUCKET_SHA = sha1(BUCKET_SCRIPT.encode(), usedforsecurity=False).hexdigest()

#: Takes tokens for what has happened already: as many as are there, and no more.
#: KEYS: one a charge. ARGV: for each its limit's code, unit, most, and the tokens.
#: Answers how many were taken from each.
CHARGE_SCRIPT = (
    LIBRARY
    + """
local taken = {}
for place, key in ipairs(KEYS) do
  local at = place * 4 - 3
  local terms = {code = ARGV[at], unit = tonumber(ARGV[at + 1]), most = tonumber(ARGV[at + 2])}
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
CHARGE_SHA = sha1(CHARGE_SCRIPT.encode(), usedforsecurity=False).hexdigest()


def bucket_answer(terms: Terms, tokens: int, value: int) -> Answer:
    """What BUCKET_SCRIPT's answer to one request says."""
    if value >= 0:
        return Answer(Status.ADMITTED, (terms.most - value) // terms.unit, 0, value)
    full = -1 - value
    wait = full + tokens * terms.unit - terms.most
    return Answer(Status.REFUSED, (terms.most - full) // terms.unit, wait, full)


def charge_arguments(
    terms: Sequence[Terms], charges: Sequence[Check]
) -> tuple[list[str], list[str | int]]:
    """KEYS and ARGV for CHARGE_SCRIPT."""
    arguments: list[str | int] = []
    for _, place, tokens in charges:
        each = terms[place]
        arguments += (each.code, each.unit, each.most, tokens)
    return [charge.key for charge in charges], arguments


def script_arguments(
    terms: Sequence[Terms], requests: Sequence[Sequence[Check]]
) -> tuple[list[str], list[str | int]]:
    """KEYS and ARGV for SCRIPT."""
    keys: list[str] = []
    arguments: list[str | int] = [len(terms)]
    for each in terms:
        arguments += (each.code, each.unit, each.most, 1 if each.enforced else 0)
    for checks in requests:
        arguments.append(len(checks))
        for key, place, tokens in checks:
            keys.append(key)
            arguments.append(place)
            arguments.append(tokens)
    return keys, arguments


def parse_answers(reply: Sequence[int], requests: Sequence[Sequence[object]]) -> list[list[Answer]]:
    """SCRIPT's reply, by request; of the requests only the number of checks counts."""
    answers = []
    at = 0
    for checks in requests:
        row = []
        for _ in checks:
            row.append(Answer(*reply[at : at + 4]))
            at += 4
        answers.append(row)
    return answers


_WHOLE = re.compile(r"\d{1,16}", re.ASCII)
_SLICE = re.compile(r"(\d+),(\d+),(\d+);", re.ASCII)
_TICK = re.compile(r"(\d+),(\d+)", re.ASCII)


def decide(
    store: MutableMapping[str, str], terms: Sequence[Terms], checks: Sequence[Check], now: int
) -> list[Answer]:
    """SCRIPT in Python, for one request: the same answers and the same states, in ``store``.

    ``now`` is in microseconds. Nothing is ever removed from ``store``; a state that no longer
    matters answers like none.
    """
    judged = [
        _judge(terms[check.terms], store.get(check.key, ""), check.tokens, now) for check in checks
    ]
    admitted = all(
        answer.status == Status.ADMITTED
        for check, (answer, _, _) in zip(checks, judged, strict=True)
        if terms[check.terms].enforced
    )
    answers = []
    for check, (answer, after, repaired) in zip(checks, judged, strict=True):
        if answer.status == Status.ADMITTED and not admitted and check.tokens:
            answer, after, repaired = _judge(terms[check.terms], store.get(check.key, ""), 0, now)
        if check.tokens and (repaired or (admitted and answer.status == Status.ADMITTED)):
            store[check.key] = after
        answers.append(answer)
    return answers


def _judge(terms: Terms, raw: str, tokens: int, now: int) -> tuple[Answer, str, bool]:
    """The answer, the state after it, and whether the state had to be drawn in."""
    if terms.code == "t":
        return _judge_bucket(terms, raw, tokens, now)
    if terms.code == "s":
        return _judge_sliding(terms, raw, tokens, now)
    return _judge_fixed(terms, raw, tokens, now)


def _judge_bucket(terms: Terms, raw: str, tokens: int, now: int) -> tuple[Answer, str, bool]:
    full = max(int(raw) if _WHOLE.fullmatch(raw) else 0, now)
    repaired = full - now > terms.most
    full = min(full, now + terms.most)
    left = (now + terms.most - full) // terms.unit
    taken = tokens * terms.unit
    if taken > terms.most:
        return Answer(Status.NEVER, left, 0, full - now), str(full), repaired
    wait = full + taken - now - terms.most
    if wait > 0:
        return Answer(Status.REFUSED, left, wait, full - now), str(full), repaired
    full += taken
    left = (now + terms.most - full) // terms.unit
    return Answer(Status.ADMITTED, left, 0, full - now), str(full), repaired


def _judge_sliding(terms: Terms, raw: str, tokens: int, now: int) -> tuple[Answer, str, bool]:
    period = terms.unit
    read = [(int(a), int(b), int(c)) for a, b, c in _SLICE.findall(raw)]
    repaired = any(last > now for _, last, _ in read)
    drawn = [(min(first, now), min(last, now), count) for first, last, count in read]
    slices = [each for each in drawn if each[1] > now - period]
    total = sum(count for _, _, count in slices)
    reset = slices[-1][1] + period - now if slices else 0
    left = max(0, terms.most - total)
    if tokens > terms.most:
        return Answer(Status.NEVER, left, 0, reset), _write_slices(slices), repaired
    if tokens and total + tokens > terms.most:
        wait = 0
        for _, last, count in slices:
            total -= count
            if total + tokens <= terms.most:
                wait = last + period - now
                break
        return Answer(Status.REFUSED, left, wait, reset), _write_slices(slices), repaired
    if not tokens:
        return Answer(Status.ADMITTED, left, 0, reset), _write_slices(slices), repaired
    if slices and now - slices[-1][0] < max(1, period // SLICES):
        first, _, count = slices.pop()
        slices.append((first, now, count + tokens))
    else:
        slices.append((now, now, tokens))
    return Answer(Status.ADMITTED, left - tokens, 0, period), _write_slices(slices), repaired


def _write_slices(slices: Sequence[tuple[int, int, int]]) -> str:
    return "".join(f"{first},{last},{count};" for first, last, count in slices)


def _judge_fixed(terms: Terms, raw: str, tokens: int, now: int) -> tuple[Answer, str, bool]:
    period = terms.unit
    found = _TICK.fullmatch(raw)
    stored, counted = (int(found[1]), int(found[2])) if found else (0, 0)
    start = now - now % period
    count = counted if stored >= start else 0
    repaired = stored > start
    left, reset = max(0, terms.most - count), start + period - now
    kept = f"{start},{count}"
    if tokens > terms.most:
        return Answer(Status.NEVER, left, 0, reset), kept, repaired
    if tokens and count + tokens > terms.most:
        return Answer(Status.REFUSED, left, reset, reset), kept, repaired
    if not tokens:
        return Answer(Status.ADMITTED, left, 0, reset), kept, repaired
    return Answer(Status.ADMITTED, left - tokens, 0, reset), f"{start},{count + tokens}", repaired
