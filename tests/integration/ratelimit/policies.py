"""A stage for policies: the operator as a process, followers as tasks or processes, statuses."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from engineroom.core.errors import EngineroomError
from engineroom.kube.client.resources import RATELIMITPOLICIES
from tests.support import ROOT

if TYPE_CHECKING:
    import signal
    from collections.abc import Awaitable, Callable

    from engineroom.kube.client.client import Client


def policy(namespace: str, name: str = "api", requests: int = 10, **spec: Any) -> dict[str, Any]:
    limit = {"name": "all", "rate": {"requests": requests, "period": "1h"}}
    attached = {} if "targetRefs" in spec or "selector" in spec else {"selector": labels(name)}
    return {
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"limits": [limit], **attached, **spec},
    }


def labels(name: str) -> dict[str, Any]:
    return {"matchLabels": {"app": name}}


def condition(obj: dict[str, Any], kind: str) -> tuple[str, str]:
    """(status, reason) of a condition, which must speak of this generation; ("", "") if none."""
    status = obj.get("status") or {}
    for entry in status.get("conditions") or ():
        if entry["type"] == kind and entry["observedGeneration"] == obj["metadata"]["generation"]:
            return entry["status"], entry["reason"]
    return "", ""


async def until(
    look: Callable[[], Awaitable[Any]], good: Callable[[Any], bool], within: float = 30.0
) -> Any:
    """Look until it is good; returns what was seen."""
    deadline = time.monotonic() + within
    while True:
        observed = await look()
        if good(observed):
            return observed
        assert time.monotonic() < deadline, observed
        await asyncio.sleep(0.02)


class Policies:
    """The policies of one namespace."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.client = client
        self.namespace = namespace

    async def create(self, name: str = "api", requests: int = 10, **spec: Any) -> dict[str, Any]:
        built = policy(self.namespace, name, requests, **spec)
        return await self.client.create(RATELIMITPOLICIES, built)

    async def edit(self, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        return await self.client.request(
            "PATCH",
            RATELIMITPOLICIES.path(self.namespace, name),
            body={"spec": patch},
            content_type="application/merge-patch+json",
        )

    async def get(self, name: str = "api") -> dict[str, Any]:
        return await self.client.get(RATELIMITPOLICIES, self.namespace, name)

    async def until(
        self, name: str, kind: str, status: str, reason: str = "", within: float = 30.0
    ) -> dict[str, Any]:
        """Wait for a condition; returns the object."""

        def good(obj: dict[str, Any]) -> bool:
            actual = condition(obj, kind)
            return actual[0] == status and (not reason or actual[1] == reason)

        actual: dict[str, Any] = await until(lambda: self.get(name), good, within)
        return actual

    async def versions(self) -> dict[str, str]:
        """resourceVersion of each, which any write changes."""
        items, _ = await self.client.list(RATELIMITPOLICIES, self.namespace)
        return {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in items}

    async def gone(self, name: str) -> bool:
        try:
            await self.get(name)
        except EngineroomError:
            return True
        return False


class Enforcer:
    """A follower in a process of its own, to be stopped, continued and killed."""

    def __init__(self, url: str, namespace: str) -> None:
        self._arguments = (url, namespace)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.integration.ratelimit.enforcer",
            *self._arguments,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}"},
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        await self._process.stdout.readline()

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def end(self) -> None:
        """Kill it, if it is still there."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
