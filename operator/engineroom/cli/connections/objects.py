"""Objects of the registry's kinds: reading them, and the words that name them in commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.api import kinds
from engineroom.cli.errors import UsageError
from engineroom.kube.client.resources import resource_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engineroom.api.kinds import Kind
    from engineroom.cli.connections.cluster import Cluster
    from engineroom.cli.connections.model import Document


def parse_target(words: Sequence[str]) -> tuple[Kind, list[str]]:
    """Return the kind and the object names of ``[KIND] [NAME...]`` or ``KIND/NAME...``.

    Without a kind, names are names of pools. Raises UsageError for a name of another kind.
    """
    if not words:
        return kinds.WORKER_POOL, []
    word, slash, _ = words[0].partition("/")
    kind = kinds.registry().by_word(word)
    if kind is None:
        kind = kinds.WORKER_POOL
    elif not slash:
        words = words[1:]
    return kind, [object_name(kind, name) for name in words]


def object_name(kind: Kind, text: str) -> str:
    """Return ``mail`` for ``mail``, ``wp/mail`` or ``workerpool.engineroom.dev/mail``.

    Raises UsageError if the word before the slash is not a name of ``kind``.
    """
    word, slash, name = text.rpartition("/")
    if slash and (kinds.registry().by_word(word) is not kind or not name):
        raise UsageError(
            f"{text} names no {kind.noun}",
            why=f"the part before the slash is not a name of {kind.kind}",
            fix=f"write the name of the {kind.noun} alone",
        )
    return name


def list_objects(
    cluster: Cluster, kind: Kind, namespace: str | None, selector: str | None = None
) -> list[Document]:
    """Return the objects of a namespace, of all if it is None, sorted by namespace and name."""
    documents = cluster.read_all(resource_of(kind), namespace, selector)
    return sorted(map(_without_managed_fields, documents), key=_sort_key)


def read_object(cluster: Cluster, kind: Kind, namespace: str, name: str) -> Document:
    """Return one object. Raises NotFoundError."""
    return _without_managed_fields(cluster.read(resource_of(kind), namespace, name))


def _without_managed_fields(document: Document) -> Document:
    metadata = {k: v for k, v in document["metadata"].items() if k != "managedFields"}
    return {**document, "metadata": metadata}


def _sort_key(document: Document) -> tuple[str, str]:
    return document["metadata"]["namespace"], document["metadata"]["name"]
