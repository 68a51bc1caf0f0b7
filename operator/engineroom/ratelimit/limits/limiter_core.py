"""The decisions of a limiter, shared by the sync and the async one: no I/O, and no waiting.

A request takes the first path that decides it: the cache of refusals, a lease of this process, or
Redis. When Redis does not decide within the policy's deadline, ``failure.mode`` decides.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from engineroom.core.recovery import Circuit
from engineroom.ratelimit.limits import algorithms, leases
from engineroom.ratelimit.limits.algorithms import (
    LimitCheck,
    LimitResult,
    LimitStatus,
    LimitTerms,
    bucket_prefix,
)
from engineroom.ratelimit.limits.algorithms import digest as _digest
from engineroom.ratelimit.limits.decision import (
    ADMITTED,
    DENY_CACHE,
    REDIS,
    Decision,
    DecisionReason,
    DecisionSource,
)
from engineroom.ratelimit.limits.leases import LeaseHolder, LeaseTerms
from engineroom.ratelimit.limits.model import (
    MAX_REQUESTS,
    Algorithm,
    FailureMode,
    MissingKey,
    Mode,
)
from engineroom.ratelimit.limits.redis_calls import lua_scripts
from engineroom.ratelimit.limits.redis_calls.script_calls import FAILURES, ScriptCall
from engineroom.ratelimit.limits.sources import NOT_APPLIED, Applicability

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engineroom.core.clock import Clock
    from engineroom.ratelimit.limits.model import Limit, Policy
    from engineroom.ratelimit.limits.redis_calls.script_calls import Steps
    from engineroom.ratelimit.limits.sources import Subject, SubjectValues

#: Seconds for opening the first connection, and for returning leases at the end.
CLOSE_SECONDS = 1.0
#: Subjects with refusals, with leases, or counted locally; the oldest are dropped.
MAX_REMEMBERED = 10_000
#: Longest value that a cache holds itself, characters; of a longer one it holds a digest.
_MAX_CACHED = 64
#: Most characters of all values of a request with a lease.
_MAX_LEASED = 1024
_MICROSECONDS = 1_000_000
_FIRST = (0,)
#: Creates a named tuple in half the time, without checks of names and defaults.
_new = tuple.__new__


class BucketRequest(NamedTuple):
    """A request that Redis has to decide: its limits by index, their keys, and the cost."""

    values: SubjectValues
    indexes: tuple[int, ...]
    keys: tuple[str, ...]
    cost: int


class _HeldLease(NamedTuple):
    """The leases on some keys, and the decision for requests admitted from them."""

    request: BucketRequest
    holder: LeaseHolder
    decision: Decision


class LimiterCore:
    """The state and the decisions of one limiter.

    Raises ValueError for ``enforcers`` below 1.
    """

    def __init__(self, policy: Policy, *, clock: Clock | None, enforcers: int, prefix: str) -> None:
        self.policy = policy
        self._enforcers = _check_enforcers(enforcers)
        #: Decisions without Redis, because it did not decide.
        self.failed = 0
        self.monotonic = time.monotonic if clock is None else clock.monotonic
        limits = self._limits = policy.effective_limits
        self._names = tuple(limit.name for limit in limits)
        self._declared = tuple(range(len(policy.limits)))
        # The value of a limit that a subject does not name; an unnamed tier does not apply.
        self._default_values = tuple(
            None if index in self._declared else NOT_APPLIED for index in range(len(limits))
        )
        self._prefixes = tuple(bucket_prefix(policy, limit, prefix) for limit in limits)
        self._costs = tuple(limit.cost for limit in limits)
        self._terms = tuple(LimitTerms.of(limit) for limit in limits)
        self._local_terms = tuple(_local_terms(limit, enforcers) for limit in limits)
        self._quotas = tuple(limit.burst for limit in limits)
        # The highest cost that every enforced limit can admit.
        self._max_cost = min(
            (limit.burst // limit.cost for limit in limits if limit.mode is Mode.ENFORCE),
            default=MAX_REQUESTS,
        )
        self._lease_terms = tuple(
            LeaseTerms(terms, limit.cost, policy.distribution.max_leased(limit.burst))
            for terms, limit in zip(self._terms, limits, strict=True)
        )
        # Most policies are a single token bucket, which has a faster path.
        only = limits[0]
        self._single = len(limits) == 1
        self._bucket = (
            self._single and only.algorithm is Algorithm.TOKEN_BUCKET and only.mode is Mode.ENFORCE
        )
        self.leased = policy.leased
        self._node = secrets.token_hex(6)
        self._lease_count = 0
        # For each limit, by the refused value: the end of the refusal, its cost and the decision.
        self._refusals: tuple[dict[object, tuple[float, int, Decision]], ...] = tuple(
            {} for _ in limits
        )
        # Most limiters never refuse, and then need no lookup.
        self._any_refusal = False
        self._held: dict[object, _HeldLease] = {}
        self._local_states: dict[str, str] = {}
        failure = policy.failure
        self.timeout = float(failure.timeout)
        self.breaker = Circuit(
            failure.breaker_failures, float(failure.breaker_pause), late_results=True
        )

    def share_rate(self, enforcers: int) -> None:
        """Set how many processes split the rate while Redis is unavailable."""
        if enforcers != self._enforcers and enforcers >= 1:
            self._enforcers = enforcers
            self._local_terms = tuple(_local_terms(limit, enforcers) for limit in self._limits)

    # -- before Redis ---------------------------------------------------------------------------

    def subject_values(self, subject: Subject) -> SubjectValues:
        """Return the values of a subject in the order of ``policy.effective_limits``."""
        if isinstance(subject, str):
            return subject
        default = self._default_values
        return tuple([subject.get(name, default[at]) for at, name in enumerate(self._names)])

    def immediate(self, values: SubjectValues, cost: int, now: float) -> Decision | None:
        """Return a decision from an earlier refusal or a lease; None if neither has one."""
        # An invalid cost, or one that is never admitted, has its own result in ``prepare``.
        if type(cost) is not int or not 0 < cost <= self._max_cost:
            return None
        if self._any_refusal:
            refusal = self._cached_refusal(values, cost, now)
            if refusal is not None:
                return refusal
        if self.leased:
            held = self._held.get(values)
            if held is not None and held.holder.take(cost, now):
                return held.decision
        return None

    def prepare(self, values: SubjectValues, cost: int) -> BucketRequest | Decision:
        """Return the request for Redis, or the decision where Redis is not needed.

        Raises ValueError for a cost that is not a whole number of at least 0.
        """
        if isinstance(cost, bool) or not isinstance(cost, int) or cost < 0:
            raise ValueError(
                f"cost: {cost!r} is not a whole number of at least 0; 0 only reads the limits"
            )
        if cost <= self._max_cost and self._single:
            value = values if isinstance(values, str) else values[0]
            if isinstance(value, str):
                key = self._prefixes[0] + _digest(f"={value}")
                return _new(BucketRequest, (values, _FIRST, (key,), cost))
        if isinstance(values, str):
            subjects = [(index, f"={values}") for index in self._declared]
        else:
            subjects = []
            for index, limit in enumerate(self._limits):
                value = values[index]
                if isinstance(value, Applicability):
                    continue
                if value is not None:
                    subjects.append((index, f"={value}"))
                elif limit.missing_key is MissingKey.SHARED:
                    subjects.append((index, "-"))
                elif limit.missing_key is MissingKey.DENY and limit.mode is Mode.ENFORCE:
                    return self.by_policy(index, DecisionReason.MISSING_KEY)
            if not subjects:
                return self.by_policy(0, DecisionReason.NOT_LIMITED)
        for index, _ in subjects:
            limit = self._limits[index]
            if cost * limit.cost > limit.burst and limit.mode is Mode.ENFORCE:
                return self.by_policy(index, DecisionReason.COST_ABOVE_BURST)
        prefixes = self._prefixes
        keys = tuple([prefixes[index] + _digest(subject) for index, subject in subjects])
        return BucketRequest(values, tuple([index for index, _ in subjects]), keys, cost)

    def _cached_refusal(self, values: SubjectValues, cost: int, now: float) -> Decision | None:
        """Return an earlier refusal of the same value by any limit, if it still holds.

        The values of other limits do not matter: a client that varies another header with every
        request is refused without Redis.
        """
        by_limit = (values,) * len(self._names) if isinstance(values, str) else values
        for refusals, value in zip(self._refusals, by_limit, strict=True):
            if not refusals:
                continue
            key = _cache_key(value)
            refusal = refusals.get(key)
            if refusal is not None:
                until, refused_cost, decision = refusal
                if now >= until:
                    del refusals[key]
                elif cost >= refused_cost:
                    return decision.repeated(until - now, DENY_CACHE)
        return None

    def by_policy(self, index: int, reason: DecisionReason) -> Decision:
        """Return a decision that needs no counter."""
        quota = self._quotas[index]
        allowed = reason in (DecisionReason.ADMITTED, DecisionReason.NOT_LIMITED)
        left = quota if reason is DecisionReason.NOT_LIMITED else 0
        wait = 0.0 if allowed else None
        return Decision(
            allowed, reason, self.policy.name, self._names[index], quota, left, wait, 0.0,
            DecisionSource.POLICY,
        )  # fmt: skip

    # -- with Redis -----------------------------------------------------------------------------

    def batch_call(self, requests: Sequence[BucketRequest]) -> ScriptCall:
        """Return the script call that decides all requests."""
        if not self._bucket:
            keys, arguments = lua_scripts.decide_arguments(
                self._terms, [self.checks(request) for request in requests]
            )
            return ScriptCall(lua_scripts.DECIDE, keys, arguments)
        unit = self._costs[0] * self._terms[0].unit
        keys = [request.keys[0] for request in requests]
        taken: list[str | int] = [request.cost * unit for request in requests]
        if taken.count(taken[0]) == len(taken):
            del taken[1:]
        return ScriptCall(lua_scripts.DECIDE_BUCKETS, keys, [self._terms[0].capacity, *taken])

    def batch_decisions(
        self, requests: Sequence[BucketRequest], reply: Any, sent: float
    ) -> list[Decision]:
        """Return the decisions in the reply to ``batch_call``, sent at ``sent``."""
        if self._bucket:
            return self._bucket_decisions(requests, reply, sent)
        rows = lua_scripts.parse_results(reply, [request.indexes for request in requests])
        decisions = []
        for request, results in zip(requests, rows, strict=True):
            decision = self.decision(request.indexes, results, DecisionSource.REDIS)
            self._remember(request, decision, sent)
            decisions.append(decision)
        return decisions

    def _bucket_decisions(
        self, requests: Sequence[BucketRequest], reply: Sequence[int], sent: float
    ) -> list[Decision]:
        terms, tokens, quota = self._terms[0], self._costs[0], self._quotas[0]
        policy, name = self.policy.name, self._names[0]
        unit, capacity = terms.unit, terms.capacity
        decisions: list[Decision] = []
        append = decisions.append
        for request, value in zip(requests, reply, strict=True):
            if value >= 0:
                left = (capacity - value) // unit
                fields = (
                    True, ADMITTED, policy, name, quota, left, 0.0, value / _MICROSECONDS, REDIS,
                    (),
                )  # fmt: skip
                append(_new(Decision, fields))
                continue
            result = lua_scripts.bucket_result(terms, request.cost * tokens, value)
            decision = self.decision(request.indexes, (result,), DecisionSource.REDIS)
            self._remember(request, decision, sent)
            append(decision)
        return decisions

    def decision_steps(self, request: BucketRequest, now: float) -> Steps[Decision]:
        """Decide one request, and take a lease with the same call where that is possible."""
        if self.leased and request.cost and fits_lease(request.values):
            holder = self.holder_of(request)
            size = 0 if holder.refilling else holder.next_size(now)
            if size:
                holder.refilling = True
                try:
                    return (yield from self.lease_steps(request, holder, size, now))
                finally:
                    holder.refilling = False
        reply = yield from self._call_steps(self.batch_call((request,)))
        if reply is None:
            return self.without_redis(request, self.monotonic())
        return self.batch_decisions((request,), reply, now)[0]

    def charge_steps(self, subject: Subject, tokens: Mapping[str, int]) -> Steps[bool]:
        """Take tokens for work that was done; return whether Redis took them.

        ``tokens`` is by limit. Raises ValueError for an invalid number.
        """
        call = self._charge_call(subject, tokens)
        if call is None:
            return True
        if not self.breaker.admits(self.monotonic()):
            return False
        return (yield from self._call_steps(call)) is not None

    def _charge_call(self, subject: Subject, tokens: Mapping[str, int]) -> ScriptCall | None:
        """Return the charges for the limits that counted the request; None if there are none."""
        request = self.prepare(self.subject_values(subject), 0)
        if isinstance(request, Decision):
            return None
        charges = []
        for index, key in zip(request.indexes, request.keys, strict=True):
            amount = tokens.get(self._names[index].partition("/")[0], 0)
            if isinstance(amount, bool) or not isinstance(amount, int) or amount < 0:
                raise ValueError(f"tokens: {amount!r} is not a whole number of at least 0")
            if amount:
                charges.append(LimitCheck(key, index, min(amount, MAX_REQUESTS)))
        if not charges:
            return None
        return ScriptCall(lua_scripts.CHARGE, *lua_scripts.charge_arguments(self._terms, charges))

    def _call_steps(self, call: ScriptCall) -> Steps[Any]:
        """Make one call and record its outcome in the breaker; return None after a failure."""
        try:
            reply = yield call
        except FAILURES:
            self.breaker.record_failure(self.monotonic())
            return None
        except BaseException:
            self.breaker.abandon()
            raise
        self.breaker.record_success()
        return reply

    def checks(self, request: BucketRequest) -> list[LimitCheck]:
        """Return the checks of a request."""
        costs, cost = self._costs, request.cost
        return [
            LimitCheck(key, index, cost * costs[index])
            for key, index in zip(request.keys, request.indexes, strict=True)
        ]

    def evaluate(
        self, states: dict[str, str], checks: Sequence[LimitCheck], now: int
    ) -> list[LimitResult]:
        """Decide checks on ``states``, which is updated, at ``now`` (microseconds)."""
        return algorithms.decide(states, self._terms, checks, now)

    def name_of(self, index: int) -> str:
        """Return the name of a limit."""
        return self._names[index]

    # -- decisions ------------------------------------------------------------------------------

    def decision(
        self, indexes: Sequence[int], results: Sequence[LimitResult], source: DecisionSource
    ) -> Decision:
        """Return the decision that follows from the results of all limits."""
        decisive, index = results[0], indexes[0]
        shadowed: tuple[str, ...] = ()
        if len(results) > 1 or not self._terms[index].enforced:
            decisive, index, shadowed = _decisive(
                indexes, results, self._terms, self._names, self._quotas
            )
        status, left, retry, reset = decisive
        allowed = status == LimitStatus.ADMITTED
        wait: float | None
        if allowed:
            reason, wait = DecisionReason.ADMITTED, 0.0
        elif status == LimitStatus.REFUSED:
            reason, wait = DecisionReason.LIMITED, retry / _MICROSECONDS
        else:
            reason, wait = DecisionReason.COST_ABOVE_BURST, None
        return Decision(
            allowed, reason, self.policy.name, self._names[index], self._quotas[index], left, wait,
            reset / _MICROSECONDS, source, shadowed,
        )  # fmt: skip

    def _remember(self, request: BucketRequest, decision: Decision, sent: float) -> None:
        """Cache a refusal until its wait is over, counted from before the call to Redis."""
        if decision.reason is DecisionReason.LIMITED and decision.retry_after and request.cost:
            index = self._names.index(decision.limit)
            values = request.values
            value = values if isinstance(values, str) else values[index]
            refusals = self._refusals[index]
            _make_room(refusals, max(1, MAX_REMEMBERED // len(self._names)))
            until = sent + decision.retry_after
            refusals[_cache_key(value)] = (until, request.cost, decision)
            self._any_refusal = True

    def without_redis(self, request: BucketRequest, now: float) -> Decision:
        """Return the decision of ``failure.mode``, because Redis did not decide."""
        self.failed += 1
        mode = self.policy.failure.mode
        if mode is FailureMode.LOCAL:
            checks = self.checks(request)
            for check in checks:
                # The most recently used state is dropped last.
                state = self._local_states.pop(check.key, "")
                _make_room(self._local_states)
                self._local_states[check.key] = state
            results = algorithms.decide(
                self._local_states, self._local_terms, checks, int(now * _MICROSECONDS)
            )
            return self.decision(request.indexes, results, DecisionSource.LOCAL)
        index = request.indexes[0]
        is_open = mode is FailureMode.OPEN
        reason = DecisionReason.FAILED_OPEN if is_open else DecisionReason.FAILED_CLOSED
        wait = 0.0 if is_open else max(self.breaker.retry_at - now, self.timeout)
        return Decision(
            is_open, reason, self.policy.name, self._names[index], self._quotas[index], 0, wait,
            0.0, DecisionSource.POLICY,
        )  # fmt: skip

    # -- leases ---------------------------------------------------------------------------------

    def holder_of(self, request: BucketRequest) -> LeaseHolder:
        """Return the holder of the leases on a request's keys, created when it is first needed."""
        held = self._held.get(request.values)
        if held is not None:
            return held.holder
        _make_room(self._held)
        ceiling = min(
            self._lease_terms[index].max_outstanding // self._costs[index]
            for index in request.indexes
        )
        holder = LeaseHolder(float(self.policy.distribution.lease_ttl), ceiling)
        decision = self.by_policy(0, DecisionReason.ADMITTED)
        self._held[request.values] = _HeldLease(request, holder, decision)
        return holder

    def refillable(
        self, values: SubjectValues, now: float
    ) -> tuple[BucketRequest, LeaseHolder] | None:
        """Return the lease of a subject if it should be refilled now."""
        request, holder, _ = self._held[values]
        return (request, holder) if holder.needs_refill(now) else None

    def lease_steps(
        self, request: BucketRequest, holder: LeaseHolder, size: int, now: float
    ) -> Steps[Decision]:
        """Decide one request and take a lease of ``size`` units with it."""
        name, spent = self._next_lease(), holder.spent
        call = self._lease_call(request, holder, name, needed=request.cost, wanted=size)
        reply = yield from self._call_steps(call)
        if reply is None:
            return self.without_redis(request, self.monotonic())
        decision = self._accept(request, holder, name, spent, reply, now)
        self._remember(request, decision, now)
        return decision

    def refill_steps(self, request: BucketRequest, holder: LeaseHolder, now: float) -> Steps[None]:
        """Take a further lease before the current one is used up."""
        name, spent = self._next_lease(), holder.spent
        call = self._lease_call(request, holder, name, needed=0, wanted=holder.next_size(now))
        reply = yield from self._call_steps(call)
        if reply is not None:
            self._accept(request, holder, name, spent, reply, now)

    def return_steps(self) -> Steps[None]:
        """Return all leases, for CLOSE_SECONDS at most."""
        returns = [
            (held.request, lease)
            for held in self._held.values()
            for lease in held.holder.surrender()
        ]
        # CLOSE_SECONDS may end before the last: leases that others can use again go first.
        returns.sort(key=lambda entry: entry[1].left, reverse=True)
        self._held.clear()
        end = self.monotonic() + CLOSE_SECONDS
        for request, lease in returns:
            if self.monotonic() > end:
                return
            terms = [self._lease_terms[index] for index in request.indexes]
            arguments = leases.return_arguments(request.keys, terms, lease)
            if (yield from self._call_steps(ScriptCall(leases.RETURN, *arguments))) is None:
                return

    def _next_lease(self) -> str:
        """Return the name of a new lease."""
        self._lease_count += 1
        return f"{self._node}.{self._lease_count}"

    def _lease_call(
        self, request: BucketRequest, holder: LeaseHolder, name: str, *, needed: int, wanted: int
    ) -> ScriptCall:
        arguments = leases.lease_arguments(
            request.keys,
            [self._lease_terms[index] for index in request.indexes],
            name=name,
            ttl=holder.ttl,
            needed=needed,
            wanted=wanted,
            spent=holder.spent,
        )
        return ScriptCall(leases.LEASE, *arguments)

    def _accept(
        self, request: BucketRequest, holder: LeaseHolder, name: str, spent: tuple[str, ...],
        reply: Any, sent: float,
    ) -> Decision:  # fmt: skip
        """Add the granted lease to its holder, and return the decision in the reply."""
        grant = leases.parse_grant(reply)
        holder.forget_spent(spent)
        holder.accept(name, grant.units, sent)
        decision = self.decision(request.indexes, grant.results, DecisionSource.REDIS)
        if decision.allowed:
            leased = decision._replace(source=DecisionSource.LEASE)
            self._held[request.values] = _HeldLease(request, holder, leased)
        return decision


def _check_enforcers(enforcers: int) -> int:
    if not isinstance(enforcers, int) or enforcers < 1:
        raise ValueError(
            f"enforcers: {enforcers!r} is below 1; write how many processes share the rate"
        )
    return enforcers


def fits_lease(values: SubjectValues) -> bool:
    """Return whether a request's values are short enough to be held in memory with a lease."""
    by_limit = (values,) if isinstance(values, str) else values
    return sum(len(value) for value in by_limit if isinstance(value, str)) <= _MAX_LEASED


def _decisive(
    indexes: Sequence[int],
    results: Sequence[LimitResult],
    terms: Sequence[LimitTerms],
    names: Sequence[str],
    quotas: Sequence[int],
) -> tuple[LimitResult, int, tuple[str, ...]]:
    """Return the result that decides, its limit's index, and the limits that shadowed.

    A limit that never admits the request comes first, then the longest wait, then the least left.
    Limits in mode Shadow decide nothing.
    """
    shadowed = []
    ranked = []
    for index, result in zip(indexes, results, strict=True):
        visible = result
        if not terms[index].enforced:
            if result.status != LimitStatus.ADMITTED:
                shadowed.append(names[index])
                visible = result._replace(status=LimitStatus.ADMITTED, retry=0)
            visible = visible._replace(remaining=max(visible.remaining, 0))
            rank = (3, 0, 0.0)
        elif result.status == LimitStatus.NEVER:
            rank = (0, 0, 0.0)
        elif result.status == LimitStatus.REFUSED:
            rank = (1, -result.retry, 0.0)
        else:
            rank = (2, 0, result.remaining / quotas[index])
        ranked.append((rank, index, visible))
    _, index, decisive = min(ranked)
    return decisive, index, tuple(shadowed)


def _local_terms(limit: Limit, enforcers: int) -> LimitTerms:
    """Return the share of a limit that one of several processes enforces by itself.

    It admits at least one request at a time.
    """
    terms = LimitTerms.of(limit)
    if limit.algorithm is Algorithm.TOKEN_BUCKET:
        unit = terms.unit * enforcers
        capacity = max(limit.cost, limit.burst // enforcers) * unit
        return LimitTerms("t", unit, capacity, terms.enforced)
    capacity = max(limit.cost, terms.capacity // enforcers)
    return LimitTerms(terms.code, terms.unit, capacity, terms.enforced)


def _cache_key(value: str | Applicability | None) -> str | Applicability | None:
    """Return the key of a value in the caches: the value, or its digest if it is long."""
    return value if not isinstance(value, str) or len(value) <= _MAX_CACHED else _digest(value)


def _make_room(memory: dict[Any, Any], most: int = MAX_REMEMBERED) -> None:
    """Drop the oldest entries until there is room for one more."""
    while len(memory) >= most:
        del memory[next(iter(memory))]
