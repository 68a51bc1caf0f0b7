"""The Cluster that is a dictionary: what commands are tried on without an API server."""

from __future__ import annotations

import copy
import io
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console

from engineroom.cli.app.context import CommandContext
from engineroom.cli.app.signature import expand_groups
from engineroom.cli.commands.pools.patch import merge
from engineroom.cli.connections.factory import Connections
from engineroom.cli.connections.model import (
    Document,
    Event,
    Installation,
    KindDefinition,
    Pod,
    Pool,
)
from engineroom.cli.connections.options import ConnectionOptions
from engineroom.cli.connections.parsing import parse_event, parse_pod, parse_pool
from engineroom.cli.errors import NotFoundError
from engineroom.core.clock import FakeClock
from engineroom.kube.client.resources import WORKERPOOLS

from .samples import NOW

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engineroom.kube.client.resources import ObjectRef, Resource


class MemoryCluster:
    """Pools, pods and events in memory; ``writes`` is what was written, in order."""

    server = "https://192.0.2.10:6443"
    namespace = "default"

    def __init__(self, *pools: Document, pods: list[Document] | None = None) -> None:
        self.documents = {
            (pool["metadata"]["namespace"], pool["metadata"]["name"]): pool for pool in pools
        }
        self.pod_documents = list(pods or [])
        self.event_documents: list[Document] = []
        self.writes: list[tuple[str, str, Any]] = []
        self.parts = Installation(
            self.server,
            "v1.37.2",
            KindDefinition(("v1alpha1",)),
            namespaces=("engineroom-system",),
        )
        #: Called before each read of a pool: how the operator's work is played.
        self.before_read: Callable[[MemoryCluster], None] = lambda cluster: None

    def pools(self, namespace: str | None, selector: str | None = None) -> tuple[Pool, ...]:
        label, _, value = (selector or "").partition("=")
        chosen = [
            parse_pool(one)
            for (where, _), one in sorted(self.documents.items())
            if namespace in (None, where)
            and (not selector or (one["metadata"].get("labels") or {}).get(label) == value)
        ]
        return tuple(chosen)

    def pool(self, namespace: str, name: str) -> Pool:
        self.before_read(self)
        try:
            return parse_pool(copy.deepcopy(self.documents[namespace, name]))
        except KeyError:
            raise NotFoundError(f"WorkerPool {namespace}/{name} is not there") from None

    def pods(self, namespace: str | None, pool: str | None = None) -> tuple[Pod, ...]:
        pods = map(parse_pod, self.pod_documents)
        return tuple(
            pod for pod in pods if namespace in (None, pod.namespace) and pool in (None, pod.pool)
        )

    def pod(self, namespace: str, name: str) -> Pod:
        self.before_read(self)
        for pod in self.pods(namespace):
            if pod.name == name:
                return pod
        raise NotFoundError(f"pod {namespace}/{name} is not there")

    def events(self, obj: ObjectRef) -> tuple[Event, ...]:
        del obj
        return tuple(map(parse_event, self.event_documents))

    def installation(self) -> Installation:
        return self.parts

    def read(self, resource: Resource, namespace: str | None, name: str) -> Document:
        if resource == WORKERPOOLS and namespace is not None:
            return self.pool(namespace, name).document
        raise NotFoundError(f"{resource.kind} {namespace}/{name} is not there")

    def read_all(
        self, resource: Resource, namespace: str | None, selector: str | None = None
    ) -> list[Document]:
        if resource != WORKERPOOLS:
            return []
        return [pool.document for pool in self.pools(namespace, selector)]

    def patch_pool(self, pool: Pool, patch: Document, *, dry_run: bool = False) -> Pool:
        after = merge(pool, patch)
        after["metadata"]["generation"] += 1
        if not dry_run:
            self.writes.append(("patch", pool.id, patch))
            self.documents[pool.namespace, pool.name] = after
        return parse_pool(after)

    def scale_pool(self, pool: Pool, replicas: int, *, dry_run: bool = False) -> int:
        if not dry_run:
            self.writes.append(("scale", pool.id, replicas))
        return replicas

    def annotate_pod(
        self, pod: Pod, annotations: Mapping[str, str | None], *, dry_run: bool = False
    ) -> Pod:
        after = copy.deepcopy(pod.document)
        after["metadata"]["annotations"] |= annotations
        if not dry_run:
            self.writes.append(("annotate", pod.name, dict(annotations)))
            self.pod_documents = [
                after if pod_document["metadata"]["name"] == pod.name else pod_document
                for pod_document in self.pod_documents
            ]
        return parse_pod(after)


class Trial:
    """A CommandContext on a MemoryCluster, and what it printed."""

    def __init__(
        self, cluster: MemoryCluster, *, namespace: str | None = None, answer: bool | None = None
    ) -> None:
        self.cluster = cluster
        self.questions: list[str] = []
        self.clock = FakeClock(NOW)
        self._out, self._err = io.StringIO(), io.StringIO()

        def ask(question: str) -> bool:
            self.questions.append(question)
            return bool(answer)

        self.context = CommandContext(
            Connections(
                ConnectionOptions(namespace=namespace),
                connect_cluster=lambda options: cluster,
                clock=self.clock,
            ),
            out=plain(self._out),
            err=plain(self._err),
            sleep=self.clock.advance,
            interactive=answer is not None,
            ask=ask,
        )

    @property
    def out(self) -> str:
        return trimmed(self._out.getvalue())

    @property
    def err(self) -> str:
        return trimmed(self._err.getvalue())


def run_command(
    function: Callable[..., None], context: CommandContext, *arguments: Any, **options: Any
) -> None:
    """Call a command with single options, gathered into its option groups as typer's are."""
    for name, group in expand_groups(function)[1].items():
        names = {option.name for option in fields(cast("Any", group))} & options.keys()
        options[name] = group(**{option: options.pop(option) for option in names})
    function(context, *arguments, **options)


def plain(stream: io.StringIO) -> Console:
    return Console(file=stream, width=100, no_color=True, highlight=False, emoji=False)


def text_of(renderable: Any) -> str:
    stream = io.StringIO()
    plain(stream).print(renderable, crop=False)
    return trimmed(stream.getvalue())


def trimmed(text: str) -> str:
    """Without the blanks that fill a line's end."""
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())
