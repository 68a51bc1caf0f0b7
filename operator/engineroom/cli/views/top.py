"""Pools and worker pods by what they do now."""

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
    """Pods under their pool's namespace and name."""
    groups: dict[tuple[str, str], list[Pod]] = {}
    for pod in pods:
        groups.setdefault((pod.namespace, pod.pool), []).append(pod)
    return groups


def _sum(pods: Sequence[Pod], what: str) -> int | None:
    """Sum over the measured pods; None where none is measured."""
    values = [getattr(pod.usage, what) for pod in pods if pod.usage is not None]
    return sum(values) if values else None


def top_pools(pools: Sequence[Pool], pods: Sequence[Pod], *, namespaces: bool) -> RenderableType:
    """One line a pool, the busiest first, and a line for all of them."""
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
    """All pools in one line."""
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
    """One line a worker pod, busy ones first."""
    columns = ["POD", "POOL", "STATE", "WORKERS", "RESTARTS", "MEMORY", "CPU", "AGE", "NODE"]
    if namespaces:
        columns.insert(0, "NAMESPACE")
    rows: list[list[str | Text]] = []
    for pod in sorted(pods, key=_place):
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


def _place(pod: Pod) -> tuple[int, int, str, str]:
    # What is in trouble is none of the known states and comes first.
    place = _ORDER.index(pod.state) if pod.state in _ORDER else -1
    return place, -(pod.usage.memory if pod.usage else 0), pod.namespace, pod.name


def top_pools_document(pools: Sequence[Pool], pods: Sequence[Pod]) -> dict[str, Any]:
    """The same for programs."""
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
    """The same for programs."""
    return {"workers": [pod_document(pod) for pod in sorted(pods, key=_place)]}
