"""The process that tests fork others from: no threads, no connections, and all imported already.

In a process of tests there is one of it, begun by whoever comes first and never anew: so what it
imports stands here for all of them. What is missing there, each forked process has to import.
"""

from __future__ import annotations

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        # What commands need; it takes most of their time.
        "engineroom.cli.connections.local_apply",
        "engineroom.cli.app.main",
        "engineroom.tasks",
        "kubernetes.client.rest",
        "tests.integration.core.sagas",
        "tests.integration.core.twophase",
        "tests.integration.tasks.mortal",
    ]
)
