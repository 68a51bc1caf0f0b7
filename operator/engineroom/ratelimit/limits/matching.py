"""Whether a request is of some kind: what ``when``, ``exempt`` and ``tiers`` of a limit ask."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from engineroom.core.errors import Problem
from engineroom.ratelimit.limits.errors import InvalidPolicyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from engineroom.ratelimit.limits.sources import RequestView

#: Values of one condition, and their length.
MAX_VALUES, MAX_VALUE = 256, 1024


class Operator(StrEnum):
    """How a condition compares."""

    IN = "In"
    #: Also true where the request has no such part.
    NOT_IN = "NotIn"
    STARTS_WITH = "StartsWith"
    #: The part is an address within one of the networks.
    IN_NETWORK = "InNetwork"
    EXISTS = "Exists"
    #: Not there, or empty.
    DOES_NOT_EXIST = "DoesNotExist"


#: Operators that compare with nothing.
WITHOUT_VALUES = frozenset({Operator.EXISTS, Operator.DOES_NOT_EXIST})
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that a request is or is not. Raises InvalidPolicyError."""

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
        """Whether the request is so."""
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
        # Addresses of version 4 and 6 cannot be compared, which the check of the version says.
        return any(
            network.version == each.version and network.subnet_of(each)  # type: ignore[arg-type]
            for each in self._networks
        )


def condition_problem(operator: Operator, values: Iterable[object]) -> Problem | None:
    """What is wrong with the values of a condition; None when nothing is."""
    given = tuple(values)
    if operator in WITHOUT_VALUES:
        if given:
            return Problem("values", f"{operator.value} compares with nothing", "remove them")
        return None
    if not given:
        return Problem("values", f"{operator.value} compares with nothing", "write at least one")
    if len(given) > MAX_VALUES:
        return Problem("values", f"there are {len(given)}", f"keep at most {MAX_VALUES} of them")
    for value in given:
        if not isinstance(value, str) or not 1 <= len(value) <= MAX_VALUE:
            told = f"{str(value)[:80]!r} is empty, too long or no string"
            return Problem("values", told, f"write 1 to {MAX_VALUE} characters")
        if operator is Operator.IN_NETWORK:
            try:
                ipaddress.ip_network(value, strict=False)
            except ValueError:
                told = f"{value[:80]!r} is not a network"
                return Problem("values", told, "write it as 10.0.0.0/8 or 2001:db8::/32")
    return None


def all_hold(conditions: Iterable[Condition], request: RequestView) -> bool:
    """Whether the request is all of that."""
    return all(condition.holds(request) for condition in conditions)
