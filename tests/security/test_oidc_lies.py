"""A provider that lies: each thing that an answer can have wrong, one at a time.

The real provider of ``test_oidc`` cannot be made to send these; this one signs whatever it is told.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
import uvicorn
from jwt import PyJWS
from starlette.applications import Starlette
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from engineroom.auth.errors import OidcProviderError, OidcSignInError
from engineroom.auth.oidc.flow import Oidc, OidcCallback, OidcClient, SignedIn
from engineroom.auth.outbound import Outbound, Rules
from engineroom.auth.tokens.issuers import KeyCacheTimes
from engineroom.auth.tokens.signing_keys import Algorithm, SigningKey
from engineroom.core.clock import FakeClock, SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis.asyncio import Redis
    from starlette.requests import Request

KEY = SigningKey.generate(Algorithm.ES256, SystemClock().now())
OTHER = SigningKey.generate(Algorithm.ES256, SystemClock().now())
RSA = SigningKey.generate(Algorithm.RS256, SystemClock().now())


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(claims: dict[str, Any], key: SigningKey = KEY, **header: Any) -> str:
    return PyJWS().encode(
        json.dumps(claims).encode(),
        key.private,
        algorithm=key.algorithm.value,
        headers={"kid": key.kid, **header},
    )


def forged(claims: dict[str, Any], header: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    message = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
    return f"{message}.{b64(sign(message.encode()))}"


@dataclass
class Liar:
    """What it answers; ``asked`` are the forms that came to its token endpoint."""

    issuer: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    token: Callable[[], Response] = lambda: JSONResponse({})
    userinfo: dict[str, Any] = field(default_factory=dict)
    keys: list[SigningKey] = field(default_factory=lambda: [KEY, RSA])
    asked: list[tuple[dict[str, str], str]] = field(default_factory=list)

    def app(self) -> Starlette:
        async def discovery(request: Request) -> Response:
            del request
            return JSONResponse(
                {
                    "issuer": self.issuer,
                    "authorization_endpoint": f"{self.issuer}/auth",
                    "token_endpoint": f"{self.issuer}/token",
                    "userinfo_endpoint": f"{self.issuer}/me",
                    "jwks_uri": f"{self.issuer}/jwks",
                    "id_token_signing_alg_values_supported": ["ES256", "RS256", "HS256", "none"],
                    **self.metadata,
                }
            )

        async def jwks(request: Request) -> Response:
            del request
            return JSONResponse({"keys": [key.verifying.jwk() for key in self.keys]})

        async def token(request: Request) -> Response:
            body = parse_qs((await request.body()).decode())
            said = {name: values[0] for name, values in body.items()}
            self.asked.append((said, request.headers.get("authorization", "")))
            return self.token()

        async def me(request: Request) -> Response:
            assert request.headers["authorization"] == "Bearer access"
            return JSONResponse(self.userinfo)

        return Starlette(
            routes=[
                Route("/.well-known/openid-configuration", discovery),
                Route("/jwks", jwks),
                Route("/me", me),
                Route("/token", token, methods=["POST"]),
            ]
        )


@pytest.fixture(scope="module")
def running() -> Iterator[Liar]:
    made = Liar()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        made.issuer = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(made.app(), log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        # The kernel takes connections already; what comes before the server is up waits.
        yield made
        server.should_exit = True
        thread.join()


@pytest.fixture
def liar(running: Liar) -> Liar:
    """It, with all that the last test told it forgotten."""
    vars(running).update(vars(Liar(issuer=running.issuer)))
    return running


def client(liar: Liar, **changes: Any) -> OidcClient:
    return OidcClient(
        **{
            "issuer": liar.issuer,
            "client_id": "us",
            "client_secret": "a+b c",
            "redirect_url": "https://api.test/callback",
            "insecure_loopback": True,
            **changes,
        }
    )


def connected(liar: Liar, redis: Redis, clock: Any = None, **changes: Any) -> Oidc:
    rules = Rules.of(allow=["127.0.0.0/8"], schemes=["http"])
    return Oidc(
        client(liar, **changes),
        Outbound(rules, timeout=2.0),
        redis,
        clock or SystemClock(),
        caching=KeyCacheTimes(unknown_pause=0.0),
    )


def good(liar: Liar, nonce: str, /, **changes: Any) -> dict[str, Any]:
    now = time.time()
    claims = {
        "iss": liar.issuer, "aud": "us", "sub": "ada", "nonce": nonce,
        "iat": int(now), "exp": int(now) + 60, **changes,
    }  # fmt: skip
    return {name: value for name, value in claims.items() if value is not None}


async def sign_in(
    liar: Liar,
    oidc: Oidc,
    make: Callable[[dict[str, Any]], str] = signed,
    claims: dict[str, Any] | None = None,
    **answer: Any,
) -> SignedIn:
    started = await oidc.start("/")
    asked = {k: v[0] for k, v in parse_qs(urlsplit(started.url).query).items()}
    token = make(good(liar, asked["nonce"], **(claims or {})))
    said = {"id_token": token, "access_token": "access", "token_type": "Bearer", **answer}
    liar.token = lambda: JSONResponse(said)
    browser = started.cookie.split("=", 1)[1].split(";")[0]
    return await oidc.complete(OidcCallback(state=asked["state"], code="code"), browser)


async def reason(
    liar: Liar, redis: Redis, make: Callable[[dict[str, Any]], str] = signed, **claims: Any
) -> str:
    with pytest.raises(OidcSignInError) as raised:
        await sign_in(liar, connected(liar, redis), make, claims)
    return raised.value.reason


async def test_the_truth_is_believed(liar: Liar, redis: Redis) -> None:
    """What every other test here changes one thing of."""
    found = await sign_in(liar, connected(liar, redis))
    assert found.identity.subject == f"{liar.issuer}#ada"
    (form, authorization), *_ = liar.asked
    assert form["redirect_uri"] == "https://api.test/callback"
    assert len(form["code_verifier"]) == 43
    # RFC 6749 2.3.1: form-encoded, then joined.
    assert base64.b64decode(authorization.removeprefix("Basic ")) == b"us:a%2Bb%20c"
    assert "client_secret" not in form


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"iss": "https://evil.example"}, "issuer"),
        ({"iss": None}, "issuer"),
        ({"aud": "them"}, "audience"),
        ({"aud": ["them"]}, "audience"),
        ({"aud": None}, "audience"),
        ({"aud": ["us", "them"]}, "authorized_party"),
        ({"aud": ["us", "them"], "azp": "them"}, "authorized_party"),
        ({"azp": "them"}, "authorized_party"),
        ({"nonce": "another"}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"nonce": ["x"]}, "nonce"),
        ({"exp": 1}, "expired"),
        ({"exp": None}, "time"),
        ({"iat": None}, "time"),
        ({"iat": int(time.time()) + 7200}, "issued_later"),
        ({"iat": int(time.time()) - 7200}, "issued_before"),
        ({"nbf": int(time.time()) + 7200}, "not_before"),
        ({"sub": None}, "subject"),
        ({"sub": ""}, "subject"),
        ({"sub": 7}, "subject"),
        ({"sub": "a\u0000b"}, "subject"),
        ({"sub": "x" * 255}, "subject"),
        ({"at_hash": "wrong"}, "at_hash"),
        ({"at_hash": 7}, "at_hash"),
    ],
)
async def test_claims_that_are_not_of_this_sign_in(
    liar: Liar, redis: Redis, claims: dict[str, Any], why: str
) -> None:
    assert await reason(liar, redis, **claims) == why


async def test_the_access_token_is_the_one_that_was_meant(liar: Liar, redis: Redis) -> None:
    half = b64(hashlib.sha256(b"access").digest()[:16])
    found = await sign_in(liar, connected(liar, redis), claims={"at_hash": half})
    assert found.identity.person == "ada"
    with pytest.raises(OidcSignInError):
        await sign_in(liar, connected(liar, redis), signed, {"at_hash": half}, access_token="other")


async def test_algorithms_are_pinned(liar: Liar, redis: Redis) -> None:
    """RFC 8725 2.1: none, the public key as a secret, and an algorithm that is not its key's."""
    public = KEY.private.public_key()
    from cryptography.hazmat.primitives import serialization as form

    pem = public.public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)

    def unsigned(claims: dict[str, Any]) -> str:
        return forged(claims, {"alg": "none", "kid": KEY.kid}, lambda _: b"")

    def symmetric(claims: dict[str, Any]) -> str:
        header = {"alg": "HS256", "kid": KEY.kid}
        return forged(claims, header, lambda m: hmac.new(pem, m, hashlib.sha256).digest())

    def mislabelled(claims: dict[str, Any]) -> str:
        return signed(claims, RSA, kid=KEY.kid)

    for make in (unsigned, symmetric, mislabelled):
        assert await reason(liar, redis, make) == "algorithm"
    assert await reason(liar, redis, lambda c: signed(c, OTHER)) == "unknown_key"
    assert await reason(liar, redis, lambda c: signed(c, OTHER, kid=KEY.kid)) == "signature"
    for header in ({"jku": "http://evil.example"}, {"jwk": OTHER.verifying.jwk()}):
        assert await reason(liar, redis, lambda c, h=header: signed(c, OTHER, **h)) == "unknown_key"


async def test_an_algorithm_that_is_not_allowed_here_is_refused(liar: Liar, redis: Redis) -> None:
    only = connected(liar, redis, algorithms=frozenset({Algorithm.RS256}))
    with pytest.raises(OidcSignInError) as raised:
        await sign_in(liar, only)
    assert raised.value.reason == "unknown_key"
    await sign_in(liar, only, lambda claims: signed(claims, RSA))


async def test_an_access_token_is_no_id_token(liar: Liar, redis: Redis) -> None:
    for kind in ("at+jwt", "logout+jwt", "application/at+jwt"):
        assert await reason(liar, redis, lambda c, k=kind: signed(c, typ=k)) == "type"


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({"issuer": "https://evil.example"}, "another issuer"),
        ({"issuer": None}, "another issuer"),
        ({"token_endpoint": "http://evil.example/token"}, "token_endpoint"),
        ({"authorization_endpoint": "javascript:alert(1)"}, "authorization_endpoint"),
        ({"authorization_endpoint": None}, "authorization_endpoint"),
        ({"jwks_uri": ["x"]}, "jwks_uri"),
        ({"end_session_endpoint": "ftp://x"}, "end_session_endpoint"),
        ({"id_token_signing_alg_values_supported": ["HS256", "none"]}, "algorithm"),
        ({"code_challenge_methods_supported": ["plain"]}, "PKCE"),
    ],
)
async def test_a_description_that_cannot_be_right(
    liar: Liar, redis: Redis, metadata: dict[str, Any], told: str
) -> None:
    liar.metadata = metadata
    with pytest.raises(OidcProviderError, match=told):
        await connected(liar, redis).start("/")


def _html() -> Response:
    return Response("<html>", 200)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (_html, OidcProviderError),
        (lambda: JSONResponse([]), OidcProviderError),
        (lambda: JSONResponse({}), OidcProviderError),
        (lambda: JSONResponse({"id_token": 7}), OidcProviderError),
        (lambda: JSONResponse({"id_token": "x"}), OidcSignInError),
        (lambda: JSONResponse({"error": "invalid_client"}, 401), OidcProviderError),
        (lambda: JSONResponse({"error": "invalid_grant"}, 400), OidcSignInError),
        (lambda: JSONResponse({"error": "x\r\n"}, 400), OidcProviderError),
        (lambda: Response("down", 502), OidcProviderError),
        (lambda: RedirectResponse("http://169.254.169.254/"), OidcProviderError),
        (lambda: Response("[" * 100_000, 200), OidcProviderError),
        (lambda: Response(b"x" * 2_000_000, 200), OidcProviderError),
    ],
)
async def test_an_answer_that_is_none(
    liar: Liar, redis: Redis, answer: Callable[[], Response], kind: type[Exception]
) -> None:
    oidc = connected(liar, redis)
    started = await oidc.start("/")
    liar.token = answer
    state = parse_qs(urlsplit(started.url).query)["state"][0]
    browser = started.cookie.split("=", 1)[1].split(";")[0]
    with pytest.raises(kind):
        await oidc.complete(OidcCallback(state=state, code="code"), browser)


async def test_claims_of_somebody_else_are_not_mixed_in(liar: Liar, redis: Redis) -> None:
    oidc = connected(liar, redis, userinfo=True)
    liar.userinfo = {"sub": "ada", "groups": ["ops"], "iss": "x", "email": "a@b.c"}
    found = await sign_in(liar, oidc)
    assert (found.identity.groups, found.identity.issuer) == (("ops",), liar.issuer)
    assert found.identity.email == ""
    liar.userinfo = {"sub": "eve", "groups": ["board"]}
    with pytest.raises(OidcSignInError) as raised:
        await sign_in(liar, oidc)
    assert raised.value.reason == "userinfo"


async def test_groups_are_what_the_named_claim_holds(liar: Liar, redis: Redis) -> None:
    for name, claims, groups in (
        ("groups", {"groups": ["a", 7, "", "a", "b" * 300, None]}, ("a",)),
        ("groups", {"groups": {"a": 1}}, ()),
        ("roles", {"groups": ["a"]}, ()),
        ("realm_access.roles", {"realm_access": {"roles": ["a"]}}, ("a",)),
        ("https://x.example/groups", {"https://x.example/groups": "a"}, ("a",)),
        ("groups", {"groups": [f"g{n}" for n in range(200)]}, tuple(f"g{n}" for n in range(200))),
    ):
        found = await sign_in(liar, connected(liar, redis, groups=name), claims=claims)
        assert found.identity.groups == groups


async def test_a_sign_in_that_takes_too_long_is_none(liar: Liar, redis: Redis) -> None:
    clock = FakeClock(SystemClock().now())
    oidc = connected(liar, redis, clock)
    started = await oidc.start("/")
    state = parse_qs(urlsplit(started.url).query)["state"][0]
    browser = started.cookie.split("=", 1)[1].split(";")[0]
    (key,) = await redis.keys("engineroom:auth:oidc:*")
    assert 0 < await redis.ttl(key) <= 600
    clock.advance(601)
    with pytest.raises(OidcSignInError) as raised:
        await oidc.complete(OidcCallback(state=state, code="code"), browser)
    assert raised.value.reason == "state"
    # Under other settings it ends as well.
    started = await oidc.start("/")
    state = parse_qs(urlsplit(started.url).query)["state"][0]
    other = connected(liar, redis, clock, redirect_url="https://api.test/other")
    with pytest.raises(OidcSignInError) as raised:
        await other.complete(
            OidcCallback(state=state, code="code"), started.cookie.split("=", 1)[1].split(";")[0]
        )
    assert raised.value.reason == "state"


async def test_a_description_serves_for_a_while_when_the_provider_is_away(
    liar: Liar, redis: Redis
) -> None:
    clock = FakeClock(SystemClock().now())
    oidc = connected(liar, redis, clock)
    await oidc.start("/")
    liar.metadata = {"issuer": "https://evil.example"}
    clock.advance(3_599)
    await oidc.start("/")
    clock.advance(2)
    with pytest.raises(OidcProviderError, match="another issuer"):
        await oidc.start("/")
    liar.metadata = {}
    await oidc.start("/")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"issuer": "http://idp.example"}, "issuer"),
        ({"issuer": "https://u:p@idp.example"}, "issuer"),
        ({"issuer": "https://idp.example?x=1"}, "issuer"),
        ({"redirect_url": "http://api.example/x"}, "redirect_url"),
        ({"client_id": ""}, "client_id"),
        ({"client_secret": ""}, "client_secret"),
        ({"authentication": "none"}, "client_secret"),
        ({"scopes": ("profile",)}, "scopes"),
        ({"scopes": ("openid", "a b")}, "scopes"),
        ({"algorithms": frozenset()}, "algorithms"),
    ],
)
def test_settings_that_cannot_be_right(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}: "):
        client(Liar("https://idp.example"), insecure_loopback=False, **changes)


async def test_redis_that_does_not_answer_lets_nobody_in(liar: Liar) -> None:
    from redis.asyncio import Redis as Connected
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    from engineroom.auth.errors import AuthStoreError

    away = Connected(port=1, retry=Retry(NoBackoff(), 0))
    with pytest.raises(AuthStoreError):
        await connected(liar, away).start("/")
    with pytest.raises(AuthStoreError):
        await connected(liar, away).complete(OidcCallback(state="x" * 43, code="c"), "x" * 43)
    with contextlib.suppress(Exception):
        await away.aclose()
