"""A program that follows the policies of a namespace until it is killed."""

from __future__ import annotations

import asyncio
import sys

import redis.asyncio

from engineroom.ratelimit.distribution.policy_follower import AsyncFollower


async def main() -> None:
    async with (
        redis.asyncio.Redis.from_url(sys.argv[1]) as client,
        AsyncFollower(client, sys.argv[2], labels={"app": "api"}),
    ):
        print("following", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
