"""The namespaces whose documents the controller writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engineroom.kube.runtime.object_memory import NEVER
from engineroom.ratelimit.reconcile.documents import NamespaceDocument

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engineroom.redis.address import Address


@dataclass(slots=True)
class NamespaceState:
    """One namespace between two looks."""

    documents: dict[Address, NamespaceDocument] = field(default_factory=dict)
    #: Whether a policy changed since the last look began.
    dirty: bool = True
    #: The inputs of all statuses that are written; None if one has to be compared.
    settled: object = None
    #: Start of the last complete look (monotonic seconds).
    checked: float = NEVER


class Namespaces:
    """The states of the namespaces that have policies, or documents left by deleted ones."""

    def __init__(self) -> None:
        self._states: dict[str, NamespaceState] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def __contains__(self, namespace: object) -> bool:
        return namespace in self._states

    def of(self, namespace: str) -> NamespaceState:
        """Return the state of a namespace, new for a new namespace."""
        return self._states.setdefault(namespace, NamespaceState())

    def adopt(self, namespace: str, address: Address) -> None:
        """Add a namespace without policies that has a document at ``address``."""
        self._states[namespace] = NamespaceState({address: NamespaceDocument()})

    def drop(self, namespace: str) -> None:
        """Remove a namespace without policies and documents."""
        self._states.pop(namespace, None)

    def addresses(self) -> set[Address]:
        """Return the addresses of all documents."""
        return {address for state in self._states.values() for address in state.documents}

    def unchecked(self, address: Address, since: float) -> list[str]:
        """Return the namespaces without a successful check at an address since ``since``."""
        return [
            namespace
            for namespace, state in self._states.items()
            if state.checked <= since
            or (address in state.documents and state.documents[address].checked <= since)
        ]
