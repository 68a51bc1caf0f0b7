"""The plan of a manifest: its objects read, checked, and tried by the API server's dry run."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, Any

from engineroom.api import kinds, validation
from engineroom.api.validation.pod_security import PodSecurityLevel
from engineroom.core.errors import InvalidInputError, InvalidSpecError, Problem
from engineroom.core.validation.documents import Document, read
from engineroom.kube.client.errors import AlreadyExists, Conflict, NotFound
from engineroom.kube.client.resources import NAMESPACES, resource_of
from engineroom.manifests.apply import (
    ANNOTATION,
    MANAGER,
    MAX_CHANGES,
    MAX_OBJECTS,
    FieldChange,
    PlannedObject,
    content,
    create,
    differences,
)
from engineroom.manifests.errors import ManifestChangedError

if TYPE_CHECKING:
    from engineroom.kube.client.resources import Resource
    from engineroom.manifests.apply import ManifestWriter

    Objects = list[tuple[Resource, dict[str, Any]]]

#: Characters of a manifest.
MAX_MANIFEST = 512 * 1024
#: Dry runs at once.
_AT_ONCE = 8


def read_objects(namespace: str, text: str) -> Objects:
    """Read the objects of a manifest. Raises UnreadableError and InvalidInputError."""
    objects: list[tuple[Resource, dict[str, Any]]] = []
    problems: list[Problem] = []
    for document in read(text):
        where = f"document at line {document.line}"
        value = document.value
        problem = _unfit(document, namespace)
        if problem is not None:
            problems.append(Problem(f"{where}: {problem.field}", problem.problem, problem.fix))
            continue
        value["metadata"]["namespace"] = namespace
        resource = resource_of(kinds.registry().by_kind(value["kind"]))
        name = value["metadata"]["name"]
        if any(
            kind == resource and planned["metadata"]["name"] == name for kind, planned in objects
        ):
            problems.append(Problem(f"{where}: metadata.name", "appears twice", "keep one of them"))
            continue
        objects.append((resource, value))
    if not objects and not problems:
        problems.append(Problem("body.manifest", "holds no object", "write one"))
    if len(objects) > MAX_OBJECTS:
        problem_text = f"holds {len(objects)} objects"
        problems.append(Problem("body.manifest", problem_text, f"apply {MAX_OBJECTS} at a time"))
    if problems:
        raise InvalidInputError(problems[:20])
    return objects


def _unfit(document: Document, namespace: str) -> Problem | None:
    value = document.value
    if not isinstance(value, dict):
        return Problem("(document)", "is no object", "write apiVersion, kind, metadata and spec")
    if kinds.registry().find_object(value) is None:
        titles = ", ".join(
            sorted(f"{kind.kind} of {kind.api_version}" for kind in kinds.registry())
        )
        return Problem("kind", "is not applied here", f"use kubectl, or write {titles}")
    metadata = value.get("metadata")
    if not isinstance(metadata, dict):
        return Problem("metadata", "is no map", "write a map with a name")
    if not isinstance(metadata.get("name"), str) or not metadata["name"]:
        return Problem("metadata.name", "is missing", "write a name")
    if metadata.get("namespace") not in (None, namespace):
        return Problem(
            "metadata.namespace", f"is not {namespace}", "apply each namespace by itself"
        )
    unknown = sorted(set(metadata) - {"name", "namespace", "labels", "annotations"})
    if unknown:
        return Problem(f"metadata.{unknown[0][:80]}", "is not for you to write", "remove it")
    for part in ("labels", "annotations"):
        if not isinstance(metadata.get(part) or {}, dict):
            return Problem(f"metadata.{part}", "is no map", "write a map of texts")
    if ANNOTATION in (metadata.get("annotations") or {}):
        return Problem(f"metadata.annotations[{ANNOTATION}]", "is Engineroom's own", "remove it")
    return None


async def level(client: ManifestWriter, namespace: str, objects: Objects) -> PodSecurityLevel:
    """Return the Pod Security level of the namespace, read only if a template needs it."""
    if not any(validation.escalations(obj) for _, obj in objects):
        return PodSecurityLevel.RESTRICTED
    try:
        labelled = await client.get(NAMESPACES, None, namespace)
    except NotFound:
        return PodSecurityLevel.RESTRICTED
    return PodSecurityLevel.of(labelled["metadata"].get("labels"))


def check(objects: Objects, pod_security: PodSecurityLevel) -> None:
    """Check the objects as admission does. Raises InvalidSpecError."""
    context = validation.ValidationContext(pod_security=pod_security)
    problems = [
        Problem(f"{obj['kind']}/{obj['metadata']['name']}: {p.field}", p.problem, p.fix)
        for _, obj in objects
        for p in validation.problems(obj, context)
    ]
    if problems:
        raise InvalidSpecError(problems[:50])


async def rehearse(
    client: ManifestWriter, namespace: str, objects: Objects, *, force: bool
) -> list[PlannedObject]:
    """Plan each object by a dry run, without writing.

    Raises ManifestChangedError and the client's errors: what the API server would refuse later.
    """
    limit = asyncio.Semaphore(_AT_ONCE)

    async def plan_one(resource: Resource, obj: dict[str, Any]) -> PlannedObject:
        async with limit:
            return await _dry_run(client, namespace, resource, obj, force=force)

    return list(await asyncio.gather(*(plan_one(*item) for item in objects)))


async def _dry_run(
    client: ManifestWriter, namespace: str, resource: Resource, obj: dict[str, Any], *, force: bool
) -> PlannedObject:
    """Plan one object by a dry run, which includes defaults, CEL, admission and quotas."""
    name = obj["metadata"]["name"]
    before: dict[str, Any] | None
    try:
        before = await client.get(resource, namespace, name)
    except NotFound:
        before = None
    try:
        if before is None:
            after = await create(client, resource, obj, dry_run=True)
        else:
            version = before["metadata"]["resourceVersion"]
            pinned = {**obj, "metadata": {**obj["metadata"], "resourceVersion": version}}
            after = await client.apply(
                resource, pinned, force=force, field_manager=MANAGER, dry_run=True
            )
    except AlreadyExists as error:
        raise ManifestChangedError(f"{name}: another client created it meanwhile") from error
    except Conflict as error:
        raise ManifestChangedError(
            f"{resource.kind}/{name}: {error.message[:400]}; apply with force to take it over"
        ) from error
    action = "create" if before is None else "update"
    if before is not None and content(before) == content(after):
        action = "unchanged"
    return PlannedObject(
        resource.api_version, resource.kind, namespace, name, action, before, obj, after
    )


def changes(planned: PlannedObject) -> list[FieldChange]:
    """List the fields of an object that change, at most ``MAX_CHANGES``."""
    all_changes = differences(content(planned.before), content(planned.after))
    return list(islice(all_changes, MAX_CHANGES))
