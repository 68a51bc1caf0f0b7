"""By what a request counts: parts of an HTTP request as key sources of a limit.

A source is any callable from a RequestView to a string, or to None where the request has none; the
classes here are the ones that a policy can name. Values are cut to MAX_VALUE characters: requests
that differ only behind that share one key, which limits them together and never lets them pass.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qsl

from engineroom.core.errors import Problem
from engineroom.ratelimit.limits.errors import InvalidPolicyError
from engineroom.ratelimit.limits.matching import all_hold

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engineroom.ratelimit.limits.model import Limit, Policy

#: Longest part of a key, characters.
MAX_VALUE = 1024
#: Longest query string, cookie header and chain of forwarded addresses that is read, characters.
MAX_PARSED = 16_384
_MAX_FIELDS = 256


class Applied(Enum):
    """Whether a limit applies at all."""

    NOT = "NotApplied"


#: Of a limit that does not apply to a request.
NOT_APPLIED: Final = Applied.NOT


#: Of a request without any.
NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


# A named tuple and no dataclass: it is made once a decision, and takes a third of the time.
class RequestView(NamedTuple):
    """What key sources see of a request. ``headers`` has lower-case names; of a repeated header
    the values joined by a comma. ``peer`` is the address of the connection's other end. ``path``
    has one form whatever it was spelt like: ``paths.settled`` makes it, for all doors."""

    method: str = "GET"
    path: str = "/"
    query: str = ""
    headers: Mapping[str, str] = NOTHING
    peer: str = ""
    #: Proxies in front that can be trusted to append to X-Forwarded-For.
    trusted_proxy_hops: int = 0
    #: Whose request it is, and which route of the application or the proxy it takes, as far as the
    #: one who asks knows; never taken from the request itself unchecked.
    tenant: str | None = None
    route: str | None = None
    #: Claims of a token that somebody has verified.
    claims: Mapping[str, str] = NOTHING
    #: What else an application may take ``path`` for; see ``paths``.
    other_paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Caller:
    """What an application knows of a request besides the request itself; see RequestView."""

    tenant: str | None = None
    route: str | None = None
    claims: Mapping[str, str] = field(default_factory=dict)


NOBODY: Final = Caller()


@dataclass(frozen=True, slots=True)
class Header:
    """A header's value, by its name."""

    name: str
    _key: str = field(default="", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _named(self.name, "Header")
        object.__setattr__(self, "_key", self.name.lower())

    def __call__(self, request: RequestView) -> str | None:
        """The value, or None."""
        return request.headers.get(self._key) or None


@dataclass(frozen=True, slots=True)
class Query:
    """The first value of a parameter of the query string."""

    name: str

    def __post_init__(self) -> None:
        _named(self.name, "Query")

    def __call__(self, request: RequestView) -> str | None:
        """The value, or None; also None for a query string too long to be read."""
        if len(request.query) > MAX_PARSED:
            return None
        try:
            pairs = parse_qsl(request.query, max_num_fields=_MAX_FIELDS, errors="replace")
        except ValueError:
            return None
        return next((value for name, value in pairs if name == self.name), None)


@dataclass(frozen=True, slots=True)
class Cookie:
    """A cookie's value."""

    name: str

    def __post_init__(self) -> None:
        _named(self.name, "Cookie")

    def __call__(self, request: RequestView) -> str | None:
        """The value, or None; also None for a header too long to be read."""
        header = request.headers.get("cookie", "")
        if len(header) > MAX_PARSED:
            return None
        for part in header.split(";"):
            name, found, value = part.strip().partition("=")
            if found and name == self.name:
                return value or None
        return None


@dataclass(frozen=True, slots=True)
class ClientIP:
    """The client's address; of IPv6 the network of ``ipv6_prefix`` bits, since one client has it
    all. With N trusted proxies it is the Nth entry of X-Forwarded-For from the right: everything
    to the left of it is what the client says of itself."""

    ipv6_prefix: int = 64

    def __post_init__(self) -> None:
        if not isinstance(self.ipv6_prefix, int) or not 1 <= self.ipv6_prefix <= 128:
            raise InvalidPolicyError(
                [
                    Problem(
                        "key.clientIP.ipv6Prefix",
                        f"{self.ipv6_prefix!r} is not from 1 to 128",
                        "write the bits that one client has, such as 64",
                    )
                ]
            )

    def __call__(self, request: RequestView) -> str | None:
        """The address or network; None where there is none, as on a Unix socket."""
        address = _address(_client(request))
        if address is None:
            return None
        if isinstance(address, ipaddress.IPv6Address):
            if address.ipv4_mapped is not None:
                return str(address.ipv4_mapped)
            return str(ipaddress.ip_network((int(address), self.ipv6_prefix), strict=False))
        return str(address)


@dataclass(frozen=True, slots=True)
class Method:
    """The request's method."""

    def __call__(self, request: RequestView) -> str | None:
        """The method in capitals."""
        return request.method.upper()


@dataclass(frozen=True, slots=True)
class Path:
    """The request's path, without the query, in the one form that ``paths`` describes."""

    def __call__(self, request: RequestView) -> str | None:
        """The path."""
        return request.path


@dataclass(frozen=True, slots=True)
class Constant:
    """The same for all requests."""

    value: str

    def __call__(self, request: RequestView) -> str | None:
        """The value."""
        return self.value


@dataclass(frozen=True, slots=True)
class JWTClaim:
    """A claim of the caller's token, as whoever verified it has handed it on.

    Nothing is read from the token itself: a token that nobody checked says what its sender likes.
    """

    name: str

    def __post_init__(self) -> None:
        _named(self.name, "JWTClaim")

    def __call__(self, request: RequestView) -> str | None:
        """The claim, or None."""
        return request.claims.get(self.name) or None


@dataclass(frozen=True, slots=True)
class APIKey:
    """An API key in a header; with ``Authorization`` what follows the scheme. Only a digest of it
    goes any further."""

    header: str = "X-Api-Key"

    def __post_init__(self) -> None:
        _named(self.header, "APIKey")

    def __call__(self, request: RequestView) -> str | None:
        """A digest of the key, or None."""
        name = self.header.lower()
        value = request.headers.get(name, "")
        if name == "authorization":
            value = value.partition(" ")[2]
        value = value.strip()
        if not value:
            return None
        return blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose request it is, as the application or the decision service knows."""

    def __call__(self, request: RequestView) -> str | None:
        """The tenant, or None."""
        return request.tenant or None


@dataclass(frozen=True, slots=True)
class Route:
    """The route that serves the request, such as ``/items/{id}``: many paths, one route."""

    def __call__(self, request: RequestView) -> str | None:
        """The route, or None."""
        return request.route or None


def subject_of(policy: Policy, request: RequestView) -> dict[str, str | Applied | None]:
    """For each limit by name what the request counts by; None where a part of it is missing.

    NOT_APPLIED where the limit does not apply: not ``when``, exempt, or because one of its tiers
    does, which then stands there as ``limit/tier``. What may be read in several ways counts as each
    of them: no spelling of a path leads around a limit, to an exemption, or to a better tier alone.
    """
    subject = _read(policy, request)
    for path in request.other_paths:
        for name, value in _read(policy, request._replace(path=path)).items():
            if subject.get(name, NOT_APPLIED) is NOT_APPLIED:
                subject[name] = value
    return subject


def _read(policy: Policy, request: RequestView) -> dict[str, str | Applied | None]:
    subject: dict[str, str | Applied | None] = {}
    for limit in policy.limits:
        if limit.when and not all_hold(limit.when, request):
            subject[limit.name] = NOT_APPLIED
            continue
        if limit.exempt and any(all_hold(each, request) for each in limit.exempt):
            subject[limit.name] = NOT_APPLIED
            continue
        value = _key_of(limit, request)
        subject[limit.name] = value
        for tier in limit.tiers:
            if all_hold(tier.match, request):
                subject[limit.name] = NOT_APPLIED
                subject[f"{limit.name}/{tier.name}"] = value
                break
    return subject


def identity_of(policy: Policy) -> Callable[[RequestView], tuple[str | Applied | None, ...]]:
    """What ``subject_of`` says of a request, by the limits' places: made once for a policy.

    See ``policy.places``. Of a limit without conditions only the key is looked at.
    """
    names = tuple(limit.name for limit in policy.places)
    plain = len(names) == len(policy.limits) and not any(
        limit.when or limit.exempt for limit in policy.limits
    )
    if plain and len(names) == 1:
        only = policy.limits[0]
        return lambda request: (_key_of(only, request),)
    if plain:
        return lambda request: tuple([_key_of(limit, request) for limit in policy.limits])

    def found(request: RequestView) -> tuple[str | Applied | None, ...]:
        subject = subject_of(policy, request)
        return tuple([subject.get(name, NOT_APPLIED) for name in names])

    return found


def response_costs(policy: Policy, headers: Mapping[str, str]) -> dict[str, int]:
    """What a response says that its request took, by limit; ``headers`` has lower-case names.

    What is no whole number above 0, or longer than 12 digits, says nothing.
    """
    costs = {}
    for limit in policy.limits:
        if not limit.response_cost:
            continue
        text = headers.get(limit.response_cost.lower(), "").strip()
        if text.isascii() and text.isdigit() and len(text) <= 12 and int(text) > 0:
            costs[limit.name] = int(text)
    return costs


def _key_of(limit: Limit, request: RequestView) -> str | None:
    if len(limit.key) == 1:
        only = limit.key[0](request)
        if only is None:
            return None
        only = only[:MAX_VALUE]
        return f"{len(only)}:{only}"
    parts: list[str] = []
    for source in limit.key:
        value = source(request)
        if value is None:
            return None
        value = value[:MAX_VALUE]
        parts.append(f"{len(value)}:{value}")
    return "".join(parts)


def _client(request: RequestView) -> str:
    hops = request.trusted_proxy_hops
    if hops < 1:
        return request.peer
    # Only the end is read: it is what the trusted proxies wrote, however much a client sent.
    forwarded = request.headers.get("x-forwarded-for", "")[-MAX_PARSED:]
    chain = [part.strip() for part in forwarded.split(",") if part.strip()]
    # With fewer entries than proxies the request came past them, and says of itself what it likes.
    return chain[-hops] if len(chain) >= hops else request.peer


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, also as `1.2.3.4:80`, `[::1]:80` or with a zone."""
    text = text[:80]
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _named(name: object, kind: str) -> None:
    if not isinstance(name, str) or not 1 <= len(name) <= 256:
        problem = Problem(f"key.{kind}.name", "is empty or too long", "write 1 to 256 characters")
        raise InvalidPolicyError([problem])
