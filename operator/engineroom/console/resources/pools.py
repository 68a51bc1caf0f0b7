"""WorkerPools: listed, shown, scaled, paused, from and in the API server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from engineroom.auth.permissions import Permission
from engineroom.console.cursors import bad_cursor
from engineroom.console.rest.errors import PoolSizingError, PreconditionFailedError
from engineroom.console.rest.pagination import Paged, check_match, etag
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.errors import InvalidInputError, Problem
from engineroom.kube.client.errors import BadRequest, Conflict, Gone
from engineroom.kube.client.resources import WORKERPOOLS
from engineroom.manifests.apply import MANAGER

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST = 10_000
_PAUSES = {"all": "All", "in": "ScaleIn", "out": "ScaleOut"}


class Autoscaling(Model):
    """The range of a pool that scales by itself."""

    min_replicas: int
    max_replicas: int
    pause: str = Field(description="None, All, ScaleIn or ScaleOut: which direction is held.")


class Condition(Model):
    """A condition of the object, as Kubernetes has it."""

    type: str
    status: str
    reason: str
    message: str


class Pool(Model):
    """A WorkerPool. Its template is not part of it: that may hold what readers must not see."""

    namespace: str
    name: str
    resource_version: str
    generation: int
    observed_generation: int | None
    queues: list[str]
    own_redis: bool = Field(description="Whether its queues are in a Redis of its own.")
    replicas: int | None = Field(description="Pods by hand; null where the pool scales by itself.")
    autoscaling: Autoscaling | None
    current_replicas: int | None
    ready_replicas: int | None
    conditions: list[Condition]


class Pools(Model):
    """A page of pools."""

    items: list[Pool]
    next_cursor: str | None


class Scale(Model):
    """Pods for a pool sized by hand, or the range of one that scales by itself."""

    replicas: Annotated[int, Field(ge=0, le=_MOST)] | None = None
    min_replicas: Annotated[int, Field(ge=0, le=_MOST)] | None = None
    max_replicas: Annotated[int, Field(ge=1, le=_MOST)] | None = None


class Hold(Model):
    """Which direction of scaling is held."""

    direction: Literal["all", "in", "out"] = "all"


def view(obj: Mapping[str, Any]) -> Pool:
    """An object of the API server as the API gives it."""
    metadata, spec = obj["metadata"], obj.get("spec") or {}
    status = obj.get("status") or {}
    # Below 1: the operator has not written a status yet.
    observed = status.get("observedGeneration") or 0
    auto = spec.get("autoscaling")
    return Pool(
        namespace=metadata["namespace"],
        name=metadata["name"],
        resource_version=metadata["resourceVersion"],
        generation=metadata.get("generation") or 0,
        observed_generation=observed if observed > 0 else None,
        queues=[queue["name"] for queue in spec.get("queues") or ()],
        own_redis=spec.get("redis") is not None,
        replicas=spec.get("replicas") if auto is None else None,
        autoscaling=None if auto is None else _autoscaling(auto),
        current_replicas=status.get("replicas"),
        ready_replicas=status.get("readyReplicas"),
        conditions=[
            Condition(
                type=each["type"],
                status=each["status"],
                reason=each.get("reason") or "",
                message=each.get("message") or "",
            )
            for each in status.get("conditions") or ()
        ],
    )


def _autoscaling(auto: Mapping[str, Any]) -> Autoscaling:
    return Autoscaling(
        min_replicas=auto.get("minReplicas") or 0,
        max_replicas=auto.get("maxReplicas") or 0,
        pause=auto.get("pause") or "None",
    )


async def list_pools(call: Call) -> Answer:
    """A page of a namespace's pools, in the order of their names."""
    params = {"limit": str(call.query.limit)}
    if call.query.cursor:
        params["continue"] = call.query.cursor
    path = WORKERPOOLS.path(call.namespace)
    try:
        found = await call.services.client.request("GET", path, params=params)
    except (BadRequest, Gone) as error:
        if not call.query.cursor:
            raise
        raise bad_cursor() from error
    cursor = (found.get("metadata") or {}).get("continue")
    items = [view(item) for item in found.get("items") or ()]
    return Answer(Pools(items=items, next_cursor=cursor or None))


async def show_pool(call: Call) -> Answer:
    """One pool."""
    return _shown(await read(call))


async def scale_pool(call: Call) -> Answer:
    """Set its size, or its range."""
    wanted: Scale = call.body
    by_hand = wanted.replicas is not None
    if by_hand is (wanted.min_replicas is not None or wanted.max_replicas is not None):
        told = Problem(
            "body", "says not one thing", "send replicas, or minReplicas and maxReplicas"
        )
        raise InvalidInputError([told])
    pool = await read(call)
    auto = (pool.get("spec") or {}).get("autoscaling")
    call_name = call.path["pool"]
    if by_hand:
        if auto is not None:
            raise PoolSizingError(
                f"replicas: {call_name} scales by itself; send minReplicas and maxReplicas"
            )
        patch: dict[str, Any] = {"spec": {"replicas": wanted.replicas}}
        changed = await change(call, pool, patch, subresource="scale")
        return _shown(changed, replicas=wanted.replicas)
    if auto is None:
        raise PoolSizingError(f"minReplicas: {call_name} is sized by hand; send replicas")
    known = _autoscaling(auto)
    low = known.min_replicas if wanted.min_replicas is None else wanted.min_replicas
    high = known.max_replicas if wanted.max_replicas is None else wanted.max_replicas
    if low > high:
        raise PoolSizingError(f"minReplicas: {low} is above maxReplicas {high}; send both")
    sizes = {"minReplicas": low, "maxReplicas": high}
    changed = await change(call, pool, {"spec": {"autoscaling": sizes}})
    return _shown(changed, minReplicas=low, maxReplicas=high)


async def pause_pool(call: Call) -> Answer:
    """Hold its size; its workers go on working."""
    return await _hold(call, _PAUSES[call.body.direction])


async def resume_pool(call: Call) -> Answer:
    """Let it scale again."""
    return await _hold(call, "None")


async def _hold(call: Call, pause: str) -> Answer:
    pool = await read(call)
    if (pool.get("spec") or {}).get("autoscaling") is None:
        raise PoolSizingError(
            f"pause: {call.path['pool']} is sized by hand, so it has no scaling to hold"
        )
    changed = await change(call, pool, {"spec": {"autoscaling": {"pause": pause}}})
    return _shown(changed, pause=pause)


async def read(call: Call) -> dict[str, Any]:
    """The pool of the path as the API server has it."""
    return await call.services.client.get(WORKERPOOLS, call.namespace, call.path["pool"])


async def change(
    call: Call, pool: Mapping[str, Any], patch: dict[str, Any], *, subresource: str | None = None
) -> dict[str, Any]:
    """Patch what was read, and nothing newer: what was checked is what is changed."""
    version = pool["metadata"]["resourceVersion"]
    asked = check_match(call.request, version)
    patch = {**patch, "metadata": {**patch.get("metadata", {}), "resourceVersion": version}}
    client, name = call.services.client, call.path["pool"]
    try:
        changed = await client.merge_patch(
            WORKERPOOLS, call.namespace, name, patch, subresource=subresource,
            field_manager=MANAGER,
        )  # fmt: skip
    except Conflict as error:
        if not asked:
            raise
        raise PreconditionFailedError("if-match: the object has just changed; read it") from error
    return await read(call) if subresource else changed


def _shown(pool: Mapping[str, Any], **details: Any) -> Answer:
    shown = view(pool)
    return Answer(shown, headers={"etag": etag(shown.resource_version)}, details=details)


_POOLS = f"{BASE}/namespaces/{{namespace}}/pools"
_POOL = f"{_POOLS}/{{pool}}"
ROUTES = (
    Route(
        method="GET", path=_POOLS, needs=Permission.NAMESPACE_POOLS_READ, handler=list_pools,
        summary="Worker pools of a namespace", tag="pools", query=Paged, answer=Pools,
    ),
    Route(
        method="GET", path=_POOL, needs=Permission.NAMESPACE_POOLS_READ, handler=show_pool,
        summary="One worker pool", tag="pools", answer=Pool, conditional=True, errors=(404,),
    ),
    Route(
        method="POST", path=f"{_POOL}/scale", needs=Permission.NAMESPACE_POOLS_SCALE,
        handler=scale_pool, summary="Set the size or the range of a pool", tag="pools",
        body=Scale, answer=Pool, action="pool.scale", conditional=True, errors=(404, 409, 412),
    ),
    Route(
        method="POST", path=f"{_POOL}/pause", needs=Permission.NAMESPACE_POOLS_PAUSE,
        handler=pause_pool, summary="Hold the size of a pool", tag="pools", body=Hold, answer=Pool,
        action="pool.pause", conditional=True, errors=(404, 409, 412),
    ),
    Route(
        method="POST", path=f"{_POOL}/resume", needs=Permission.NAMESPACE_POOLS_PAUSE,
        handler=resume_pool, summary="Let a pool scale again", tag="pools", answer=Pool,
        action="pool.resume", conditional=True, errors=(404, 409, 412),
    ),
)  # fmt: skip
