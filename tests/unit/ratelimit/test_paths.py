"""A path has one form however it is spelt, and no spelling leads around a limit."""

from __future__ import annotations

import posixpath
import re
import time
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engineroom.cli.connections.policies import simulated_request
from engineroom.ratelimit.limits.matching import Condition, Operator
from engineroom.ratelimit.limits.middleware import _asgi_view, _wsgi_view
from engineroom.ratelimit.limits.model import Limit, Policy, Rate, Tier
from engineroom.ratelimit.limits.paths import normalized
from engineroom.ratelimit.limits.request import UNKNOWN_CALLER, RequestView
from engineroom.ratelimit.limits.sources import NOT_APPLIED, Path, Query, subject_of, values_reader
from engineroom.ratelimit.service import rls
from engineroom.ratelimit.service.request_parsing import (
    ProxyProtocol,
    parse_json,
    parse_proxy_request,
)


def through_proxy(uri: str) -> RequestView:
    return parse_proxy_request(
        ProxyProtocol.NGINX, "shop", "api", "", "", "GET", {"x-forwarded-uri": uri}
    ).view


def through_envoy(uri: str) -> RequestView:
    path, _, query = uri.partition("?")
    return parse_proxy_request(ProxyProtocol.ENVOY, "shop", "api", path[1:], query, "GET", {}).view


def through_grpc(uri: str) -> RequestView:
    request = rls.RateLimitRequest(domain="shop/api")
    entry = request.descriptors.add().entries.add(key=b"path")
    entry.value = uri.encode("latin-1")
    return rls.parse_message(request.SerializeToString())[0].view


def as_text(uri: str) -> str:
    return uri.encode("latin-1").decode("utf-8", "replace")


def through_decide(uri: str) -> RequestView:
    path, _, query = as_text(uri).partition("?")
    request = {"path": path, "query": query}
    return parse_json({"namespace": "shop", "policy": "api", "request": request}).view


def through_json(uri: str) -> RequestView:
    entry = {"key": "path", "value": as_text(uri)}
    return rls.parse_json({"domain": "shop/api", "descriptors": [{"entries": [entry]}]})[0].view


def through_command_line(uri: str) -> RequestView:
    request = simulated_request(
        as_text(uri), "GET", None, None, "", None, None, None, 1, consume=False
    )
    return request.view(Policy("p", (Limit("a", Rate(1)),)))


def through_asgi(uri: str) -> RequestView:
    path, _, query = uri.partition("#")[0].partition("?")
    decoded = unquote(path.encode("latin-1").decode("utf-8", "replace"))
    scope = {"type": "http", "path": decoded, "query_string": query.encode("latin-1")}
    return _asgi_view(scope, 0, UNKNOWN_CALLER)


def through_wsgi(uri: str) -> RequestView:
    path, _, query = uri.partition("#")[0].partition("?")
    return _wsgi_view(
        {"PATH_INFO": unquote(path, "latin-1"), "QUERY_STRING": query}, 0, UNKNOWN_CALLER
    )


DOORS = (
    through_proxy, through_envoy, through_grpc, through_decide, through_json, through_command_line,
    through_asgi, through_wsgi,
)  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/v1/complete", "/v1/complete"),
        ("/v1/%63omplete", "/v1/complete"),
        ("//v1/complete", "/v1/complete"),
        ("/v1///complete", "/v1/complete"),
        ("/./v1/complete", "/v1/complete"),
        ("/v1/x/../complete", "/v1/complete"),
        ("/v1/x/%2e%2E/complete", "/v1/complete"),
        ("/v1%2Fcomplete", "/v1/complete"),
        ("/../../v1/complete", "/v1/complete"),
        ("/v1/complete/.", "/v1/complete/"),
        ("/v1/x/..", "/v1/"),
        ("/v1/complete#x", "/v1/complete"),
        ("/v1/complete?x=/../#y", "/v1/complete"),
        # An application decodes once.
        ("/v1/%2563omplete", "/v1/%63omplete"),
        ("/v1/100%", "/v1/100%"),
        ("/v1/%zz", "/v1/%zz"),
        # What stays.
        ("/V1/complete/", "/V1/complete/"),
        ("/v1/complete;a=b", "/v1/complete;a=b"),
        ("/v1/complete%00", "/v1/complete\0"),
        ("/v1/complete%3Fa", "/v1/complete?a"),
        ("/v1/complete%23a", "/v1/complete#a"),
        ("/.well-known/x", "/.well-known/x"),
        # UTF-8, escaped or not, and what is none.
        ("/m%C3%BCsli", "/müsli"),
        ("/m\xc3\xbcsli", "/müsli"),
        ("/v1/%ff", "/v1/\ufffd"),
        ("/v1/%c0%af", "/v1/\ufffd\ufffd"),
    ],
)
def test_a_path_has_one_form_at_every_door(door, uri: str, path: str) -> None:  # type: ignore[no-untyped-def]
    assert Path()(door(uri)) == path


def test_a_whole_address_is_its_path_and_a_star_stays() -> None:
    assert through_proxy("http://shop.example/v1/%63omplete?a=b").path == "/v1/complete"
    assert through_proxy("http://shop.example").path == "/"
    assert through_proxy("*").path == "*"
    assert through_proxy("v1/complete").path == "/v1/complete"


def test_a_fragment_makes_no_new_value_of_a_parameter() -> None:
    assert {Query("key")(through_proxy(f"/items?key=k{end}")) for end in ("", "#1", "#2")} == {"k"}
    assert Query("key")(through_proxy("/items#?key=k")) is None


# -- applications, as they read a path ------------------------------------------------------------


def merged(path: str) -> str:
    return re.sub("/+", "/", path)


def resolved(path: str) -> str:
    """RFC 3986, 5.2.4, step by step."""
    output = ""
    while path:
        if path.startswith("/./"):
            path = path[2:]
        elif path == "/.":
            path = "/"
        elif path.startswith("/../"):
            path, output = path[3:], output.rpartition("/")[0]
        elif path == "/..":
            path, output = "/", output.rpartition("/")[0]
        else:
            at = path.find("/", 1)
            at = len(path) if at < 0 else at
            output, path = output + path[:at], path[at:]
    return output


APPLICATIONS = {
    "decodes": lambda path: path,
    "decodes and merges, as Werkzeug": merged,
    "decodes and resolves, as WHATWG": resolved,
    "merges, then resolves, as nginx": lambda path: resolved(merged(path)),
    "resolves, then merges": lambda path: merged(resolved(path)),
    "cleans, as Go": lambda path: posixpath.normpath(merged(path)),
}
PIECE = st.sampled_from(
    ["/", "//", "/.", "/..", "/./", "/../", "v1", "complete", "healthz", "a", ".", "..", "%2e",
     "%2E%2e", "%2f", "%2F", "%76", "%63", "%00", "%ff", ";x=1", "é", "%25", "%2561"]
)  # fmt: skip
SPELLING = st.lists(PIECE, max_size=12).map(
    lambda parts: "/" + "".join(parts).encode().decode("latin-1")
)
UNDER = Condition(Path(), Operator.STARTS_WITH, ("/v1/complete",))
OPEN = Condition(Path(), Operator.STARTS_WITH, ("/healthz",))


def limited(view: RequestView, **more: object) -> bool:
    """Whether a limit counts, by both ways of asking; a policy with tiers: the base and a tier."""
    policy = Policy("p", (Limit("all", Rate(10, 1)), Limit("a", Rate(5, 1), **more)))  # type: ignore[arg-type]
    actual = subject_of(policy, view)
    names = [effective_limit.name for effective_limit in policy.effective_limits]
    assert values_reader(policy)(view) == tuple(actual.get(name, NOT_APPLIED) for name in names)
    return actual["a"] is not NOT_APPLIED


@pytest.mark.parametrize("reads", APPLICATIONS.values(), ids=APPLICATIONS)
@given(spelling=SPELLING)
@example(spelling="/v1/%63omplete")
@example(spelling="/v1/complete/../../healthz")
@example(spelling="/healthz/../v1/complete")
@example(spelling="/v1//../complete")
@example(spelling="/v1//complete/../x")
@example(spelling="/healthz%2F..%2Fv1/complete")
def test_no_spelling_leads_around_a_limit(reads, spelling: str) -> None:  # type: ignore[no-untyped-def]
    text = unquote(spelling.encode("latin-1").decode("utf-8", "replace"), errors="replace")
    served = reads(text)
    for door in (through_proxy, through_asgi):
        view = door(spelling)
        if served.startswith("/v1/complete"):
            assert limited(view, when=(UNDER,)), "a condition"
            tier = Tier("slow", (UNDER,), Rate(1, 1))
            subject = subject_of(Policy("p", (Limit("a", Rate(5, 1), tiers=(tier,)),)), view)
            assert subject["a/slow"] is not NOT_APPLIED, "a tier"
        if not served.startswith("/healthz"):
            assert limited(view, exempt=((OPEN,),)), "an exemption"


SERVERS = {
    "resolves, then decodes": lambda wire: unquote(resolved(wire)),
    "resolves escaped dots too, then decodes": lambda wire: unquote(
        resolved(re.sub("%2e", ".", wire, flags=re.IGNORECASE))
    ),
}


@pytest.mark.parametrize("reads", SERVERS.values(), ids=SERVERS)
@pytest.mark.parametrize(
    "wire",
    [
        "/x%2Fy/../v1/complete",
        "/x%2fy/%2e%2E/v1/complete",
        "/healthz/x%2Fy/../../v1/complete",
        "/a/b%2F../../v1/complete",
    ],
)
def test_a_server_that_decodes_last_serves_no_path_without_its_limit(reads, wire: str) -> None:  # type: ignore[no-untyped-def]
    served = reads(wire)
    view = through_proxy(wire)
    if served.startswith("/v1/complete"):
        assert limited(view, when=(UNDER,))
    if not served.startswith("/healthz"):
        assert limited(view, exempt=((OPEN,),))


@given(
    st.lists(st.text("abcé%/ .;", min_size=1, max_size=5).filter(lambda t: "/" not in t
             and t not in (".", "..")), min_size=1, max_size=4),
    st.data(),
)  # fmt: skip
def test_spellings_of_a_path_share_a_key(segments: list[str], data: st.DataObject) -> None:
    policy = Policy("p", (Limit("a", Rate(1, 1), key=(Path(),)),))
    plain = "/" + "/".join(segments)
    spelt = ""
    for segment in segments:
        spelt += data.draw(st.sampled_from(["/", "//", "/./", "/x/../", "%2F", "/x/%2e./"]))
        spelt += "".join(
            quote(c, safe="") if c in "%é" or (data.draw(st.booleans()) and c != ".") else c
            for c in segment
        )
    key = {"a": f"{len(plain)}:{plain}"}
    assert subject_of(policy, through_proxy(spelt)) == key
    assert subject_of(policy, through_asgi(spelt)) == key


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_nothing_is_too_odd_to_be_read(uri: str) -> None:
    for door in DOORS:
        assert door(uri).path[:1] in ("/", "*")


@pytest.mark.parametrize("piece", ["%63", "/", "/.", "/../", "/a/..", "//..", "\xff", "#"])
def test_long_paths_take_time_in_proportion(piece: str) -> None:
    view = RequestView(path="/" + piece * (65_536 // len(piece)) + "/v1/complete")
    began = time.perf_counter()
    actual = normalized(view)
    assert time.perf_counter() - began < 1.0
    if piece not in ("%63", "\xff"):
        assert "/v1/complete" in (
            actual.path[-12:],
            *(other_path[-12:] for other_path in actual.other_paths),
        )
