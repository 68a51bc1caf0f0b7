"""Who decides: Engineroom's own roles, or the cluster's RBAC for those whom the cluster knows."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engineroom.auth.kubernetes import Attributes, KubernetesIdentity, KubernetesPrincipal
from engineroom.auth.permissions import Permission
from engineroom.core.errors import PermissionDeniedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from engineroom.auth.permissions import Decision, Policy, Principal


class Authority:
    """Decides for every route and every object."""

    def __init__(self, policy: Callable[[], Policy], kubernetes: KubernetesIdentity | None) -> None:
        """``policy`` gives the roles that there are now."""
        self._policy = policy
        self._kubernetes = kubernetes

    @property
    def policy(self) -> Policy:
        """The roles that there are now."""
        return self._policy()

    async def decide(
        self, principal: Principal, permission: str, namespace: str | None = None
    ) -> Decision:
        """Whether ``principal`` may. Raises DependencyError and its like when it cannot be told."""
        if isinstance(principal, KubernetesPrincipal) and self._kubernetes is not None:
            return await self._kubernetes.decide(principal, permission, namespace)
        return self.policy.decide(principal, permission, namespace)

    async def demand(
        self, principal: Principal, permission: str, namespace: str | None = None
    ) -> None:
        """Raises PermissionDeniedError with the reason unless ``principal`` may."""
        decision = await self.decide(principal, permission, namespace)
        if not decision.allowed:
            raise PermissionDeniedError(
                f"permission: {decision.reason}; ask for a role that has it"
            )

    async def demand_object(self, principal: Principal, wanted: Attributes, namespace: str) -> None:
        """For whom the cluster knows: raises PermissionDeniedError unless RBAC lets him do that.

        Everybody else was asked for a permission by the route already.
        """
        if not isinstance(principal, KubernetesPrincipal) or self._kubernetes is None:
            return
        decision = await self._kubernetes.allows(principal, wanted, namespace)
        if not decision.allowed:
            raise PermissionDeniedError(
                f"permission: {decision.reason}; ask for a role that has it"
            )

    async def may(self, principal: Principal, namespace: str | None) -> list[str]:
        """Every permission that ``principal`` has there, sorted."""
        wanted = [p for p in sorted(Permission) if namespace or not p.startswith("namespace:")]
        decisions = await asyncio.gather(*(self.decide(principal, p, namespace) for p in wanted))
        return [str(p) for p, decision in zip(wanted, decisions, strict=True) if decision.allowed]
