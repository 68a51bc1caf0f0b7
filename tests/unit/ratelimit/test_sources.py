"""What a request counts by, also when somebody lies about it."""

from __future__ import annotations

import pytest

from engineroom.ratelimit.limits.errors import InvalidPolicyError
from engineroom.ratelimit.limits.model import Limit, Policy, Rate
from engineroom.ratelimit.limits.request import RequestView
from engineroom.ratelimit.limits.sources import (
    MAX_VALUE,
    ClientIP,
    Constant,
    Cookie,
    Header,
    Method,
    Path,
    Query,
    subject_of,
)


def test_each_source_reads_its_part() -> None:
    request = RequestView(
        "post", "/a/b", "x=1&user=me&user=you", {"x-user": "me", "cookie": "a=b; sid=s1"}, "9.9.9.9"
    )
    assert Header("X-User")(request) == "me"
    assert Query("user")(request) == "me"
    assert Cookie("sid")(request) == "s1"
    assert ClientIP()(request) == "9.9.9.9"
    assert Method()(request) == "POST"
    assert Path()(request) == "/a/b"
    assert Constant("all")(request) == "all"


def test_what_is_not_there_is_none() -> None:
    request = RequestView(headers={"x-empty": ""})
    sources = (Header("x-user"), Header("x-empty"), Query("user"), Cookie("sid"), ClientIP())
    assert [source(request) for source in sources] == [None] * 5


@pytest.mark.parametrize(
    ("hops", "forwarded", "expected"),
    [
        # Nobody in front is trusted: what the header says counts for nothing.
        (0, "1.1.1.1", "9.9.9.9"),
        (1, "1.1.1.1", "1.1.1.1"),
        # A client that forged entries only moved them to the left.
        (1, "6.6.6.6, 7.7.7.7, 1.1.1.1", "1.1.1.1"),
        (2, "6.6.6.6, 1.1.1.1, 2.2.2.2", "1.1.1.1"),
        # Fewer entries than proxies: it came past them.
        (2, "6.6.6.6", "9.9.9.9"),
        (1, "", "9.9.9.9"),
        (1, "6.6.6.6," * 100_000 + "1.1.1.1", "1.1.1.1"),
        (1, "1.1.1.1:4711", "1.1.1.1"),
        (1, "[2001:db8:1:2:3::4]:80", "2001:db8:1:2::/64"),
        (1, "::ffff:1.1.1.1", "1.1.1.1"),
        (1, "unknown", None),
        (1, "1.1.1.999", None),
    ],
)
def test_the_client_address_cannot_be_forged(
    hops: int, forwarded: str, expected: str | None
) -> None:
    request = RequestView(
        headers={"x-forwarded-for": forwarded}, peer="9.9.9.9", trusted_proxy_hops=hops
    )
    assert ClientIP()(request) == expected


def test_one_network_of_ipv6_is_one_client() -> None:
    def key(address: str, prefix: int = 64) -> str | None:
        return ClientIP(prefix)(RequestView(peer=address))

    assert key("2001:db8::1") == key("2001:db8::ffff:1")
    assert key("2001:db8::1") != key("2001:db8:0:1::1")
    assert key("2001:db8::1", 128) != key("2001:db8::2", 128)


def test_parts_of_a_key_do_not_run_into_each_other() -> None:
    policy = Policy("p", (Limit("a", Rate(1, 1), key=(Header("a"), Header("b"))),))
    subjects = {
        subject_of(policy, RequestView(headers={"a": a, "b": b}))["a"]
        for a, b in (("1", "23"), ("12", "3"), ("1:2", "3"), ("1", ":23"))
    }
    assert len(subjects) == 4
    assert subject_of(policy, RequestView(headers={"a": "1"})) == {"a": None}


def test_a_limit_without_key_counts_all_requests_together() -> None:
    policy = Policy("p", (Limit("a", Rate(1, 1)),))
    assert subject_of(policy, RequestView()) == {"a": ""}


def test_huge_values_are_cut_and_share_a_key() -> None:
    policy = Policy("p", (Limit("a", Rate(1, 1), key=(Header("k"),)),))
    first, second = (
        subject_of(policy, RequestView(headers={"k": "x" * 1_000_000 + end}))["a"] for end in "ab"
    )
    assert first == second
    assert first is not None
    assert len(first) < MAX_VALUE + 10


def test_what_is_too_much_to_parse_counts_as_missing() -> None:
    assert Query("a")(RequestView(query="a=1&" * 300)) is None
    assert Query("a")(RequestView(query="a=" + "x" * 20_000)) is None
    assert Cookie("a")(RequestView(headers={"cookie": "a=" + "x" * 20_000})) is None
    assert Query("a")(RequestView(query="a=%ff%fe")) is not None


def test_sources_that_name_nothing_are_refused() -> None:
    for make in (lambda: Header(""), lambda: Cookie("x" * 300), lambda: ClientIP(0)):
        with pytest.raises(InvalidPolicyError, match="write"):
            make()
