"""``engineroom lint``: lines, limits, outputs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engineroom.api.manifests import UnreadableError, check, read
from engineroom.api.validation.pod_security import PodSecurityLevel
from engineroom.cli.app.main import main
from engineroom.cli.commands.manifests.lint import LintOutput, lint_files, render

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """\
apiVersion: engineroom.dev/v1alpha1
kind: WorkerPool
metadata:
  name: mail
  namespace: shop
spec:
  queues:
    - name: mail
  template:
    spec:
      containers:
        - name: worker
          image: shop:1
"""
WRONG = GOOD.replace("- name: mail\n", "- name: mail\n      priority: high\n")


def told(text: str, level: PodSecurityLevel = PodSecurityLevel.RESTRICTED) -> list[str]:
    report = check([("f.yaml", text)], level)
    return [f"{finding.line}: {finding.level}: {finding.text}" for finding in report.findings]


def test_good_file_has_no_findings() -> None:
    assert told(GOOD) == []


def test_finding_names_the_line_of_the_field() -> None:
    assert told(WRONG) == [
        (
            '9: error: spec.queues[0].priority: "high" is a string, not a whole number; write a '
            "whole number"
        )
    ]


def test_missing_field_is_told_at_what_should_hold_it() -> None:
    text = GOOD.replace("          image: shop:1\n", "")

    assert told(text) == [
        (
            "12: error: spec.template.spec.containers[0].image: is missing; add the image of your "
            "application"
        )
    ]


def test_lines_count_over_documents_and_comments() -> None:
    text = "# one\n---\nkind: ConfigMap\napiVersion: v1\n---\n" + WRONG

    assert told(text)[0].startswith("14: ")


def test_other_kinds_are_passed_over() -> None:
    report = check([("f", "kind: A\n---\n- 1\n---\ntext\n---\n" + GOOD + "---\n")])

    assert (report.checked, report.skipped, report.findings) == (1, 3, [])


def test_list_is_looked_into() -> None:
    items = "\n".join("    " + line for line in WRONG.splitlines()).replace("    api", "  - api", 1)
    text = f"apiVersion: v1\nkind: List\nitems:\n{items}\n"

    assert told(text)[0].startswith("12: error: spec.queues[0].priority: ")


def test_json_with_tabs_is_read() -> None:
    text = json.dumps(next(iter(read(WRONG))).value, indent="\t")

    assert [entry.split(": ")[2] for entry in told(text)] == ["spec.queues[0].priority"]


def test_same_name_twice_is_an_error() -> None:
    report = check([("a.yaml", GOOD), ("b.yaml", GOOD)])

    assert [f"{finding.file}:{finding.line}: {finding.text}" for finding in report.findings] == [
        (
            'b.yaml:4: metadata.name: "mail" is already defined at a.yaml:4; give it another name '
            "or remove it"
        )
    ]


HOST = GOOD.replace(
    "    spec:\n      containers", "    spec:\n      hostNetwork: true\n      containers"
)
NAMESPACE = """\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {pod-security.kubernetes.io/enforce: privileged}}
"""


def test_level_of_the_namespace_comes_from_the_files_or_the_option() -> None:
    assert len(told(HOST)) == 1
    assert told(HOST, PodSecurityLevel.PRIVILEGED) == []
    assert told(f"{NAMESPACE}---\n{HOST}") == []
    assert told(f"{HOST}---\n{NAMESPACE}") == []


# -- reading ------------------------------------------------------------------------------------

BOMB = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 8)}]\n"
    for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, 'the key "a" appears twice'),
        ("a:\n  b: 1\n  b: 1\n", 3, 'the key "b" appears twice'),
        ('{"a": 1,\n"a": 2}', 2, 'the key "a" appears twice'),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "is not allowed"),
        ("a: 1\nb: !secret x\n", 2, 'the tag "!secret" is not allowed'),
        ("a: [1, 2\n", 2, "is not YAML: "),
        ("a: b: c\n", 1, "is not YAML: mapping values are not allowed"),
        ("a:\n\t- b\n", 2, "is not YAML: "),
        ("a: \x00\n", 1, "is not YAML: "),
        ("a: *b\n", 1, "the alias *b has no anchor before it"),
        ("a: &a [*a]\n", 1, "the alias *a has no anchor before it"),
        ("[" * 100 + "]" * 100, 1, "is nested deeper than 40 levels"),
        ("{a: " * 100 + "1" + "}" * 100, 1, "is nested deeper than 40 levels"),
        (BOMB, 6, "has more than 50000 values"),
        ("a: &a 1\n" + "b:\n" + "- *a\n" * 100, 67, "has more than 64 aliases"),
        ("? [a]\n: b\n", 1, "has a map or a list as a key"),
        ("a: 1\n<<: 5\n", 2, "<< merges something other than a map"),
        ("---\na: 1\n" * 1001, 2001, "has over 1000 documents"),
        ("a: " + "x" * 1_100_000, 1, "is larger than 1048576 bytes"),
    ],
)
def test_what_is_not_read(text: str, line: int, problem: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        list(read(text))

    assert problem in str(caught.value.problem)
    assert caught.value.line == line or "not YAML" in problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("1:30", "1:30"),
        ("0777", 511),
        ("0x10", 16),
        ("-5", -5),
        ("1.5", 1.5),
        ("2026-01-01", "2026-01-01"),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("1_000", 1000),
    ],
)
def test_scalars_mean_what_they_mean_to_kubectl(text: str, value: object) -> None:
    (document,) = read(f"a: {text}\n")

    assert document.value == {"a": value}


def test_anchors_and_merges_are_resolved() -> None:
    (document,) = read("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n")

    assert document.value["b"] == {"x": 1, "y": 3}
    assert document.value["c"] == {"x": 1, "y": 2}


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>#\"'\n \t?<%@`,0.~"), max_size=60))
def test_any_text_is_read_or_told(text: str) -> None:
    report = check([("f", text), ("g", f"apiVersion: engineroom.dev/v1alpha1\n{text}")])

    assert all(finding.line >= 1 for finding in report.findings)


# -- the command --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "wrong.yml").write_text(
        WRONG.replace("name: mail\n  names", "name: b\n  names")
    )
    (tmp_path / "chart.yaml").write_text("{{- if .Values.x }}\na: b\n{{- end }}\n")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.yaml").write_text("a: [\n")
    (tmp_path / "notes.txt").write_text("{{{")
    return tmp_path


def test_folder_is_searched_and_templates_in_it_only_warn(folder: Path) -> None:
    report = lint_files([str(folder)])

    assert (report.files, report.checked, report.errors, report.warnings) == (3, 2, 1, 1)


def test_template_that_is_named_is_an_error(folder: Path) -> None:
    assert lint_files([str(folder / "chart.yaml")]).errors == 1


def test_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    report = lint_files([str(tmp_path / "none.yaml")])

    assert [finding.problem for finding in report.findings] == [
        "cannot be read: No such file or directory"
    ]


def test_text_output(folder: Path) -> None:
    lines = list(render(lint_files([str(folder / "sub" / "wrong.yml")]), LintOutput.TEXT))

    assert lines[0].startswith(f"{folder}/sub/wrong.yml:9: spec.queues[0].priority: ")
    assert lines[-1] == "1 object checked in 1 file, 1 error, 0 warnings"


def test_github_output_cannot_be_made_to_command() -> None:
    report = check(
        [("a,b:c.yaml", GOOD.replace("name: mail\n  names", 'name: "x\\n::error::y"\n  names'))]
    )

    (line,) = render(report, LintOutput.GITHUB)

    assert line.startswith(
        "::error file=a%2Cb%3Ac.yaml,line=4,title=metadata.name::metadata.name: "
    )
    assert "\n" not in line


@pytest.mark.parametrize(
    ("text", "more", "status"),
    [
        (GOOD, [], 0),
        (WRONG, [], 1),
        (GOOD.replace(":1", ""), [], 0),
        (GOOD.replace(":1", ""), ["--strict"], 1),
    ],
)
def test_exit_status(
    tmp_path: Path, text: str, more: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(text)

    with pytest.raises(SystemExit) as caught:
        main(["lint", str(file), "-o", "json", *more])

    assert caught.value.code == status
    assert json.loads(capsys.readouterr().out)["checked"] == 1
