"""The event hub: what a stream carries, and where a client resumes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from engineroom.console.background.event_hub import REMEMBERED, EventHub, WatchedKind
from engineroom.kube.client.resources import RATELIMITPOLICIES, WORKERPOOLS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engineroom.console.background.event_hub import KindFeed


class View(BaseModel):
    namespace: str
    name: str
    resource_version: str


def view(obj: Mapping[str, Any]) -> View:
    metadata = obj["metadata"]
    return View(
        namespace=metadata["namespace"],
        name=metadata["name"],
        resource_version=metadata["resourceVersion"],
    )


def make_hub(*, synced: bool = True) -> EventHub:
    """A hub without an API server; tests write to its caches."""
    client: Any = None
    hub = EventHub(
        client,
        [
            WatchedKind("pool", "gone", WORKERPOOLS, view, "namespace:events:read"),
            WatchedKind("policy", "policy-gone", RATELIMITPOLICIES, view, "namespace:limits:read"),
        ],
    )
    if synced:
        for feed in feeds(hub):
            feed.informer.synced.set()
    return hub


def feeds(hub: EventHub) -> list[KindFeed]:
    return list(hub._feeds.values())


def put(hub: EventHub, event: str, name: str, version: int, namespace: str = "shop") -> None:
    metadata = {"namespace": namespace, "name": name, "resourceVersion": str(version)}
    hub._feeds[event].informer.store.put({"metadata": metadata})


def remove(hub: EventHub, event: str, name: str, namespace: str = "shop") -> None:
    hub._feeds[event].informer.store.remove({"metadata": {"namespace": namespace, "name": name}})


async def received(stream: Any) -> list[dict[str, str]]:
    """All queued events of a stream as field and value."""
    events = []
    while (text := await stream.next(0.01)) is not None:
        rows = (line.partition(": ") for line in text.decode().splitlines() if line)
        events.append({name: value for name, _, value in rows})
    return events


ALL = ("pool", "policy")


async def test_a_stream_carries_the_changes_of_all_its_kinds_under_their_own_names() -> None:
    hub = make_hub()
    with hub.opened("ada", "shop", ALL, "") as (stream, missed):
        assert missed
        put(hub, "pool", "mail", 1)
        put(hub, "policy", "api", 2)
        put(hub, "policy", "api", 3, namespace="elsewhere")
        remove(hub, "pool", "mail")
        remove(hub, "policy", "api")
        events = await received(stream)
    assert [event["event"] for event in events] == ["pool", "policy", "gone", "policy-gone"]
    assert json.loads(events[2]["data"]) == {"namespace": "shop", "name": "mail"}


async def test_a_stream_has_no_events_of_kinds_that_its_caller_may_not_watch() -> None:
    hub = make_hub()
    with hub.opened("ada", "shop", ["pool"], "") as (stream, _):
        put(hub, "policy", "api", 1)
        assert await received(stream) == []
    with hub.opened("ada", "shop", ALL, "") as (stream, _):
        put(hub, "policy", "api", 2)
        put(hub, "pool", "mail", 3)
        stream.kinds &= {"pool"}  # the right ended before the delivery
        assert [event["event"] for event in await received(stream)] == ["pool"]


async def test_a_client_resumes_after_its_last_event_of_each_kind_at_any_replica() -> None:
    first, second = make_hub(), make_hub()
    with first.opened("ada", "shop", ALL, "") as (stream, _):
        put(first, "pool", "mail", 1)
        last = (await received(stream))[-1]["id"]
    # The replicas see the changes of the two kinds in different orders.
    put(second, "policy", "api", 2)
    put(second, "pool", "mail", 1)
    put(second, "pool", "bills", 3)
    with second.opened("ada", "shop", ALL, last) as (stream, missed):
        assert not missed
        names = sorted(json.loads(event["data"])["name"] for event in await received(stream))
    assert names == ["api", "bills"]


async def test_replicas_that_listed_different_objects_do_not_resume_each_others_streams() -> None:
    first, second = make_hub(synced=False), make_hub(synced=False)
    put(second, "policy", "api", 2)
    for hub in (first, second):
        for feed in feeds(hub):
            feed.informer.synced.set()
    with first.opened("ada", "shop", ALL, "") as (stream, _):
        put(first, "pool", "mail", 3)
        last = (await received(stream))[-1]["id"]
    put(second, "pool", "mail", 3)
    with second.opened("ada", "shop", ALL, last) as (stream, missed):
        assert missed
        assert await received(stream) == []


@pytest.mark.parametrize("last", ["1", "pool=1", "pool=1,policy=", "pool=1,policy=9", "=,=", ","])
async def test_an_unknown_position_is_never_resumed(last: str) -> None:
    hub = make_hub()
    put(hub, "pool", "mail", 1)
    with hub.opened("ada", "shop", ALL, last) as (_, missed):
        assert missed


async def test_a_position_before_the_oldest_remembered_change_is_not_resumed() -> None:
    hub = make_hub()
    with hub.opened("ada", "shop", ["pool"], "") as (stream, _):
        put(hub, "pool", "mail", 1)
        last = (await received(stream))[-1]["id"]
    for version in range(2, REMEMBERED + 2):
        put(hub, "pool", "mail", version, namespace="elsewhere")
    with hub.opened("ada", "shop", ["pool"], last) as (_, missed):
        assert not missed
    put(hub, "pool", "mail", REMEMBERED + 2, namespace="elsewhere")
    with hub.opened("ada", "shop", ["pool"], last) as (_, missed):
        assert missed
