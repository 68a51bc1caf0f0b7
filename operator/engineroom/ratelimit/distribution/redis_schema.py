"""Where the compiled policies of a namespace stand in Redis, and the scripts that touch them.

All keys of a namespace share a hash tag. The document and its head (digest, revision, lineage) are
written together. An enforcer's heartbeat says which document it follows and is told which one there
is, so that a lost push costs one heartbeat; Redis's own time says who is alive.
"""

from __future__ import annotations

import json
from hashlib import sha1
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engineroom.ratelimit.limits.algorithms import CLOCK

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Seconds between an enforcer's heartbeats; after how many without one it counts as lost, and after
#: how many, if it did not sign off, as gone.
HEARTBEAT = 1.0
LIVE_FOR, LOST_FOR = 10.0, 60.0
#: Enforcers of one namespace; the one that was heard of longest ago makes room.
MAX_ENFORCERS = 1024
#: A document without policies is kept so long, for enforcers that still have an older one (ms).
EMPTY_FOR_MS: Final = 7 * 86_400_000
#: Of an enforcer's entry without its labels, characters; and of those, as JSON.
MAX_ENTRY, MAX_LABELS = 4096, 4096
#: Policies whose decisions without Redis one heartbeat tells; the others' wait for the next one.
MAX_FAILING = 256
PREFIX = "er:rlp:"
#: The role of a decision service, which enforces what is attached to targets; a middleware has
#: labels instead.
LIMITER, MIDDLEWARE = "limiter", "middleware"

#: A string made up once: two addresses that find the same one lead to the same Redis.
IDENTITY = f"{PREFIX}id"
#: Hash of installations, each with when it last looked (microseconds of Redis's clock). Whoever is
#: in it has written all its documents since this Redis was last empty.
PUBLISHED = f"{PREFIX}published"


class Keys(NamedTuple):
    """The keys and channels of one namespace."""

    document: str
    head: str
    alive: str
    entries: str
    #: Says that the document changed; says that an enforcer's word did.
    news: str
    words: str
    #: Hash of decisions made without Redis: by policy their number, and by ``policy/at`` when one
    #: was last told of (microseconds).
    without: str


def keys_of(namespace: str) -> Keys:
    """The keys of a namespace."""
    names = ("doc", "head", "alive", "enforcers", "news", "words", "without")
    return Keys(*(f"{PREFIX}{{{namespace}}}:{name}" for name in names))


def peers_of(namespace: str, group: str) -> str:
    """The key of those who enforce the same, and so share a rate without Redis."""
    return f"{PREFIX}{{{namespace}}}:peers:{group}"


#: What a controller listens to, for all namespaces.
WORDS_PATTERN = f"{PREFIX}*:words"


def namespace_of(channel: str) -> str | None:
    """The namespace in the name of a channel or key; None for what is none of ours."""
    if not channel.startswith(PREFIX + "{"):
        return None
    return channel[len(PREFIX) + 1 :].partition("}")[0] or None


#: KEYS: head, alive, entries, words, peers, without. ARGV: identity, its word, microseconds that
#: count as alive and as lost, most enforcers, then policies and how many decisions were made for
#: each without Redis. Answers the head ('' when there is none) and how many of the peers are alive.
BEAT = (
    CLOCK
    + """
local alive, entries, peers, without = KEYS[2], KEYS[3], KEYS[5], KEYS[6]
local live, lost = tonumber(ARGV[3]), tonumber(ARGV[4])
local stamp = string.format('%.0f', now)
local known = redis.call('HGET', entries, ARGV[1])
redis.call('ZADD', alive, stamp, ARGV[1])
redis.call('HSET', entries, ARGV[1], ARGV[2])
redis.call('ZADD', peers, stamp, ARGV[1])
redis.call('ZREMRANGEBYSCORE', peers, '-inf', string.format('(%.0f', now - live))
redis.call('PEXPIRE', peers, math.ceil(live / 1000))
local gone = redis.call('ZRANGEBYSCORE', alive, '-inf', string.format('(%.0f', now - lost))
local excess = redis.call('ZCARD', alive) - #gone - tonumber(ARGV[5])
if excess > 0 then
  for _, name in ipairs(redis.call('ZRANGE', alive, #gone, #gone + excess - 1)) do
    gone[#gone + 1] = name
  end
end
for at = 1, #gone do
  redis.call('ZREM', alive, gone[at])
  redis.call('HDEL', entries, gone[at])
end
redis.call('PEXPIRE', alive, math.ceil(lost / 1000))
redis.call('PEXPIRE', entries, math.ceil(lost / 1000))
for at = 6, #ARGV, 2 do
  redis.call('HINCRBY', without, ARGV[at], ARGV[at + 1])
  redis.call('HSET', without, ARGV[at] .. '/at', stamp)
end
if #ARGV > 5 then redis.call('PEXPIRE', without, 86400000) end
if known ~= ARGV[2] or #gone > 0 then redis.call('PUBLISH', KEYS[4], ARGV[1]) end
return {redis.call('GET', KEYS[1]) or '', redis.call('ZCARD', peers)}
"""
)
BEAT_SHA = sha1(BEAT.encode(), usedforsecurity=False).hexdigest()

#: KEYS: alive, entries, words, peers. ARGV: identity.
SIGN_OFF = """
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('PUBLISH', KEYS[3], ARGV[1])
"""

#: Who is alive or lost, and what they said. KEYS: head, alive, entries, without. ARGV: microseconds
#: until somebody is gone. Answers the head, Redis's time, the hash of decisions without Redis, and
#: for each enforcer its identity, when it was heard of, and its word.
ROLL = (
    CLOCK
    + """
local rows = {}
local since = string.format('(%.0f', now - tonumber(ARGV[1]))
local known = redis.call('ZRANGEBYSCORE', KEYS[2], since, '+inf', 'WITHSCORES')
for at = 1, #known, 2 do
  rows[#rows + 1] = known[at]
  rows[#rows + 1] = string.format('%.0f', tonumber(known[at + 1]))
  rows[#rows + 1] = redis.call('HGET', KEYS[3], known[at]) or ''
end
local head, without = redis.call('GET', KEYS[1]) or '', redis.call('HGETALL', KEYS[4])
return {head, string.format('%.0f', now), without, rows}
"""
)
ROLL_SHA = sha1(ROLL.encode(), usedforsecurity=False).hexdigest()

#: Says that an installation looks after its documents here. KEYS: published. ARGV: installation,
#: whether all of them are written. Answers whether it was known that they are.
LOOKED = (
    CLOCK
    + """
local known = redis.call('HEXISTS', KEYS[1], ARGV[1])
if known == 1 or ARGV[2] == '1' then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now))
end
return known
"""
)

#: Seconds since an installation looked; '' when it is not known. KEYS: published.
#: ARGV: installation.
SILENCE = (
    CLOCK
    + """
local looked = redis.call('HGET', KEYS[1], ARGV[1])
return looked and string.format('%.3f', (now - tonumber(looked)) / 1000000) or ''
"""
)

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


def lineage_of(installation: str, made_up: str) -> str:
    """The name of a new line of documents, which tells whose they are."""
    return f"{made_up}@{installation}" if installation else made_up


def owner_of(lineage: str) -> str:
    """The installation whose documents these are, by their lineage or head; "" for nobody's."""
    return lineage.partition("@")[2]


class Word(NamedTuple):
    """What an enforcer says of itself."""

    hash: str
    revision: int
    lineage: str
    role: str
    #: "" or why it does not follow the newest document.
    trouble: str = ""
    #: Of the application that a middleware is in: by them selectors find it.
    labels: tuple[tuple[str, str], ...] = ()

    def text(self) -> str:
        """As it stands in Redis."""
        shortened = self._replace(role=self.role[:64], trouble=self.trouble[:300])
        return json.dumps(list(shortened))

    @classmethod
    def parse(cls, text: str) -> Word | None:
        """The word of a text; None for what is none."""
        try:
            row: Any = json.loads(text) if len(text) <= MAX_ENTRY + MAX_LABELS else None
            hash_, revision, lineage, role, trouble, labels = row
            pairs = tuple((str(key), str(value)) for key, value in labels)
            return cls(str(hash_), int(revision), str(lineage), str(role), str(trouble), pairs)
        except (TypeError, ValueError):
            return None


def checked_labels(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Labels as a word has them; raises ValueError for more than fit into one."""
    pairs = tuple(sorted((str(key), str(value)) for key, value in labels.items()))
    if len(json.dumps(pairs)) > MAX_LABELS:
        raise ValueError(
            f"labels: more than {MAX_LABELS} characters as JSON; give those that selectors name"
        )
    return pairs
