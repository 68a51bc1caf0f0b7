"""A guarded HTTP fetch, for URLs that somebody else chose: webhooks, OIDC, JWKS.

The name is resolved once, every address of it is judged, and the connection goes to an address
that was judged: a name that says something else the next time (DNS rebinding) is not asked a next
time. No redirect is followed, no proxy is asked, size and time are bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from engineroom.auth.errors import OutboundError, OutboundRefusedError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Mapping, Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL = 2_048
#: Bytes of status line and headers.
MAX_HEAD = 16_384
#: Addresses of one name that are tried.
MAX_TRIES = 3

_LABEL = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
#: What a resolver may take for a number (WHATWG URL, "ends in a number"): 127.1, 0x7f.1.
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?")
#: Reachable by their number although no host of the internet is behind it.
_NEVER: tuple[Network, ...] = tuple(
    map(
        ipaddress.ip_network,
        (
            "168.63.129.16/32",  # Azure's host agent
            "192.0.0.0/24",  # protocol assignments; a cloud's metadata among them
            "192.88.99.0/24",  # 6to4 relays
            "2001::/32",  # Teredo: an IPv4 address of anybody's choice within
            "2002::/16",  # 6to4: likewise
            "64:ff9b:1::/48",  # NAT64 into local networks
            "3fff::/20",  # documentation
            "5f00::/16",  # segment routing
            "fec0::/10",  # site-local
        ),
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Resolver(Protocol):
    """Names to addresses."""

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        """All addresses of ``host``. Raises OSError."""
        ...


class SystemResolver:
    """What the machine says."""

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        """All addresses of ``host``. Raises OSError."""
        rows = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found = (ipaddress.ip_address(str(row[4][0]).split("%")[0]) for row in rows)
        return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart: ``path`` with its query, ``host`` as it goes into Host and TLS."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """What the header Host says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be fetched. ``allow`` wins over everything, ``deny`` over what is public.

    A cluster whose pods or services have public addresses names them in ``deny``.
    """

    schemes: frozenset[str] = frozenset({"https"})
    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()

    @classmethod
    def of(
        cls,
        *,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        schemes: Iterable[str] = ("https",),
    ) -> Rules:
        """From texts such as ``10.0.0.0/8``. Raises ValueError."""
        if unknown := set(schemes) - set(_PORTS):
            msg = f"schemes: {sorted(unknown)} are not fetched; use http or https"
            raise ValueError(msg)
        return cls(
            frozenset(schemes),
            tuple(map(ipaddress.ip_network, allow)),
            tuple(map(ipaddress.ip_network, deny)),
        )


@dataclass(frozen=True, slots=True)
class Response:
    """What came back; header names are lower case, of repeated ones the last counts."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


def parse(url: str, schemes: frozenset[str]) -> Target:
    """Take a URL apart, strictly: what two parsers could read differently is refused.

    Raises OutboundRefusedError.
    """
    if len(url) > MAX_URL:
        raise OutboundRefusedError("too_long", f"URL: is longer than {MAX_URL} characters")
    if not url.isascii() or any(not "!" <= c <= "~" for c in url) or "\\" in url:
        raise OutboundRefusedError(
            "characters", "URL: has characters that need escaping; write names in punycode"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise OutboundRefusedError(
            "malformed", "URL: cannot be read; check host and port"
        ) from error
    scheme = parts.scheme.lower()
    if scheme not in schemes:
        allowed = " or ".join(sorted(schemes))
        raise OutboundRefusedError("scheme", f"URL: must begin with {allowed}://")
    if "@" in parts.netloc:
        raise OutboundRefusedError(
            "credentials", "URL: must not carry a name or password; use a Secret"
        )
    host = (parts.hostname or "").lower()
    if "%" in host or not host or port == 0:
        raise OutboundRefusedError("host", "URL: names no host that could be fetched from")
    if "[" in parts.netloc:
        try:
            host = str(ipaddress.IPv6Address(host))
        except ValueError as error:
            raise OutboundRefusedError("host", "URL: its IPv6 address cannot be read") from error
    elif _NUMBER.fullmatch(host):
        # Exactly four decimal numbers without leading zeros; every other spelling is a disguise.
        try:
            host = str(ipaddress.IPv4Address(host))
        except ValueError as error:
            raise OutboundRefusedError(
                "disguised_address", "URL: write the address as four decimal numbers"
            ) from error
    elif len(host) > 253 or not _NAME.fullmatch(host):
        raise OutboundRefusedError("host", "URL: its host is no name")
    path = parts.path or "/"
    return Target(
        scheme, host, port or _PORTS[scheme], f"{path}?{parts.query}" if parts.query else path
    )


def refusal(address: Address, rules: Rules) -> str:
    """Why an address must not be connected to, or "" when it may be."""
    judged = [address, *_within(address)]
    if any(_in(one, rules.allow) for one in judged):
        return ""
    for one in judged:
        if _in(one, rules.deny):
            return "denied by configuration"
        if _in(one, _NEVER):
            return "not a host of the internet"
        if one.is_loopback or one.is_unspecified:
            return "loopback"
        if one.is_link_local:
            return "link-local"
        if one.is_multicast or (one.is_reserved and one not in _NAT64):
            return "multicast or reserved"
        if not one.is_global and one not in _NAT64:
            return "private"
    return ""


def _within(address: Address) -> list[Address]:
    """The IPv4 address that an IPv6 address leads to."""
    if not isinstance(address, ipaddress.IPv6Address):
        return []
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _NAT64 or int(address) >> 32 == 0:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    return []


def _in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == net.version and address in net for net in networks)


class Outbound:
    """Fetches by the rules. One for a process; it keeps no connection."""

    def __init__(
        self,
        rules: Rules | None = None,
        *,
        resolver: Resolver | None = None,
        timeout: float = 10.0,
        max_bytes: int = 1_048_576,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """``timeout`` is seconds for the whole fetch, ``max_bytes`` bounds the body."""
        self._rules = rules or Rules()
        self._resolver = resolver or SystemResolver()
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._tls = tls

    async def fetch(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Response:
        """What ``url`` answers, whatever its status but a redirect.

        Raises OutboundRefusedError for where it must not go, and for a redirect; OutboundError for
        no answer, or one too late, too long or malformed.
        """
        target = parse(url, self._rules.schemes)
        try:
            async with asyncio.timeout(self._timeout):
                addresses = await self._judged(target)
                reader, writer = await self._connect(target, addresses)
                try:
                    response = await self._exchange(
                        reader, writer, target, method, headers or {}, body
                    )
                finally:
                    writer.transport.abort()
        except TimeoutError as error:
            raise OutboundError(
                f"{target.host}: did not answer within {self._timeout:g} s"
            ) from error
        except (OSError, EOFError) as error:
            raise OutboundError(f"{target.host}: {type(error).__name__}") from error
        if 300 <= response.status < 400:
            raise OutboundRefusedError(
                "redirect", f"{target.host}: answers with a redirect; name the final URL instead"
            )
        return response

    async def _judged(self, target: Target) -> list[Address]:
        """The addresses of the target, all of which may be connected to."""
        with contextlib.suppress(ValueError):
            literal = ipaddress.ip_address(target.host)
            self._judge(target, literal)
            return [literal]
        try:
            addresses = list(await self._resolver.resolve(target.host, target.port))
        except (OSError, UnicodeError) as error:
            raise OutboundError(f"{target.host}: has no address") from error
        if not addresses:
            raise OutboundError(f"{target.host}: has no address")
        for address in addresses:
            self._judge(target, address)
        return addresses[:MAX_TRIES]

    def _judge(self, target: Target, address: Address) -> None:
        if why := refusal(address, self._rules):
            # Without the address: who chose the URL is not to learn what a name is inside.
            raise OutboundRefusedError(
                "address", f"{target.host}: its address is {why}; an administrator may allow it"
            )

    async def _connect(
        self, target: Target, addresses: Sequence[Address]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        secure: dict[str, Any] = {}
        if target.scheme == "https":
            secure = {"ssl": self._context(), "server_hostname": target.host.rstrip(".")}
        last: OSError | None = None
        for address in addresses:
            try:
                return await asyncio.open_connection(str(address), target.port, **secure)
            except OSError as error:
                last = error
        raise OutboundError(f"{target.host}: no connection ({type(last).__name__})") from last

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            import ssl

            self._tls = ssl.create_default_context()
        return self._tls

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        target: Target,
        method: str,
        headers: Mapping[str, str],
        body: bytes,
    ) -> Response:
        import h11

        fixed = {
            "host": target.authority,
            "user-agent": "engineroom",
            # A body that unpacks to more than it is would defeat the bound.
            "accept-encoding": "identity",
            "connection": "close",
            "content-length": str(len(body)),
        }
        own = {name.lower(): value for name, value in headers.items()}
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        try:
            request = h11.Request(
                method=method, target=target.path, headers=list({**own, **fixed}.items())
            )
            out = connection.send(request) or b""
            if body:
                out += connection.send(h11.Data(data=body)) or b""
            out += connection.send(h11.EndOfMessage()) or b""
        except h11.LocalProtocolError as error:
            raise OutboundRefusedError(
                "request", "request: its method or a header holds what HTTP does not allow"
            ) from error
        writer.write(out)
        await writer.drain()

        head: h11.Response | None = None
        received = bytearray()
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                raise OutboundError(f"{target.host}: answers with no HTTP") from error
            if event is h11.NEED_DATA:
                # Small bites until the head is whole: h11 bounds it by what is left over.
                connection.receive_data(await reader.read(65_536 if head else 4_096))
            elif isinstance(event, h11.Response):
                head = event
                names = {name.decode(): value.decode("latin-1") for name, value in event.headers}
                if names.get("content-encoding", "identity") != "identity":
                    raise OutboundError(f"{target.host}: answers packed although asked not to")
            elif isinstance(event, h11.Data):
                received += event.data
                if len(received) > self._max_bytes:
                    raise OutboundError(
                        f"{target.host}: answers with more than {self._max_bytes} bytes"
                    )
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return Response(head.status_code, names, bytes(received))
            elif not isinstance(event, h11.InformationalResponse):
                raise OutboundError(f"{target.host}: ends before it answered")
