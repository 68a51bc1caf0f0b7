"""Programming of all documents of a namespace, one in each Redis that its policies refer to."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from engineroom.ratelimit.reconcile.documents import NamespaceDocument, ProgramResult
from engineroom.ratelimit.reconcile.facts import live_and_current

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engineroom.kube.runtime.redis_addresses import RedisAddresses, RedisReference
    from engineroom.ratelimit.reconcile.assignment import Assignment
    from engineroom.ratelimit.reconcile.documents import DocumentProgrammer, PolicyInput
    from engineroom.ratelimit.reconcile.metrics import PolicyMetrics
    from engineroom.ratelimit.reconcile.policy_stores import PolicyStores
    from engineroom.redis.address import Address


class NamespaceProgrammer:
    """Programs the documents of namespaces, and counts the enforcers that each one has."""

    def __init__(
        self,
        addresses: RedisAddresses,
        stores: PolicyStores,
        documents: DocumentProgrammer,
        metrics: PolicyMetrics,
    ) -> None:
        self._addresses = addresses
        self._stores = stores
        self._documents = documents
        self._metrics = metrics

    async def program(
        self,
        namespace: str,
        documents: dict[Address, NamespaceDocument],
        assigned: Assignment,
        policies: Mapping[str, PolicyInput],
        references: Mapping[str, RedisReference | None],
    ) -> dict[str, ProgramResult]:
        """Program each Redis with the policies assigned to it; return the result of each policy.

        Updates ``documents``: those without policies are emptied, and removed once that succeeds.
        """
        results = {
            name: ProgramResult(None, None, None, trouble)
            for name, trouble in assigned.troubles.items()
        }
        for address in assigned.duplicates:
            documents.pop(address, None)
        for address in {**dict.fromkeys(documents), **assigned.policies}:
            names = assigned.policies.get(address, [])
            result = await self._documents.program(
                namespace,
                documents.setdefault(address, NamespaceDocument()),
                partial(self._stores.of, address),
                [policies[name] for name in names],
            )
            if result.trouble is not None:
                for name in names:
                    self._addresses.doubt(namespace, references[name])
            elif result.roster is not None:
                self._metrics.enforcers(namespace, address, *live_and_current(result))
            results.update(dict.fromkeys(names, result))
            if not names and result.trouble is None:
                documents.pop(address, None)
        return results
