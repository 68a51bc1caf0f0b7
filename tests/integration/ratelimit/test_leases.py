"""Leases never exceed their bound, whoever dies, and whenever."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engineroom.ratelimit.limits import leases
from engineroom.ratelimit.limits.algorithms import LimitStatus, LimitTerms
from engineroom.ratelimit.limits.leases import LeaseHolder, LeaseTerms
from tests.integration.ratelimit.scripts import timed
from tests.integration.ratelimit.test_script import START

if TYPE_CHECKING:
    import redis

GRANT, RETURN = timed(leases.LEASE), timed(leases.RETURN)
# Redis ends a book by its own clock, so the TTL is long beside what an example takes.
BURST, INTERVAL, MOST_OUT, TTL = 40, 1_000_000, 8, 25.0


@dataclass
class World:
    """Some processes on one bucket, and a time that only the test moves."""

    store: redis.Redis
    now: int = START
    holders: dict[int, LeaseHolder] = field(default_factory=dict)
    admitted: list[int] = field(default_factory=list)
    names: int = 0
    refills: int = 0

    terms = LeaseTerms(LimitTerms("t", INTERVAL, BURST * INTERVAL), 1, MOST_OUT)

    @property
    def seconds(self) -> float:
        return (self.now - START) / 1e6

    def hit(self, node: int, *, cost: int = 1, dies: str = "") -> None:
        # Of an older policy, whose leases last longer, are some of the nodes.
        holder = self.holders.setdefault(node, LeaseHolder(TTL if node else TTL / 5, MOST_OUT))
        if holder.take(cost, self.seconds):
            self.admitted += [self.now] * cost
            return
        grant = self.ask(node, holder, cost, dies)
        if grant is not None and grant.results[0].status == LimitStatus.ADMITTED:
            self.admitted += [self.now] * cost

    def refill(self, node: int, *, dies: str = "") -> None:
        """As a limiter does when half of a lease is used."""
        holder = self.holders.get(node)
        if holder is not None and holder.needs_refill(self.seconds):
            self.refills += 1
            self.ask(node, holder, 0, dies)

    def ask(
        self, node: int, holder: LeaseHolder, needed: int, dies: str
    ) -> leases.LeaseGrant | None:
        self.names += 1
        name, sent, spent = f"{node}.{self.names}", self.seconds, holder.spent
        keys, arguments = leases.lease_arguments(
            ["{p}:k"], [self.terms], name=name, ttl=holder.ttl, needed=needed,
            wanted=holder.next_size(sent), spent=spent,
        )  # fmt: skip
        if dies == "before":
            del self.holders[node]
            return None
        reply: Any = self.store.eval(GRANT, len(keys), *keys, *arguments, self.now)
        if dies == "after":
            del self.holders[node]
            return None
        grant = leases.parse_grant(reply)
        holder.forget_spent(spent)
        holder.accept(name, grant.units, sent)
        return grant

    def drain(self, node: int, *, dies: bool) -> None:
        holder = self.holders.pop(node, None)
        for lease in holder.surrender() if holder else ():
            keys, arguments = leases.return_arguments(["{p}:k"], [self.terms], lease)
            self.store.eval(RETURN, len(keys), *keys, *arguments, self.now)
            # A second return of the same lease, as after a lost answer, gives nothing.
            again: Any = self.store.eval(RETURN, len(keys), *keys, *arguments, self.now)
            assert again == [0]
            if dies:
                return

    def check(self) -> None:
        usable = sum(
            lease.left
            for holder in self.holders.values()
            for lease in (holder.lease, holder.following)
            if lease is not None and self.seconds < lease.until
        )
        assert usable <= MOST_OUT
        slack = BURST + min(MOST_OUT, TTL * 1e6 / INTERVAL)
        for first, begin in enumerate(self.admitted):
            for count, end in enumerate(self.admitted[first:], 1):
                assert count <= slack + (end - begin) / INTERVAL


steps = st.one_of(
    st.tuples(st.just("hit"), st.integers(0, 3), st.integers(1, 12)),
    st.tuples(st.just("costly"), st.integers(0, 3), st.integers(1, 3)),
    st.tuples(st.just("refill"), st.integers(0, 3), st.just(1)),
    st.tuples(st.just("before"), st.integers(0, 3), st.just(1)),
    st.tuples(st.just("after"), st.integers(0, 3), st.just(1)),
    st.tuples(st.just("crash"), st.integers(0, 3), st.just(1)),
    st.tuples(st.just("drain"), st.integers(0, 3), st.integers(0, 1)),
    st.tuples(st.just("wait"), st.integers(0, 60_000_000), st.just(1)),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(steps, min_size=5, max_size=50))
def test_no_crash_at_any_step_exceeds_the_bound(
    store: redis.Redis, history: list[tuple[str, int, int]]
) -> None:
    store.flushall()
    world = World(store)
    for what, number, times in history:
        if what == "wait":
            world.now += number
        elif what == "crash":
            world.holders.pop(number, None)
        elif what == "drain":
            world.drain(number, dies=bool(times))
        elif what == "refill":
            world.refill(number)
        elif what == "costly":
            world.hit(number, cost=times)
        else:
            for _ in range(times):
                world.hit(number, dies="" if what == "hit" else what)
        world.check()


@pytest.mark.parametrize("dies", ["", "before", "after"])
def test_a_lease_is_refilled_before_it_is_used_up(store: redis.Redis, dies: str) -> None:
    """Also of a node that dies while it asks, and of one whose next lease lies ready."""
    world = World(store)
    for _ in range(BURST - MOST_OUT):
        world.hit(1)
        world.refill(1, dies=dies if world.refills == 2 else "")
        world.check()
    assert world.refills >= 3


def test_a_shorter_ttl_does_not_forget_longer_leases(store: redis.Redis) -> None:
    for ttl in (60, 1):
        keys, arguments = leases.lease_arguments(
            ["{p}:k"], [World.terms], name=f"{ttl}", ttl=ttl, needed=0, wanted=1
        )
        store.eval(GRANT, len(keys), *keys, *arguments, START)
    assert int(store.pttl("{p}:k:l")) > 50_000  # type: ignore[arg-type]


def test_what_is_out_never_exceeds_the_fraction(store: redis.Redis) -> None:
    for node in range(20):
        keys, arguments = leases.lease_arguments(
            ["{p}:k"], [World.terms], name=f"{node}", ttl=TTL, needed=0, wanted=1000
        )
        store.eval(GRANT, len(keys), *keys, *arguments, START)
    booked = store.hgetall("{p}:k:l")
    assert sum(int(entry.split(",")[1]) for entry in booked.values()) == MOST_OUT
    # When they have expired there is room again.
    keys, arguments = leases.lease_arguments(
        ["{p}:k"], [World.terms], name="late", ttl=TTL, needed=0, wanted=1000
    )
    late: Any = store.eval(GRANT, len(keys), *keys, *arguments, START + 25_000_000)
    assert late[0] == MOST_OUT // 2


def test_time_gives_back_what_a_returned_lease_then_does_not(store: redis.Redis) -> None:
    def grant(name: str, needed: int, wanted: int, now: int) -> Any:
        keys, arguments = leases.lease_arguments(
            ["{p}:k"], [World.terms], name=name, ttl=10, needed=needed, wanted=wanted
        )
        return store.eval(GRANT, len(keys), *keys, *arguments, now)

    assert grant("one", 0, 4, START)[0] == 4
    later = START + 4 * INTERVAL
    assert grant("", BURST, 0, later)[1] == LimitStatus.ADMITTED
    lease = leases.Lease("one", 4, 4, 10.0)
    keys, arguments = leases.return_arguments(["{p}:k"], [World.terms], lease)
    assert store.eval(RETURN, len(keys), *keys, *arguments, later) == [0]
    assert grant("", 1, 0, later)[1] == LimitStatus.REFUSED


def test_a_lease_ends_by_the_clock_of_before_it_was_asked_for() -> None:
    holder = LeaseHolder(ttl=0.5, ceiling=10)
    holder.accept("a", 10, sent=1.0)
    assert holder.take(1, 1.499)
    assert not holder.take(1, 1.5)


def test_demand_sizes_what_is_asked_for() -> None:
    holder = LeaseHolder(ttl=0.5, ceiling=10)
    assert [holder.next_size(at) for at in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)] == [0, 1, 4, 10, 10, 10]
    assert holder.next_size(9.0) == 5
