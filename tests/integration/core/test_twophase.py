"""Two PostgreSQL databases commit together, wherever the process between them dies."""

# ruff: noqa: PT012, SIM117 - the blocks are what is tested

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from engineroom.core.errors import ConflictError
from engineroom.core.transactions.errors import TransactionInDoubtError
from engineroom.core.transactions.twophase import TABLE, TwoPhaseParticipant, recover
from engineroom.core.transactions.unit import AsyncUnitOfWork, UnitOfWork
from tests.integration.core.twophase import transfer
from tests.integration.forks import FORKS
from tests.postgres import postgres_server

if TYPE_CHECKING:
    from collections.abc import Iterator

Places = tuple[str, str]


@pytest.fixture(scope="module")
def databases() -> Iterator[Places]:
    """Connection strings of two databases."""
    with postgres_server() as address:
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute("CREATE DATABASE other")
        yield address, address.replace("dbname=postgres", "dbname=other")


@pytest.fixture
def places(databases: Places) -> Places:
    """Both empty, each with an account of 100."""
    for place in databases:
        with psycopg.connect(place, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS account, engineroom_decisions")
            connection.execute("CREATE TABLE account (amount int CHECK (amount < 1000))")
            connection.execute("INSERT INTO account VALUES (100)")
    with psycopg.connect(databases[0], autocommit=True) as connection:
        connection.execute(TABLE)
    return databases


def amounts(places: Places) -> list[int]:
    found = []
    for place in places:
        with psycopg.connect(place) as connection:
            row = connection.execute("SELECT amount FROM account").fetchone()
            assert row is not None
            found.append(row[0])
    return found


def prepared(places: Places) -> int:
    with psycopg.connect(places[0]) as connection:
        row = connection.execute("SELECT count(*) FROM pg_prepared_xacts").fetchone()
        assert row is not None
        return int(row[0])


def healed(places: Places, older_than: float = 0) -> list[bool]:
    """What recovery decided."""
    with (
        psycopg.connect(places[0], autocommit=True) as first,
        psycopg.connect(places[1], autocommit=True) as other,
    ):
        return [each.committed for each in recover(first, {"other": other}, older_than=older_than)]


def crashed(places: Places, number: int, side: str) -> int:
    """The exit status of a process that transfers and dies, or not."""
    process = FORKS.Process(target=transfer, args=(*places, number, side))
    process.start()
    process.join()
    status = process.exitcode
    assert status is not None
    process.close()
    return status


def no_sessions(places: Places) -> None:
    """Wait until the server has seen that the dead one's connections are gone."""
    query = """SELECT count(*) FROM pg_stat_activity
               WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"""
    with psycopg.connect(places[0], autocommit=True) as connection:
        for _ in range(500):
            row = connection.execute(query).fetchone()
            if row == (0,):
                return
            time.sleep(0.01)
    raise AssertionError("sessions of a dead process stay")


def test_killed_at_every_statement_both_or_neither(places: Places) -> None:
    steps = crashed(places, -1, "before")
    assert amounts(places) == [99, 101]
    assert steps == 6  # two changes, prepare, decision, two commits
    ends = []
    for number in range(steps):
        for side in ("before", "after"):
            was = amounts(places)
            assert crashed(places, number, side) == -signal.SIGKILL
            no_sessions(places)
            hanging = prepared(places)
            verdicts = healed(places)
            now = amounts(places)
            assert len(verdicts) == hanging
            assert prepared(places) == 0
            moved = (was[0] - now[0], now[1] - was[1])
            ends.append((number, side, moved, verdicts))
    wrong = [end for end in ends if end[2] not in {(0, 0), (1, 1)}]
    assert wrong == []
    # What was killed between the two commits is finished, not undone.
    assert [end[3] for end in ends if end[0] == 4] == [[False], [True]]
    assert {end[2] for end in ends} == {(0, 0), (1, 1)}


@pytest.fixture
def pair(places: Places) -> Iterator[tuple[Any, Any]]:
    with psycopg.connect(places[0]) as first, psycopg.connect(places[1]) as other:
        yield first, other


def test_what_one_refuses_neither_has(places: Places, pair: tuple[Any, Any]) -> None:
    first, other = pair
    with pytest.raises(psycopg.errors.CheckViolation):
        with UnitOfWork() as unit:
            unit.enlist(TwoPhaseParticipant(first, {"other": other}))
            first.execute("UPDATE account SET amount = 1")
            other.execute("UPDATE account SET amount = 1000")
    assert (amounts(places), prepared(places)) == ([100, 100], 0)


def test_a_constraint_that_is_checked_by_prepare(places: Places, pair: tuple[Any, Any]) -> None:
    first, other = pair
    with psycopg.connect(places[1], autocommit=True) as connection:
        connection.execute("ALTER TABLE account ADD UNIQUE (amount) DEFERRABLE INITIALLY DEFERRED")
    with pytest.raises(psycopg.errors.UniqueViolation):
        with UnitOfWork() as unit:
            unit.enlist(TwoPhaseParticipant(first, {"other": other}))
            first.execute("UPDATE account SET amount = 1")
            other.execute("INSERT INTO account VALUES (100)")
    assert (amounts(places), prepared(places)) == ([100, 100], 0)


def test_a_savepoint_goes_back_in_both(places: Places, pair: tuple[Any, Any]) -> None:
    first, other = pair
    with UnitOfWork() as unit:
        unit.enlist(TwoPhaseParticipant(first, {"other": other}))
        first.execute("UPDATE account SET amount = 1")
        with pytest.raises(ValueError, match="no"), unit.nested():
            first.execute("UPDATE account SET amount = 2")
            other.execute("UPDATE account SET amount = 2")
            raise ValueError("no")
        with unit.nested():
            other.execute("UPDATE account SET amount = 3")
    assert amounts(places) == [1, 3]


def test_who_is_too_slow_is_told_and_recovery_waits_for_who_is_not(
    places: Places, pair: tuple[Any, Any]
) -> None:
    first, other = pair
    participant = TwoPhaseParticipant(first, {"other": other})
    first.execute("UPDATE account SET amount = 1")
    other.execute("UPDATE account SET amount = 1")
    other.execute(f"PREPARE TRANSACTION '{participant.gid}_other'")
    assert healed(places, older_than=60) == []
    assert healed(places) == [False]
    other.execute("UPDATE account SET amount = 1")
    with pytest.raises(ConflictError, match="older_than"):
        participant.prepare()
    participant.rollback()
    assert amounts(places) == [100, 100]


def test_a_decision_under_way_is_waited_for(places: Places, pair: tuple[Any, Any]) -> None:
    first, other = pair
    participant = TwoPhaseParticipant(first, {"other": other})
    other.execute("UPDATE account SET amount = 1")
    participant.prepare()
    assert healed(places) == []  # its lock timeout passes, and nothing is decided for it
    participant.commit()
    assert amounts(places) == [100, 1]


def test_a_lost_commit_is_in_doubt_and_then_found(places: Places, pair: tuple[Any, Any]) -> None:
    first, other = pair
    with pytest.raises(TransactionInDoubtError):
        with UnitOfWork() as unit:
            participant = unit.enlist(TwoPhaseParticipant(first, {"other": other}))
            first.execute("UPDATE account SET amount = 1")
            other.execute("UPDATE account SET amount = 1")

            class Cut:
                """Cuts the first's connection when all have prepared."""

                def prepare(self) -> None:
                    with psycopg.connect(places[0], autocommit=True) as killer:
                        killer.execute("SELECT pg_terminate_backend(%s)", [first.info.backend_pid])

                def commit(self) -> None: ...

                def rollback(self) -> None: ...

            unit.enlist(Cut())
    assert participant.gid.startswith("engineroom-")
    assert prepared(places) == 1
    assert healed(places) == [False]
    assert amounts(places) == [100, 100]


async def test_async_connections(places: Places) -> None:
    async with (
        await psycopg.AsyncConnection.connect(places[0]) as first,
        await psycopg.AsyncConnection.connect(places[1]) as other,
    ):
        async with AsyncUnitOfWork() as unit:
            unit.enlist(TwoPhaseParticipant(first, {"other": other}))
            await first.execute("UPDATE account SET amount = 1")
            async with unit.nested():
                await other.execute("UPDATE account SET amount = 2")
        assert amounts(places) == [1, 2]
        participant = TwoPhaseParticipant(first, {"other": other})
        await other.execute("UPDATE account SET amount = 5")
        await participant.prepare()
        await first.rollback()
    async with (
        await psycopg.AsyncConnection.connect(places[0], autocommit=True) as first,
        await psycopg.AsyncConnection.connect(places[1], autocommit=True) as other,
    ):
        ended = await recover(first, {"other": other}, older_than=0)
    assert [each.committed for each in ended] == [False]
    assert (amounts(places), prepared(places)) == ([1, 2], 0)


def test_decisions_are_forgotten_when_all_have_heard(places: Places) -> None:
    with psycopg.connect(places[0], autocommit=True) as first:
        first.execute(
            """INSERT INTO engineroom_decisions VALUES
               ('heard', true, '{other}', now() - interval '2 days'),
               ('unheard', true, '{other,third}', now() - interval '2 days'),
               ('young', true, '{other}', now())"""
        )
        assert healed(places) == []
        left = first.execute("SELECT gid FROM engineroom_decisions ORDER BY gid").fetchall()
    assert left == [("unheard",), ("young",)]
