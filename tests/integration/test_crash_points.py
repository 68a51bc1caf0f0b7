"""The operator is killed before and after its writes; the end is always the same.

In the suite once for each kind of write and each side of it; `make bench NAME=crashes` does it at
every single write.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.integration.crashes import Crash, Life, live

if TYPE_CHECKING:
    from engineroom.kube.client.config import ApiConfig
    from tests.support import RedisServer

#: Lives played side by side; they mostly wait.
SIDE_BY_SIDE = 4

UNHARMED = Life(
    lost=0,
    doubled=0,
    size=0,
    pods=0,
    deployments=1,
    accounts=("mail-worker",),
    budgets=("mail",),
    answered=True,
    sizes_within_bounds=True,
)


@pytest.mark.timeout(600)
async def test_the_end_is_the_same_wherever_the_operator_dies(
    api_config: ApiConfig, redis: RedisServer
):
    whole = await live(api_config, redis, None)
    assert whole.life == UNHARMED
    kinds: dict[tuple[str, str], int] = {}
    for number, kind in enumerate(whole.writes):
        kinds.setdefault(kind, number)
    assert len(kinds) >= 6, kinds
    crashes = [Crash(number, after) for number in kinds.values() for after in (False, True)]
    places = asyncio.Semaphore(SIDE_BY_SIDE)

    async def one(crash: Crash) -> tuple[Crash, Life, bool]:
        async with places:
            record = await live(api_config, redis, crash)
        return crash, record.life, record.crashed

    outcomes = await asyncio.gather(*(one(crash) for crash in crashes))
    assert [(str(c), life) for c, life, _ in outcomes if life != UNHARMED] == []
    assert all(crashed for _, _, crashed in outcomes)
