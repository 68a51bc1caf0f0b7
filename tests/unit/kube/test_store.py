"""The cache and its comparison with lists, also while events come in."""

from __future__ import annotations

from typing import Any

from engineroom.kube.runtime.store import ObjectStore


def pod(name: str, version: int, pool: str | None = "mail", namespace: str = "shop") -> Any:
    labels = {"engineroom.dev/pool": pool} if pool else {}
    return {
        "metadata": {
            "namespace": namespace,
            "name": name,
            "resourceVersion": str(version),
            "labels": labels,
        }
    }


class Heard:
    def __init__(self) -> None:
        self.changes: list[tuple[str, str | None, str | None]] = []
        self.pools: list[str] = []
        self.store: ObjectStore[str] = ObjectStore(
            lambda obj: f"{obj['metadata']['name']}@{obj['metadata']['resourceVersion']}",
            lambda key, value, before: self.changes.append((key, value, before)),
            index_label="engineroom.dev/pool",
            on_index=self.pools.append,
        )


def test_new_changed_and_gone_objects_are_told_with_what_was_before() -> None:
    heard = Heard()
    assert heard.store.put(pod("a", 1))
    assert not heard.store.put(pod("a", 1))
    assert heard.store.put(pod("a", 2))
    assert heard.store.remove(pod("a", 3))
    assert not heard.store.remove(pod("a", 3))
    assert heard.changes == [
        ("shop/a", "a@1", None),
        ("shop/a", "a@2", "a@1"),
        ("shop/a", None, "a@2"),
    ]
    assert heard.pools == ["shop/mail"] * 3


def test_objects_are_found_by_their_pool() -> None:
    heard = Heard()
    heard.store.put(pod("a", 1))
    heard.store.put(pod("b", 2))
    heard.store.put(pod("c", 3, pool="other"))
    heard.store.put(pod("d", 4, pool=None))
    heard.store.put(pod("e", 5, namespace="else"))
    assert sorted(heard.store.by_index("shop/mail")) == ["a@1", "b@2"]
    assert heard.store.by_index("shop/none") == []
    heard.store.remove(pod("a", 6))
    assert heard.store.by_index("shop/mail") == ["b@2"]


def test_an_object_that_changes_its_pool_is_told_to_both() -> None:
    heard = Heard()
    heard.store.put(pod("a", 1))
    heard.pools.clear()
    heard.store.put(pod("a", 2, pool="other"))
    assert heard.pools == ["shop/mail", "shop/other"]
    assert heard.store.by_index("shop/mail") == []
    assert heard.store.by_index("shop/other") == ["a@2"]


def test_a_comparison_finds_what_the_watch_has_missed() -> None:
    heard = Heard()
    for name in "abc":
        heard.store.put(pod(name, 1))
    comparison = heard.store.begin_comparison()
    assert not comparison.add(pod("a", 1))
    assert comparison.add(pod("b", 2))
    assert comparison.add(pod("new", 3))
    assert comparison.finish() == 3
    assert sorted(heard.store.values()) == ["a@1", "b@2", "new@3"]
    assert ("shop/c", None, "c@1") in heard.changes


def test_what_an_event_touched_during_a_comparison_stays_as_the_event_made_it() -> None:
    heard = Heard()
    heard.store.put(pod("changed", 1))
    heard.store.put(pod("deleted", 1))
    comparison = heard.store.begin_comparison()
    # The list was made before these events, and is read after them.
    heard.store.put(pod("changed", 5))
    heard.store.remove(pod("deleted", 6))
    heard.store.put(pod("born", 7))
    assert not comparison.add(pod("changed", 1))
    assert not comparison.add(pod("deleted", 1))
    assert comparison.finish() == 0
    assert sorted(heard.store.values()) == ["born@7", "changed@5"]


def test_a_comparison_of_one_namespace_leaves_the_others_alone() -> None:
    heard = Heard()
    heard.store.put(pod("a", 1, namespace="one"))
    heard.store.put(pod("a", 1, namespace="other"))
    assert heard.store.begin_comparison("one").finish() == 1
    assert list(heard.store) == ["other/a"]


def test_a_cancelled_comparison_concludes_nothing() -> None:
    heard = Heard()
    heard.store.put(pod("a", 1))
    heard.store.begin_comparison().cancel()
    assert "shop/a" in heard.store
    assert heard.store._comparisons == []


def test_callbacks_see_the_store_as_it_is_after_the_change() -> None:
    seen: list[int] = []
    store: ObjectStore[int] = ObjectStore(
        lambda obj: int(obj["metadata"]["resourceVersion"]),
        lambda _key, _value, _before: seen.append(len(store)),
    )
    store.put(pod("a", 1))
    store.discard("shop/a")
    assert seen == [1, 0]
