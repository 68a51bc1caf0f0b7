"""Differences of objects are read by people and kept by machines: no secret is told in them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.core.redaction import REDACTED, redact_object
from engineroom.manifests.apply import FieldChange, differences

SECRET = "hunter2"


def deployment(*containers: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"labels": {}, "annotations": {}, **metadata},
        "spec": {"template": {"spec": {"containers": list(containers)}}},
    }


def container(*env: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "worker", "image": "shop:1", "env": list(env), **more}


def password(value: str = SECRET) -> dict[str, Any]:
    return {"name": "DB_PASSWORD", "value": value}


def told(before: Any, after: Any) -> list[FieldChange]:
    found = list(differences(before, after))
    assert SECRET not in str(found)
    return found


def test_a_variable_more_tells_names_and_no_value() -> None:
    [change] = told(
        deployment(container(password())),
        deployment(container(password(), {"name": "LEVEL", "value": "hunter2-2"})),
    )
    assert change.path == "spec.template.spec.containers[0].env"
    assert json.loads(change.before or "") == [{"name": "DB_PASSWORD", "value": REDACTED}]
    assert [each["name"] for each in json.loads(change.after or "")] == ["DB_PASSWORD", "LEVEL"]


def test_an_object_that_is_made_is_told_without_values() -> None:
    change = told({"metadata": {}}, deployment(container(password())))[-1]
    assert change.before is None
    assert '"DB_PASSWORD"' in (change.after or "")
    assert '"shop:1"' in (change.after or "")


def test_an_object_that_goes_and_a_container_that_goes() -> None:
    both = deployment(container(password()), container(password("hunter2-2"), name="side"))
    told(both, {"metadata": {}})
    [change] = told(both, deployment(container(password())))
    assert change.path == "spec.template.spec.containers"


def test_a_variable_that_is_renamed_and_one_that_is_changed() -> None:
    [renamed] = told(
        deployment(container(password())),
        deployment(container({"name": "DATABASE_PASSWORD", "value": SECRET})),
    )
    assert (renamed.before, renamed.after) == ('"DB_PASSWORD"', '"DATABASE_PASSWORD"')
    # That it changed is told.
    [changed] = told(
        deployment(container(password())), deployment(container(password("hunter2-2")))
    )
    assert changed.path.endswith("env[0].value")
    assert changed.before == changed.after == json.dumps(REDACTED)


def test_references_stay_readable() -> None:
    source = {"secretKeyRef": {"name": "db", "key": "password"}}
    before = deployment(container(), imagePullSecrets=[])
    after = deployment(container({"name": "DB_PASSWORD", "valueFrom": source}))
    text = str(told(before, after))
    assert "secretKeyRef" in text
    assert '"db"' in text
    volume = {"name": "key", "secret": {"secretName": "tls"}, "automountServiceAccountToken": True}
    assert redact_object(volume) == volume


@pytest.mark.parametrize(
    "part",
    [
        {"args": ["--password=hunter2", "--verbose"]},
        {"command": ["worker", "--db-password", "hunter2", "--verbose"]},
        {"args": ["sh", "-c", "DB_PASSWORD=hunter2 worker"]},
        {"url": "redis://:hunter2@host:6379"},
        {"accessToken": "hunter2"},
        {"clientSecret": ["hunter2"]},
        {"password": {"value": "hunter2"}},
        {"env": {"DB": "hunter2"}},
        {"env": ["DB=hunter2"]},
        {"env": "DB=hunter2"},
        {"env": [["hunter2"]]},
        {"env": [{"name": {"value": "hunter2"}, "other": "hunter2"}]},
    ],
)
def test_secrets_in_other_places_and_shapes(part: dict[str, Any]) -> None:
    told(deployment(container()), deployment({**container(), **part}))
    told(deployment(), deployment({**container(), **part}))
    told(deployment({**container(), **part}), deployment(container()))


def test_copies_of_the_object_in_annotations_are_not_told() -> None:
    key = "kubectl.kubernetes.io/last-applied-configuration"
    copy = json.dumps(deployment(container(password())))
    [change] = told(deployment(), deployment(annotations={key: copy}))
    assert "DB_PASSWORD" in (change.after or "")
    told(deployment(annotations={key: copy}), deployment(annotations={key: copy[:-20]}))
    told(deployment(), deployment(annotations={"kapp.k14s.io/original": copy}))


def test_a_label_named_env_is_no_environment() -> None:
    before, after = deployment(labels={"env": "staging"}), deployment(labels={"env": "prod"})
    [change] = told(before, after)
    assert (change.before, change.after) == ('"staging"', '"prod"')


LEAVES = st.one_of(st.booleans(), st.integers(), st.text(max_size=4))
KEYS = st.sampled_from(["env", "name", "spec", "containers", "x", "args"])
SHAPES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=12,
)


def hidden(shape: Any, *, inside: bool = False) -> Any:
    """The shape with every value that stands under an env, names aside, made the secret."""
    if isinstance(shape, dict):
        return {
            key: hidden(each, inside=inside or key == "env")
            if not (inside and key == "name" and not isinstance(each, dict | list))
            else each
            for key, each in shape.items()
        }
    if isinstance(shape, list):
        return [hidden(each, inside=inside) for each in shape]
    return SECRET if inside and shape not in (None, "") and not isinstance(shape, bool) else shape


@given(SHAPES, SHAPES)
def test_no_value_under_any_env_is_ever_told(before: Any, after: Any) -> None:
    told(hidden(before), hidden(after))
    told({"env": hidden(before, inside=True)}, {"env": hidden(after, inside=True)})
    annotated = {"annotations": {"copy": json.dumps(hidden(before))}}
    told(annotated, {"annotations": {"copy": json.dumps(hidden(after))}})


@given(SHAPES, SHAPES)
def test_each_difference_is_told_and_nothing_else(before: Any, after: Any) -> None:
    assert bool(list(differences(before, after))) == (before != after)
