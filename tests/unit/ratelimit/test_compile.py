"""From specs to one document and back: whole, canonical, bounded, conflicts by age."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engineroom.api.v1alpha1.ratelimitpolicy import RateLimitPolicy
from engineroom.api.validation import parse
from engineroom.ratelimit.distribution import compile as compiling
from engineroom.ratelimit.distribution.compile import (
    Candidate,
    compile_namespace,
    compile_policy,
    last_valid_candidate,
    library_policy,
)
from engineroom.ratelimit.distribution.document import (
    NO_POLICIES,
    Target,
    decode_policy,
    encode_policy,
    head_of,
    parse_document,
    parse_head,
    render_document,
)
from engineroom.ratelimit.limits.errors import InvalidPolicyError, UnreadableDocumentError
from engineroom.ratelimit.limits.model import Limit, Policy, Rate
from engineroom.ratelimit.reconcile.decide import next_document
from tests.unit.api.policies import FULL, policy


def made(
    name: str, created: str = "2026-01-01T00:00:00Z", changes: dict[str, Any] | None = None
) -> Candidate:
    return compile_policy(
        parse(RateLimitPolicy, policy({"metadata.name": name, **(changes or {})})), created
    )


def attached(name: str, *targets: str, created: str = "2026-01-01T00:00:00Z") -> Candidate:
    references = [{"kind": "Service", "name": target} for target in targets]
    return made(name, created, {"spec.targetRefs": references})


def test_a_policy_with_everything_comes_back_as_it_was() -> None:
    whole = library_policy(parse(RateLimitPolicy, policy({"spec": FULL})))
    assert decode_policy(json.loads(json.dumps(encode_policy(whole)))) == whole
    assert whole.name == "shop/api"
    assert whole.limits[0].tiers[0].burst == 200
    assert whole.limits[0].response_cost == "X-Cost"
    assert whole.limits[1].rate.period_us == 1000


def test_sources_that_are_only_python_have_no_place_in_a_document() -> None:
    with pytest.raises(InvalidPolicyError):
        encode_policy(Policy("p", (Limit("a", Rate(1), key=(lambda request: request.path,)),)))


def test_the_document_is_canonical_and_read_back() -> None:
    ones = [made("b"), made("a", changes={"spec.targetRefs[0].name": "other"})]
    compiled = compile_namespace(ones)
    assert compiled == compile_namespace(reversed(ones))
    text = render_document("shop", compiled.parts, revision=7, lineage="x", before={})
    policies = parse_document(text.text)
    assert [entry.name for entry in policies.entries] == ["a", "b"]
    assert (policies.hash, policies.revision, policies.lineage) == (text.hash, 7, "x")
    assert policies.get("a") is policies.for_target("Service", "other")
    assert policies.for_target("Service", "other", "http") is policies.get("a")
    assert policies.for_target("Ingress", "other") is None
    assert parse_head(text.text).policies == {
        name: (result.hash, 7) for name, result in compiled.results.items()
    }


def test_what_did_not_change_keeps_its_revision_and_its_object() -> None:
    first = compile_namespace([made("a"), attached("b", "two")])
    one = render_document("shop", first.parts, revision=1, lineage="x", before={})
    before = parse_document(one.text)
    second = compile_namespace([made("a"), attached("b", "three")])
    head = parse_head(one.text)
    two = next_document("shop", second, head, least_revision=0, lineage="y")
    assert two is not None
    assert two.since == {"a": 1, "b": 2}
    assert two.lineage == "x"
    after = parse_document(two.text, before)
    assert after.get("a") is before.get("a")
    assert after.get("b") is not before.get("b")
    assert next_document("shop", second, parse_head(two.text), least_revision=0, lineage="") is None
    assert next_document("shop", compile_namespace([]), None, least_revision=0, lineage="") is None


def test_the_older_policy_has_the_target() -> None:
    older = attached("z", "one", created="2026-01-01T00:00:00Z")
    newer = attached("a", "one", "two", created="2026-01-01T00:00:01Z")
    lost = attached("b", "one", created="2026-01-01T00:00:02Z")
    compiled = compile_namespace([lost, newer, older])
    assert [part["name"] for part, _ in compiled.parts] == ["z", "a"]
    first, two = Target("", "Service", "one"), Target("", "Service", "two")
    assert compiled.results["z"].targets == (first,)
    assert compiled.results["a"].targets == (two,)
    assert compiled.results["a"].lost == ((first, "z"),)
    assert compiled.results["b"].lost == ((first, "z"),)
    assert not compiled.results["b"].programmed
    # Of two of one age the one whose name comes first.
    equal = compile_namespace([attached("b", "one"), attached("a", "one")])
    assert equal.results["b"].lost == ((first, "a"),)


def test_a_section_is_another_target_than_the_whole() -> None:
    part = [{"kind": "Service", "name": "one", "sectionName": "http"}]
    compiled = compile_namespace(
        [attached("a", "one"), made("b", changes={"spec.targetRefs": part})]
    )
    assert all(not result.lost for result in compiled.results.values())
    policies = parse_document(
        render_document("shop", compiled.parts, revision=1, lineage="", before={}).text
    )
    for section, name in (("http", "b"), ("grpc", "a"), ("", "a")):
        actual = policies.for_target("Service", "one", section)
        assert actual is not None
        assert actual.name == name


def test_the_same_selector_twice_is_a_conflict() -> None:
    changes = {"spec.targetRefs": None, "spec.selector": {"matchLabels": {"app": "a"}}}
    changes["spec.targetRefs"] = []
    compiled = compile_namespace([made("b", changes=changes), made("a", changes=changes)])
    assert compiled.results["b"].lost == ((None, "a"),)
    policies = parse_document(
        render_document("shop", compiled.parts, revision=1, lineage="", before={}).text
    )
    actual = policies.for_labels({"app": "a", "tier": "web"})
    assert actual is not None
    assert actual.name == "a"
    assert policies.for_labels({"app": "b"}) is None


def test_the_document_is_bounded_and_the_oldest_are_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ones = [attached(f"p{n}", f"s{n}", created=f"2026-01-01T00:00:0{n}Z") for n in range(5)]
    monkeypatch.setattr(compiling, "MAX_POLICIES", 3)
    results = compile_namespace(ones).results
    assert [results[f"p{n}"].refused for n in range(5)] == ["", "", "", "count", "count"]
    monkeypatch.setattr(compiling, "MAX_BYTES", 1024 + 2 * ones[0].size)
    results = compile_namespace(ones).results
    assert [results[f"p{n}"].refused for n in range(3)] == ["", "", "bytes"]


def test_a_thousand_policies_fit() -> None:
    ones = [attached(f"p{n:04d}", f"s{n}") for n in range(1000)]
    compiled = compile_namespace(ones)
    text = render_document("shop", compiled.parts, revision=1, lineage="x", before={})
    assert len(parse_document(text.text).entries) == 1000


def test_what_stands_of_a_policy_goes_on_as_it_was() -> None:
    good = made("a")
    text = render_document(
        "shop", compile_namespace([good]).parts, revision=1, lineage="", before={}
    )
    for head in (parse_head(text.text), head_of(text, compile_namespace([good]).parts)):
        assert last_valid_candidate(head.parts["a"], good.created) == good
    assert parse_head(text.text)[:4] == head_of(text, compile_namespace([good]).parts)[:4]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format":2}', '{"format":1}', '{"format":1,"policies":[{}]}']
)
def test_what_cannot_be_read_is_said(text: str) -> None:
    for function in (parse_document, parse_head):
        with pytest.raises(UnreadableDocumentError):
            function(text)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_document_is_refused_whole_or_read(data: st.DataObject) -> None:
    compiled = compile_namespace(
        [compile_policy(parse(RateLimitPolicy, policy({"spec": FULL})), "")]
    )
    text = render_document("shop", compiled.parts, revision=1, lineage="", before={}).text
    at = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:at] + data.draw(st.text(max_size=3)) + text[at + 1 :]
    try:
        policies = parse_document(damaged, NO_POLICIES)
    except UnreadableDocumentError:
        return
    assert len(policies.entries) == 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcdefgh"),
            st.integers(0, 3),
            st.lists(st.sampled_from("rstu"), min_size=1, max_size=3, unique=True),
        ),
        unique_by=lambda one: one[0],
    )
)
def test_every_target_has_one_owner_and_it_is_the_oldest(
    ones: list[tuple[str, int, list[str]]],
) -> None:
    candidates = [
        attached(name, *targets, created=f"2026-01-01T00:00:0{age}Z") for name, age, targets in ones
    ]
    results = compile_namespace(candidates).results
    owned = [target for result in results.values() for target in result.targets]
    assert len(owned) == len(set(owned))
    assert {target.name for target in owned} == {t for _, _, targets in ones for t in targets}
    age = {name: (when, name) for name, when, _ in ones}
    for name, result in results.items():
        assert all(age[entry.owner] < age[name] for entry in result.lost)
        assert result.programmed == bool(result.targets)
