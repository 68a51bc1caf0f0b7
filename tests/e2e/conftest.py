"""One installation for all end-to-end tests, on a cluster with a node."""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING

import pytest

from tests.deployed import images
from tests.deployed.installation import NAMESPACE as SYSTEM
from tests.deployed.installation import Installation
from tests.e2e.fragile import FragileRedis
from tests.e2e.pool import NAMESPACE, VALUES, Pool
from tests.support import shared_namespace

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tests.cluster.api import Cluster
    from tests.deployed.forward import Forward

_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell fixtures at teardown whether the test failed."""
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


@pytest.fixture(scope="session")
def installation(node_cluster: Cluster) -> Installation:
    """Engineroom installed by the chart."""
    images.load(node_cluster, images.build())
    installation = Installation(node_cluster)
    installation.kube.apply("namespaces", None, shared_namespace(NAMESPACE))
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    restricted = {"apiVersion": "v1", "kind": "Namespace"}
    restricted["metadata"] = {"name": SYSTEM, "labels": labels}
    installation.kube.apply("namespaces", None, restricted)
    installation.upgrade(VALUES)
    return installation


@pytest.fixture(scope="session")
def redis(installation: Installation) -> Iterator[Forward]:
    """A client of the chart's Redis."""
    with installation.redis() as forward:
        yield forward


@pytest.fixture
def pool(
    installation: Installation, redis: Forward, request: pytest.FixtureRequest
) -> Iterator[Pool]:
    """A pool that does not exist yet; deleted after the test, and printed if that failed."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())
    # Never the name of an earlier run's: a cluster may be used again, with what is in its Redis.
    pool = Pool(installation, redis, f"{words[:24].strip('-')}-{secrets.token_hex(2)}")
    yield pool
    if pool.kube.find("workerpools", NAMESPACE, pool.name) is None:
        return
    if request.node.stash.get(_failed, False):
        print(pool.story())
        print("--- operator")
        print(
            installation.kubectl(
                "logs", "-n", SYSTEM, "-l", "app.kubernetes.io/component=operator", "--tail=40"
            )
        )
    pool.delete()


@pytest.fixture
def fragile_redis(installation: Installation) -> Iterator[FragileRedis]:
    """A Redis that a test may stop; other tests use the chart's own."""
    fragile = FragileRedis(installation, "fragile")
    fragile.start()
    yield fragile
    fragile.remove()
