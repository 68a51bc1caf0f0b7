"""Targets of policies on a real API server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from engineroom.core.clock import SystemClock
from engineroom.ratelimit.distribution.document import Target
from engineroom.ratelimit.reconcile.targets import Targets

if TYPE_CHECKING:
    from engineroom.kube.client.client import Client


async def test_a_kind_without_objects_is_watched_once(client: Client, namespace: str) -> None:
    context = SimpleNamespace(
        client=client, namespaces=(namespace,), resync=(300.0, 600.0), clock=SystemClock()
    )
    targets = Targets(cast("Any", context), lambda _: None)
    shop = Target("", "Service", "shop")
    watches = 0
    watch = client.watch

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal watches
        watches += 1
        return watch(*arguments, **options)

    client.watch = counted  # type: ignore[method-assign]
    for _ in range(5):
        assert await targets.missing(namespace, [shop]) == (shop,)

    assert watches == 1
    await targets.stop()
