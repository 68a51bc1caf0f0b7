"""Jobs of these tests; imported by RQ's workers in the same process."""

from __future__ import annotations

import time
from typing import Any

from rq import get_current_job

from engineroom.tasks import FailureCategory, Rule, parents, reporter, retrying


def add(left: int, right: int = 0) -> int:
    return left + right


def boom(message: str = "boom") -> None:
    raise RuntimeError(message)


def step(total: int) -> str:
    said = reporter()
    for count in range(1, total + 1):
        said.report(count, total, f"step {count}")
    return "done"


def nap(seconds: float) -> None:
    time.sleep(seconds)


class Mailer:
    def __init__(self, host: str) -> None:
        self.host = host

    def send(self, to: str) -> str:
        return f"{to} by {self.host}"

    def __call__(self) -> str:
        return self.host


@retrying(
    Rule((ConnectionError,), maximum=2, first=0), Rule((MemoryError,), FailureCategory.POISON)
)
def fragile(kind: str) -> None:
    raise {"away": ConnectionError, "bug": TypeError, "poison": MemoryError, "odd": RuntimeError}[
        kind
    ]("password=hunter2 went wrong")


@retrying(Rule((ConnectionError,), maximum=3, first=60, jitter=0))
async def patient() -> None:
    raise ConnectionError


@retrying(Rule((ConnectionError,), maximum=1, first=0))
def once_more() -> None:
    raise ConnectionError


def total() -> int:
    return sum(each.value for each in parents() if each.status == "finished")


def outcomes() -> list[str]:
    return [each.status for each in parents()]


def until(flag: str) -> str:
    """Fail as long as the key is not there."""
    job = get_current_job()
    if not job.connection.exists(flag):
        raise RuntimeError(flag)
    return flag


def note(job: Any, connection: Any, *_: Any) -> None:
    connection.rpush("test:noted", job.id)


def count(name: str) -> None:
    """Say how often this piece of work was done."""
    get_current_job().connection.hincrby("test:done", name, 1)


def second_time(name: str) -> None:
    if get_current_job().connection.hincrby("test:tried", name, 1) == 1:
        raise RuntimeError(name)
    count(name)
