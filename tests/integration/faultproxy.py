"""A reverse proxy between the operator and the API server that a test can make misbehave.

It listens on plain HTTP at loopback and holds the credentials, so what runs behind it needs none.
It sees each request and may run hooks before forwarding and after the answer is there, but before
it is sent back:

    async with FaultProxy(config) as proxy:
        proxy.before(lambda r: Answer(429, retry_after=1) if r.write else None)
        proxy.after(lambda r: Drop() if r.write else None)    # done, but the answer is lost
        process.start(kubeconfig=proxy.kubeconfig(tmp_path))
        await proxy.cut_watches()

A hook gets the ``Request`` and returns None (go on), an ``Answer`` (send this instead), ``Drop()``
(close the connection), ``Expired()`` (end a watch by 410) or ``Delay(seconds)``. It may be a
coroutine function, which can wait for as long as it likes or kill a process. The first hook that
does not return None decides.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import aiohttp
from aiohttp import web

if TYPE_CHECKING:
    from pathlib import Path

    from engineroom.kube.client.config import ApiConfig

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(slots=True)
class Request:
    """One request as the proxy saw it; ``status`` is 0 until the server has answered."""

    number: int
    method: str
    path: str
    query: dict[str, str]
    body: bytes = field(repr=False)
    status: int = 0

    @property
    def write(self) -> bool:
        """Whether it changes anything; reviews are questions, not changes."""
        return self.method in WRITES and not self.path.endswith("reviews")

    @property
    def watch(self) -> bool:
        """Whether it is a watch."""
        return self.query.get("watch") in ("true", "1")

    @property
    def lease(self) -> bool:
        """Whether it is about leader election, which writes all the time."""
        return "/leases" in self.path


@dataclass(frozen=True, slots=True)
class Answer:
    """Instead of the server: a status, as a Status object."""

    status: int
    reason: str = ""
    message: str = "injected"
    retry_after: int | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the connection without an answer."""


@dataclass(frozen=True, slots=True)
class Delay:
    """Go on after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Expired:
    """Instead of a watch: one that says in its stream that its version is too old, and ends.

    With another ``code`` it is an error of the server in the middle of a watch.
    """

    code: int = 410
    reason: str = "Expired"


Verdict = Answer | Drop | Delay | Expired | None
Hook = Callable[[Request], Verdict | Awaitable[Verdict]]


class FaultProxy:
    """The proxy; an async context manager."""

    def __init__(self, config: ApiConfig) -> None:
        self._config = config
        self._before: list[Hook] = []
        self._after: list[Hook] = []
        self._watches: set[asyncio.Task[Any]] = set()
        self._frozen = asyncio.Event()
        self._frozen.set()
        self._port = 0
        #: Every request, in the order of arrival.
        self.requests: list[Request] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def config(self) -> ApiConfig:
        """A configuration that goes through the proxy, without credentials."""
        from engineroom.kube.client.config import ApiConfig

        return ApiConfig(server=self.url, namespace=self._config.namespace)

    def kubeconfig(self, directory: Path) -> Path:
        """The same as a file."""
        path = directory / "proxied.kubeconfig"
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "proxied",
            "clusters": [{"name": "proxied", "cluster": {"server": self.url}}],
            "users": [{"name": "nobody", "user": {}}],
            "contexts": [
                {
                    "name": "proxied",
                    "context": {
                        "cluster": "proxied",
                        "user": "nobody",
                        "namespace": self._config.namespace,
                    },
                }
            ],
        }
        path.write_text(json.dumps(document))
        return path

    def writes(self, *, leases: bool = False) -> list[Request]:
        """What was written so far; without leader election unless asked."""
        return [r for r in self.requests if r.write and (leases or not r.lease)]

    def before(self, hook: Hook) -> Callable[[], None]:
        """Ask ``hook`` before forwarding; returns what takes it out again."""
        self._before.append(hook)
        return lambda: self._before.remove(hook) if hook in self._before else None

    def after(self, hook: Hook) -> Callable[[], None]:
        """Ask ``hook`` when the server has answered (watches: when they begin)."""
        self._after.append(hook)
        return lambda: self._after.remove(hook) if hook in self._after else None

    def clear(self) -> None:
        """No hooks any more; what is frozen goes on."""
        self._before.clear()
        self._after.clear()
        self._frozen.set()

    async def cut_watches(self) -> int:
        """Break all watches in the middle; returns how many."""
        watches = list(self._watches)
        for watch in watches:
            watch.cancel()
        if watches:
            await asyncio.wait(watches, timeout=5)
        return len(watches)

    def freeze(self) -> None:
        """Forward nothing in either direction, but keep connections: half-open, a dead link."""
        self._frozen.clear()

    def thaw(self) -> None:
        """End of ``freeze``."""
        self._frozen.set()

    async def __aenter__(self) -> Self:
        self._ssl = self._config.ssl_context()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), auto_decompress=False
        )
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=0.5
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._port = int(self._runner.addresses[0][1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self.clear()
        await self.cut_watches()
        await self._runner.cleanup()
        await self._session.close()
        await asyncio.sleep(0.05)  # TLS connections say goodbye before their sockets close

    async def _handle(self, incoming: web.Request) -> web.StreamResponse:
        await self._frozen.wait()
        request = Request(
            number=len(self.requests),
            method=incoming.method,
            path=incoming.path,
            query=dict(incoming.query),
            body=await incoming.read(),
        )
        self.requests.append(request)
        verdict = await self._ask(self._before, request)
        if verdict is not None:
            return self._answer(incoming, verdict)
        headers = {
            name: value
            for name, value in incoming.headers.items()
            if name.lower() in ("accept", "content-type", "user-agent", "accept-encoding")
        }
        token = self._config.read_token()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            async with self._session.request(
                request.method,
                self._config.server + incoming.raw_path,
                data=request.body or None,
                headers=headers,
                ssl=self._ssl or True,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None),
            ) as answer:
                request.status = answer.status
                return await self._relay(incoming, request, answer)
        except aiohttp.ClientError:
            return self._answer(incoming, Drop())

    async def _relay(
        self, incoming: web.Request, request: Request, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        headers = {
            name: value
            for name, value in answer.headers.items()
            if name.lower() in ("content-type", "content-encoding", "retry-after")
        }
        if not (request.watch and answer.status == 200):
            body = await answer.read()
            verdict = await self._ask(self._after, request)
            await self._frozen.wait()
            if verdict is not None:
                return self._answer(incoming, verdict)
            return web.Response(status=answer.status, body=body, headers=headers)
        verdict = await self._ask(self._after, request)
        if verdict is not None:
            return self._answer(incoming, verdict)
        stream = web.StreamResponse(status=200, headers=headers)
        await stream.prepare(incoming)
        pump = asyncio.create_task(self._pump(answer, stream))
        self._watches.add(pump)
        try:
            with suppress(asyncio.CancelledError, ConnectionError):
                await pump
        finally:
            self._watches.discard(pump)
            pump.cancel()
        if pump.cancelled() and incoming.transport is not None:
            incoming.transport.abort()
        return stream

    async def _pump(self, answer: aiohttp.ClientResponse, stream: web.StreamResponse) -> None:
        async for chunk in answer.content.iter_any():
            await self._frozen.wait()
            await stream.write(chunk)

    async def _ask(self, hooks: list[Hook], request: Request) -> Verdict:
        for hook in list(hooks):
            verdict = hook(request)
            if inspect.isawaitable(verdict):
                verdict = await verdict
            if isinstance(verdict, Delay):
                await asyncio.sleep(verdict.seconds)
            elif verdict is not None:
                return verdict
        return None

    @staticmethod
    def _answer(incoming: web.Request, verdict: Verdict) -> web.StreamResponse:
        if isinstance(verdict, Answer):
            status = {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "code": verdict.status,
                "reason": verdict.reason,
                "message": verdict.message,
            }
            headers = {}
            if verdict.retry_after is not None:
                headers["Retry-After"] = str(verdict.retry_after)
            return web.json_response(status, status=verdict.status, headers=headers)
        if isinstance(verdict, Expired):
            status = {"kind": "Status", "code": verdict.code, "reason": verdict.reason}
            event = {"type": "ERROR", "object": {**status, "message": "injected"}}
            return web.Response(text=json.dumps(event) + "\n", content_type="application/json")
        if incoming.transport is not None:
            incoming.transport.abort()
        return web.Response(status=500)
