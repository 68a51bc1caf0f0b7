"""One control plane for the tests of this directory, and a namespace or a Redis for each test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from dataclasses import astuple
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import yaml

from engineroom.core.errors import EngineroomError
from engineroom.kube.client import config as kube_config
from engineroom.kube.client.client import Client
from engineroom.kube.client.errors import NotFound
from engineroom.kube.client.resources import CRDS, NAMESPACES, WORKERPOOLS
from tests.integration.faultproxy import FaultProxy
from tests.support import ROOT, redis_server, shared_namespace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from engineroom.kube.client.config import ApiConfig
    from tests.cluster.api import Cluster
    from tests.support import RedisServer


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Cluster]:
    """An API server with etcd, private to this run of pytest."""
    from tests.cluster.api import Shape
    from tests.cluster.local import Local, remove_abandoned
    from tests.cluster.process import Identity

    owner = Identity.of(os.getpid())
    assert owner is not None
    remove_abandoned()
    # Named by process: several runs may go on beside each other.
    cluster = Local(f"integration-{os.getpid()}", owner=astuple(owner))
    cluster.up(Shape.CONTROL_PLANE)
    try:
        asyncio.run(_install(kube_config.from_kubeconfig(cluster.kubeconfig)))
        yield cluster
    finally:
        cluster.down()


async def _install(config: ApiConfig) -> None:
    async with Client(config) as client:
        for path in sorted((ROOT / "crds").glob("*.yaml")):
            await client.apply(CRDS, yaml.safe_load(path.read_text()))
        async with asyncio.timeout(30):
            while True:
                try:
                    await client.list(WORKERPOOLS)
                except EngineroomError:
                    await asyncio.sleep(0.1)
                else:
                    return


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis of the test's own, which loses nothing when it restarts."""
    with redis_server(durable=True) as running:
        yield running


@pytest.fixture(scope="session")
def api_config(control_plane: Cluster) -> ApiConfig:
    """How to reach it as an administrator."""
    return kube_config.from_kubeconfig(control_plane.kubeconfig)


@pytest_asyncio.fixture
async def client(api_config: ApiConfig) -> AsyncIterator[Client]:
    """A client of the administrator."""
    async with Client(api_config) as opened:
        yield opened


@pytest_asyncio.fixture
async def namespace(client: Client) -> AsyncIterator[str]:
    """A namespace of this test's own."""
    name = f"test-{secrets.token_hex(4)}"
    await client.create(NAMESPACES, shared_namespace(name))
    yield name
    with contextlib.suppress(NotFound):
        await client.delete(NAMESPACES, None, name)


@pytest_asyncio.fixture
async def proxy(api_config: ApiConfig) -> AsyncIterator[FaultProxy]:
    """A proxy in front of the API server that can be made to misbehave."""
    async with FaultProxy(api_config) as opened:
        yield opened
