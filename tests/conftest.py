"""What all tests share."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support import redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support import RedisServer

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell has its background jobs ignore Ctrl-C, and what they start inherits it: the programs
    # under test, which are to be interrupted, would, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.cluster.pytest_plugin"]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis that the tests of a module share."""
    with redis_server() as running:
        yield running


class ByFile(LoadScopeScheduling):
    """Files go to workers as a whole, for their tests share fixtures; end-to-end tests are one.

    They share an installation on a cluster, which takes a minute to make.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "e2e" if nodeid.startswith("tests/e2e/") else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """For runs with ``-n`` (make test)."""
    return ByFile(config, log)
