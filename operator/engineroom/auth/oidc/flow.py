"""Sign-in at an OIDC provider: the authorization code flow with PKCE, for browsers.

It implements OpenID Connect Core 1.0, Discovery 1.0 and RP-Initiated Logout 1.0 with the best
practices of RFC 9700: a single-use state, stored here and bound to the browser; PKCE by S256 only;
a pinned issuer (RFC 9207); a fixed redirect URI.
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
from engineroom.auth.oidc.id_token import ExpectedClaims, OidcIdentity, check_id_token, identity_of
from engineroom.auth.store_errors import store_errors
from engineroom.auth.tokens.access_tokens import read_header
from engineroom.auth.tokens.issuers import ExternalIssuer, KeyCacheTimes
from engineroom.auth.tokens.signing_keys import Algorithm
from engineroom.core import key_prefixes
from engineroom.core.redis_replies import text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

    from engineroom.auth.outbound import Outbound, Response
    from engineroom.core.clock import Clock

#: The cookie that binds a sign-in to its browser; the prefix prevents planting by other hosts.
FLOW_COOKIE = "__Host-engineroom-sign-in"
#: Most seconds between the start and the end of a sign-in.
FLOW_LIFE = 600
MAX_CODE = 4_096
MAX_RETURN = 1_024

_RANDOM = re.compile(r"[A-Za-z0-9_-]{43}")
#: RFC 6749 A.7 permits longer errors; all defined ones have this form.
_ERROR = re.compile(r"[a-z_]{1,64}")
#: RFC 6749 3.3.
_SCOPE = re.compile(r"[!#-\[\]-~]+")
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

Authentication = Literal["client_secret_basic", "client_secret_post", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcClient:
    """The registration of this client at the provider. Raises ValueError for invalid values.

    ``authentication`` is the method at the token endpoint; ``none`` is a public client, protected
    by PKCE alone. ``groups`` is the claim with the groups, or a dotted path. ``userinfo`` also
    reads the UserInfo endpoint, for providers with small ID tokens. ``insecure_loopback`` permits
    http to this machine, for tests.
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
                raise ValueError(f"{name}: must be an https URL without a fragment")
        if "?" in self.issuer:
            raise ValueError(
                "issuer: has a query; write it as in the provider's discovery document"
            )
        if not 0 < len(self.client_id) <= 255:
            raise ValueError("client_id: is missing; the provider gave one with the registration")
        if (self.authentication == "none") is bool(self.client_secret):
            raise ValueError(
                f"client_secret: does not fit {self.authentication}; only a public client has none"
            )
        if "openid" not in self.scopes or not all(map(_SCOPE.fullmatch, self.scopes)):
            raise ValueError("scopes: must have openid, each a word without spaces")
        if not self.algorithms:
            raise ValueError("algorithms: is empty; write RS256, ES256 or EdDSA")


@dataclass(frozen=True, slots=True)
class ProviderMetadata:
    """The used parts of the provider's discovery document."""

    authorization: str
    token: str
    jwks: str
    algorithms: frozenset[Algorithm]
    userinfo: str = ""
    logout: str = ""
    #: Whether every authorization response has ``iss`` (RFC 9207).
    sends_issuer: bool = False


@dataclass(frozen=True, slots=True)
class StartedSignIn:
    """The provider's URL for the browser, and the value of Set-Cookie."""

    url: str
    cookie: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class OidcCallback:
    """The parameters of the provider's redirect back; "" is absent."""

    state: str = ""
    code: str = field(default="", repr=False)
    issuer: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A completed sign-in. ``id_token`` is for the logout at the provider."""

    identity: OidcIdentity
    return_to: str
    id_token: str = field(repr=False)


#: The value of Set-Cookie that deletes the cookie of a sign-in.
FORGET_FLOW = f"{FLOW_COOKIE}=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0"


def secure(url: str, *, loopback: bool = False) -> bool:
    """Return whether a URL is https, or http to this machine if ``loopback`` permits it."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    if not host or "@" in parts.netloc or not url.isascii() or any(c <= " " for c in url):
        return False
    return parts.scheme == "https" or (loopback and parts.scheme == "http" and host in _LOOPBACK)


def local_path(path: str) -> str:
    """Return the path if it leads to this site, else ""."""
    plain = path.isascii() and path.isprintable() and " " not in path and "\\" not in path
    if not plain or not path.startswith("/") or path.startswith("//") or len(path) > MAX_RETURN:
        return ""
    return path


def challenge(verifier: str) -> str:
    """Return the S256 code challenge (RFC 7636)."""
    return _base64url(hashlib.sha256(verifier.encode()).digest())


def flow_of(cookies: tuple[str, ...]) -> str:
    """Return the sign-in cookie in the ``Cookie`` headers, or "" unless there is exactly one."""
    pairs = (pair.strip().partition("=") for header in cookies for pair in header.split(";"))
    values = [value for name, _, value in pairs if name == FLOW_COOKIE]
    return values[0] if len(values) == 1 and _RANDOM.fullmatch(values[0]) else ""


def read_metadata(document: bytes, client: OidcClient) -> ProviderMetadata:
    """Read a discovery document (OpenID Connect Discovery 1.0, 3); raise OidcProviderError."""
    fields = _object(document, "discovery")
    if fields.get("issuer") != client.issuer:
        raise OidcProviderError(
            "provider: its discovery names another issuer than the settings; write the issuer "
            "exactly as the provider does"
        )

    def endpoint(name: str, *, needed: bool = True) -> str:
        url = fields.get(name, "")
        if not url and not needed:
            return ""
        if not isinstance(url, str) or not secure(url, loopback=client.insecure_loopback):
            raise OidcProviderError(f"provider: its {name} is not an https URL")
        return url

    algorithms = client.algorithms & _supported_algorithms(
        fields.get("id_token_signing_alg_values_supported")
    )
    if not algorithms:
        raise OidcProviderError(
            "provider: signs ID tokens by no algorithm that is allowed here; allow RS256, ES256 "
            "or EdDSA at the provider"
        )
    # A provider with S256 may leave the field out, but must list S256 if it has the field.
    methods = fields.get("code_challenge_methods_supported", ["S256"])
    if not isinstance(methods, list) or "S256" not in methods:
        raise OidcProviderError("provider: has no PKCE by S256; turn it on at the provider")
    return ProviderMetadata(
        authorization=endpoint("authorization_endpoint"),
        token=endpoint("token_endpoint"),
        jwks=endpoint("jwks_uri"),
        algorithms=algorithms,
        userinfo=endpoint("userinfo_endpoint", needed=client.userinfo),
        logout=endpoint("end_session_endpoint", needed=False),
        sends_issuer=fields.get("authorization_response_iss_parameter_supported") is True,
    )


def _supported_algorithms(algorithms: Any) -> frozenset[Algorithm]:
    # Every provider must support RS256 (Discovery 3), so it is the default.
    named = algorithms if isinstance(algorithms, list) else ["RS256"]
    return frozenset(algorithm for algorithm in Algorithm if algorithm.value in named)


@dataclass(slots=True)
class _Discovered:
    metadata: ProviderMetadata | None = None
    loaded: float = float("-inf")
    tried: float = float("-inf")
    #: The message of the last failure.
    failure: str = "provider: its discovery document cannot be loaded"
    keys: ExternalIssuer | None = None


class Oidc:
    """A client of one provider. The rules of ``outbound`` must permit the provider."""

    def __init__(
        self,
        client: OidcClient,
        outbound: Outbound,
        redis: Redis,
        clock: Clock,
        *,
        caching: KeyCacheTimes | None = None,
        name: str = key_prefixes.OIDC,
    ) -> None:
        """``caching`` applies to the provider's discovery document and to its keys."""
        self.client = client
        self._outbound = outbound
        self._redis = redis
        self._clock = clock
        self._caching = caching or KeyCacheTimes()
        self._name = name
        self._discovered = _Discovered()
        self._lock = asyncio.Lock()

    async def start(self, return_to: str, browser: str = "") -> StartedSignIn:
        """Start a sign-in that ends at the local path ``return_to``.

        ``browser`` is the result of ``flow_of``. All tabs of a browser share it; otherwise each new
        sign-in would end those of other tabs. Raises OidcSignInError, OidcProviderError and
        AuthStoreError.
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
            # A change of the settings ends the sign-ins that began before.
            "client": self._fingerprint(),
        }
        with store_errors():
            await self._redis.set(self._key(state), json.dumps(flow), ex=FLOW_LIFE)
        parameters = {
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
        return StartedSignIn(_with(metadata.authorization, parameters), cookie)

    async def complete(self, callback: OidcCallback, browser: str) -> SignedIn:
        """Complete a sign-in from the provider's redirect.

        The state is used up in every case. Raises OidcSignInError if the sign-in is not of that
        browser or the provider refuses it; OidcProviderError if the provider does not answer or
        answers incorrectly; AuthStoreError.
        """
        flow = await self._take(callback.state)
        if not browser or not hmac.compare_digest(_hash(browser), flow["browser"]):
            raise OidcSignInError(
                "browser", "sign-in: was started in another browser; start again in this one"
            )
        metadata = await self.metadata()
        if callback.issuer != self.client.issuer and (callback.issuer or metadata.sends_issuer):
            raise OidcSignInError("mix_up", "sign-in: the answer is from another provider")
        if callback.error:
            named = callback.error if _ERROR.fullmatch(callback.error) else "an error"
            raise OidcSignInError("refused", f"sign-in: the provider answers {named}; try again")
        if not 0 < len(callback.code) <= MAX_CODE:
            raise OidcSignInError("no_code", "sign-in: the answer has no code; try again")
        answer = await self._exchange(metadata, callback.code, flow["verifier"])
        id_token, access = answer.get("id_token"), answer.get("access_token", "")
        if not isinstance(id_token, str) or not isinstance(access, str):
            raise OidcProviderError("provider: its answer to the code has no ID token")
        expected = ExpectedClaims(
            client_id=self.client.client_id,
            nonce=flow["nonce"],
            began=flow["started"],
            leeway=self.client.leeway,
            access_token=access,
        )
        claims = await self._verify_id_token(metadata, id_token, expected)
        if self.client.userinfo:
            claims = await self._with_userinfo(metadata, claims, access)
        identity = identity_of(claims, self.client.issuer, self.client.groups)
        return SignedIn(identity, flow["return"], id_token)

    async def logout_url(self, id_token: str, return_url: str = "") -> str:
        """Return the provider's URL for a logout, or "" if it has none.

        ``return_url``, if set, must be registered at the provider. Raises OidcProviderError.
        """
        metadata = await self.metadata()
        if not metadata.logout:
            return ""
        parameters = {"client_id": self.client.client_id}
        if id_token:
            parameters["id_token_hint"] = id_token
        if return_url:
            parameters["post_logout_redirect_uri"] = return_url
        return _with(metadata.logout, parameters)

    async def metadata(self) -> ProviderMetadata:
        """Return the provider's metadata from the cache or anew; raise OidcProviderError."""
        # While another task loads the document, the cached one serves.
        if not (self._lock.locked() and self._usable()):
            async with self._lock:
                if not self._settled():
                    await self._discover()
        metadata = self._discovered.metadata
        if metadata is None or not self._usable():
            raise OidcProviderError(self._discovered.failure)
        return metadata

    def _usable(self) -> bool:
        return self._clock.monotonic() - self._discovered.loaded < self._caching.max_stale

    def _settled(self) -> bool:
        now, cached = self._clock.monotonic(), self._discovered
        return (
            now - cached.loaded < self._caching.fresh
            or now - cached.tried < self._caching.unknown_pause
        )

    async def _discover(self) -> None:
        """Load the discovery document; keep a failure for the time when the cached one expires."""
        cached, now = self._discovered, self._clock.monotonic()
        cached.tried = now
        url = self.client.issuer.rstrip("/") + "/.well-known/openid-configuration"
        try:
            new = read_metadata(await self._document(url), self.client)
        except OidcProviderError as error:
            cached.failure = str(error)
            return
        before = cached.metadata
        if before is None or (before.jwks, before.algorithms) != (new.jwks, new.algorithms):
            cached.keys = None
        cached.metadata, cached.loaded = new, now

    async def _document(self, url: str) -> bytes:
        response = await self._fetch(url)
        if response.status != 200:
            raise OidcProviderError(
                f"provider: answers {response.status} for its discovery document; check the issuer"
            )
        return response.body

    async def _take(self, state: str) -> dict[str, Any]:
        """Return the sign-in of a state and delete it."""
        unknown = OidcSignInError(
            "state", "sign-in: is unknown, took too long, or is complete; start again"
        )
        if not _RANDOM.fullmatch(state):
            raise unknown
        key = self._key(state)
        with store_errors():
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.get(key)
                pipeline.delete(key)
                value, _ = await pipeline.execute()
        if value is None:
            raise unknown
        flow: dict[str, Any] = json.loads(text(value))
        if self._now() >= flow["started"] + FLOW_LIFE or flow["client"] != self._fingerprint():
            raise unknown
        return flow

    async def _exchange(
        self, metadata: ProviderMetadata, code: str, verifier: str
    ) -> dict[str, Any]:
        """Exchange the code at the token endpoint (RFC 6749, 4.1.3); return the response."""
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
            # RFC 6749 2.3.1: both parts are form-encoded before they are joined.
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
            value = _object(response.body, "answer to the code").get("error")
            error = value if isinstance(value, str) and _ERROR.fullmatch(value) else ""
        if error == "invalid_grant":
            raise OidcSignInError("code", "sign-in: the provider refuses the code; start again")
        suffix = f" and {error}" if error else ""
        raise OidcProviderError(
            f"provider: answers {response.status}{suffix} to the code; check client and secret"
        )

    async def _verify_id_token(
        self, metadata: ProviderMetadata, id_token: str, expected: ExpectedClaims
    ) -> Mapping[str, Any]:
        cached = self._discovered
        if cached.keys is None:
            cached.keys = ExternalIssuer(
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
            claims = await cached.keys.verify(id_token)
            check_id_token(claims.all, header, expected)
        except TokenError as error:
            raise OidcSignInError(
                error.reason, "sign-in: the provider's ID token is not valid; start again"
            ) from error
        except (OutboundError, OutboundRefusedError, KeyStoreError) as error:
            raise OidcProviderError("provider: its keys cannot be loaded") from error
        return claims.all

    async def _with_userinfo(
        self, metadata: ProviderMetadata, claims: Mapping[str, Any], access: str
    ) -> Mapping[str, Any]:
        """Add claims of the UserInfo endpoint; those of the ID token take precedence (Core 5.3)."""
        response = await self._fetch(
            metadata.userinfo,
            headers={"authorization": f"Bearer {access}", "accept": "application/json"},
        )
        if response.status != 200:
            raise OidcProviderError(f"provider: answers {response.status} for the user's claims")
        more = _object(response.body, "user's claims")
        # Core 5.3.4: claims of another subject must not be used.
        if more.get("sub") != claims.get("sub"):
            raise OidcSignInError(
                "userinfo", "sign-in: the provider returned another user's claims"
            )
        return {**more, **claims}

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
            raise OidcProviderError(f"provider: the request failed: {error}") from error

    def _fingerprint(self) -> str:
        client = self.client
        return _hash(f"{client.issuer}\n{client.client_id}\n{client.redirect_url}")

    def _now(self) -> float:
        return self._clock.now().timestamp()

    def _key(self, state: str) -> str:
        return f"{self._name}:flow:{_hash(state)}"


def _object(body: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise OidcProviderError(f"provider: its {what} is not JSON") from error
    if not isinstance(value, dict):
        raise OidcProviderError(f"provider: its {what} is not a JSON object")
    return value


def _with(url: str, parameters: Mapping[str, str]) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(parameters)}"


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
