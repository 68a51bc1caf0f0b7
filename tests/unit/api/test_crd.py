"""The CRD is the model: the same defaults, fields and texts; and it is committed as generated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from engineroom.api import generate, kinds
from engineroom.api.schema import common, workerpool
from engineroom.api.v1alpha1.workerpool import WorkerPool
from engineroom.api.validation import parse
from tests.support import ROOT
from tests.unit.api.specs import pool

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = common.open_api_schema(kinds.WORKER_POOL)


def served(kind: kinds.Kind) -> dict[str, Any]:
    """The schema that the API server gets."""
    (version,) = common.crd(kind)["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def with_defaults(schema: dict[str, Any], value: Any) -> Any:
    """What the API server makes of ``value``."""
    if isinstance(value, dict) and "properties" in schema:
        made = dict(value)
        for name, inner in schema["properties"].items():
            if name not in made and "default" in inner:
                made[name] = inner["default"]
            if name in made:
                made[name] = with_defaults(inner, made[name])
        return made
    if isinstance(value, list) and "items" in schema:
        return [with_defaults(schema["items"], item) for item in value]
    return value


def without_empty(value: Any) -> Any:
    """Lists that are empty and values that are None are absent in what the API server shows."""
    if isinstance(value, dict):
        return {k: without_empty(v) for k, v in value.items() if v is not None and v != []}
    if isinstance(value, list):
        return [without_empty(one) for one in value]
    return value


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spec.autoscaling": {}},
        {
            "spec.autoscaling": {
                "schedules": [{"name": "a", "cron": "0 8 * * *", "minReplicas": 1}],
                "scaleDown": {"maxPodsPerMinute": 5},
            },
            "spec.drain": {"onDeadline": "Requeue"},
            "spec.redis": {"urlSecretRef": {"name": "a", "key": "b"}, "tls": {}},
        },
    ],
)
def test_defaults_of_crd_and_model_are_equal(changes: dict[str, Any]) -> None:
    spec = pool(changes)

    by_model = parse(WorkerPool, spec).model_dump(mode="json", by_alias=True)["spec"]
    by_crd = with_defaults(SCHEMA["properties"]["spec"], spec["spec"])

    assert without_empty(by_model) == by_crd


def walk(schema: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name, inner in schema.get("properties", {}).items():
        place = f"{path}.{name}".removeprefix(".")
        found += [(place, inner), *walk(inner, place)]
    if "items" in schema:
        found += walk(schema["items"], f"{path}[]")
    return found


def test_every_field_is_described() -> None:
    missing = [path for path, node in walk(SCHEMA) if not node.get("description")]

    assert missing == ["metadata"]


def test_schema_is_structural() -> None:
    text = yaml.safe_dump(SCHEMA)

    assert "$ref" not in text
    assert "$defs" not in text
    assert all("type" in node or "anyOf" in node for _, node in walk(SCHEMA))


def test_every_rule_has_its_place() -> None:
    placed = [
        path
        for path in workerpool.SCHEMA.rules
        if path == ""
        or path in {name for name, node in walk(SCHEMA) if "x-kubernetes-validations" in node}
        or path
        in {
            f"{name}[]"
            for name, node in walk(SCHEMA)
            if "x-kubernetes-validations" in node.get("items", {})
        }
    ]

    assert placed == list(workerpool.SCHEMA.rules)


@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.kind)
def test_an_object_without_a_status_is_of_no_generation(kind: kinds.Kind) -> None:
    status = served(kind)["properties"]["status"]

    assert status["default"] == {"observedGeneration": -1}
    assert not [path for path, node in walk(status) if "default" in node]


@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.kind)
def test_list_items_have_their_defaults_in_the_description(kind: kinds.Kind) -> None:
    complete = dict(walk(common.open_api_schema(kind), ""))
    items = {path: node for path, node in walk(served(kind), "") if "[]" in path}

    assert not [path for path, node in items.items() if "default" in node]
    for path, node in items.items():
        default = complete[path].get("default")
        if isinstance(default, str | int) and not isinstance(default, bool):
            assert node["description"].endswith(f"Defaults to {default}."), path


def test_generated_files_are_committed() -> None:
    different = [
        str(path.relative_to(ROOT))
        for path, text in generate.files(ROOT).items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]

    assert different == [], "run `make generate`"


def test_check_names_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check", "--root", str(tmp_path)]) == 1
    assert "workerpools.engineroom.dev.yaml: differs; run make generate" in capsys.readouterr().out
    assert generate.main(["--root", str(tmp_path)]) == 0
    assert generate.main(["--check", "--root", str(tmp_path)]) == 0
