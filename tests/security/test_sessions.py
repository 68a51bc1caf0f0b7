"""Session fixation, theft from Redis, CSRF, limits of time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from engineroom.auth.errors import CsrfError, SessionError
from engineroom.auth.login.sessions import FORGET_COOKIE, Session, SessionLimits, Sessions
from engineroom.auth.permissions import Grant

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engineroom.core.clock import FakeClock

VIEWER = (Grant("viewer", frozenset({"shop"})),)
ADMIN = (Grant.everywhere("admin"),)


@pytest.fixture
def sessions(redis: Redis, clock: FakeClock) -> Sessions:
    return Sessions(redis, clock, b"s" * 32)


async def over(sessions: Sessions, identity: str) -> None:
    with pytest.raises(SessionError):
        await sessions.resume(identity)


async def test_a_planted_id_is_never_taken_up(sessions: Sessions) -> None:
    planted = "A" * 43
    opened = await sessions.open("ada", VIEWER, previous=planted)
    assert opened.id != planted
    await over(sessions, planted)
    assert (await sessions.resume(opened.id)).subject == "ada"


async def test_the_id_from_before_signing_in_ends(sessions: Sessions) -> None:
    before = await sessions.open("guest", ())
    after = await sessions.open("ada", VIEWER, previous=before.id)
    await over(sessions, before.id)
    assert await sessions.of("guest") == []
    assert len(await sessions.of("ada")) == 1
    assert after.csrf != before.csrf


async def test_more_rights_mean_another_id(sessions: Sessions) -> None:
    low = await sessions.open("ada", VIEWER)
    high = await sessions.elevate(low.id, ADMIN)
    await over(sessions, low.id)
    assert (await sessions.resume(high.id)).grants == ADMIN
    assert high.session.handle == low.session.handle
    assert len(await sessions.of("ada")) == 1
    with pytest.raises(CsrfError):
        sessions.check_csrf(high.id, low.csrf)


async def test_of_two_that_elevate_at_once_one_does(sessions: Sessions) -> None:
    low = await sessions.open("ada", VIEWER)
    outcomes = await asyncio.gather(
        *(sessions.elevate(low.id, ADMIN) for _ in range(10)), return_exceptions=True
    )
    assert sum(isinstance(o, SessionError) for o in outcomes) == 9
    assert len(await sessions.of("ada")) == 1


async def test_an_ended_session_is_not_brought_back_by_a_change_of_rights(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    low = await sessions.open("ada", VIEWER)
    read = sessions._read

    async def ended_after_reading(identity: str) -> Session:
        session = await read(identity)
        assert await sessions.end("ada", session.handle)
        return session

    monkeypatch.setattr(sessions, "_read", ended_after_reading)
    with pytest.raises(SessionError):
        await sessions.elevate(low.id, ADMIN)
    assert await sessions.of("ada") == []


async def test_who_reads_redis_cannot_take_a_session_over(sessions: Sessions, redis: Redis) -> None:
    opened = await sessions.open("ada", ADMIN)
    seen = b""
    for key in await redis.keys("*"):
        seen += key + b"".join(v for pair in (await redis.hgetall(key)).items() for v in pair)
    assert opened.id.encode() not in seen
    assert opened.csrf.encode() not in seen
    assert opened.id not in repr(opened)
    assert opened.csrf not in repr(opened)


async def test_unused_ones_end_and_used_ones_end_later(
    sessions: Sessions, clock: FakeClock, redis: Redis
) -> None:
    idle, used = await sessions.open("ada", VIEWER), await sessions.open("ada", VIEWER)
    clock.advance(1799)
    await sessions.resume(used.id)
    clock.advance(1)
    await over(sessions, idle.id)
    assert [s.handle for s in await sessions.of("ada")] == [used.session.handle]
    for _ in range(23):
        clock.advance(1700)
        await sessions.resume(used.id)
    clock.advance(43_200 - 1800 - 23 * 1700)
    await over(sessions, used.id)
    assert await redis.keys("engineroom:auth:session:*") == []


async def test_redis_forgets_what_nobody_uses(redis: Redis, clock: FakeClock) -> None:
    sessions = Sessions(redis, clock, b"s" * 32, limits=SessionLimits(idle=60, absolute=100))
    await sessions.open("ada", VIEWER)
    (key,) = await redis.keys("engineroom:auth:session:*")
    assert 0 < await redis.ttl(key) <= 61


async def test_one_ends_ones_own_and_not_anothers_by_its_handle(sessions: Sessions) -> None:
    ada, bob = await sessions.open("ada", VIEWER), await sessions.open("bob", VIEWER)
    assert not await sessions.end("ada", bob.session.handle)
    await sessions.resume(bob.id)
    assert await sessions.end("bob", bob.session.handle)
    await over(sessions, bob.id)
    others = [await sessions.open("ada", VIEWER) for _ in range(3)]
    assert await sessions.end_all("ada", keep=ada.session.handle) == 3
    await sessions.resume(ada.id)
    for other in others:
        await over(sessions, other.id)
    await sessions.close(ada.id)
    await over(sessions, ada.id)


@pytest.mark.parametrize("identity", ["", "x", "é" * 43, "a" * 100_000, "*" * 43])
async def test_what_is_no_id_is_no_session(sessions: Sessions, identity: str) -> None:
    await over(sessions, identity)


async def test_the_cookie_is_bound_to_host_and_https(sessions: Sessions) -> None:
    opened = await sessions.open("ada", VIEWER)
    for cookie in (opened.cookie, FORGET_COOKIE):
        name, *attributes = cookie.split("; ")
        assert name.startswith("__Host-engineroom=")
        assert {"Path=/", "Secure", "HttpOnly", "SameSite=Lax"} <= set(attributes)
        assert not any(attribute.startswith("Domain") for attribute in attributes)


async def test_a_csrf_token_is_good_for_its_own_session_only(
    sessions: Sessions, redis: Redis, clock: FakeClock
) -> None:
    ada, eve = await sessions.open("ada", VIEWER), await sessions.open("eve", VIEWER)
    sessions.check_csrf(ada.id, ada.csrf)
    other = Sessions(redis, clock, b"t" * 32)
    for token in (eve.csrf, "", ada.csrf[:-1], ada.csrf + "0", ada.id, other.csrf(ada.id), "é"):
        with pytest.raises(CsrfError):
            sessions.check_csrf(ada.id, token)
