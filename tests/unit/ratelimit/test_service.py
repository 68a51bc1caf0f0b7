"""The parts of the decision service that need neither sockets nor Redis."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engineroom.core.recovery import Circuit
from engineroom.ratelimit.limits.decision import Decision, DecisionReason, DecisionSource
from engineroom.ratelimit.limits.model import Limit, Policy, Rate
from engineroom.ratelimit.limits.request import RequestView
from engineroom.ratelimit.limits.sources import ClientIP
from engineroom.ratelimit.service import responses, rls
from engineroom.ratelimit.service.admin import merge_metrics
from engineroom.ratelimit.service.engine import DecisionResult, EnforcedPolicy, MissingPolicy
from engineroom.ratelimit.service.http import MAX_PIPELINED, HttpConnection, HttpService
from engineroom.ratelimit.service.metrics import Exposition, ServiceCounts
from engineroom.ratelimit.service.request_parsing import (
    DecisionRequest,
    ProxyProtocol,
    UnreadableRequestError,
    parse_descriptor,
    parse_json,
    parse_proxy_request,
)
from engineroom.ratelimit.service.top import SpaceSaving
from tests.limiter import budget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@given(st.lists(st.integers(0, 60).map(str), max_size=400), st.integers(1, 20))
def test_space_saving_keeps_its_promises(stream: list[str], capacity: int) -> None:
    sketch = SpaceSaving(capacity)
    for key in stream:
        sketch.add(key)
    true = Counter(stream)
    actual = {entry.key: entry for entry in sketch.top(capacity)}
    assert len(actual) <= capacity
    for key, counted in actual.items():
        assert counted.times - counted.error <= true[key] <= counted.times
    for key, count in true.items():
        if count > len(stream) / capacity:
            assert key in actual
    assert sketch.total == len(stream)


LIMITS = st.sampled_from([Rate(5, 1), Rate(7, 60), Rate(3, 3600), Rate(2, 86400), Rate(9, 2.5)])


@settings(max_examples=200)
@given(
    rate=LIMITS,
    remaining=st.integers(0, 2**33),
    reset=st.floats(0, 40_000_000, allow_nan=False),
    name=st.from_regex(r"[a-z]{1,60}(/[a-z]{1,60})?", fullmatch=True),
)
def test_the_short_way_of_encoding_writes_what_protobuf_writes(
    rate: Rate, remaining: int, reset: float, name: str
) -> None:
    policy = Policy("shop/api", (Limit(name, rate),))
    enforced = EnforcedPolicy.of(policy, cast("Any", None))
    decision = Decision(
        True,
        DecisionReason.ADMITTED,
        policy.name,
        name,
        5,
        remaining,
        0.0,
        reset,
        DecisionSource.REDIS,
    )
    rated = rls.RateLimitResult((DecisionResult(decision, enforced),))
    assert rls.RateLimitResponse.FromString(rated.encoded()) == rated.message()


def test_the_client_is_the_last_address_and_never_what_it_says_of_itself() -> None:
    def peer(forwarded: str | None) -> RequestView:
        headers = {} if forwarded is None else {"x-forwarded-for": forwarded}
        return parse_proxy_request(
            ProxyProtocol.FORWARD, "shop", "api", "", "", "GET", headers
        ).view

    assert peer("203.0.113.1, 192.0.2.7").peer == "192.0.2.7"
    assert peer("203.0.113.1, 192.0.2.7").headers["x-forwarded-for"] == "203.0.113.1"
    for nothing in (None, "", ",", "nonsense", "203.0.113.1,"):
        assert ClientIP()(peer(nothing)) is None


def asked(query: str, **headers: str) -> DecisionRequest:
    reported = {name.replace("_", "-"): value for name, value in headers.items()}
    return parse_proxy_request(ProxyProtocol.FORWARD, "shop", "api", "", query, "GET", reported)


def test_a_proxy_says_whose_request_it_is_in_its_address_or_in_headers_that_it_names() -> None:
    text = asked("tenant=acme&route=items&claim.sub=me&cost=5")
    assert (text.view.tenant, text.view.route, text.cost) == ("acme", "items", 5)
    assert text.view.claims == {"sub": "me"}
    named = asked(
        "header.tenant=X-Tenant&header.route=X-Route&header.claim.sub=X-Sub",
        x_tenant="acme", x_sub="me&cost=0", tenant="forged",
    )  # fmt: skip
    assert (named.view.tenant, named.view.route, named.cost) == ("acme", None, 1)
    assert named.view.claims == {"sub": "me&cost=0"}
    nobody = asked("tenant=&claim.sub=", x_engineroom_tenant="forged")
    assert (nobody.view.tenant, nobody.view.claims) == (None, {})


@pytest.mark.parametrize(
    "query",
    ["cost=0", "cost=5&cost=1", "tenant=a&tenant=b", "tenant=&tenant=b",
     "claim.sub=a&claim.sub=b",
     "tenant=a&header.tenant=X-B", "header.tenant=X-A&tenant=b", "other=x", "header.cost=X-Cost",
     "header.header.tenant=x", "&".join(f"claim.c{n}=x" for n in range(33)),
     "tenant=" + "x" * 9000],
)  # fmt: skip
def test_parameters_that_are_repeated_unknown_free_or_too_many_are_refused(query: str) -> None:
    with pytest.raises(UnreadableRequestError):
        asked(query, x_b="b")


@given(st.binary(max_size=200))
def test_no_message_makes_it_raise_anything_else(data: bytes) -> None:
    with contextlib.suppress(UnreadableRequestError):
        rls.parse_message(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["namespace", "policy", "cost", "request", "headers", "peer", "domain", "descriptors",
             "entries", "key", "value", "hitsAddend"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(JSON)
def test_no_document_makes_it_raise_anything_else(document: object) -> None:
    for read in (parse_json, rls.parse_json):
        with contextlib.suppress(UnreadableRequestError):
            read(document)


def test_entries_are_parts_of_the_request_and_else_headers() -> None:
    entries = [
        ("remote_address", "192.0.2.1"), (":path", "/items?page=2"), ("method", "POST"),
        ("X-Api-Key", "k"), ("tenant", "acme"), ("claim.sub", "u1"),
    ]  # fmt: skip
    question = parse_descriptor("shop/HTTPRoute:checkout", entries, 3)
    view = question.view
    assert (question.namespace, question.name, question.cost) == ("shop", "HTTPRoute:checkout", 3)
    assert (view.peer, view.path, view.query, view.method) == (
        "192.0.2.1", "/items", "page=2", "POST",
    )  # fmt: skip
    assert view.headers == {"x-api-key": "k"}
    assert (view.tenant, dict(view.claims)) == ("acme", {"sub": "u1"})
    with pytest.raises(UnreadableRequestError, match="domain"):
        parse_descriptor("shop", entries, 1)


def test_metrics_of_several_processes_are_added() -> None:
    texts = []
    for number in (2, 3):
        counts = ServiceCounts()
        for _ in range(number):
            counts.record_response("nginx", 200)
            counts.record_decision(
                Decision(
                    True,
                    DecisionReason.ADMITTED,
                    "shop/api",
                    "a",
                    1,
                    0,
                    0.0,
                    0.0,
                    DecisionSource.REDIS,
                ),
                0.01,
            )
        texts.append(Exposition(counts).text())
    lines = merge_metrics(texts).decode().splitlines()
    assert 'engineroom_ratelimit_requests_total{form="nginx",status="200"} 5.0' in lines
    assert 'engineroom_ratelimit_decision_seconds_bucket{le="+Inf"} 5.0' in lines
    assert 'engineroom_ratelimit_decision_seconds_bucket{le="0.0001"} 0.0' in lines


def test_what_redis_did_not_decide_is_an_error_and_the_worst_breaker_is_told() -> None:
    counts = ServiceCounts()
    for reason, source in (
        (DecisionReason.ADMITTED, DecisionSource.REDIS),
        (DecisionReason.FAILED_OPEN, DecisionSource.POLICY),
        (DecisionReason.ADMITTED, DecisionSource.LOCAL),
    ):
        counts.record_decision(
            Decision(True, reason, "shop/api", "a", 1, 0, 0.0, 0.0, source), 0.01
        )
    breaker = Circuit(failures=1, pause=5.0)

    def told() -> list[str]:
        lines = Exposition(counts).text().decode().splitlines()
        return [line for line in lines if line.startswith("engineroom_breaker") and "1.0" in line]

    code = 'code="rate_limiter_unavailable"'
    errors = f'engineroom_errors_total{{category="dependency",{code}}} 2.0'
    assert errors in Exposition(counts).text().decode()
    counts.read_breakers(lambda: ["closed", breaker.state])
    for do, state in (
        (lambda: None, "closed"),
        (lambda: breaker.record_failure(0.0), "open"),
        (lambda: breaker.admits(6.0), "half_open"),
        (breaker.record_success, "closed"),
    ):
        do()
        assert told() == [f'engineroom_breaker_state{{name="redis",state="{state}"}} 1.0']


@given(
    wait=st.floats(0.001, 5000, allow_nan=False), remaining=st.integers(0, 3),
    form=st.sampled_from(ProxyProtocol),
)  # fmt: skip
def test_a_remembered_refusal_says_what_a_new_one_says(
    wait: float, remaining: int, form: ProxyProtocol
) -> None:
    policy = Policy("shop/api", (Limit("all", Rate(5, 60)),))
    enforced = EnforcedPolicy.of(policy, cast("Any", None))
    needed = math.ceil(wait)
    for later in (0.0, 0.0, -wait / 2):
        decision = Decision(
            False,
            DecisionReason.LIMITED,
            "shop/api",
            "all",
            5,
            remaining,
            wait + later,
            wait,
            DecisionSource.REDIS,
        )
        status, answer = responses.to_proxy(form, DecisionResult(decision, enforced))
        head, _, body = answer.decode().partition("\r\n\r\n")
        first, *lines = head.split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        now = math.ceil(wait + later)
        assert int(first.split(" ")[1]) == status == (403 if form is ProxyProtocol.NGINX else 429)
        assert headers["RateLimit"] == f'"all";r={remaining};t={now}'
        assert now <= int(headers["Retry-After"]) <= now + max(1, math.ceil(now * 0.1))
        assert int(headers["Content-Length"]) == len(body)
        assert needed >= now


def test_what_is_made_without_names_is_what_names_would_make() -> None:
    decision = Decision(
        False, DecisionReason.LIMITED, "shop/api", "all", 5, 0, 9.0, 9.0, DecisionSource.REDIS
    )
    reported = decision.repeated(4.5, DecisionSource.DENY_CACHE)
    assert reported == decision._replace(retry_after=4.5, source=DecisionSource.DENY_CACHE)
    headers = {"x-forwarded-for": "192.0.2.7", "x-forwarded-uri": "/a?b=c"}
    question = parse_proxy_request(ProxyProtocol.FORWARD, "shop", "api", "", "", "GET", headers)
    view = RequestView(method="GET", path="/a", query="b=c", headers=headers, peer="192.0.2.7")
    assert question == DecisionRequest(namespace="shop", name="api", view=view)


class Wire:
    """The other end of a connection: keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.reading = True
        self.closed = False

    def get_extra_info(self, name: str) -> tuple[str, int]:
        """Return the peer's address."""
        assert name == "peername"
        return "192.0.2.1", 1000

    def set_write_buffer_limits(self, high: int) -> None:
        """Change nothing."""
        assert high

    def write(self, data: bytes) -> None:
        """Keep it."""
        assert not self.closed
        self.written += data

    def close(self) -> None:
        """Closed."""
        self.closed = True

    abort = close

    def write_eof(self) -> None:
        """Nothing more is written."""
        assert not self.closed

    def is_closing(self) -> bool:
        """Whether it was."""
        return self.closed

    def pause_reading(self) -> None:
        """No more requests."""
        self.reading = False

    def resume_reading(self) -> None:
        """More of them."""
        self.reading = True


class Asked:
    """An engine that answers when it is told to, or at once."""

    def __init__(self, known: Iterator[bool]) -> None:
        self.waiting: list[Callable[[], None]] = []
        self._known = known

    def decide(
        self, _: object, done: Callable[..., None], *context: object
    ) -> DecisionResult | None:
        """As Engine's."""
        verdict = DecisionResult(None, missing=MissingPolicy.UNATTACHED)
        if next(self._known):
            return verdict
        self.waiting.append(lambda: done(verdict, *context))
        return None


def connected(known: Iterator[bool]) -> tuple[HttpConnection, Asked, Wire]:
    engine, wire = Asked(known), Wire()
    connection = HttpConnection(HttpService(cast("Any", engine), ServiceCounts(), budget()))
    connection.connection_made(cast("Any", wire))
    return connection, engine, wire


FOUND, NOWHERE = "/v1/forward/shop/api", "/nowhere"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["GET", "HEAD"]), st.sampled_from([FOUND, NOWHERE]), st.booleans()
        ),
        min_size=1,
        max_size=12,
    ),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_answers_go_in_the_order_of_the_requests(
    requests: list[tuple[str, str, bool]], random: Any, last: bool
) -> None:
    async def run() -> None:
        connection, engine, wire = connected(
            current for _, path, current in requests if path == FOUND
        )
        query = [f"{method} {path} HTTP/1.1\r\n" for method, path, _ in requests]
        if last:
            query[-1] += "Connection: close\r\n"
        connection.data_received("".join(f"{entry}\r\n" for entry in query).encode())
        random.shuffle(engine.waiting)
        for answer in engine.waiting:
            answer()
        reported = wire.written.decode().split("HTTP/1.1 ")[1:]
        actual = [(entry[:3], entry.partition("\r\n\r\n")[2] != "") for entry in reported]
        assert actual == [
            ("200", False) if path == FOUND else ("404", method == "GET")
            for method, path, _ in requests
        ]
        closing = [number for number, entry in enumerate(reported) if "Connection: close" in entry]
        assert closing == ([len(requests) - 1] if last else [])
        assert wire.closed == last

    asyncio.run(run())


def test_a_connection_that_was_aborted_is_told_nothing() -> None:
    async def run() -> None:
        connection, engine, wire = connected(iter([False, False]))
        connection.data_received(b"GET /v1/forward/shop/api HTTP/1.1\r\n\r\n" * 2)
        connection.data_received(b"nonsense\r\n\r\n")
        connection.abort()
        for answer in reversed(engine.waiting):
            answer()
        assert not wire.written

    asyncio.run(run())


def test_a_connection_with_too_many_requests_under_way_is_read_no_further() -> None:
    async def run() -> None:
        connection, engine, wire = connected(iter([False] * 200))
        request = b"GET /v1/forward/shop/api HTTP/1.1\r\n\r\n"
        connection.data_received(request * MAX_PIPELINED)
        assert wire.reading
        connection.data_received(request)
        assert not wire.reading
        for answer in engine.waiting[: MAX_PIPELINED // 2]:
            answer()
        assert not wire.reading
        engine.waiting[MAX_PIPELINED // 2]()
        await asyncio.sleep(0)
        assert wire.reading

    asyncio.run(run())
