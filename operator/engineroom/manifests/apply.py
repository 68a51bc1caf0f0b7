"""Several objects applied as one transaction: written by a saga, or restored.

The saga has one step an object. After a crash it rolls back and never continues: no client waits
for its answer any more, and the rights of its author are not checked again.

Each object that is written carries the transaction's id in an annotation, by which a retried step
recognizes its own write. An undo reverts what the step changed, by a three-way merge, and the
ownership of fields with it. It deletes what the step created and nothing else.

Kubernetes has no transactions: a request of a stopped process may still arrive after another
replica has undone its step. Two things limit that: each update names a version, and a step that was
delayed for longer than half a lease does not write.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from engineroom.api import GROUP, kinds
from engineroom.core import key_prefixes
from engineroom.core.error_translation import wrapped
from engineroom.core.errors import TransientError
from engineroom.core.redaction import redact_object
from engineroom.core.redis_replies import text
from engineroom.core.sealing import Sealer, log_broken
from engineroom.core.transactions.saga import Saga, Step, StepContext
from engineroom.core.validation.paths import child
from engineroom.kube.client.errors import AlreadyExists, Conflict, NotFound
from engineroom.kube.client.resources import Resource, resource_of
from engineroom.manifests.errors import ManifestChangedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from redis.asyncio import Redis

    from engineroom.core.clock import Clock

#: Field manager; the same for API and command line, so that each can apply what the other applied.
MANAGER = "engineroom-api"
#: Objects of one transaction.
MAX_OBJECTS = 50
ANNOTATION = f"{GROUP}/transaction"
LEASE = 15.0
SAGA = "manifests.apply"
#: Differences of one object that are reported.
MAX_CHANGES = 200
#: Seconds for which the objects of an unfinished transaction are stored.
RETENTION = 7 * 86_400
#: Attempts of an undo while other clients change the object.
_TRIES = 8


@dataclass(frozen=True, slots=True)
class PlannedObject:
    """The planned change of one object: create, update or unchanged."""

    api_version: str
    kind: str
    namespace: str
    name: str
    action: str
    #: The stored object; None if there is none.
    before: dict[str, Any] | None = field(repr=False)
    #: The object of the manifest.
    wanted: dict[str, Any] = field(repr=False)
    #: The API server's answer to the dry run.
    after: dict[str, Any] = field(repr=False)

    @property
    def resource(self) -> Resource:
        """The object's resource in the API server."""
        return resource_of(kinds.registry().by_kind(self.kind))


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One difference; values are JSON, shortened and without secrets, None if absent."""

    path: str
    before: str | None
    after: str | None


# -- pure ---------------------------------------------------------------------------------------


def content(obj: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what users write: spec, labels and annotations, without our own mark."""
    if obj is None:
        return {"metadata": {"labels": {}, "annotations": {}}}
    metadata = obj.get("metadata") or {}
    annotations = {k: v for k, v in (metadata.get("annotations") or {}).items() if k != ANNOTATION}
    metadata_fields = {"labels": metadata.get("labels") or {}, "annotations": annotations}
    rest = {
        key: value
        for key, value in obj.items()
        if key not in {"apiVersion", "kind", "metadata", "status"}
    }
    return {"metadata": metadata_fields, **rest}


def differences(before: Any, after: Any) -> Iterator[FieldChange]:
    """Yield each field that differs, depth first, without secrets."""
    return _differing(before, after, redact_object(before), redact_object(after), "")


def _differing(before: Any, after: Any, old: Any, new: Any, path: str) -> Iterator[FieldChange]:
    """``old`` and ``new`` are the redacted ``before`` and ``after``; they can be less deep."""
    if before == after:
        return
    both = (before, after, old, new)
    if all(isinstance(value, dict) for value in both):
        for key in sorted({*before, *after}):
            was, now = before.get(key), after.get(key)
            yield from _differing(was, now, old.get(key), new.get(key), child(path, key))
    elif all(isinstance(value, list) for value in both) and len(before) == len(after):
        for index, (was, now) in enumerate(zip(before, after, strict=True)):
            yield from _differing(was, now, old[index], new[index], f"{path}[{index}]")
    else:
        yield FieldChange(path, _display(old), _display(new))


def _display(value: Any) -> str | None:
    if value is None:
        return None
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 500 else f"{text[:497]}..."


def merge_patch(source: Any, target: Any) -> Any:
    """Return the JSON merge patch (RFC 7396) from ``source`` to ``target``; both are maps."""
    patch: dict[str, Any] = {}
    for key in {*source, *target}:
        old, new = source.get(key), target.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            patch[key] = merge_patch(old, new)
        else:
            patch[key] = new
    return patch


def marked(wanted: Mapping[str, Any], transaction: str) -> dict[str, Any]:
    """Return the object with the transaction's annotation."""
    metadata = dict(wanted["metadata"])
    metadata["annotations"] = {**(metadata.get("annotations") or {}), ANNOTATION: transaction}
    return {**wanted, "metadata": metadata}


def mark_of(obj: Mapping[str, Any]) -> str:
    """Return the id of the transaction that wrote the object last, or empty."""
    return str(((obj.get("metadata") or {}).get("annotations") or {}).get(ANNOTATION) or "")


def owned_by_apply(fields: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Return managedFields with our creation as an apply; None if nothing changes.

    Fields of a created object are owned by an update, and a later apply could never remove one.
    kubectl migrates from client-side apply in the same way.
    """
    ours = [f for f in fields if f.get("manager") == MANAGER and f.get("operation") == "Update"]
    if not ours or any(f.get("subresource") for f in ours):
        return None
    return [{**f, "operation": "Apply"} if f in ours else f for f in fields]


# -- storage of a transaction's objects while it runs ---------------------------------------------


class Bundles(Protocol):
    """Storage of a transaction's objects, which may hold secrets and so do not belong in a log."""

    async def put(self, transaction: str, objects: list[PlannedObject]) -> None:
        """Store the objects, unless there are some under this id already."""
        ...

    async def get(self, transaction: str) -> list[PlannedObject]:
        """Return the objects. Raises ManifestChangedError if they have expired."""
        ...

    async def drop(self, transaction: str) -> None:
        """Delete the objects."""
        ...


class RedisBundles:
    """Objects in Redis for ``RETENTION`` seconds, sealed because our rights apply them."""

    def __init__(
        self,
        redis: Redis,
        clock: Clock,
        secret: bytes,
        *,
        prefix: str = key_prefixes.MANIFESTS,
        on_broken: Callable[[str, str], None] = log_broken,
    ) -> None:
        """``secret``, of at least 32 bytes, seals the objects; see ``Sealer`` for ``on_broken``."""
        self._redis = redis
        self._clock = clock
        self._prefix = prefix
        self._sealer = Sealer(secret, "manifest", on_broken)

    async def put(self, transaction: str, objects: list[PlannedObject]) -> None:
        """See Bundles."""
        until = self._clock.now().timestamp() + RETENTION
        text = json.dumps([until, [asdict(planned) for planned in objects]], separators=(",", ":"))
        key = self._key(transaction)
        with wrapped("manifests.put"):
            await self._redis.set(key, self._sealer.wrap(key, text), ex=RETENTION, nx=True)

    async def get(self, transaction: str) -> list[PlannedObject]:
        """See Bundles."""
        key = self._key(transaction)
        with wrapped("manifests.get"):
            sealed = await self._redis.get(key)
        content = None if sealed is None else self._sealer.unwrap(key, text(sealed))
        until, objects = (0.0, []) if content is None else json.loads(content)
        if self._clock.now().timestamp() >= until:
            raise ManifestChangedError("transaction: its objects have expired; apply again")
        return [PlannedObject(**fields) for fields in objects]

    async def drop(self, transaction: str) -> None:
        """See Bundles."""
        with wrapped("manifests.drop"):
            await self._redis.delete(self._key(transaction))

    def _key(self, transaction: str) -> str:
        return f"{self._prefix}:{transaction}"


class ManifestWriter(Protocol):
    """The part of a Kubernetes client that is used here; raises the errors of engineroom.kube."""

    async def get(self, ref: Resource, namespace: str | None, name: str) -> dict[str, Any]:
        """Read one object. Raises NotFound."""
        ...

    async def apply(
        self,
        ref: Resource,
        obj: Mapping[str, Any],
        *,
        force: bool,
        field_manager: str,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Apply on the server side. Raises Conflict."""
        ...

    async def merge_patch(
        self,
        ref: Resource,
        namespace: str | None,
        name: str,
        patch: Mapping[str, Any],
        *,
        field_manager: str,
    ) -> dict[str, Any]:
        """Send a JSON merge patch. Raises Conflict."""
        ...

    async def delete(
        self, ref: Resource, namespace: str | None, name: str, *, uid: str | None = None
    ) -> None:
        """Delete an object. Raises NotFound, and Conflict if the uid differs."""
        ...

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Send any request with a JSON answer."""
        ...


# -- the steps ----------------------------------------------------------------------------------


class Applier:
    """Steps of the saga: apply one object, and undo it."""

    def __init__(self, client: ManifestWriter, bundles: Bundles, clock: Clock) -> None:
        self._client = client
        self._bundles = bundles
        self._clock = clock

    def sagas(self) -> list[Saga]:
        """Return a saga for each number of objects, because a saga's steps are fixed."""
        return [
            Saga(
                f"{SAGA}.{number}",
                tuple(
                    Step(f"object-{index + 1}", self.apply, self.undo) for index in range(number)
                ),
                back_after_crash=True,
            )
            for number in range(1, MAX_OBJECTS + 1)
        ]

    async def apply(self, step: StepContext) -> str:
        """Write the object of this step. Raises ManifestChangedError and the client's errors."""
        began = self._clock.monotonic()
        planned = await self._of(step)
        desired = marked(planned.wanted, step.saga)
        if self._clock.monotonic() - began > LEASE / 2:
            raise TransientError("this process stood still for too long to write safely")
        if planned.before is None:
            return await self._create(planned, desired, step.saga)
        version = planned.before["metadata"]["resourceVersion"]
        desired["metadata"]["resourceVersion"] = version
        try:
            written = await self._client.apply(
                planned.resource, desired, force=bool(step.input.get("force")),
                field_manager=MANAGER,
            )  # fmt: skip
        except Conflict as error:
            live = await self._live(planned)
            if live is not None and mark_of(live) == step.saga:
                return "updated"
            raise _conflict_error(planned, error) from error
        return f"updated to {written['metadata']['resourceVersion']}"

    async def _create(
        self, planned: PlannedObject, desired: dict[str, Any], transaction: str
    ) -> str:
        resource = planned.resource
        try:
            # Server-side apply cannot say "only if there is none"; a creation does.
            live = await create(self._client, resource, desired)
        except AlreadyExists as error:
            existing = await self._live(planned)
            if existing is None or mark_of(existing) != transaction:
                raise _conflict_error(planned, error) from error
            live = existing
        fields = owned_by_apply(live["metadata"].get("managedFields") or [])
        for _ in range(_TRIES):
            if fields is None:
                break
            metadata = {
                "managedFields": fields, "resourceVersion": live["metadata"]["resourceVersion"],
            }  # fmt: skip
            try:
                await self._patch(planned, {"metadata": metadata})
                break
            except Conflict:
                changed = await self._live(planned)
                if changed is None:
                    break
                live = changed
                fields = owned_by_apply(live["metadata"].get("managedFields") or [])
        return "created"

    async def undo(self, step: StepContext) -> str:
        """Restore the state before the step, whether the step was done or not."""
        planned = await self._of(step)
        for _ in range(_TRIES):
            live = await self._live(planned)
            if live is None:
                return "gone"
            try:
                if planned.before is None:
                    return await self._uncreate(planned, live, step.saga)
                done = await self._restore(planned, planned.before, live, step.saga)
            except Conflict:
                continue
            if done:
                return done
        raise TransientError(f"{planned.name}: others keep changing it; it could not be put back")

    async def _uncreate(
        self, planned: PlannedObject, live: dict[str, Any], transaction: str
    ) -> str:
        if mark_of(live) != transaction:
            return "not ours"
        metadata = live["metadata"]
        try:
            await self._client.delete(
                planned.resource, planned.namespace, planned.name, uid=metadata["uid"]
            )
        except NotFound:
            return "gone"
        return "deleted"

    async def _restore(
        self, planned: PlannedObject, before: dict[str, Any], live: dict[str, Any], transaction: str
    ) -> str:
        """Take one step towards the former state; return "" while another step is needed."""
        metadata, old = live["metadata"], before["metadata"]
        if metadata["uid"] != old["uid"]:
            return "replaced by another client"
        version = metadata["resourceVersion"]
        if mark_of(live) == transaction and mark_of(before) != transaction:
            # Only what this transaction changed: what others changed meanwhile stays.
            patch = merge_patch(content(planned.after), content(before))
            annotations = {ANNOTATION: mark_of(before) or None}
            metadata_patch = patch.get("metadata") or {}
            annotations |= metadata_patch.get("annotations") or {}
            patch["metadata"] = {
                **metadata_patch,
                "annotations": annotations,
                "resourceVersion": version,
            }
            await self._patch(planned, patch)
            return ""
        if content(live) != content(before):
            return "restored, but for what others changed"
        fields = old.get("managedFields")
        if fields and _owners(metadata.get("managedFields")) != _owners(fields):
            # Only with nothing else changed are they taken as they are given.
            patch = {"metadata": {"managedFields": fields, "resourceVersion": version}}
            await self._patch(planned, patch)
        return "restored"

    async def _patch(self, planned: PlannedObject, patch: dict[str, Any]) -> dict[str, Any]:
        return await self._client.merge_patch(
            planned.resource, planned.namespace, planned.name, patch, field_manager=MANAGER
        )

    async def _live(self, planned: PlannedObject) -> dict[str, Any] | None:
        try:
            return await self._client.get(planned.resource, planned.namespace, planned.name)
        except NotFound:
            return None

    async def _of(self, step: StepContext) -> PlannedObject:
        objects = await self._bundles.get(step.saga)
        return objects[int(step.step.rpartition("-")[2]) - 1]


async def create(
    client: ManifestWriter, resource: Resource, obj: Mapping[str, Any], *, dry_run: bool = False
) -> dict[str, Any]:
    """Create an object, or try it as a dry run. Raises AlreadyExists."""
    params = {"fieldManager": MANAGER} | ({"dryRun": "All"} if dry_run else {})
    body = {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
    path = resource.path(obj["metadata"].get("namespace"))
    return await client.request("POST", path, params=params, body=body)


def _owners(fields: list[dict[str, Any]] | None) -> list[tuple[Any, ...]]:
    """List the owners of fields that users write, without times and without the status."""
    return sorted(
        (f.get("manager"), f.get("operation"), json.dumps(f.get("fieldsV1"), sort_keys=True))
        for f in fields or ()
        if not f.get("subresource")
    )


def _conflict_error(planned: PlannedObject, error: Conflict) -> ManifestChangedError:
    return ManifestChangedError(
        f"{planned.kind}/{planned.name}: another client changed or created it meanwhile, or "
        f"another manager owns a field ({error.message[:200]}); apply again, or with force"
    )
