"""Accounts that are declared: who has one comes in, who loses it is out on every replica."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio
from argon2 import PasswordHasher
from pydantic import SecretStr

from engineroom.auth.login.sessions import COOKIE, CSRF_HEADER
from engineroom.auth.oidc.id_token import OidcIdentity
from engineroom.console.accounts.oidc_users import CACHE_SECONDS
from engineroom.console.main import create_application
from engineroom.console.settings import ApiSettings
from engineroom.kube.client.config import ApiConfig
from tests.support import free_port, revocations_read

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from engineroom.console.services import Services
    from tests.support import RedisServer

HASHER = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
ADA = {"name": "ada", "grants": [{"role": "operator", "namespaces": ["shop"]}]}
BOB = {"name": "bob", "grants": [{"role": "admin", "namespaces": ["*"]}]}
RETRIER = {"name": "retrier", "permissions": ["namespace:jobs:retry", "self:identity:read"]}
#: Seconds in which a change of a replica's file has to hold on all: a look, and an answer kept.
SOON = 3.0


class Files:
    """What one replica has mounted."""

    def __init__(self, place: Path) -> None:
        self.document, self.hashes = place / "accounts.json", place / "passwords"
        self.hashes.mkdir(parents=True)
        self.password("ada", "right")
        self.password("bob", "also right")

    def declare(self, *accounts: dict[str, Any], **more: Any) -> None:
        """At once, as the kubelet does it."""
        fresh = self.document.with_suffix(".new")
        fresh.write_text(json.dumps({"accounts": list(accounts), **more}))
        fresh.replace(self.document)

    def password(self, name: str, password: str) -> None:
        self.hashed(name, HASHER.hash(password))

    def hashed(self, name: str, kept: str) -> None:
        fresh = self.hashes / f".{name}"
        fresh.write_text(kept)
        fresh.replace(self.hashes / name)


class Replica:
    """One API process with files of its own."""

    def __init__(self, app: Any, files: Files) -> None:
        self.services: Services = app.state.services
        self.files = files
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        self.http = httpx.AsyncClient(transport=transport, base_url="https://api.test")

    async def sign_in(self, name: str, password: str) -> httpx.Response:
        return await self.ask("POST", "/sessions", json={"name": name, "password": password})

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        self.http.cookies.clear()
        return await self.http.request(method, f"/api/v1{path}", **more)

    async def me(self, headers: dict[str, str]) -> httpx.Response:
        return await self.ask("GET", "/whoami", headers=headers)


@pytest.fixture
def settings(server: RedisServer) -> ApiSettings:
    return ApiSettings(
        redis_url=SecretStr(server.url),
        api_secret=SecretStr("s" * 48),
        admin_password=SecretStr("the first one"),
        requests_per_second=1000,
        kubernetes_identities=False,
    )


@contextlib.asynccontextmanager
async def opened(
    settings: ApiSettings, place: Path, *accounts: dict[str, Any]
) -> AsyncIterator[Replica]:
    files = Files(place)
    files.declare(*(accounts or (ADA, BOB)))
    told = {"accounts_file": files.document, "passwords_directory": files.hashes}
    app = create_application(
        settings.model_copy(update=told), ApiConfig(server=f"http://127.0.0.1:{free_port()}")
    )
    async with app.router.lifespan_context(app):
        replica = Replica(app, files)
        async with contextlib.aclosing(replica.http):
            await revocations_read(replica.services.revocations)
            yield replica


@pytest_asyncio.fixture
async def two(
    settings: ApiSettings, redis: Any, tmp_path: Path
) -> AsyncIterator[tuple[Replica, Replica]]:
    del redis  # empties it
    async with (
        opened(settings, tmp_path / "one") as one,
        opened(settings, tmp_path / "two") as other,
    ):
        yield one, other


def session(answer: httpx.Response) -> dict[str, str]:
    """The headers of who just signed in."""
    assert answer.status_code == 201, answer.text
    cookie = answer.headers["set-cookie"].split(";")[0]
    return {"cookie": cookie, CSRF_HEADER: answer.json()["csrf"]}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def eventually(holds: Callable[[], Any], within: float = SOON) -> float:
    began = time.monotonic()
    while not await holds():
        assert time.monotonic() - began < within, "it does not come to hold"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def everything_of(replica: Replica, name: str, password: str) -> list[dict[str, str]]:
    """A session, a token and a key of somebody."""
    headers = session(await replica.sign_in(name, password))
    tokens = await replica.ask("POST", "/tokens", json={"name": name, "password": password})
    key = await replica.ask("POST", "/keys", json={"name": "k"}, headers=headers)
    assert key.status_code == 201, key.text
    return [headers, bearer(tokens.json()["access"]), bearer(key.json()["secret"])]


async def test_a_declared_account_signs_in_with_its_rights(two: tuple[Replica, Replica]) -> None:
    one, other = two
    headers = session(await one.sign_in("ada", "right"))
    me = (await other.me(headers)).json()
    assert (me["subject"], me["grants"]) == ("user:ada", ADA["grants"])
    for name, password in (("ada", "wrong"), ("eve", "right"), ("bob", "right"), ("admin", "x")):
        assert (await one.sign_in(name, password)).json()["code"] == "credentials_invalid"
    assert (await one.sign_in("admin", "the first one")).status_code == 201


async def test_who_loses_his_account_is_out_on_every_replica_within_a_second(
    two: tuple[Replica, Replica],
) -> None:
    """Also where the file is still the old one: the kubelets come at different times."""
    one, other = two
    held = await everything_of(one, "ada", "right")
    bobs = await everything_of(one, "bob", "also right")
    pair = await one.ask("POST", "/tokens", json={"name": "ada", "password": "right"})
    refresh = {"refresh": pair.json()["refresh"]}
    for headers in (*held, *bobs):
        assert (await other.me(headers)).status_code == 200

    async def seen() -> bool:
        return "ada" not in one.services.accounts.config.accounts

    one.files.declare(BOB)
    await eventually(seen)

    async def out() -> bool:
        answers = [await other.me(headers) for headers in held]
        return all(answer.status_code == 401 for answer in answers)

    # A second on a machine that has time for it; what bounds it is how long an answer is kept.
    assert CACHE_SECONDS <= 0.5
    await eventually(out)
    for replica in two:
        for headers in held:
            assert (await replica.me(headers)).status_code == 401
        for headers in bobs:
            assert (await replica.me(headers)).status_code == 200
        again = await replica.sign_in("ada", "right")
        assert again.json()["code"] == "credentials_invalid"
        answer = await replica.ask("POST", "/tokens/refresh", json=refresh)
        assert answer.status_code == 401
    assert await one.services.sessions.of("user:ada") == []
    assert "ada" in other.services.accounts.config.accounts


async def test_an_account_that_went_while_nothing_ran_is_out_as_well(
    two: tuple[Replica, Replica], settings: ApiSettings, tmp_path: Path
) -> None:
    """No replica saw it go, so nothing was ended: who comes has no account, and that is enough."""
    one, _ = two
    held = await everything_of(one, "ada", "right")
    pair = await one.ask("POST", "/tokens", json={"name": "ada", "password": "right"})
    async with opened(settings, tmp_path / "three", BOB) as late:
        for headers in held:
            assert (await late.me(headers)).json()["code"] == "account_gone"
        body = {"refresh": pair.json()["refresh"]}
        answer = await late.ask("POST", "/tokens/refresh", json=body)
        assert answer.json()["code"] == "account_gone"


async def test_who_gets_his_account_again_comes_in_again(two: tuple[Replica, Replica]) -> None:
    one, _ = two
    key = (await everything_of(one, "ada", "right"))[2]

    async def barred() -> bool:
        return await one.services.accounts.oidc_users.blocked("user:ada")

    async def admitted() -> bool:
        return not await barred()

    one.files.declare(BOB)
    await eventually(barred)
    one.files.declare(ADA, BOB)
    await eventually(admitted)
    for replica in two:
        assert (await replica.sign_in("ada", "right")).status_code == 201
        assert (await replica.me(key)).status_code == 200


async def test_rights_that_are_taken_are_gone_and_those_given_wait_for_a_new_id(
    two: tuple[Replica, Replica],
) -> None:
    one, _ = two
    held = await everything_of(one, "ada", "right")

    def holds(*grants: dict[str, Any]) -> Callable[[], Any]:
        async def look() -> bool:
            found = one.services.accounts.grants("user:ada")
            return [(g.role, sorted(g.namespaces)) for g in found] == [
                (g["role"], g["namespaces"]) for g in grants
            ]

        return look

    less = [{"role": "viewer", "namespaces": ["shop"]}]
    one.files.declare({**ADA, "grants": less}, BOB)
    await eventually(holds(*less))
    for headers in held:
        assert (await one.me(headers)).json()["grants"] == less

    more = [{"role": "admin", "namespaces": ["*"]}]
    one.files.declare({**ADA, "grants": more}, BOB)
    await eventually(holds(*more))
    for headers in held:
        assert (await one.me(headers)).json()["grants"] == ADA["grants"]
    renewed = await one.ask("POST", "/sessions/renew", headers=held[0])
    fresh = session(renewed)
    assert fresh["cookie"] != held[0]["cookie"]
    assert (await one.me(fresh)).json()["grants"] == more
    assert (await one.me(held[0])).json()["code"] == "session_invalid"
    # With a key or a token there is nothing to renew.
    assert (await one.ask("POST", "/sessions/renew", headers=held[1])).status_code == 403


async def test_a_refresh_gives_the_rights_of_now(two: tuple[Replica, Replica]) -> None:
    one, _ = two
    pair = await one.ask("POST", "/tokens", json={"name": "ada", "password": "right"})
    one.files.declare({**ADA, "grants": BOB["grants"]}, BOB)

    async def raised() -> bool:
        return one.services.accounts.grants("user:ada")[0].role == "admin"

    await eventually(raised)
    body = {"refresh": pair.json()["refresh"]}
    fresh = await one.ask("POST", "/tokens/refresh", json=body)
    assert (await one.me(bearer(fresh.json()["access"]))).json()["grants"] == BOB["grants"]


async def test_a_role_is_redefined_without_a_restart(two: tuple[Replica, Replica]) -> None:
    one, _ = two
    grants = [{"role": "retrier", "namespaces": ["shop"]}]
    one.files.declare({**ADA, "grants": grants}, roles=[RETRIER])

    async def known() -> bool:
        return "retrier" in one.services.accounts.policy.roles

    await eventually(known)
    headers = session(await one.sign_in("ada", "right"))
    access = await one.ask("GET", "/access?namespace=shop", headers=headers)
    assert access.json()["permissions"] == sorted(RETRIER["permissions"])
    wider = {**RETRIER, "permissions": [*RETRIER["permissions"], "namespace:jobs:read"]}
    one.files.declare({**ADA, "grants": grants}, roles=[wider])

    async def may_read() -> bool:
        access = await one.ask("GET", "/access?namespace=shop", headers=headers)
        return "namespace:jobs:read" in access.json()["permissions"]

    await eventually(may_read)


async def test_another_password_ends_what_the_old_one_opened(
    two: tuple[Replica, Replica],
) -> None:
    one, other = two
    held = await everything_of(one, "ada", "right")
    one.files.password("ada", "new")

    async def out() -> bool:
        return all([(await other.me(headers)).status_code == 401 for headers in held[:2]])

    await eventually(out)
    headers = session(await one.sign_in("ada", "new"))
    assert (await one.sign_in("ada", "right")).status_code == 401
    # The second replica sees the change later and must not end what was opened since.
    before = other.services.accounts.config.accounts["ada"].hashed
    other.files.hashed("ada", (one.files.hashes / "ada").read_text())

    async def seen() -> bool:
        return other.services.accounts.config.accounts["ada"].hashed != before

    await eventually(seen)
    await asyncio.gather(*(each.services.account_watcher.poll() for each in two))
    assert (await other.me(headers)).status_code == 200
    assert (await other.me(held[2])).status_code == 200


async def test_a_file_that_is_wrong_changes_nothing(
    two: tuple[Replica, Replica], capsys: pytest.CaptureFixture[str]
) -> None:
    one, _ = two
    headers = session(await one.sign_in("ada", "right"))
    one.files.declare({**ADA, "grants": [{"role": "operatr", "namespaces": ["shop"]}]})
    told = ""

    async def said() -> bool:
        nonlocal told
        told += capsys.readouterr().out
        return "did you mean operator?" in told

    await eventually(said)
    assert "accounts[0].grants[0].role" in told
    assert (await one.me(headers)).json()["grants"] == ADA["grants"]
    one.files.document.unlink()
    with pytest.raises(OSError, match="accounts"):
        await one.services.account_watcher.poll()
    assert (await one.me(headers)).status_code == 200


async def test_redis_away_at_the_change_is_made_up_for(
    two: tuple[Replica, Replica], redis: Any
) -> None:
    one, other = two
    held = await everything_of(one, "ada", "right")
    # Writes fail: a replica without memory, or one that is read-only during a failover.
    await redis.config_set("min-replicas-to-write", 1)
    try:
        one.files.declare(BOB)

        async def seen() -> bool:
            return "ada" not in one.services.accounts.config.accounts

        await eventually(seen)
        # Here at once, whatever Redis does.
        assert (await one.me(held[1])).status_code in (401, 503)
    finally:
        await redis.config_set("min-replicas-to-write", 0)

    async def out() -> bool:
        return all([(await other.me(headers)).status_code == 401 for headers in held])

    await eventually(out)


async def test_a_key_has_a_limit_of_its_own(two: tuple[Replica, Replica]) -> None:
    one, _ = two
    headers = session(await one.sign_in("ada", "right"))
    made = await one.ask("POST", "/keys", json={"name": "slow", "rate": 1}, headers=headers)
    slow = bearer(made.json()["secret"])
    assert made.json()["key"]["rate"] == 1
    answers = [await one.me(slow) for _ in range(14)]
    assert [a.status_code for a in answers].count(200) in range(10, 13)
    assert answers[-1].json()["code"] == "limit_reached"
    assert int(answers[-1].headers["retry-after"]) >= 1
    # Its owner, and another key of his, are not held up by it.
    assert (await one.me(headers)).status_code == 200
    rotated = await one.ask(
        "POST", f"/keys/{made.json()['key']['id']}/rotate", json={"overlap": 60}, headers=headers
    )
    assert rotated.json()["key"]["rate"] == 1
    both = (await one.ask("GET", "/keys", headers=headers)).json()["items"]
    assert len([key for key in both if key["revoked"] is None]) == 2
    assert any(key["lastUsed"] for key in both)
    assert (await one.me(bearer(rotated.json()["secret"]))).status_code == 200
    bad = await one.ask("POST", "/keys", json={"name": "x", "rate": 0}, headers=headers)
    assert bad.json()["errors"][0]["field"] == "body.rate"


async def test_sessions_are_listed_and_ended_by_their_owner_and_by_an_administrator(
    two: tuple[Replica, Replica],
) -> None:
    one, other = two
    first = session(await one.sign_in("ada", "right"))
    second = session(await other.sign_in("ada", "right"))
    mine = (await one.ask("GET", "/sessions", headers=first)).json()["items"]
    assert sorted(each["current"] for each in mine) == [False, True]
    (handle,) = [each["handle"] for each in mine if not each["current"]]
    assert (await one.ask("DELETE", f"/sessions/{handle}", headers=first)).status_code == 204
    assert (await other.me(second)).status_code == 401
    bob = session(await one.sign_in("bob", "also right"))
    theirs = await other.ask("GET", "/users/user:ada/sessions", headers=bob)
    (left,) = theirs.json()["items"]
    path = f"/users/user:ada/sessions/{left['handle']}"
    assert (await other.ask("DELETE", path, headers=first)).status_code == 403
    assert (await other.ask("DELETE", path, headers=bob)).status_code == 204
    assert (await one.me(first)).status_code == 401
    listed = (await one.ask("GET", "/users", headers=bob)).json()["items"]
    assert [each["subject"] for each in listed] == ["user:ada", "user:admin", "user:bob"]
    refused = await one.ask("DELETE", "/users/user:ada", headers=bob)
    assert (refused.status_code, refused.json()["code"]) == (409, "account_declared")


async def test_everybody_is_listed_once_page_by_page(two: tuple[Replica, Replica]) -> None:
    one, _ = two
    bob = session(await one.sign_in("bob", "also right"))
    people = [f"p{number}" for number in range(7)]
    for name in people:
        await one.services.accounts.oidc_users.remember(OidcIdentity("https://idp.example", name))
    expected = ["user:admin", "user:ada", "user:bob"]
    expected = sorted(expected, key=lambda s: s.removeprefix("user:"))
    expected += [f"https://idp.example#{name}" for name in reversed(people)]
    for limit in (1, 2, 3, 4, 50):
        found, cursor = [], ""
        while cursor is not None:
            page = await one.ask("GET", f"/users?limit={limit}&cursor={cursor}", headers=bob)
            assert page.status_code == 200, page.text
            assert len(page.json()["items"]) <= limit
            found += [each["subject"] for each in page.json()["items"]]
            cursor = page.json()["nextCursor"]
        assert found == expected
    # Who signs in while somebody turns pages comes twice rather than hiding another.
    page = await one.ask("GET", "/users?limit=5", headers=bob)
    await one.services.accounts.oidc_users.remember(OidcIdentity("https://idp.example", "p5"))
    rest = await one.ask("GET", f"/users?limit=50&cursor={page.json()['nextCursor']}", headers=bob)
    seen = {each["subject"] for each in (*page.json()["items"], *rest.json()["items"])}
    assert seen == set(expected)
    for cursor in ("x", "cGVyc29uOng", "YWNjb3VudA"):
        bad = await one.ask("GET", f"/users?cursor={cursor}", headers=bob)
        assert bad.json()["errors"][0]["field"] == "query.cursor"


async def test_a_browser_whose_session_is_over_signs_in_again(
    two: tuple[Replica, Replica],
) -> None:
    one, _ = two
    over = session(await one.sign_in("ada", "right"))
    await one.services.sessions.end_all("user:ada")
    assert (await one.me(over)).status_code == 401
    again = await one.ask(
        "POST", "/sessions", json={"name": "ada", "password": "right"}, headers=over
    )
    assert (await one.me(session(again))).status_code == 200
    # A session that lives still has to show that a page of ours asks.
    foreign = {"cookie": session(again)["cookie"]}
    body = {"name": "bob", "password": "also right"}
    refused = await one.ask("POST", "/sessions", json=body, headers=foreign)
    assert refused.json()["code"] == "csrf_token_invalid"


async def test_the_id_changes_at_every_sign_in(two: tuple[Replica, Replica]) -> None:
    one, _ = two
    first = session(await one.sign_in("ada", "right"))
    again = await one.ask(
        "POST", "/sessions", json={"name": "ada", "password": "right"}, headers=first
    )
    assert session(again)["cookie"] != first["cookie"]
    assert COOKIE in again.headers["set-cookie"]
    assert (await one.me(first)).json()["code"] == "session_invalid"


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ({"ENGINEROOM_ACCOUNTS_FILE": "wrong.json"}, "accounts[0].name"),
        ({"ENGINEROOM_ACCOUNTS_FILE": "absent.json"}, "absent.json"),
        (
            {"ENGINEROOM_OIDC_ISSUER": "https://idp.x", "ENGINEROOM_OIDC_URL": "https://a.x/path"},
            "ENGINEROOM_OIDC_URL",
        ),
        (
            {"ENGINEROOM_OIDC_ISSUER": "https://idp.x", "ENGINEROOM_OIDC_URL": "https://a.x"},
            "client_id",
        ),
        (
            {
                "ENGINEROOM_OIDC_ISSUER": "https://idp.x",
                "ENGINEROOM_OIDC_URL": "https://a.x",
                "ENGINEROOM_OIDC_ALLOWED_NETWORKS": "10.0.0.1/8",
            },
            "ENGINEROOM_OIDC_ALLOWED_NETWORKS",
        ),
        (
            {
                "ENGINEROOM_OIDC_ISSUER": "https://idp.x",
                "ENGINEROOM_OIDC_URL": "https://a.x",
                "ENGINEROOM_OIDC_CA_FILE": "absent.pem",
            },
            "ENGINEROOM_OIDC_CA_FILE",
        ),
    ],
)
def test_what_is_wrong_at_the_start_is_told_and_not_served(
    told: dict[str, str], problem: str, tmp_path: Path
) -> None:
    (tmp_path / "wrong.json").write_text('{"accounts": [{"name": "Ada"}]}')
    run = subprocess.run(
        [sys.executable, "-m", "engineroom.console.main"],
        cwd=tmp_path,
        env={**os.environ, "ENGINEROOM_API_SECRET": "s" * 48, **told},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.returncode == 2
    assert problem in run.stderr


def test_a_hash_is_made_on_the_command_line() -> None:
    command = [sys.executable, "-m", "engineroom.auth.login.passwords"]
    run = subprocess.run(command, input="right\n", capture_output=True, text=True, check=True)
    assert PasswordHasher().verify(run.stdout.strip(), "right")
    for wrong in ("\n", "", "x" * 2000):
        run = subprocess.run(command, input=wrong, capture_output=True, text=True, check=False)
        assert (run.returncode, run.stdout) == (2, "")
