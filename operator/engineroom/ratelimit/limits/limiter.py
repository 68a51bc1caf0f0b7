"""Limiters for applications, sync and async: one policy, any number of subjects.

The way of a request: known to be refused -> a lease held by this process -> Redis. The async
limiter sends all requests of one turn of the event loop together, in one call of the script. Every
call has the policy's deadline; when Redis does not decide within it, ``failure.mode`` does.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVarTuple

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.connection import ConnectionPool as AsyncConnectionPool
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError
from redis.retry import Retry

from engineroom.ratelimit.limits import algorithms, leases
from engineroom.ratelimit.limits.algorithms import Answer, Check, Status, Terms, bucket_prefix
from engineroom.ratelimit.limits.algorithms import digest as _digest
from engineroom.ratelimit.limits.cluster import refuse_cluster_client
from engineroom.ratelimit.limits.decision import (
    ADMITTED,
    DENY_CACHE,
    LEASE,
    REDIS,
    Decision,
    Reason,
    Source,
)
from engineroom.ratelimit.limits.leases import Holder, LeaseTerms
from engineroom.ratelimit.limits.model import (
    MAX_REQUESTS,
    Algorithm,
    FailureMode,
    MissingKey,
    Mode,
)
from engineroom.ratelimit.limits.sources import NOT_APPLIED, Applied
from engineroom.redis.pipelined import calls_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType
    from typing import Self

    from engineroom.core.clock import Clock
    from engineroom.ratelimit.limits.model import Policy
    from engineroom.redis.pipelined import Calls

#: By what a request counts: one string for all limits, or one for each limit by its name, None
#: where the request has none and NOT_APPLIED where the limit does not apply; a tier is
#: ``limit/tier`` and does not apply unless it is there. ``sources.subject_of`` makes it.
Subject = str | Mapping[str, str | Applied | None]
#: The same by the limits' places.
Identity = str | tuple[str | Applied | None, ...]

#: Requests in one call of the script: Redis does nothing else meanwhile, half a millisecond.
MAX_BATCH = 128
#: Calls under way at once; further requests wait for one to end and then go together. More of them
#: would be smaller ones, which cost everybody more.
MAX_CALLS = 2
#: Leases asked for at once.
MAX_LEASE_CALLS = 4
#: Subjects remembered as refused, with leases, or counted locally; the oldest are forgotten.
MAX_REMEMBERED = 10_000
#: Characters of a value that are kept to know it again; of a longer one a digest is.
_MAX_KEPT = 64
#: Characters by which a request counts altogether, above which no lease is taken for it.
_MAX_LEASED = 1024
_FAILURES = (RedisError, OSError, TimeoutError)
#: What making the first connection, and giving leases back, may take (seconds).
_PATIENCE = 1.0
_SECOND = 1_000_000
_FIRST = (0,)
#: Makes a named tuple in half the time, without looking at names and defaults.
_new = tuple.__new__


class _Ask(NamedTuple):
    """A request that has to be decided: who, which limits by place, their keys, and the cost."""

    identity: Identity
    places: tuple[int, ...]
    keys: tuple[str, ...]
    cost: int


_Context = TypeVarTuple("_Context")
#: A request in the queue to Redis, whom to tell and what else, and since when (monotonic seconds)
#: it waits.
_Waiting = tuple[_Ask, "Callable[..., None]", tuple[object, ...], float]


class _Held(NamedTuple):
    """The leases on some keys, and what a request admitted from them is told."""

    ask: _Ask
    holder: Holder
    decision: Decision


@dataclass(slots=True)
class Breaker:
    """Leaves Redis alone after some failures in a row; then one request at a time tries again."""

    failures: int
    pause: float
    failed: int = 0
    closed_again: float = 0.0
    probing: bool = False

    def admits(self, now: float) -> bool:
        """Whether Redis may be asked at ``now`` (monotonic seconds)."""
        if self.failed < self.failures:
            return True
        if now < self.closed_again or self.probing:
            return False
        self.probing = True
        return True

    @property
    def state(self) -> str:
        """One of ``core.recovery.BreakerState``'s words."""
        if self.failed < self.failures:
            return "closed"
        return "half_open" if self.probing else "open"

    def succeeded(self) -> None:
        """Redis decided."""
        self.failed, self.probing = 0, False

    def fail(self, now: float) -> None:
        """Redis did not decide."""
        self.failed += 1
        self.probing = False
        self.closed_again = now + self.pause


class _Core:
    """What both limiters share: everything but the waiting."""

    _breaker: Breaker

    @property
    def breaker_state(self) -> str:
        """Whether Redis is asked."""
        return self._breaker.state

    def __init__(self, policy: Policy, *, clock: Clock | None, enforcers: int, prefix: str) -> None:
        if not isinstance(enforcers, int) or enforcers < 1:
            raise ValueError(f"enforcers: {enforcers!r} is below 1; write how many share the rate")
        self.policy = policy
        self._enforcers = enforcers
        #: Decisions that were made without Redis because it did not decide.
        self.failed = 0
        self._monotonic = time.monotonic if clock is None else clock.monotonic
        places = self._places = policy.places
        self._names = tuple(limit.name for limit in places)
        self._all = tuple(range(len(policy.limits)))
        # Of a limit that a subject does not name; a tier that is not named does not apply.
        self._absent = tuple(None if at in self._all else NOT_APPLIED for at in range(len(places)))
        self._prefixes = tuple(bucket_prefix(policy, limit, prefix) for limit in places)
        self._costs = tuple(limit.cost for limit in places)
        self._terms = tuple(Terms.of(limit) for limit in places)
        self._local_terms = tuple(_share(limit, enforcers) for limit in places)
        self._quotas = tuple(limit.burst for limit in places)
        # The highest cost that every enforced limit can admit.
        self._most = min(
            (each.burst // each.cost for each in places if each.mode is Mode.ENFORCE),
            default=MAX_REQUESTS,
        )
        self._lease_terms = tuple(
            LeaseTerms(terms, limit.cost, policy.distribution.most_leased(limit.burst))
            for terms, limit in zip(self._terms, places, strict=True)
        )
        # Most policies are one bucket, which takes a shorter way.
        only = places[0]
        self._single = len(places) == 1
        self._bucket = (
            self._single and only.algorithm is Algorithm.TOKEN_BUCKET and only.mode is Mode.ENFORCE
        )
        self._leased = policy.leased
        self._node = secrets.token_hex(6)
        self._lease_count = 0
        # Of each limit, by what it counted when it refused: until when, what cost, what was said.
        self._refused: tuple[dict[object, tuple[float, int, Decision]], ...] = tuple(
            {} for _ in places
        )
        # Most limiters never refuse: then nothing is looked up.
        self._any_refused = False
        self._holders: dict[object, _Held] = {}
        self._local: dict[str, str] = {}
        failure = policy.failure
        self._timeout = float(failure.timeout)
        self._breaker = Breaker(failure.breaker_failures, float(failure.breaker_pause))

    def shared_by(self, enforcers: int) -> None:
        """From now on so many processes share the rate when each has to decide alone."""
        if enforcers != self._enforcers and enforcers >= 1:
            self._enforcers = enforcers
            self._local_terms = tuple(_share(limit, enforcers) for limit in self._places)

    def _known(self, identity: Identity, cost: int, now: float) -> Decision | None:
        """A decision that needs nobody: from an earlier refusal or from a lease."""
        # A cost that is none, or never admitted, is said to be so whatever is remembered.
        if type(cost) is not int or not 0 < cost <= self._most:
            return None
        if self._any_refused:
            refusal = self._refusal(identity, cost, now)
            if refusal is not None:
                return refusal
        if self._leased:
            held = self._holders.get(identity)
            if held is not None and held.holder.take(cost, now):
                return held.decision
        return None

    def _refusal(self, identity: Identity, cost: int, now: float) -> Decision | None:
        """What a limit said to the same value before and still holds, whatever the other limits
        count by: who sends something else in another header each time is not asked about anew."""
        values = (identity,) * len(self._names) if isinstance(identity, str) else identity
        for refused, value in zip(self._refused, values, strict=True):
            if not refused:
                continue
            known = _remembered_as(value)
            refusal = refused.get(known)
            if refusal is not None:
                until, refused_cost, decision = refusal
                if now >= until:
                    del refused[known]
                elif cost >= refused_cost:
                    return decision.again(until - now, DENY_CACHE)
        return None

    def _identity(self, subject: Subject) -> Identity:
        if isinstance(subject, str):
            return subject
        absent = self._absent
        return tuple([subject.get(name, absent[at]) for at, name in enumerate(self._names)])

    def _ask(self, identity: Identity, cost: int) -> _Ask | Decision:
        """What to ask Redis, or the decision where it need not be asked."""
        if isinstance(cost, bool) or not isinstance(cost, int) or cost < 0:
            raise ValueError(f"cost: {cost!r} is no whole number of at least 0; 0 only looks")
        if cost <= self._most and self._single:
            value = identity if isinstance(identity, str) else identity[0]
            if isinstance(value, str):
                key = self._prefixes[0] + _digest(f"={value}")
                return _new(_Ask, (identity, _FIRST, (key,), cost))
        if isinstance(identity, str):
            places, subjects = self._all, (f"={identity}",) * len(self._all)
        else:
            found: list[tuple[int, str]] = []
            for place, limit in enumerate(self._places):
                value = identity[place]
                if isinstance(value, Applied):
                    continue
                if value is not None:
                    found.append((place, f"={value}"))
                elif limit.missing_key is MissingKey.SHARED:
                    found.append((place, "-"))
                elif limit.missing_key is MissingKey.DENY and limit.mode is Mode.ENFORCE:
                    return self._plain(place, allowed=False, reason=Reason.MISSING_KEY)
            if not found:
                return self._plain(0, allowed=True, reason=Reason.NOT_LIMITED)
            places = tuple(place for place, _ in found)
            subjects = tuple(value for _, value in found)
        for place in places:
            limit = self._places[place]
            if cost * limit.cost > limit.burst and limit.mode is Mode.ENFORCE:
                return self._plain(place, allowed=False, reason=Reason.COST_ABOVE_BURST)
        prefixes = self._prefixes
        keys = tuple(
            prefixes[place] + _digest(each) for place, each in zip(places, subjects, strict=True)
        )
        return _Ask(identity, places, keys, cost)

    def _checks(self, ask: _Ask) -> list[Check]:
        costs, cost = self._costs, ask.cost
        return [
            Check(key, place, cost * costs[place])
            for key, place in zip(ask.keys, ask.places, strict=True)
        ]

    def _charges(
        self, subject: Subject, tokens: Mapping[str, int]
    ) -> tuple[list[str], list[str | int]] | None:
        """KEYS and ARGV of the charges, by the places that the request was counted under."""
        ask = self._ask(self._identity(subject), 0)
        if isinstance(ask, Decision):
            return None
        found = []
        for place, key in zip(ask.places, ask.keys, strict=True):
            amount = tokens.get(self._names[place].partition("/")[0], 0)
            if isinstance(amount, bool) or not isinstance(amount, int) or amount < 0:
                raise ValueError(f"tokens: {amount!r} is no whole number of at least 0")
            if amount:
                found.append(Check(key, place, min(amount, MAX_REQUESTS)))
        return algorithms.charge_arguments(self._terms, found) if found else None

    def _plain(self, place: int, *, allowed: bool, reason: Reason) -> Decision:
        quota = self._quotas[place]
        left = quota if reason is Reason.NOT_LIMITED else 0
        wait = 0.0 if allowed else None
        return Decision(
            allowed, reason, self.policy.name, self._names[place], quota, left, wait, 0.0,
            Source.POLICY,
        )  # fmt: skip

    def _decision(
        self, places: Sequence[int], answers: Sequence[Answer], source: Source
    ) -> Decision:
        """One decision from what each limit said."""
        decisive, place = answers[0], places[0]
        shadowed: tuple[str, ...] = ()
        if len(answers) > 1 or not self._terms[place].enforced:
            decisive, place, shadowed = self._decisive(places, answers)
        status, left, retry, reset = decisive
        allowed = status == Status.ADMITTED
        if allowed:
            reason, wait = Reason.ADMITTED, 0.0
        elif status == Status.REFUSED:
            reason, wait = Reason.LIMITED, retry / _SECOND
        else:
            reason, wait = Reason.COST_ABOVE_BURST, None
        return Decision(
            allowed, reason, self.policy.name, self._names[place], self._quotas[place], left, wait,
            reset / _SECOND, source, shadowed,
        )  # fmt: skip

    def _decisive(
        self, places: Sequence[int], answers: Sequence[Answer]
    ) -> tuple[Answer, int, tuple[str, ...]]:
        """The limit that decides: first what never admits, then the longest wait, then the least
        left; limits in the shadow decide nothing."""
        shadowed = []
        ranked = []
        for place, answer in zip(places, answers, strict=True):
            shown = answer
            if not self._terms[place].enforced:
                if answer.status != Status.ADMITTED:
                    shadowed.append(self._names[place])
                    shown = answer._replace(status=Status.ADMITTED, retry=0)
                shown = shown._replace(remaining=max(shown.remaining, 0))
                rank = (3, 0, 0.0)
            elif answer.status == Status.NEVER:
                rank = (0, 0, 0.0)
            elif answer.status == Status.REFUSED:
                rank = (1, -answer.retry, 0.0)
            else:
                rank = (2, 0, answer.remaining / self._quotas[place])
            ranked.append((rank, place, shown))
        _, place, decisive = min(ranked)
        return decisive, place, tuple(shadowed)

    def _remember(self, ask: _Ask, decision: Decision, sent: float) -> None:
        """Keep a refusal until it may be asked again, counted from before Redis was asked."""
        if decision.reason is Reason.LIMITED and decision.retry_after and ask.cost:
            place = self._names.index(decision.limit)
            value = ask.identity if isinstance(ask.identity, str) else ask.identity[place]
            refused = self._refused[place]
            _bounded(refused, max(1, MAX_REMEMBERED // len(self._names)))
            until = sent + decision.retry_after
            refused[_remembered_as(value)] = (until, ask.cost, decision)
            self._any_refused = True

    def _without_redis(self, ask: _Ask, now: float) -> Decision:
        """What the policy says for when Redis did not decide."""
        self.failed += 1
        mode = self.policy.failure.mode
        if mode is FailureMode.LOCAL:
            checks = self._checks(ask)
            for check in checks:
                # Whoever was asked for last is forgotten last.
                state = self._local.pop(check.key, "")
                _bounded(self._local)
                self._local[check.key] = state
            answers = algorithms.decide(self._local, self._local_terms, checks, int(now * _SECOND))
            return self._decision(ask.places, answers, Source.LOCAL)
        place = ask.places[0]
        is_open = mode is FailureMode.OPEN
        reason = Reason.FAILED_OPEN if is_open else Reason.FAILED_CLOSED
        wait = 0.0 if is_open else max(self._breaker.closed_again - now, self._timeout)
        return Decision(
            is_open, reason, self.policy.name, self._names[place], self._quotas[place], 0, wait,
            0.0, Source.POLICY,
        )  # fmt: skip

    def _holder(self, ask: _Ask) -> Holder:
        held = self._holders.get(ask.identity)
        if held is not None:
            return held.holder
        _bounded(self._holders)
        ceiling = min(
            self._lease_terms[place].most_out // self._costs[place] for place in ask.places
        )
        holder = Holder(float(self.policy.distribution.lease_ttl), ceiling)
        self._holders[ask.identity] = _Held(
            ask, holder, self._plain(0, allowed=True, reason=Reason.ADMITTED)
        )
        return holder

    def _lease_call(
        self, ask: _Ask, holder: Holder, needed: int, wanted: int
    ) -> tuple[str, tuple[str, ...], list[str], list[str | int]]:
        self._lease_count += 1
        name = f"{self._node}.{self._lease_count}"
        spent = holder.spent
        keys, arguments = leases.lease_arguments(
            ask.keys,
            [self._lease_terms[place] for place in ask.places],
            name=name,
            ttl=holder.ttl,
            needed=needed,
            wanted=wanted,
            spent=spent,
        )
        return name, spent, keys, arguments

    def _take_up(
        self, ask: _Ask, holder: Holder, call: tuple[str, tuple[str, ...]], reply: Any, sent: float
    ) -> Decision:
        name, spent = call
        grant = leases.parse_grant(reply)
        holder.struck(spent)
        holder.granted(name, grant.units, sent)
        decision = self._decision(ask.places, grant.answers, Source.REDIS)
        if decision.allowed:
            self._holders[ask.identity] = _Held(ask, holder, decision._replace(source=Source.LEASE))
        return decision

    def _return_call(self, ask: _Ask, lease: leases.Lease) -> tuple[list[str], list[str | int]]:
        return leases.return_arguments(
            ask.keys, [self._lease_terms[place] for place in ask.places], lease
        )


class _Round:
    """One call of the script for all of a batch, with its deadline."""

    __slots__ = (
        "_batch", "_call", "_command", "_limiter", "_line", "_script", "_sent", "_timer",
    )  # fmt: skip

    def __init__(
        self, limiter: AsyncLimiter, line: Calls, batch: Sequence[_Waiting], sent: float
    ) -> None:
        self._limiter, self._line, self._batch = limiter, line, batch
        self._script, sha, keys, arguments = limiter._command(batch)
        self._command = ("EVALSHA", sha, len(keys), *keys, *arguments)
        self._sent = sent
        self._timer = asyncio.get_running_loop().call_later(limiter._timeout, self._late)
        self._call = line.send(self._command, self._replied)

    def _replied(self, reply: Any) -> None:
        if isinstance(reply, NoScriptError):
            self._call = self._line.send(("EVAL", self._script, *self._command[2:]), self._replied)
            return
        self._timer.cancel()
        self._limiter._ended()
        if isinstance(reply, Exception):
            self._limiter._unanswered(self._batch, reply)
        else:
            self._limiter._answered(self._batch, reply, self._sent)

    def _late(self) -> None:
        self._line.give_up(self._call)
        self._limiter._ended()
        self._limiter._unanswered(self._batch, TimeoutError("Redis did not answer in time"))


class AsyncLimiter(_Core):
    """Decides for one policy on one event loop.

    ``redis`` gives the address; the limiter has connections of its own, with the policy's deadline.
    ``enforcers`` is how many processes share the rate when each has to decide alone
    (failure.mode Local). Use it as ``async with``, or call ``close`` at the end: leases go back.
    """

    def __init__(
        self,
        policy: Policy,
        redis: AsyncRedis,
        *,
        clock: Clock | None = None,
        enforcers: int = 1,
        prefix: str = "er:rl",
    ) -> None:
        super().__init__(policy, clock=clock, enforcers=enforcers, prefix=prefix)
        self._redis = _own_async(redis)
        self._execute: Callable[..., Awaitable[Any]] = self._redis.execute_command
        self._line = line_of(self._redis)
        self._waiting: list[_Waiting] = []
        self._calls = 0
        self._lease_calls = 0
        self._scheduled = False
        #: Set once somebody waits for all calls to end.
        self._idle: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        # Connect now: a decision's deadline is too short for it.
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        call = self._line.send(("PING",), functools.partial(_settle, future=answer))
        try:
            async with asyncio.timeout(_PATIENCE):
                failed = isinstance(await answer, Exception)
        except TimeoutError:
            self._line.give_up(call)
            failed = True
        if failed:
            self._breaker.fail(self._monotonic())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()

    async def hit(self, subject: Subject, cost: int = 1) -> Decision:
        """Decide on one request; a refused one consumes nothing.

        Never raises because of Redis. Raises ValueError for a cost that is none.
        """
        answer = self.submit(subject, cost)
        return answer if isinstance(answer, Decision) else await answer

    def submit(self, subject: Subject, cost: int = 1) -> Decision | asyncio.Future[Decision]:
        """The same as ``hit`` without a coroutine: a decision that is known, else its future."""
        identity, now = self._identity(subject), self._monotonic()
        known = self._at_hand(identity, cost, now)
        if known is not None:
            return known
        future: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        known = self._start(identity, cost, now, _settle, (future,))
        return future if known is None else known

    def decide(
        self, identity: Identity, cost: int, done: Callable[[Decision, *_Context], None],
        *context: *_Context,
    ) -> Decision | None:  # fmt: skip
        """The same as ``hit`` with a callback: a decision that is known, else None, and ``done``
        is called later with the decision and ``context``; it must not raise.

        For servers of many requests a second, where a task or a future for each costs more than
        the decision. ``identity`` is a subject by the limits' places; see ``policy.places``.
        """
        now = self._monotonic()
        known = self._at_hand(identity, cost, now)
        return self._start(identity, cost, now, done, context) if known is None else known

    def _at_hand(self, identity: Identity, cost: int, now: float) -> Decision | None:
        known = self._known(identity, cost, now)
        if known is not None and known.source is LEASE:
            self._refill_early(identity, now)
        return known

    def _start(
        self, identity: Identity, cost: int, now: float, done: Callable[..., None],
        context: tuple[object, ...],
    ) -> Decision | None:  # fmt: skip
        """Ask Redis, unless there is no need to or it is left alone."""
        ask = self._ask(identity, cost)
        if isinstance(ask, Decision):
            return ask
        if not self._breaker.admits(now):
            return self._without_redis(ask, now)
        if self._leased and cost and _may_be_kept(identity):
            holder = self._holder(ask)
            # One lease at a time for the same keys, and few at once; the others are decided singly.
            if not holder.refilling and self._lease_calls < MAX_LEASE_CALLS:
                wanted = holder.ask(now)
                if wanted:
                    # Before the task runs: the next request of this turn must not ask as well.
                    holder.refilling = True
                    self._lease_calls += 1
                    loop = asyncio.get_running_loop()
                    task = loop.create_task(self._with_lease(ask, holder, wanted, now))
                    task.add_done_callback(
                        functools.partial(self._lease_ended, holder, done, context)
                    )
                    return None
        self._waiting.append((ask, done, context, now))
        if not self._scheduled:
            self._schedule()
        return None

    async def peek(self, subject: Subject) -> Decision:
        """What is left, without taking any of it."""
        return await self.hit(subject, 0)

    async def charge(self, subject: Subject, tokens: Mapping[str, int]) -> bool:
        """Take more from some limits by name, for what a request turned out to cost.

        Takes what is there and never refuses: a limit is then empty at most. Returns whether Redis
        took it; raises ValueError for a number that is none.
        """
        call = self._charges(subject, tokens)
        now = self._monotonic()
        if call is None or not self._breaker.admits(now):
            return call is None
        try:
            async with asyncio.timeout(self._timeout):
                await self._run(algorithms.CHARGE_SCRIPT, algorithms.CHARGE_SHA, *call)
        except _FAILURES as error:
            await self._failed(error)
            return False
        except BaseException:
            self._breaker.probing = False
            raise
        self._breaker.succeeded()
        return True

    async def close(self) -> None:
        """Give leases back and close the connections; waits for calls under way."""
        while self._tasks or self._calls or self._waiting:
            if self._tasks:
                await asyncio.gather(*self._tasks, return_exceptions=True)
            else:
                self._idle = asyncio.get_running_loop().create_future()
                await self._idle
        try:
            async with asyncio.timeout(_PATIENCE):
                for ask, holder, _ in list(self._holders.values()):
                    for lease in holder.surrender():
                        keys, arguments = self._return_call(ask, lease)
                        await self._run(leases.RETURN_SCRIPT, leases.RETURN_SHA, keys, arguments)
        except _FAILURES:
            self._breaker.fail(self._monotonic())
        self._holders.clear()
        if not isinstance(self._redis, _AsyncShared):
            await self._line.close()
        await self._redis.aclose()

    def _schedule(self) -> None:
        if not self._scheduled and self._calls < MAX_CALLS:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start_call)

    def _start_call(self) -> None:
        self._scheduled = False
        now = self._monotonic()
        self._without_the_late(now)
        waiting = self._waiting
        if not waiting:
            self._tell_idle()
            return
        batch, self._waiting = waiting[:MAX_BATCH], waiting[MAX_BATCH:]
        self._calls += 1
        _Round(self, self._line, batch, now)
        if self._waiting:
            self._schedule()

    def _without_the_late(self, now: float) -> None:
        """Decide on those whose turn has not come within the policy's deadline.

        Redis has not failed them, so the breaker hears nothing of it; a call has a deadline of its
        own from when it is sent, or a queue that is never empty would leave its calls no time.
        """
        waiting, since = self._waiting, now - self._timeout
        late = 0
        while late < len(waiting) and waiting[late][3] < since:
            late += 1
        if late:
            self._waiting = waiting[late:]
            self._breaker.probing = False
            for ask, done, context, _ in waiting[:late]:
                done(self._without_redis(ask, now), *context)

    def _ended(self) -> None:
        """A call is over, whatever came of it."""
        self._calls -= 1
        if self._waiting:
            self._schedule()
        else:
            self._tell_idle()

    def _tell_idle(self) -> None:
        if self._idle is not None and not self._calls and not self._idle.done():
            self._idle.set_result(None)

    def _command(self, batch: Sequence[_Waiting]) -> tuple[str, str, list[str], list[str | int]]:
        """Script, its digest, KEYS and ARGV that decide on all of a batch."""
        if not self._bucket:
            requests = [self._checks(ask) for ask, _, _, _ in batch]
            keys, arguments = algorithms.script_arguments(self._terms, requests)
            return algorithms.SCRIPT, algorithms.SCRIPT_SHA, keys, arguments
        unit = self._costs[0] * self._terms[0].unit
        keys = [ask.keys[0] for ask, _, _, _ in batch]
        taken: list[str | int] = [ask.cost * unit for ask, _, _, _ in batch]
        if taken.count(taken[0]) == len(taken):
            del taken[1:]
        return algorithms.BUCKET_SCRIPT, algorithms.BUCKET_SHA, keys, [self._terms[0].most, *taken]

    def _answered(self, batch: Sequence[_Waiting], reply: Any, sent: float) -> None:
        """Redis has decided on a batch."""
        self._breaker.succeeded()
        if self._bucket:
            self._answered_by_buckets(batch, reply, sent)
            return
        rows = algorithms.parse_answers(reply, [ask.places for ask, _, _, _ in batch])
        for (ask, done, context, _), answers in zip(batch, rows, strict=True):
            decision = self._decision(ask.places, answers, Source.REDIS)
            self._remember(ask, decision, sent)
            done(decision, *context)

    def _answered_by_buckets(
        self, batch: Sequence[_Waiting], reply: Sequence[int], sent: float
    ) -> None:
        terms, tokens, quota = self._terms[0], self._costs[0], self._quotas[0]
        policy, name = self.policy.name, self._names[0]
        unit, most = terms.unit, terms.most
        for (ask, done, context, _), value in zip(batch, reply, strict=True):
            if value >= 0:
                left = (most - value) // unit
                told = (True, ADMITTED, policy, name, quota, left, 0.0, value / _SECOND, REDIS, ())
                done(_new(Decision, told), *context)
                continue
            answer = algorithms.bucket_answer(terms, ask.cost * tokens, value)
            decision = self._decision(ask.places, (answer,), Source.REDIS)
            self._remember(ask, decision, sent)
            done(decision, *context)

    def _unanswered(self, batch: Sequence[_Waiting], error: BaseException) -> None:
        """Redis has not decided on a batch."""
        now = self._monotonic()
        self._breaker.fail(now)
        if isinstance(error, ReadOnlyError):
            # A primary that became a replica: connect anew, to whoever is the primary now.
            self._line.renew()
        for ask, done, context, _ in batch:
            done(self._without_redis(ask, now), *context)

    async def _with_lease(self, ask: _Ask, holder: Holder, wanted: int, now: float) -> Decision:
        name, spent, keys, arguments = self._lease_call(ask, holder, ask.cost, wanted)
        try:
            async with asyncio.timeout(self._timeout):
                reply = await self._run(leases.LEASE_SCRIPT, leases.LEASE_SHA, keys, arguments)
        except _FAILURES as error:
            await self._failed(error)
            return self._without_redis(ask, self._monotonic())
        self._breaker.succeeded()
        decision = self._take_up(ask, holder, (name, spent), reply, now)
        self._remember(ask, decision, now)
        return decision

    def _lease_ended(
        self, holder: Holder, done: Callable[..., None], context: tuple[object, ...],
        task: asyncio.Task[Decision],
    ) -> None:  # fmt: skip
        """Also of a task that was cancelled before it began."""
        holder.refilling = False
        self._lease_calls -= 1
        if task.cancelled() or task.exception() is not None:
            self._breaker.probing = False
            done(self._plain(0, allowed=False, reason=Reason.FAILED_CLOSED), *context)
        else:
            done(task.result(), *context)

    def _refill_early(self, identity: Identity, now: float) -> None:
        ask, holder, _ = self._holders[identity]
        idle = self._lease_calls < MAX_LEASE_CALLS and self._breaker.failed == 0
        if idle and holder.wants_refill(now):
            holder.refilling = True
            self._lease_calls += 1
            self._spawn(self._refill(ask, holder, now))

    async def _refill(self, ask: _Ask, holder: Holder, now: float) -> None:
        name, spent, keys, arguments = self._lease_call(ask, holder, 0, holder.ask(now))
        try:
            async with asyncio.timeout(self._timeout):
                reply = await self._run(leases.LEASE_SCRIPT, leases.LEASE_SHA, keys, arguments)
            self._take_up(ask, holder, (name, spent), reply, now)
        except _FAILURES as error:
            await self._failed(error)
        finally:
            holder.refilling = False
            self._lease_calls -= 1

    async def _failed(self, error: BaseException) -> None:
        self._breaker.fail(self._monotonic())
        if isinstance(error, ReadOnlyError):
            await self._redis.connection_pool.disconnect()
            self._line.renew()

    async def _run(self, script: str, sha: str, keys: list[str], arguments: list[str | int]) -> Any:
        try:
            return await self._execute("EVALSHA", sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await self._execute("EVAL", script, len(keys), *keys, *arguments)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Limiter(_Core):
    """Decides for one policy; safe to share between threads. See AsyncLimiter."""

    def __init__(
        self,
        policy: Policy,
        redis: Redis,
        *,
        clock: Clock | None = None,
        enforcers: int = 1,
        prefix: str = "er:rl",
    ) -> None:
        super().__init__(policy, clock=clock, enforcers=enforcers, prefix=prefix)
        self._redis = _own(redis, self._timeout)
        self._execute: Callable[..., Any] = self._redis.execute_command
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def hit(self, subject: Subject, cost: int = 1) -> Decision:
        """Decide on one request; a refused one consumes nothing.

        Waits for Redis at most the policy's timeout for each of: connecting, the call, and the
        call with the script's text. Never raises because of Redis. Raises ValueError for a cost
        that is none.
        """
        now = self._monotonic()
        identity = self._identity(subject)
        with self._lock:
            known = self._known(identity, cost, now)
            if known is not None:
                return known
            ask = self._ask(identity, cost)
            if isinstance(ask, Decision):
                return ask
            if not self._breaker.admits(now):
                return self._without_redis(ask, now)
        return self._decide(ask, now)

    def peek(self, subject: Subject) -> Decision:
        """What is left, without taking any of it."""
        return self.hit(subject, 0)

    def charge(self, subject: Subject, tokens: Mapping[str, int]) -> bool:
        """Take more from some limits by name; see AsyncLimiter.charge."""
        with self._lock:
            call = self._charges(subject, tokens)
            if call is None or not self._breaker.admits(self._monotonic()):
                return call is None
        try:
            self._run(algorithms.CHARGE_SCRIPT, algorithms.CHARGE_SHA, *call)
        except _FAILURES as error:
            if isinstance(error, ReadOnlyError):
                self._redis.connection_pool.disconnect()
            with self._lock:
                self._breaker.fail(self._monotonic())
            return False
        except BaseException:
            self._breaker.probing = False
            raise
        with self._lock:
            self._breaker.succeeded()
        return True

    def close(self) -> None:
        """Give leases back and close the connections."""
        begun = self._monotonic()
        with self._lock:
            held = [
                (ask, lease)
                for ask, holder, _ in self._holders.values()
                for lease in holder.surrender()
            ]
            self._holders.clear()
        try:
            for ask, lease in held:
                if self._monotonic() - begun > _PATIENCE:
                    break
                keys, arguments = self._return_call(ask, lease)
                self._run(leases.RETURN_SCRIPT, leases.RETURN_SHA, keys, arguments)
        except _FAILURES:
            self._breaker.fail(self._monotonic())
        self._redis.close()

    def _decide(self, ask: _Ask, now: float) -> Decision:
        requests = [self._checks(ask)]
        lease: tuple[Holder, str, tuple[str, ...]] | None = None
        if self._leased and ask.cost and _may_be_kept(ask.identity):
            with self._lock:
                holder = self._holder(ask)
                wanted = 0 if holder.refilling else holder.ask(now)
                if wanted:
                    holder.refilling = True
                    name, spent, keys, arguments = self._lease_call(ask, holder, ask.cost, wanted)
                    lease = holder, name, spent
        if lease is not None:
            script, sha = leases.LEASE_SCRIPT, leases.LEASE_SHA
        else:
            keys, arguments = algorithms.script_arguments(self._terms, requests)
            script, sha = algorithms.SCRIPT, algorithms.SCRIPT_SHA
        try:
            reply = self._run(script, sha, keys, arguments)
        except _FAILURES as error:
            if isinstance(error, ReadOnlyError):
                self._redis.connection_pool.disconnect()
            with self._lock:
                self._breaker.fail(self._monotonic())
                return self._without_redis(ask, self._monotonic())
        except BaseException:
            self._breaker.probing = False
            raise
        finally:
            if lease is not None:
                lease[0].refilling = False
        with self._lock:
            self._breaker.succeeded()
            if lease is not None:
                holder, name, spent = lease
                decision = self._take_up(ask, holder, (name, spent), reply, now)
            else:
                rows = algorithms.parse_answers(reply, requests)
                decision = self._decision(ask.places, rows[0], Source.REDIS)
            self._remember(ask, decision, now)
        return decision

    def _run(self, script: str, sha: str, keys: list[str], arguments: list[str | int]) -> Any:
        try:
            return self._execute("EVALSHA", sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return self._execute("EVAL", script, len(keys), *keys, *arguments)


def _share(limit: Any, enforcers: int) -> Terms:
    """A limit as one of several processes enforces it alone; at least one request at a time."""
    terms = Terms.of(limit)
    if limit.algorithm is Algorithm.TOKEN_BUCKET:
        unit = terms.unit * enforcers
        return Terms("t", unit, max(limit.cost, limit.burst // enforcers) * unit, terms.enforced)
    most = max(limit.cost, terms.most // enforcers)
    return Terms(terms.code, terms.unit, most, terms.enforced)


def _remembered_as(value: str | Applied | None) -> str | Applied | None:
    """What stands in memory for a value by which a request counts."""
    return value if not isinstance(value, str) or len(value) <= _MAX_KEPT else _digest(value)


def _may_be_kept(identity: Identity) -> bool:
    """Whether a request's values are short enough to stand in memory with a lease."""
    values = (identity,) if isinstance(identity, str) else identity
    return sum(len(value) for value in values if isinstance(value, str)) <= _MAX_LEASED


def _bounded(memory: dict[Any, Any], most: int = MAX_REMEMBERED) -> None:
    """Make room for one more by forgetting the oldest."""
    while len(memory) >= most:
        del memory[next(iter(memory))]


class _Shared(Redis):
    """A client that several limiters use; none of them closes it."""

    def close(self) -> None:
        """Nothing: it is closed by whoever made it."""

    def end(self) -> None:
        """Close it."""
        super().close()


class _AsyncShared(AsyncRedis):
    """A client that several limiters use; none of them closes it."""

    #: Their calls go over it; made for the first of them.
    line: Calls | None = None

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Nothing: it is closed by whoever made it."""

    async def end(self) -> None:
        """Close it."""
        if self.line is not None:
            await self.line.close()
        await super().aclose(close_connection_pool=True)


def line_of(client: AsyncRedis) -> Calls:
    """What carries a limiter's calls: of a shared client the same for all."""
    if not isinstance(client, _AsyncShared):
        return calls_of(client)
    if client.line is None:
        client.line = calls_of(client)
    return client.line


def _settle(answer: Any, future: asyncio.Future[Any]) -> None:
    """Tell a future that may have been given up."""
    if not future.done():
        future.set_result(answer)


def share(client: Redis, timeout: float) -> Redis:
    """A client of its own for several limiters, with one ``timeout`` (seconds) for all of them.

    ``unshare`` closes it; closing a limiter does not.
    """
    made = _own(client, timeout)
    return _Shared.from_pool(made.connection_pool) if made is not client else client


def share_async(client: AsyncRedis) -> AsyncRedis:
    """A client of its own for several limiters; ``unshare_async`` closes it."""
    made = _own_async(client)
    return _AsyncShared.from_pool(made.connection_pool) if made is not client else client


def unshare(client: Redis) -> None:
    """Close what ``share`` made; a client that it only passed on stays open."""
    if isinstance(client, _Shared):
        client.end()


async def unshare_async(client: AsyncRedis) -> None:
    """Close what ``share_async`` made; a client that it only passed on stays open."""
    if isinstance(client, _AsyncShared):
        await client.end()


def _own(client: Redis, timeout: float) -> Redis:
    """A client for the same Redis that gives up after ``timeout`` and retries nothing."""
    refuse_cluster_client(client)
    pool = client.connection_pool
    if type(pool) is not ConnectionPool or isinstance(client, _Shared):
        return client
    settings = {
        **pool.connection_kwargs,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
    }
    made = ConnectionPool(connection_class=pool.connection_class, **settings)
    return Redis.from_pool(made)


def _own_async(client: AsyncRedis) -> AsyncRedis:
    """A client for the same Redis that retries nothing; deadlines are the caller's."""
    refuse_cluster_client(client)
    pool = client.connection_pool
    if type(pool) is not AsyncConnectionPool or isinstance(client, _AsyncShared):
        return client
    settings = {
        **pool.connection_kwargs,
        "socket_timeout": None,
        "retry": AsyncRetry(NoBackoff(), 0),
        "retry_on_error": [],
    }
    made = AsyncConnectionPool(connection_class=pool.connection_class, **settings)
    return AsyncRedis.from_pool(made)
