"""A guarded HTTP client for untrusted URLs: webhooks, OIDC, JWKS.

It resolves a name once, checks all its addresses, and connects to a checked address, which defeats
DNS rebinding. It follows no redirect, uses no proxy, and limits size and time.
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

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL = 2_048
#: Most bytes of status line and headers.
MAX_HEAD = 16_384
#: Most addresses of a name that are tried.
MAX_TRIES = 3

_LABEL = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
#: Names that a resolver may interpret as a number (WHATWG URL, "ends in a number"): 127.1, 0x7f.1.
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?")
#: Networks that are never hosts of the internet, although ``ipaddress`` calls some global.
_NEVER: tuple[IPNetwork, ...] = tuple(
    map(
        ipaddress.ip_network,
        (
            "168.63.129.16/32",  # Azure's host agent
            "192.0.0.0/24",  # protocol assignments, with the metadata of a cloud
            "192.88.99.0/24",  # 6to4 relays
            "2001::/32",  # Teredo: embeds an arbitrary IPv4 address
            "2002::/16",  # 6to4: embeds an arbitrary IPv4 address
            "64:ff9b:1::/48",  # NAT64 into local networks
            "3fff::/20",  # documentation
            "5f00::/16",  # segment routing
            "fec0::/10",  # site-local
        ),
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Resolver(Protocol):
    """A resolver of names."""

    async def resolve(self, host: str, port: int) -> Sequence[IPAddress]:
        """Return all addresses of ``host``; raise OSError."""
        ...


class SystemResolver:
    """The system's resolver."""

    async def resolve(self, host: str, port: int) -> Sequence[IPAddress]:
        """Return all addresses of ``host``; raise OSError."""
        rows = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = (ipaddress.ip_address(str(row[4][0]).split("%")[0]) for row in rows)
        return list(dict.fromkeys(addresses))


@dataclass(frozen=True, slots=True)
class OutboundTarget:
    """A parsed URL: ``path`` includes the query, ``host`` is the name for Host and TLS."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The value of the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules for addresses: ``allow`` takes precedence over all, ``deny`` over public addresses.

    Put the pod and service networks of a cluster into ``deny`` if they have public addresses.
    """

    schemes: frozenset[str] = frozenset({"https"})
    allow: tuple[IPNetwork, ...] = ()
    deny: tuple[IPNetwork, ...] = ()

    @classmethod
    def of(
        cls,
        *,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        schemes: Iterable[str] = ("https",),
    ) -> Rules:
        """Return rules from strings such as ``10.0.0.0/8``; raise ValueError."""
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
    """A response; header names are in lower case, the last of repeated headers counts."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


def parse(url: str, schemes: frozenset[str]) -> OutboundTarget:
    """Parse a URL strictly: refuse everything that parsers interpret differently.

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
            "credentials", "URL: must not contain a user name or password; use a Secret"
        )
    host = (parts.hostname or "").lower()
    if "%" in host or not host or port == 0:
        raise OutboundRefusedError("host", "URL: has no valid host")
    if "[" in parts.netloc:
        try:
            host = str(ipaddress.IPv6Address(host))
        except ValueError as error:
            raise OutboundRefusedError("host", "URL: its IPv6 address cannot be read") from error
    elif _NUMBER.fullmatch(host):
        # Only four decimal numbers without leading zeros; all other forms are disguises.
        try:
            host = str(ipaddress.IPv4Address(host))
        except ValueError as error:
            raise OutboundRefusedError(
                "disguised_address", "URL: write the address as four decimal numbers"
            ) from error
    elif len(host) > 253 or not _NAME.fullmatch(host):
        raise OutboundRefusedError("host", "URL: its host is not a valid name")
    path = parts.path or "/"
    return OutboundTarget(
        scheme, host, port or _PORTS[scheme], f"{path}?{parts.query}" if parts.query else path
    )


def refusal(address: IPAddress, rules: Rules) -> str:
    """Return the reason against a connection to an address, or "" if it is permitted."""
    candidates = [address, *_embedded(address)]
    if any(_in(candidate, rules.allow) for candidate in candidates):
        return ""
    for candidate in candidates:
        if _in(candidate, rules.deny):
            return "denied by configuration"
        if _in(candidate, _NEVER):
            return "not a host of the internet"
        if candidate.is_loopback or candidate.is_unspecified:
            return "loopback"
        if candidate.is_link_local:
            return "link-local"
        if candidate.is_multicast or (candidate.is_reserved and candidate not in _NAT64):
            return "multicast or reserved"
        if not candidate.is_global and candidate not in _NAT64:
            return "private"
    return ""


def _embedded(address: IPAddress) -> list[IPAddress]:
    """Return the IPv4 address that an IPv6 address embeds."""
    if not isinstance(address, ipaddress.IPv6Address):
        return []
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _NAT64 or int(address) >> 32 == 0:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    return []


def _in(address: IPAddress, networks: Iterable[IPNetwork]) -> bool:
    return any(address.version == net.version and address in net for net in networks)


class Outbound:
    """A client that fetches within the rules, without persistent connections."""

    def __init__(
        self,
        rules: Rules | None = None,
        *,
        resolver: Resolver | None = None,
        timeout: float = 10.0,
        max_bytes: int = 1_048_576,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """``timeout`` is the time for a whole fetch in seconds, ``max_bytes`` limits the body."""
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
        """Return the response of ``url`` with any status except a redirect.

        Raises OutboundRefusedError for a forbidden URL and for a redirect, and OutboundError for a
        response that is missing, late, too large or malformed.
        """
        target = parse(url, self._rules.schemes)
        try:
            async with asyncio.timeout(self._timeout):
                addresses = await self._resolve(target)
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

    async def _resolve(self, target: OutboundTarget) -> list[IPAddress]:
        """Return the addresses of the target; raise unless all are permitted."""
        with contextlib.suppress(ValueError):
            literal = ipaddress.ip_address(target.host)
            self._check(target, literal)
            return [literal]
        try:
            addresses = list(await self._resolver.resolve(target.host, target.port))
        except (OSError, UnicodeError) as error:
            raise OutboundError(f"{target.host}: has no address") from error
        if not addresses:
            raise OutboundError(f"{target.host}: has no address")
        for address in addresses:
            self._check(target, address)
        return addresses[:MAX_TRIES]

    def _check(self, target: OutboundTarget, address: IPAddress) -> None:
        if reason := refusal(address, self._rules):
            # Without the address, which would reveal internal names to the author of the URL.
            raise OutboundRefusedError(
                "address", f"{target.host}: its address is {reason}; an administrator may allow it"
            )

    async def _connect(
        self, target: OutboundTarget, addresses: Sequence[IPAddress]
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
        target: OutboundTarget,
        method: str,
        headers: Mapping[str, str],
        body: bytes,
    ) -> Response:
        import h11

        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        writer.write(self._encode_request(connection, target, method, headers, body))
        await writer.drain()
        return await self._read_response(reader, connection, target)

    def _encode_request(
        self,
        connection: Any,
        target: OutboundTarget,
        method: str,
        headers: Mapping[str, str],
        body: bytes,
    ) -> bytes:
        import h11

        fixed = {
            "host": target.authority,
            "user-agent": "engineroom",
            # A compressed body would defeat the limit on size.
            "accept-encoding": "identity",
            "connection": "close",
            "content-length": str(len(body)),
        }
        own = {name.lower(): value for name, value in headers.items()}
        try:
            request = h11.Request(
                method=method, target=target.path, headers=list({**own, **fixed}.items())
            )
            data: bytes = connection.send(request) or b""
            if body:
                data += connection.send(h11.Data(data=body)) or b""
            return data + (connection.send(h11.EndOfMessage()) or b"")
        except h11.LocalProtocolError as error:
            raise OutboundRefusedError(
                "request", "request: its method or a header is not valid HTTP"
            ) from error

    async def _read_response(
        self, reader: asyncio.StreamReader, connection: Any, target: OutboundTarget
    ) -> Response:
        import h11

        head: h11.Response | None = None
        received = bytearray()
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                raise OutboundError(f"{target.host}: the response is not HTTP") from error
            if event is h11.NEED_DATA:
                # Small reads until the head is complete: h11 limits only the unparsed rest.
                connection.receive_data(await reader.read(65_536 if head else 4_096))
            elif isinstance(event, h11.Response):
                head = event
                names = {name.decode(): value.decode("latin-1") for name, value in event.headers}
                if names.get("content-encoding", "identity") != "identity":
                    raise OutboundError(f"{target.host}: the response is compressed")
            elif isinstance(event, h11.Data):
                received += event.data
                if len(received) > self._max_bytes:
                    raise OutboundError(
                        f"{target.host}: the response has more than {self._max_bytes} bytes"
                    )
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return Response(head.status_code, names, bytes(received))
            elif not isinstance(event, h11.InformationalResponse):
                raise OutboundError(f"{target.host}: the connection ended before the response")
