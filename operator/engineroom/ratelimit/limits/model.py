"""Policies and limits as an application declares them: immutable, and validated when created."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING

from engineroom.core.errors import Problem
from engineroom.ratelimit.limits.errors import InvalidPolicyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from engineroom.ratelimit.limits.matching import Condition
    from engineroom.ratelimit.limits.request import RequestView

#: Most limits of one policy; one script checks all of them.
MAX_LIMITS = 64
#: Shortest period, seconds.
MIN_PERIOD = 0.001
#: Longest period, and longest time until a whole burst is available again, seconds. Up to it the
#: numbers in the scripts are exact.
MAX_PERIOD = 366 * 86400.0
#: Most requests in a period and largest burst.
MAX_REQUESTS = 1_000_000_000
#: Longest deadline of a decision, and longest lease, seconds.
MAX_TIMEOUT, MAX_LEASE_TTL = 10.0, 60.0
#: Most tiers and exemptions of one limit, and most conditions in one list.
MAX_TIERS, MAX_EXEMPT, MAX_CONDITIONS = 16, 16, 16
#: HTTP statuses that a refusal may have.
REFUSAL_STATUSES = range(400, 600)
#: Most trusted proxies.
MAX_HOPS = 32
_MICROSECONDS = 1_000_000
_PART = r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?"
_NAME = re.compile(_PART)
#: The name of a policy of a cluster is ``namespace/name``; that of a tier's limit ``limit/tier``.
_TWO_NAMES = re.compile(f"{_PART}(/{_PART})?")


class Algorithm(StrEnum):
    """The counting algorithm of a limit."""

    #: After a burst, one request every period / requests. GCRA: one number per key.
    TOKEN_BUCKET = "TokenBucket"  # noqa: S105 - no password
    #: At most ``requests`` in any window of length ``period``.
    SLIDING_WINDOW = "SlidingWindow"
    #: At most ``requests`` between two ticks, and so up to twice as many around a tick.
    FIXED_WINDOW = "FixedWindow"


class Mode(StrEnum):
    """The effect of a limit that is exceeded."""

    #: Refuses.
    ENFORCE = "Enforce"
    #: Only reports that it would have refused.
    SHADOW = "Shadow"


class MissingKey(StrEnum):
    """The treatment of requests without a part of a limit's key."""

    #: The limit does not apply to them.
    SKIP = "Skip"
    #: They share one key.
    SHARED = "Shared"
    #: They are refused.
    DENY = "Deny"


class FailureMode(StrEnum):
    """The treatment of requests that Redis does not decide in time."""

    #: Admit and count them.
    OPEN = "Open"
    #: Refuse them with 503.
    CLOSED = "Closed"
    #: Each process enforces its share of the rate.
    LOCAL = "Local"


class DistributionMode(StrEnum):
    """The place where requests are counted."""

    #: Redis counts every request.
    STRICT = "Strict"
    #: Processes take tokens from Redis ahead and admit requests from them.
    LEASED = "Leased"


class _Problems(list[Problem]):
    """The problems of one declaration."""

    def unless(self, valid: bool, field_path: str, problem: str, fix: str) -> None:
        """Add a problem unless the field is valid."""
        if not valid:
            self.append(Problem(field_path, problem, fix))

    def raise_any(self) -> None:
        """Raise InvalidPolicyError if there is any problem."""
        if self:
            raise InvalidPolicyError(list(self))


@dataclass(frozen=True, slots=True)
class Rate:
    """``requests`` per ``period`` (seconds or a timedelta).

    Raises InvalidPolicyError.
    """

    requests: int
    period: float | timedelta = 1.0

    def __post_init__(self) -> None:
        problems = _Problems()
        problems.unless(
            _is_whole(self.requests, 1, MAX_REQUESTS),
            "rate.requests",
            f"{self.requests!r} is not a whole number from 1 to {MAX_REQUESTS}",
            "write how many requests a period admits",
        )
        seconds = _seconds(self.period)
        problems.unless(
            seconds is not None and MIN_PERIOD <= seconds <= MAX_PERIOD,
            "rate.period",
            f"{self.period!r} is not between 1 ms and 366 days",
            "write seconds, such as 60 or 0.5, or a timedelta",
        )
        problems.raise_any()
        problems.unless(
            self.requests <= self.period_us,
            "rate",
            f"{self.requests} in {seconds:g} s is more than one per microsecond",
            "write at most 1,000,000 per second",
        )
        problems.raise_any()

    @property
    def period_us(self) -> int:
        """The period in microseconds."""
        return round((_seconds(self.period) or 0) * _MICROSECONDS)

    @property
    def interval_us(self) -> int:
        """Microseconds from one token to the next, rounded up: never faster than declared.

        The rounding slows a rate of r per second by a share of at most r / 1,000,000.
        """
        return -(-self.period_us // self.requests)


class HeaderStyle(StrEnum):
    """The headers of an answer that report what is left."""

    NONE = "None"
    #: RateLimit-Policy and RateLimit, draft-ietf-httpapi-ratelimit-headers-10.
    DRAFT = "Draft"
    #: X-RateLimit-Limit, -Remaining and -Reset (seconds from now).
    X_RATE_LIMIT = "XRateLimit"


@dataclass(frozen=True, slots=True)
class Tier:
    """Another rate for requests that meet all conditions of ``match``.

    Each tier counts by itself: the limit as a whole admits at most the sum of its tiers. Raises
    InvalidPolicyError.
    """

    name: str
    match: tuple[Condition, ...]
    rate: Rate
    burst: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "match", tuple(self.match))
        problems = _Problems()
        problems.unless(_is_name(self.name), "tiers[].name", _not_a_name(self.name), _NAME_FIX)
        problems.unless(
            bool(self.match),
            f"tiers[{str(self.name)[:80]!r}].match",
            "is empty, so it would match every request",
            "write at least one condition",
        )
        if self.burst == 0 and isinstance(self.burst, int):
            object.__setattr__(self, "burst", self.rate.requests)
        problems.raise_any()


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of a policy.

    ``burst`` is the size of a full token bucket [``rate.requests``]; windows have none. ``cost`` is
    the number of tokens of a request; the caller's cost is multiplied by it. ``key`` is the parts
    of a request by which the limit counts; the middleware reads them.

    The limit applies to requests that meet all conditions of ``when`` and none of the lists in
    ``exempt``. The first tier that matches replaces rate and burst. ``response_cost`` names a
    response header that reports further tokens that the request took.

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
        object.__setattr__(self, "exempt", tuple(tuple(entry) for entry in self.exempt))
        if self.burst == 0 and isinstance(self.burst, int):
            object.__setattr__(self, "burst", self.rate.requests)
        path = f"limits[{str(self.name)[:80]!r}]"
        problems = self._list_problems(path)
        problems.unless(
            isinstance(self.name, str) and bool(_TWO_NAMES.fullmatch(self.name)),
            "limits[].name",
            _not_a_name(self.name),
            _NAME_FIX,
        )
        self._check_counts(path, problems)
        problems.raise_any()
        for tier in self.tiers:
            self.of_tier(tier)  # raises for an invalid tier

    def of_tier(self, tier: Tier) -> Limit:
        """Return the limit for the requests of a tier; raises InvalidPolicyError."""
        return replace(
            self,
            name=f"{self.name}/{tier.name}",
            rate=tier.rate,
            burst=tier.burst,
            when=(),
            tiers=(),
            exempt=(),
        )

    def _check_counts(self, path: str, problems: _Problems) -> None:
        """Check burst and cost."""
        if not _is_whole(self.burst, 1, MAX_REQUESTS):
            problem = f"{self.burst!r} is not a whole number from 1 to {MAX_REQUESTS}"
            fix = "write how many requests may come at once, or leave it out"
            problems.append(Problem(f"{path}.burst", problem, fix))
        elif self.algorithm is not Algorithm.TOKEN_BUCKET:
            problems.unless(
                self.burst == self.rate.requests,
                f"{path}.burst",
                f"{self.algorithm.value} has no burst of its own",
                "leave it out, or use TokenBucket",
            )
        if not _is_whole(self.cost, 1, MAX_REQUESTS):
            problem = f"{self.cost!r} is not a whole number of at least 1"
            fix = "write how many tokens a request takes, such as 1"
            problems.append(Problem(f"{path}.cost", problem, fix))
        elif not problems:
            problems.unless(
                self.burst >= self.cost,
                f"{path}.burst",
                f"{self.burst} is below cost {self.cost}, so every request would be refused",
                f"write a burst of at least {self.cost}",
            )
        if not problems:
            problems.unless(
                self.tolerance_us <= MAX_PERIOD * _MICROSECONDS,
                f"{path}.burst",
                f"{self.burst} would take more than 366 days to come back",
                "write a smaller burst or a higher rate",
            )

    def _list_problems(self, path: str) -> _Problems:
        """Return the problems of conditions, tiers, exemptions and the response's header."""
        problems = _Problems()
        for name, count, most in (
            ("when", len(self.when), MAX_CONDITIONS),
            ("tiers", len(self.tiers), MAX_TIERS),
            ("exempt", len(self.exempt), MAX_EXEMPT),
        ):
            problems.unless(
                count <= most,
                f"{path}.{name}",
                f"there are {count}",
                f"keep at most {most}",
            )
        problems.unless(
            all(self.exempt),
            f"{path}.exempt",
            "has an empty entry, which exempts every request",
            "remove it",
        )
        for name in _duplicates(tier.name for tier in self.tiers):
            problem = f"the name {name!r} is used twice"
            problems.append(Problem(f"{path}.tiers", problem, "give each tier its own name"))
        problems.unless(
            isinstance(self.response_cost, str) and len(self.response_cost) <= 256,
            f"{path}.response_cost",
            "is not the name of a header",
            "write a header's name",
        )
        return problems

    @property
    def tolerance_us(self) -> int:
        """The time in microseconds by which a token bucket may run ahead."""
        return self.burst * self.rate.interval_us

    @property
    def period_seconds(self) -> float:
        """The period of the rate in seconds."""
        return self.rate.period_us / _MICROSECONDS


@dataclass(frozen=True, slots=True)
class Failure:
    """The behavior when Redis does not decide within ``timeout`` seconds.

    After ``breaker_failures`` consecutive failures Redis is not called for ``breaker_pause``
    seconds, and then by one request at a time. Raises InvalidPolicyError.
    """

    mode: FailureMode = FailureMode.LOCAL
    timeout: float = 0.02
    breaker_failures: int = 5
    breaker_pause: float = 1.0

    def __post_init__(self) -> None:
        problems = _Problems()
        for name, value in (("timeout", self.timeout), ("breaker_pause", self.breaker_pause)):
            seconds = _seconds(value)
            problems.unless(
                seconds is not None and MIN_PERIOD <= seconds <= MAX_TIMEOUT,
                f"failure.{name}",
                f"{value!r} is not between 1 ms and {MAX_TIMEOUT:g} s",
                "write seconds, such as 0.02",
            )
        problems.unless(
            _is_whole(self.breaker_failures, 1, 1000),
            "failure.breaker_failures",
            f"{self.breaker_failures!r} is not a whole number from 1 to 1000",
            "write after how many consecutive failures calls stop, such as 5",
        )
        problems.raise_any()


@dataclass(frozen=True, slots=True)
class Distribution:
    """The share of tokens that processes may take ahead.

    With mode Leased all processes together hold at most ``max_lease_fraction`` of the burst, each
    lease for ``lease_ttl`` seconds. Raises InvalidPolicyError.
    """

    mode: DistributionMode = DistributionMode.STRICT
    max_lease_fraction: str = "0.1"
    lease_ttl: float = 0.5

    def __post_init__(self) -> None:
        problems = _Problems()
        try:
            fraction = Fraction(self.max_lease_fraction)
        except (TypeError, ValueError, ZeroDivisionError, OverflowError):
            fraction = Fraction(0)
        problems.unless(
            0 < fraction <= 1,
            "distribution.max_lease_fraction",
            f"{self.max_lease_fraction!r} is not above 0 and at most 1",
            'write a ratio such as "0.1"',
        )
        ttl = _seconds(self.lease_ttl)
        problems.unless(
            ttl is not None and MIN_PERIOD <= ttl <= MAX_LEASE_TTL,
            "distribution.lease_ttl",
            f"{self.lease_ttl!r} is not between 1 ms and {MAX_LEASE_TTL:g} s",
            "write seconds, such as 0.5",
        )
        problems.raise_any()

    def max_leased(self, burst: int) -> int:
        """Return the most tokens of a burst that may be on lease at any time."""
        return int(Fraction(self.max_lease_fraction) * burst)


@dataclass(frozen=True, slots=True)
class Response:
    """The HTTP status of a refusal, and the headers of every answer that report the limits.

    Raises InvalidPolicyError.
    """

    status: int = 429
    headers: HeaderStyle = HeaderStyle.DRAFT

    def __post_init__(self) -> None:
        problems = _Problems()
        problems.unless(
            _is_whole(self.status, REFUSAL_STATUSES.start, REFUSAL_STATUSES.stop - 1),
            "response.status",
            f"{self.status!r} is not from 400 to 599",
            "write 429",
        )
        problems.raise_any()


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
    #: Number of trusted proxies that append to X-Forwarded-For.
    trusted_proxy_hops: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "limits", tuple(self.limits))
        problems = _Problems()
        problems.unless(
            isinstance(self.name, str) and bool(_TWO_NAMES.fullmatch(self.name)),
            "name",
            _not_a_name(self.name),
            _NAME_FIX,
        )
        problems.unless(
            _is_whole(self.trusted_proxy_hops, 0, MAX_HOPS),
            "trusted_proxy_hops",
            f"{self.trusted_proxy_hops!r} is not from 0 to {MAX_HOPS}",
            "write how many proxies in front append to X-Forwarded-For; 0 trusts none",
        )
        problems.unless(
            1 <= len(self.limits) <= MAX_LIMITS,
            "limits",
            f"there are {len(self.limits)}",
            f"declare 1 to {MAX_LIMITS}; split the policy if it needs more",
        )
        for name in _duplicates(limit.name for limit in self.effective_limits):
            problem = f"the name {name!r} is used twice"
            problems.append(Problem("limits", problem, "give each limit its own name"))
        if self.leased:
            self._check_leases(problems)
        problems.raise_any()

    @property
    def leased(self) -> bool:
        """True if processes may take tokens ahead."""
        return self.distribution.mode is DistributionMode.LEASED

    @property
    def effective_limits(self) -> tuple[Limit, ...]:
        """All limits that count by themselves: the declared ones, then each tier as a limit."""
        tiers = (limit.of_tier(tier) for limit in self.limits for tier in limit.tiers)
        return (*self.limits, *tiers)

    def _check_leases(self, problems: _Problems) -> None:
        for limit in self.effective_limits:
            path = f"limits[{limit.name!r}]"
            problems.unless(
                limit.algorithm is Algorithm.TOKEN_BUCKET,
                f"{path}.algorithm",
                f"{limit.algorithm.value} cannot be leased",
                "use TokenBucket, or distribution Strict",
            )
            problems.unless(
                limit.mode is not Mode.SHADOW,
                f"{path}.mode",
                "Shadow cannot be leased",
                "use distribution Strict while the limit is tried",
            )
            problems.unless(
                self.distribution.max_leased(limit.burst) >= limit.cost,
                f"{path}.burst",
                f"max_lease_fraction {self.distribution.max_lease_fraction} of {limit.burst} is"
                " less than one request",
                "raise the burst or the fraction, or use distribution Strict",
            )


_NAME_FIX = "write 1 to 63 of a-z, 0-9, '-' and '.', such as per-user"


def _not_a_name(value: object) -> str:
    return f"{str(value)[:80]!r} is not a name"


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(_NAME.fullmatch(value))


def _duplicates(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _seconds(value: object) -> float | None:
    """Return a duration in seconds; None for another value."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
