"""A unit of work over two Redis keys, in a process that dies at a chosen step."""

from __future__ import annotations

import os
import signal
from typing import Any

import redis

from engineroom.core.transactions.unit import UnitOfWork
from engineroom.core.transactions.unitlog import RedisUnitLog, UnitRecord

#: The steps at which the process can die, in their order.
STEPS = ("work", "prepared", "first commit", "second commit", "end")


class First:
    """A participant that sets a key at commit and dies before or after it."""

    def __init__(self, client: redis.Redis, dies_at: str) -> None:
        self._client = client
        self._dies_at = dies_at

    def prepare(self) -> None:
        pass

    def commit(self) -> None:
        die(self._dies_at, "prepared")
        self._client.set("first", 1)
        die(self._dies_at, "first commit")

    def rollback(self) -> None:
        pass


class Second(First):
    """A participant that sets another key at commit."""

    def commit(self) -> None:
        self._client.set("second", 1)
        die(self._dies_at, "second commit")


class DyingLog(RedisUnitLog):
    """A log whose process dies after the last write."""

    dies_at = ""

    def write(self, record: UnitRecord) -> Any:
        super().write(record)
        if record.duration is not None:
            die(self.dies_at, "end")


def die(dies_at: str, step: str) -> None:
    if dies_at == step:
        os.kill(os.getpid(), signal.SIGKILL)


def run_to_crash(url: str, dies_at: str) -> None:
    """Run the unit in this process, which dies at ``dies_at``."""
    client = redis.Redis.from_url(url)
    log = DyingLog(client)
    log.dies_at = dies_at
    with UnitOfWork(log=log, name="both keys", by="alice") as unit:
        unit.enlist(First(client, dies_at))
        unit.enlist(Second(client, dies_at))
        die(dies_at, "work")
