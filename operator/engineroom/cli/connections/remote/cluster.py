"""The Cluster behind the API process: what of it the API has, under the caller's rights there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from engineroom.api import ANNOTATION_DRAIN, kinds
from engineroom.cli.connections.model import Document, Event, Installation, Pod, Pool, ResourceUsage
from engineroom.cli.connections.parsing import parse_pool
from engineroom.cli.errors import NotFoundError, UsageError, program
from engineroom.kube.client.resources import WORKERPOOLS, resource_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from socket import socket

    from engineroom.cli.connections.remote.api import Api
    from engineroom.kube.client.resources import ObjectRef, Resource

_PAUSES = {"All": "all", "ScaleIn": "in", "ScaleOut": "out"}
WAY_ROUND = (
    "take the kubeconfig for it: name its context with --context, or the file with --kubeconfig"
)


def refuse(what: str) -> NoReturn:
    """Raises UsageError for what the API has no route for."""
    raise UsageError(f"{what} does not go through the API", fix=WAY_ROUND)


class ApiCluster:
    """``Cluster`` by the API's routes; what has none is refused, with the way round."""

    def __init__(self, api: Api) -> None:
        self._api = api

    @property
    def server(self) -> str:
        """URL of the API process."""
        return self._api.server

    @property
    def namespace(self) -> str:
        """The namespace that login chose."""
        return self._api.account.namespace or "default"

    def pools(self, namespace: str | None, selector: str | None = None) -> tuple[Pool, ...]:
        """The pools of a namespace; sorted by id."""
        pools = map(parse_pool, self.read_all(WORKERPOOLS, namespace, selector))
        return tuple(sorted(pools, key=lambda pool: pool.id))

    def pool(self, namespace: str, name: str) -> Pool:
        """One pool. Raises NotFoundError."""
        return parse_pool(self.read(WORKERPOOLS, namespace, name))

    def pods(self, namespace: str | None, pool: str | None = None) -> tuple[Pod, ...]:
        """Pods by the workers that say they run in them, with what those say they use.

        Those that only start are missing, and so are those of pools with a Redis of their own.
        """
        if namespace is None:
            refuse("looking at all namespaces at once")
        groups: dict[str, list[Document]] = {}
        for worker in self._api.items(f"/namespaces/{namespace}/workers", pool=pool or ""):
            if worker["pod"] and worker["health"] != "ghost":
                groups.setdefault(worker["pod"], []).append(worker)
        return tuple(_pod(namespace, name, workers, ()) for name, workers in sorted(groups.items()))

    def pod(self, namespace: str, name: str) -> Pod:
        """A pod by the workers that say they run in it. Raises NotFoundError where none does.

        Of workers in a pool's own Redis the API knows nothing.
        """
        workers = [
            item
            for item in self._api.items(f"/namespaces/{namespace}/workers")
            if item["pod"] == name and item["health"] != "ghost"
        ]
        if not workers:
            raise NotFoundError(
                f"no worker is in a pod {name[:253]} of namespace {namespace}",
                why="through the API a pod is known by its workers; those of pools with a Redis "
                "of their own are not",
                fix=f"`{program()} workers list -o wide -n {namespace}` shows where they are",
            )
        pool = workers[0]["pool"]
        leaving = self._api.get(f"/namespaces/{namespace}/pools/{pool}/drain")["pods"]
        return _pod(namespace, name, workers, leaving)

    def events(self, obj: ObjectRef) -> tuple[Event, ...]:
        """Return none: the API process reads no events."""
        del obj
        return ()

    def installation(self) -> Installation:
        """Refused: what is installed is read from the cluster."""
        refuse("looking at the installation")

    def patch_pool(self, pool: Pool, patch: Document, *, dry_run: bool = False) -> Pool:
        """Set a range, pause, drain, or undo these; any other patch is refused."""
        if dry_run:
            refuse("--dry-run=server of a single change")
        path = f"/namespaces/{pool.namespace}/pools/{pool.name}"
        match patch:
            case {"spec": {**wanted}} if not wanted:
                pass
            case {"spec": {"suspend": bool(suspend), **more}}:
                self._api.request("POST" if suspend else "DELETE", f"{path}/drain")
                if more:
                    return self.patch_pool(pool, {"spec": more})
            case {"spec": {"autoscaling": {"pause": str(pause), **rest}, **more}} if (
                not rest and not more
            ):
                if pause == "None":
                    self._api.post(f"{path}/resume")
                else:
                    self._api.post(f"{path}/pause", {"direction": _PAUSES[pause]})
            case {"spec": {"autoscaling": {**sizes}, **more}} if not more and sizes.keys() <= {
                "minReplicas",
                "maxReplicas",
            }:
                self._api.post(f"{path}/scale", {str(k): v for k, v in sizes.items()})
            case _:
                refuse("this change of a pool")
        return self.pool(pool.namespace, pool.name)

    def scale_pool(self, pool: Pool, replicas: int, *, dry_run: bool = False) -> int:
        """Set the size; the size the server took."""
        if dry_run:
            refuse("--dry-run=server of a single change")
        path = f"/namespaces/{pool.namespace}/pools/{pool.name}/scale"
        return int(self._api.post(path, {"replicas": replicas})["replicas"])

    def annotate_pod(
        self, pod: Pod, annotations: Mapping[str, str | None], *, dry_run: bool = False
    ) -> Pod:
        """Ask a pod to leave, or call it back; other annotations are refused."""
        if dry_run:
            refuse("--dry-run=server of a single change")
        if annotations.keys() != {ANNOTATION_DRAIN}:
            refuse("annotating a pod")
        path = f"/namespaces/{pod.namespace}/pools/{pod.pool}/pods/{pod.name}/drain"
        requested = annotations[ANNOTATION_DRAIN] is not None
        self._api.request("POST" if requested else "DELETE", path)
        return replace(pod, drain_requested=requested)

    def read(self, resource: Resource, namespace: str | None, name: str) -> Document:
        """Return an object of a kind of the registry. Raises NotFoundError."""
        path = _path(resource, namespace, f"reading a {resource.kind}")
        document: Document = self._api.get(f"{path}/{name}")["object"]
        return document

    def read_all(
        self, resource: Resource, namespace: str | None, selector: str | None = None
    ) -> list[Document]:
        """Return a namespace's objects of a kind of the registry."""
        path = _path(resource, namespace, f"reading {resource.plural}")
        labels = labels_of(selector)
        # Items of pools are the objects themselves; other kinds have them beside a summary.
        objects = (item.get("object", item) for item in self._api.items(path))
        return [obj for obj in objects if labels.items() <= _labels(obj).items()]

    def open_port(self, namespace: str, pod: str, port: int) -> socket:
        """Refused: the API forwards to nothing."""
        refuse("forwarding to a pod")

    def bearer(self) -> str | None:
        """Refused: what it is logged in with is the API's own business."""
        refuse("showing a token")


def _pod(namespace: str, name: str, workers: Sequence[Document], leaving: Collection[str]) -> Pod:
    """A pod as its workers describe it; ``leaving`` are the pods that were asked to."""
    return Pod(
        namespace=namespace,
        name=name,
        uid=name,
        pool=workers[0]["pool"],
        created=None,
        phase="Running",
        ready=True,
        restarts=0,
        node="",
        trouble="",
        trouble_message="",
        deleting=False,
        busy=any(worker["job"] for worker in workers),
        drain_requested=name in leaving,
        drained=False,
        usage=_usage(workers),
    )


def _usage(workers: Sequence[Document]) -> ResourceUsage | None:
    """Return their total usage; None if one of them does not report its own."""
    usages = [(worker["memory"], worker["cpu"]) for worker in workers]
    if any(memory is None or cores is None for memory, cores in usages):
        return None
    return ResourceUsage(
        sum(int(memory) for memory, _ in usages), round(sum(cores for _, cores in usages) * 1000)
    )


def labels_of(selector: str | None) -> dict[str, str]:
    """``app=mail,tier=one`` as a map. Raises UsageError for other forms."""
    wanted = {}
    for part in (selector or "").split(","):
        name, equals, value = part.strip().partition("=")
        if not part.strip():
            continue
        if not equals or not name or name.endswith("!"):
            raise UsageError(
                f"--selector {part.strip()[:100]} is not understood through the API",
                fix="write NAME=VALUE, several with commas between",
            )
        wanted[name] = value.removeprefix("=")
    return wanted


def _labels(document: Document) -> dict[str, Any]:
    return document["metadata"].get("labels") or {}


def _path(resource: Resource, namespace: str | None, what: str) -> str:
    """Return the path of a kind's objects. Raises UsageError for what the API does not serve."""
    kind = kinds.registry().find(resource.kind)
    if kind is None or resource_of(kind) != resource:
        refuse(what)
    if namespace is None:
        refuse("looking at all namespaces at once")
    # The representation of pools at their own path is not the object.
    place = "objects" if kind is kinds.WORKER_POOL else kind.rest_path
    return f"/namespaces/{namespace}/{place}"
