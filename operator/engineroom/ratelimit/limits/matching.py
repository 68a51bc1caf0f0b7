"""Conditions on requests, for ``when``, ``exempt`` and ``tiers`` of a limit."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from engineroom.core.errors import Problem
from engineroom.ratelimit.limits.errors import InvalidPolicyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from engineroom.ratelimit.limits.request import RequestView

#: Most values of one condition, and their longest length in characters.
MAX_VALUES, MAX_VALUE = 256, 1024


class Operator(StrEnum):
    """The comparison of a condition."""

    IN = "In"
    #: Also true for a request without the part.
    NOT_IN = "NotIn"
    STARTS_WITH = "StartsWith"
    #: True for an address within one of the networks.
    IN_NETWORK = "InNetwork"
    EXISTS = "Exists"
    #: True for a missing or empty part.
    DOES_NOT_EXIST = "DoesNotExist"


#: Operators without values.
WITHOUT_VALUES = frozenset({Operator.EXISTS, Operator.DOES_NOT_EXIST})
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison of one part of a request. Raises InvalidPolicyError."""

    source: Callable[[RequestView], str | None]
    operator: Operator = Operator.IN
    values: tuple[str, ...] = ()
    _networks: tuple[_Network, ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        problem = condition_problem(self.operator, self.values)
        if problem is not None:
            raise InvalidPolicyError([problem])
        if self.operator is Operator.IN_NETWORK:
            networks = tuple(ipaddress.ip_network(value, strict=False) for value in self.values)
            object.__setattr__(self, "_networks", networks)

    def holds(self, request: RequestView) -> bool:
        """Return whether the condition holds for a request."""
        value = self.source(request)
        operator = self.operator
        if operator is Operator.IN:
            return value in self.values
        if operator is Operator.NOT_IN:
            return value not in self.values
        if operator is Operator.EXISTS:
            return bool(value)
        if operator is Operator.DOES_NOT_EXIST:
            return not value
        if value is None:
            return False
        if operator is Operator.STARTS_WITH:
            return value.startswith(self.values)
        return self._within(value)

    def _within(self, value: str) -> bool:
        try:
            network = ipaddress.ip_network(value[:80], strict=False)
        except ValueError:
            return False
        # ``subnet_of`` raises for networks of different versions, which the check excludes.
        return any(
            network.version == allowed.version and network.subnet_of(allowed)  # type: ignore[arg-type]
            for allowed in self._networks
        )


def condition_problem(operator: Operator, values: Iterable[object]) -> Problem | None:
    """Return what is wrong with the values of a condition; None if they are valid."""
    values = tuple(values)
    if operator in WITHOUT_VALUES:
        if values:
            return Problem("values", f"{operator.value} takes no values", "remove them")
        return None
    if not values:
        return Problem("values", f"{operator.value} has no values", "write at least one")
    if len(values) > MAX_VALUES:
        return Problem("values", f"there are {len(values)}", f"keep at most {MAX_VALUES} of them")
    for value in values:
        if not isinstance(value, str) or not 1 <= len(value) <= MAX_VALUE:
            problem = f"{str(value)[:80]!r} is empty, too long or not a string"
            return Problem("values", problem, f"write 1 to {MAX_VALUE} characters")
        if operator is Operator.IN_NETWORK:
            try:
                ipaddress.ip_network(value, strict=False)
            except ValueError:
                problem = f"{value[:80]!r} is not a network"
                return Problem("values", problem, "write it as 10.0.0.0/8 or 2001:db8::/32")
    return None


def all_hold(conditions: Iterable[Condition], request: RequestView) -> bool:
    """Return whether all conditions hold for a request."""
    return all(condition.holds(request) for condition in conditions)
