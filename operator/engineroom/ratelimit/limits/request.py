"""The HTTP request as limits see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The headers or claims of a request that has none.
EMPTY: Final[Mapping[str, str]] = MappingProxyType({})


# A named tuple: one is created for every decision, in a third of a frozen dataclass's time.
class RequestView(NamedTuple):
    """The parts of a request that keys and conditions read.

    ``headers`` has lower-case names; the values of a repeated header are joined by a comma.
    ``peer`` is the address of the connection's other end. ``path`` is normalized by
    ``paths.normalized``, so that all spellings of a path are equal.
    """

    method: str = "GET"
    path: str = "/"
    query: str = ""
    headers: Mapping[str, str] = EMPTY
    peer: str = ""
    #: Number of trusted proxies that append to X-Forwarded-For.
    trusted_proxy_hops: int = 0
    #: The tenant and the route, as the application or the proxy determined them. They are never
    #: read from the request itself unverified.
    tenant: str | None = None
    route: str | None = None
    #: Claims of a verified token.
    claims: Mapping[str, str] = EMPTY
    #: Other paths that an application may read from the same request; see ``paths``.
    other_paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Caller:
    """The tenant, route and claims that an application determined for a request."""

    tenant: str | None = None
    route: str | None = None
    claims: Mapping[str, str] = field(default_factory=dict)


UNKNOWN_CALLER: Final = Caller()
