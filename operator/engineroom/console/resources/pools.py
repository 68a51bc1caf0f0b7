"""WorkerPools: their representation, and requests that set their size, pause and resume scaling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from engineroom.auth.permissions import Permission
from engineroom.console.resources.objects import (
    Condition,
    RestView,
    conditions,
    observed_generation,
)
from engineroom.console.rest.errors import PoolSizingError, PreconditionFailedError
from engineroom.console.rest.pagination import check_match, etag
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.errors import InvalidInputError, Problem
from engineroom.kube.client.errors import Conflict
from engineroom.kube.client.resources import WORKERPOOLS
from engineroom.manifests.apply import MANAGER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engineroom.api.kinds import Kind

_MOST = 10_000
_PAUSES = {"all": "All", "in": "ScaleIn", "out": "ScaleOut"}


class Autoscaling(Model):
    """The range of an autoscaled pool."""

    min_replicas: int
    max_replicas: int
    pause: str = Field(description="The paused direction: None, All, ScaleIn or ScaleOut.")


class Pool(Model):
    """A WorkerPool without its pod template, which may hold secrets."""

    namespace: str
    name: str
    resource_version: str
    generation: int
    observed_generation: int | None
    queues: list[str]
    owned_queues: list[str] = Field(
        description="Queues that the namespace owns: pools of other namespaces cannot read them."
    )
    own_redis: bool = Field(description="Whether the pool names its own Redis.")
    replicas: int | None = Field(description="The fixed size in pods; null if autoscaled.")
    autoscaling: Autoscaling | None
    current_replicas: int | None
    ready_replicas: int | None
    conditions: list[Condition]


class Pools(Model):
    """A page of pools."""

    items: list[Pool]
    next_cursor: str | None


class Scale(Model):
    """The number of pods of a pool with a fixed size, or the range of an autoscaled pool."""

    replicas: Annotated[int, Field(ge=0, le=_MOST)] | None = None
    min_replicas: Annotated[int, Field(ge=0, le=_MOST)] | None = None
    max_replicas: Annotated[int, Field(ge=1, le=_MOST)] | None = None


class Pause(Model):
    """The direction of scaling to pause."""

    direction: Literal["all", "in", "out"] = "all"


def pool_view(obj: Mapping[str, Any]) -> Pool:
    """Return the API's representation of a WorkerPool object."""
    metadata, spec = obj["metadata"], obj.get("spec") or {}
    status = obj.get("status") or {}
    auto = spec.get("autoscaling")
    return Pool(
        namespace=metadata["namespace"],
        name=metadata["name"],
        resource_version=metadata["resourceVersion"],
        generation=metadata.get("generation") or 0,
        observed_generation=observed_generation(status),
        queues=[queue["name"] for queue in spec.get("queues") or ()],
        owned_queues=[queue["name"] for queue in status.get("ownedQueues") or ()],
        own_redis=spec.get("redis") is not None,
        replicas=spec.get("replicas") if auto is None else None,
        autoscaling=None if auto is None else _autoscaling(auto),
        current_replicas=status.get("replicas"),
        ready_replicas=status.get("readyReplicas"),
        conditions=conditions(status),
    )


def _autoscaling(auto: Mapping[str, Any]) -> Autoscaling:
    return Autoscaling(
        min_replicas=auto.get("minReplicas") or 0,
        max_replicas=auto.get("maxReplicas") or 0,
        pause=auto.get("pause") or "None",
    )


def rest_view(kind: Kind) -> RestView:
    """Return the representation of pools in the API."""
    del kind
    return RestView(Pool, Pools, pool_view, "gone")


async def scale_pool(call: Call) -> Answer:
    """Set the pool's size or range."""
    request: Scale = call.body
    fixed = request.replicas is not None
    if fixed is (request.min_replicas is not None or request.max_replicas is not None):
        problem = Problem(
            "body", "needs a size or a range", "send replicas, or minReplicas and maxReplicas"
        )
        raise InvalidInputError([problem])
    pool = await read_pool(call)
    auto = (pool.get("spec") or {}).get("autoscaling")
    name = call.path["pool"]
    if fixed:
        if auto is not None:
            raise PoolSizingError(
                f"replicas: {name} is autoscaled; send minReplicas and maxReplicas"
            )
        patch: dict[str, Any] = {"spec": {"replicas": request.replicas}}
        changed = await patch_pool(call, pool, patch, subresource="scale")
        return _answer(changed, replicas=request.replicas)
    if auto is None:
        raise PoolSizingError(f"minReplicas: {name} has a fixed size; send replicas")
    current = _autoscaling(auto)
    low = current.min_replicas if request.min_replicas is None else request.min_replicas
    high = current.max_replicas if request.max_replicas is None else request.max_replicas
    if low > high:
        raise PoolSizingError(f"minReplicas: {low} is above maxReplicas {high}; send both")
    sizes = {"minReplicas": low, "maxReplicas": high}
    changed = await patch_pool(call, pool, {"spec": {"autoscaling": sizes}})
    return _answer(changed, minReplicas=low, maxReplicas=high)


async def pause_pool(call: Call) -> Answer:
    """Pause the pool's scaling; its workers continue."""
    return await _set_pause(call, _PAUSES[call.body.direction])


async def resume_pool(call: Call) -> Answer:
    """Resume the pool's scaling."""
    return await _set_pause(call, "None")


async def _set_pause(call: Call, pause: str) -> Answer:
    pool = await read_pool(call)
    if (pool.get("spec") or {}).get("autoscaling") is None:
        raise PoolSizingError(
            f"pause: {call.path['pool']} has a fixed size, so there is no scaling to pause"
        )
    changed = await patch_pool(call, pool, {"spec": {"autoscaling": {"pause": pause}}})
    return _answer(changed, pause=pause)


async def read_pool(call: Call) -> dict[str, Any]:
    """Return the object of the pool in the path."""
    return await call.services.client.get(WORKERPOOLS, call.namespace, call.path["pool"])


async def patch_pool(
    call: Call, pool: Mapping[str, Any], patch: dict[str, Any], *, subresource: str | None = None
) -> dict[str, Any]:
    """Patch the pool if it is still the version that was read and checked.

    Raises PreconditionFailedError or Conflict if it has changed.
    """
    version = pool["metadata"]["resourceVersion"]
    conditional = check_match(call.request, version)
    patch = {**patch, "metadata": {**patch.get("metadata", {}), "resourceVersion": version}}
    client, name = call.services.client, call.path["pool"]
    try:
        changed = await client.merge_patch(
            WORKERPOOLS, call.namespace, name, patch, subresource=subresource,
            field_manager=MANAGER,
        )  # fmt: skip
    except Conflict as error:
        if not conditional:
            raise
        raise PreconditionFailedError("if-match: the pool has changed; read it again") from error
    return await read_pool(call) if subresource else changed


def _answer(pool: Mapping[str, Any], **details: Any) -> Answer:
    view = pool_view(pool)
    return Answer(view, headers={"etag": etag(view.resource_version)}, details=details)


_POOL = f"{BASE}/namespaces/{{namespace}}/pools/{{pool}}"
ROUTES = (
    Route(
        method="POST", path=f"{_POOL}/scale", needs=Permission.NAMESPACE_POOLS_SCALE,
        handler=scale_pool, summary="Set the size or the range of a pool", tag="pools",
        body=Scale, answer=Pool, action="pool.scale", conditional=True, errors=(404, 409, 412),
    ),
    Route(
        method="POST", path=f"{_POOL}/pause", needs=Permission.NAMESPACE_POOLS_PAUSE,
        handler=pause_pool, summary="Pause the scaling of a pool", tag="pools", body=Pause,
        answer=Pool, action="pool.pause", conditional=True, errors=(404, 409, 412),
    ),
    Route(
        method="POST", path=f"{_POOL}/resume", needs=Permission.NAMESPACE_POOLS_PAUSE,
        handler=resume_pool, summary="Resume the scaling of a pool", tag="pools", answer=Pool,
        action="pool.resume", conditional=True, errors=(404, 409, 412),
    ),
)  # fmt: skip
