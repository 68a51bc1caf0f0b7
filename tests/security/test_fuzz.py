"""A part of what `make fuzz` does at length, always the same one; and that its judge can judge."""

from __future__ import annotations

import io
import json
import zipfile

import pytest

from tests.fuzz import judge
from tests.fuzz.mutate import objects
from tests.fuzz.run import Fuzz, Tally


def test_nothing_is_accepted_that_should_not_be_and_nothing_crashes() -> None:
    tally = Tally()
    Fuzz(seed=5).run(1500, tally)
    assert tally.crashed == []
    assert tally.wrongly == []
    assert tally.count() == 1500
    # It would prove nothing if one of the kinds were never taken, or never refused.
    assert set(tally.taken) == {
        "yaml", "json", "object", "archive", "file", "form", "promql", "cron",
    }  # fmt: skip
    assert set(tally.refused) == set(tally.taken) - {"json", "file"}


@pytest.mark.parametrize(
    "text",
    ["a: 1\na: 2", "a: !!python/name:os.system x", "[" * 50 + "]" * 50, "{", "a: *b",
     "a: &a [" + "x, " * 999 + "]\nb: [" + "*a, " * 60 + "]"],
)  # fmt: skip
def test_the_judge_of_yaml(text: str) -> None:
    assert judge.yaml_wrong(text)
    assert not judge.yaml_wrong("a: [1, {b: c}]\n---\nd: &e f\ng: *e\n")


@pytest.mark.parametrize(
    "data", [b'{"a": 1, "a": 2}', b"NaN", b"1e999", b"[" * 41 + b"]" * 41, b'"\\ud800"', b"\xff"]
)
def test_the_judge_of_json(data: bytes) -> None:
    assert judge.json_wrong(data)[0]
    assert judge.json_wrong(b'{"a": [1]}') == ("", {"a": [1]})


def test_the_judge_of_objects() -> None:
    for thing in objects():
        assert judge.object_wrong(thing) == ""
        broken = json.loads(json.dumps(thing))
        broken["spec"] = {"queues": 7, "limits": "x"}
        assert judge.object_wrong(broken)


def test_the_judge_of_archives_and_types() -> None:
    for name, wrong in (("a/b", False), ("../a", True), ("/a", True), ("a\\\\..\\\\..\\\\b", True)):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as packed:
            packed.writestr(name.replace("\\\\", "\\"), b"x")
        assert bool(judge.archive_wrong(out.getvalue())) is wrong, name
    assert judge.type_wrong("image/png", b"GIF89a")
    assert judge.type_wrong("text/plain", b"MZ\x00")
