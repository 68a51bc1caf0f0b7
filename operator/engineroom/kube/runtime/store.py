"""A cache of projected objects with an index, and its comparison with a fresh list.

A watch can miss a deletion (an expired resourceVersion, a lost event). Therefore all objects are
listed again from time to time beside the running watch. An object that the list does not contain
and that no event touched meanwhile was deleted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


class _CachedObject(NamedTuple, Generic[T]):
    version: str
    label: str | None
    value: T


def key_of(namespace: str | None, name: str) -> str:
    """Return ``namespace/name``, or the name of an object without a namespace."""
    return f"{namespace}/{name}" if namespace else name


class ObjectStore(Generic[T]):
    """Objects by ``namespace/name``, and by ``namespace/label value`` if they have the label.

    ``on_change(key, value, before)`` is called for every object that is new (``before`` is None),
    changed, or deleted (``value`` is None). ``on_index(value)`` is called with the
    ``namespace/label value`` of each changed object, the old one and the new one.
    """

    def __init__(
        self,
        project: Callable[[dict[str, Any]], T],
        on_change: Callable[[str, T | None, T | None], None] | None = None,
        *,
        index_label: str | None = None,
        on_index: Callable[[str], None] | None = None,
    ) -> None:
        self._project = project
        self._on_change = on_change
        self._index_label = index_label
        self._on_index = on_index
        self._objects: dict[str, _CachedObject[T]] = {}
        self._index: dict[str, set[str]] = {}
        self._comparisons: list[ListComparison[T]] = []

    def __len__(self) -> int:
        return len(self._objects)

    def __contains__(self, key: str) -> bool:
        return key in self._objects

    def get(self, key: str) -> T | None:
        """Return the object, or None."""
        entry = self._objects.get(key)
        return None if entry is None else entry.value

    def version(self, key: str) -> str:
        """Return the resourceVersion of the cached object; "" if there is none."""
        entry = self._objects.get(key)
        return "" if entry is None else entry.version

    def __iter__(self) -> Iterator[str]:
        """Iterate over a copy of all keys."""
        return iter(list(self._objects))

    def values(self) -> list[T]:
        """Return all objects."""
        return [entry.value for entry in self._objects.values()]

    def by_index(self, value: str) -> list[T]:
        """Return the objects of one ``namespace/label value``, in no order."""
        return [self._objects[key].value for key in self._index.get(value, ())]

    def put(self, obj: dict[str, Any]) -> bool:
        """Store an object of the API server; returns whether it is new or changed."""
        key = self._touch(obj)
        return self._put(key, obj)

    def remove(self, obj: dict[str, Any]) -> bool:
        """Remove a deleted object; returns whether it was in the store."""
        return self.discard(self._touch(obj))

    def discard(self, key: str) -> bool:
        """Remove the object under ``key``; returns whether it was in the store."""
        entry = self._objects.pop(key, None)
        if entry is None:
            return False
        if entry.label is not None:
            self._unindex(entry.label, key)
        if self._on_change is not None:
            self._on_change(key, None, entry.value)
        if entry.label is not None and self._on_index is not None:
            self._on_index(entry.label)
        return True

    def begin_comparison(self, namespace: str | None = None) -> ListComparison[T]:
        """Begin a comparison with a fresh list of ``namespace``, or of all namespaces."""
        comparison = ListComparison(self, namespace)
        self._comparisons.append(comparison)
        return comparison

    # -- internals -------------------------------------------------------------------------------

    def _touch(self, obj: dict[str, Any]) -> str:
        metadata = obj["metadata"]
        key = key_of(metadata.get("namespace"), metadata["name"])
        for comparison in self._comparisons:
            comparison.touched.add(key)
        return key

    def _put(self, key: str, obj: dict[str, Any]) -> bool:
        metadata = obj["metadata"]
        version = metadata.get("resourceVersion") or ""
        old = self._objects.get(key)
        if old is not None and version and old.version == version:
            return False
        index = self._index_of(metadata)
        self._objects[key] = _CachedObject(version, index, self._project(obj))
        if old is None or old.label != index:
            if old is not None and old.label is not None:
                self._unindex(old.label, key)
            if index is not None:
                self._index.setdefault(index, set()).add(key)
        if self._on_change is not None:
            self._on_change(key, self._objects[key].value, None if old is None else old.value)
        if self._on_index is not None:
            if old is not None and old.label is not None and old.label != index:
                self._on_index(old.label)
            if index is not None:
                self._on_index(index)
        return True

    def _replace(self, key: str, version: str, value: T) -> None:
        """Replace an object by a newer version without a notification; its label stays."""
        self._objects[key] = self._objects[key]._replace(version=version, value=value)

    def _index_of(self, metadata: dict[str, Any]) -> str | None:
        if self._index_label is None:
            return None
        value = (metadata.get("labels") or {}).get(self._index_label)
        return key_of(metadata.get("namespace"), value) if value else None

    def _unindex(self, index: str, key: str) -> None:
        keys = self._index.get(index)
        if keys is not None:
            keys.discard(key)
            if not keys:
                del self._index[index]

    def _end_comparison(self, comparison: ListComparison[T]) -> None:
        if comparison in self._comparisons:
            self._comparisons.remove(comparison)


class ListComparison(Generic[T]):
    """A comparison of the store with a list, while events continue to arrive.

    Call ``add`` with every listed object, then ``finish``; call ``cancel`` if the list fails. An
    object that an event touched since the beginning keeps the state of the event.
    """

    def __init__(self, store: ObjectStore[T], namespace: str | None) -> None:
        self._store = store
        self._namespace = namespace
        self.touched: set[str] = set()
        self._listed: set[str] = set()
        self.repaired = 0

    def add(self, obj: dict[str, Any]) -> bool:
        """Compare one listed object; returns whether the store had to be corrected."""
        metadata = obj["metadata"]
        key = key_of(metadata.get("namespace"), metadata["name"])
        self._listed.add(key)
        if key in self.touched or not self._store._put(key, obj):
            return False
        self.repaired += 1
        return True

    def finish(self) -> int:
        """Remove the objects that are not listed; returns how many objects were corrected."""
        self._store._end_comparison(self)
        prefix = f"{self._namespace}/" if self._namespace else ""
        deleted = [
            key
            for key in self._store
            if key.startswith(prefix) and key not in self._listed and key not in self.touched
        ]
        for key in deleted:
            self._store.discard(key)
        self.repaired += len(deleted)
        return self.repaired

    def cancel(self) -> None:
        """Drop the comparison after a failed list; the store stays as it is."""
        self._store._end_comparison(self)
