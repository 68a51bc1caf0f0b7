"""The counting algorithms of limits in Python, and the keys of their states.

``lua_scripts`` holds the same algorithms for Redis.

- TokenBucket is the generic cell rate algorithm (ITU-T I.371, virtual scheduling form). Its state
  is one time: when the bucket will be full again.
- SlidingWindow counts in slices of a sixteenth of the period and drops a slice once all of it has
  left the window, so that no window of that length holds more than ``requests``.
- FixedWindow counts from tick to tick.

All times are whole microseconds, which doubles represent exactly. States are plain strings. The key
contains algorithm and schema version but not the rate: an edited policy keeps what was consumed,
and a changed algorithm never reads another one's state. A state beyond the highest possible one
(after a clock went back, or a policy was made smaller) is clamped and written back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from engineroom.core import key_prefixes
from engineroom.ratelimit.limits.model import Algorithm, Mode

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

    from engineroom.ratelimit.limits.model import Limit, Policy

#: Slices of a sliding window.
SLICES = 16
#: Version of the stored states; part of every key.
SCHEMA = 1

_CODES = {
    Algorithm.TOKEN_BUCKET: "t",
    Algorithm.SLIDING_WINDOW: "s",
    Algorithm.FIXED_WINDOW: "f",
}


class LimitStatus(IntEnum):
    """The outcome of one limit for a request."""

    REFUSED = 0
    ADMITTED = 1
    #: The cost exceeds what the limit ever admits at once.
    NEVER = 2


@dataclass(frozen=True, slots=True)
class LimitTerms:
    """A limit as the scripts need it.

    For a token bucket ``unit`` is the interval between tokens and ``capacity`` the tolerance, both
    in microseconds. For a window they are the period in microseconds and the number of requests.
    """

    code: str
    unit: int
    capacity: int
    enforced: bool = True

    @classmethod
    def of(cls, limit: Limit) -> LimitTerms:
        """Return the terms of a declared limit."""
        enforced = limit.mode is Mode.ENFORCE
        if limit.algorithm is Algorithm.TOKEN_BUCKET:
            return cls("t", limit.rate.interval_us, limit.tolerance_us, enforced)
        return cls(_CODES[limit.algorithm], limit.rate.period_us, limit.rate.requests, enforced)


class LimitCheck(NamedTuple):
    """A request for ``tokens`` of one limit's bucket; 0 tokens only read it."""

    key: str
    #: Index of the limit.
    limit: int
    tokens: int


class LimitResult(NamedTuple):
    """The result of one limit; times in microseconds.

    ``retry`` is the wait until the same request can be admitted, 0 unless refused. If another limit
    refused the request, ``remaining`` and ``reset`` describe this limit without the request.
    """

    status: int
    remaining: int
    retry: int
    reset: int


def bucket_key(
    policy: Policy, limit: Limit, subject: str, prefix: str = key_prefixes.RATE_LIMITS
) -> str:
    """Return the key of a limit's state for ``subject``.

    All keys of a policy share a hash tag, so that one script can access them in a Redis Cluster.
    The key contains only a digest of the subject, which may be long or an API key.
    """
    return bucket_prefix(policy, limit, prefix) + digest(subject)


def bucket_prefix(policy: Policy, limit: Limit, prefix: str = key_prefixes.RATE_LIMITS) -> str:
    """Return the prefix of the keys of all subjects of a limit."""
    return f"{prefix}:{{{policy.name}}}:{limit.name}:{_CODES[limit.algorithm]}{SCHEMA}:"


def digest(subject: str) -> str:
    """Return the digest that represents a subject in its key."""
    return blake2b(subject.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


_WHOLE = re.compile(r"\d{1,16}", re.ASCII)
_SLICE = re.compile(r"(\d+),(\d+),(\d+);", re.ASCII)
_TICK = re.compile(r"(\d+),(\d+)", re.ASCII)


def decide(
    store: MutableMapping[str, str],
    terms: Sequence[LimitTerms],
    checks: Sequence[LimitCheck],
    now: int,
) -> list[LimitResult]:
    """Decide one request as ``lua_scripts.DECIDE`` does, with the same results and states.

    ``store`` holds the states by key and is updated; ``now`` is in microseconds. Expired states
    stay in ``store`` and count as absent.
    """
    evaluated = [
        _evaluate(terms[check.limit], store.get(check.key, ""), check.tokens, now)
        for check in checks
    ]
    admitted = all(
        result.status == LimitStatus.ADMITTED
        for check, (result, _, _) in zip(checks, evaluated, strict=True)
        if terms[check.limit].enforced
    )
    results = []
    for check, (result, after, clamped) in zip(checks, evaluated, strict=True):
        if result.status == LimitStatus.ADMITTED and not admitted and check.tokens:
            result, after, clamped = _evaluate(terms[check.limit], store.get(check.key, ""), 0, now)
        if check.tokens and (clamped or (admitted and result.status == LimitStatus.ADMITTED)):
            store[check.key] = after
        results.append(result)
    return results


def _evaluate(
    terms: LimitTerms, state: str, tokens: int, now: int
) -> tuple[LimitResult, str, bool]:
    """Return the result, the state after it, and whether the state had to be clamped."""
    if terms.code == "t":
        return _evaluate_bucket(terms, state, tokens, now)
    if terms.code == "s":
        return _evaluate_sliding(terms, state, tokens, now)
    return _evaluate_fixed(terms, state, tokens, now)


def _evaluate_bucket(
    terms: LimitTerms, state: str, tokens: int, now: int
) -> tuple[LimitResult, str, bool]:
    full = max(int(state) if _WHOLE.fullmatch(state) else 0, now)
    clamped = full - now > terms.capacity
    full = min(full, now + terms.capacity)
    left = (now + terms.capacity - full) // terms.unit
    taken = tokens * terms.unit
    if taken > terms.capacity:
        return LimitResult(LimitStatus.NEVER, left, 0, full - now), str(full), clamped
    wait = full + taken - now - terms.capacity
    if wait > 0:
        return LimitResult(LimitStatus.REFUSED, left, wait, full - now), str(full), clamped
    full += taken
    left = (now + terms.capacity - full) // terms.unit
    return LimitResult(LimitStatus.ADMITTED, left, 0, full - now), str(full), clamped


def _evaluate_sliding(
    terms: LimitTerms, state: str, tokens: int, now: int
) -> tuple[LimitResult, str, bool]:
    period = terms.unit
    stored = [(int(a), int(b), int(c)) for a, b, c in _SLICE.findall(state)]
    clamped = any(last > now for _, last, _ in stored)
    past = [(min(first, now), min(last, now), count) for first, last, count in stored]
    slices = [part for part in past if part[1] > now - period]
    total = sum(count for _, _, count in slices)
    reset = slices[-1][1] + period - now if slices else 0
    left = max(0, terms.capacity - total)
    if tokens > terms.capacity:
        return LimitResult(LimitStatus.NEVER, left, 0, reset), _write_slices(slices), clamped
    if tokens and total + tokens > terms.capacity:
        wait = 0
        for _, last, count in slices:
            total -= count
            if total + tokens <= terms.capacity:
                wait = last + period - now
                break
        return LimitResult(LimitStatus.REFUSED, left, wait, reset), _write_slices(slices), clamped
    if not tokens:
        return LimitResult(LimitStatus.ADMITTED, left, 0, reset), _write_slices(slices), clamped
    if slices and now - slices[-1][0] < max(1, period // SLICES):
        first, _, count = slices.pop()
        slices.append((first, now, count + tokens))
    else:
        slices.append((now, now, tokens))
    result = LimitResult(LimitStatus.ADMITTED, left - tokens, 0, period)
    return result, _write_slices(slices), clamped


def _write_slices(slices: Sequence[tuple[int, int, int]]) -> str:
    return "".join(f"{first},{last},{count};" for first, last, count in slices)


def _evaluate_fixed(
    terms: LimitTerms, state: str, tokens: int, now: int
) -> tuple[LimitResult, str, bool]:
    period = terms.unit
    fields = _TICK.fullmatch(state)
    stored, counted = (int(fields[1]), int(fields[2])) if fields else (0, 0)
    start = now - now % period
    count = counted if stored >= start else 0
    clamped = stored > start
    left, reset = max(0, terms.capacity - count), start + period - now
    unchanged = f"{start},{count}"
    if tokens > terms.capacity:
        return LimitResult(LimitStatus.NEVER, left, 0, reset), unchanged, clamped
    if tokens and count + tokens > terms.capacity:
        return LimitResult(LimitStatus.REFUSED, left, reset, reset), unchanged, clamped
    if not tokens:
        return LimitResult(LimitStatus.ADMITTED, left, 0, reset), unchanged, clamped
    result = LimitResult(LimitStatus.ADMITTED, left - tokens, 0, reset)
    return result, f"{start},{count + tokens}", clamped
