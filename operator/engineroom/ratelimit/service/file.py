"""Policies from a file, for use without a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.ratelimit.document import read
from engineroom.ratelimit.follow import StaticPolicies
from engineroom.ratelimit.service.directory import Room

if TYPE_CHECKING:
    from pathlib import Path

    from redis.asyncio import Redis


def read_rooms(path: Path, redis: Redis) -> dict[str, Room]:
    """The policies in a file by namespace; raises OSError and UnreadableDocumentError."""
    policies = read(path.read_text())
    return {policies.namespace: Room(StaticPolicies(policies), redis)}
