"""The SSRF corpus, against the guarded fetch and a real server on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
from typing import TYPE_CHECKING

import pytest

from engineroom.auth.errors import KeyStoreError, OutboundError, OutboundRefusedError, TokenError
from engineroom.auth.outbound import IPAddress, Outbound, Rules, parse, refusal
from engineroom.auth.tokens.issuers import ExternalIssuer, KeyCacheTimes, read_jwks
from engineroom.auth.tokens.signing_keys import Algorithm, SigningKey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from engineroom.core.clock import FakeClock

LOOPBACK = Rules.of(allow=["127.0.0.1/32"], schemes=["http", "https"])


class Names:
    """A resolver that answers what it is told, the next answer each time; counts."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def resolve(self, host: str, port: int) -> Sequence[IPAddress]:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [ipaddress.ip_address(address) for address in answer]


class Server:
    """Answers every connection with the same bytes; keeps what it was sent."""

    def __init__(self, answer: bytes, *, pause: float = 0.0) -> None:
        self.answer = answer
        self.pause = pause
        self.requests: list[bytes] = []
        self.port = 0
        self.tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Server]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            await self._answer(reader, writer)
        finally:
            writer.transport.abort() if self.pause else writer.close()
            await asyncio.sleep(0)
            self.tasks.discard(task)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            await asyncio.sleep(self.pause)
            writer.write(self.answer)
            await writer.drain()

    def url(self, host: str = "127.0.0.1", path: str = "/") -> str:
        return f"http://{host}:{self.port}{path}"


def ok(body: bytes, extra: bytes = b"") -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%s\r\n" % (len(body), extra)
    return head + body


async def refused(url: str, outbound: Outbound | None = None) -> str:
    with pytest.raises(OutboundRefusedError) as caught:
        await (outbound or Outbound(Rules.of(schemes=["http", "https"]))).fetch(url)
    return caught.value.reason


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255",
        "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192",
        "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "168.63.129.16",
        "192.88.99.1",
        "[::1]", "[::]", "[fe80::1]", "[fc00::1]", "[fd00:ec2::254]", "[ff02::1]", "[fec0::1]",
        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:169.254.169.254]", "[::127.0.0.1]",
        "[::ffff:0:127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b:1::1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]", "[2001:db8::1]",
        "[0:0:0:0:0:0:0:1]", "[0000:0000::0001]", "[100::1]",
    ],
)  # fmt: skip
async def test_addresses_within_are_refused(host: str) -> None:
    assert await refused(f"http://{host}/") == "address"
    assert await refused(f"https://{host}:8443/a?b") == "address"


@pytest.mark.parametrize(
    "host",
    ["2130706433", "017700000001", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "127.1", "127.0.1",
     "0", "0x", "1", "127.0.0.01", "0x7f.1", "127.0.0.1.", "256.256.256.256", "1.2.3.4.5",
     "localhost.0x1", "127.0.0.0x1", "00000177.0.0.1", "4294967297"],
)  # fmt: skip
async def test_addresses_in_disguise_are_refused_unresolved(host: str) -> None:
    names = Names(["93.184.216.34"])
    outbound = Outbound(Rules.of(schemes=["http"]), resolver=names)
    assert await refused(f"http://{host}/", outbound) == "disguised_address"
    assert names.asked == 0


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "scheme"), ("gopher://example.test/", "scheme"),
        ("ftp://example.test/", "scheme"), ("//example.test/", "scheme"), ("", "scheme"),
        ("javascript:alert(1)", "scheme"), ("http:example.test", "host"),
        ("http://", "host"), ("http:///path", "host"), ("http://:80/", "host"),
        ("http://user@example.test/", "credentials"), ("http://a:b@example.test/", "credentials"),
        ("http://example.test@127.0.0.1/", "credentials"),
        ("http://127.0.0.1\\@example.test/", "characters"),
        ("http://example.test\\.evil.test/", "characters"),
        ("http://example.test/\r\nX: y", "characters"), ("http://exa mple.test/", "characters"),
        ("http://example.test/\x00", "characters"), ("http://ex\tample.test/", "characters"),
        ("http://①②⑦.0.0.1/", "characters"), ("http://ⓔxample.test/", "characters"),
        ("http://127。0。0。1/", "characters"),
        ("http://example.test:99999/", "malformed"), ("http://example.test:0/", "host"),
        ("http://example.test:port/", "malformed"), ("http://[::1/", "malformed"),
        ("http://[fe80::1%25eth0]/", "host"), ("http://%31%32%37.0.0.1/", "host"),
        ("http://-example.test/", "host"), ("http://exa_mple..test/", "host"),
        ("http://" + "a." * 127 + "test/", "host"), ("http://a/" + "x" * 2048, "too_long"),
    ],
)  # fmt: skip
async def test_urls_that_could_be_read_in_two_ways_are_refused(url: str, reason: str) -> None:
    # Where the standard library itself gives up, that is as good.
    assert await refused(url) in {reason, "malformed"}


async def test_https_is_asked_for_by_default() -> None:
    assert await refused("http://example.test/", Outbound()) == "scheme"


async def test_a_name_is_resolved_once_and_connected_to_where_it_was_judged() -> None:
    """DNS rebinding: public when judged, loopback when connected to. There is no second time."""
    names = Names(["192.0.2.1"], ["127.0.0.1"])
    async with Server(ok(b"inside")).listening() as server:
        rules = Rules.of(allow=["192.0.2.0/24"], schemes=["http"])
        outbound = Outbound(rules, resolver=names, timeout=0.3)
        with pytest.raises(OutboundError):
            await outbound.fetch(server.url("rebind.test"))
        assert names.asked == 1
        assert server.requests == []
        assert await refused(server.url("rebind.test"), outbound) == "address"


async def test_one_bad_address_among_good_ones_is_enough() -> None:
    for answer in (["93.184.216.34", "127.0.0.1"], ["::1", "93.184.216.34"]):
        outbound = Outbound(Rules.of(schemes=["http"]), resolver=Names(answer))
        assert await refused("http://mixed.test/", outbound) == "address"


async def test_localhost_by_name_is_refused_by_the_systems_own_resolver() -> None:
    assert await refused("http://localhost/") == "address"


async def test_what_is_allowed_is_fetched_with_its_name() -> None:
    async with Server(ok(b"hello", b"X-A: 1\r\n")).listening() as server:
        outbound = Outbound(LOOPBACK, resolver=Names(["127.0.0.1"]))
        response = await outbound.fetch(
            server.url("hook.test", "/a?b=c"), method="POST", headers={"x-b": "2"}, body=b"data"
        )
        assert (response.status, response.body) == (200, b"hello")
        assert response.headers["x-a"] == "1"
        (request,) = server.requests
        assert request.startswith(b"POST /a?b=c HTTP/1.1\r\n")
        assert f"host: hook.test:{server.port}".encode() in request.lower()


async def test_headers_cannot_be_split_nor_replaced() -> None:
    async with Server(ok(b"")).listening() as server:
        outbound = Outbound(LOOPBACK)
        for headers in ({"x": "a\r\nY: b"}, {"x\r\ny": "a"}, {"x": "a\nb"}, {"x": "\0"}):
            with pytest.raises(OutboundRefusedError):
                await outbound.fetch(server.url(), headers=headers)
        with pytest.raises(OutboundRefusedError):
            await outbound.fetch(server.url(), method="GET / HTTP/1.1\r\nX: y\r\n\r\nGET")
        await outbound.fetch(server.url(), headers={"Host": "evil.test", "Content-Length": "9"})
        assert b"evil" not in b"".join(server.requests)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(status: int) -> None:
    answer = b"HTTP/1.1 %d X\r\nlocation: /inside\r\ncontent-length: 0\r\n\r\n" % status
    async with Server(answer).listening() as server:
        assert await refused(server.url(), Outbound(LOOPBACK)) == "redirect"
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        ok(b"x" * 2000),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"400\r\n" + b"x" * 1024
        + b"\r\n400\r\n" + b"x" * 1024 + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000,
        b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 40_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 10_000 + b"\r\n",
        ok(b"x", b"content-encoding: gzip\r\n"),
        b"SSH-2.0-OpenSSH\r\n", b"", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
    ],
)  # fmt: skip
async def test_answers_are_bounded_and_well_formed(answer: bytes) -> None:
    async with Server(answer).listening() as server:
        with pytest.raises(OutboundError):
            await Outbound(LOOPBACK, max_bytes=1000).fetch(server.url())


async def test_time_is_bounded() -> None:
    async with Server(ok(b""), pause=5).listening() as server:
        with pytest.raises(OutboundError, match=r"within 0.2 s"):
            await Outbound(LOOPBACK, timeout=0.2).fetch(server.url())


async def test_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://192.0.2.1:1")
    async with Server(ok(b"direct")).listening() as server:
        assert (await Outbound(LOOPBACK).fetch(server.url())).body == b"direct"


def test_a_public_range_of_the_cluster_can_be_denied() -> None:
    address = ipaddress.ip_address("93.184.216.34")
    assert refusal(address, Rules()) == ""
    assert refusal(address, Rules.of(deny=["93.184.0.0/16"])) == "denied by configuration"
    mapped = ipaddress.ip_address("64:ff9b::5db8:d822")
    assert refusal(mapped, Rules()) == ""
    assert refusal(mapped, Rules.of(deny=["93.184.0.0/16"])) == "denied by configuration"


def test_what_is_refused_says_nothing_of_the_inside() -> None:
    assert parse("https://[2606:4700::1111]:8443/", frozenset({"https"})).authority == (
        "[2606:4700::1111]:8443"
    )
    with pytest.raises(ValueError, match="use http or https"):
        Rules.of(schemes=["gopher"])


# ---- issuers that are not ourselves ---------------------------------------------------------


class Provider:
    """An issuer whose JWKS is served on loopback; ``away`` makes it fail."""

    def __init__(self, clock: FakeClock, algorithm: Algorithm = Algorithm.RS256) -> None:
        self.clock = clock
        self.key = SigningKey.generate(algorithm, clock.now())
        self.server = Server(b"")
        self.publish(self.key)

    def publish(self, *keys: SigningKey) -> None:
        document = {"keys": [key.verifying.jwk() for key in keys]}
        self.server.answer = ok(json.dumps(document).encode())

    def issuer(self, **more: object) -> ExternalIssuer:
        return ExternalIssuer(
            Outbound(LOOPBACK), self.clock, issuer="https://id.test", audience="console",
            jwks_url=self.server.url(path="/jwks"), caching=KeyCacheTimes(), **more,  # type: ignore
        )  # fmt: skip

    def token(self, key: SigningKey | None = None, **changed: object) -> str:
        from jwt import PyJWS

        now = self.clock.now().timestamp()
        claims = {
            "iss": "https://id.test", "aud": "console", "sub": "ada", "iat": now,
            "exp": now + 86_400, **changed,
        }  # fmt: skip
        key = key or self.key
        return PyJWS().encode(
            json.dumps(claims).encode(), key.private, key.algorithm.value, {"kid": key.kid}
        )


async def test_an_issuers_keys_are_fetched_once_and_again_for_a_new_key(clock: FakeClock) -> None:
    provider = Provider(clock)
    async with provider.server.listening():
        issuer = provider.issuer()
        await asyncio.gather(*(issuer.verify(provider.token()) for _ in range(20)))
        assert len(provider.server.requests) == 1
        new = SigningKey.generate(Algorithm.ES256, clock.now())
        provider.publish(provider.key, new)
        clock.advance(11)
        assert (await issuer.verify(provider.token(new))).subject == "ada"
        assert len(provider.server.requests) == 2
        for _ in range(50):
            stranger = SigningKey.generate(Algorithm.EDDSA, clock.now())
            with pytest.raises(TokenError):
                await issuer.verify(provider.token(stranger))
        assert len(provider.server.requests) == 2


async def test_an_issuer_that_is_away_is_believed_for_a_bounded_time(clock: FakeClock) -> None:
    provider = Provider(clock)
    async with provider.server.listening():
        issuer = provider.issuer()
        await issuer.verify(provider.token())
        provider.server.answer = b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"
        clock.advance(3599)
        await issuer.verify(provider.token())
        clock.advance(1)
        with pytest.raises(OutboundError):
            await issuer.verify(provider.token())
        provider.publish(provider.key)
        clock.advance(11)
        await issuer.verify(provider.token())


async def test_a_withdrawn_key_is_over_when_the_cache_is(clock: FakeClock) -> None:
    provider = Provider(clock)
    async with provider.server.listening():
        issuer = provider.issuer()
        await issuer.verify(provider.token())
        provider.publish(SigningKey.generate(Algorithm.RS256, clock.now()))
        clock.advance(300)
        with pytest.raises(TokenError):
            await issuer.verify(provider.token())


async def test_an_issuers_tokens_are_checked_like_ours(clock: FakeClock) -> None:
    provider = Provider(clock)
    async with provider.server.listening():
        issuer = provider.issuer(algorithms=[Algorithm.RS256])
        for changed in (
            {"iss": "https://evil.test"}, {"aud": "other"}, {"exp": 1}, {"aud": ["console", "b"]},
        ):  # fmt: skip
            with pytest.raises(TokenError):
                await issuer.verify(provider.token(**changed))
        other = SigningKey.generate(Algorithm.ES256, clock.now())
        provider.publish(provider.key, other)
        clock.advance(301)
        with pytest.raises(TokenError):
            await issuer.verify(provider.token(other))


def test_a_jwks_is_read_with_care(clock: FakeClock) -> None:
    every = frozenset(Algorithm)
    key = SigningKey.generate(Algorithm.RS256, clock.now()).verifying.jwk()
    unusable = [
        {"kty": "oct", "kid": "a", "k": "AAAA"}, {**key, "kid": "b", "use": "enc"},
        {**key, "kid": "c", "alg": "RS512"}, {**key, "kid": "d", "alg": "HS256"},
        {**key, "kid": None}, {"kty": "RSA", "kid": "e", "n": "AQAB", "e": "AQAB"},
        {"kty": "EC", "crv": "P-256", "kid": "f", "x": "AA", "y": "AA"}, 7, None, [],
    ]  # fmt: skip
    document = json.dumps({"keys": [*unusable, key]}).encode()
    assert set(read_jwks(document, every)) == {key["kid"]}
    for broken in (b"", b"[]", b"{}", b'{"keys": {}}', b"[" * 100_000):
        with pytest.raises(KeyStoreError):
            read_jwks(broken, every)
    with pytest.raises(KeyStoreError, match="same id"):
        read_jwks(json.dumps({"keys": [key, key]}).encode(), every)
    with pytest.raises(KeyStoreError, match="at most"):
        read_jwks(json.dumps({"keys": [key] * 51}).encode(), every)
