"""Manifests: several documents of YAML applied as one transaction, or only compared."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from engineroom.api import validation
from engineroom.api.pod_security import Level
from engineroom.auth.kubernetes import Attributes
from engineroom.auth.permissions import Permission
from engineroom.console import idempotency
from engineroom.console.apply import (
    ANNOTATION,
    KINDS,
    MAX_CHANGES,
    MAX_OBJECTS,
    SAGA,
    Planned,
    content,
    create,
    differences,
)
from engineroom.console.errors import ManifestChangedError, ManifestUndoneError
from engineroom.console.pools import MANAGER
from engineroom.console.routes import BASE, Answer, Call, Model, Route
from engineroom.core.errors import InvalidInputError, InvalidSpecError, Problem
from engineroom.core.transactions.errors import SagaUndoneError
from engineroom.core.validation.documents import Document, read
from engineroom.kube.errors import AlreadyExists, Conflict, NotFound
from engineroom.kube.resources import NAMESPACES, WORKERPOOLS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engineroom.kube.resources import Resource

#: Characters of a manifest.
MAX_MANIFEST = 512 * 1024


class Manifest(Model):
    """YAML or JSON, several documents; objects without a namespace get that of the path."""

    manifest: Annotated[str, Field(min_length=1, max_length=MAX_MANIFEST)]
    dry_run: bool = Field(default=False, description="Check and compare only.")
    force: bool = Field(default=False, description="Take over fields that other managers own.")


class ChangeView(Model):
    """One field that differs; values are JSON, and secrets are left out."""

    path: str
    before: str | None
    after: str | None


class AppliedObject(Model):
    """What becomes of one object: create, update or unchanged."""

    api_version: str
    kind: str
    name: str
    action: str
    changes: list[ChangeView]


class Applied(Model):
    """The outcome: `planned` of a dry run, `unchanged`, or `committed`."""

    outcome: str
    transaction: str | None
    objects: list[AppliedObject]


async def apply(call: Call) -> Answer:
    """Check all, rehearse all, then write all or nothing."""
    wanted: Manifest = call.body
    planned = await _plan(call, wanted)
    objects = [_applied(each) for each in planned]
    changing = [each for each in planned if each.action != "unchanged"]
    if wanted.dry_run or not changing:
        outcome = "planned" if wanted.dry_run else "unchanged"
        return Answer(Applied(outcome=outcome, transaction=None, objects=objects))
    transaction = _transaction(call)
    services = call.services
    await services.bundles.put(transaction, changing)
    said = {
        "namespace": call.namespace,
        "force": wanted.force,
        "objects": [
            {"kind": each.kind, "name": each.name, "action": each.action} for each in changing
        ],
    }
    try:
        await services.coordinator.run(
            f"{SAGA}.{len(changing)}", transaction, said, by=call.principal.subject
        )
    except SagaUndoneError as error:
        await services.bundles.drop(transaction)
        raise ManifestUndoneError(
            f"manifest: {error}; see transaction {transaction}",
            context={"transaction": transaction},
        ) from error
    await services.bundles.drop(transaction)
    details: dict[str, Any] = {"transaction": transaction, "objects": len(changing)}
    return Answer(
        Applied(outcome="committed", transaction=transaction, objects=objects), details=details
    )


def _transaction(call: Call) -> str:
    """An id; the same for a request that is repeated under the same Idempotency-Key."""
    key = call.request.headers.get(idempotency.HEADER)
    if key is None:
        return secrets.token_hex(16)
    said = [call.principal.subject, call.namespace, key, call.body.model_dump_json()]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


async def _plan(call: Call, wanted: Manifest) -> list[Planned]:
    """What is to be done. Raises for whatever would be refused later; nothing is written."""
    objects = _read(call.namespace, wanted.manifest)
    level = await _level(call, objects)
    _valid(objects, level)
    await asyncio.gather(*(_permitted(call, *each) for each in objects))
    limit = asyncio.Semaphore(8)

    async def one(resource: Resource, obj: dict[str, Any]) -> Planned:
        async with limit:
            return await _rehearsed(call, resource, obj, force=wanted.force)

    return list(await asyncio.gather(*(one(*each) for each in objects)))


def _read(namespace: str, text: str) -> list[tuple[Resource, dict[str, Any]]]:
    """The objects of a manifest. Raises UnreadableError and InvalidInputError."""
    found: list[tuple[Resource, dict[str, Any]]] = []
    problems: list[Problem] = []
    for document in read(text):
        where = f"document at line {document.line}"
        value = document.value
        problem = _unfit(document, namespace)
        if problem is not None:
            problems.append(Problem(f"{where}: {problem.field}", problem.problem, problem.fix))
            continue
        value["metadata"]["namespace"] = namespace
        resource = KINDS[value["apiVersion"], value["kind"]]
        name = value["metadata"]["name"]
        if any(kind is resource and each["metadata"]["name"] == name for kind, each in found):
            problems.append(Problem(f"{where}: metadata.name", "stands twice", "keep one of them"))
            continue
        found.append((resource, value))
    if not found and not problems:
        problems.append(Problem("body.manifest", "holds no object", "write one"))
    if len(found) > MAX_OBJECTS:
        told = f"holds {len(found)} objects"
        problems.append(Problem("body.manifest", told, f"apply {MAX_OBJECTS} at a time"))
    if problems:
        raise InvalidInputError(problems[:20])
    return found


def _unfit(document: Document, namespace: str) -> Problem | None:
    value = document.value
    if not isinstance(value, dict):
        return Problem("(document)", "is no object", "write apiVersion, kind, metadata and spec")
    kind = (value.get("apiVersion"), value.get("kind"))
    if not all(isinstance(each, str) for each in kind) or kind not in KINDS:
        known = ", ".join(sorted(f"{name} of {version}" for version, name in KINDS))
        return Problem("kind", "is not applied here", f"use kubectl, or write {known}")
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


async def _level(call: Call, objects: list[tuple[Resource, dict[str, Any]]]) -> Level:
    """The Pod Security level of the namespace, asked only where a template needs it."""
    if not any(validation.escalations(obj) for _, obj in objects):
        return Level.RESTRICTED
    try:
        found = await call.services.client.get(NAMESPACES, None, call.namespace)
    except NotFound:
        return Level.RESTRICTED
    return Level.of(found["metadata"].get("labels"))


def _valid(objects: list[tuple[Resource, dict[str, Any]]], level: Level) -> None:
    context = validation.Context(pod_security=level)
    problems = [
        Problem(f"{obj['kind']}/{obj['metadata']['name']}: {p.field}", p.problem, p.fix)
        for _, obj in objects
        for p in validation.problems(obj, context)
    ]
    if problems:
        raise InvalidSpecError(problems[:50])


async def _permitted(call: Call, resource: Resource, obj: dict[str, Any]) -> None:
    """What kubectl would need: create and patch the object, and create what it makes.

    Who writes a pool makes pods, and who names a Redis reaches for a Secret as a pod does. The
    admission server asks that of the author, who is this process for it; so it is asked here, of
    the person.
    """
    name = obj["metadata"]["name"]
    wanted = [
        Attributes("create", resource.plural, group=resource.group),
        Attributes("patch", resource.plural, group=resource.group, name=name),
    ]
    if resource is WORKERPOOLS or obj["spec"].get("redis") is not None:
        wanted.append(Attributes("create", "pods", group=""))
    for each in wanted:
        await call.services.authority.demand_object(call.principal, each, call.namespace)


async def _rehearsed(
    call: Call, resource: Resource, obj: dict[str, Any], *, force: bool
) -> Planned:
    """The plan for one object, by the API server's dry run: defaults, CEL, admission, quotas."""
    client, name = call.services.client, obj["metadata"]["name"]
    before: dict[str, Any] | None
    try:
        before = await client.get(resource, call.namespace, name)
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
        raise ManifestChangedError(f"{name}: was made by somebody else meanwhile") from error
    except Conflict as error:
        raise ManifestChangedError(
            f"{resource.kind}/{name}: {error.message[:400]}; apply with force to take it over"
        ) from error
    action = "create" if before is None else "update"
    if before is not None and content(before) == content(after):
        action = "unchanged"
    return Planned(
        resource.api_version, resource.kind, call.namespace, name, action, before, obj, after
    )


def _applied(planned: Planned) -> AppliedObject:
    return AppliedObject(
        api_version=planned.api_version,
        kind=planned.kind,
        name=planned.name,
        action=planned.action,
        changes=list(_changes(planned)),
    )


def _changes(planned: Planned) -> Iterator[ChangeView]:
    found = differences(content(planned.before), content(planned.after))
    for number, change in enumerate(found):
        if number >= MAX_CHANGES:
            return
        yield ChangeView(path=change.path, before=change.before, after=change.after)


ROUTES = (
    Route(
        method="POST", path=f"{BASE}/namespaces/{{namespace}}/manifests",
        needs=Permission.NAMESPACE_MANIFESTS_APPLY, handler=apply,
        summary="Apply several objects as one transaction", tag="manifests", body=Manifest,
        answer=Applied, action="manifest.apply", cost=10, errors=(409,),
    ),
)  # fmt: skip
