"""Manifests: several documents of YAML applied as one transaction, or only compared."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from engineroom.api import kinds
from engineroom.api.validation.guarded_fields import guarded_fields, secret_names
from engineroom.auth.kubernetes import ResourceAttributes
from engineroom.auth.permissions import Permission
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.transactions.errors import SagaUndoneError
from engineroom.manifests.apply import SAGA, PlannedObject
from engineroom.manifests.errors import ManifestUndoneError
from engineroom.manifests.plan import MAX_MANIFEST, changes, check, level, read_objects, rehearse

if TYPE_CHECKING:
    from engineroom.kube.client.resources import Resource


class Compared(Model):
    """YAML or JSON, several documents; objects without a namespace get that of the path."""

    manifest: Annotated[str, Field(min_length=1, max_length=MAX_MANIFEST)]
    force: bool = Field(default=False, description="Take over fields that other managers own.")


class Manifest(Compared):
    """YAML or JSON, several documents; objects without a namespace get that of the path."""

    dry_run: bool = Field(default=False, description="Check and compare only.")


class ChangeView(Model):
    """One field that differs; values are JSON, and secrets are left out."""

    path: str
    before: str | None
    after: str | None


class AppliedObject(Model):
    """The change of one object; `action` is create, update or unchanged."""

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
    """Validate and rehearse all objects, then write all of them or none."""
    request: Manifest = call.body
    planned = await _plan(call, request)
    objects = [_applied_object(change) for change in planned]
    changing = [change for change in planned if change.action != "unchanged"]
    if request.dry_run or not changing:
        outcome = "planned" if request.dry_run else "unchanged"
        return Answer(Applied(outcome=outcome, transaction=None, objects=objects))
    transaction = call.idempotent_id or secrets.token_hex(16)
    services = call.services
    await services.bundles.put(transaction, changing)
    arguments = {
        "namespace": call.namespace,
        "force": request.force,
        "objects": [
            {"kind": change.kind, "name": change.name, "action": change.action}
            for change in changing
        ],
    }
    try:
        await services.coordinator.run(
            f"{SAGA}.{len(changing)}", transaction, arguments, by=call.principal.subject
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


async def diff(call: Call) -> Answer:
    """Return what `apply` would change, without writing.

    Identities of the cluster need the rights of `kubectl diff`, because a rehearsal is a patch.
    """
    planned = await _plan(call, call.body)
    objects = [_applied_object(change) for change in planned]
    return Answer(Applied(outcome="planned", transaction=None, objects=objects))


async def _plan(call: Call, request: Compared) -> list[PlannedObject]:
    """Return the planned changes. Raises every error that `apply` would raise before it writes."""
    objects = read_objects(call.namespace, request.manifest)
    client = call.services.client
    check(objects, await level(client, call.namespace, objects))
    await asyncio.gather(*(_require_rights(call, *pair) for pair in objects))
    return await rehearse(client, call.namespace, objects, force=request.force)


async def _require_rights(call: Call, resource: Resource, obj: dict[str, Any]) -> None:
    """Demand the rights that kubectl would need, and those that admission asks of an author.

    For the admission server this process is the author, so the person's rights to create pods and
    to get Secrets are asked here. Raises PermissionDeniedError.
    """
    name = obj["metadata"]["name"]
    wanted = [
        ResourceAttributes("create", resource.plural, group=resource.group),
        ResourceAttributes("patch", resource.plural, group=resource.group, name=name),
    ]
    kind = kinds.registry().by_kind(resource.kind)
    if guarded_fields(kind, obj):
        wanted.append(ResourceAttributes("create", "pods", group=""))
        wanted += [
            ResourceAttributes("get", "secrets", group="", name=secret)
            for secret in secret_names(kind, obj).values()
        ]
    for attributes in wanted:
        await call.services.authorizer.require_object(call.principal, attributes, call.namespace)


def _applied_object(planned: PlannedObject) -> AppliedObject:
    return AppliedObject(
        api_version=planned.api_version,
        kind=planned.kind,
        name=planned.name,
        action=planned.action,
        changes=[
            ChangeView(path=change.path, before=change.before, after=change.after)
            for change in changes(planned)
        ],
    )


ROUTES = (
    Route(
        method="POST", path=f"{BASE}/namespaces/{{namespace}}/manifests",
        needs=Permission.NAMESPACE_MANIFESTS_APPLY, handler=apply,
        summary="Apply several objects as one transaction", tag="manifests", body=Manifest,
        answer=Applied, action="manifest.apply", cost=10, errors=(409,),
    ),
    Route(
        method="POST", path=f"{BASE}/namespaces/{{namespace}}/manifests/diff",
        needs=Permission.NAMESPACE_MANIFESTS_READ, handler=diff,
        summary="What applying would change", tag="manifests", body=Compared,
        answer=Applied, action="manifest.diff", cost=10, errors=(409,),
    ),
)  # fmt: skip
