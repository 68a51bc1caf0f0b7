"""Fixtures that provide clusters; name this module in `pytest_plugins` or with `-p`."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

import pytest

from .api import Cluster, Shape
from .choose import select
from .local import remove_abandoned
from .process import Identity

if TYPE_CHECKING:
    from collections.abc import Iterator

# Names a node cluster that is up already, so that trying a test again does not start one.
REUSE = "ENGINEROOM_TEST_CLUSTER"


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Cluster]:
    """An API server with its controllers, private to this session. Objects stay until the session
    ends.
    """
    yield from private_cluster(Shape.CONTROL_PLANE)


@pytest.fixture(scope="session")
def node_cluster() -> Iterator[Cluster]:
    """A cluster that runs pods: the one that ENGINEROOM_TEST_CLUSTER names, else one private to
    this session.
    """
    name = os.environ.get(REUSE)
    if name is None:
        yield from private_cluster(Shape.NODE)
    else:
        cluster = select(name)
        cluster.up(Shape.NODE)
        yield cluster


def private_cluster(shape: Shape) -> Iterator[Cluster]:
    """Yield a cluster of the shape; remove it when the generator is closed, or when this process
    ends.
    """
    # Sessions that were killed could not clean up after themselves.
    remove_abandoned()
    identity = Identity.of(os.getpid())
    assert identity is not None
    owner = (identity.pid, identity.started, identity.boot)
    cluster = select(f"test-{secrets.token_hex(4)}", owner=owner)
    try:
        cluster.up(shape)
        yield cluster
    finally:
        cluster.down()
