"""What a RateLimitPolicy may say: each breach names field, problem and fix."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engineroom.api import kinds
from engineroom.api.manifests import check
from engineroom.api.schema import ratelimitpolicy
from engineroom.api.schema.common import open_api_schema
from engineroom.api.v1alpha1.ratelimitpolicy import RateLimitPolicy
from engineroom.api.validation import parse, problems, warnings
from engineroom.core.errors import InvalidSpecError
from engineroom.ratelimit.distribution.compile import compile_policy
from tests.support import ROOT
from tests.unit.api.policies import FULL, WRONG, policy
from tests.unit.api.test_crd import walk, with_defaults, without_empty


@pytest.mark.parametrize("name", WRONG)
def test_every_breach_is_told_with_field_problem_and_fix(name: str) -> None:
    changes, expected = WRONG[name]
    assert [str(problem) for problem in problems(policy(changes))] == expected
    with pytest.raises(InvalidSpecError):
        parse(RateLimitPolicy, policy(changes))


@pytest.mark.parametrize("spec", [policy()["spec"], FULL])
def test_a_valid_policy_has_the_defaults_of_the_crd(spec: dict[str, Any]) -> None:
    obj = policy({"spec": spec})
    assert problems(obj) == []
    by_model = parse(RateLimitPolicy, obj).model_dump(mode="json", by_alias=True)["spec"]
    schema = open_api_schema(kinds.RATE_LIMIT_POLICY)["properties"]["spec"]
    assert without_empty(by_model) == without_empty(with_defaults(schema, obj["spec"]))


def test_every_field_is_described_and_every_rule_has_its_place() -> None:
    schema = open_api_schema(kinds.RATE_LIMIT_POLICY)
    found = walk(schema)
    assert [path for path, node in found if not node.get("description")] == [
        "metadata"  # Kubernetes describes it
    ]
    texts = str(schema)
    for rules in ratelimitpolicy.SCHEMA.rules.values():
        for rule in rules:
            assert rule.message in texts


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (
            {"spec.limits[0].exempt": [{"match": [{"source": "Header", "name": "a"}]}]},
            "spec.limits[0].exempt[0]",
        ),
        (
            {
                "spec.limits[0].key": [{"source": "Header", "name": "a"}],
                "spec.limits[0].missingKey": "Skip",
            },
            "spec.limits[0].missingKey",
        ),
        ({"spec.failure": {"mode": "Open"}}, "spec.failure.mode"),
    ],
)
def test_what_lets_anybody_through_is_warned_of(changes: dict[str, Any], field: str) -> None:
    (warning,) = warnings(policy(changes))
    assert warning.startswith(f"{field}: ")


def test_lint_knows_the_kind() -> None:
    text = """
apiVersion: engineroom.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: api}
spec:
  targetRefs: [{kind: Service, name: shop}]
  limits:
    - name: all
      rate: {requests: 10, period: 0s}
"""
    report = check([("a.yaml", text)])
    assert (report.checked, report.errors) == (1, 1)
    assert report.findings[0].field == "spec.limits[0].rate.period"
    assert report.findings[0].line == 9


@pytest.mark.parametrize("page", ["docs/ratelimitpolicy.md", "examples/shop/limits.yaml"])
def test_the_examples_are_valid_and_warn_of_nothing(page: str) -> None:
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL) or [text]
    report = check([(page, block) for block in blocks])
    assert report.checked >= 1
    assert report.findings == []


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
_PATHS = [
    ("targetRefs",), ("targetRefs", 0), ("targetRefs", 0, "kind"), ("limits",), ("limits", 0),
    ("limits", 0, "rate"), ("limits", 0, "rate", "period"), ("limits", 0, "rate", "requests"),
    ("limits", 0, "burst"), ("limits", 0, "key"), ("limits", 0, "key", 0), ("limits", 0, "cost"),
    ("limits", 0, "cost", "request"), ("limits", 0, "when", 0), ("limits", 0, "tiers", 0),
    ("limits", 0, "tiers", 0, "match", 0, "values"), ("limits", 0, "exempt", 0, "match"),
    ("limits", 0, "algorithm"), ("distribution",), ("distribution", "maxLeaseFraction"),
    ("distribution", "leaseTTL"), ("failure",), ("failure", "breaker"), ("response",), ("redis",),
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(_PATHS), _JSON), min_size=1, max_size=3))
def test_rubbish_is_told_never_raised_and_what_is_valid_compiles(
    changes: list[tuple[tuple[Any, ...], Any]],
) -> None:
    spec = copy.deepcopy(FULL)
    for path, value in changes:
        at: Any = spec
        for step in path[:-1]:
            try:
                at = at[step]
            except (KeyError, IndexError, TypeError):
                break
        else:
            fits = isinstance(path[-1], int) and bool(at) if isinstance(at, list) else True
            if isinstance(at, dict | list) and fits:
                at[path[-1]] = value
    obj = policy({"spec": spec})
    found = problems(obj)
    warnings(obj)
    if not found:
        compile_policy(parse(RateLimitPolicy, obj), "")
