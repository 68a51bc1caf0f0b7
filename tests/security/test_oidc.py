"""Signing in at a real OIDC provider, through the API as it is deployed, as a browser does it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import textwrap
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
import pytest_asyncio
from pydantic import SecretStr

from engineroom.auth.errors import OidcSignInError
from engineroom.auth.login.sessions import COOKIE
from engineroom.auth.oidc.flow import FLOW_COOKIE, challenge
from engineroom.auth.outbound import Rules
from engineroom.auth.tokens.issuers import KeyCacheTimes
from engineroom.console.main import create_application
from engineroom.console.settings import ApiSettings
from engineroom.core.redis_replies import text
from engineroom.kube.client.config import ApiConfig
from tests.oidc_provider import Browser, Provider, provider
from tests.support import ROOT, free_port, revocations_read

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from engineroom.console.services import Services
    from tests.support import RedisServer

SITE = "https://api.test"
SECRET = "a secret of 32 characters or more"
REDIRECT = f"{SITE}/api/v1/oidc/callback"
CLIENT = {
    "client_id": "engineroom",
    "client_secret": SECRET,
    "redirect_uris": [REDIRECT],
    "post_logout_redirect_uris": [f"{SITE}/"],
    "scope": "openid profile email groups",
}
PUBLIC = {**CLIENT, "client_id": "public", "token_endpoint_auth_method": "none"}
PUBLIC.pop("client_secret")
CLIENTS: list[dict[str, Any]] = [
    CLIENT,
    {**CLIENT, "client_id": "post", "token_endpoint_auth_method": "client_secret_post"},
    PUBLIC,
    {**CLIENT, "client_id": "es256", "id_token_signed_response_alg": "ES256"},
    {**CLIENT, "client_id": "shop", "redirect_uris": ["https://shop.example/callback"]},
    {**CLIENT, "client_id": "eddsa", "id_token_signed_response_alg": "EdDSA"},
]
DIRECTORY = {
    "roleMapping": [
        {"group": "ops", "grants": [{"role": "operator", "namespaces": ["shop"]}]},
        {"group": "board", "grants": [{"role": "viewer", "namespaces": ["*"]}]},
    ]
}
ADA = {
    "name": "Ada\u0007 Lovelace",
    "email": "ada@shop.example",
    "email_verified": True,
    "groups": ["ops", "unknown"],
}


@pytest.fixture(scope="module")
def idp() -> Iterator[Provider]:
    with provider(CLIENTS) as running:
        yield running


class Installation:
    """The API with a provider set up, and browsers before it."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.services: Services = app.state.services
        self._stack = contextlib.AsyncExitStack()

    def browser(self) -> Browser:
        made = Browser(self.app, SITE)
        self._stack.push_async_callback(made.aclose)
        return made

    async def aclose(self) -> None:
        await self._stack.aclose()


@pytest.fixture
def settings(server: RedisServer, idp: Provider, tmp_path: Path) -> ApiSettings:
    (tmp_path / "accounts.json").write_text(json.dumps(DIRECTORY))
    return ApiSettings(
        redis_url=SecretStr(server.url),
        api_secret=SecretStr("s" * 48),
        requests_per_second=10_000,
        kubernetes_identities=False,
        accounts_file=tmp_path / "accounts.json",
        oidc_issuer=idp.issuer,
        oidc_client_id="engineroom",
        oidc_client_secret=SecretStr(SECRET),
        oidc_url=SITE,
        oidc_logout_url=f"{SITE}/",
        oidc_scopes=("openid", "profile", "email", "groups"),
        oidc_allowed_networks=("127.0.0.0/8",),
        oidc_insecure_loopback=True,
    )


@contextlib.asynccontextmanager
async def opened(settings: ApiSettings) -> AsyncIterator[Installation]:
    app = create_application(settings, ApiConfig(server=f"http://127.0.0.1:{free_port()}"))
    async with app.router.lifespan_context(app), contextlib.aclosing(Installation(app)) as here:
        await revocations_read(here.services.revocations)
        yield here


@pytest_asyncio.fixture
async def api(settings: ApiSettings, redis: Any, idp: Provider) -> AsyncIterator[Installation]:
    del redis  # empties it
    idp.know({"ada": ADA, "bob": {**ADA, "email_verified": False, "groups": "board"}})
    async with opened(settings) as here:
        yield here


def refused(answer: httpx.Response, status: int = 401) -> str:
    assert answer.status_code == status, answer.text
    # A cookie of a session that is over is taken back, and none is given.
    assert all(
        each.startswith(f"{COOKIE}=;") and "Max-Age=0" in each
        for each in answer.headers.get_list("set-cookie")
        if COOKIE in each
    )
    return str(answer.json()["code"])


async def whoami(browser: Browser) -> dict[str, Any]:
    answer = await browser.http.get("/api/v1/whoami")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_somebody_signs_in_and_has_what_his_groups_give(
    api: Installation, idp: Provider
) -> None:
    browser = api.browser()
    answer = await browser.sign_in("ada", "/api/v1/oidc/start?returnTo=/api/v1/docs%3Fa=b")
    assert (answer.status_code, answer.headers["location"]) == (303, "/api/v1/docs?a=b")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    assert "Secure; HttpOnly; SameSite=Lax" in cookie
    me = await whoami(browser)
    assert me["subject"] == f"{idp.issuer}#ada"
    assert me["grants"] == [{"role": "operator", "namespaces": ["shop"]}]
    (record,) = await api.services.audit.read()
    assert record.body["action"] == "session.open"
    assert record.body["details"] == {"subject": f"{idp.issuer}#ada"}
    person = await api.services.accounts.oidc_users.find(f"{idp.issuer}#ada")
    assert person is not None
    assert (person.name, person.email) == ("Ada Lovelace", "ada@shop.example")


async def test_an_unverified_address_is_nobodys(api: Installation, idp: Provider) -> None:
    await api.browser().sign_in("bob")
    person = await api.services.accounts.oidc_users.find(f"{idp.issuer}#bob")
    assert person is not None
    assert (person.email, person.groups) == ("", ("board",))


@pytest.mark.parametrize(
    ("client", "how"),
    [
        ("post", "client_secret_post"),
        ("public", "none"),
        ("es256", "client_secret_basic"),
        ("eddsa", "client_secret_basic"),
    ],
)
async def test_every_kind_of_client_and_key(
    settings: ApiSettings, redis: Any, idp: Provider, client: str, how: str
) -> None:
    del redis
    idp.know({"ada": ADA})
    told = {"oidc_client_id": client, "oidc_authentication": how}
    if how == "none":
        told["oidc_client_secret"] = None  # type: ignore[assignment]
    async with opened(settings.model_copy(update=told)) as api:
        browser = api.browser()
        assert (await browser.sign_in("ada")).status_code == 303
        assert (await whoami(browser))["subject"] == f"{idp.issuer}#ada"


async def test_claims_from_the_userinfo_endpoint(settings: ApiSettings, redis: Any) -> None:
    del redis
    with provider(CLIENTS, claims_in_id_token=False) as idp:
        idp.know({"ada": ADA})
        told: dict[str, Any] = {"oidc_issuer": idp.issuer}
        async with opened(settings.model_copy(update=told)) as api:
            assert refused(await api.browser().sign_in("ada"), 403) == "permission_denied"
        told["oidc_userinfo"] = True
        async with opened(settings.model_copy(update=told)) as api:
            browser = api.browser()
            assert (await browser.sign_in("ada")).status_code == 303
            assert (await whoami(browser))["grants"][0]["role"] == "operator"


async def test_the_request_binds_the_answer(api: Installation) -> None:
    started = await api.browser().start()
    asked = {k: v[0] for k, v in parse_qs(urlsplit(started.headers["location"]).query).items()}
    assert asked["redirect_uri"] == REDIRECT
    assert (asked["response_type"], asked["code_challenge_method"]) == ("code", "S256")
    for name in ("state", "nonce", "code_challenge"):
        assert len(asked[name]) == 43
    cookie = started.headers["set-cookie"]
    assert cookie.startswith(f"{FLOW_COOKIE}=")
    assert FLOW_COOKIE.startswith("__Host-")
    assert "Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=600" in cookie
    # What is in Redis opens nothing: neither the state nor the browser's secret stand there.
    for key in await api.services.redis.keys("engineroom:auth:oidc:*"):
        kept = key.decode() + (await api.services.redis.get(key)).decode()
        assert asked["state"] not in kept
        assert cookie.split("=", 1)[1].split(";")[0] not in kept


async def test_a_second_sign_in_ends_the_first_session(api: Installation) -> None:
    browser = api.browser()
    await browser.sign_in("ada")
    before = browser.http.cookies[COOKIE]
    await browser.sign_in("ada")
    assert browser.http.cookies[COOKIE] != before
    stolen = api.browser()
    stolen.http.cookies.set(COOKIE, before, domain="api.test", path="/")
    assert refused(await stolen.http.get("/api/v1/whoami")) == "session_invalid"


async def test_who_comes_with_a_session_that_is_over_signs_in_all_the_same(
    api: Installation,
) -> None:
    browser = api.browser()
    await browser.sign_in("ada")
    await api.services.sessions.close(browser.http.cookies[COOKIE])
    assert refused(await browser.http.get("/api/v1/whoami")) == "session_invalid"
    assert (await browser.sign_in("ada")).status_code == 303
    assert (await whoami(browser))["how"] == "session"


async def test_a_callback_is_good_once(api: Installation) -> None:
    browser = api.browser()
    url = await browser.at_provider("ada", await browser.start())
    assert (await browser.http.get(url)).status_code == 303
    assert refused(await browser.http.get(url)) == "oidc_sign_in_failed"
    # Two at once: one of them.
    url = await browser.at_provider("ada", await browser.start())
    both = await asyncio.gather(browser.http.get(url), browser.http.get(url))
    assert sorted(each.status_code for each in both) == [303, 401]


async def test_a_replayed_code_is_refused_under_a_state_of_its_own(api: Installation) -> None:
    browser = api.browser()
    used = await browser.at_provider("ada", await browser.start())
    assert (await browser.http.get(used)).status_code == 303
    fresh = _query((await browser.start()).headers["location"])["state"]
    assert refused(await browser.http.get(_changed(used, state=fresh))) == "oidc_sign_in_failed"


async def test_a_code_of_another_sign_in_has_another_verifier(api: Installation) -> None:
    """PKCE at the provider: a code that was stolen is worth nothing in the thief's own sign-in."""
    victim, thief = api.browser(), api.browser()
    stolen = await victim.at_provider("ada", await victim.start())
    mine = await thief.at_provider("bob", await thief.start())
    crossed = _changed(mine, code=_query(stolen)["code"])
    assert refused(await thief.http.get(crossed)) == "oidc_sign_in_failed"
    # The state was used up by that; what the victim began goes on, but for his code.
    assert refused(await thief.http.get(mine)) == "oidc_sign_in_failed"


async def test_the_verifier_is_checked_by_the_provider(api: Installation) -> None:
    browser = api.browser()
    started = await browser.start()
    asked = _query(started.headers["location"])
    url = await browser.at_provider("ada", started)
    (key,) = await api.services.redis.keys("engineroom:auth:oidc:*")
    flow = json.loads(await api.services.redis.get(key))
    assert challenge(flow["verifier"]) == asked["code_challenge"]
    await api.services.redis.set(key, json.dumps({**flow, "verifier": "x" * 43}))
    assert refused(await browser.http.get(url)) == "oidc_sign_in_failed"


async def test_a_nonce_that_is_not_this_sign_ins_is_refused(api: Installation) -> None:
    browser = api.browser()
    url = await browser.at_provider("ada", await browser.start())
    (key,) = await api.services.redis.keys("engineroom:auth:oidc:*")
    flow = json.loads(await api.services.redis.get(key))
    await api.services.redis.set(key, json.dumps({**flow, "nonce": "x" * 43}))
    assert refused(await browser.http.get(url)) == "oidc_sign_in_failed"


async def test_somebody_elses_callback_signs_nobody_in(api: Installation) -> None:
    """Login CSRF: the attacker has his own answer opened in the victim's browser."""
    attacker, victim = api.browser(), api.browser()
    url = await attacker.at_provider("bob", await attacker.start())
    assert refused(await victim.http.get(url)) == "oidc_sign_in_failed"
    other = api.browser()
    await other.start()  # has a cookie, and not that one
    url = await attacker.at_provider("bob", await attacker.start())
    assert refused(await other.http.get(url)) == "oidc_sign_in_failed"
    assert COOKIE not in victim.http.cookies


async def test_two_tabs_of_one_browser_both_come_in(api: Installation) -> None:
    browser = api.browser()
    first, second = await browser.start(), await browser.start()
    later = await browser.at_provider("ada", second)
    assert (await browser.http.get(later)).status_code == 303
    earlier = await browser.at_provider("ada", first)
    assert (await browser.http.get(earlier)).status_code == 303


@pytest.mark.parametrize("state", ["", "x", "x" * 43, "../../../x", "a" * 100, "%00"])
async def test_a_state_that_nobody_gave_out(api: Installation, state: str) -> None:
    browser = api.browser()
    await browser.start()
    answer = await browser.http.get(f"/api/v1/oidc/callback?code=x&state={state}")
    assert refused(answer) == "oidc_sign_in_failed"


async def test_an_answer_of_another_provider_is_refused(api: Installation, idp: Provider) -> None:
    """Mix-up: RFC 9207. The provider names itself in every answer, so one without is none."""
    browser = api.browser()
    for issuer in ("https://evil.example", f"{idp.issuer}/", ""):
        url = await browser.at_provider("ada", await browser.start())
        assert _query(url)["iss"] == idp.issuer
        assert refused(await browser.http.get(_changed(url, iss=issuer))) == "oidc_sign_in_failed"


@pytest.mark.parametrize(
    "path",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/%09/evil.example",
        "javascript:alert(1)",
        "evil",
        "/a%0d%0aset-cookie:x=y",
        "/é",
        "",
    ],
)
async def test_a_sign_in_leads_to_no_other_site(api: Installation, path: str) -> None:
    browser = api.browser()
    answer = await browser.http.get("/api/v1/oidc/start?returnTo=" + path)
    assert refused(answer) == "oidc_sign_in_failed"
    assert "location" not in answer.headers


async def test_who_says_no_at_the_provider_is_not_in(api: Installation, idp: Provider) -> None:
    browser = api.browser()
    for said, told in (("access_denied", "access_denied"), ("<script>\r\n", "an error")):
        state = _query((await browser.start()).headers["location"])["state"]
        query = urlencode({"error": said, "state": state, "iss": idp.issuer})
        answer = await browser.http.get(f"/api/v1/oidc/callback?{query}")
        assert refused(answer) == "oidc_sign_in_failed"
        assert told in answer.json()["detail"]
        assert "<script>" not in answer.text


async def test_a_wrong_client_secret_lets_nobody_in(
    settings: ApiSettings, redis: Any, idp: Provider
) -> None:
    del redis
    idp.know({"ada": ADA})
    wrong = settings.model_copy(update={"oidc_client_secret": SecretStr("wrong" * 10)})
    async with opened(wrong) as api:
        answer = await api.browser().sign_in("ada")
        assert refused(answer, 503) == "oidc_provider_unavailable"
        assert "wrong" not in answer.text


async def test_a_provider_that_is_away_is_a_503_and_sessions_go_on(
    settings: ApiSettings, redis: Any
) -> None:
    del redis
    with provider(CLIENTS) as idp:
        idp.know({"ada": ADA})
        here = settings.model_copy(update={"oidc_issuer": idp.issuer})
        async with opened(here) as api:
            browser, late = api.browser(), api.browser()
            assert (await browser.sign_in("ada")).status_code == 303
            url = await late.at_provider("ada", await late.start())
            idp.stop()
            answer = await late.http.get(url)
            assert refused(answer, 503) == "oidc_provider_unavailable"
            assert answer.headers["retry-after"]
            assert (await whoami(browser))["how"] == "session"
            csrf = api.services.sessions.csrf(browser.http.cookies[COOKIE])
            out = await browser.http.post("/api/v1/oidc/logout", headers={"x-csrf-token": csrf})
            assert out.status_code == 200
        async with opened(here) as api:
            assert refused(await api.browser().start(), 503) == "oidc_provider_unavailable"


async def test_an_issuer_that_is_not_exactly_the_one_named(
    settings: ApiSettings, redis: Any, idp: Provider, capsys: pytest.CaptureFixture[str]
) -> None:
    del redis
    async with opened(settings.model_copy(update={"oidc_issuer": f"{idp.issuer}/"})) as api:
        answer = await api.browser().start()
        assert refused(answer, 503) == "oidc_provider_unavailable"
        assert "another issuer" not in answer.text
        assert "another issuer" in capsys.readouterr().out


async def test_a_provider_in_a_private_network_is_asked_only_where_that_is_allowed(
    settings: ApiSettings, redis: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    del redis
    async with opened(settings.model_copy(update={"oidc_allowed_networks": ()})) as api:
        answer = await api.browser().start()
        assert refused(answer, 503) == "oidc_provider_unavailable"
        assert "loopback" not in answer.text
        assert "loopback" in capsys.readouterr().out


async def test_keys_change_at_the_provider_while_sessions_go_on(
    api: Installation, idp: Provider
) -> None:
    oidc = api.services.oidc
    assert oidc is not None
    oidc._caching = KeyCacheTimes(unknown_pause=0.0)
    browser = api.browser()
    await browser.sign_in("ada")
    idp.rotate("second")
    assert (await whoami(browser))["how"] == "session"
    again = api.browser()
    assert (await again.sign_in("ada")).status_code == 303
    assert (await whoami(again))["subject"] == f"{idp.issuer}#ada"


async def test_what_the_provider_takes_away_is_gone_with_the_next_sign_in(
    api: Installation, idp: Provider
) -> None:
    browser, second = api.browser(), api.browser()
    idp.know({"ada": {**ADA, "groups": ["ops", "board"]}})
    await browser.sign_in("ada")
    csrf = api.services.sessions.csrf(browser.http.cookies[COOKIE])
    made = await browser.http.post(
        "/api/v1/keys", json={"name": "deploy"}, headers={"x-csrf-token": csrf}
    )
    key = {"authorization": f"Bearer {made.json()['secret']}"}
    for headers in ({}, key):
        me = (await browser.http.get("/api/v1/whoami", headers=headers)).json()
        assert [g["role"] for g in me["grants"]] == ["operator", "viewer"]

    idp.know({"ada": {**ADA, "groups": ["board"]}})
    await second.sign_in("ada")
    bare = api.browser()
    for http, headers in ((browser, {}), (bare, key), (second, {})):
        me = (await http.http.get("/api/v1/whoami", headers=headers)).json()
        assert [g["role"] for g in me["grants"]] == ["viewer"], headers

    idp.know({"ada": {**ADA, "groups": []}})
    assert refused(await second.sign_in("ada"), 403) == "permission_denied"
    for http, headers in ((browser, {}), (bare, key)):
        answer = await http.http.get("/api/v1/whoami", headers=headers)
        assert answer.status_code == 403


async def test_an_administrator_ends_all_that_somebody_has(
    api: Installation, idp: Provider
) -> None:
    from engineroom.auth.permissions import ADMIN, Grant

    admin = await api.services.api_keys.create("program", "t", [Grant.everywhere(ADMIN.name)])
    headers = {"authorization": f"Bearer {admin.secret}"}
    browser, other = api.browser(), api.browser()
    await browser.sign_in("ada")
    key = await api.services.api_keys.create(
        f"{idp.issuer}#ada", "x", [Grant("operator", frozenset({"shop"}))]
    )
    listed = (await other.http.get("/api/v1/users", headers=headers)).json()
    (person,) = [each for each in listed["items"] if each["signedIn"]]
    assert (person["subject"], person["groups"]) == (f"{idp.issuer}#ada", ["ops", "unknown"])
    path = f"/api/v1/users/{person['path']}"
    sessions = (await other.http.get(f"{path}/sessions", headers=headers)).json()["items"]
    assert [each["subject"] for each in sessions] == [f"{idp.issuer}#ada"]
    keys = (await other.http.get(f"{path}/keys", headers=headers)).json()["items"]
    assert [each["id"] for each in keys] == [key.key.id]
    gone = await other.http.delete(path, headers=headers)
    assert gone.status_code == 204
    assert refused(await browser.http.get("/api/v1/whoami")) == "session_invalid"
    answer = await other.http.get(
        "/api/v1/whoami", headers={"authorization": f"Bearer {key.secret}"}
    )
    assert refused(answer) == "account_gone"
    assert (await other.http.delete(path, headers=headers)).status_code == 404


async def test_signing_out_ends_it_here_and_says_where_to_go(
    api: Installation, idp: Provider
) -> None:
    browser = api.browser()
    await browser.sign_in("ada")
    assert refused(await browser.http.post("/api/v1/oidc/logout"), 403) == "csrf_token_invalid"
    identity = browser.http.cookies[COOKIE]
    csrf = api.services.sessions.csrf(identity)
    # A reader of Redis gets no token: its signature and claims are encrypted.
    (kept,) = await api.services.redis.keys("engineroom:api:oidc-hint:*")
    stored = text(await api.services.redis.get(kept))
    assert stored
    assert not any(part in stored for part in ("eyJ", "."))
    out = await browser.http.post("/api/v1/oidc/logout", headers={"x-csrf-token": csrf})
    location = out.json()["location"]
    assert location.startswith(f"{idp.issuer}/session/end?")
    assert _query(location)["post_logout_redirect_uri"] == f"{SITE}/"
    assert (await browser.http.get(location)).status_code == 200
    stolen = api.browser()
    stolen.http.cookies.set(COOKIE, identity, domain="api.test", path="/")
    assert refused(await stolen.http.get("/api/v1/whoami")) == "session_invalid"
    # The ID token is nowhere kept any more.
    assert await api.services.redis.keys("engineroom:api:oidc-hint:*") == []


async def test_subjects_of_a_provider_that_is_not_ours_any_more_are_out(
    api: Installation, settings: ApiSettings, idp: Provider
) -> None:
    browser = api.browser()
    await browser.sign_in("ada")
    identity = browser.http.cookies[COOKIE]
    async with opened(settings.model_copy(update={"oidc_issuer": ""})) as later:
        stranger = later.browser()
        stranger.http.cookies.set(COOKIE, identity, domain="api.test", path="/")
        assert refused(await stranger.http.get("/api/v1/whoami")) == "account_gone"
        assert (await later.browser().start()).status_code == 404


async def test_the_example_in_the_documentation_works(redis: Any, idp: Provider) -> None:
    text = (ROOT / "docs/auth.md").read_text()
    first, example = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for said, here in (
        ('issuer="https://idp.example"', f'issuer="{idp.issuer}", insecure_loopback=True'),
        ("Outbound()", 'Outbound(Rules.of(allow=["127.0.0.0/8"], schemes=["http"]))'),
    ):
        assert said in example
        example = example.replace(said, here)
    source = textwrap.indent(first + example + "return start, callback, sessions", "    ")
    names: dict[str, Any] = {
        "redis": redis, "secret": b"s" * 32, "pepper": b"p" * 32, "Rules": Rules,
        "client_secret": SECRET,
    }  # fmt: skip
    exec(compile(f"async def example():\n{source}", "docs/auth.md", "exec"), names)  # noqa: S102
    start, callback, sessions = await names["example"]()
    idp.know({"ada": ADA})
    async with contextlib.aclosing(Browser(None, "https://shop.example")) as browser:
        status, headers = await start(())
        sent = httpx.Response(status, headers={"location": headers["location"]})
        back = await browser.at_provider("ada", sent)
        kept = (headers["set-cookie"].split(";")[0],)
        status, headers = await callback(_query(back), kept)
        assert (status, headers["location"]) == (303, "/orders")
        identity = headers["set-cookie"].split(";")[0].split("=", 1)[1]
        assert (await sessions.resume(identity)).subject == f"{idp.issuer}#ada"
        with pytest.raises(OidcSignInError):
            await callback(_query(back), kept)


def _query(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


def _changed(url: str, **changes: str) -> str:
    parts = urlsplit(url)
    query = {**_query(url), **changes}
    return parts._replace(query=urlencode({k: v for k, v in query.items() if v})).geturl()
