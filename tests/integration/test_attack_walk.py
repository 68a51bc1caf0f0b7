"""A row of the attack walk; ``make attacks`` walks 10,000 steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.attacks.__main__ import run

if TYPE_CHECKING:
    from tests.cluster.api import Cluster
    from tests.support import RedisServer


async def test_authors_gain_nothing_and_queues_keep_their_owner(
    control_plane: Cluster, redis: RedisServer
) -> None:
    report = await run(control_plane, redis, steps=300, seed=20261130)

    assert report.gained == []
    assert report.refused_wrongly == []
    assert report.foreign == []
    assert min(report.accepted, report.refused) > 30
