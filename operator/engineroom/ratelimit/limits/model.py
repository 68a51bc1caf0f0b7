"""Policies and limits as an application declares them: frozen, and valid once they exist."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING

from engineroom.core.errors import Problem
from engineroom.ratelimit.limits.errors import InvalidPolicyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from engineroom.ratelimit.limits.matching import Condition
    from engineroom.ratelimit.limits.sources import RequestView

#: Limits in one policy; all of them are checked in one script.
MAX_LIMITS = 64
#: Shortest period, seconds.
MIN_PERIOD = 0.001
#: Longest period and longest time for a whole burst to come back, seconds: numbers in the script
#: stay exact.
MAX_PERIOD = 366 * 86400.0
#: Most requests in a period and largest burst.
MAX_REQUESTS = 1_000_000_000
#: Longest time for which a decision may wait for Redis, and a lease may last, seconds.
MAX_TIMEOUT, MAX_LEASE_TTL = 10.0, 60.0
#: Tiers and exemptions of one limit, and conditions in one list of them.
MAX_TIERS, MAX_EXEMPT, MAX_CONDITIONS = 16, 16, 16
#: Statuses that a refusal may have.
REFUSAL_STATUSES = range(400, 600)
#: Trusted proxies in a row.
MAX_HOPS = 32
_MICROSECONDS = 1_000_000
_PART = r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?"
_NAME = re.compile(_PART)
#: A policy of a cluster is ``namespace/name``; a limit for a tier is ``limit/tier``.
_TWO_NAMES = re.compile(f"{_PART}(/{_PART})?")


class Algorithm(StrEnum):
    """How a limit counts."""

    #: Smooth: after a burst one request every period / requests. GCRA, one number a key.
    TOKEN_BUCKET = "TokenBucket"  # noqa: S105 - no password
    #: At most ``requests`` in any window of length ``period``.
    SLIDING_WINDOW = "SlidingWindow"
    #: At most ``requests`` between two ticks; twice as many around a tick.
    FIXED_WINDOW = "FixedWindow"


class Mode(StrEnum):
    """What a limit does when it is reached."""

    ENFORCE = "Enforce"
    #: Only says that it would have refused.
    SHADOW = "Shadow"


class MissingKey(StrEnum):
    """What a request is that lacks a part of a limit's key."""

    #: The limit does not apply to it.
    SKIP = "Skip"
    #: All such requests share one key.
    SHARED = "Shared"
    #: Refused.
    DENY = "Deny"


class FailureMode(StrEnum):
    """What happens when Redis does not decide in time."""

    #: Admit, and count it.
    OPEN = "Open"
    #: Refuse with 503.
    CLOSED = "Closed"
    #: Each process enforces its share of the rate by itself.
    LOCAL = "Local"


class DistributionMode(StrEnum):
    """Who may admit a request."""

    #: Redis, each one.
    STRICT = "Strict"
    #: Whoever took tokens ahead.
    LEASED = "Leased"


@dataclass(frozen=True, slots=True)
class Rate:
    """``requests`` in each ``period`` (seconds or a timedelta).

    Raises InvalidPolicyError.
    """

    requests: int
    period: float | timedelta = 1.0

    def __post_init__(self) -> None:
        problems = []
        if not _whole(self.requests, 1, MAX_REQUESTS):
            problems.append(
                Problem(
                    "rate.requests",
                    f"{self.requests!r} is not a whole number from 1 to {MAX_REQUESTS}",
                    "write how many requests a period admits",
                )
            )
        seconds = _seconds(self.period)
        if seconds is None or not MIN_PERIOD <= seconds <= MAX_PERIOD:
            problems.append(
                Problem(
                    "rate.period",
                    f"{self.period!r} is not between 1 ms and 366 days",
                    "write seconds, such as 60 or 0.5, or a timedelta",
                )
            )
        elif not problems and self.requests > self.period_us:
            problems.append(
                Problem(
                    "rate",
                    f"{self.requests} in {seconds:g} s is more than one a microsecond",
                    "ask for at most 1,000,000 a second",
                )
            )
        _refuse(problems)

    @property
    def period_us(self) -> int:
        """The period in microseconds."""
        return round((_seconds(self.period) or 0) * _MICROSECONDS)

    @property
    def interval_us(self) -> int:
        """Microseconds from one token to the next, rounded up: never faster than declared.

        The rounding slows a rate of r a second by a share of at most r / 1,000,000.
        """
        return -(-self.period_us // self.requests)


class HeaderStyle(StrEnum):
    """In which headers an answer says what is left."""

    NONE = "None"
    #: RateLimit-Policy and RateLimit, draft-ietf-httpapi-ratelimit-headers-10.
    DRAFT = "Draft"
    #: X-RateLimit-Limit, -Remaining and -Reset (seconds from now).
    X_RATE_LIMIT = "XRateLimit"


@dataclass(frozen=True, slots=True)
class Tier:
    """Another rate for requests of which all of ``match`` holds.

    What a tier's requests consume is counted apart: the limit as a whole admits at most the sum of
    its tiers. Raises InvalidPolicyError.
    """

    name: str
    match: tuple[Condition, ...]
    rate: Rate
    burst: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "match", tuple(self.match))
        at = f"tiers[{str(self.name)[:80]!r}]"
        problems = []
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            problems.append(Problem("tiers[].name", _not_a_name(self.name), _NAME_FIX))
        if not self.match:
            problems.append(
                Problem(f"{at}.match", "is empty, so it would match everything", "say who is meant")
            )
        if self.burst == 0 and isinstance(self.burst, int):
            object.__setattr__(self, "burst", self.rate.requests)
        _refuse(problems)


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of a policy.

    ``burst`` is what a full token bucket holds [``rate.requests``]; windows have none. ``cost`` is
    what a request takes unless the caller says otherwise: the caller's cost is multiplied by it.
    ``key`` says by which parts of a request it counts; the middleware reads it.

    It applies to requests of which all of ``when`` holds and none of ``exempt``, each of which is a
    list of conditions; the first of ``tiers`` that matches gives another rate and burst.
    ``response_cost`` names a header of the response that says what more the request took.

    Raises InvalidPolicyError.
    """

    name: str
    rate: Rate
    burst: int = 0
    algorithm: Algorithm = Algorithm.TOKEN_BUCKET
    cost: int = 1
    mode: Mode = Mode.ENFORCE
    key: tuple[Callable[[RequestView], str | None], ...] = ()
    missing_key: MissingKey = MissingKey.SHARED
    when: tuple[Condition, ...] = ()
    tiers: tuple[Tier, ...] = ()
    exempt: tuple[tuple[Condition, ...], ...] = ()
    response_cost: str = ""

    def __post_init__(self) -> None:
        for name in ("key", "when", "tiers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "exempt", tuple(tuple(each) for each in self.exempt))
        at = f"limits[{str(self.name)[:80]!r}]"
        problems = self._count_problems(at)
        if not isinstance(self.name, str) or not _TWO_NAMES.fullmatch(self.name):
            problems.append(Problem("limits[].name", _not_a_name(self.name), _NAME_FIX))
        if self.burst == 0 and isinstance(self.burst, int):
            object.__setattr__(self, "burst", self.rate.requests)
        if not _whole(self.burst, 1, MAX_REQUESTS):
            problems.append(
                Problem(
                    f"{at}.burst",
                    f"{self.burst!r} is not a whole number from 1 to {MAX_REQUESTS}",
                    "write how many requests may come at once, or leave it out",
                )
            )
        elif self.algorithm is not Algorithm.TOKEN_BUCKET and self.burst != self.rate.requests:
            problems.append(
                Problem(
                    f"{at}.burst",
                    f"{self.algorithm.value} has no burst of its own",
                    "leave it out, or use TokenBucket",
                )
            )
        if not _whole(self.cost, 1, MAX_REQUESTS):
            problems.append(
                Problem(
                    f"{at}.cost",
                    f"{self.cost!r} is not a whole number of at least 1",
                    "write what a request takes, such as 1",
                )
            )
        elif not problems and self.burst < self.cost:
            problems.append(
                Problem(
                    f"{at}.burst",
                    f"{self.burst} is below cost {self.cost}, so every request would be refused",
                    f"write a burst of at least {self.cost}",
                )
            )
        if not problems and self.tolerance_us > MAX_PERIOD * _MICROSECONDS:
            problems.append(
                Problem(
                    f"{at}.burst",
                    f"{self.burst} would take more than 366 days to come back",
                    "write a smaller burst or a higher rate",
                )
            )
        _refuse(problems)
        for tier in self.tiers:
            self.of_tier(tier)  # raises what is wrong with it

    def of_tier(self, tier: Tier) -> Limit:
        """The limit that a tier's requests meet; raises InvalidPolicyError."""
        return replace(
            self,
            name=f"{self.name}/{tier.name}",
            rate=tier.rate,
            burst=tier.burst,
            when=(),
            tiers=(),
            exempt=(),
        )

    def _count_problems(self, at: str) -> list[Problem]:
        problems = [
            Problem(f"{at}.{name}", f"there are {count}", f"keep at most {most} of them")
            for name, count, most in (
                ("when", len(self.when), MAX_CONDITIONS),
                ("tiers", len(self.tiers), MAX_TIERS),
                ("exempt", len(self.exempt), MAX_EXEMPT),
            )
            if count > most
        ]
        if any(not each for each in self.exempt):
            problems.append(
                Problem(f"{at}.exempt", "has an empty entry, which is everybody", "remove it")
            )
        names = [tier.name for tier in self.tiers]
        problems += [
            Problem(f"{at}.tiers", f"the name {name!r} is used twice", "give each its own name")
            for name in sorted({name for name in names if names.count(name) > 1})
        ]
        if not isinstance(self.response_cost, str) or len(self.response_cost) > 256:
            problems.append(
                Problem(f"{at}.response_cost", "is no name of a header", "write a header's name")
            )
        return problems

    @property
    def tolerance_us(self) -> int:
        """How far the token bucket may run ahead of time, microseconds."""
        return self.burst * self.rate.interval_us

    @property
    def period_seconds(self) -> float:
        """The rate's period."""
        return self.rate.period_us / _MICROSECONDS


@dataclass(frozen=True, slots=True)
class Failure:
    """What happens when Redis does not decide within ``timeout`` seconds, from when it is asked.

    After ``breaker_failures`` failures in a row Redis is not asked for ``breaker_pause`` seconds,
    then by one request at a time. Raises InvalidPolicyError.
    """

    mode: FailureMode = FailureMode.LOCAL
    timeout: float = 0.02
    breaker_failures: int = 5
    breaker_pause: float = 1.0

    def __post_init__(self) -> None:
        problems = []
        for name, value in (("timeout", self.timeout), ("breaker_pause", self.breaker_pause)):
            seconds = _seconds(value)
            if seconds is None or not MIN_PERIOD <= seconds <= MAX_TIMEOUT:
                problems.append(
                    Problem(
                        f"failure.{name}",
                        f"{value!r} is not between 1 ms and {MAX_TIMEOUT:g} s",
                        "write seconds, such as 0.02",
                    )
                )
        if not _whole(self.breaker_failures, 1, 1000):
            problems.append(
                Problem(
                    "failure.breaker_failures",
                    f"{self.breaker_failures!r} is not a whole number from 1 to 1000",
                    "write after how many failures in a row Redis is left alone, such as 5",
                )
            )
        _refuse(problems)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Whether tokens may be taken ahead, and how many.

    Leased: all processes together hold at most ``max_lease_fraction`` of the burst, each lease for
    ``lease_ttl`` seconds. Raises InvalidPolicyError.
    """

    mode: DistributionMode = DistributionMode.STRICT
    max_lease_fraction: str = "0.1"
    lease_ttl: float = 0.5

    def __post_init__(self) -> None:
        problems = []
        try:
            fraction = Fraction(self.max_lease_fraction)
        except (TypeError, ValueError, ZeroDivisionError, OverflowError):
            fraction = Fraction(0)
        if not 0 < fraction <= 1:
            problems.append(
                Problem(
                    "distribution.max_lease_fraction",
                    f"{self.max_lease_fraction!r} is not above 0 and at most 1",
                    'write a ratio such as "0.1"',
                )
            )
        ttl = _seconds(self.lease_ttl)
        if ttl is None or not MIN_PERIOD <= ttl <= MAX_LEASE_TTL:
            problems.append(
                Problem(
                    "distribution.lease_ttl",
                    f"{self.lease_ttl!r} is not between 1 ms and {MAX_LEASE_TTL:g} s",
                    "write seconds, such as 0.5",
                )
            )
        _refuse(problems)

    def most_leased(self, burst: int) -> int:
        """Tokens of a burst that may be out on lease at any time."""
        return int(Fraction(self.max_lease_fraction) * burst)


@dataclass(frozen=True, slots=True)
class Response:
    """What a refusal looks like over HTTP, and what every answer tells of the limits.

    Raises InvalidPolicyError.
    """

    status: int = 429
    headers: HeaderStyle = HeaderStyle.DRAFT

    def __post_init__(self) -> None:
        if not _whole(self.status, REFUSAL_STATUSES.start, REFUSAL_STATUSES.stop - 1):
            problem = f"{self.status!r} is not from 400 to 599"
            _refuse([Problem("response.status", problem, "write 429")])


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits that hold together: a request is admitted by all of them or consumes nothing.

    Raises InvalidPolicyError.
    """

    name: str
    limits: tuple[Limit, ...]
    failure: Failure = field(default_factory=Failure)
    distribution: Distribution = field(default_factory=Distribution)
    response: Response = field(default_factory=Response)
    #: Proxies in front that can be trusted to append to X-Forwarded-For.
    trusted_proxy_hops: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "limits", tuple(self.limits))
        problems = []
        if not isinstance(self.name, str) or not _TWO_NAMES.fullmatch(self.name):
            problems.append(Problem("name", _not_a_name(self.name), _NAME_FIX))
        if not _whole(self.trusted_proxy_hops, 0, MAX_HOPS):
            problems.append(
                Problem(
                    "trusted_proxy_hops",
                    f"{self.trusted_proxy_hops!r} is not from 0 to {MAX_HOPS}",
                    "write how many proxies in front append to X-Forwarded-For; 0 trusts none",
                )
            )
        if not 1 <= len(self.limits) <= MAX_LIMITS:
            problems.append(
                Problem(
                    "limits",
                    f"there are {len(self.limits)}",
                    f"declare 1 to {MAX_LIMITS}; split the policy if it needs more",
                )
            )
        names = [limit.name for limit in self.places]
        problems += [
            Problem("limits", f"the name {name!r} is used twice", "give each its own name")
            for name in sorted({name for name in names if names.count(name) > 1})
        ]
        if self.leased:
            problems += self._lease_problems()
        _refuse(problems)

    @property
    def leased(self) -> bool:
        """Whether tokens may be taken ahead."""
        return self.distribution.mode is DistributionMode.LEASED

    @property
    def places(self) -> tuple[Limit, ...]:
        """All that is counted: the limits, and behind them each limit's tiers as limits."""
        tiers = (limit.of_tier(tier) for limit in self.limits for tier in limit.tiers)
        return (*self.limits, *tiers)

    def _lease_problems(self) -> list[Problem]:
        problems = []
        for limit in self.places:
            at = f"limits[{limit.name!r}]"
            if limit.algorithm is not Algorithm.TOKEN_BUCKET:
                problems.append(
                    Problem(
                        f"{at}.algorithm",
                        f"{limit.algorithm.value} cannot be leased",
                        "use TokenBucket, or distribution Strict",
                    )
                )
            if limit.mode is Mode.SHADOW:
                problems.append(
                    Problem(
                        f"{at}.mode",
                        "Shadow cannot be leased",
                        "use distribution Strict while the limit is tried",
                    )
                )
            most = self.distribution.most_leased(limit.burst)
            if most < limit.cost:
                problems.append(
                    Problem(
                        f"{at}.burst",
                        f"max_lease_fraction {self.distribution.max_lease_fraction} of"
                        f" {limit.burst} is less than one request",
                        "raise the burst or the fraction, or use distribution Strict",
                    )
                )
        return problems


_NAME_FIX = "write 1 to 63 of a-z, 0-9, '-' and '.', such as per-user"


def _not_a_name(value: object) -> str:
    return f"{str(value)[:80]!r} is not a name"


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _seconds(value: object) -> float | None:
    """As seconds; None for what is no length of time."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _refuse(problems: list[Problem]) -> None:
    if problems:
        raise InvalidPolicyError(problems)
