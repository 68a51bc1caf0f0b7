"""Tables of pools and worker pods by their current load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from engineroom.cli.views.diagnose import pool_state
from engineroom.cli.views.explain import pod_document, pool_document
from engineroom.cli.views.output_formats import table, word
from engineroom.cli.views.pools import busy, oldest, pods_ready
from engineroom.cli.views.text import ABSENT, age, count, cpu, memory, number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from rich.console import RenderableType

    from engineroom.cli.connections.model import Pod, Pool

_ORDER = ("busy", "draining", "drained", "leaving", "ready", "idle", "starting")


def by_pool(pods: Sequence[Pod]) -> dict[tuple[str, str], list[Pod]]:
    """Return the pods grouped by namespace and name of their pool."""
    groups: dict[tuple[str, str], list[Pod]] = {}
    for pod in pods:
        groups.setdefault((pod.namespace, pod.pool), []).append(pod)
    return groups


def _sum(pods: Sequence[Pod], resource: str) -> int | None:
    """Return the usage of a resource over all measured pods; None if none is measured."""
    values = [getattr(pod.usage, resource) for pod in pods if pod.usage is not None]
    return sum(values) if values else None


def top_pools(pools: Sequence[Pool], pods: Sequence[Pod], *, namespaces: bool) -> RenderableType:
    """Return a table with one row per pool, the busiest first, and a summary line."""
    groups = by_pool(pods)
    columns = ["NAME", "STATE", "PODS", "BUSY", "JOBS/MIN", "WAITING", "RUNNING", "OLDEST"]
    columns += ["MEMORY", "CPU"]
    if namespaces:
        columns.insert(0, "NAMESPACE")
    rows: list[list[str | Text]] = []
    for pool in _busiest(pools):
        own = groups.get((pool.namespace, pool.name), [])
        row: list[str | Text] = [
            pool.name,
            word(pool_state(pool)),
            pods_ready(pool),
            busy(pool),
            number(pool.status.jobs_per_minute if pool.status else None),
            number(pool.total("depth")),
            number(pool.total("running")),
            oldest(pool),
            memory(_sum(own, "memory")),
            cpu(_sum(own, "cpu")),
        ]
        if namespaces:
            row.insert(0, pool.namespace)
        rows.append(row)
    right = ("JOBS/MIN", "WAITING", "RUNNING", "MEMORY", "CPU")
    return Group(table(columns, rows, right=right), Text(), Text(summary(pools), style="bold"))


def _busiest(pools: Sequence[Pool]) -> list[Pool]:
    return sorted(
        pools,
        key=lambda pool: (
            -(pool.status.busy_workers if pool.status else 0),
            -(pool.total("depth") or 0),
            pool.id,
        ),
    )


def summary(pools: Sequence[Pool]) -> str:
    """Return a summary of all pools in one line."""
    reported = [pool for pool in pools if pool.status is not None]
    busy_workers = sum(pool.status.busy_workers for pool in reported if pool.status)
    workers = count(sum(pool.workers or 0 for pool in reported), "worker")
    rate = sum(pool.status.jobs_per_minute for pool in reported if pool.status)
    waiting = count(sum(pool.total("depth") or 0 for pool in reported), "job")
    return (
        f"{count(len(pools), 'pool')}: {busy_workers} of {workers} busy, {waiting} waiting, "
        f"{rate} finished in the last minute"
    )


def top_workers(
    pods: Sequence[Pod], workers_per_pod: Mapping[tuple[str, str], int], now: datetime,
    *, namespaces: bool,
) -> RenderableType:  # fmt: skip
    """Return a table with one row per worker pod, busy ones first."""
    columns = ["POD", "POOL", "STATE", "WORKERS", "RESTARTS", "MEMORY", "CPU", "AGE", "NODE"]
    if namespaces:
        columns.insert(0, "NAMESPACE")
    rows: list[list[str | Text]] = []
    for pod in sorted(pods, key=_sort_key):
        row: list[str | Text] = [
            pod.name,
            pod.pool,
            word(pod.state),
            str(workers_per_pod.get((pod.namespace, pod.pool), 1)),
            str(pod.restarts),
            memory(pod.usage.memory if pod.usage else None),
            cpu(pod.usage.cpu if pod.usage else None),
            age(pod.created, now),
            pod.node or ABSENT,
        ]
        if namespaces:
            row.insert(0, pod.namespace)
        rows.append(row)
    return table(columns, rows, right=("WORKERS", "RESTARTS", "MEMORY", "CPU"))


def _sort_key(pod: Pod) -> tuple[int, int, str, str]:
    # The state of a pod in trouble is not in the order, so the pod comes first.
    rank = _ORDER.index(pod.state) if pod.state in _ORDER else -1
    return rank, -(pod.usage.memory if pod.usage else 0), pod.namespace, pod.name


def top_pools_document(pools: Sequence[Pool], pods: Sequence[Pod]) -> dict[str, Any]:
    """Return the pools as a JSON document, in the order of ``top_pools``."""
    groups = by_pool(pods)
    return {
        "pools": [
            {
                **pool_document(pool),
                "memory": _sum(groups.get((pool.namespace, pool.name), []), "memory"),
                "cpu": _sum(groups.get((pool.namespace, pool.name), []), "cpu"),
            }
            for pool in _busiest(pools)
        ]
    }


def top_workers_document(pods: Sequence[Pod]) -> dict[str, Any]:
    """Return the worker pods as a JSON document, in the order of ``top_workers``."""
    return {"workers": [pod_document(pod) for pod in sorted(pods, key=_sort_key)]}
