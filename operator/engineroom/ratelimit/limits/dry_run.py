"""Dry run of a request: the decision on the states in Redis, which stay unchanged.

The states are read together with Redis's own time, and evaluated by the Python version of the
script. The result is the one that an enforcer would have got at that moment, for all limits at
once. Sync, for a command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import RedisError

from engineroom.core import key_prefixes
from engineroom.core.errors import DependencyError
from engineroom.core.redis_replies import text
from engineroom.ratelimit.limits.algorithms import LimitStatus
from engineroom.ratelimit.limits.cluster import failure_of
from engineroom.ratelimit.limits.decision import Decision, DecisionSource
from engineroom.ratelimit.limits.limiter import Limiter
from engineroom.ratelimit.limits.limiter_core import LimiterCore
from engineroom.ratelimit.limits.matching import all_hold
from engineroom.ratelimit.limits.model import Distribution, Failure, FailureMode, MissingKey
from engineroom.ratelimit.limits.paths import as_wire_text, normalized
from engineroom.ratelimit.limits.redis_calls.redis_clients import dedicated_client
from engineroom.ratelimit.limits.request import RequestView
from engineroom.ratelimit.limits.sources import NOT_APPLIED, subject_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis

    from engineroom.ratelimit.limits.algorithms import LimitResult
    from engineroom.ratelimit.limits.limiter_core import BucketRequest
    from engineroom.ratelimit.limits.model import Limit, Policy
    from engineroom.ratelimit.limits.sources import Subject

_FAILURES = (RedisError, OSError, TimeoutError)
#: Deadline of a call to Redis, seconds.
TIMEOUT = 5.0
_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """A request for a dry run.

    ``path`` may have a query. ``headers`` has lower-case names. With ``consume`` the request is
    counted after the dry run.
    """

    path: str = "/"
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    client_ip: str = ""
    tenant: str | None = None
    route: str | None = None
    claims: Mapping[str, str] = field(default_factory=dict)
    cost: int = 1
    consume: bool = False

    def view(self, policy: Policy) -> RequestView:
        """Return the request as a policy sees it."""
        path, _, query = self.path.partition("?")
        return normalized(
            RequestView(
                self.method.upper(),
                as_wire_text(path),
                query,
                self.headers,
                self.client_ip,
                policy.trusted_proxy_hops,
                self.tenant,
                self.route,
                self.claims,
            )
        )


class LimitOutcome(NamedTuple):
    """The outcome of one limit, or of the tier that counts in its place."""

    limit: Limit
    #: "" if the limit applies, else the reason why it does not.
    not_applied: str = ""
    #: The request's value for each source of the key; None where it is missing.
    key: tuple[str | None, ...] = ()
    #: Tokens left; None if the limit was not evaluated: a missing key, or a cost above the burst.
    left: int | None = None
    #: Tokens that the request takes.
    needed: int = 0
    #: Seconds until the limit would admit the request: 0.0 for now, None for never.
    wait: float | None = 0.0
    #: Seconds until the limit is completely unused again.
    reset: float = 0.0


@dataclass(frozen=True, slots=True)
class DryRunResult:
    """The decision of one policy on a request, and the outcome of each limit."""

    policy: Policy
    decision: Decision
    limits: tuple[LimitOutcome, ...]
    #: Whether the request was counted.
    consumed: bool = False


class _Evaluation(NamedTuple):
    """The results of one limit: for the request alone, and for a request of no cost."""

    alone: LimitResult
    unused: LimitResult


def dry_run(policy: Policy, redis: Redis, request: SimulatedRequest) -> DryRunResult:
    """Decide on a request by ``policy`` without counting it, unless ``request.consume`` is set.

    Raises DependencyError if Redis does not answer, and ValueError for an invalid cost.
    """
    view = request.view(policy)
    subject = subject_of(policy, view)
    decision, evaluations = _evaluate(policy, redis, subject, request.cost)
    limits = tuple(
        outcome
        for limit in policy.limits
        for outcome in _outcomes(policy, limit, view, subject, evaluations, request.cost)
    )
    if request.consume:
        with Limiter(_with_long_deadline(policy), redis) as limiter:
            decision = limiter.hit(subject, request.cost)
            if limiter.failed:
                raise DependencyError(
                    "Redis did not answer; the request may or may not have been counted"
                )
    return DryRunResult(policy, decision, limits, request.consume)


def _evaluate(
    policy: Policy, redis: Redis, subject: Subject, cost: int
) -> tuple[Decision, dict[str, _Evaluation]]:
    """Return the decision, and the evaluation of each limit by name where Redis is needed."""
    core = LimiterCore(
        _with_long_deadline(policy), clock=None, enforcers=1, prefix=key_prefixes.RATE_LIMITS
    )
    request = core.prepare(core.subject_values(subject), cost)
    if isinstance(request, Decision):
        return request, {}
    checks = core.checks(request)
    client = dedicated_client(redis, core.timeout)
    try:
        states, now = _read_states(client, request)
    finally:
        if client is not redis:
            client.close()
    unused = core.evaluate(dict(states), [check._replace(tokens=0) for check in checks], now)
    # Each limit by itself: together, a limit that refuses would hide the others' results.
    alone = [core.evaluate(dict(states), [check], now)[0] for check in checks]
    evaluations = {
        core.name_of(index): _Evaluation(by_itself, empty)
        for index, by_itself, empty in zip(request.indexes, alone, unused, strict=True)
    }
    results = core.evaluate(states, checks, now)
    return core.decision(request.indexes, results, DecisionSource.REDIS), evaluations


def _read_states(client: Redis, request: BucketRequest) -> tuple[dict[str, str], int]:
    """Return the states by key, and Redis's time in microseconds."""
    try:
        with client.pipeline(transaction=True) as pipe:
            pipe.time()
            pipe.mget(request.keys)
            (seconds, micros), values = pipe.execute()
    except _FAILURES as error:
        raise DependencyError(f"the limits cannot be read: {failure_of(error)}") from error
    # Unlike other replies a state need not be UTF-8.
    states = {key: text(value, "latin-1") for key, value in zip(request.keys, values, strict=True)}
    return states, seconds * _MICROSECONDS + micros


def _with_long_deadline(policy: Policy) -> Policy:
    """Return the policy with TIMEOUT as its deadline, and without leases."""
    return replace(
        policy, failure=Failure(FailureMode.CLOSED, TIMEOUT), distribution=Distribution()
    )


def _outcomes(
    policy: Policy,
    limit: Limit,
    view: RequestView,
    subject: Mapping[str, Any],
    evaluations: Mapping[str, _Evaluation],
    cost: int,
) -> list[LimitOutcome]:
    """Return the outcome of a limit, and that of its tier if one counts in its place."""
    tiers = [f"{limit.name}/{tier.name}" for tier in limit.tiers]
    tier = next((name for name in tiers if subject.get(name, NOT_APPLIED) is not NOT_APPLIED), "")
    outcomes = []
    if tier:
        outcomes.append(LimitOutcome(limit, f"tier {tier.partition('/')[2]} counts in its place"))
    elif subject[limit.name] is NOT_APPLIED:
        unmet = bool(limit.when) and not all_hold(limit.when, view)
        reason = "a condition of `when` does not hold" if unmet else "exempt"
        return [LimitOutcome(limit, reason)]
    name = tier or limit.name
    counted = next(counted for counted in policy.effective_limits if counted.name == name)
    key = tuple(source(view) for source in counted.key)
    missing = subject[name] is None
    needed = cost * counted.cost
    if missing and counted.missing_key is MissingKey.SKIP:
        reason = "its key is missing, and missingKey is Skip"
        return [*outcomes, LimitOutcome(counted, reason, key)]
    evaluation = evaluations.get(name)
    if evaluation is None:
        # Decided without Redis, by this limit or by another one.
        denied = missing and counted.missing_key is MissingKey.DENY
        never = denied or needed > counted.burst
        return [*outcomes, LimitOutcome(counted, "", key, None, needed, None if never else 0.0)]
    alone, unused = evaluation
    wait = None if alone.status == LimitStatus.NEVER else alone.retry / _MICROSECONDS
    reset = unused.reset / _MICROSECONDS
    return [*outcomes, LimitOutcome(counted, "", key, unused.remaining, needed, wait, reset)]
