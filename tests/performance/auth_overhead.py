"""The cost of authentication: a route with a token, an API key, a session, beside a public route.

The floor is the public route itself, in turns with the others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from pydantic import SecretStr

from engineroom.auth.login.sessions import COOKIE
from engineroom.auth.permissions import Access, Grant, Permission
from engineroom.console.rest.app import application
from engineroom.console.rest.routing import Answer, Call, Model, Route
from engineroom.console.services import open_services
from engineroom.console.settings import ApiSettings
from engineroom.core.validation.requests import Limits
from engineroom.kube.client.config import ApiConfig
from tests.performance.outcome import Goal, outcome, percentile
from tests.support import free_port, redis_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

WAYS = ("token", "key", "session")
GOALS = tuple(Goal(f"{way}_overhead_ms_p50", 1.0, floor="bare_ms_p50") for way in WAYS)


class Done(Model):
    """A constant answer."""

    done: bool = True


async def nothing(call: Call) -> Answer:
    """Return the constant answer."""
    del call
    return Answer(Done())


ROUTES = tuple(
    Route(method="GET", path=path, needs=needs, handler=nothing, summary="", tag="x", answer=Done)
    for path, needs in (
        ("/api/v1/bare", Access.PUBLIC),
        ("/api/v1/namespaces/{namespace}/pools", Permission.NAMESPACE_POOLS_READ),
    )
)


async def measure(requests: int) -> dict[str, float]:
    """Return medians in milliseconds: of the bare route, and the overhead of each credential."""
    with redis_server() as redis, tempfile.TemporaryDirectory() as place:
        # A declared account: its rights of now are looked up with each request.
        accounts = Path(place) / "accounts.json"
        grant = {"role": "viewer", "namespaces": ["shop"]}
        accounts.write_text(json.dumps({"accounts": [{"name": "bench", "grants": [grant]}]}))
        settings = ApiSettings(
            redis_url=SecretStr(redis.url),
            api_secret=SecretStr("s" * 48),
            requests_per_second=100_000,
            kubernetes_identities=False,
            accounts_file=accounts,
        )
        nowhere = ApiConfig(server=f"http://127.0.0.1:{free_port()}")
        app = application(lambda: open_services(settings, nowhere), ROUTES, Limits())
        async with app.router.lifespan_context(app):
            services: Any = app.state.services
            await services.revocations.read()
            grants = [Grant("viewer", frozenset({"shop"}))]
            pair = await services.tokens.issue("user:bench", grants)
            api_key = await services.api_keys.create("user:bench", "bench", grants)
            session = await services.sessions.open("user:bench", grants)
            headers = {
                "bare": {},
                "token": {"authorization": f"Bearer {pair.access}"},
                "key": {"authorization": f"Bearer {api_key.secret}"},
                "session": {"cookie": f"{COOKIE}={session.id}"},
            }
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="https://x") as http:
                taken: dict[str, list[float]] = {way: [] for way in headers}
                # In turns: other load of the machine falls on all of them.
                for _ in range(requests):
                    for way, header in headers.items():
                        path = "bare" if way == "bare" else "namespaces/shop/pools"
                        taken[way].append(await _timed(_get(http, path, header)))
    bare = percentile(taken["bare"], 0.5)
    return {"bare_ms_p50": bare} | {
        f"{way}_overhead_ms_p50": percentile(taken[way], 0.5) - bare for way in WAYS
    }


def _get(
    http: httpx.AsyncClient, path: str, headers: dict[str, str]
) -> Callable[[], Awaitable[httpx.Response]]:
    return lambda: http.get(f"/api/v1/{path}", headers=headers)


async def _timed(ask: Callable[[], Awaitable[httpx.Response]]) -> float:
    began = time.perf_counter()
    answer = await ask()
    spent = (time.perf_counter() - began) * 1000
    if answer.status_code != 200:
        raise RuntimeError(answer.text)
    return spent


def main() -> int:
    """Print the overhead of each credential."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1500, help="requests of each kind")
    wanted = parser.parse_args()
    figures = asyncio.run(measure(wanted.requests))
    rounded = {name: round(value, 3) for name, value in figures.items()}
    return outcome("auth_overhead", rounded, GOALS)


if __name__ == "__main__":
    raise SystemExit(main())
