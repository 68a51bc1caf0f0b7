"""Leader election: the decision is pure; the loop runs against an API server in memory."""

from __future__ import annotations

import asyncio
import copy
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from engineroom.core.clock import FakeClock, SystemClock
from engineroom.kube.client.errors import AlreadyExists, Conflict, NotFound, Unreachable
from engineroom.kube.runtime.lease import Elector, LeaseRecord, LeaseTimes, decide, parse

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TIMES = LeaseTimes()


def held_by(holder: str, transitions: int = 3) -> LeaseRecord:
    return LeaseRecord(holder, 15.0, transitions, acquired="then", renewed="then", version="7")


def test_a_lease_that_does_not_exist_is_made() -> None:
    record = decide(None, 0.0, 0.0, "me", NOW, TIMES, held=False)
    assert record is not None
    assert (record.holder, record.transitions, record.version) == ("me", 0, "")


def test_a_lease_of_another_is_left_alone_until_it_was_not_renewed_for_its_duration() -> None:
    assert decide(held_by("other"), 100.0, 114.9, "me", NOW, TIMES, held=False) is None
    record = decide(held_by("other"), 100.0, 115.0, "me", NOW, TIMES, held=False)
    assert record is not None
    assert (record.holder, record.transitions, record.version) == ("me", 4, "7")


def test_a_released_lease_is_taken_at_once() -> None:
    record = decide(held_by(""), 100.0, 100.0, "me", NOW, TIMES, held=False)
    assert record is not None
    assert record.transitions == 4


def test_renewing_keeps_the_transitions_and_the_time_of_acquiring() -> None:
    record = decide(held_by("me"), 100.0, 101.0, "me", NOW, TIMES, held=True)
    assert record is not None
    assert (record.transitions, record.acquired) == (3, "then")
    assert record.renewed == "2026-01-01T00:00:00.000000Z"


def test_a_new_process_under_the_old_name_need_not_wait_but_is_a_new_epoch() -> None:
    record = decide(held_by("me"), 100.0, 100.0, "me", NOW, TIMES, held=False)
    assert record is not None
    assert record.transitions == 4


@pytest.mark.parametrize("times", [(10, 10, 2), (15, 2, 2), (15, 10, 0)])
def test_times_that_cannot_work_are_refused(times: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="duration > renew deadline"):
        LeaseTimes(*times)


def test_an_empty_lease_can_be_read() -> None:
    assert parse({"metadata": {"resourceVersion": "4"}}) == LeaseRecord("", 0.0, 0, version="4")


class Api:
    """One Lease as an API server keeps it, with failures on order."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.down = False
        self.lose_answers = 0
        self.writes = 0

    async def get(self, *_: Any, **__: Any) -> dict[str, Any]:
        self._check()
        if self.lease is None:
            raise NotFound("no lease", status=404)
        return copy.deepcopy(self.lease)

    async def create(self, _ref: Any, obj: dict[str, Any], **_: Any) -> dict[str, Any]:
        self._check()
        if self.lease is not None:
            raise AlreadyExists("exists", status=409)
        return self._store(obj)

    async def replace(self, _ref: Any, obj: dict[str, Any], **_: Any) -> dict[str, Any]:
        self._check()
        if self.lease is None:
            raise NotFound("no lease", status=404)
        if obj["metadata"]["resourceVersion"] != str(self.version):
            raise Conflict("changed", status=409)
        return self._store(obj)

    def _store(self, obj: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.writes += 1
        self.lease = copy.deepcopy(obj)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        if self.lose_answers:
            self.lose_answers -= 1
            raise Unreachable("the answer was lost")
        return copy.deepcopy(self.lease)

    def _check(self) -> None:
        if self.down:
            raise Unreachable("down")

    @property
    def holder(self) -> str:
        return "" if self.lease is None else self.lease["spec"]["holderIdentity"]


#: A hundred times quicker than in a cluster.
QUICK = LeaseTimes(0.3, 0.2, 0.02)


def elector(api: Api, name: str) -> Elector:
    made = Elector(api, "ns", "lease", name, SystemClock(), times=QUICK)  # type: ignore[arg-type]
    # Leases count in whole seconds; in this test's world the shortest must be shorter.
    write = made._write

    async def quick(record: LeaseRecord) -> LeaseRecord:
        written = await write(record)
        return LeaseRecord(
            written.holder,
            QUICK.duration,
            written.transitions,
            written.acquired,
            written.renewed,
            written.version,
        )

    made._write = quick  # type: ignore[method-assign]
    return made


class Candidate:
    def __init__(self, api: Api, name: str) -> None:
        self.elector = elector(api, name)
        self.started = asyncio.Event()
        self.lost = asyncio.Event()
        self.task = asyncio.create_task(self.elector.run(self.started.set, self.lost.set))

    def leading(self) -> bool:
        return self.elector.is_leader

    async def leads(self, within: float = 5.0) -> None:
        async with asyncio.timeout(within):
            await self.started.wait()

    async def end(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


async def test_one_of_two_leads_and_the_other_follows_at_once_when_it_is_released() -> None:
    api = Api()
    first = Candidate(api, "first")
    await first.leads()
    second = Candidate(api, "second")
    await asyncio.sleep(0.5)
    assert first.leading()
    assert not second.started.is_set()
    assert second.elector.holder == "first"
    first.elector.stop()
    await first.task
    assert not first.leading()
    assert not first.lost.is_set()
    await second.leads()
    assert second.elector.epoch == first.elector.epoch + 1
    await second.end()


async def test_a_leader_that_cannot_renew_stops_leading_before_anybody_else_may() -> None:
    api = Api()
    leader = Candidate(api, "leader")
    await leader.leads()
    api.down = True
    async with asyncio.timeout(5):
        await leader.lost.wait()
        await leader.task
    assert not leader.leading()


async def test_a_short_outage_does_not_cost_the_lease() -> None:
    api = Api()
    leader = Candidate(api, "leader")
    await leader.leads()
    api.down = True
    await asyncio.sleep(0.08)
    api.down = False
    await asyncio.sleep(0.4)
    assert leader.leading()
    assert not leader.lost.is_set()
    await leader.end()


@pytest.mark.parametrize("lost", [1, 2])
async def test_lost_answers_do_not_cost_the_lease(lost: int) -> None:
    api = Api()
    leader = Candidate(api, "leader")
    await leader.leads()
    api.lose_answers = lost
    await asyncio.sleep(0.4)
    assert leader.leading()
    await leader.end()


async def test_a_lost_answer_to_the_first_write_is_found_out() -> None:
    api = Api()
    api.lose_answers = 1
    leader = Candidate(api, "leader")
    await leader.leads()
    await leader.end()


async def test_a_lease_that_another_took_is_lost() -> None:
    api = Api()
    leader = Candidate(api, "leader")
    await leader.leads()
    assert api.lease is not None
    api.lease["spec"]["holderIdentity"] = "usurper"
    api.version += 1
    api.lease["metadata"]["resourceVersion"] = str(api.version)
    async with asyncio.timeout(5):
        await leader.lost.wait()
    assert api.holder == "usurper"
    await leader.end()


async def test_a_lease_that_somebody_deletes_is_made_again() -> None:
    api = Api()
    leader = Candidate(api, "leader")
    await leader.leads()
    api.lease = None
    await asyncio.sleep(0.1)
    assert api.holder == "leader"
    assert leader.leading()
    await leader.end()


async def test_a_paused_process_knows_by_its_own_clock_that_it_leads_no_more() -> None:
    api, clock = Api(), FakeClock()
    made = Elector(api, "ns", "lease", "me", clock)  # type: ignore[arg-type]
    assert await made._try()
    assert made.is_leader
    clock.advance(14.9)
    assert made.is_leader
    clock.advance(0.2)
    assert not made.is_leader


async def test_releasing_twice_writes_once_and_never_raises() -> None:
    api, clock = Api(), FakeClock()
    made = Elector(api, "ns", "lease", "me", clock)  # type: ignore[arg-type]
    await made._try()
    writes = api.writes
    await made.release()
    await made.release()
    assert api.writes == writes + 1
    assert api.holder == ""
    await made._try()
    api.down = True
    await made.release()
