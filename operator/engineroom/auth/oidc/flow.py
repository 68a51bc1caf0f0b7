"""Signing in at an OIDC provider: the authorization code flow with PKCE, for a browser.

OpenID Connect Core 1.0, Discovery 1.0 and RP-Initiated Logout 1.0, after the best practices of
RFC 9700: the state is kept here, good once and bound to the browser that began; PKCE is S256 and
nothing less; the issuer is pinned (RFC 9207); the redirect URI is the one of the settings.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlencode, urlsplit

from engineroom.auth.errors import (
    KeyStoreError,
    OidcProviderError,
    OidcSignInError,
    OutboundError,
    OutboundRefusedError,
    TokenError,
)
from engineroom.auth.oidc.id_token import Expected, Identity, check_id_token, identity_of
from engineroom.auth.tokens.access_tokens import read_header
from engineroom.auth.tokens.issuers import Caching, ExternalIssuer
from engineroom.auth.tokens.signing_keys import Algorithm
from engineroom.redis.errors import asking, text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

    from engineroom.auth.outbound import Outbound, Response
    from engineroom.core.clock import Clock

#: Binds a sign-in to the browser that began it; the prefix keeps others from planting one.
FLOW_COOKIE = "__Host-engineroom-sign-in"
#: Seconds that somebody has for the provider's pages.
FLOW_LIFE = 600
MAX_CODE = 4_096
MAX_RETURN = 1_024

_RANDOM = re.compile(r"[A-Za-z0-9_-]{43}")
#: RFC 6749 A.7 lets an error be longer; those that are defined have this form.
_ERROR = re.compile(r"[a-z_]{1,64}")
#: Of the form that a provider can say and a log can take.
_SCOPE = re.compile(r"[!#-\[\]-~]+")
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

Authentication = Literal["client_secret_basic", "client_secret_post", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """What we are to the provider. Raises ValueError for what cannot be right.

    ``authentication`` is how the code is exchanged; ``none`` is a public client, which PKCE alone
    protects. ``groups`` names the claim with the groups; a path by dots where there is no claim of
    the whole name. ``userinfo``: whether to ask there too, for providers that keep the ID token
    small. ``insecure_loopback`` allows http to this machine, for tests.
    """

    issuer: str
    client_id: str
    redirect_url: str
    client_secret: str = field(default="", repr=False)
    authentication: Authentication = "client_secret_basic"
    scopes: tuple[str, ...] = ("openid", "profile", "email")
    groups: str = "groups"
    userinfo: bool = False
    algorithms: frozenset[Algorithm] = frozenset(Algorithm)
    leeway: float = 30.0
    insecure_loopback: bool = False

    def __post_init__(self) -> None:
        for name, url in (("issuer", self.issuer), ("redirect_url", self.redirect_url)):
            if not secure(url, loopback=self.insecure_loopback) or "#" in url:
                raise ValueError(f"{name}: is no https URL without a fragment; write https://...")
        if "?" in self.issuer:
            raise ValueError("issuer: has a query; write it as the provider's discovery says it")
        if not 0 < len(self.client_id) <= 255:
            raise ValueError("client_id: is missing; the provider gave one with the registration")
        if (self.authentication == "none") is bool(self.client_secret):
            raise ValueError(
                f"client_secret: does not go with {self.authentication}; a public client has none "
                "and every other one has"
            )
        if "openid" not in self.scopes or not all(map(_SCOPE.fullmatch, self.scopes)):
            raise ValueError("scopes: must have openid, each a word without spaces")
        if not self.algorithms:
            raise ValueError("algorithms: none is left; write RS256, ES256 or EdDSA")


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the provider says of itself, as far as it is used."""

    authorization: str
    token: str
    jwks: str
    algorithms: frozenset[Algorithm]
    userinfo: str = ""
    logout: str = ""
    #: It puts ``iss`` into every answer, so one without is not from it (RFC 9207).
    names_itself: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """Where the browser goes, and the value of Set-Cookie that it gets before."""

    url: str
    cookie: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Callback:
    """What the provider sent the browser back with; "" is absent."""

    state: str = ""
    code: str = field(default="", repr=False)
    issuer: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Who signed in, and where to go on. ``id_token`` is for the logout at the provider."""

    identity: Identity
    return_to: str
    id_token: str = field(repr=False)


#: The value of Set-Cookie that makes a browser forget a sign-in that is over.
FORGET_FLOW = f"{FLOW_COOKIE}=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0"


def secure(url: str, *, loopback: bool = False) -> bool:
    """Whether it is https, or http to this machine where that is allowed."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    if not host or "@" in parts.netloc or not url.isascii() or any(c <= " " for c in url):
        return False
    return parts.scheme == "https" or (loopback and parts.scheme == "http" and host in _LOOPBACK)


def local_path(path: str) -> str:
    """The path, if a browser stays on this site by it, else ""."""
    plain = path.isascii() and path.isprintable() and " " not in path and "\\" not in path
    if not plain or not path.startswith("/") or path.startswith("//") or len(path) > MAX_RETURN:
        return ""
    return path


def challenge(verifier: str) -> str:
    """S256 of RFC 7636."""
    return _unpadded(hashlib.sha256(verifier.encode()).digest())


def flow_of(cookies: tuple[str, ...]) -> str:
    """The value of our cookie among the headers ``Cookie``, or "" when it is not there once."""
    pairs = (pair.strip().partition("=") for header in cookies for pair in header.split(";"))
    found = [value for name, _, value in pairs if name == FLOW_COOKIE]
    return found[0] if len(found) == 1 and _RANDOM.fullmatch(found[0]) else ""


def read_metadata(document: bytes, client: Client) -> Metadata:
    """A discovery document (OpenID Connect Discovery 1.0, 3). Raises OidcProviderError."""
    said = _object(document, "discovery")
    if said.get("issuer") != client.issuer:
        raise OidcProviderError(
            "provider: its discovery names another issuer than the settings; write the issuer "
            "exactly as the provider does"
        )

    def endpoint(name: str, *, needed: bool = True) -> str:
        url = said.get(name, "")
        if not url and not needed:
            return ""
        if not isinstance(url, str) or not secure(url, loopback=client.insecure_loopback):
            raise OidcProviderError(f"provider: its {name} is no https URL")
        return url

    algorithms = client.algorithms & _known(said.get("id_token_signing_alg_values_supported"))
    if not algorithms:
        raise OidcProviderError(
            "provider: signs ID tokens by no algorithm that is allowed here; allow RS256, ES256 "
            "or EdDSA there"
        )
    # The field may be missing although the provider can; where it is there it has to say so.
    methods = said.get("code_challenge_methods_supported", ["S256"])
    if not isinstance(methods, list) or "S256" not in methods:
        raise OidcProviderError("provider: has no PKCE by S256; turn it on there")
    return Metadata(
        authorization=endpoint("authorization_endpoint"),
        token=endpoint("token_endpoint"),
        jwks=endpoint("jwks_uri"),
        algorithms=algorithms,
        userinfo=endpoint("userinfo_endpoint", needed=client.userinfo),
        logout=endpoint("end_session_endpoint", needed=False),
        names_itself=said.get("authorization_response_iss_parameter_supported") is True,
    )


def _known(algorithms: Any) -> frozenset[Algorithm]:
    # RS256 is what every provider must have (Discovery 3), so it is meant where nothing is said.
    named = algorithms if isinstance(algorithms, list) else ["RS256"]
    return frozenset(each for each in Algorithm if each.value in named)


@dataclass(slots=True)
class _Discovered:
    metadata: Metadata | None = None
    loaded: float = float("-inf")
    tried: float = float("-inf")
    #: What the last look failed with.
    failure: str = "provider: its description cannot be had"
    keys: ExternalIssuer | None = None


class Oidc:
    """One provider. ``outbound`` must be allowed to reach it."""

    def __init__(
        self,
        client: Client,
        outbound: Outbound,
        redis: Redis,
        clock: Clock,
        *,
        caching: Caching | None = None,
        name: str = "engineroom:auth:oidc",
    ) -> None:
        """``caching`` is of the provider's description and of its keys."""
        self.client = client
        self._outbound = outbound
        self._redis = redis
        self._clock = clock
        self._caching = caching or Caching()
        self._name = name
        self._discovered = _Discovered()
        self._lock = asyncio.Lock()

    async def start(self, return_to: str, browser: str = "") -> Started:
        """Begin a sign-in that ends at the local path ``return_to``.

        ``browser`` is what ``flow_of`` found: a browser's tabs share it, or the last one begun
        would end the others. Raises OidcSignInError, OidcProviderError and AuthStoreError.
        """
        if not local_path(return_to):
            raise OidcSignInError("return", "returnTo: leads elsewhere; write a path of this site")
        metadata = await self.metadata()
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        browser = browser if _RANDOM.fullmatch(browser) else secrets.token_urlsafe(32)
        flow = {
            "browser": _hash(browser),
            "nonce": nonce,
            "verifier": verifier,
            "return": return_to,
            "started": self._now(),
            # A sign-in that began under other settings ends under none.
            "client": self._fingerprint(),
        }
        with asking():
            await self._redis.set(self._key(state), json.dumps(flow), ex=FLOW_LIFE)
        asked = {
            "response_type": "code",
            "client_id": self.client.client_id,
            "redirect_uri": self.client.redirect_url,
            "scope": " ".join(self.client.scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge(verifier),
            "code_challenge_method": "S256",
        }
        cookie = (
            f"{FLOW_COOKIE}={browser}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={FLOW_LIFE}"
        )
        return Started(_with(metadata.authorization, asked), cookie)

    async def complete(self, callback: Callback, browser: str) -> SignedIn:
        """Who signed in, by what the provider sent the browser back with.

        The state is used up, whatever comes of it. Raises OidcSignInError when this is no sign-in
        of that browser or the provider says no; OidcProviderError when the provider cannot be
        asked or does not answer as it has to; AuthStoreError.
        """
        flow = await self._take(callback.state)
        if not browser or not hmac.compare_digest(_hash(browser), flow["browser"]):
            raise OidcSignInError(
                "browser", "sign-in: was begun in another browser; begin again in this one"
            )
        metadata = await self.metadata()
        if callback.issuer != self.client.issuer and (callback.issuer or metadata.names_itself):
            raise OidcSignInError("mix_up", "sign-in: the answer is of another provider")
        if callback.error:
            named = callback.error if _ERROR.fullmatch(callback.error) else "an error"
            raise OidcSignInError("refused", f"sign-in: the provider answers {named}; try again")
        if not 0 < len(callback.code) <= MAX_CODE:
            raise OidcSignInError("no_code", "sign-in: the answer holds no code; try again")
        answer = await self._exchange(metadata, callback.code, flow["verifier"])
        id_token, access = answer.get("id_token"), answer.get("access_token", "")
        if not isinstance(id_token, str) or not isinstance(access, str):
            raise OidcProviderError("provider: its answer to the code holds no ID token")
        expected = Expected(
            client_id=self.client.client_id,
            nonce=flow["nonce"],
            began=flow["started"],
            leeway=self.client.leeway,
            access_token=access,
        )
        claims = await self._verified(metadata, id_token, expected)
        if self.client.userinfo:
            claims = await self._with_userinfo(metadata, claims, access)
        identity = identity_of(claims, self.client.issuer, self.client.groups)
        return SignedIn(identity, flow["return"], id_token)

    async def logout_url(self, id_token: str, return_url: str = "") -> str:
        """Where a browser goes to sign out at the provider too, or "" where it has no such page.

        ``return_url`` is registered there, or left out. Raises OidcProviderError.
        """
        metadata = await self.metadata()
        if not metadata.logout:
            return ""
        asked = {"client_id": self.client.client_id}
        if id_token:
            asked["id_token_hint"] = id_token
        if return_url:
            asked["post_logout_redirect_uri"] = return_url
        return _with(metadata.logout, asked)

    async def metadata(self) -> Metadata:
        """The provider's description, young enough. Raises OidcProviderError."""
        # Somebody is looking already: what is known serves until he is back.
        if not (self._lock.locked() and self._usable()):
            async with self._lock:
                if not self._settled():
                    await self._discover()
        found = self._discovered.metadata
        if found is None or not self._usable():
            raise OidcProviderError(self._discovered.failure)
        return found

    def _usable(self) -> bool:
        return self._clock.monotonic() - self._discovered.loaded < self._caching.max_stale

    def _settled(self) -> bool:
        now, known = self._clock.monotonic(), self._discovered
        return (
            now - known.loaded < self._caching.fresh
            or now - known.tried < self._caching.unknown_pause
        )

    async def _discover(self) -> None:
        """Look for the description. What fails is told once what is known is too old."""
        known, now = self._discovered, self._clock.monotonic()
        known.tried = now
        url = self.client.issuer.rstrip("/") + "/.well-known/openid-configuration"
        try:
            found = read_metadata(await self._description(url), self.client)
        except OidcProviderError as error:
            known.failure = str(error)
            return
        before = known.metadata
        if before is None or (before.jwks, before.algorithms) != (found.jwks, found.algorithms):
            known.keys = None
        known.metadata, known.loaded = found, now

    async def _description(self, url: str) -> bytes:
        response = await self._fetch(url)
        if response.status != 200:
            raise OidcProviderError(
                f"provider: answers {response.status} for its description; check the issuer"
            )
        return response.body

    async def _take(self, state: str) -> dict[str, Any]:
        """The sign-in that a state stands for; it is used up by that."""
        unknown = OidcSignInError(
            "state", "sign-in: is not under way, or took too long, or is done; begin again"
        )
        if not _RANDOM.fullmatch(state):
            raise unknown
        key = self._key(state)
        with asking():
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.get(key)
                pipeline.delete(key)
                found, _ = await pipeline.execute()
        if found is None:
            raise unknown
        flow: dict[str, Any] = json.loads(text(found))
        if self._now() >= flow["started"] + FLOW_LIFE or flow["client"] != self._fingerprint():
            raise unknown
        return flow

    async def _exchange(self, metadata: Metadata, code: str, verifier: str) -> dict[str, Any]:
        """The token endpoint's answer (RFC 6749, 4.1.3)."""
        client = self.client
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": client.redirect_url,
            "code_verifier": verifier,
        }
        headers = {
            "content-type": "application/x-www-form-urlencoded",
            "accept": "application/json",
        }
        if client.authentication == "client_secret_basic":
            # RFC 6749 2.3.1: each half form-encoded before they are joined.
            pair = f"{quote(client.client_id, safe='')}:{quote(client.client_secret, safe='')}"
            headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        else:
            form["client_id"] = client.client_id
            if client.authentication == "client_secret_post":
                form["client_secret"] = client.client_secret
        response = await self._fetch(
            metadata.token, method="POST", headers=headers, body=urlencode(form).encode()
        )
        if response.status == 200:
            return _object(response.body, "answer to the code")
        error = ""
        if response.status in {400, 401}:
            said = _object(response.body, "answer to the code").get("error")
            error = said if isinstance(said, str) and _ERROR.fullmatch(said) else ""
        if error == "invalid_grant":
            raise OidcSignInError(
                "code", "sign-in: the provider does not take the code; begin again"
            )
        told = f" and {error}" if error else ""
        raise OidcProviderError(
            f"provider: answers {response.status}{told} to the code; check client and secret"
        )

    async def _verified(
        self, metadata: Metadata, id_token: str, expected: Expected
    ) -> Mapping[str, Any]:
        known = self._discovered
        if known.keys is None:
            known.keys = ExternalIssuer(
                self._outbound,
                self._clock,
                issuer=self.client.issuer,
                audience=self.client.client_id,
                jwks_url=metadata.jwks,
                algorithms=metadata.algorithms,
                caching=self._caching,
                leeway=self.client.leeway,
            )
        try:
            header = read_header(id_token)
            claims = await known.keys.verify(id_token)
            check_id_token(claims.all, header, expected)
        except TokenError as error:
            raise OidcSignInError(
                error.reason, "sign-in: the provider's ID token is not valid; begin again"
            ) from error
        except (OutboundError, OutboundRefusedError, KeyStoreError) as error:
            raise OidcProviderError("provider: its keys cannot be had") from error
        return claims.all

    async def _with_userinfo(
        self, metadata: Metadata, claims: Mapping[str, Any], access: str
    ) -> Mapping[str, Any]:
        """With what the UserInfo endpoint adds; what the ID token says stays (Core 5.3)."""
        response = await self._fetch(
            metadata.userinfo,
            headers={"authorization": f"Bearer {access}", "accept": "application/json"},
        )
        if response.status != 200:
            raise OidcProviderError(f"provider: answers {response.status} for the user's claims")
        said = _object(response.body, "user's claims")
        # Core 5.3.4: claims of somebody else are refused, not mixed in.
        if said.get("sub") != claims.get("sub"):
            raise OidcSignInError("userinfo", "sign-in: the provider gave somebody else's claims")
        return {**said, **claims}

    async def _fetch(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Response:
        try:
            return await self._outbound.fetch(
                url, method=method, headers=headers or {"accept": "application/json"}, body=body
            )
        except (OutboundError, OutboundRefusedError) as error:
            raise OidcProviderError(f"provider: cannot be asked: {error}") from error

    def _fingerprint(self) -> str:
        client = self.client
        return _hash(f"{client.issuer}\n{client.client_id}\n{client.redirect_url}")

    def _now(self) -> float:
        return self._clock.now().timestamp()

    def _key(self, state: str) -> str:
        return f"{self._name}:flow:{_hash(state)}"


def _object(body: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise OidcProviderError(f"provider: its {what} is no JSON") from error
    if not isinstance(found, dict):
        raise OidcProviderError(f"provider: its {what} is no JSON object")
    return found


def _with(url: str, parameters: Mapping[str, str]) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(parameters)}"


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def _unpadded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
