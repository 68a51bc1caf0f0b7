"""The examples of docs/ratelimit.md do what the page says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio
from prometheus_client import CollectorRegistry, generate_latest

from engineroom.ratelimit.limits.errors import RateLimitedError
from engineroom.ratelimit.limits.limiter import AsyncLimiter
from engineroom.ratelimit.limits.model import Failure, Limit, Policy, Rate
from tests.integration.ratelimit.test_middleware import asgi_app, ask
from tests.support import ROOT, RedisServer

if TYPE_CHECKING:
    from redis import Redis


async def test_the_examples_run(server: RedisServer, store: Redis) -> None:
    page = (ROOT / "docs/ratelimit.md").read_text()
    examples: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(block, examples)  # noqa: S102
    client = redis.asyncio.Redis(port=server.port)
    # The examples have the default deadline, which a busy machine may miss; Local decides then.
    text = [await examples["greet"](client) for _ in range(21)]
    assert text[0] == "hello; 19 left"
    assert text[20].startswith("try again in")
    app = examples["protect"](asgi_app, client)
    status, headers, _ = await ask(app, (b"x-forwarded-for", b"1.1.1.1"))
    assert status == 200
    assert headers["ratelimit-policy"] == '"per-address";q=20;w=1, "per-key";q=1000;w=60'
    await app._limiter.close()
    registry = CollectorRegistry()
    counted = examples["protect_and_count"](asgi_app, client, registry)
    assert (await ask(counted))[0] == 200
    assert "engineroom_ratelimit_decisions_total{" in generate_latest(registry).decode()
    await counted._limiter.close()
    following = examples["protect_by_policy"](asgi_app, client)
    status, _, _ = await ask(following)
    assert status == 200
    await following.close()
    policy = Policy("f", (Limit("a", Rate(1, 60)),), Failure(timeout=2.0))
    async with AsyncLimiter(policy, client) as limiter:
        send = examples["limited_by_user"](limiter)
        assert await send("me") == "sent to me"
        with pytest.raises(RateLimitedError):
            await send("me")
    await client.aclose()
