"""A real Redis for the tests of tasks, and a stock RQ worker in the test's own process.

Run with the interpreter of either virtual environment, they are tests of RQ 3 or of RQ 2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy
from redis import Redis
from sqlalchemy.orm import Session

from engineroom.tasks import Tasks
from engineroom.tasks.outbox import TABLE
from tests.support import RedisServer, free_port, redis_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
def redis(server: RedisServer) -> Iterator[Redis]:
    with contextlib.closing(Redis(port=server.port)) as client:
        client.flushall()
        yield client


@pytest.fixture
def tasks(redis: Redis) -> Tasks:
    return Tasks(redis)


@pytest.fixture
def work(redis: Redis) -> Callable[..., None]:
    """Run what waits on queues with RQ's own worker."""

    def run(*queues: str) -> None:
        from rq import SimpleWorker

        worker = SimpleWorker(list(queues or ("default",)), connection=redis)
        worker.work(burst=True, with_scheduler=False)

    return run


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    if found:
        return found[-1]
    initdb = shutil.which("initdb")
    if initdb is None:
        raise pytest.skip.Exception("PostgreSQL is not installed: apt install postgresql")
    return Path(initdb).parent


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Where a PostgreSQL of these tests' own listens; it refuses to run as root."""
    binaries, port = _binaries(), free_port()
    home = Path(tempfile.mkdtemp(prefix="engineroom-postgres-"))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        shutil.chown(home, "postgres")
        user = {"user": "postgres", "extra_groups": []}
    data = home / "data"
    init = [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL, cwd=home, **user)
    control = [binaries / "pg_ctl", "-D", data, "-w", "-l", home / "log"]
    options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -c fsync=off"
    subprocess.run(
        [*control, "-o", options, "start"], check=True, stdout=subprocess.DEVNULL, cwd=home, **user
    )
    try:
        yield f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
    finally:
        stop = [*control, "-m", "immediate", "stop"]
        subprocess.run(stop, check=True, stdout=subprocess.DEVNULL, cwd=home, **user)
        shutil.rmtree(home)


@pytest.fixture
def database(address: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS engineroom_outbox, orders")
        connection.execute("CREATE TABLE orders (id int PRIMARY KEY)")
        connection.execute(TABLE)
        yield connection


@pytest.fixture
def session(address: str, database: object) -> Iterator[Session]:
    parts = dict(part.split("=") for part in address.split())
    engine = sqlalchemy.create_engine(f"postgresql+psycopg://postgres@127.0.0.1:{parts['port']}/")
    with Session(engine) as opened:
        yield opened
    engine.dispose()
