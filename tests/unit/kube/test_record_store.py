"""Objects of ours: fed by a watch that is not ours, compared, and our own writes not heard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from engineroom.core.clock import FakeClock
from engineroom.kube.client.errors import Unreachable
from engineroom.kube.client.resources import WORKERPOOLS
from engineroom.kube.runtime.controller import GRACE, LAST_APPLIED, Record, RecordStore, record_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def pool(version: int, *, generation: int = 1, uid: str = "u1", **metadata: Any) -> Any:
    return {
        "metadata": {
            "namespace": "shop",
            "name": "mail",
            "uid": uid,
            "generation": generation,
            "resourceVersion": str(version),
            **metadata,
        },
        "spec": {"replicas": generation},
    }


class Lists:
    """A client that lists what it is told to."""

    def __init__(self, *objects: Any, fails: bool = False) -> None:
        self.objects = list(objects)
        self.fails = fails

    async def pages(self, *_: Any) -> AsyncIterator[Any]:
        yield self.objects, "99"
        if self.fails:
            raise Unreachable("in the middle")


def make() -> tuple[RecordStore, list[tuple[str, int | None, int | None]], FakeClock]:
    told: list[tuple[str, int | None, int | None]] = []
    clock = FakeClock()

    def note(key: str, new: Record | None, old: Record | None) -> None:
        versions = [None if r is None else int(r.resource_version) for r in (new, old)]
        told.append((key, versions[0], versions[1]))

    return RecordStore(WORKERPOOLS, note, clock), told, clock


def test_a_record_keeps_the_object_without_what_only_kubectl_and_the_server_need() -> None:
    record = record_of(
        pool(
            7,
            managedFields=[{"manager": "kubectl"}],
            annotations={LAST_APPLIED: "{...}", "kept": "yes"},
            deletionTimestamp="2026-01-01T00:00:00Z",
        )
    )
    assert record.key == "shop/mail"
    assert record.deleting
    loaded = record.load()
    assert loaded["spec"] == {"replicas": 1}
    assert "managedFields" not in loaded["metadata"]
    assert loaded["metadata"]["annotations"] == {"kept": "yes"}


def test_an_event_of_a_predecessor_does_not_remove_its_successor() -> None:
    store, told, _ = make()
    store.take("ADDED", pool(1, uid="old"))
    store.take("ADDED", pool(5, uid="new"))
    store.take("DELETED", pool(4, uid="old"))
    assert len(store) == 1
    store.take("DELETED", pool(6, uid="new"))
    assert told[-1] == ("shop/mail", None, 5)
    store.take("DELETED", pool(6, uid="new"))
    assert len(told) == 3


def test_the_echo_of_our_own_write_wakes_nobody() -> None:
    store, told, _ = make()
    store.take(None, pool(1))
    store.wrote(pool(2))
    store.take("MODIFIED", pool(2))
    assert told == [("shop/mail", 1, None)]
    held = store.get("shop/mail")
    assert held is not None
    assert held.resource_version == "2"


def test_an_answer_that_is_older_than_the_watch_is_ignored() -> None:
    store, _, _ = make()
    store.take(None, pool(1))
    store.take("MODIFIED", pool(10))
    store.wrote(pool(9))
    assert store.version("shop/mail") == "10"


@pytest.mark.parametrize(
    "answer", [pool(5, generation=2), pool(5, uid="u2"), pool(5, deletionTimestamp="now")]
)
def test_a_wish_that_came_in_with_an_answer_is_still_told(answer: Any) -> None:
    store, told, _ = make()
    store.take(None, pool(1))
    store.wrote(answer)
    store.take("MODIFIED", answer)
    assert told[-1] == ("shop/mail", 5, 1)


async def test_a_comparison_tells_news_and_makes_missing_deletions() -> None:
    store, told, clock = make()
    store.take(None, pool(1))
    clock.advance(100)
    assert store.age() == 100
    other = pool(3)
    other["metadata"]["name"] = "other"
    assert await store.compare(Lists(other)) == 2  # type: ignore[arg-type]
    assert told[1:] == [("shop/other", 3, None), ("shop/mail", None, 1)]
    assert store.repaired == 2
    assert store.age() == 0


async def test_a_list_that_breaks_off_deletes_nothing() -> None:
    store, told, _ = make()
    store.take(None, pool(1))
    with pytest.raises(Unreachable):
        await store.compare(Lists(fails=True))  # type: ignore[arg-type]
    assert told == [("shop/mail", 1, None)]


async def test_a_watch_that_never_tells_what_a_list_does_is_deaf() -> None:
    store, _, clock = make()
    await store.compare(Lists(pool(1)))  # type: ignore[arg-type]
    assert not store.watch_is_broken()
    clock.advance(GRACE + 1)
    assert store.watch_is_broken()
    store.watch_restarted()
    assert not store.watch_is_broken()


async def test_a_watch_that_is_merely_slower_than_a_list_is_not_deaf() -> None:
    store, _, clock = make()
    await store.compare(Lists(pool(1)))  # type: ignore[arg-type]
    store.take("ADDED", pool(1))
    clock.advance(GRACE + 1)
    assert not store.watch_is_broken()


async def test_the_first_list_accuses_nobody() -> None:
    store, told, clock = make()
    await store.compare(Lists(pool(1)), first=True)  # type: ignore[arg-type]
    clock.advance(GRACE + 1)
    assert told == [("shop/mail", 1, None)]
    assert not store.watch_is_broken()
    assert store.repaired == 0
