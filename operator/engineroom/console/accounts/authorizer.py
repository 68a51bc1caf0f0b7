"""Authorization by Engineroom's roles, or by the cluster's RBAC for Kubernetes identities."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engineroom.auth.kubernetes import KubernetesIdentity, KubernetesPrincipal, ResourceAttributes
from engineroom.auth.permissions import Permission
from engineroom.core.errors import PermissionDeniedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from engineroom.auth.permissions import AccessDecision, AccessPolicy, Principal


class Authorizer:
    """Decides for every route and every object."""

    def __init__(
        self, policy: Callable[[], AccessPolicy], kubernetes: KubernetesIdentity | None
    ) -> None:
        """``policy`` returns the current roles."""
        self._policy = policy
        self._kubernetes = kubernetes

    @property
    def policy(self) -> AccessPolicy:
        """The current roles."""
        return self._policy()

    async def decide(
        self, principal: Principal, permission: str, namespace: str | None = None
    ) -> AccessDecision:
        """Decide about one permission. Raises DependencyError if the cluster does not answer."""
        if isinstance(principal, KubernetesPrincipal) and self._kubernetes is not None:
            return await self._kubernetes.decide(principal, permission, namespace)
        return self.policy.decide(principal, permission, namespace)

    async def require(
        self, principal: Principal, permission: str, namespace: str | None = None
    ) -> None:
        """Raise PermissionDeniedError with the reason unless ``principal`` has the permission."""
        decision = await self.decide(principal, permission, namespace)
        if not decision.allowed:
            raise PermissionDeniedError(
                f"permission: {decision.reason}; ask for a role that has it"
            )

    async def require_object(
        self, principal: Principal, wanted: ResourceAttributes, namespace: str
    ) -> None:
        """Raise PermissionDeniedError if RBAC denies a Kubernetes identity this access.

        For other callers the permission that the route requires is enough.
        """
        if not isinstance(principal, KubernetesPrincipal) or self._kubernetes is None:
            return
        decision = await self._kubernetes.allows(principal, wanted, namespace)
        if not decision.allowed:
            raise PermissionDeniedError(
                f"permission: {decision.reason}; ask for a role that has it"
            )

    async def permissions(self, principal: Principal, namespace: str | None) -> list[str]:
        """List the permissions of ``principal`` in a namespace or the installation, sorted."""
        wanted = [p for p in sorted(Permission) if namespace or not p.startswith("namespace:")]
        decisions = await asyncio.gather(*(self.decide(principal, p, namespace) for p in wanted))
        return [str(p) for p, decision in zip(wanted, decisions, strict=True) if decision.allowed]
