"""Attacks on the one-time link: used again, late, guessed, planted, and what its session may do."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio
from pydantic import SecretStr

from engineroom.auth.errors import LinkError
from engineroom.auth.kubernetes import KubernetesIdentity
from engineroom.auth.login.login_links import LIFE, LoginLink, LoginLinks
from engineroom.auth.login.sessions import COOKIE
from engineroom.auth.permissions import ADMIN, Grant
from engineroom.console.accounts.authorizer import Authorizer
from engineroom.console.main import create_application
from engineroom.console.route_table import ROUTES
from engineroom.console.settings import ApiSettings
from engineroom.kube.client.config import ApiConfig
from tests.support import free_port, revocations_read

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from redis.asyncio import Redis

    from engineroom.core.clock import FakeClock
    from tests.support import RedisServer

LINKS = "/api/v1/sign-in-links"
REDEEM = f"{LINKS}/redeem"


class Cluster:
    """An API server that knows one person, by any token of his."""

    def __init__(self) -> None:
        self.known = True
        self.allowed = True
        self.asked: list[Mapping[str, Any]] = []

    async def review_token(self, token: str, audiences: Sequence[str]) -> Mapping[str, Any]:
        del token, audiences
        user = {"username": "ann", "uid": "7", "groups": ["ops"], "extra": {"scope": ["x"]}}
        return {"authenticated": self.known, "user": user}

    async def review_access(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked.append(spec)
        return {"allowed": self.allowed}


class Site:
    """The API with a made-up cluster, and browsers that visit it."""

    def __init__(self, app: Any, cluster: Cluster) -> None:
        self.app = app
        self.services = app.state.services
        self.cluster = cluster

    def browser(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app)
        return httpx.AsyncClient(transport=transport, base_url="https://api.test")

    async def code(self, token: str) -> str:
        async with self.browser() as program:
            made = await program.post(LINKS, headers={"authorization": f"Bearer {token}"})
        assert made.status_code == 201, made.text
        body = made.json()
        assert body["path"] == f"/sign-in#{body['code']}"
        return str(body["code"])

    async def admin_token(self) -> str:
        pair = await self.services.tokens.issue("user:admin", [Grant.everywhere(ADMIN.name)])
        return str(pair.access)


def cluster_token(expires: float | None) -> str:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    claims = {"sub": "ann", "iss": "https://cluster"} | ({"exp": expires} if expires else {})
    return f"{part({'alg': 'RS256', 'kid': 'of-the-cluster'})}.{part(claims)}.{part('x')}"


@pytest_asyncio.fixture
async def site(server: RedisServer, redis: Redis) -> AsyncIterator[Site]:
    del redis  # empties it
    settings = ApiSettings(
        redis_url=SecretStr(server.url),
        api_secret=SecretStr("s" * 48),
        admin_password=SecretStr("correct horse battery staple"),
        requests_per_second=1000,
    )
    app = create_application(settings, ApiConfig(server=f"http://127.0.0.1:{free_port()}"))
    async with app.router.lifespan_context(app):
        services, cluster = app.state.services, Cluster()
        identity = KubernetesIdentity(cluster, services.clock)
        services.authorizer = Authorizer(lambda: services.accounts.policy, identity)
        services.authenticator._external = identity.authenticate
        await revocations_read(services.revocations)
        yield Site(app, cluster)


async def redeemed(browser: httpx.AsyncClient, code: str) -> httpx.Response:
    return await browser.post(REDEEM, json={"code": code})


async def test_a_link_signs_in_once(site: Site) -> None:
    code = await site.code(await site.admin_token())
    async with site.browser() as first, site.browser() as second:
        done = await redeemed(first, code)
        assert done.status_code == 201, done.text
        cookie = done.headers["set-cookie"]
        assert cookie.startswith(f"{COOKIE}=")
        for word in ("Secure", "HttpOnly", "Path=/", "SameSite=Lax"):
            assert word in cookie
        assert code not in cookie
        who = (await first.get("/api/v1/whoami")).json()
        assert (who["subject"], who["how"]) == ("user:admin", "session")
        again = await redeemed(second, code)
        assert (again.status_code, again.json()["code"]) == (401, "sign_in_link_invalid")
        assert "set-cookie" not in again.headers
        assert (await second.get("/api/v1/whoami")).status_code == 401


async def test_of_many_at_once_one_gets_the_session(site: Site) -> None:
    code = await site.code(await site.admin_token())
    browsers = [site.browser() for _ in range(12)]
    answers = await asyncio.gather(*(redeemed(browser, code) for browser in browsers))
    assert sorted(answer.status_code for answer in answers) == [201] + [401] * 11
    for browser in browsers:
        await browser.aclose()


async def test_redis_holds_no_code_and_forgets_it(site: Site, redis: Redis) -> None:
    code = await site.code(await site.admin_token())
    [key] = [key async for key in redis.scan_iter("engineroom:auth:link:*")]
    assert code.encode() not in key + await redis.get(key)
    assert 0 < await redis.ttl(key) <= LIFE


async def test_a_code_is_over_after_its_life_whatever_redis_says(
    redis: Redis, clock: FakeClock
) -> None:
    links = LoginLinks(redis, clock, b"s" * 32)
    code, _ = await links.make(LoginLink("user:admin"))
    [key] = [key async for key in redis.scan_iter("engineroom:auth:link:*")]
    await redis.persist(key)
    clock.advance(LIFE)
    with pytest.raises(LinkError):
        await links.take(code)
    early, _ = await links.make(LoginLink("user:admin", ends=clock.now().timestamp() + 5))
    clock.advance(5)
    with pytest.raises(LinkError):
        await links.take(early)
    with pytest.raises(ValueError, match="life"):
        LoginLinks(redis, clock, b"s" * 32, life=LIFE + 1)


async def test_guesses_are_all_answered_alike_and_cost(site: Site) -> None:
    code = await site.code(await site.admin_token())
    guesses = [code[:-1], f"{code}A", code.swapcase(), "*", "\x00" * 43, "", "x" * 101]
    guesses += [secrets.token_urlsafe(32) for _ in range(20)]
    async with site.browser() as browser:
        for guess in guesses:
            answer = await redeemed(browser, guess)
            assert answer.status_code in (401, 422)
            assert "set-cookie" not in answer.headers
        # Nothing of that has used up the real one.
        assert (await redeemed(browser, code)).status_code == 201


async def test_who_is_signed_in_stays_who_he_is(site: Site) -> None:
    """Fixation and its reverse: a planted session, and a link of the attacker's."""
    planted = await site.services.sessions.open("user:mallory", ())
    code = await site.code(await site.admin_token())
    async with site.browser() as victim:
        victim.cookies.set(COOKIE, planted.id, domain="api.test", path="/")
        refused = await redeemed(victim, code)
        assert (refused.status_code, refused.json()["code"]) == (403, "csrf_token_invalid")
        assert "set-cookie" not in refused.headers
    async with site.browser() as clean:
        # And the code was not used up by that.
        done = await redeemed(clean, code)
        assert done.status_code == 201
        assert clean.cookies[COOKIE] != planted.id
        assert done.json()["session"]["handle"] != planted.session.handle


async def test_a_session_that_is_over_does_not_lock_its_browser_out(site: Site) -> None:
    over = await site.services.sessions.open("user:admin", ())
    await site.services.sessions.close(over.id)
    code = await site.code(await site.admin_token())
    async with site.browser() as browser:
        browser.cookies.set(COOKIE, over.id, domain="api.test", path="/")
        refused = await browser.get("/api/v1/whoami")
        assert refused.status_code == 401
        assert "Max-Age=0" in refused.headers["set-cookie"]
        browser.cookies.clear()
        assert (await redeemed(browser, code)).status_code == 201


async def test_links_are_made_for_tokens_alone(site: Site) -> None:
    made = await site.services.api_keys.create("user:admin", "x", [Grant.everywhere(ADMIN.name)])
    narrow = await site.services.tokens.issue(
        "user:admin", [Grant.everywhere(ADMIN.name)], ["self:identity:read"]
    )
    opened = await site.services.sessions.open("user:admin", [Grant.everywhere(ADMIN.name)])
    async with site.browser() as program:
        assert (await program.post(LINKS)).status_code == 401
        for token in (made.secret, narrow.access):
            refused = await program.post(LINKS, headers={"authorization": f"Bearer {token}"})
            assert (refused.status_code, refused.json()["code"]) == (403, "permission_denied")
        program.cookies.set(COOKIE, opened.id, domain="api.test", path="/")
        refused = await program.post(LINKS, headers={"x-csrf-token": opened.csrf})
        assert refused.status_code == 403


async def test_who_was_thrown_out_has_no_link_left(site: Site) -> None:
    code = await site.code(await site.admin_token())
    await asyncio.sleep(0)  # the clock of the code is before that of the end
    await site.services.tokens.revoke_subject("user:admin")
    async with site.browser() as browser:
        assert (await redeemed(browser, code)).status_code == 401
    assert await site.services.sessions.of("user:admin") == []


async def test_a_session_of_the_cluster_is_asked_about_each_time(site: Site) -> None:
    token = cluster_token(site.services.clock.now().timestamp() + 600)
    code = await site.code(token)
    async with site.browser() as browser:
        assert (await redeemed(browser, code)).status_code == 201
        who = (await browser.get("/api/v1/whoami")).json()
        assert (who["subject"], who["how"]) == ("kubernetes:ann", "session")
        assert (who["groups"], who["grants"]) == (["ops"], [])
        allowed = await browser.get("/api/v1/access?namespace=shop")
        assert "namespace:jobs:read" in allowed.json()["permissions"]
        spec = site.cluster.asked[-1]
        assert (spec["user"], spec["uid"], spec["groups"]) == ("ann", "7", ["ops"])
        assert spec["extra"] == {"scope": ["x"]}
        site.cluster.allowed = False
        await asyncio.sleep(1.1)  # so long an answer is good
        refused = await browser.get("/api/v1/audit")
        assert refused.status_code == 403
        # Nor does it make keys, which would outlive it.
        csrf = (await browser.get("/api/v1/keys")).status_code
        assert csrf == 403
        # It finds and ends itself.
        [listed] = (await browser.get("/api/v1/sessions")).json()["items"]
        assert listed["current"]


@pytest.mark.parametrize("lives", [600.0, 7200.0, None])
async def test_a_session_of_the_cluster_ends_with_its_token_and_within_the_hour(
    site: Site, lives: float | None
) -> None:
    now = site.services.clock.now().timestamp()
    code = await site.code(cluster_token(None if lives is None else now + lives))
    async with site.browser() as browser:
        ends = (await redeemed(browser, code)).json()["session"]["ends"]
    assert ends - now == pytest.approx(min(lives or 3600.0, 3600.0), abs=5)


async def test_the_page_keeps_the_code_out_of_requests(site: Site) -> None:
    async with site.browser() as browser:
        page = await browser.get("/sign-in")
        script = await browser.get("/sign-in.js")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cache-control"] == "no-store"
    # No script of the page's own, no handler in an attribute, nothing from elsewhere.
    assert re.findall(r"<script(?![^>]*src=\"/)", page.text) == []
    assert re.findall(r"\son\w+=|https?://", page.text + script.text) == []
    # Out of the address before the first request, and to the server in a body only.
    assert script.text.index("replaceState") < script.text.index("fetch(")
    assert "innerHTML" not in script.text


async def test_no_path_redirects_to_the_host_that_a_request_names(site: Site) -> None:
    paths = [re.sub(r"{\w+}", "x", route.path) for route in ROUTES if route.method == "GET"]
    async with site.browser() as browser:
        for path in (*paths, *(f"{path}/" for path in paths), "/", "//other.example/healthz"):
            headers = {"host": "other.example", "x-forwarded-host": "other.example"}
            response = await browser.get(f"https://api.test{path}", headers=headers)
            assert "other.example" not in response.headers.get("location", ""), path
            if path.endswith("/"):
                assert response.status_code in (401, 404), path
