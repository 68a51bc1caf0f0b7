"""Toys, and an API server that serves the toy kind for a while."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from engineroom.api.schema.common import crd
from engineroom.core.errors import EngineroomError
from engineroom.kube.client.errors import NotFound
from engineroom.kube.client.resources import CRDS, resource_of
from tests.toy_kind import TOY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engineroom.kube.client.client import Client

TOYS = resource_of(TOY)
#: Seconds until the API server serves a definition, and until one is deleted with its objects.
SERVED_WITHIN, DELETED_WITHIN = 30, 60


def a_toy(namespace: str, **spec: Any) -> dict[str, Any]:
    """Return a valid toy with some fields of its spec set."""
    return {
        "apiVersion": TOY.api_version,
        "kind": TOY.kind,
        "metadata": {"name": "car", "namespace": namespace},
        "spec": {"count": 1, **spec},
    }


@contextlib.asynccontextmanager
async def toys_served(client: Client) -> AsyncIterator[Client]:
    """Have the API server serve toys in the block; the registry must have the kind."""
    await client.apply(CRDS, crd(TOY))
    async with asyncio.timeout(SERVED_WITHIN):
        while True:
            try:
                await client.list(TOYS)
                break
            except EngineroomError:
                await asyncio.sleep(0.1)
    yield client
    await client.delete(CRDS, None, TOY.resource)
    async with asyncio.timeout(DELETED_WITHIN):
        # The next test must not meet a definition that is being deleted.
        while True:
            try:
                await client.get(CRDS, None, TOY.resource)
            except NotFound:
                break
            await asyncio.sleep(0.1)
