"""Draining: a pool, or one of its pods, finishes its jobs and takes no more.

A pool is suspended, and its workers stay. A pod is named in an annotation of its pool, which the
operator heeds: so this process needs no rights to pods, with which it could run anything anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from engineroom.api import ANNOTATION_DRAIN_PODS
from engineroom.auth.permissions import Permission
from engineroom.console.resources.pools import change, read
from engineroom.console.rest.errors import PoolSizingError
from engineroom.console.rest.pagination import etag
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.errors import MissingError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Pods of one pool that may be asked at a time.
MAX_PODS = 50


class DrainView(Model):
    """How far a drain is. `held` is null while the operator has not answered.

    `pods` are those that were named; one that is gone stays named, which does no harm.
    """

    draining: bool = Field(description="Whether the pool as a whole takes no more jobs.")
    held: int | None = Field(description="Workers that have a job in hand.")
    pods_leaving: int
    done: bool
    pods: list[str]


async def drain_pool(call: Call) -> Answer:
    """Suspend the pool: its workers finish their jobs and take no more, and jobs wait."""
    return await _suspend(call, suspend=True)


async def undrain_pool(call: Call) -> Answer:
    """Let its workers take jobs again."""
    return await _suspend(call, suspend=False)


async def show_drain(call: Call) -> Answer:
    """How far it is."""
    return _shown(await read(call))


async def drain_pod(call: Call) -> Answer:
    """Have a pod finish its job and go; where the work needs it, a new one comes."""
    pool, name = await read(call), call.path["pod"]
    asked = _asked(pool)
    if name in asked:
        return _shown(pool, pod=name)
    if not (pool.get("spec") or {}).get("redis"):
        # Of a pool with a Redis of its own nothing is known here but what the operator says.
        workers = await call.services.tasks.workers()
        whole = f"{call.namespace}/{call.path['pool']}"
        if not any(each.pool == whole and each.pod == name for each in workers):
            raise MissingError("pod: no worker of this pool runs in one of that name")
        alive = {each.pod for each in workers if each.pool == whole}
        asked = [each for each in asked if each in alive]
    if len(asked) >= MAX_PODS:
        raise PoolSizingError(f"pod: {MAX_PODS} of the pool are asked already; scale it instead")
    return await _annotate(call, pool, [*asked, name])


async def undrain_pod(call: Call) -> Answer:
    """Call it back, if it has not gone yet."""
    pool, name = await read(call), call.path["pod"]
    asked = _asked(pool)
    if name not in asked:
        raise MissingError("pod: none of that name was asked to leave")
    return await _annotate(call, pool, [each for each in asked if each != name])


async def _suspend(call: Call, *, suspend: bool) -> Answer:
    changed = await change(call, await read(call), {"spec": {"suspend": suspend}})
    return _shown(changed, suspend=suspend)


async def _annotate(call: Call, pool: Mapping[str, Any], pods: list[str]) -> Answer:
    said = {ANNOTATION_DRAIN_PODS: ",".join(pods) or None}
    changed = await change(call, pool, {"metadata": {"annotations": said}})
    return _shown(changed, pod=call.path["pod"])


def _asked(pool: Mapping[str, Any]) -> list[str]:
    said = (pool["metadata"].get("annotations") or {}).get(ANNOTATION_DRAIN_PODS) or ""
    return [each for each in said.split(",") if each]


def _shown(pool: Mapping[str, Any], **details: Any) -> Answer:
    metadata, status = pool["metadata"], pool.get("status") or {}
    answered = status.get("observedGeneration") == metadata.get("generation")
    draining = bool((pool.get("spec") or {}).get("suspend"))
    held = int(status.get("busyWorkers") or 0) if answered else None
    view = DrainView(
        draining=draining,
        held=held,
        pods_leaving=int(status.get("drainingReplicas") or 0),
        done=draining and held == 0,
        pods=_asked(pool),
    )
    return Answer(view, headers={"etag": etag(metadata["resourceVersion"])}, details=details)


_POOL = f"{BASE}/namespaces/{{namespace}}/pools/{{pool}}"
_DRAIN = Permission.NAMESPACE_POOLS_DRAIN
ROUTES = (
    Route(
        method="GET", path=f"{_POOL}/drain", needs=Permission.NAMESPACE_POOLS_READ,
        handler=show_drain, summary="How far a drain is", tag="pools", answer=DrainView,
        conditional=True, errors=(404,),
    ),
    Route(
        method="POST", path=f"{_POOL}/drain", needs=_DRAIN, handler=drain_pool,
        summary="Have a pool finish its jobs and take no more", tag="pools", answer=DrainView,
        action="pool.drain", conditional=True, errors=(404, 409, 412),
    ),
    Route(
        method="DELETE", path=f"{_POOL}/drain", needs=_DRAIN, handler=undrain_pool,
        summary="Let a pool work again", tag="pools", answer=DrainView, action="pool.undrain",
        conditional=True, errors=(404, 409, 412),
    ),
    Route(
        method="POST", path=f"{_POOL}/pods/{{pod}}/drain", needs=_DRAIN, handler=drain_pod,
        summary="Have a pod finish its job and go", tag="pools", answer=DrainView,
        action="pod.drain", conditional=True, errors=(404, 409, 412),
    ),
    Route(
        method="DELETE", path=f"{_POOL}/pods/{{pod}}/drain", needs=_DRAIN, handler=undrain_pod,
        summary="Call a pod back", tag="pools", answer=DrainView, action="pod.undrain",
        conditional=True, errors=(404, 409, 412),
    ),
)  # fmt: skip
