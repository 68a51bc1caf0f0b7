"""A kubelet that runs worker containers as plain processes: real pods to the API server, real
workers on a real Redis, and no image to pull. It honours what the guarantees rest on: SIGTERM and
the grace period at deletion, SIGKILL when a test asks for it, restarts under the same pod.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineroom.core.errors import EngineroomError
from engineroom.kube.client.errors import NotFound
from engineroom.kube.client.resources import LEASES, PODS, SECRETS, Resource
from tests.support import coverage_environment

if TYPE_CHECKING:
    from engineroom.kube.client.client import Client

NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
BINDING = Resource("", "v1", "pods", "Binding")
NODE = "hollow"
RUNTIME = Path(__file__).parents[2] / "operator"


class HollowKubelet:
    """Runs the pods of one namespace; an async context manager."""

    def __init__(self, client: Client, namespace: str, python: str = sys.executable) -> None:
        self._client = client
        self._namespace = namespace
        self._python = python
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._known: set[str] = set()
        self._resources: dict[str, dict[str, Any]] = {}
        self._restarts: dict[str, int] = {}
        self._out_of_memory: dict[str, str] = {}
        #: What it answers to a resize: "" grants it, else Deferred or Infeasible.
        self.resize = ""
        self.trouble: list[BaseException] = []

    async def __aenter__(self) -> HollowKubelet:
        await self._node()
        self._start(self._renew())
        self._start(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
            await process.wait()
        if self.trouble:
            raise self.trouble[0]

    def pods(self) -> list[str]:
        """Names of the pods whose process runs."""
        return [name for name, p in self._processes.items() if p.returncode is None]

    def kill(self, pod: str) -> None:
        """SIGKILL the pod's worker and all that it forked, as the kernel's OOM killer would."""
        os.killpg(self._processes[pod].pid, signal.SIGKILL)

    def freeze(self, pod: str) -> None:
        """SIGSTOP to the same: it is there and does nothing any more."""
        os.killpg(self._processes[pod].pid, signal.SIGSTOP)

    def out_of_memory(self, pod: str) -> None:
        """The same, and the pod's status says so."""
        self._out_of_memory[pod] = _time()
        self.kill(pod)

    def _start(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.trouble.append(task.exception())  # type: ignore[arg-type]

    async def _node(self) -> None:
        now = _time()
        node = {
            "metadata": {"name": NODE},
            "status": {
                "allocatable": {"cpu": "64", "memory": "256Gi", "pods": "500"},
                "capacity": {"cpu": "64", "memory": "256Gi", "pods": "500"},
                "conditions": [
                    {
                        "type": "Ready",
                        "status": "True",
                        "reason": "KubeletReady",
                        "message": "hollow",
                        "lastHeartbeatTime": now,
                        "lastTransitionTime": now,
                    }
                ],
            },
        }
        with contextlib.suppress(EngineroomError):
            await self._client.create(NODES, node)
        await self._client.merge_patch(NODES, None, NODE, node, subresource="status")

    async def _renew(self) -> None:
        """Keep the node alive in the eyes of the node controller."""
        while True:
            lease = {
                "metadata": {"namespace": "kube-node-lease", "name": NODE},
                "spec": {
                    "holderIdentity": NODE,
                    "leaseDurationSeconds": 40,
                    "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                },
            }
            with contextlib.suppress(EngineroomError):
                await self._client.apply(LEASES, lease)
            await asyncio.sleep(5)

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(EngineroomError):
                items, version = await self._client.list(PODS, self._namespace)
                for pod in items:
                    self._see(pod)
                async for change, pod in self._client.watch(PODS, self._namespace, version):
                    if change in ("ADDED", "MODIFIED"):
                        self._see(pod)
            await asyncio.sleep(0.1)

    def _see(self, pod: dict[str, Any]) -> None:
        meta = pod["metadata"]
        uid = meta["uid"]
        if "deletionTimestamp" in meta and f"{uid}!" not in self._known:
            self._known.add(f"{uid}!")
            self._start(self._end(meta["name"], uid, meta.get("deletionGracePeriodSeconds") or 0))
        elif uid not in self._known and "deletionTimestamp" not in meta:
            self._known.add(uid)
            self._resources[uid] = pod["spec"]["containers"][0].get("resources") or {}
            self._start(self._run(pod))
        elif (
            uid in self._restarts
            and (wish := pod["spec"]["containers"][0].get("resources")) != self._resources[uid]
        ):
            if not self.resize:
                self._resources[uid] = wish
            self._start(self._status(meta["name"], uid, ready=True, resize=self.resize))

    async def _run(self, pod: dict[str, Any]) -> None:
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        if not pod["spec"].get("nodeName"):
            target = {"metadata": {"name": name}, "target": {"kind": "Node", "name": NODE}}
            with contextlib.suppress(EngineroomError):
                await self._client.create(
                    BINDING, target, namespace=self._namespace, subresource="binding"
                )
        environment = await self._environment(pod)
        restarts = 0
        while True:
            if f"{uid}!" in self._known:
                return
            process = await asyncio.create_subprocess_exec(
                self._python,
                "-m",
                "engineroom_worker",
                env=environment,
                start_new_session=True,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            self._processes[name] = process
            self._restarts[uid] = restarts
            await self._status(name, uid, ready=True)
            await process.wait()
            if f"{uid}!" in self._known:
                return
            restarts += 1
            self._restarts[uid] = restarts
            await self._status(name, uid, ready=False)
            await asyncio.sleep(0.2)

    async def _end(self, name: str, uid: str, grace: float) -> None:
        process = self._processes.get(name)
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(grace):
                    await process.wait()
            except TimeoutError:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        with contextlib.suppress(NotFound):
            await self._client.delete(PODS, self._namespace, name, uid=uid, grace_period=0)

    async def _status(self, name: str, uid: str, *, ready: bool, resize: str = "") -> None:
        now, word = _time(), "True" if ready else "False"
        ended: dict[str, Any] = {"exitCode": 137, "reason": "Error", "finishedAt": now}
        if name in self._out_of_memory:
            ended |= {"reason": "OOMKilled", "finishedAt": self._out_of_memory[name]}
        conditions = [
            {"type": kind, "status": word, "lastTransitionTime": now}
            for kind in ("Ready", "ContainersReady")
        ]
        if resize:
            conditions.append(
                {"type": "PodResizePending", "status": "True", "lastTransitionTime": now}
                | {"reason": resize, "message": "the hollow node says so"}
            )
        status = {
            "phase": "Running",
            "conditions": conditions,
            "containerStatuses": [
                {
                    "name": "app",
                    "image": "none",
                    "imageID": "none",
                    "ready": ready,
                    "restartCount": self._restarts[uid],
                    "state": {"running": {"startedAt": now}} if ready else {"terminated": ended},
                    "lastState": {"terminated": ended} if self._restarts[uid] else {},
                    "resources": self._resources[uid],
                }
            ],
        }
        with contextlib.suppress(EngineroomError):
            await self._client.merge_patch(
                PODS,
                self._namespace,
                name,
                {"metadata": {"uid": uid}, "status": status},
                subresource="status",
            )

    async def _environment(self, pod: dict[str, Any]) -> dict[str, str]:
        values = {"PATH": os.environ["PATH"], **coverage_environment()}
        for entry in pod["spec"]["containers"][0]["env"]:
            values[entry["name"]] = await self._value(entry, pod)
        here = str(Path(__file__).parents[2])
        values["PYTHONPATH"] = os.pathsep.join([str(RUNTIME), here])
        values["ENGINEROOM_METRICS_PORT"] = "0"
        return values

    async def _value(self, entry: dict[str, Any], pod: dict[str, Any]) -> str:
        if "value" in entry or "valueFrom" not in entry:
            return str(entry.get("value", ""))
        source = entry["valueFrom"]
        if "fieldRef" in source:
            return str(pod["metadata"][source["fieldRef"]["fieldPath"].removeprefix("metadata.")])
        reference = source["secretKeyRef"]
        while True:
            try:
                secret = await self._client.get(SECRETS, self._namespace, reference["name"])
                return base64.b64decode(secret["data"][reference["key"]]).decode()
            except (NotFound, KeyError):
                await asyncio.sleep(0.2)


def _time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
