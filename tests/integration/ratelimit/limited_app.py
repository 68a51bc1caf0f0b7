"""A web application that is limited by policy; each answer says which process gave it."""

from __future__ import annotations

import os
from typing import Any

import redis.asyncio

from engineroom.ratelimit.distribution.application import AsgiPolicies


async def _shop(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
        return
    headers = [(b"x-process", str(os.getpid()).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


def application() -> AsgiPolicies:
    """Made in each process."""
    return AsgiPolicies(
        _shop,
        redis.asyncio.Redis.from_url(os.environ["SHOP_REDIS_URL"]),
        namespace=os.environ["SHOP_NAMESPACE"],
        labels={"app": "shop", "tier": "web"},
        refuse_unknown=True,
    )
