"""Drains: a pool, or one of its pods, finishes its jobs and takes no more.

Draining a pool suspends it; its workers stay. Draining a pod adds its name to an annotation of the
pool, which the operator acts on, so this process needs no rights to pods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from engineroom.api import ANNOTATION_DRAIN_PODS
from engineroom.auth.permissions import Permission
from engineroom.console.resources.pools import patch_pool, read_pool
from engineroom.console.rest.errors import PoolSizingError
from engineroom.console.rest.pagination import etag
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.errors import MissingError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Pods of one pool that can be drained at a time.
MAX_PODS = 50


class DrainView(Model):
    """The progress of a drain. `held` is null until the operator has seen the change.

    `pods` are the names in the annotation; they may include pods that no longer exist.
    """

    draining: bool = Field(description="Whether the whole pool is suspended.")
    held: int | None = Field(description="Workers that run a job.")
    pods_leaving: int
    done: bool
    pods: list[str]


async def drain_pool(call: Call) -> Answer:
    """Suspend the pool: its workers finish their jobs and take no more."""
    return await _suspend(call, suspend=True)


async def undrain_pool(call: Call) -> Answer:
    """Resume the pool: its workers take jobs again."""
    return await _suspend(call, suspend=False)


async def show_drain(call: Call) -> Answer:
    """Return the progress of a drain."""
    return _answer(await read_pool(call))


async def drain_pod(call: Call) -> Answer:
    """Drain a pod; if its capacity is still needed, a new pod replaces it."""
    pool, name = await read_pool(call), call.path["pod"]
    leaving = _draining_pods(pool)
    if name in leaving:
        return _answer(pool, pod=name)
    if not (pool.get("spec") or {}).get("redis"):
        # The workers of a pool with its own Redis cannot be read here.
        owner = f"{call.namespace}/{call.path['pool']}"
        workers = [w for w in await call.services.tasks.workers() if w.pool == owner]
        if not any(worker.pod == name for worker in workers):
            raise MissingError("pod: no worker of this pool runs in a pod of that name")
        alive = {worker.pod for worker in workers}
        leaving = [pod for pod in leaving if pod in alive]
    if len(leaving) >= MAX_PODS:
        raise PoolSizingError(f"pod: {MAX_PODS} of the pool drain already; scale it instead")
    return await _annotate(call, pool, [*leaving, name])


async def undrain_pod(call: Call) -> Answer:
    """Cancel the drain of a pod that still runs."""
    pool, name = await read_pool(call), call.path["pod"]
    leaving = _draining_pods(pool)
    if name not in leaving:
        raise MissingError("pod: none of that name is being drained")
    return await _annotate(call, pool, [pod for pod in leaving if pod != name])


async def _suspend(call: Call, *, suspend: bool) -> Answer:
    changed = await patch_pool(call, await read_pool(call), {"spec": {"suspend": suspend}})
    return _answer(changed, suspend=suspend)


async def _annotate(call: Call, pool: Mapping[str, Any], pods: list[str]) -> Answer:
    annotations = {ANNOTATION_DRAIN_PODS: ",".join(pods) or None}
    changed = await patch_pool(call, pool, {"metadata": {"annotations": annotations}})
    return _answer(changed, pod=call.path["pod"])


def _draining_pods(pool: Mapping[str, Any]) -> list[str]:
    annotations = pool["metadata"].get("annotations") or {}
    return [name for name in (annotations.get(ANNOTATION_DRAIN_PODS) or "").split(",") if name]


def _answer(pool: Mapping[str, Any], **details: Any) -> Answer:
    metadata, status = pool["metadata"], pool.get("status") or {}
    observed = status.get("observedGeneration") == metadata.get("generation")
    draining = bool((pool.get("spec") or {}).get("suspend"))
    held = int(status.get("busyWorkers") or 0) if observed else None
    view = DrainView(
        draining=draining,
        held=held,
        pods_leaving=int(status.get("drainingReplicas") or 0),
        done=draining and held == 0,
        pods=_draining_pods(pool),
    )
    return Answer(view, headers={"etag": etag(metadata["resourceVersion"])}, details=details)


_POOL = f"{BASE}/namespaces/{{namespace}}/pools/{{pool}}"
_DRAIN = Permission.NAMESPACE_POOLS_DRAIN
ROUTES = (
    Route(
        method="GET", path=f"{_POOL}/drain", needs=Permission.NAMESPACE_POOLS_READ,
        handler=show_drain, summary="The progress of a drain", tag="pools", answer=DrainView,
        conditional=True, errors=(404,),
    ),
    Route(
        method="POST", path=f"{_POOL}/drain", needs=_DRAIN, handler=drain_pool,
        summary="Drain a pool", tag="pools", answer=DrainView,
        action="pool.drain", conditional=True, errors=(404, 409, 412),
    ),
    Route(
        method="DELETE", path=f"{_POOL}/drain", needs=_DRAIN, handler=undrain_pool,
        summary="End the drain of a pool", tag="pools", answer=DrainView, action="pool.undrain",
        conditional=True, errors=(404, 409, 412),
    ),
    Route(
        method="POST", path=f"{_POOL}/pods/{{pod}}/drain", needs=_DRAIN, handler=drain_pod,
        summary="Drain a pod", tag="pools", answer=DrainView,
        action="pod.drain", conditional=True, errors=(404, 409, 412),
    ),
    Route(
        method="DELETE", path=f"{_POOL}/pods/{{pod}}/drain", needs=_DRAIN, handler=undrain_pod,
        summary="Cancel the drain of a pod", tag="pools", answer=DrainView, action="pod.undrain",
        conditional=True, errors=(404, 409, 412),
    ),
)  # fmt: skip
