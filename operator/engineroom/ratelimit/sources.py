"""By what a request counts: parts of an HTTP request as key sources of a limit.

A source is any callable from a RequestView to a string, or to None where the request has none; the
classes here are the ones that a policy can name. Values are cut to MAX_VALUE characters: requests
that differ only behind that share one key, which limits them together and never lets them pass.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from engineroom.core.errors import Problem
from engineroom.ratelimit.errors import InvalidPolicyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engineroom.ratelimit.model import Policy

#: Longest part of a key, characters.
MAX_VALUE = 1024
#: Longest query string, cookie header and chain of forwarded addresses that is read, characters.
MAX_PARSED = 16_384
_MAX_FIELDS = 256


@dataclass(frozen=True, slots=True)
class RequestView:
    """What key sources see of a request. ``headers`` has lower-case names; of a repeated header
    the values joined by a comma. ``peer`` is the address of the connection's other end."""

    method: str = "GET"
    path: str = "/"
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    peer: str = ""
    #: Proxies in front that can be trusted to append to X-Forwarded-For.
    trusted_proxy_hops: int = 0


@dataclass(frozen=True, slots=True)
class Header:
    """A header's value, by its name."""

    name: str

    def __post_init__(self) -> None:
        _named(self.name, "Header")

    def __call__(self, request: RequestView) -> str | None:
        """The value, or None."""
        return request.headers.get(self.name.lower()) or None


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
    """The request's path, without the query."""

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


def subject_of(policy: Policy, request: RequestView) -> dict[str, str | None]:
    """For each limit by name what the request counts by; None where a part of it is missing."""
    subject: dict[str, str | None] = {}
    for limit in policy.limits:
        parts: list[str] = []
        for source in limit.key:
            value = source(request)
            if value is None:
                break
            value = value[:MAX_VALUE]
            parts.append(f"{len(value)}:{value}")
        subject[limit.name] = "".join(parts) if len(parts) == len(limit.key) else None
    return subject


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
