"""Made-up credentials: counted by address, and in nobody else's way."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from engineroom.auth.errors import TokenError
from engineroom.auth.login.credential_throttle import WRONG, CredentialThrottle
from engineroom.auth.login.lockout import RedisAttemptCounter
from engineroom.auth.middleware import Authenticator, AuthMiddleware
from engineroom.auth.permissions import Principal
from engineroom.core.errors import DependencyError
from tests.security.test_middleware import VIEWER, Desk, application, ask, bearer, cookie, desk

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engineroom.core.clock import FakeClock

__all__ = ["desk"]

OFFICE: dict[str, Any] = {"client": ("192.0.2.7", 4711)}
ELSEWHERE: dict[str, Any] = {"client": ("192.0.2.8", 4711)}


def made_up(number: int) -> str:
    """A token as a cluster signs them, with a key that nobody knows."""

    def part(said: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(said).encode()).decode().rstrip("=")

    return f"{part({'alg': 'RS256', 'kid': f'k{number}'})}.{part({'n': number})}.c2ln"


class Cluster:
    """Who judges tokens of the cluster: slow, and he counts."""

    def __init__(self) -> None:
        self.asked = 0
        self.right: set[str] = set()
        self.away = False

    async def judge(self, token: str) -> Principal:
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise DependencyError("the API server does not answer")
        if token not in self.right:
            raise TokenError("kubernetes", "token: the cluster does not know it")
        return Principal("kubernetes:bo", VIEWER, "kubernetes", "x")


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest_asyncio.fixture
async def app(desk: Desk, redis: Redis, clock: FakeClock, cluster: Cluster) -> AuthMiddleware:
    authenticator = Authenticator(
        tokens=desk.tokens, api_keys=desk.api_keys, sessions=desk.sessions,
        external=cluster.judge, throttle=CredentialThrottle(RedisAttemptCounter(redis, clock)),
    )  # fmt: skip
    return AuthMiddleware(application, authenticator, public=lambda s: s["path"] == "/health")


def regained(began: float) -> int:
    """Return the attempts that may have come back: Redis expires counts by its own clock."""
    return int((time.monotonic() - began) / WRONG.every)


async def statuses(app: AuthMiddleware, headers: list[tuple[str, str]], **more: Any) -> list[int]:
    answers = await asyncio.gather(*(ask(app, "/me", each, **more) for each in headers))
    return [each.status for each in answers]


async def test_of_tokens_made_up_at_once_few_are_judged(
    app: AuthMiddleware, cluster: Cluster, clock: FakeClock
) -> None:
    began = time.monotonic()
    found = await statuses(app, [bearer(made_up(n)) for n in range(90)], **OFFICE)
    assert cluster.asked == found.count(401) == 90 - found.count(429)
    assert WRONG.burst <= cluster.asked <= WRONG.burst + regained(began)
    refused = await ask(app, "/me", bearer(made_up(1000)), **OFFICE)
    assert refused.problem["code"] == "limit_reached"
    assert refused.headers["retry-after"] == "1"
    assert await statuses(app, [bearer(made_up(1001))], **ELSEWHERE) == [401]
    clock.advance(WRONG.every)
    found = await statuses(app, [bearer(made_up(n)) for n in range(2000, 2002)], **OFFICE)
    assert sorted(found) == [401, 429]


@pytest.mark.parametrize(
    "wrong",
    [
        [bearer(f"erk_{n:016x}_{'a' * 43}") for n in range(90)],
        [bearer(f"not.a{n}.token") for n in range(90)],
        [cookie(f"{n:043}") for n in range(90)],
        [("authorization", f"Basic {n}") for n in range(90)],
    ],
    ids=["key", "token", "cookie", "scheme"],
)
async def test_wrong_ones_of_every_kind_are_counted(
    app: AuthMiddleware, wrong: list[tuple[str, str]]
) -> None:
    began = time.monotonic()
    found = await statuses(app, wrong, **OFFICE)
    judged = found.count(401)
    assert judged + found.count(429) == 90
    assert WRONG.burst <= judged <= WRONG.burst + regained(began)


async def test_who_shows_what_is_right_is_served_beside_them(
    app: AuthMiddleware, cluster: Cluster, desk: Desk, clock: FakeClock
) -> None:
    known, new = made_up(1), made_up(2)
    cluster.right = {known, new}
    assert await statuses(app, [bearer(known)], **OFFICE) == [200]
    await statuses(app, [bearer(made_up(n)) for n in range(100, 190)], **OFFICE)
    key = await desk.api_keys.create("ada", "k", VIEWER)
    token = (await desk.tokens.issue("ada", VIEWER)).access
    session = await desk.sessions.open("ada", VIEWER)
    right = [bearer(key.secret), bearer(token), cookie(session.id), bearer(known)]
    assert await statuses(app, right * 20, **OFFICE) == [200] * 80
    # Nobody can tell it from a made-up one without asking: it waits, and elsewhere it does not.
    assert await statuses(app, [bearer(new)], **OFFICE) == [429]
    assert await statuses(app, [bearer(new)], **ELSEWHERE) == [200]
    assert await statuses(app, [bearer(new)], **OFFICE) == [200]


async def test_right_ones_use_nothing_up(app: AuthMiddleware, cluster: Cluster) -> None:
    cluster.right = {made_up(n) for n in range(200)}
    for n in range(200):
        assert await statuses(app, [bearer(made_up(n))], **OFFICE) == [200]


async def test_without_an_answer_nothing_is_counted(app: AuthMiddleware, cluster: Cluster) -> None:
    cluster.away = True
    for n in range(WRONG.burst + 1):
        assert await statuses(app, [bearer(made_up(n))], **OFFICE) == [503]


async def test_a_token_that_is_not_right_any_more_is_counted_again(
    app: AuthMiddleware, cluster: Cluster
) -> None:
    token = made_up(1)
    cluster.right = {token}
    assert await statuses(app, [bearer(token)], **OFFICE) == [200]
    cluster.right = set()
    found = [(await statuses(app, [bearer(token)], **OFFICE))[0] for _ in range(100)]
    assert found == [401] * (WRONG.burst + 1) + [429] * (99 - WRONG.burst)


async def test_what_was_right_once_is_no_guess(
    app: AuthMiddleware, desk: Desk, clock: FakeClock
) -> None:
    token = (await desk.tokens.issue("ada", VIEWER)).access
    key = await desk.api_keys.create("ada", "k", VIEWER)
    await desk.api_keys.revoke(key.key.id)
    clock.advance(3600)
    assert await statuses(app, [bearer(token)] * 80, **OFFICE) == [401] * 80
    assert await statuses(app, [bearer(key.secret)] * 80, **OFFICE) == [401] * 80


async def test_who_has_an_old_cookie_can_still_sign_in(app: AuthMiddleware) -> None:
    await statuses(app, [bearer(f"not.a{n}.token") for n in range(90)], **OFFICE)
    assert (await ask(app, "/health", cookie("x" * 43), **OFFICE)).status == 200
    assert (await ask(app, "/health", bearer("not.a.token"), **OFFICE)).status == 429


async def test_addresses_of_one_subscriber_are_one(app: AuthMiddleware) -> None:
    found = []
    for n in range(100):
        client = (f"2001:db8:1:2::{n:x}", 1)
        found += await statuses(app, [bearer("not.a.token")], client=client)
    assert found.count(429) == 40
    assert await statuses(app, [bearer("not.a.token")], client=("2001:db8:1:3::1", 1)) == [401]
