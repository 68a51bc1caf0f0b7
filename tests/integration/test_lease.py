"""Leader election on a real Lease."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from engineroom.core.clock import SystemClock
from engineroom.kube.client.client import Client
from engineroom.kube.client.resources import LEASES
from engineroom.kube.runtime.lease import Elector, LeaseTimes
from tests.integration.faultproxy import Drop, FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: A Lease counts in whole seconds, so this is as quick as it gets.
TIMES = LeaseTimes(duration=2.0, renew_deadline=1.4, retry_period=0.1)


class Candidate:
    def __init__(self, client: Client, namespace: str, name: str) -> None:
        self.elector = Elector(client, namespace, "lease", name, SystemClock(), times=TIMES)
        self.started = asyncio.Event()
        self.lost = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Candidate]:
        task = asyncio.create_task(self.elector.run(self.started.set, self.lost.set))
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.wait([task])

    def leading(self) -> bool:
        return self.elector.is_leader

    async def leads(self) -> None:
        async with asyncio.timeout(10):
            await self.started.wait()


async def spec(client: Client, namespace: str) -> dict[str, Any]:
    lease = await client.get(LEASES, namespace, "lease")
    found: dict[str, Any] = lease["spec"]
    return found


async def test_one_leads_and_hands_over(client: Client, namespace: str) -> None:
    async with Candidate(client, namespace, "a").running() as a:
        await a.leads()
        made = await spec(client, namespace)
        assert made["holderIdentity"] == "a"
        assert made["leaseTransitions"] == 0
        async with Candidate(client, namespace, "b").running() as b:
            await asyncio.sleep(2.5)
            assert a.leading()
            assert not b.leading()
            a.elector.stop()
            await b.leads()
            assert not a.leading()
            assert b.elector.epoch == 1
            assert (await spec(client, namespace))["holderIdentity"] == "b"


async def test_never_two_at_once_when_the_leader_is_cut_off(
    proxy: FaultProxy, client: Client, namespace: str
) -> None:
    async with (
        Client(proxy.config) as through,
        Candidate(through, namespace, "cut off").running() as old,
    ):
        await old.leads()
        async with Candidate(client, namespace, "next").running() as new:
            proxy.before(lambda _: Drop())
            async with asyncio.timeout(10):
                while not new.leading():
                    assert not (old.leading() and new.leading())
                    await asyncio.sleep(0.005)
            assert old.lost.is_set()
            assert not old.leading()


async def test_lost_answers_and_foreign_edits_do_not_cost_the_lease(
    proxy: FaultProxy, client: Client, namespace: str
) -> None:
    async with (
        Client(proxy.config) as through,
        Candidate(through, namespace, "a").running() as a,
    ):
        await a.leads()
        lost = [Drop(), Drop()]
        proxy.after(lambda r: lost.pop() if r.write and lost else None)
        await client.merge_patch(
            LEASES, namespace, "lease", {"metadata": {"annotations": {"by": "somebody"}}}
        )
        await asyncio.sleep(2.5)
        assert a.leading()
        assert not lost
        assert not a.lost.is_set()
