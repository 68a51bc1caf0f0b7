"""The table of pools."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.cli.connections.parsing import parse_pool
from engineroom.cli.views.diagnose import pool_state
from engineroom.cli.views.output_formats import table, word
from engineroom.cli.views.text import ABSENT, age, clip, number, seconds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from rich.table import Table
    from rich.text import Text

    from engineroom.api.kinds import Kind
    from engineroom.cli.connections.model import Document, Pool


def oldest(pool: Pool) -> str:
    """Return the longest wait of a job in the pool's queues."""
    waits = [queue.oldest_job_age for queue in pool.queues if queue.oldest_job_age and queue.depth]
    return max(waits, key=seconds, default=ABSENT)


def sizing(pool: Pool) -> str:
    """Return ``0-10`` for an autoscaled pool, ``=3`` for one of fixed size."""
    if pool.autoscaling is not None:
        return f"{pool.autoscaling.minimum}-{pool.autoscaling.maximum}"
    return f"={1 if pool.replicas is None else pool.replicas}"


def busy(pool: Pool) -> str:
    """Return ``3/7``: busy workers of all workers in ready pods."""
    if pool.status is None:
        return ABSENT
    return f"{pool.status.busy_workers}/{pool.workers}"


def pods_ready(pool: Pool) -> str:
    """Return ``7/10``: ready pods of desired pods."""
    if pool.status is None:
        return ABSENT
    return f"{pool.status.ready}/{pool.status.desired}"


def pools_table(
    kind: Kind,
    documents: Sequence[Document],
    now: datetime,
    *,
    namespaces: bool,
    wide: bool = False,
) -> Table:
    """Return a table of pools."""
    del kind
    columns = ["NAME", "STATE", "PODS", "BUSY", "WAITING", "OLDEST", "JOBS/MIN", "SIZE", "AGE"]
    if namespaces:
        columns.insert(0, "NAMESPACE")
    if wide:
        columns += ["QUEUES", "IMAGE", "DECISION"]
    rows: list[list[str | Text]] = []
    for pool in map(parse_pool, documents):
        row: list[str | Text] = [
            pool.name,
            word(pool_state(pool)),
            pods_ready(pool),
            busy(pool),
            number(pool.total("depth")),
            oldest(pool),
            number(None if pool.status is None else pool.status.jobs_per_minute),
            sizing(pool),
            age(pool.created, now),
        ]
        if namespaces:
            row.insert(0, pool.namespace)
        if wide:
            names = ",".join(queue.name for queue in pool.queues)
            decision = pool.status.decision if pool.status else ""
            row += [clip(names, 40), pool.image or ABSENT, decision or ABSENT]
        rows.append(row)
    return table(columns, rows, right=("WAITING", "JOBS/MIN"))
