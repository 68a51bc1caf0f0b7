"""A cache of projected objects with an index, and the comparison that keeps a watch honest.

A watch can lose a deletion (a 410 and a relist that the watcher does not compare, a missed event).
So from time to time everything is listed again *beside* the running watch and compared: what the
list does not have and no event touched meanwhile is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


class _Entry(NamedTuple, Generic[T]):
    version: str
    label: str | None
    value: T


def key_of(namespace: str | None, name: str) -> str:
    """``namespace/name``; a bare name for what has no namespace."""
    return f"{namespace}/{name}" if namespace else name


class ObjectStore(Generic[T]):
    """Objects by ``namespace/name``, and by ``namespace/label value`` where they carry a label.

    ``on_change(key, value, before)`` is told of every object that is new (before is None),
    different, or gone (value is None); ``on_index(value)`` of the ``namespace/label value`` of each
    object that changed, old and new.
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
        self._objects: dict[str, _Entry[T]] = {}
        self._index: dict[str, set[str]] = {}
        self._audits: list[Audit[T]] = []

    def __len__(self) -> int:
        return len(self._objects)

    def __contains__(self, key: str) -> bool:
        return key in self._objects

    def get(self, key: str) -> T | None:
        """The object, or None."""
        entry = self._objects.get(key)
        return None if entry is None else entry.value

    def version(self, key: str) -> str:
        """The resourceVersion held of an object; empty when there is none."""
        entry = self._objects.get(key)
        return "" if entry is None else entry.version

    def __iter__(self) -> Iterator[str]:
        """All keys, as they are now."""
        return iter(list(self._objects))

    def values(self) -> list[T]:
        """All objects."""
        return [entry.value for entry in self._objects.values()]

    def by_index(self, value: str) -> list[T]:
        """The objects whose namespace and label make up ``value``, in no order."""
        return [self._objects[key].value for key in self._index.get(value, ())]

    def put(self, obj: dict[str, Any]) -> bool:
        """Take in an object as the API server gave it; returns whether it differs."""
        key = self._touch(obj)
        return self._put(key, obj)

    def remove(self, obj: dict[str, Any]) -> bool:
        """Forget an object that was deleted; returns whether it was known."""
        return self.discard(self._touch(obj))

    def discard(self, key: str) -> bool:
        """Forget the object under ``key``; returns whether it was known."""
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

    def audit(self, namespace: str | None = None) -> Audit[T]:
        """Begin a comparison with a fresh list of ``namespace``, or of everything."""
        audit = Audit(self, namespace)
        self._audits.append(audit)
        return audit

    # -- inside ----------------------------------------------------------------------------------

    def _touch(self, obj: dict[str, Any]) -> str:
        metadata = obj["metadata"]
        key = key_of(metadata.get("namespace"), metadata["name"])
        for audit in self._audits:
            audit.touched.add(key)
        return key

    def _put(self, key: str, obj: dict[str, Any]) -> bool:
        metadata = obj["metadata"]
        version = metadata.get("resourceVersion") or ""
        old = self._objects.get(key)
        if old is not None and version and old.version == version:
            return False
        index = self._index_of(metadata)
        self._objects[key] = _Entry(version, index, self._project(obj))
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
        """Replace an object by a newer state without a notification; its label stays."""
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

    def _end_audit(self, audit: Audit[T]) -> None:
        if audit in self._audits:
            self._audits.remove(audit)


class Audit(Generic[T]):
    """One comparison of the store with a list, while events keep coming in.

    Feed every listed object to ``see``; then ``finish``. What an event touched since the audit
    began is left as the event made it. An audit that is dropped must be ``cancel``led.
    """

    def __init__(self, store: ObjectStore[T], namespace: str | None) -> None:
        self._store = store
        self._namespace = namespace
        self.touched: set[str] = set()
        self._seen: set[str] = set()
        self.repaired = 0

    def see(self, obj: dict[str, Any]) -> bool:
        """One listed object; returns whether the store had it wrong."""
        metadata = obj["metadata"]
        key = key_of(metadata.get("namespace"), metadata["name"])
        self._seen.add(key)
        if key in self.touched or not self._store._put(key, obj):
            return False
        self.repaired += 1
        return True

    def finish(self) -> int:
        """Make the missing deletions; returns how many objects differed from the list."""
        self._store._end_audit(self)
        prefix = f"{self._namespace}/" if self._namespace else ""
        gone = [
            key
            for key in self._store
            if key.startswith(prefix) and key not in self._seen and key not in self.touched
        ]
        for key in gone:
            self._store.discard(key)
        self.repaired += len(gone)
        return self.repaired

    def cancel(self) -> None:
        """The list failed: nothing is concluded from it."""
        self._store._end_audit(self)
