"""What would come of a request: decided by the states in Redis, and nothing is taken.

The states are read together with Redis's own time, and judged by the Python twin of the script, so
the answer is the one that an enforcer would have got at that moment, for all limits at once. Sync,
for a command line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import RedisError

from engineroom.core.errors import DependencyError
from engineroom.ratelimit.limits import algorithms
from engineroom.ratelimit.limits.cluster import failure_of
from engineroom.ratelimit.limits.decision import Source
from engineroom.ratelimit.limits.limiter import Limiter
from engineroom.ratelimit.limits.matching import all_hold
from engineroom.ratelimit.limits.model import Distribution, Failure, FailureMode, MissingKey
from engineroom.ratelimit.limits.sources import NOT_APPLIED, RequestView, subject_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis

    from engineroom.ratelimit.limits.algorithms import Answer
    from engineroom.ratelimit.limits.decision import Decision
    from engineroom.ratelimit.limits.limiter import _Ask
    from engineroom.ratelimit.limits.model import Limit, Policy

_FAILURES = (RedisError, OSError, TimeoutError)
#: Seconds that somebody who asks by hand waits for Redis.
PATIENCE = 5.0
_SECOND = 1_000_000


class Asked(NamedTuple):
    """One limit, or the tier that counts in its place, and what it says of a request."""

    limit: Limit
    #: "" when it applies, else why not.
    not_applied: str = ""
    #: Of each source of the key what the request has; None where it has none.
    key: tuple[str | None, ...] = ()
    #: None where the limit was not asked: a key is missing, or a cost above the burst.
    left: int | None = None
    #: Tokens that the request takes of it.
    needed: int = 0
    #: Seconds until it would admit the request; 0.0: now, None: never.
    wait: float | None = 0.0
    #: Seconds until it is as good as new.
    reset: float = 0.0


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What one policy says of a request."""

    policy: Policy
    decision: Decision
    limits: tuple[Asked, ...]
    #: Whether the request was really counted.
    consumed: bool = False


class _Looker(Limiter):
    """A limiter that only reads."""

    def __init__(self, policy: Policy, redis: Redis) -> None:
        super().__init__(_patient(policy), redis)
        #: By the limit's name what it says of the request, and what it says of none.
        self.said: dict[str, tuple[Answer, Answer]] = {}

    def _decide(self, ask: _Ask, now: float) -> Decision:
        del now
        checks = self._checks(ask)
        store, at = self._states([check.key for check in checks])
        looks = algorithms.decide(
            dict(store), self._terms, [check._replace(tokens=0) for check in checks], at
        )
        # Each limit by itself: together, one that refuses would hide what the others say.
        alone = [algorithms.decide(dict(store), self._terms, [check], at)[0] for check in checks]
        for place, own, look in zip(ask.places, alone, looks, strict=True):
            self.said[self._names[place]] = (own, look)
        answers = algorithms.decide(store, self._terms, checks, at)
        return self._decision(ask.places, answers, Source.REDIS)

    def _states(self, keys: list[str]) -> tuple[dict[str, str], int]:
        """What stands in Redis, and its time in microseconds."""
        try:
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.time()
                pipe.mget(keys)
                (seconds, micros), values = pipe.execute()
        except _FAILURES as error:
            raise _unread(error) from error
        found = zip(keys, values, strict=True)
        return {key: _text(value) for key, value in found}, seconds * _SECOND + micros


def rehearse(
    policy: Policy, redis: Redis, request: RequestView, cost: int = 1, *, consume: bool = False
) -> Rehearsal:
    """What ``policy`` says of a request; with ``consume`` it is counted afterwards.

    ``trusted_proxy_hops`` of the request is replaced by the policy's. Raises DependencyError when
    Redis does not answer, and ValueError for a cost that is none.
    """
    view = request._replace(trusted_proxy_hops=policy.trusted_proxy_hops)
    subject = subject_of(policy, view)
    looker = _Looker(policy, redis)
    decision = looker.hit(subject, cost)
    limits = tuple(
        asked
        for limit in policy.limits
        for asked in _asked(policy, limit, view, subject, looker.said, cost)
    )
    if consume:
        with Limiter(_patient(policy), redis) as limiter:
            decision = limiter.hit(subject, cost)
            if limiter.failed:
                raise DependencyError("Redis did not answer; whether it was counted is not known")
    return Rehearsal(policy, decision, limits, consume)


def _patient(policy: Policy) -> Policy:
    """The same limits without a hurry, and without tokens that are taken ahead."""
    return replace(
        policy, failure=Failure(FailureMode.CLOSED, PATIENCE), distribution=Distribution()
    )


def _asked(
    policy: Policy,
    limit: Limit,
    view: RequestView,
    subject: Mapping[str, Any],
    said: Mapping[str, tuple[Answer, Answer]],
    cost: int,
) -> list[Asked]:
    tiers = [f"{limit.name}/{tier.name}" for tier in limit.tiers]
    tier = next((name for name in tiers if subject.get(name, NOT_APPLIED) is not NOT_APPLIED), "")
    told = []
    if tier:
        told.append(Asked(limit, f"tier {tier.partition('/')[2]} counts in its place"))
    elif subject[limit.name] is NOT_APPLIED:
        unmet = bool(limit.when) and not all_hold(limit.when, view)
        return [Asked(limit, "the request is not what `when` says" if unmet else "exempt")]
    place = next(each for each in policy.places if each.name == (tier or limit.name))
    key = tuple(source(view) for source in place.key)
    missing = subject[place.name] is None
    needed = cost * place.cost
    if missing and place.missing_key is MissingKey.SKIP:
        return [*told, Asked(place, "its key is missing, and missingKey is Skip", key)]
    if place.name not in said:
        # Decided without Redis, by this limit or by another one.
        denied = missing and place.missing_key is MissingKey.DENY
        never = denied or needed > place.burst
        return [*told, Asked(place, "", key, None, needed, None if never else 0.0)]
    own, look = said[place.name]
    wait = None if own.status == algorithms.Status.NEVER else own.retry / _SECOND
    return [*told, Asked(place, "", key, look.remaining, needed, wait, look.reset / _SECOND)]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _unread(error: BaseException) -> DependencyError:
    return DependencyError(f"Redis did not say what is left: {failure_of(error)}")
