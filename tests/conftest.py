"""What all tests share."""

from __future__ import annotations

import pytest

pytest_plugins = ["tests.cluster.pytest_plugin"]


# First: pytest-xdist reads the groups in the same hook.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side (``make test``) go files, whose tests share fixtures; end-to-end tests are one.

    They share an installation on a cluster, which takes a minute to make.
    """
    for item in items:
        name = item.path.as_posix()
        group = "e2e" if "/tests/e2e/" in name else name
        item.add_marker(pytest.mark.xdist_group(group))
