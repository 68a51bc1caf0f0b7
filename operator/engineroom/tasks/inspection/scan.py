"""Reading RQ's sorted sets and lists of jobs in pages, by scripts that block Redis only briefly.

A position is ``score:id`` in a sorted set and ``index:id`` in a list. It is not an offset, so jobs
that are added to a set or removed from it shift no page. A script reads a bounded number of jobs
and of bytes.
"""

from __future__ import annotations

import json
import pickletools  # nosec B403 - reads opcodes and loads nothing
import re
import zlib
from base64 import b64decode
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from engineroom.core.redis_replies import text
from engineroom.tasks.errors import InvalidTaskError
from engineroom.tasks.redis_steps import LuaScript, ScriptStep

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Bytes that are read of a job's arguments, to find its function, and of its traceback.
_HEAD, _TRACEBACK = 2048, 32768
#: Larger arguments and results are not read for a list, because Lua would copy them whole (bytes).
_LARGE = 65536
#: Bytes that one script reads; it blocks Redis meanwhile.
_BUDGET = 512 * 1024

_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*)(?:: (.*))?$")

_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?")

FIELDS = (
    "status", "origin", "description", "created_at", "enqueued_at", "started_at", "ended_at",
    "worker_name", "er_category", "exc_info", "retries_left",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job at a position; ``fields`` has the names of FIELDS, and empty text for missing ones."""

    job_id: str
    place: str
    #: Its score in the sorted set; its index in a list.
    score: float
    fields: dict[str, str]
    function: str
    traceback: str
    #: The worker of its last result.
    ran_by: str
    crashes: int

    @property
    def exists(self) -> bool:
        """True if the job's hash exists."""
        return bool(self.fields["status"] or self.fields["origin"])


def walk(
    key: str, cursor: str | None, count: int, *, oldest_first: bool, failed: bool, bound: str = ""
) -> ScriptStep:
    """Return the invocation that reads ``count`` members of a sorted set after the cursor.

    Read the reply with ``rows``. ``failed`` adds tracebacks and workers. ``bound`` is the highest
    score to read, for oldest first.
    """
    score, job_id = _split(cursor, _is_score)
    order = "asc" if oldest_first else "desc"
    arguments = [score, job_id, count, order, bound, "1" if failed else "", *_LIMITS, *FIELDS]
    return ScriptStep(_WALK, [key], arguments)


def walk_list(key: str, cursor: str | None, count: int) -> ScriptStep:
    """Return the invocation that reads ``count`` members of a list after the cursor, head first.

    Read the reply with ``rows``. Workers take jobs from the head, so a position that has moved is
    searched for near the head.
    """
    index, job_id = _split(cursor, lambda place: bool(re.fullmatch("[0-9]{1,10}", place)))
    return ScriptStep(_WALK_LIST, [key], [index, job_id, count, "", "", "", *_LIMITS, *FIELDS])


def read_rows(job_ids: Sequence[str]) -> ScriptStep:
    """Return the invocation that reads jobs by id; read the reply with ``rows``."""
    return ScriptStep(
        _READ, [""], ["", "", 0, "", "", "", *_LIMITS, len(job_ids), *job_ids, *FIELDS]
    )


def rows(reply: Any) -> tuple[list[JobRow], bool]:
    """Return the rows of a script's reply, and whether they are the last."""
    row_replies, ended = reply
    return [_row(row_reply) for row_reply in row_replies], bool(ended)


def function_of(data: bytes) -> str:
    """Return the function's name from the head of pickled or JSON job data; empty if absent."""
    try:
        head = zlib.decompressobj().decompress(data, 4 * _HEAD)
    except zlib.error:
        head = data
    try:
        if head[:1] == b"\x80":
            for operation, argument, _ in pickletools.genops(head):
                if isinstance(argument, str) and "UNICODE" in operation.name:
                    return argument
            return ""
        name = json.JSONDecoder().raw_decode(head.decode("utf-8", "ignore").lstrip("[ \n"))[0]
    except ValueError:
        return ""
    return name if isinstance(name, str) else ""


def exception_of(traceback: str) -> tuple[str, str]:
    """Return the exception's class, and the first line of its message, from a traceback."""
    last = ("", "")
    for line in traceback.splitlines()[::-1]:
        if line.startswith(("  ", "Traceback")):
            break
        match = _EXCEPTION.match(line)
        if match:
            last = (match[1], match[2] or "")
    return last


def decompress_traceback(packed: bytes) -> str:
    """Return a stored traceback as text of at most a mebibyte; empty if it cannot be read."""
    if not packed:
        return ""
    with suppress(ValueError):  # RQ's older field is not in Base64
        packed = b64decode(packed, validate=True)
    try:
        return zlib.decompressobj().decompress(packed, 1 << 20).decode("utf-8", "replace")
    except zlib.error:
        return ""


def _is_score(place: str) -> bool:
    """Return whether the text is a score in Redis; jobs that never expire have ``inf``."""
    if place in ("inf", "-inf"):
        return True
    return bool(_NUMBER.fullmatch(place)) and isfinite(float(place))


def _split(cursor: str | None, valid: Callable[[str], bool]) -> tuple[str, str]:
    place, _, job_id = (cursor or "").partition(":")
    if cursor and (not job_id or len(job_id) > 1000 or not valid(place)):
        raise InvalidTaskError("cursor", f"{cursor[:50]!r}", "use the cursor of the page before")
    return place, job_id


def _row(reply: Sequence[Any]) -> JobRow:
    job_id, at, hash_, data, traceback, worker, crashes = reply
    values = dict(zip(FIELDS, hash_, strict=True))
    old_traceback = values.pop("exc_info") or b""
    fields = {name: text(value) for name, value in values.items()}
    place = text(at)
    function = function_of(data or b"")
    if not function and data is None:
        # The arguments are too large to read, but RQ's description begins with the function.
        function = fields["description"].partition("(")[0]
    return JobRow(
        job_id=text(job_id),
        place=f"{place}:{text(job_id)}",
        score=float(place),
        fields=fields,
        function=function,
        traceback=decompress_traceback(traceback or old_traceback),
        ran_by=text(worker),
        crashes=int(crashes or 0),
    )


_LIMITS = (_HEAD, _TRACEBACK, _LARGE, _BUDGET)

#: ARGV: position (score or index) and id, count, order, bound, failed, then _LIMITS and FIELDS.
_ROW = """
local key, place, id, count = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local head, longest = tonumber(ARGV[7]), tonumber(ARGV[8])
local large, budget = tonumber(ARGV[9]), tonumber(ARGV[10])
local spent, names = 0, 11
local function row(job, at, failed)
  local hash, results = 'rq:job:' .. job, 'rq:results:' .. job
  local data, size = false, redis.call('HSTRLEN', hash, 'data')
  if size <= large then
    data = string.sub(redis.call('HGET', hash, 'data') or '', 1, head)
    spent = spent + size
  end
  local traceback, worker, crashes = '', '', false
  if failed then
    local memory = redis.pcall('MEMORY', 'USAGE', results, 'SAMPLES', 1)
    if type(memory) ~= 'number' or memory <= 4 * large then
      local last = redis.call('XREVRANGE', results, '+', '-', 'COUNT', 1)[1]
      for field = 1, last and #last[2] or 0, 2 do
        spent = spent + #last[2][field + 1]
        if last[2][field] == 'exc_string' then
          traceback = string.sub(last[2][field + 1], 1, longest)
        elseif last[2][field] == 'worker_name' then
          worker = last[2][field + 1]
        end
      end
    end
    crashes = redis.call('GET', 'engineroom:crashes:' .. job)
  end
  local fields = redis.call('HMGET', hash, unpack(ARGV, names))
  for at = 1, #fields do spent = spent + (fields[at] and #fields[at] or 0) end
  return {job, at, fields, data, traceback, worker, crashes}
end
"""

#: KEYS: sorted set. If the job at the position has gone, bisection among the members of equal score
#: finds the position. Lua compares strings by locale, but Redis by bytes, hence ``before``.
_WALK = LuaScript(
    _ROW
    + """
local asc, bound, failed = ARGV[4] == 'asc', ARGV[5], ARGV[6] ~= ''
local size = redis.call('ZCARD', key)
local function before(a, b)
  for at = 1, math.min(#a, #b) do
    local x, y = string.byte(a, at), string.byte(b, at)
    if x ~= y then return x < y end
  end
  return #a < #b
end
local first = asc and 0 or size - 1
if place ~= '' then
  if redis.call('ZSCORE', key, id) == place then
    first = redis.call('ZRANK', key, id) + (asc and 1 or -1)
  else
    local low = redis.call('ZCOUNT', key, '-inf', '(' .. place)
    local high = redis.call('ZCOUNT', key, '-inf', place)
    while low < high do
      local middle = math.floor((low + high) / 2)
      if before(redis.call('ZRANGE', key, middle, middle)[1], id) then
        low = middle + 1
      else
        high = middle
      end
    end
    -- A job whose score has changed is not among the equals: low is the first after the position.
    first = asc and low or low - 1
  end
end
local members = {}
if asc then
  members = redis.call('ZRANGE', key, first, first + count - 1, 'WITHSCORES')
elseif first >= 0 then
  members = redis.call('ZREVRANGE', key, size - 1 - first, size - 2 - first + count, 'WITHSCORES')
end
local rows = {}
for at = 1, #members, 2 do
  if bound ~= '' and tonumber(members[at + 1]) > tonumber(bound) then return {rows, 1} end
  if spent > budget then return {rows, 0} end
  rows[#rows + 1] = row(members[at], members[at + 1], failed)
end
return {rows, #members < 2 * count and 1 or 0}
"""
)

#: KEYS: list. Workers take jobs from the head, so the position can only move toward the head.
_WALK_LIST = LuaScript(
    _ROW
    + """
local first = 0
if place ~= '' then
  first = place + 1
  if redis.call('LINDEX', key, place) ~= id then
    local now = redis.call('LPOS', key, id, 'MAXLEN', 20000)
    if now then
      first = now + 1
    elseif redis.call('HGET', 'rq:job:' .. id, 'status') ~= 'queued' then
      first = 0
    end
  end
end
local members = redis.call('LRANGE', key, first, first + count - 1)
local rows = {}
for at = 1, #members do
  if spent > budget then return {rows, 0} end
  rows[#rows + 1] = row(members[at], tostring(first + at - 1), false)
end
return {rows, #members < count and 1 or 0}
"""
)

#: ARGV: as of _ROW, with the number of ids and the ids between _LIMITS and FIELDS.
_READ = LuaScript(
    _ROW
    + """
names = 12 + ARGV[11]
local rows = {}
for at = 12, names - 1 do
  if spent > budget then return {rows, 0} end
  rows[#rows + 1] = row(ARGV[at], '0', false)
end
return {rows, 1}
"""
)
