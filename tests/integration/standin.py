"""The operator process with a controller that only reports what it saw; run as a program.

``STANDIN_SECONDS`` is how long one reconcile takes; with ``STANDIN_POLICIES`` it runs a second
controller, of policies. It says what it does on standard output, a JSON
object a line: {"did": "reconciled", "key": ..., "generation": ... or null}.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING

from engineroom.core.logging import configure
from engineroom.kube.client.resources import PODS, RATELIMITPOLICIES, WORKERPOOLS
from engineroom.kube.runtime.process import ControllerProcess
from engineroom.main import load_config
from engineroom.settings import Settings

if TYPE_CHECKING:
    from engineroom.kube.client.resources import Resource
    from engineroom.kube.runtime.controller import Context, Record


def say(**words: object) -> None:
    print(json.dumps(words), flush=True)


class StandIn:
    """Publishes the generation it saw as ``status.observedGeneration``, when that differs."""

    def __init__(self, kind: Resource = WORKERPOOLS) -> None:
        self.kind = kind
        self.seconds = float(os.environ.get("STANDIN_SECONDS", "0"))

    async def start(self, context: Context) -> None:
        self.context = context
        if self.kind is WORKERPOOLS:
            context.informer(PODS, "engineroom.dev/pool", lambda pod: str(pod["metadata"]["uid"]))

    def changed(self, key: str, obj: Record | None) -> None:
        say(did="changed", key=key, generation=obj and obj.generation)

    async def reconcile(self, key: str) -> float | None:
        record = self.context.store.get(key)
        if record is None:
            say(did="gone", key=key)
            return None
        if self.seconds:
            say(did="begun", key=key)
            await asyncio.sleep(self.seconds)
        seen = (record.load().get("status") or {}).get("observedGeneration")
        if seen != record.generation:
            metadata = {"namespace": record.namespace, "name": record.name}
            status = {"observedGeneration": record.generation}
            answer = await self.context.client.apply_status(
                self.kind, {"metadata": metadata, "status": status}
            )
            self.context.store.wrote(answer)
        say(did="reconciled", key=key, generation=record.generation)
        return None

    async def stop(self) -> None:
        say(did="stopped")


async def main() -> int:
    settings = Settings()
    configure(settings.log_level, "console", sys.stderr)
    controllers = [StandIn()]
    if os.environ.get("STANDIN_POLICIES"):
        controllers.append(StandIn(RATELIMITPOLICIES))
    process = ControllerProcess(settings, load_config(settings), controllers)

    async def ports() -> None:
        await process.synced.wait()
        say(did="synced", probes=process.probes.port, metrics=process.exposition.port)

    telling = asyncio.create_task(ports())
    code = await process.run()
    telling.cancel()
    if process.abandon:
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
