"""Where the compiled policies of a namespace stand in Redis, and the scripts that touch them.

All keys of a namespace share a hash tag. The document and its head (digest, revision, lineage) are
written together. An enforcer's heartbeat says which document it follows and is told which one there
is, so that a lost push costs one heartbeat; Redis's own time says who is alive.
"""

from __future__ import annotations

import json
from hashlib import sha1
from typing import Any, Final, NamedTuple

from engineroom.ratelimit.algorithms import CLOCK

#: Seconds between an enforcer's heartbeats; after how many without one it counts as gone.
HEARTBEAT = 1.0
LIVE_FOR = 10.0
#: Enforcers of one namespace; the one that was heard of longest ago makes room.
MAX_ENFORCERS = 1024
#: A document without policies is kept so long, for enforcers that still have an older one (ms).
EMPTY_FOR_MS: Final = 7 * 86_400_000
#: Of an enforcer's entry, characters.
MAX_ENTRY = 1024
PREFIX = "er:rlp:"


class Keys(NamedTuple):
    """The keys and channels of one namespace."""

    document: str
    head: str
    alive: str
    entries: str
    #: Says that the document changed; says that an enforcer's word did.
    news: str
    words: str


def keys_of(namespace: str) -> Keys:
    """The keys of a namespace."""
    names = ("doc", "head", "alive", "enforcers", "news", "words")
    return Keys(*(f"{PREFIX}{{{namespace}}}:{name}" for name in names))


#: What a controller listens to, for all namespaces.
WORDS_PATTERN = f"{PREFIX}*:words"


def namespace_of(channel: str) -> str | None:
    """The namespace in the name of a channel or key; None for what is none of ours."""
    if not channel.startswith(PREFIX + "{"):
        return None
    return channel[len(PREFIX) + 1 :].partition("}")[0] or None


#: KEYS: head, alive, entries, words. ARGV: identity, its word, microseconds that count as alive,
#: most enforcers. Answers the head ('' when there is none) and how many are alive.
BEAT = (
    CLOCK
    + """
local alive, entries, live = KEYS[2], KEYS[3], tonumber(ARGV[3])
local known = redis.call('HGET', entries, ARGV[1])
redis.call('ZADD', alive, string.format('%.0f', now), ARGV[1])
redis.call('HSET', entries, ARGV[1], ARGV[2])
local gone = redis.call('ZRANGEBYSCORE', alive, '-inf', string.format('(%.0f', now - live))
local excess = redis.call('ZCARD', alive) - #gone - tonumber(ARGV[4])
if excess > 0 then
  for _, name in ipairs(redis.call('ZRANGE', alive, #gone, #gone + excess - 1)) do
    gone[#gone + 1] = name
  end
end
for at = 1, #gone do
  redis.call('ZREM', alive, gone[at])
  redis.call('HDEL', entries, gone[at])
end
redis.call('PEXPIRE', alive, math.ceil(live / 1000))
redis.call('PEXPIRE', entries, math.ceil(live / 1000))
if known ~= ARGV[2] or #gone > 0 then redis.call('PUBLISH', KEYS[4], ARGV[1]) end
return {redis.call('GET', KEYS[1]) or '', redis.call('ZCARD', alive)}
"""
)
BEAT_SHA = sha1(BEAT.encode(), usedforsecurity=False).hexdigest()

#: KEYS: alive, entries, words. ARGV: identity.
SIGN_OFF = """
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('PUBLISH', KEYS[3], ARGV[1])
"""

#: Who is alive and what they said. KEYS: head, alive, entries. ARGV: microseconds that count.
#: Answers the head, Redis's time, and for each its identity, when it was heard of, and its word.
ROLL = (
    CLOCK
    + """
local rows = {redis.call('GET', KEYS[1]) or '', string.format('%.0f', now)}
local since = string.format('(%.0f', now - tonumber(ARGV[1]))
local known = redis.call('ZRANGEBYSCORE', KEYS[2], since, '+inf', 'WITHSCORES')
for at = 1, #known, 2 do
  rows[#rows + 1] = known[at]
  rows[#rows + 1] = string.format('%.0f', tonumber(known[at + 1]))
  rows[#rows + 1] = redis.call('HGET', KEYS[3], known[at]) or ''
end
return rows
"""
)
ROLL_SHA = sha1(ROLL.encode(), usedforsecurity=False).hexdigest()

#: Replaces the document if it still is the one that this rests on, and says so.
#: KEYS: document, head, news. ARGV: the head it must have, the new head, the document, how long to
#: keep it (ms, 0: for ever). Answers 1, or 0 when somebody else wrote meanwhile.
REPLACE = """
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[3])
redis.call('SET', KEYS[2], ARGV[2])
if ARGV[4] ~= '0' then
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
redis.call('PUBLISH', KEYS[3], ARGV[2])
return 1
"""


def head_text(hash_: str, revision: int, lineage: str) -> str:
    """The head of a document."""
    return f"{hash_} {revision} {lineage}"


class Word(NamedTuple):
    """What an enforcer says of itself."""

    hash: str
    revision: int
    lineage: str
    role: str
    #: "" or why it does not follow the newest document.
    trouble: str = ""

    def text(self) -> str:
        """As it stands in Redis."""
        shortened = self._replace(role=self.role[:64], trouble=self.trouble[:300])
        return json.dumps(list(shortened))

    @classmethod
    def parse(cls, text: str) -> Word | None:
        """The word of a text; None for what is none."""
        try:
            row: Any = json.loads(text) if len(text) <= 4 * MAX_ENTRY else None
            hash_, revision, lineage, role, trouble = row
            return cls(str(hash_), int(revision), str(lineage), str(role), str(trouble))
        except (TypeError, ValueError):
            return None
