"""The keys of compiled policies in Redis, and the scripts that access them.

All keys of a namespace share a hash tag. The document and its head (digest, revision, lineage) are
written together. An enforcer's heartbeat contains its acknowledgement and returns the current head,
so that a lost push costs one heartbeat. Redis's own time decides which enforcers are live.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engineroom.core import key_prefixes
from engineroom.ratelimit.limits.redis_calls.lua_scripts import CLOCK
from engineroom.redis.scripts import Script

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Seconds between an enforcer's heartbeats.
HEARTBEAT_SECONDS = 1.0
#: Seconds without a heartbeat after which an enforcer counts as lost, and then is removed.
LIVE_SECONDS, LOST_SECONDS = 10.0, 60.0
#: Most enforcers of one namespace; the one with the oldest heartbeat is removed for one more.
MAX_ENFORCERS = 1024
#: Expiry of a document without policies, for enforcers that have an older one (milliseconds).
EMPTY_EXPIRY_MS: Final = 7 * 86_400_000
#: Longest acknowledgement without its labels, and longest labels as JSON, characters.
MAX_ENTRY, MAX_LABELS = 4096, 4096
#: Most policies whose fallbacks one heartbeat reports; further ones wait for the next heartbeat.
MAX_REPORTED = 256
PREFIX = key_prefixes.RATE_LIMIT_POLICIES
#: Roles: a decision service enforces policies with targets, a middleware those that select its
#: labels.
LIMITER, MIDDLEWARE = "limiter", "middleware"

#: A random string, written once: two addresses with the same one lead to the same Redis.
IDENTITY = f"{PREFIX}id"
#: Hash of installations with the time of their last check (microseconds of Redis's clock). An
#: installation in it has written all its documents since this Redis was last empty.
PUBLISHED = f"{PREFIX}published"


class Keys(NamedTuple):
    """The keys and channels of one namespace."""

    document: str
    head: str
    alive: str
    entries: str
    #: Channel for changes of the document.
    changes: str
    #: Channel for changes of acknowledgements.
    acknowledgements: str
    #: Hash of decisions without Redis: their number by policy, and by ``policy/at`` the time of the
    #: last report (microseconds).
    fallbacks: str


def keys_of(namespace: str) -> Keys:
    """Return the keys of a namespace."""
    names = ("doc", "head", "alive", "enforcers", "news", "words", "without")
    return Keys(*(f"{PREFIX}{{{namespace}}}:{name}" for name in names))


def peers_key(namespace: str, group: str) -> str:
    """Return the key of the enforcers of the same policies, which share a rate without Redis."""
    return f"{PREFIX}{{{namespace}}}:peers:{group}"


#: The channels of acknowledgements of all namespaces.
ACKNOWLEDGEMENTS_PATTERN = f"{PREFIX}*:words"


def namespace_of(channel: str) -> str | None:
    """Return the namespace of a channel or key; None for other names."""
    if not channel.startswith(PREFIX + "{"):
        return None
    return channel[len(PREFIX) + 1 :].partition("}")[0] or None


#: Records a heartbeat.
#: KEYS: head, alive, entries, acknowledgements, peers, fallbacks. ARGV: identity, acknowledgement,
#: microseconds until an enforcer is lost and until it is removed, most enforcers; then policies
#: with their new fallbacks. Returns the head ('' without a document) and the number of live peers.
HEARTBEAT = Script(
    CLOCK
    + """
local alive, entries, peers, fallbacks = KEYS[2], KEYS[3], KEYS[5], KEYS[6]
local live, lost = tonumber(ARGV[3]), tonumber(ARGV[4])
local stamp = string.format('%.0f', now)
local previous = redis.call('HGET', entries, ARGV[1])
redis.call('ZADD', alive, stamp, ARGV[1])
redis.call('HSET', entries, ARGV[1], ARGV[2])
redis.call('ZADD', peers, stamp, ARGV[1])
redis.call('ZREMRANGEBYSCORE', peers, '-inf', string.format('(%.0f', now - live))
redis.call('PEXPIRE', peers, math.ceil(live / 1000))
local removed = redis.call('ZRANGEBYSCORE', alive, '-inf', string.format('(%.0f', now - lost))
local excess = redis.call('ZCARD', alive) - #removed - tonumber(ARGV[5])
if excess > 0 then
  for _, name in ipairs(redis.call('ZRANGE', alive, #removed, #removed + excess - 1)) do
    removed[#removed + 1] = name
  end
end
for at = 1, #removed do
  redis.call('ZREM', alive, removed[at])
  redis.call('HDEL', entries, removed[at])
end
redis.call('PEXPIRE', alive, math.ceil(lost / 1000))
redis.call('PEXPIRE', entries, math.ceil(lost / 1000))
for at = 6, #ARGV, 2 do
  redis.call('HINCRBY', fallbacks, ARGV[at], ARGV[at + 1])
  redis.call('HSET', fallbacks, ARGV[at] .. '/at', stamp)
end
if #ARGV > 5 then redis.call('PEXPIRE', fallbacks, 86400000) end
if previous ~= ARGV[2] or #removed > 0 then redis.call('PUBLISH', KEYS[4], ARGV[1]) end
return {redis.call('GET', KEYS[1]) or '', redis.call('ZCARD', peers)}
"""
)

#: Removes an enforcer. KEYS: alive, entries, acknowledgements, peers. ARGV: identity.
SIGN_OFF = Script(
    """
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('PUBLISH', KEYS[3], ARGV[1])
"""
)

#: Lists the live and lost enforcers. KEYS: head, alive, entries, fallbacks. ARGV: microseconds
#: until an enforcer is removed. Returns the head, Redis's time, the hash of fallbacks, and for each
#: enforcer its identity, the time of its last heartbeat, and its acknowledgement.
ROSTER = Script(
    CLOCK
    + """
local rows = {}
local since = string.format('(%.0f', now - tonumber(ARGV[1]))
local recent = redis.call('ZRANGEBYSCORE', KEYS[2], since, '+inf', 'WITHSCORES')
for at = 1, #recent, 2 do
  rows[#rows + 1] = recent[at]
  rows[#rows + 1] = string.format('%.0f', tonumber(recent[at + 1]))
  rows[#rows + 1] = redis.call('HGET', KEYS[3], recent[at]) or ''
end
local head, fallbacks = redis.call('GET', KEYS[1]) or '', redis.call('HGETALL', KEYS[4])
return {head, string.format('%.0f', now), fallbacks, rows}
"""
)

#: Records the check of an installation. KEYS: published. ARGV: installation, 1 if all its documents
#: are written. Returns 1 if the installation was recorded before.
RECORD_CHECK = Script(
    CLOCK
    + """
local recorded = redis.call('HEXISTS', KEYS[1], ARGV[1])
if recorded == 1 or ARGV[2] == '1' then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now))
end
return recorded
"""
)

#: Returns the seconds since an installation's last check; '' without one. KEYS: published.
#: ARGV: installation.
SECONDS_SINCE_CHECK = Script(
    CLOCK
    + """
local checked = redis.call('HGET', KEYS[1], ARGV[1])
return checked and string.format('%.3f', (now - tonumber(checked)) / 1000000) or ''
"""
)

#: Replaces the document if its head is the expected one, and publishes the change.
#: KEYS: document, head, changes. ARGV: the expected head, the new head, the document, its expiry
#: (milliseconds, 0 for none). Returns 1, or 0 if the head was another one.
REPLACE_DOCUMENT = Script(
    """
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
)


def head_text(hash_: str, revision: int, lineage: str) -> str:
    """Return the head of a document."""
    return f"{hash_} {revision} {lineage}"


def lineage_of(installation: str, random: str) -> str:
    """Return the name of a new lineage of documents, which contains their owner."""
    return f"{random}@{installation}" if installation else random


def owner_of(lineage: str) -> str:
    """Return the installation that owns documents, by their lineage or head; "" for none."""
    return lineage.partition("@")[2]


class Acknowledgement(NamedTuple):
    """The document that an enforcer follows, and its role."""

    hash: str
    revision: int
    lineage: str
    role: str
    #: "" or the reason why it does not follow the newest document.
    problem: str = ""
    #: Labels of a middleware's application, which selectors match.
    labels: tuple[tuple[str, str], ...] = ()

    def text(self) -> str:
        """Return the JSON in Redis."""
        shortened = self._replace(role=self.role[:64], problem=self.problem[:300])
        return json.dumps(list(shortened))

    @classmethod
    def parse(cls, text: str) -> Acknowledgement | None:
        """Parse the JSON in Redis; return None if it is invalid."""
        try:
            row: Any = json.loads(text) if len(text) <= MAX_ENTRY + MAX_LABELS else None
            hash_, revision, lineage, role, problem, labels = row
            pairs = tuple((str(key), str(value)) for key, value in labels)
            return cls(str(hash_), int(revision), str(lineage), str(role), str(problem), pairs)
        except (TypeError, ValueError):
            return None


def checked_labels(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return labels as in an acknowledgement; raise ValueError if they are too long."""
    pairs = tuple(sorted((str(key), str(value)) for key, value in labels.items()))
    if len(json.dumps(pairs)) > MAX_LABELS:
        raise ValueError(
            f"labels: more than {MAX_LABELS} characters as JSON; pass those that selectors name"
        )
    return pairs
