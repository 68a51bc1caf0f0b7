"""The caller: identity, grants and permissions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from engineroom.auth.kubernetes import KubernetesPrincipal
from engineroom.auth.permissions import Permission
from engineroom.console.identity.views import GrantView, grant_views
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route


class WhoAmI(Model):
    """The caller; `how` is the kind of credential: token, key, session or kubernetes."""

    subject: str
    how: str
    grants: list[GrantView]
    scopes: list[str] | None
    groups: list[str]


class AccessQuery(Model):
    """The namespace to check; empty: the installation itself."""

    namespace: Annotated[
        str, Field(max_length=63, pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")
    ] = ""


class AccessList(Model):
    """Every permission that the caller has in the namespace."""

    namespace: str
    permissions: list[str]


async def whoami(call: Call) -> Answer:
    """Return the caller's identity and grants."""
    caller = call.principal
    groups = list(caller.groups) if isinstance(caller, KubernetesPrincipal) else []
    return Answer(
        WhoAmI(
            subject=caller.subject,
            how=caller.how,
            grants=grant_views(caller.grants),
            scopes=None if caller.scopes is None else sorted(caller.scopes),
            groups=groups,
        )
    )


async def list_permissions(call: Call) -> Answer:
    """List the permissions that the caller has in a namespace or in the installation."""
    namespace = call.query.namespace
    permissions = await call.services.authorizer.permissions(call.principal, namespace or None)
    return Answer(AccessList(namespace=namespace, permissions=permissions))


ROUTES = (
    Route(
        method="GET", path=f"{BASE}/whoami", needs=Permission.SELF_IDENTITY_READ, handler=whoami,
        summary="Show my identity and grants", tag="identity", answer=WhoAmI,
    ),
    Route(
        method="GET", path=f"{BASE}/access", needs=Permission.SELF_IDENTITY_READ,
        handler=list_permissions, summary="List my permissions", tag="identity",
        query=AccessQuery, answer=AccessList, cost=5,
    ),
)  # fmt: skip
