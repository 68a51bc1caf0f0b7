"""Children of our objects. A child of the right name is used only if the object controls it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engineroom.core import reasons
from engineroom.core.errors import Category, EngineroomError
from engineroom.kube.client.errors import AlreadyExists

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engineroom.kube.client.client import Client
    from engineroom.kube.client.resources import ObjectRef, Resource


class NotOwnedError(EngineroomError):
    """A child's name belongs to an object that another owner controls, or that is being deleted."""

    code = "not_owned"
    category = Category.CONFLICT
    http_status = 409
    retryable = True

    def __init__(self, reason: str, message: str) -> None:
        """``reason`` is the condition's: NAME_TAKEN or AWAITING_DELETION."""
        self.reason = reason
        super().__init__(message)


def controller_of(obj: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the owner reference of the object's controller; empty without one."""
    owners = obj["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("controller")), {})


def check_owner(owner: ObjectRef, kind: Resource, child: Mapping[str, Any], fix: str) -> None:
    """Check that ``owner`` controls an existing child. Raises NotOwnedError, which names ``fix``.

    The child of a deleted owner of the same name goes by itself, as does one that is being deleted.
    """
    metadata, controller = child["metadata"], controller_of(child)
    own = controller.get("uid") == owner.uid
    if own and not metadata.get("deletionTimestamp"):
        return
    name = f"{kind.kind} {metadata['name']}"
    before = (controller.get("kind"), controller.get("name")) == (owner.kind, owner.name)
    if own or before:
        raise NotOwnedError(
            reasons.AWAITING_DELETION,
            f"{name} of a deleted {owner.kind} still exists, and is made anew once Kubernetes "
            "has deleted it; if it stays, delete it",
        )
    raise NotOwnedError(
        reasons.NAME_TAKEN,
        f"{name} exists and is not owned by this {owner.kind}, which therefore does not use it; "
        f"{fix}",
    )


async def create_child(
    client: Client, owner: ObjectRef, kind: Resource, child: Mapping[str, Any], fix: str
) -> None:
    """Create a child unless it exists. Raises NotOwnedError, NotFound and what ``create`` raises.

    NotFound means that an older object of the name disappeared just now; another try succeeds.
    """
    try:
        await client.create(kind, child)
    except AlreadyExists:
        found = await client.get(kind, owner.namespace, child["metadata"]["name"])
        check_owner(owner, kind, found, fix)
