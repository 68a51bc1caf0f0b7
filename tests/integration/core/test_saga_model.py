"""Any order of runs, failures, crashes and recoveries ends as the model says."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import redis.asyncio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engineroom.core.transactions.errors import SagaFencedError, SagaUndoneError
from engineroom.core.transactions.saga import Coordinator
from engineroom.core.transactions.sagalog import RedisSagaLog
from tests.integration.core.sagas import NAMES, TellingLog, sagas
from tests.support import RedisServer

FAILS = st.sampled_from([None, *NAMES])


class Crash(BaseException):
    """The coordinator is gone."""


class Sagas(RuleBasedStateMachine):
    """The model: which sagas ever began, and which step of each fails."""

    server: RedisServer

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.client = redis.asyncio.Redis.from_url(self.server.url)
        self.fails: dict[str, str | None] = {}
        self.ended: dict[str, bool] = {}

    @initialize()
    def clean(self) -> None:
        self.runner.run(self._clean())

    async def _clean(self) -> None:
        await self.client.flushall()

    def teardown(self) -> None:
        try:
            self.runner.run(self._recover(None))
            for id_ in self.fails:
                assert id_ in self.ended
        finally:
            self.runner.run(self.client.aclose())
            self.runner.close()

    def _coordinator(self, crash: tuple[int, str] | None) -> Coordinator:
        def around(number: int, side: str) -> None:
            if (number, side) == crash:
                raise Crash

        log: Any = TellingLog(RedisSagaLog(self.client), around)
        return Coordinator(log, sagas(self.client))

    @rule(
        id_=st.sampled_from(["x", "y", "z"]),
        fails=FAILS,
        crash=st.none() | st.tuples(st.integers(0, 9), st.sampled_from(["before", "after"])),
    )
    def run(self, id_: str, fails: str | None, crash: tuple[int, str] | None) -> None:
        self.runner.run(self._run(id_, fails, crash))

    async def _run(self, id_: str, fails: str | None, crash: tuple[int, str] | None) -> None:
        begins = id_ not in self.fails and crash != (0, "before")
        if begins:
            self.fails[id_] = fails
        with contextlib.suppress(Crash):
            try:
                answer = await self._coordinator(crash).run("order", id_, fails)
            except SagaUndoneError:
                assert self.fails[id_] is not None
                self.ended[id_] = False
            except SagaFencedError:
                assert id_ not in self.ended
            else:
                assert answer == {name: f"did {name}" for name in NAMES}
                assert self.fails[id_] is None
                self.ended[id_] = True

    @rule(crash=st.none() | st.tuples(st.integers(0, 9), st.sampled_from(["before", "after"])))
    def recover(self, crash: tuple[int, str] | None) -> None:
        self.runner.run(self._recover(crash))

    async def _recover(self, crash: tuple[int, str] | None) -> None:
        for id_ in await self.client.zrange("{engineroom:sagas}:open", 0, -1):
            await self.client.zadd("{engineroom:sagas}:open", {id_: 0})  # its lease ran out
        try:
            await self._coordinator(crash).recover()
        except Crash:
            return
        if crash is None:
            for id_, fails in self.fails.items():
                self.ended[id_] = fails is None

    @invariant()
    def whole(self) -> None:
        self.runner.run(self._whole())

    async def _whole(self) -> None:
        for id_, fails in self.fails.items():
            keys = [f"{id_}/{name}" for name in NAMES]
            applied = [bool(await self.client.sismember("applied", key)) for key in keys]
            acted: list[Any] = [int(await self.client.get(f"acted:{key}") or 0) for key in keys]
            assert max(acted) <= 1
            if fails is not None:
                assert not any(acted[NAMES.index(fails) + 1 :])
            if id_ in self.ended:
                assert applied == [self.ended[id_]] * 3


def test_sagas_follow_the_model() -> None:
    Sagas.server = RedisServer()
    Sagas.server.start()
    try:
        machine = settings(max_examples=100, stateful_step_count=10, deadline=None)
        Sagas.TestCase.settings = machine
        Sagas.TestCase("runTest").runTest()
    finally:
        Sagas.server.close()
