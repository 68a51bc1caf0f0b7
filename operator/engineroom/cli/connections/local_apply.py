"""Transactions of manifests with a kubeconfig, logged in files on this machine.

They use the same plan, steps and rollback as the API process, with the rights of the kubeconfig.
Recovery differs: replicas of the API process recover the transactions of a killed process, while
here the user runs ``apply --recover``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineroom.api.validation.pod_security import PodSecurityLevel
from engineroom.cli.connections.kubernetes_cluster import MERGE_PATCH, KubernetesCluster
from engineroom.cli.errors import NotFoundError, RefusedError, UnreachableError, program
from engineroom.core.clock import SystemClock
from engineroom.core.errors import DependencyError
from engineroom.core.logging import configure
from engineroom.core.transactions.errors import SagaUndoneError
from engineroom.core.transactions.filelog import FileSagaLog
from engineroom.core.transactions.saga import Coordinator
from engineroom.kube.client.errors import Forbidden, Unreachable, from_status
from engineroom.manifests.apply import LEASE, SAGA, Applier, PlannedObject
from engineroom.manifests.errors import ManifestChangedError, ManifestUndoneError
from engineroom.manifests.plan import changes, check, level, read_objects, rehearse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engineroom.cli.connections.cluster import Cluster
    from engineroom.cli.connections.model import Document
    from engineroom.core.transactions.journal import SagaRecord
    from engineroom.core.transactions.saga import StepContext
    from engineroom.kube.client.resources import Resource

_APPLY = "application/apply-patch+yaml"
#: Age in seconds after which the stored objects of a transaction that never began are deleted.
_ORPHANED = 3600.0


class KubeWriter:
    """``Writer`` through the command line's cluster connection, with the kubeconfig's login."""

    def __init__(self, cluster: KubernetesCluster) -> None:
        self._cluster = cluster

    async def get(self, ref: Resource, namespace: str | None, name: str) -> dict[str, Any]:
        """See Writer."""
        return await self.request("GET", ref.path(namespace, name))

    async def apply(
        self,
        ref: Resource,
        obj: Mapping[str, Any],
        *,
        force: bool,
        field_manager: str,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """See Writer."""
        metadata = obj["metadata"]
        params = {"fieldManager": field_manager, "force": "true" if force else "false"}
        if dry_run:
            params["dryRun"] = "All"
        body = {"apiVersion": ref.api_version, "kind": ref.kind, **obj}
        path = ref.path(metadata.get("namespace"), metadata["name"])
        return await self._send("PATCH", path, params, body, _APPLY)

    async def merge_patch(
        self,
        ref: Resource,
        namespace: str | None,
        name: str,
        patch: Mapping[str, Any],
        *,
        field_manager: str,
    ) -> dict[str, Any]:
        """See Writer."""
        params = {"fieldManager": field_manager}
        return await self._send("PATCH", ref.path(namespace, name), params, patch, MERGE_PATCH)

    async def delete(
        self, ref: Resource, namespace: str | None, name: str, *, uid: str | None = None
    ) -> None:
        """See Writer."""
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid:
            options["preconditions"] = {"uid": uid}
        await self.request("DELETE", ref.path(namespace, name), body=options)

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """See Writer."""
        return await self._send(method, path, params, body, "application/json")

    async def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        content_type: str,
    ) -> dict[str, Any]:
        try:
            status, _, data = await asyncio.to_thread(
                self._cluster.send, method, path, params, body, content_type
            )
        except UnreachableError as error:
            raise Unreachable(str(error)) from error
        try:
            answer = json.loads(data)
        except ValueError:
            answer = {}
        if not isinstance(answer, dict):
            answer = {}
        if not 200 <= status < 300:
            raise from_status(status, answer)
        return answer


class FileBundles:
    """``Bundles`` in files beside the log, readable only by their owner.

    A file is deleted when its transaction ends.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def put(self, transaction: str, objects: list[PlannedObject]) -> None:
        """See Bundles."""
        text = json.dumps([asdict(document) for document in objects])
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            descriptor = os.open(self._path(transaction), flags, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DependencyError(
                f"{self._directory}: cannot be written ({error.strerror}), so nothing was changed"
            ) from error

    async def get(self, transaction: str) -> list[PlannedObject]:
        """See Bundles."""
        try:
            text = self._path(transaction).read_text(encoding="utf-8")
            return [PlannedObject(**document) for document in json.loads(text)]
        except (OSError, ValueError, TypeError) as error:
            raise ManifestChangedError(
                "transaction: its objects are no longer stored; plan the change again"
            ) from error

    async def drop(self, transaction: str) -> None:
        """See Bundles."""
        self._path(transaction).unlink(missing_ok=True)

    def sweep(self, now: float, has_log: Callable[[str], bool]) -> None:
        """Delete the objects of old transactions without a log, which never began."""
        if not self._directory.is_dir():
            return
        for path in self._directory.glob("*.objects"):
            if path.stat().st_mtime < now - _ORPHANED and not has_log(path.stem):
                path.unlink(missing_ok=True)

    def _path(self, transaction: str) -> Path:
        return self._directory / f"{transaction}.objects"


class _ReportingApplier(Applier):
    """An applier that prints the outcome of each step."""

    def __init__(
        self, cluster: KubernetesCluster, bundles: FileBundles, report: Callable[[str], None]
    ) -> None:
        super().__init__(KubeWriter(cluster), bundles, SystemClock())
        self._report = report

    async def apply(self, step: StepContext) -> str:
        """See Applier."""
        outcome = await super().apply(step)
        await self._report_step(step, outcome.partition(" to ")[0])
        return outcome

    async def undo(self, step: StepContext) -> str:
        """See Applier."""
        outcome = await super().undo(step)
        await self._report_step(step, f"rolled back: {outcome}")
        return outcome

    async def _report_step(self, step: StepContext, outcome: str) -> None:
        planned = await self._of(step)
        self._report(f"{planned.kind}/{planned.name} {outcome}")


class LocalApply:
    """Transactions with the rights of one kubeconfig, logged on this machine.

    ``report`` prints the progress of each step. Raises TypeError for a cluster behind the API.
    """

    def __init__(self, cluster: Cluster, report: Callable[[str], None]) -> None:
        # The command itself reports a step that fails; a log line would repeat it.
        configure("CRITICAL")
        if not isinstance(cluster, KubernetesCluster):
            raise TypeError("transactions on this machine need a kubeconfig")
        self._cluster = cluster
        self._report = report
        directory = state_directory(cluster.server)
        self._bundles = FileBundles(directory)
        self.log = FileSagaLog(directory)
        applier = _ReportingApplier(cluster, self._bundles, report)
        self._coordinator = Coordinator(self.log, applier.sagas(), lease=LEASE)

    def plan(self, namespace: str, text: str, *, force: bool) -> list[PlannedObject]:
        """Return the planned changes; writes nothing."""
        return asyncio.run(self._plan(namespace, text, force))

    async def _plan(self, namespace: str, text: str, force: bool) -> list[PlannedObject]:
        objects = read_objects(namespace, text)
        writer = KubeWriter(self._cluster)
        try:
            pod_security = await level(writer, namespace, objects)
        except Forbidden:
            # The account may not read the namespace's level; admission enforces it at the write.
            pod_security = PodSecurityLevel.PRIVILEGED
        check(objects, pod_security)
        return await rehearse(writer, namespace, objects, force=force)

    def run(self, namespace: str, planned: list[PlannedObject], *, force: bool) -> str:
        """Write all objects or none; returns the transaction's id. Raises ManifestUndoneError."""
        transaction = secrets.token_hex(16)
        details = {
            "namespace": namespace,
            "force": force,
            "server": self._cluster.server,
            "objects": [
                {"kind": entry.kind, "name": entry.name, "action": entry.action}
                for entry in planned
            ],
        }
        name = f"{SAGA}.{len(planned)}"

        async def run_transaction() -> None:
            await self._bundles.put(transaction, planned)
            await self._coordinator.run(name, transaction, details, by=_local_user())
            await self._bundles.drop(transaction)

        # SIGTERM acts like Ctrl-C: the writes are rolled back before the program ends.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            asyncio.run(run_transaction())
        except SagaUndoneError as error:
            asyncio.run(self._bundles.drop(transaction))
            problem = f"manifest: {error}; see transaction {transaction}"
            raise ManifestUndoneError(problem) from error
        except KeyboardInterrupt:
            self._report("interrupted: rolling back")
            self.recover()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
        return transaction

    def recover(self) -> list[SagaRecord]:
        """Roll back the unfinished transactions on this machine; returns their records."""
        # Includes a transaction of this process that was interrupted.
        self.log.release_all()
        unfinished = self.log.left()

        async def recover_all() -> list[SagaRecord]:
            for record in unfinished:
                if record.status == "stuck":
                    await self._coordinator.resume(record.id)
            await self._coordinator.recover()
            recovered = []
            for record in unfinished:
                current = await self.log.read(record.id)
                if current is not None:
                    recovered.append(current)
                    if current.status in ("rolled_back", "committed"):
                        await self._bundles.drop(current.id)
            return recovered

        recovered = asyncio.run(recover_all())
        self._bundles.sweep(time.time(), self.log.exists)
        return recovered

    def refuse_if_left(self) -> None:
        """Raise RefusedError if a transaction is unfinished: its rollback would undo a new one."""
        unfinished = self.log.left()
        if unfinished:
            raise RefusedError(
                f"an `apply` from this machine did not finish: {unfinished[0].id}",
                why="its changes must be rolled back before a new `apply`",
                fix=f"`{program()} apply --recover`",
            )


def state_directory(server: str) -> Path:
    """Return the directory of the transaction log of one cluster."""
    base = os.environ.get("XDG_STATE_HOME") or ""
    root = Path(base) if base.startswith("/") else Path("~/.local/state").expanduser()
    return root / "engineroom" / hashlib.sha256(server.encode()).hexdigest()[:16]


def _local_user() -> str:
    import getpass

    try:
        return f"local:{getpass.getuser()}"
    except (OSError, KeyError):
        return f"local:{os.getuid()}"


def objects_of(planned: list[PlannedObject]) -> list[Document]:
    """Return a plan in the form of the API."""
    return [
        {
            "apiVersion": entry.api_version,
            "kind": entry.kind,
            "name": entry.name,
            "action": entry.action,
            "changes": [asdict(change) for change in changes(entry)],
        }
        for entry in planned
    ]


def local_transactions(server: str, namespace: str) -> list[Document]:
    """Return the transactions of this machine in a namespace, newest first."""
    log = FileSagaLog(state_directory(server))

    async def read_all() -> list[SagaRecord]:
        records: list[SagaRecord] = []
        cursor = None
        while True:
            page = await log.page(cursor=cursor, count=200)
            records += page.records
            cursor = page.cursor
            if cursor is None:
                return records

    records = asyncio.run(read_all())
    documents = [transaction_document(record) for record in records]
    return [entry for entry in documents if entry["namespace"] == namespace]


def local_transaction(server: str, identity: str) -> Document:
    """Return one transaction of this machine. Raises NotFoundError."""
    record = asyncio.run(FileSagaLog(state_directory(server)).read(identity))
    if record is None:
        raise NotFoundError(
            f"transaction {identity[:100]} is not in the log of this machine",
            fix=f"`{program()} transactions list` shows the transactions",
        )
    return transaction_document(record)


def transaction_document(record: SagaRecord) -> Document:
    """Return a transaction in the form of the API."""
    details = record.input if isinstance(record.input, dict) else {}
    return {
        "id": record.id,
        "name": record.name,
        "by": record.by,
        "namespace": details.get("namespace", ""),
        "status": record.status,
        "started": record.started,
        "duration": record.duration,
        "objects": [
            f"{document['action']} {document['kind']}/{document['name']}"
            for document in details.get("objects", ())
        ],
        "steps": [
            {"kind": line.kind.value, "step": line.step, "at": line.at,
             "detail": line.detail if isinstance(line.detail, str) else None}
            for line in record.entries
        ],
    }  # fmt: skip
