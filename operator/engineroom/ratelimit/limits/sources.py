"""Sources of keys: the parts of an HTTP request by which a limit counts.

A source is any callable from a RequestView to a string, or to None for a request without the part.
A policy can name the classes of this module. Values are cut to MAX_VALUE characters: requests that
differ only behind that share one key and are limited together.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

from engineroom.core.errors import Problem
from engineroom.ratelimit.limits.errors import InvalidPolicyError
from engineroom.ratelimit.limits.matching import all_hold

if TYPE_CHECKING:
    from collections.abc import Callable

    from engineroom.ratelimit.limits.model import Limit, Policy
    from engineroom.ratelimit.limits.request import RequestView

#: Longest part of a key, characters.
MAX_VALUE = 1024
#: Longest query string, cookie header and chain of forwarded addresses that are read, characters.
MAX_PARSED = 16_384
_MAX_FIELDS = 256


class Applicability(Enum):
    """Marks a limit that does not apply to a request."""

    NOT_APPLIED = "NotApplied"


NOT_APPLIED: Final = Applicability.NOT_APPLIED

#: What a request counts by: one value for all limits, or one for each limit by name. The value is
#: None if the request has none, and NOT_APPLIED if the limit does not apply. A tier is named
#: ``limit/tier`` and does not apply unless it is present. See ``subject_of``.
Subject = str | Mapping[str, str | Applicability | None]
#: A subject in the order of ``policy.effective_limits``.
SubjectValues = str | tuple[str | Applicability | None, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """The value of a header."""

    name: str
    _key: str = field(default="", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_name(self.name, "Header")
        object.__setattr__(self, "_key", self.name.lower())

    def __call__(self, request: RequestView) -> str | None:
        """Return the value, or None if it is missing."""
        return request.headers.get(self._key) or None


@dataclass(frozen=True, slots=True)
class Query:
    """The first value of a parameter of the query string."""

    name: str

    def __post_init__(self) -> None:
        _check_name(self.name, "Query")

    def __call__(self, request: RequestView) -> str | None:
        """Return the value; None if it is missing or the query string is too long."""
        if len(request.query) > MAX_PARSED:
            return None
        try:
            pairs = parse_qsl(request.query, max_num_fields=_MAX_FIELDS, errors="replace")
        except ValueError:
            return None
        return next((value for name, value in pairs if name == self.name), None)


@dataclass(frozen=True, slots=True)
class Cookie:
    """The value of a cookie."""

    name: str

    def __post_init__(self) -> None:
        _check_name(self.name, "Cookie")

    def __call__(self, request: RequestView) -> str | None:
        """Return the value; None if it is missing or the header is too long."""
        header = request.headers.get("cookie", "")
        if len(header) > MAX_PARSED:
            return None
        for part in header.split(";"):
            name, equals, value = part.strip().partition("=")
            if equals and name == self.name:
                return value or None
        return None


@dataclass(frozen=True, slots=True)
class ClientIP:
    """The client's address; for IPv6 its network of ``ipv6_prefix`` bits, which one client owns.

    With N trusted proxies the address is the Nth entry of X-Forwarded-For from the right. Entries
    to the left of it come from the client and are ignored.
    """

    ipv6_prefix: int = 64

    def __post_init__(self) -> None:
        if not isinstance(self.ipv6_prefix, int) or not 1 <= self.ipv6_prefix <= 128:
            raise InvalidPolicyError(
                [
                    Problem(
                        "key.clientIP.ipv6Prefix",
                        f"{self.ipv6_prefix!r} is not from 1 to 128",
                        "write the length of the prefix that one client owns, such as 64",
                    )
                ]
            )

    def __call__(self, request: RequestView) -> str | None:
        """Return the address or network; None without an address, as on a Unix socket."""
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
    """The method of the request."""

    def __call__(self, request: RequestView) -> str | None:
        """Return the method in upper case."""
        return request.method.upper()


@dataclass(frozen=True, slots=True)
class Path:
    """The normalized path of the request, without the query; see ``paths``."""

    def __call__(self, request: RequestView) -> str | None:
        """Return the path."""
        return request.path


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant value for all requests."""

    value: str

    def __call__(self, request: RequestView) -> str | None:
        """Return the value."""
        return self.value


@dataclass(frozen=True, slots=True)
class JWTClaim:
    """A claim of the caller's token, as passed on by the component that verified the token.

    The token itself is never read: the claims of an unverified token are chosen by its sender.
    """

    name: str

    def __post_init__(self) -> None:
        _check_name(self.name, "JWTClaim")

    def __call__(self, request: RequestView) -> str | None:
        """Return the claim, or None if it is missing."""
        return request.claims.get(self.name) or None


@dataclass(frozen=True, slots=True)
class APIKey:
    """A digest of the API key in a header; in ``Authorization`` the key follows the scheme."""

    header: str = "X-Api-Key"

    def __post_init__(self) -> None:
        _check_name(self.header, "APIKey")

    def __call__(self, request: RequestView) -> str | None:
        """Return the digest of the key, or None if it is missing."""
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
    """The tenant, as the application or the decision service determined it."""

    def __call__(self, request: RequestView) -> str | None:
        """Return the tenant, or None if it is unknown."""
        return request.tenant or None


@dataclass(frozen=True, slots=True)
class Route:
    """The route that serves the request, such as ``/items/{id}``."""

    def __call__(self, request: RequestView) -> str | None:
        """Return the route, or None if it is unknown."""
        return request.route or None


def subject_of(policy: Policy, request: RequestView) -> dict[str, str | Applicability | None]:
    """Return the request's value for each limit by name; None where a part of the key is missing.

    The value is NOT_APPLIED if ``when`` does not hold, the request is exempt, or a tier applies,
    which then has the value under ``limit/tier``. A request whose path can be read in several ways
    counts as each of them: no spelling of a path avoids a limit, or reaches an exemption or a
    better tier only.
    """
    subject = _subject_of_path(policy, request)
    for path in request.other_paths:
        for name, value in _subject_of_path(policy, request._replace(path=path)).items():
            if subject.get(name, NOT_APPLIED) is NOT_APPLIED:
                subject[name] = value
    return subject


def _subject_of_path(policy: Policy, request: RequestView) -> dict[str, str | Applicability | None]:
    subject: dict[str, str | Applicability | None] = {}
    for limit in policy.limits:
        if limit.when and not all_hold(limit.when, request):
            subject[limit.name] = NOT_APPLIED
            continue
        if limit.exempt and any(all_hold(conditions, request) for conditions in limit.exempt):
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


def values_reader(
    policy: Policy,
) -> Callable[[RequestView], SubjectValues]:
    """Return a function that is ``subject_of`` in the order of ``policy.effective_limits``.

    For a policy without conditions it reads the keys only.
    """
    names = tuple(limit.name for limit in policy.effective_limits)
    unconditional = len(names) == len(policy.limits) and not any(
        limit.when or limit.exempt for limit in policy.limits
    )
    if unconditional and len(names) == 1:
        only = policy.limits[0]
        return lambda request: (_key_of(only, request),)
    if unconditional:
        return lambda request: tuple([_key_of(limit, request) for limit in policy.limits])

    def read(request: RequestView) -> tuple[str | Applicability | None, ...]:
        subject = subject_of(policy, request)
        return tuple([subject.get(name, NOT_APPLIED) for name in names])

    return read


def response_costs(policy: Policy, headers: Mapping[str, str]) -> dict[str, int]:
    """Return the costs that a response reports, by limit; ``headers`` has lower-case names.

    A value that is not a whole number above 0, or has more than 12 digits, is ignored.
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
    # The trusted proxies wrote the end of the header; the rest may be arbitrarily long.
    forwarded = request.headers.get("x-forwarded-for", "")[-MAX_PARSED:]
    chain = [part.strip() for part in forwarded.split(",") if part.strip()]
    # With fewer entries than proxies, the request bypassed them and wrote the header itself.
    return chain[-hops] if len(chain) >= hops else request.peer


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse an address, also one with a port (`1.2.3.4:80`, `[::1]:80`) or a zone."""
    text = text[:80]
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _check_name(name: object, kind: str) -> None:
    if not isinstance(name, str) or not 1 <= len(name) <= 256:
        problem = Problem(f"key.{kind}.name", "is empty or too long", "write 1 to 256 characters")
        raise InvalidPolicyError([problem])
