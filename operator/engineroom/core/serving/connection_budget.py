"""Budgets of a server: connections and bytes, of all clients and of each address.

When the connections are used up, the oldest connection without any complete request is closed for
the new one. Without such a connection the new one is refused. All others go on.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Open files of a process besides its clients' connections.
OTHER_FILES = 256


class BudgetConnection(Protocol):
    """A connection that can be closed at once."""

    def abort(self) -> None:
        """Close now."""
        ...


class Refusal(StrEnum):
    """Why a connection was refused or closed, or a request refused."""

    #: Its address has too many connections.
    ADDRESS = "address"
    #: The process has too many connections.
    PROCESS = "process"
    #: Its address or the process holds too many bytes of requests.
    MEMORY = "memory"
    #: It sent its request too slowly, or none.
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class BudgetLimits:
    """Limits of a process, and of one address; bytes are those held of incomplete requests."""

    connections: int
    address_connections: int
    held_bytes: int = 0
    address_bytes: int = 0


@dataclass(slots=True)
class _Address:
    """The connections of one address."""

    connections: int = 0
    held: int = 0
    #: Connections without a complete request, oldest first.
    silent: dict[BudgetConnection, None] = field(default_factory=dict)


@dataclass(slots=True)
class _Member:
    address: str
    held: int = 0


class ConnectionBudget:
    """The connections of a process, which all run on one event loop."""

    def __init__(self, limits: BudgetLimits) -> None:
        self.limits = limits
        #: Refused and closed connections, and refused requests.
        self.refusals: Counter[Refusal] = Counter()
        #: Bytes that all connections hold.
        self.held = 0
        self._addresses: dict[str, _Address] = {}
        self._members: dict[BudgetConnection, _Member] = {}
        self._silent: dict[BudgetConnection, None] = {}

    def __len__(self) -> int:
        return len(self._members)

    @property
    def connections(self) -> Iterable[BudgetConnection]:
        """All connections, as a copy."""
        return list(self._members)

    @property
    def is_short(self) -> bool:
        """True if less than a tenth of the connections is left."""
        return len(self._members) * 10 > self.limits.connections * 9

    def admit(self, connection: BudgetConnection, address: str) -> bool:
        """Count a new connection; return False if it must be closed instead."""
        limits = self.limits
        entry = self._addresses.get(address)
        if (
            entry is not None
            and entry.connections >= limits.address_connections
            and not self._close_oldest(entry.silent, Refusal.ADDRESS)
        ):
            return False
        if len(self._members) >= limits.connections and not self._close_oldest(
            self._silent, Refusal.PROCESS
        ):
            return False
        entry = self._addresses.setdefault(address, _Address())
        entry.connections += 1
        entry.silent[connection] = self._silent[connection] = None
        self._members[connection] = _Member(address)
        return True

    def record_request(self, connection: BudgetConnection) -> None:
        """Remember that a connection sent a complete request."""
        member = self._members.get(connection)
        if member is not None and connection in self._silent:
            del self._silent[connection]
            del self._addresses[member.address].silent[connection]

    def hold(self, connection: BudgetConnection, held: int) -> bool:
        """Set the bytes that a connection holds; return False, unchanged, if they are too many."""
        member = self._members.get(connection)
        if member is None:
            return True
        entry, more = self._addresses[member.address], held - member.held
        limits = self.limits
        if more > 0 and (
            self.held + more > limits.held_bytes or entry.held + more > limits.address_bytes
        ):
            self.refusals[Refusal.MEMORY] += 1
            return False
        self.held += more
        entry.held += more
        member.held = held
        return True

    def release(self, connection: BudgetConnection) -> None:
        """Forget a closed connection and its bytes."""
        member = self._members.pop(connection, None)
        if member is None:
            return
        entry = self._addresses[member.address]
        self._silent.pop(connection, None)
        entry.silent.pop(connection, None)
        entry.connections -= 1
        entry.held -= member.held
        self.held -= member.held
        if not entry.connections:
            del self._addresses[member.address]

    def _close_oldest(self, silent: dict[BudgetConnection, None], why: Refusal) -> bool:
        self.refusals[why] += 1
        oldest = next(iter(silent), None)
        if oldest is None:
            return False
        self.release(oldest)
        oldest.abort()
        return True


def address_of(peer: object) -> str:
    """Return an address for a budget: an IPv4 address, or the /64 of an IPv6 address.

    ``peer`` is a transport's ``peername``; it is "" for a Unix socket.
    """
    if not isinstance(peer, tuple) or not peer:
        return ""
    try:
        parsed = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def connections_within_files(wanted: int) -> int:
    """Raise the limit of open files for ``wanted`` connections; return the possible number."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, soft - OTHER_FILES))
