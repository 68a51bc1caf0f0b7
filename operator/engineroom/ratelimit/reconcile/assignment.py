"""Assignment of policies to the Redis servers that they refer to."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from engineroom.core.errors import DependencyError, MeasurementError, SecretError
from engineroom.kube.runtime.redis_addresses import redis_trouble

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from engineroom.kube.runtime.redis_addresses import RedisAddresses, RedisReference
    from engineroom.ratelimit.reconcile.policy_stores import PolicyStores
    from engineroom.redis.address import Address


class Assignment(NamedTuple):
    """The policies of a namespace by Redis, with one address for each Redis."""

    policies: dict[Address, list[str]]
    #: (reason, message) for each policy whose Redis is unknown.
    troubles: dict[str, tuple[str, str]]
    #: Policies whose Secret is missing or invalid.
    missing_secrets: frozenset[str]
    #: Addresses of documents that are the same as the document at another address.
    duplicates: tuple[Address, ...]


async def assign(
    addresses: RedisAddresses,
    stores: PolicyStores,
    namespace: str,
    references: Mapping[str, RedisReference | None],
    documents: Collection[Address],
) -> Assignment:
    """Assign policies to the Redis of their references; ``documents`` has the addresses in use."""
    by_address: dict[Address, list[str]] = {}
    troubles: dict[str, tuple[str, str]] = {}
    missing_secrets: set[str] = set()
    for name, reference in references.items():
        try:
            address = await addresses.resolve(namespace, reference)
        except (SecretError, DependencyError) as error:
            troubles[name] = redis_trouble(error)
            if isinstance(error, SecretError):
                missing_secrets.add(name)
        else:
            by_address.setdefault(address, []).append(name)
    preferred = [address for address in documents if address in by_address]
    candidates = list(dict.fromkeys([*preferred, *by_address, *documents]))
    first_of = await _first_addresses(stores, candidates)
    merged: dict[Address, list[str]] = {}
    for address, names in by_address.items():
        merged.setdefault(first_of[address], []).extend(names)
    duplicates = tuple(address for address, first in first_of.items() if address != first)
    return Assignment(merged, troubles, frozenset(missing_secrets), duplicates)


async def _first_addresses(
    stores: PolicyStores, addresses: list[Address]
) -> dict[Address, Address]:
    """Return for each address the first one that leads to the same Redis."""
    if len(addresses) < 2:
        return {address: address for address in addresses}
    by_identity: dict[str, Address] = {}
    first_of: dict[Address, Address] = {}
    for address in addresses:
        try:
            identity = await stores.of(address).identity()
        except (SecretError, MeasurementError):
            first_of[address] = address  # programming the document reports the error
        else:
            first_of[address] = by_identity.setdefault(identity, address)
    return first_of
