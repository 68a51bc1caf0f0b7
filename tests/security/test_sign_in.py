"""Guessing is slow and tells nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from engineroom.auth.errors import CredentialsError, LockedOutError
from engineroom.auth.login.lockout import (
    ACCOUNT,
    ADDRESS,
    AttemptRate,
    PasswordAccount,
    RedisAttemptCounter,
    SignIn,
    address_key,
)
from engineroom.auth.login.passwords import Passwords
from engineroom.core.clock import FakeClock

if TYPE_CHECKING:
    from tests.support import RedisServer


class Desk:
    """A sign-in for one account, with a cheap hash, and what was kept anew."""

    def __init__(self, redis: Redis, clock: FakeClock) -> None:
        self.passwords = Passwords(time_cost=1, memory_kib=64, lanes=1)
        self.accounts: dict[str, PasswordAccount] = {}
        self.kept: list[tuple[str, str]] = []
        self.sign_in = SignIn(
            RedisAttemptCounter(redis, clock), self.passwords, self.find, keep_hash=self.keep
        )

    async def find(self, name: str) -> PasswordAccount | None:
        return self.accounts.get(name)

    async def keep(self, subject: str, kept: str) -> None:
        self.kept.append((subject, kept))

    async def add(self, name: str, password: str) -> None:
        self.accounts[name] = PasswordAccount(name, await self.passwords.hash(password))


@pytest_asyncio.fixture
async def desk(redis: Redis, clock: FakeClock) -> Desk:
    made = Desk(redis, clock)
    await made.add("ada", "right")
    return made


async def outcome(desk: Desk, name: str, password: str, address: str = "192.0.2.1") -> str:
    try:
        return (await desk.sign_in.attempt(name, password, address)).subject
    except CredentialsError as error:
        return str(error)
    except LockedOutError:
        return "locked"


async def test_an_account_locks_and_heals(desk: Desk, clock: FakeClock) -> None:
    wrong = [await outcome(desk, "ada", "wrong", f"192.0.2.{n}") for n in range(ACCOUNT.burst + 2)]
    assert wrong == ["name or password: wrong; check both"] * ACCOUNT.burst + ["locked"] * 2
    assert await outcome(desk, "ada", "right", "198.51.100.1") == "locked"
    clock.advance(ACCOUNT.every + 0.001)
    assert await outcome(desk, "ada", "right", "198.51.100.1") == "ada"


async def test_unknown_names_lock_and_answer_like_known_ones(desk: Desk) -> None:
    known = [await outcome(desk, "ada", "wrong", f"192.0.2.{n}") for n in range(12)]
    unknown = [await outcome(desk, "nobody", "wrong", f"198.51.100.{n}") for n in range(12)]
    assert known == unknown


async def test_one_address_cannot_try_many_accounts(desk: Desk) -> None:
    outcomes = [await outcome(desk, f"user-{n}", "wrong") for n in range(ADDRESS.burst + 5)]
    assert outcomes.count("locked") == 5
    assert await outcome(desk, "ada", "right", "198.51.100.1") == "ada"


async def test_guesses_sent_at_once_are_counted_before_they_are_looked_at(desk: Desk) -> None:
    outcomes = await asyncio.gather(
        *(outcome(desk, "ada", "wrong", f"192.0.2.{n}") for n in range(60))
    )
    assert outcomes.count("locked") == 60 - ACCOUNT.burst


async def test_who_knows_the_password_is_never_locked_out(desk: Desk) -> None:
    assert {await outcome(desk, "ada", "right") for _ in range(50)} == {"ada"}


async def test_capitals_are_no_other_account_to_the_counter(desk: Desk) -> None:
    names = ["ada", "Ada", "ADA", "aDa"]
    outcomes = [await outcome(desk, names[n % 4], "x", f"192.0.2.{n}") for n in range(12)]
    assert outcomes.count("locked") == 2


async def test_an_unknown_name_costs_the_same_hash(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By construction: one verification with the same parameters, whoever it is."""
    await outcome(desk, "ada", "right")
    verified: list[str] = []
    hasher = desk.passwords._hasher

    class Counting:
        check_needs_rehash = staticmethod(hasher.check_needs_rehash)

        @staticmethod
        def verify(kept: str, password: str) -> bool:
            verified.append(kept.rsplit("$", 2)[0])
            return hasher.verify(kept, password)

    monkeypatch.setattr(desk.passwords, "_hasher", Counting)
    for name, password in (("ada", "right"), ("ada", "wrong"), ("nobody", "x"), ("", "x")):
        verified.clear()
        await outcome(desk, name, password)
        assert verified == ["$argon2id$v=19$m=64,t=1,p=1"], name
    verified.clear()
    await outcome(desk, "ada", "x" * 2000)
    assert len(verified) == 1


async def test_an_old_hash_is_made_anew_at_sign_in(desk: Desk, redis: Redis) -> None:
    desk.passwords = Passwords(time_cost=2, memory_kib=128, lanes=1)
    desk.sign_in = SignIn(
        RedisAttemptCounter(redis, FakeClock()), desk.passwords, desk.find, keep_hash=desk.keep
    )
    assert await outcome(desk, "ada", "right") == "ada"
    ((subject, kept),) = desk.kept
    assert subject == "ada"
    assert kept.startswith("$argon2id$v=19$m=128,t=2,p=1$")
    assert (await desk.passwords.verify(kept, "right")).is_valid
    assert not (await desk.passwords.verify(kept, "right")).rehash


async def test_a_broken_hash_lets_nobody_in(desk: Desk) -> None:
    for kept in ("", "plain", "$argon2id$v=19$m=64,t=1,p=1$x"):
        assert not (await desk.passwords.verify(kept, kept)).is_valid
    for password in ("", "x" * 1025):
        with pytest.raises(ValueError, match="1 to 1024"):
            await desk.passwords.hash(password)


def test_addresses_of_one_subscriber_are_one() -> None:
    assert address_key("2001:db8::1") == address_key("2001:db8::ffff:1") == "2001:db8::/64"
    assert address_key("2001:db8:0:1::1") != address_key("2001:db8::1")
    assert address_key("::ffff:192.0.2.1") == address_key("192.0.2.1")
    assert address_key("garbage") == "unknown"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["take", "give"]), st.integers(0, 20)), max_size=30))
def test_the_counter_is_the_textbook_one(server: RedisServer, steps: list[tuple[str, int]]) -> None:
    """Against a model in memory: the theoretical arrival time, moved by each step."""

    async def run() -> None:
        redis, clock, rate = Redis.from_url(server.url), FakeClock(), AttemptRate(3, 7.0)
        await redis.flushall()
        counter, due = RedisAttemptCounter(redis, clock), 0.0
        for what, pause in steps:
            clock.advance(pause)
            now = clock.monotonic()
            if what == "give":
                await counter.give_back("x", rate)
                due = max(now, due - rate.every)
                continue
            wait = await counter.take("x", rate)
            then = max(due, now) + rate.every
            expected = then - rate.burst * rate.every - now
            assert wait == pytest.approx(max(0.0, expected), abs=1e-4)
            due = then if expected <= 0 else due
        await redis.aclose()

    asyncio.run(run())
