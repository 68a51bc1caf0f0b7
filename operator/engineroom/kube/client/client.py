"""A client of the Kubernetes API on one aiohttp session: list, watch, get, apply, patch, delete.

Every request has a time-out and a typed error. The client retries a 429, a 503 with Retry-After,
and once a 401, after it has read the token file again. It does not retry a request whose response
was lost: the write may have happened, and only the caller can find out.
"""

from __future__ import annotations

import asyncio
import base64
import random
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import orjson

from engineroom.api import FIELD_MANAGER
from engineroom.core.clock import Clock, SystemClock
from engineroom.core.recovery import ONCE
from engineroom.kube.client import config as kube_config
from engineroom.kube.client.config import TOKEN_MAX_AGE, ApiConfig
from engineroom.kube.client.errors import (
    ApiError,
    ClientConfigError,
    Unauthorized,
    Unreachable,
    from_status,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from engineroom.core.recovery import Recovery
    from engineroom.kube.client.resources import Resource

#: Objects as JSON. An alias, because ``list`` is a method of the client.
Objects = list[dict[str, Any]]

TYPE_APPLY = "application/apply-patch+yaml"
TYPE_MERGE = "application/merge-patch+json"
TYPE_JSON = "application/json"

#: Seconds without any data after which a watch counts as broken; bookmarks come every minute.
WATCH_SILENCE = 100.0

_NETWORK_ERRORS = (aiohttp.ClientError, TimeoutError, OSError)


def _keepalive_socket(address: Any) -> socket.socket:
    """Return a TCP socket that detects a dead peer within half a minute."""
    family, kind, protocol = address[0], address[1], address[2]
    sock = socket.socket(family=family, type=kind, proto=protocol)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", 15),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 30_000),
    ):
        number = getattr(socket, option, None)
        if number is not None:
            sock.setsockopt(socket.IPPROTO_TCP, number, value)
    return sock


class _Authorization:
    """The Authorization header; a token is read again after TOKEN_MAX_AGE, as it may be renewed."""

    def __init__(self, config: ApiConfig, clock: Clock) -> None:
        self._config, self._clock = config, clock
        self._header: str | None = None
        self._read_at = float("-inf")

    def header(self) -> str | None:
        """Return the header's value; None for a client certificate."""
        now = self._clock.monotonic()
        if now - self._read_at > TOKEN_MAX_AGE:
            token = self._config.read_token()
            if token:
                self._header = f"Bearer {token}"
            elif self._config.username and self._config.password is not None:
                self._header = _basic(self._config.username, self._config.password)
            self._read_at = now
        return self._header

    def expire(self) -> None:
        """Read the token again for the next request."""
        self._read_at = float("-inf")


class Client:
    """A client of one API server. An async context manager; one per process is enough.

    ``timeout`` limits each attempt of a request, in seconds; lists get four times as much.
    ``observer`` is called with the method, status (0: no response) and seconds of each request
    other than watches. ``connections`` limits the concurrent requests, watches included. With a
    ``recovery``, reads are retried by its policy and its breaker holds back all requests other than
    watches; without one the callers retry.
    """

    def __init__(
        self,
        config: ApiConfig,
        *,
        timeout: float = 10.0,
        connections: int = 128,
        retries: int = 3,
        max_retry_after: float = 5.0,
        watch_silence: float = WATCH_SILENCE,
        user_agent: str = "engineroom",
        clock: Clock | None = None,
        observer: Callable[[str, int, float], None] | None = None,
        recovery: Recovery | None = None,
    ) -> None:
        self.config = config
        self._recovery = recovery
        self._observer = observer
        self._timeout = timeout
        self._connections = connections
        self._retries = retries
        self._max_retry_after = max_retry_after
        self._watch_silence = watch_silence
        self._user_agent = user_agent
        self._clock = clock or SystemClock()
        self._session: aiohttp.ClientSession | None = None
        self._ssl: ssl.SSLContext | bool = True
        self._authorization = _Authorization(config, self._clock)

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        context: str | None = None,
        **options: Any,
    ) -> Self:
        """Return a client of the given kubeconfig, of $KUBECONFIG, or of the pod it runs in."""
        return cls(kube_config.load(path, context), **options)

    async def __aenter__(self) -> Self:
        self._ssl = self.config.ssl_context() or True
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._connections,
                keepalive_timeout=60,
                socket_factory=_keepalive_socket,
            ),
            headers={
                "Accept": TYPE_JSON,
                # On a fast network, decompression costs more than it saves.
                "Accept-Encoding": "identity",
                "User-Agent": self._user_agent,
            },
            read_bufsize=2**18,
            auto_decompress=True,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; current requests fail."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    # -- reading ---------------------------------------------------------------------------------

    async def get(
        self,
        ref: Resource,
        namespace: str | None,
        name: str,
        *,
        subresource: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> dict[str, Any]:
        """Return one object. Raises NotFound."""
        return await self.request("GET", ref.path(namespace, name, subresource), timeout=timeout)

    async def list(
        self,
        ref: Resource,
        namespace: str | None = None,
        label_selector: str | None = None,
        limit: int = 500,
    ) -> tuple[Objects, str]:
        """Return all objects and the resourceVersion to watch from.

        Holds all objects in memory at once; caches use ``pages``. Raises Gone if the continue token
        expired between two pages.
        """
        objects: Objects = []
        version = ""
        async for items, version in self.pages(ref, namespace, label_selector, limit):  # noqa: B007
            objects += items
        return objects, version

    async def pages(
        self,
        ref: Resource,
        namespace: str | None = None,
        label_selector: str | None = None,
        limit: int = 500,
    ) -> AsyncIterator[tuple[Objects, str]]:
        """Yield the list in pages of ``limit`` objects, each with the list's resourceVersion.

        Yields at least one page. Raises Gone if the continue token expired between two pages.
        """
        params: dict[str, str] = {"limit": str(limit)}
        if label_selector:
            params["labelSelector"] = label_selector
        version = ""
        while True:
            page = await self.request(
                "GET", ref.path(namespace), params=params, timeout=self._timeout * 4
            )
            metadata = page.get("metadata") or {}
            version = version or str(metadata.get("resourceVersion") or "")
            yield page.get("items") or [], version
            token = metadata.get("continue")
            if not token:
                return
            params["continue"] = token

    async def watch(
        self,
        ref: Resource,
        namespace: str | None = None,
        resource_version: str | None = None,
        label_selector: str | None = None,
        *,
        seconds: float | None = None,
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yield the changes after ``resource_version``: (ADDED|MODIFIED|DELETED|BOOKMARK, object).

        Ends when the server ends it, after ``seconds``, or when no data arrived for longer than the
        interval of bookmarks; the caller then resumes from the last resourceVersion. Raises Gone if
        that version is too old (list again) and Unreachable if the connection breaks.
        """
        if seconds is None:
            # Random, so that the watches of all replicas do not reconnect in the same second.
            seconds = random.uniform(240, 480)  # noqa: S311 # nosec B311
        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, int(seconds))),
        }
        if resource_version is not None:
            params["resourceVersion"] = resource_version
        if label_selector:
            params["labelSelector"] = label_selector
        limits = aiohttp.ClientTimeout(
            total=seconds + 30, sock_connect=self._timeout, sock_read=self._watch_silence
        )
        async with await self._open(
            "GET",
            ref.path(namespace),
            params=params,
            limits=limits,
            headers_within=3 * self._timeout,
        ) as response:
            rest = b""
            try:
                async for chunk in response.content.iter_any():
                    lines = (rest + chunk).split(b"\n") if rest else chunk.split(b"\n")
                    rest = lines.pop()
                    for line in lines:
                        if line:
                            event = orjson.loads(line)
                            if event["type"] == "ERROR":
                                status = event["object"]
                                raise from_status(int(status.get("code") or 500), status)
                            yield event["type"], event["object"]
            except aiohttp.SocketTimeoutError:
                return  # no data for too long: treat the watch as ended
            except _NETWORK_ERRORS as error:
                raise Unreachable(f"the watch of {ref.plural} broke: {_message(error)}") from error
            except orjson.JSONDecodeError as error:
                raise Unreachable(f"the watch of {ref.plural} sent no JSON: {error}") from error

    # -- writing ---------------------------------------------------------------------------------

    async def apply(
        self,
        ref: Resource,
        obj: Mapping[str, Any],
        *,
        force: bool = True,
        subresource: str | None = None,
        field_manager: str = FIELD_MANAGER,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Apply an object server-side: its fields get the given values and this field manager.

        With ``metadata.resourceVersion`` set, it raises Conflict unless that is still the object's
        version. With ``metadata.uid`` set, it changes only the object with that uid and never
        creates one. Without ``force`` it raises Conflict for a field that another manager owns.
        """
        metadata = obj["metadata"]
        body = {"apiVersion": ref.api_version, "kind": ref.kind, **obj}
        params = {"fieldManager": field_manager, "force": "true" if force else "false"}
        if dry_run:
            params["dryRun"] = "All"
        return await self.request(
            "PATCH",
            ref.path(metadata.get("namespace"), metadata["name"], subresource),
            params=params,
            body=body,
            content_type=TYPE_APPLY,
        )

    async def apply_status(
        self, ref: Resource, obj: Mapping[str, Any], *, field_manager: str = FIELD_MANAGER
    ) -> dict[str, Any]:
        """Apply ``obj.status`` server-side; of the other fields only namespace and name count."""
        return await self.apply(ref, obj, subresource="status", field_manager=field_manager)

    async def create(
        self,
        ref: Resource,
        obj: Mapping[str, Any],
        *,
        namespace: str | None = None,
        subresource: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> dict[str, Any]:
        """Create an object or subresource. Raises AlreadyExists."""
        metadata = obj.get("metadata") or {}
        name = metadata.get("name") if subresource else None
        return await self.request(
            "POST",
            ref.path(namespace or metadata.get("namespace"), name, subresource),
            params={"fieldManager": FIELD_MANAGER},
            body={"apiVersion": ref.api_version, "kind": ref.kind, **obj},
            timeout=timeout,
        )

    async def replace(
        self,
        ref: Resource,
        obj: Mapping[str, Any],
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> dict[str, Any]:
        """Replace an object; raises Conflict unless its metadata.resourceVersion is current."""
        metadata = obj["metadata"]
        return await self.request(
            "PUT",
            ref.path(metadata.get("namespace"), metadata["name"]),
            params={"fieldManager": FIELD_MANAGER},
            body={"apiVersion": ref.api_version, "kind": ref.kind, **obj},
            timeout=timeout,
        )

    async def merge_patch(
        self,
        ref: Resource,
        namespace: str | None,
        name: str,
        patch: Mapping[str, Any],
        *,
        subresource: str | None = None,
        field_manager: str = FIELD_MANAGER,
    ) -> dict[str, Any]:
        """Patch an object by JSON merge patch (RFC 7386).

        ``metadata.resourceVersion`` in the patch is a precondition. ``subresource="scale"`` with
        ``{"spec": {"replicas": n}}`` sets the number of replicas.
        """
        return await self.request(
            "PATCH",
            ref.path(namespace, name, subresource),
            params={"fieldManager": field_manager},
            body=patch,
            content_type=TYPE_MERGE,
        )

    async def delete(
        self,
        ref: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: str = "Background",
        grace_period: int | None = None,
    ) -> None:
        """Delete an object. Raises NotFound, or Conflict if uid or resourceVersion differ."""
        options: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
        }
        preconditions = {
            key: value
            for key, value in (("uid", uid), ("resourceVersion", resource_version))
            if value
        }
        if preconditions:
            options["preconditions"] = preconditions
        if grace_period is not None:
            options["gracePeriodSeconds"] = grace_period
        await self.request("DELETE", ref.path(namespace, name), body=options)

    # -- HTTP ------------------------------------------------------------------------------------

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = TYPE_JSON,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> dict[str, Any]:
        """Send any request with a JSON response, such as ``/version``; raises as all methods."""
        limits = aiohttp.ClientTimeout(
            total=timeout or self._timeout, sock_connect=min(5.0, timeout or self._timeout)
        )
        data = orjson.dumps(body) if body is not None else None
        send = partial(self._request, method, path, params, data, content_type, limits)
        if self._recovery is None:
            return await send()
        # A write whose response was lost may have happened, so only reads are retried.
        return await self._recovery.call_async(send, policy=None if method == "GET" else ONCE)

    async def _request(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        data: bytes | None,
        content_type: str,
        limits: aiohttp.ClientTimeout,
    ) -> dict[str, Any]:
        began = self._clock.monotonic()
        status = 0
        try:
            async with await self._open(
                method, path, params=params, data=data, content_type=content_type, limits=limits
            ) as response:
                document = await _json(response, f"{method} {path}")
                status = response.status
                return document
        except ApiError as error:
            status = error.status
            raise
        finally:
            if self._observer is not None:
                self._observer(method, status, self._clock.monotonic() - began)

    async def _open(
        self,
        method: str,
        path: str,
        *,
        limits: aiohttp.ClientTimeout,
        params: Mapping[str, str] | None = None,
        data: bytes | None = None,
        content_type: str = TYPE_JSON,
        headers_within: float | None = None,
    ) -> aiohttp.ClientResponse:
        """Return the successful response of a request, its body unread.

        ``headers_within`` limits the wait for the response's headers, in seconds.
        """
        token_reloaded = False
        attempt = 0
        while True:
            response = await self._send(
                method, path, params, data, content_type, limits, headers_within
            )
            if response.status < 400:
                return response
            async with response:
                error = from_status(
                    response.status, await _body(response), retry_after=_retry_after(response)
                )
            if isinstance(error, Unauthorized) and self.config.token_file and not token_reloaded:
                token_reloaded = True
                self._authorization.expire()
                continue
            wait = error.retry_after
            if response.status == 429 and wait is None:
                wait = 1.0
            if (
                response.status not in (429, 503)
                or wait is None
                or wait > self._max_retry_after
                or attempt >= self._retries
            ):
                raise error
            attempt += 1
            await asyncio.sleep(wait + random.uniform(0, 0.25 * (wait + 0.1)))  # noqa: S311 # nosec B311

    async def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        data: bytes | None,
        content_type: str,
        limits: aiohttp.ClientTimeout,
        headers_within: float | None,
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise ClientConfigError("the client is not open; use it as an async context manager")
        headers: dict[str, str] = {}
        authorization = self._authorization.header()
        if authorization:
            headers["Authorization"] = authorization
        if data is not None:
            headers["Content-Type"] = content_type
        try:
            async with asyncio.timeout(headers_within):
                return await self._session.request(
                    method,
                    self.config.server + path,
                    params=params,
                    data=data,
                    headers=headers,
                    timeout=limits,
                    ssl=self._ssl,
                    server_hostname=self.config.tls_server_name,
                    proxy=self.config.proxy,
                    allow_redirects=False,
                )
        except aiohttp.ClientConnectorCertificateError as error:
            # The cluster's CA may have been rotated: the next attempt uses the new file.
            self._ssl = self.config.ssl_context() or True
            raise Unreachable(f"{method} {path}: {_message(error)}") from error
        except _NETWORK_ERRORS as error:
            raise Unreachable(f"{method} {path}: {_message(error)}") from error


async def _json(response: aiohttp.ClientResponse, request: str) -> dict[str, Any]:
    try:
        document: dict[str, Any] = orjson.loads(await response.read())
    except _NETWORK_ERRORS as error:
        raise Unreachable(f"{request}: {_message(error)}") from error
    except orjson.JSONDecodeError as error:
        raise Unreachable(f"{request}: the answer is not JSON: {error}") from error
    return document


async def _body(response: aiohttp.ClientResponse) -> dict[str, Any] | None:
    try:
        raw = await response.read()
    except _NETWORK_ERRORS:
        return None  # the status is enough for the error
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        text = raw[:500].decode(errors="replace").strip()
        return {"message": text} if text else None
    return body if isinstance(body, dict) else None


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def _message(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _basic(username: str, password: str) -> str:
    """Return the Authorization header of HTTP basic authentication."""
    return f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"
