"""What documentation and examples say of schedules is valid; what was nearly right is guessed."""

from __future__ import annotations

import re

import pytest
import yaml

from engineroom.api.v1alpha1.workerpool import WorkerPool
from engineroom.api.validation import parse, problems
from engineroom.cli.commands.manifests.lint import lint_files
from engineroom.core.validation.cron import cron_problem, zone_problem
from tests.support import ROOT
from tests.unit.api.specs import pool


def test_the_page_s_example_is_valid() -> None:
    page = (ROOT / "docs/workerpool.md").read_text()
    texts = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    [spec] = [found["spec"] for found in map(yaml.safe_load, texts) if "schedules" in found["spec"]]
    document = pool({"spec.queues": spec["queues"], "spec.schedules": spec["schedules"]})

    assert [str(problem) for problem in problems(document)] == []
    assert [schedule.name for schedule in parse(WorkerPool, document).spec.schedules] == [
        "nightly", "sync", "move",
    ]  # fmt: skip


def test_the_shop_s_manifests_pass_lint() -> None:
    report = lint_files([str(ROOT / "examples/shop")])

    assert [finding.text for finding in report.findings] == []
    assert report.checked >= 2


def test_a_time_without_quotes_is_read_as_it_stands() -> None:
    from engineroom.api.manifests import check

    text = yaml.safe_dump(pool({"spec.schedules": [{"name": "a", "at": "@", "function": "a.b"}]}))
    report = check([("pool.yaml", text.replace("'@'", "2026-12-31T22:00:00+01:00"))])

    assert [finding.text for finding in report.findings] == []


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ("@daily", "write 0 0 * * *"),
        ("@weekley", "write 0 0 * * 0"),
        ("0 3 * * MOND", "did you mean MON?"),
        ("0 3 * SEPT *", "did you mean SEP?"),
        ("0 3 31 2 *", "choose a day that the month has"),
    ],
)
def test_a_cron_line_that_is_nearly_right_is_guessed(line: str, fix: str) -> None:
    told = cron_problem(line)

    assert told is not None
    assert told[1] == fix


def test_zones() -> None:
    assert zone_problem("America/Argentina/Buenos_Aires") is None
    assert zone_problem("America/New York") == (
        '"America/New York" is not a time zone',
        "did you mean America/New_York?",
    )
