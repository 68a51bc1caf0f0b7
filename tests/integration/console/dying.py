"""Applies a manifest as the API does and dies by SIGKILL at a chosen write to the API server.

``python -m tests.integration.console.dying KUBECONFIG REDIS NAMESPACE FILE NUMBER before|after``
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from engineroom.auth.audit.hash_chain import derive_secret
from engineroom.core.clock import SystemClock
from engineroom.core.sealing import Sealer
from engineroom.core.transactions.saga import Coordinator
from engineroom.core.transactions.sagalog import RedisSagaLog
from engineroom.kube.client import config as kube_config
from engineroom.kube.client.client import Client
from engineroom.kube.client.errors import NotFound
from engineroom.manifests.apply import (
    MANAGER,
    Applier,
    PlannedObject,
    RedisBundles,
    content,
    create,
)
from engineroom.manifests.plan import read_objects

#: Seconds: so soon the test may take over.
LEASE = 0.4


class Dying(Client):
    """A client whose process dies before or after its ``number``-th write."""

    number: int | None = None
    after = False

    async def request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        if self.number is None or method == "GET":
            return await super().request(method, path, **options)
        self.number -= 1
        if self.number == -1 and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = await super().request(method, path, **options)
        if self.number == -1:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer


async def run(config: str, url: str, namespace: str, text: str, number: int, after: bool) -> None:
    redis = Redis.from_url(url)
    async with Dying(kube_config.from_kubeconfig(config)) as client:
        planned = []
        for resource, obj in read_objects(namespace, text):
            name = obj["metadata"]["name"]
            try:
                before = await client.get(resource, namespace, name)
                document = await client.apply(
                    resource, obj, field_manager=MANAGER, dry_run=True, force=True
                )
            except NotFound:
                before, document = None, await create(client, resource, obj, dry_run=True)
            assert content(before) != content(document)
            action = "create" if before is None else "update"
            planned.append(
                PlannedObject(resource.api_version, resource.kind, namespace, name, action,
                        before, obj, document)
            )  # fmt: skip
        secret = b"s" * 48  # of the API that recovers it
        bundles = RedisBundles(redis, SystemClock(), derive_secret(secret, "manifests"))
        log = RedisSagaLog(redis, sealer=Sealer(derive_secret(secret, "sagas"), "saga"))
        await bundles.put("crash", planned)
        coordinator = Coordinator(log, Applier(client, bundles, SystemClock()).sagas(), lease=LEASE)
        client.number, client.after = number, after
        document = {"namespace": namespace, "force": True, "objects": []}
        await coordinator.run(f"manifests.apply.{len(planned)}", "crash", document, by="test")
        print("committed")
    await redis.aclose()


if __name__ == "__main__":
    kubeconfig, redis_url, where, file, count, when = sys.argv[1:]
    asyncio.run(
        run(kubeconfig, redis_url, where, Path(file).read_text(), int(count), when == "after")
    )
