"""Enqueue a day's orders: `python -m shop.enqueue --book today --orders 500`."""

from __future__ import annotations

import argparse
import os
import random

from redis import Redis
from rq import Queue, Retry

from shop.jobs import fulfil

# How many of a hundred orders take how long, in seconds: most are quick, a few are not.
MIX = ((62, 0.05, 0.5), (30, 0.5, 3.0), (7, 4.0, 9.0), (1, 18.0, 20.0))


def durations(orders: int, seed: int = 1) -> list[float]:
    """As many durations as there are orders, the same ones each time, shuffled."""
    chance = random.Random(seed)
    mixed = []
    for share, least, most in MIX:
        mixed += [chance.uniform(least, most) for _ in range(max(1, orders * share // 100))]
    mixed += [MIX[0][1]] * (orders - len(mixed))
    chance.shuffle(mixed)
    return mixed[:orders]


def main() -> None:
    """Enqueue, and write into the book when each order came in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--book", default="today")
    parser.add_argument("--orders", type=int, default=500)
    parser.add_argument("--queue", default="orders")
    options = parser.parse_args()
    redis = Redis.from_url(os.environ["REDIS_URL"])
    queue = Queue(options.queue, connection=redis)
    orders = [
        Queue.prepare_data(
            fulfil, (options.book, f"{number:05d}", round(seconds, 3)), timeout=120, retry=Retry(3)
        )
        for number, seconds in enumerate(durations(options.orders))
    ]
    seconds, microseconds = redis.time()
    came = f"{seconds}.{microseconds:06d}"
    with redis.pipeline() as pipe:
        # One transaction: the book knows of an order exactly when the queue does.
        pipe.hset(
            f"shop:{options.book}:enqueued", mapping={order.args[1]: came for order in orders}
        )
        queue.enqueue_many(orders, pipeline=pipe)
        pipe.execute()
    print(f"enqueued {len(orders)} orders on {options.queue}")


if __name__ == "__main__":
    main()
