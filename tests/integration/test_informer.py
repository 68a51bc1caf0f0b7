"""The cache of children against a real API server, through whatever happens on the way."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING, Any

import pytest

from engineroom.kube.client.client import Client
from engineroom.kube.client.resources import CONFIG_MAPS, NAMESPACES, Resource
from engineroom.kube.runtime.informer import Informer
from tests.integration.faultproxy import Answer, Drop, Expired, FaultProxy, Request, Verdict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LABEL = "engineroom.dev/pool"


def obj(namespace: str, name: str, value: str = "1", pool: str = "mail") -> dict[str, Any]:
    return {
        "metadata": {"namespace": namespace, "name": name, "labels": {LABEL: pool}},
        "data": {"v": value},
    }


class Seen:
    """An informer of ConfigMaps that keeps their value, and what it said."""

    def __init__(self, client: Client, *namespaces: str, **options: Any) -> None:
        self.changes: list[tuple[str, str | None]] = []
        self.pools: list[str] = []
        self.informer: Informer[str] = Informer(
            client,
            CONFIG_MAPS,
            LABEL,
            lambda o: str(o["data"]["v"]),
            lambda key, value: self.changes.append((key, value)),
            namespaces=namespaces,
            on_index=self.pools.append,
            retry=(0.01, 0.2),
            page=3,
            **options,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Informer[str]]:
        await self.informer.start()
        try:
            async with asyncio.timeout(20):
                await self.informer.synced.wait()
            yield self.informer
        finally:
            await self.informer.stop()


async def until(condition: Callable[[], bool], within: float = 15.0) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def values(client: Client, namespace: str) -> dict[str, str]:
    items, _ = await client.list(CONFIG_MAPS, namespace, LABEL)
    return {item["metadata"]["name"]: item["data"]["v"] for item in items}


def cached(informer: Informer[str], namespace: str) -> dict[str, str | None]:
    prefix = f"{namespace}/"
    return {
        key.removeprefix(prefix): informer.store.get(key)
        for key in informer.store
        if key.startswith(prefix)
    }


async def test_it_lists_then_follows(client: Client, namespace: str) -> None:
    for number in range(8):
        await client.create(CONFIG_MAPS, obj(namespace, f"c{number}"))
    unlabelled = obj(namespace, "other")
    del unlabelled["metadata"]["labels"]
    await client.create(CONFIG_MAPS, unlabelled)
    seen = Seen(client, namespace)
    async with seen.running() as informer:
        assert len(informer) == 8
        assert len(informer.by_index(f"{namespace}/mail")) == 8
        assert informer.age() < 10
        await client.apply(CONFIG_MAPS, obj(namespace, "c0", "2"))
        await client.delete(CONFIG_MAPS, namespace, "c1")
        await client.create(CONFIG_MAPS, obj(namespace, "new", pool="other"))
        await until(lambda: len(seen.changes) >= 11)
        assert informer.get(namespace, "c0") == "2"
        assert informer.get(namespace, "c1") is None
        assert informer.by_index(f"{namespace}/other") == ["1"]
        assert seen.changes[-3:] == [
            (f"{namespace}/c0", "2"),
            (f"{namespace}/c1", None),
            (f"{namespace}/new", "1"),
        ]
        assert seen.pools[-3:] == [f"{namespace}/mail", f"{namespace}/mail", f"{namespace}/other"]


async def test_several_namespaces_and_no_others(client: Client, namespace: str) -> None:
    other, outside = (f"test-{secrets.token_hex(4)}" for _ in range(2))
    for name in (other, outside):
        await client.create(NAMESPACES, {"metadata": {"name": name}})
    for name in (namespace, other, outside):
        await client.create(CONFIG_MAPS, obj(name, "c"))
    seen = Seen(client, namespace, other)
    async with seen.running() as informer:
        assert sorted(informer.store) == sorted([f"{namespace}/c", f"{other}/c"])
        await client.delete(CONFIG_MAPS, other, "c")
        await until(lambda: len(informer) == 1)


async def test_a_broken_watch_goes_on_where_it_was_without_listing_again(
    proxy: FaultProxy, client: Client, namespace: str
) -> None:
    async with Client(proxy.config) as through:
        seen = Seen(through, namespace)
        async with seen.running() as informer:
            for number in range(5):
                await until(lambda: any(r.watch and r.status for r in proxy.requests))
                await proxy.cut_watches()
                await client.apply(CONFIG_MAPS, obj(namespace, "c", str(number)))
                await until(lambda number=number: informer.get(namespace, "c") == str(number))  # type: ignore[misc]
            lists = [r for r in proxy.requests if not r.watch]
            assert len(lists) == 1
            assert [value for _, value in seen.changes] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("gone", [Expired(), Answer(410, "Expired")])
async def test_after_a_410_what_was_deleted_meanwhile_is_gone(
    proxy: FaultProxy, client: Client, namespace: str, gone: Expired | Answer
) -> None:
    for name in ("stays", "goes", "changes"):
        await client.create(CONFIG_MAPS, obj(namespace, name))
    async with Client(proxy.config) as through:
        seen = Seen(through, namespace)
        async with seen.running() as informer:
            await until(lambda: any(r.watch and r.status for r in proxy.requests))
            # No watch gets through until all has happened; the next one is told that it is too old.
            blocked = proxy.before(lambda r: Drop() if r.watch else None)
            await proxy.cut_watches()
            await client.delete(CONFIG_MAPS, namespace, "goes")
            await client.apply(CONFIG_MAPS, obj(namespace, "changes", "2"))
            await client.create(CONFIG_MAPS, obj(namespace, "comes"))
            blocked()
            once = [gone]
            proxy.before(lambda r: once.pop() if r.watch and once else None)
            await until(lambda: informer.get(namespace, "comes") == "1")
            assert cached(informer, namespace) == {"stays": "1", "changes": "2", "comes": "1"}
            assert (f"{namespace}/goes", None) in seen.changes
            await client.apply(CONFIG_MAPS, obj(namespace, "stays", "3"))
            await until(lambda: informer.get(namespace, "stays") == "3")


async def test_a_deletion_that_the_watch_swallows_is_found_by_comparing(
    client: Client, namespace: str
) -> None:
    await client.create(CONFIG_MAPS, obj(namespace, "c"))
    seen = Seen(client, namespace, resync=(0.2, 0.3))
    async with seen.running() as informer:
        # As if its events had been lost: an object that the API server does not have.
        ghost = obj(namespace, "ghost")
        ghost["metadata"]["resourceVersion"] = "1"
        informer.store.put(ghost)
        await until(lambda: informer.get(namespace, "ghost") is None)
        assert informer.repaired == 1
        assert cached(informer, namespace) == {"c": "1"}


async def test_it_starts_when_the_api_server_does(
    proxy: FaultProxy, client: Client, namespace: str
) -> None:
    await client.create(CONFIG_MAPS, obj(namespace, "c"))
    answers: list[Verdict] = [Drop(), Answer(500), Answer(503), Answer(403), Drop()]
    proxy.before(lambda _: answers.pop(0) if answers else None)
    async with Client(proxy.config) as through, Seen(through, namespace).running() as informer:
        assert cached(informer, namespace) == {"c": "1"}


async def test_a_list_that_breaks_between_chunks_is_begun_again(
    proxy: FaultProxy, client: Client, namespace: str
) -> None:
    for number in range(8):
        await client.create(CONFIG_MAPS, obj(namespace, f"c{number}"))
    failures: list[Verdict] = [Answer(410, "Expired"), Drop()]
    proxy.before(lambda r: failures.pop() if "continue" in r.query and failures else None)
    async with Client(proxy.config) as through, Seen(through, namespace).running() as informer:
        assert len(informer) == 8


async def test_a_silent_connection_is_left(
    proxy: FaultProxy, client: Client, namespace: str
) -> None:
    """Half-open: the first watch never tells anything, and never ends."""
    async with (
        Client(proxy.config, watch_silence=0.5) as through,
        Seen(through, namespace).running() as informer,
    ):
        await until(lambda: any(r.watch and r.status for r in proxy.requests))
        proxy.freeze()
        await client.create(CONFIG_MAPS, obj(namespace, "c"))
        await asyncio.sleep(0.6)  # the silence itself
        proxy.thaw()
        await until(lambda: informer.get(namespace, "c") == "1")


async def test_a_kind_that_is_not_served_is_waited_for(client: Client, namespace: str) -> None:
    unknown = Resource("nowhere.dev", "v1", "things", "Thing")
    informer: Informer[str] = Informer(
        client, unknown, "", lambda _: "", namespaces=[namespace], retry=(0.01, 0.05)
    )
    await informer.start()
    await asyncio.sleep(0.3)
    assert not informer.synced.is_set()
    assert len(informer) == 0
    await informer.stop()


async def test_whatever_is_cut_and_when_the_cache_ends_up_right(
    proxy: FaultProxy, client: Client, namespace: str
) -> None:
    """A storm: watches cut at every event, expired, throttled, dropped; then quiet."""
    number = 0

    def storm(request: Request) -> Answer | Drop | Expired | None:
        nonlocal number
        number += 1
        if request.watch and number % 5 == 0:
            return Expired()
        if number % 7 == 0:
            return Drop()
        if number % 11 == 0:
            return Answer(429, retry_after=0)
        return None

    async with Client(proxy.config) as through:
        seen = Seen(through, namespace)
        async with seen.running() as informer:
            proxy.before(storm)
            for step in range(60):
                name = f"c{step % 7}"
                if step % 5 == 4:
                    with contextlib.suppress(Exception):
                        await client.delete(CONFIG_MAPS, namespace, name)
                else:
                    await client.apply(CONFIG_MAPS, obj(namespace, name, str(step)))
                if step % 3 == 0:
                    await proxy.cut_watches()
            proxy.clear()
            wanted = await values(client, namespace)
            await until(lambda: cached(informer, namespace) == wanted)
            told: dict[str, str | None] = {}
            for key, value in seen.changes:
                told[key.split("/")[1]] = value
            assert {k: v for k, v in told.items() if v is not None} == wanted
