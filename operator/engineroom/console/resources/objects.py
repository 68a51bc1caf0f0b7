"""Objects of every kind in the registry: routes that list and read them.

The routes of a kind come from its entry in ``engineroom.api.kinds``: the path, the permissions and
the fields that readers must not see. A kind can have its own representation, see ``RestView``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from engineroom.api import kinds
from engineroom.auth.permissions import Permission
from engineroom.console.cursors import bad_cursor
from engineroom.console.rest.pagination import PageQuery, etag
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route, kind_parameter
from engineroom.kube.client.errors import BadRequest, Gone
from engineroom.kube.client.resources import resource_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from engineroom.api.kinds import Kind
    from engineroom.kube.client.resources import Resource

_METADATA = frozenset(
    {"name", "namespace", "uid", "generation", "resourceVersion", "creationTimestamp",
     "deletionTimestamp", "labels"}
)  # fmt: skip
#: Annotations that name the manager of an object; others may hold anything.
_ANNOTATIONS = frozenset(
    {"argocd.argoproj.io/tracking-id", "kustomize.toolkit.fluxcd.io/name",
     "helm.toolkit.fluxcd.io/name", "meta.helm.sh/release-name"}
)  # fmt: skip


class Condition(Model):
    """A condition in the status of an object."""

    type: str
    status: str
    reason: str
    message: str


class KindObject(Model):
    """An object and a summary of it.

    `object` lacks the fields through which the kind reaches for pods and Secrets.
    """

    namespace: str
    name: str
    resource_version: str
    generation: int
    observed_generation: int | None
    conditions: list[Condition]
    object: dict[str, Any] = Field(description="apiVersion, kind, metadata, spec, status.")


class KindObjects(Model):
    """A page of objects."""

    items: list[KindObject]
    next_cursor: str | None


class PoolObject(Model):
    """A WorkerPool without its template and its Redis, which may hold secrets."""

    object: dict[str, Any] = Field(description="apiVersion, kind, metadata, spec, status.")


class PoolObjects(Model):
    """A page of WorkerPools as objects."""

    items: list[dict[str, Any]]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class RestView:
    """The representation of a kind in the API. ``Kind.rest_view`` names a function that makes it.

    ``item`` needs the fields ``namespace``, ``name`` and ``resource_version``, ``page`` the fields
    ``items`` and ``next_cursor``.
    """

    item: type[Model]
    page: type[Model]
    view: Callable[[Mapping[str, Any]], Any]
    #: Name of the event that says that an object was deleted.
    deleted_event: str


def general_view(kind: Kind) -> RestView:
    """Return the representation of a kind that has none of its own."""

    def view(obj: Mapping[str, Any]) -> KindObject:
        metadata, status = obj["metadata"], obj.get("status") or {}
        return KindObject(
            namespace=metadata["namespace"],
            name=metadata["name"],
            resource_version=metadata["resourceVersion"],
            generation=metadata.get("generation") or 0,
            observed_generation=observed_generation(status),
            conditions=conditions(status),
            object=public_object(kind, obj),
        )

    return RestView(KindObject, KindObjects, view, f"{kind.noun}-gone")


def observed_generation(status: Mapping[str, Any]) -> int | None:
    """Return the generation that the operator has observed; None if it has observed none.

    The API server sets -1 when an object is created.
    """
    generation = status.get("observedGeneration") or 0
    return generation if generation > 0 else None


def conditions(status: Mapping[str, Any]) -> list[Condition]:
    """Return the conditions of a status."""
    return [
        Condition(
            type=condition["type"],
            status=condition["status"],
            reason=condition.get("reason") or "",
            message=condition.get("message") or "",
        )
        for condition in status.get("conditions") or ()
    ]


def public_object(kind: Kind, obj: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object without the guarded fields of its kind.

    Maps that name Secrets become empty maps: readers may know that such a field is set.
    """
    metadata, spec = obj["metadata"], obj.get("spec") or {}
    annotations = metadata.get("annotations") or {}
    for path in kind.guarded.private:
        spec = _hidden(spec, path.split(".")[1:], empty=path in kind.guarded.secrets)
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {
            **{key: value for key, value in metadata.items() if key in _METADATA},
            "annotations": {k: v for k, v in annotations.items() if k in _ANNOTATIONS},
        },
        "spec": spec,
        "status": obj.get("status") or {},
    }


def _hidden(fields: Mapping[str, Any], path: Sequence[str], *, empty: bool) -> dict[str, Any]:
    """Return a copy of ``fields`` in which the field at ``path`` is an empty map, or missing."""
    name, below = path[0].removesuffix("[]"), path[1:]
    copy = {key: value for key, value in fields.items() if key != name}
    value = fields.get(name)
    if value is None or not (below or empty):
        return copy
    items = value if isinstance(value, list) else [value]
    hidden = [
        (_hidden(item, below, empty=empty) if isinstance(item, dict) else item) if below else {}
        for item in items
    ]
    copy[name] = hidden if isinstance(value, list) else hidden[0]
    return copy


async def _page(call: Call, resource: Resource) -> tuple[list[dict[str, Any]], str | None]:
    """Read a page of objects; return it and the cursor of the next page."""
    params = {"limit": str(call.query.limit)}
    if call.query.cursor:
        params["continue"] = call.query.cursor
    try:
        page = await call.services.client.request(
            "GET", resource.path(call.namespace), params=params
        )
    except (BadRequest, Gone) as error:
        if not call.query.cursor:
            raise
        raise bad_cursor() from error
    cursor = (page.get("metadata") or {}).get("continue")
    return page.get("items") or [], cursor or None


def kind_routes(kind: Kind) -> tuple[Route, ...]:
    """Return the routes that list and read the objects of a kind."""
    resource, parameter = resource_of(kind), kind_parameter(kind)
    rest_view: RestView = kind.rest_view.load()(kind)

    async def list_kind(call: Call) -> Answer:
        objects, cursor = await _page(call, resource)
        items = [rest_view.view(obj) for obj in objects]
        page = {"items": items, "next_cursor": cursor}
        return Answer(rest_view.page.model_validate(page))

    async def show_kind(call: Call) -> Answer:
        obj = await call.services.client.get(resource, call.namespace, call.path[parameter])
        view = rest_view.view(obj)
        return Answer(view, headers={"etag": etag(view.resource_version)})

    # The operation ids of the OpenAPI document.
    list_kind.__name__ = f"list_{kind.plural_noun.replace('-', '_')}"
    show_kind.__name__ = f"show_{parameter}"
    path = f"{BASE}/namespaces/{{namespace}}/{kind.rest_path}"
    return (
        Route(
            method="GET", path=path, needs=Permission(kind.permissions.list),
            handler=list_kind, summary=f"List {kind.plural_noun} ({kind.kind})",
            tag=kind.plural_noun, query=PageQuery, answer=rest_view.page,
        ),
        Route(
            method="GET", path=f"{path}/{{{parameter}}}", needs=Permission(kind.permissions.get),
            handler=show_kind, summary=f"Read one {kind.noun} ({kind.kind})",
            tag=kind.plural_noun, answer=rest_view.item, conditional=True, errors=(404,),
        ),
    )  # fmt: skip


def routes_of(registry: Iterable[Kind]) -> tuple[Route, ...]:
    """Return the routes that list and read the objects of all kinds."""
    return tuple(route for kind in registry for route in kind_routes(kind))


_POOL = kinds.WORKER_POOL


async def list_objects(call: Call) -> Answer:
    """Return a page of the namespace's WorkerPools as objects."""
    objects, cursor = await _page(call, resource_of(_POOL))
    items = [public_object(_POOL, obj) for obj in objects]
    return Answer(PoolObjects(items=items, next_cursor=cursor))


async def show_object(call: Call) -> Answer:
    """Return one WorkerPool as an object."""
    client = call.services.client
    pool = await client.get(resource_of(_POOL), call.namespace, call.path["pool"])
    return Answer(PoolObject(object=public_object(_POOL, pool)))


_OBJECTS = f"{BASE}/namespaces/{{namespace}}/objects"
ROUTES = (
    Route(
        method="GET", path=_OBJECTS, needs=Permission.NAMESPACE_POOLS_READ,
        handler=list_objects, summary="List worker pools as objects of the cluster",
        tag="pools", query=PageQuery, answer=PoolObjects,
    ),
    Route(
        method="GET", path=f"{_OBJECTS}/{{pool}}", needs=Permission.NAMESPACE_POOLS_READ,
        handler=show_object, summary="Read one worker pool as an object of the cluster",
        tag="pools", answer=PoolObject, errors=(404,),
    ),
)  # fmt: skip
