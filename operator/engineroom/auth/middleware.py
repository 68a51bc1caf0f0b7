"""Who asks, for every request of an ASGI or WSGI application; answers 401 and 403 by RFC 9457.

A request without credentials goes on as nobody: what needs somebody says so with ``require``.
One with credentials that are wrong is refused at once, so that nobody takes himself for signed in.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from engineroom.auth.errors import (
    AccountGoneError,
    ApiKeyError,
    CsrfError,
    OutboundError,
    RefreshReusedError,
    SessionError,
    TokenError,
)
from engineroom.auth.kubernetes import unpacked
from engineroom.auth.login.sessions import COOKIE, CSRF_HEADER, FORGET_COOKIE
from engineroom.auth.permissions import Principal, scope_of
from engineroom.auth.tokens.api_keys import PREFIX
from engineroom.core.error_responses import problem_document
from engineroom.core.errors import AuthenticationError, EngineroomError, LimitError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, MutableMapping

    from engineroom.auth.login.credential_throttle import Attempts
    from engineroom.auth.login.sessions import Session, Sessions
    from engineroom.auth.permissions import Policy
    from engineroom.auth.tokens.access_tokens import Claims, Tokens
    from engineroom.auth.tokens.api_keys import ApiKeys

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Where the principal is, in an ASGI scope and in a WSGI environment; None is nobody.
PRINCIPAL = "engineroom.principal"
#: Where the id of the session is, for who needs its CSRF token; "" without a session.
SESSION = "engineroom.session"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_MAX_HEADER = 16_384

#: Given to every answer that does not say otherwise. No inline script, no other origin, no frame.
SECURITY_HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "strict-transport-security": "max-age=31536000; includeSubDomains",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a request tells who asks: header names in lower case, all values of each."""

    method: str
    headers: Mapping[str, tuple[str, ...]]
    websocket: bool = False
    #: Where the request came from.
    address: str = ""

    def one(self, name: str) -> str:
        """The only value of a header, or "". Raises AuthenticationError when there are several."""
        values = self.headers.get(name, ())
        if len(values) > 1:
            raise AuthenticationError(f"{name}: comes {len(values)} times; send it once")
        if values and len(values[0]) > _MAX_HEADER:
            raise AuthenticationError(f"{name}: is longer than {_MAX_HEADER} bytes")
        return values[0] if values else ""


class Authenticator:
    """Tries what a request shows: a bearer token, an API key, a session's cookie."""

    def __init__(
        self,
        *,
        tokens: Tokens | None = None,
        api_keys: ApiKeys | None = None,
        sessions: Sessions | None = None,
        external: Callable[[str], Awaitable[Principal]] | None = None,
        current: Callable[[Principal], Awaitable[Principal]] | None = None,
        attempts: Attempts | None = None,
    ) -> None:
        """``external`` is asked about a token that is not by our keys, and raises TokenError.

        ``current`` gives whom it is shown the rights that he has now, or raises AuthenticationError
        where he has no account any more; see ``permissions.meet``. ``attempts`` counts what is
        wrong by address; without it nothing is.
        """
        self._tokens = tokens
        self._api_keys = api_keys
        self._sessions = sessions
        self._external = external
        self._current = current
        self._attempts = attempts

    async def authenticate(self, asked: Asked) -> tuple[Principal | None, str]:
        """Who asks, and the id of the session or "". An Authorization header goes before a cookie.

        Raises AuthenticationError and its kinds, CsrfError, LimitError after too many wrong
        credentials, and AuthStoreError or KeyStoreError.
        """
        try:
            found = await self._recognised(asked)
        except AuthenticationError as error:
            if self._attempts is not None:
                await self._attempts.failed(asked.address, error)
            raise
        if isinstance(found, tuple):
            return found
        assert self._external is not None  # noqa: S101 - else nothing is left to others
        if self._attempts is None:
            principal = await self._external(found)
        else:
            principal = await self._attempts.judged(asked.address, found, self._external)
        return await self._now(principal), ""

    async def _recognised(self, asked: Asked) -> tuple[Principal | None, str] | str:
        """The answer, or a token that is for others to judge."""
        header = asked.one("authorization")
        if header:
            kind, _, credential = header.partition(" ")
            if kind.lower() != "bearer" or not credential.strip():
                raise AuthenticationError("authorization: must be Bearer with a token or API key")
            bearer = await self._bearer(credential.strip())
            return bearer if isinstance(bearer, str) else (await self._now(bearer), "")
        identity = _cookie(asked.headers.get("cookie", ()))
        if identity and self._sessions is not None:
            session = await self._sessions.resume(identity)
            try:
                self._same_site(asked, identity)
            except CsrfError as error:
                error.session = session
                raise
            principal = of_session(session)
            # Of whom the cluster knows, the cluster is asked.
            return principal if session.person else await self._now(principal), identity
        return None, ""

    async def _now(self, principal: Principal) -> Principal:
        return principal if self._current is None else await self._current(principal)

    async def _bearer(self, credential: str) -> Principal | str:
        if self._api_keys is not None and credential.startswith(f"{PREFIX}_"):
            key = await self._api_keys.verify(credential)
            return Principal(key.owner, key.grants, "key", key.id, key.scopes, key.rate)
        if self._tokens is None:
            raise AuthenticationError("authorization: no kind of token is taken here")
        try:
            return principal_of(await self._tokens.verify(credential))
        except TokenError as error:
            if self._external is None or error.reason != "unknown_key":
                raise
        return credential

    def _same_site(self, asked: Asked, identity: str) -> None:
        """A cookie comes whoever made the browser ask: a change shows that a page of ours did.

        A WebSocket can carry no header of ours; there the browser names the page's origin.
        """
        assert self._sessions is not None  # noqa: S101 - told by the only caller
        if asked.websocket:
            origin, host = urlsplit(asked.one("origin")), asked.one("host")
            if not host or origin.netloc.lower() != host.lower():
                raise CsrfError("origin: is not this site; open the page of this site")
        elif asked.method.upper() not in _SAFE:
            self._sessions.check_csrf(identity, asked.one(CSRF_HEADER))


def of_session(session: Session) -> Principal:
    """The principal of a session."""
    if session.person:
        return unpacked(session.person, session.subject, session.handle)
    return Principal(session.subject, session.grants, "session", session.handle)


def principal_of(claims: Claims) -> Principal:
    """The principal of a token of ours."""
    return Principal(claims.subject, claims.grants, "token", claims.token, claims.scopes)


def _cookie(headers: Iterable[str]) -> str:
    """Our cookie, or "". Twice is a sign of somebody planting one: SessionError."""
    pairs = (pair.strip().partition("=") for header in headers for pair in header.split(";"))
    found = [value for name, _, value in pairs if name == COOKIE]
    if len(found) > 1:
        raise SessionError("cookie: the session comes twice; delete this site's cookies")
    return found[0] if found else ""


# ---- what an application asks with ----------------------------------------------------------


class Require:
    """Lets in who has a permission: call it with a request, and with a namespace if it has one."""

    def __init__(self, policy: Policy, permission: str) -> None:
        scope_of(permission)
        self._policy = policy
        self.permission = permission

    def __call__(self, request: Any, namespace: str | None = None) -> Principal:
        """The principal. ``request`` is an ASGI scope, a WSGI environment, or has ``.scope``.

        Raises AuthenticationError for nobody and PermissionDeniedError for somebody without it.
        """
        principal = who(request)
        if principal is None:
            raise AuthenticationError("nobody is signed in; send a token, an API key or sign in")
        self._policy.demand(principal, self.permission, namespace)
        return principal


def require(policy: Policy, permission: str) -> Require:
    """A check for one permission, to be called in a handler or used as a dependency."""
    return Require(policy, permission)


def who(request: Any) -> Principal | None:
    """Who asks, or None for nobody."""
    scope = getattr(request, "scope", None) or getattr(request, "environ", None) or request
    principal = scope.get(PRINCIPAL)
    return principal if isinstance(principal, Principal) else None


# ---- answers --------------------------------------------------------------------------------


def problem(error: EngineroomError) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the problem document (RFC 9457) for an error."""
    document = problem_document(error)
    headers = {name.lower(): value for name, value in document.headers.items()}
    if isinstance(error, TokenError | ApiKeyError | RefreshReusedError):
        headers["www-authenticate"] = 'Bearer error="invalid_token"'
    if isinstance(error, SessionError):
        # Else a browser whose session is over could not even sign in again.
        headers["set-cookie"] = FORGET_COOKIE
    if document.status == 503:
        headers.setdefault("retry-after", "1")
    return document.status, headers, json.dumps(document.body).encode()


class AuthMiddleware:
    """ASGI: puts the principal into the scope, turns refusals into answers, adds the headers."""

    def __init__(
        self,
        app: App,
        authenticator: Authenticator,
        *,
        headers: Mapping[str, str] = SECURITY_HEADERS,
        public: Callable[[Scope], bool] = lambda _: False,
        address: Callable[[Scope], str] | None = None,
        on_refused: Callable[[Scope, EngineroomError], Awaitable[None]] | None = None,
    ) -> None:
        """``public`` tells requests that need nobody: there a session that is over is none.

        Else somebody whose session ended could not even sign in again. ``address`` tells where a
        request came from; without it that is the connection's other end. ``on_refused`` is awaited
        with a request that is refused here, before it is answered.
        """
        self._app = app
        self._address = address or _peer
        self._authenticator = authenticator
        self._public = public
        self._on_refused = on_refused
        self._headers = [(k.lower().encode(), v.encode()) for k, v in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket; anything else goes by."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] in ("http.response.start", "websocket.accept"):
                started = True
                message = {**message, "headers": self._with(list(message.get("headers", ())))}
            elif message["type"] == "websocket.close":
                started = True
            await send(message)

        try:
            # Somebody before us may have left one: who asks is decided here and nowhere else.
            scope = dict(scope)
            asked = asked_of(scope, self._address(scope))
            try:
                scope[PRINCIPAL], scope[SESSION] = await self._authenticator.authenticate(asked)
            except (SessionError, AccountGoneError, LimitError) as error:
                shown = isinstance(error, LimitError) and "authorization" in asked.headers
                if shown or not self._public(scope):
                    raise
                scope[PRINCIPAL], scope[SESSION] = None, ""
            except EngineroomError as error:
                if self._on_refused is not None:
                    await self._on_refused(scope, error)
                raise
            await self._app(scope, receive, sending)
        except EngineroomError as error:
            if started:
                raise
            await self._refuse(scope, receive, sending, _for_client(error))

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send, error: EngineroomError
    ) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": error.code})
            return
        status, headers, body = problem(error)
        length = ("content-length", str(len(body)))
        pairs = [(k.encode(), v.encode()) for k, v in (*headers.items(), length)]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        sent = b"" if scope["method"] == "HEAD" else body
        await send({"type": "http.response.body", "body": sent})

    def _with(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        present = {name.lower() for name, _ in headers}
        return headers + [(n, v) for n, v in self._headers if n not in present]


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def asked_of(scope: Scope, address: str = "") -> Asked:
    """What of an ASGI scope tells who asks; for who looks again later."""
    headers: dict[str, tuple[str, ...]] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        headers[key] = (*headers.get(key, ()), value.decode("latin-1"))
    return Asked(scope.get("method", "GET"), headers, scope["type"] == "websocket", address)


def _for_client(error: EngineroomError) -> EngineroomError:
    """An issuer that is away is our outage, and where it was looked for is nobody's business."""
    if isinstance(error, OutboundError):
        return OutboundError("the issuer of this token cannot be asked; try again soon")
    return error


class _Loop:
    """An event loop on a thread of its own, made anew after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.current_thread()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of ``work``."""
        with self._lock:
            if self._loop is None or self._owner != os.getpid():
                self._loop, self._owner = asyncio.new_event_loop(), os.getpid()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="engineroom-auth", daemon=True
                )
                self._thread.start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """Stop the thread; the next use starts another one."""
        with self._lock:
            if self._loop is not None and self._owner == os.getpid():
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()
            self._owner, self._loop = 0, None


class WsgiAuth:
    """WSGI: the same for an application of threads.

    ``make`` is awaited once a process, on the loop that the authenticator then lives on: make its
    Redis client there, and start what follows revocations.
    """

    def __init__(
        self,
        app: Callable[..., Iterable[bytes]],
        make: Callable[[], Awaitable[Authenticator]],
        *,
        headers: Mapping[str, str] = SECURITY_HEADERS,
    ) -> None:
        self._app = app
        self._make = make
        self._headers = dict(headers)
        self._loop = _Loop()
        self._made: tuple[Any, asyncio.Future[Authenticator]] | None = None

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Serve one request."""

        def starting(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            present = {name.lower() for name, _ in headers}
            added = [(n, v) for n, v in self._headers.items() if n.lower() not in present]
            return start_response(status, headers + added, *more)

        environ[PRINCIPAL], environ[SESSION] = None, ""
        try:
            asked = _asked_of_environ(environ)
            environ[PRINCIPAL], environ[SESSION] = self._loop.run(self._authenticate(asked))
            return self._app(environ, starting)
        except EngineroomError as error:
            status, headers, body = problem(_for_client(error))
            starting(
                f"{status} {error.code}", [*headers.items(), ("content-length", str(len(body)))]
            )
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def close(self) -> None:
        """Stop the thread that asks Redis."""
        self._loop.close()
        self._made = None

    async def _authenticate(self, asked: Asked) -> tuple[Principal | None, str]:
        return await (await self._authenticator()).authenticate(asked)

    async def _authenticator(self) -> Authenticator:
        # By the loop: after a fork there is another one, and what was made belongs to the old.
        loop = asyncio.get_running_loop()
        made = self._made
        if made is None or made[0] is not loop:
            made = self._made = (loop, asyncio.ensure_future(self._make()))
        try:
            return await asyncio.shield(made[1])
        except BaseException:
            if made[1].done() and (made[1].cancelled() or made[1].exception()):
                self._made = None
            raise


def _asked_of_environ(environ: Mapping[str, Any]) -> Asked:
    # A WSGI server has joined repeated headers by commas: two Authorization headers are no token.
    headers = {
        name[5:].replace("_", "-").lower(): (str(value),)
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    return Asked(environ["REQUEST_METHOD"], headers, address=environ.get("REMOTE_ADDR", ""))
