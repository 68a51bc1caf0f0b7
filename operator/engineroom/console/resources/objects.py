"""WorkerPools as the cluster has them: for the command line, which knows them in that form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from engineroom.auth.permissions import Permission
from engineroom.console.cursors import bad_cursor
from engineroom.console.rest.pagination import Paged
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.kube.client.errors import BadRequest, Gone
from engineroom.kube.client.resources import WORKERPOOLS

if TYPE_CHECKING:
    from collections.abc import Mapping

_METADATA = frozenset(
    {"name", "namespace", "uid", "generation", "resourceVersion", "creationTimestamp",
     "deletionTimestamp", "labels"}
)  # fmt: skip
#: Annotations that say who manages an object; others may hold anything.
_ANNOTATIONS = frozenset(
    {"argocd.argoproj.io/tracking-id", "kustomize.toolkit.fluxcd.io/name",
     "helm.toolkit.fluxcd.io/name", "meta.helm.sh/release-name"}
)  # fmt: skip


class PoolObject(Model):
    """A WorkerPool without its template and its Redis, which may hold what readers must not see."""

    object: dict[str, Any] = Field(description="apiVersion, kind, metadata, spec, status.")


class PoolObjects(Model):
    """A page of them."""

    items: list[dict[str, Any]]
    next_cursor: str | None


def shown(obj: Mapping[str, Any]) -> dict[str, Any]:
    """What of an object is shown."""
    metadata, spec = obj["metadata"], dict(obj.get("spec") or {})
    notes = metadata.get("annotations") or {}
    spec.pop("template", None)
    if spec.pop("redis", None) is not None:
        # That it has a Redis of its own is no secret, and the command line has to know.
        spec["redis"] = {}
    return {
        "apiVersion": WORKERPOOLS.api_version,
        "kind": WORKERPOOLS.kind,
        "metadata": {
            **{key: value for key, value in metadata.items() if key in _METADATA},
            "annotations": {key: value for key, value in notes.items() if key in _ANNOTATIONS},
        },
        "spec": spec,
        "status": obj.get("status") or {},
    }


async def list_objects(call: Call) -> Answer:
    """A page of a namespace's pools."""
    params = {"limit": str(call.query.limit)}
    if call.query.cursor:
        params["continue"] = call.query.cursor
    try:
        found = await call.services.client.request(
            "GET", WORKERPOOLS.path(call.namespace), params=params
        )
    except (BadRequest, Gone) as error:
        if not call.query.cursor:
            raise
        raise bad_cursor() from error
    cursor = (found.get("metadata") or {}).get("continue")
    items = [shown(item) for item in found.get("items") or ()]
    return Answer(PoolObjects(items=items, next_cursor=cursor or None))


async def show_object(call: Call) -> Answer:
    """One pool."""
    found = await call.services.client.get(WORKERPOOLS, call.namespace, call.path["pool"])
    return Answer(PoolObject(object=shown(found)))


_OBJECTS = f"{BASE}/namespaces/{{namespace}}/objects"
ROUTES = (
    Route(
        method="GET", path=_OBJECTS, needs=Permission.NAMESPACE_POOLS_READ, handler=list_objects,
        summary="Worker pools as objects of the cluster", tag="pools", query=Paged,
        answer=PoolObjects,
    ),
    Route(
        method="GET", path=f"{_OBJECTS}/{{pool}}", needs=Permission.NAMESPACE_POOLS_READ,
        handler=show_object, summary="One worker pool as an object of the cluster", tag="pools",
        answer=PoolObject, errors=(404,),
    ),
)  # fmt: skip
