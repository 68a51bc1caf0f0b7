"""``make audit``: run bandit, pip-audit, gitleaks and kube-score; the last line is JSON.

Checks that cannot run are reported and counted as ``unreachable``; only findings fail.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.binaries import path_of
from tests.performance.outcome import Goal, outcome
from tests.support import ROOT

REQUIREMENTS = ("requirements/image.txt", "requirements/build.txt", "requirements/dev.txt")

#: Of kube-score's checks those that are not followed, and why.
NOT_FOLLOWED = {
    "container-image-pull-policy": "tags name one release and a digest can be given; Always would "
    "make a pod that restarts depend on the registry",
    "container-ephemeral-storage-request-and-limit": "the root is read-only, /tmp is an emptyDir",
    "container-security-context-user-group-id": "Redis runs as the user of its image, 999; the "
    "namespace's Pod Security is restricted",
    "deployment-has-host-podantiaffinity": "spreading is by topologySpreadConstraints, which a "
    "cluster of one node survives",
    "statefulset-has-host-podantiaffinity": "one replica",
    "pod-topology-spread-constraints": "the values' own; by default none, as nodes may be one",
    "statefulset-has-servicename": "reached by its Service; the pod's name is not used",
}

#: Bandit's tests whose marked lines all have one reason.
ONE_REASON = {"B311": "jitter: it spreads load and guards nothing; secrets are made by `secrets`"}

REASONS = {
    "*_seen": "the number of things that were looked at",
    "*_unreachable": "no service here answers for them; printed as not looked at",
}
GOALS = (
    Goal("bandit_unexplained", 0),
    Goal("secrets", 0),
    Goal("chart_findings", 0),
    Goal("vulnerable", 0),
    Goal("unhashed", 0),
)


@dataclass
class Looked:
    """The result of one check; ``findings`` are printed lines."""

    findings: list[str] = field(default_factory=list)
    #: Numbers of checked and of unreachable items.
    checked: int = 0
    unreachable: int = 0


def ran(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command and return its result; the caller judges the exit status."""
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)


def bandit() -> Looked:
    """Check that each finding of bandit has a reason at its line, by ruff's or bandit's mark."""
    done = ran(
        sys.executable, "-m", "bandit", "--quiet", "--ignore-nosec", "-f", "json", "-r",
        "operator", "webhooks", "scripts",
    )  # fmt: skip
    document = json.loads(done.stdout)
    if document["errors"]:
        raise RuntimeError(f"bandit: {document['errors']}")
    looked = Looked(checked=len(document["results"]))
    for finding in document["results"]:
        lines = (ROOT / finding["filename"]).read_text().splitlines()
        number = finding["line_number"] - 1
        if not explained(finding["test_id"], lines[max(0, number - 1) : number + 1]):
            place = f"{finding['filename']}:{finding['line_number']}"
            looked.findings.append(f"{place}: {finding['test_id']} {finding['issue_text']}")
    return looked


def explained(test: str, lines: list[str]) -> bool:
    """Return True if a line, or a comment above it, gives a reason for a finding."""
    reason = "" if test in ONE_REASON else r" - \w+"
    mark = rf"(noqa: [A-Z0-9, ]*S{test[1:]}\b[A-Z0-9, ]*|nosec {test}){reason}"
    above = [line for line in lines[:-1] if line.lstrip().startswith("#")]
    return any(re.search(mark, line) for line in [*above, lines[-1]])


def secrets() -> Looked:
    """Check that no commit contains a secret, except those that .gitleaks.toml explains."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = ran(
            path_of("gitleaks"), "git", ".", "--no-banner", "--redact", "--log-level", "error",
            "--report-format", "json", "--report-path", report,
        )  # fmt: skip
        if not report.exists():
            raise RuntimeError(f"gitleaks: {done.stderr[-500:]}")
        findings = json.loads(report.read_text())
    commits = int(ran("git", "rev-list", "--count", "--all").stdout)
    lines = [f"{f['File']}:{f['StartLine']} in {f['Commit'][:10]}: {f['RuleID']}" for f in findings]
    return Looked(lines, commits)


def chart() -> Looked:
    """Check the chart with each set of values of its tests, including one with all options."""
    from tests.unit.chart.rendering import VARIANTS, render

    looked = Looked()
    ignored = [part for name in NOT_FOLLOWED for part in ("--ignore-test", name)]
    for name, values in VARIANTS.items():
        kinds = {"CustomResourceDefinition", "ServiceMonitor"}
        objects = [thing for thing in render(values) if thing["kind"] not in kinds]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump_all(objects, file)
            file.flush()
            done = ran(
                path_of("kube-score"), "score", "--output-format", "json",
                "--ignore-container-cpu-limit", *ignored, file.name,
            )  # fmt: skip
        for thing in json.loads(done.stdout):
            for check in thing["checks"]:
                looked.checked += not check["skipped"]
                if not check["skipped"] and check["grade"] < 10:
                    why = "; ".join(c["summary"] for c in check["comments"] or ())
                    looked.findings.append(f"{name}: {thing['object_name']}: {why}")
    return looked


def dependencies() -> Looked:
    """Check the images' packages for known vulnerabilities; needs the vulnerability service."""
    done = ran(
        sys.executable, "-m", "pip_audit", "--requirement", REQUIREMENTS[0], "--require-hashes",
        "--disable-pip", "--progress-spinner", "off", "--format", "json",
    )  # fmt: skip
    looked = Looked()
    try:
        listed: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        looked.unreachable = len(pinned(ROOT / REQUIREMENTS[0]))
        return looked
    for requirement in listed:
        if "skip_reason" in requirement:
            looked.unreachable += 1
            continue
        looked.checked += 1
        looked.findings += [
            f"{requirement['name']} {requirement['version']}: {v['id']}"
            for v in requirement["vulns"]
        ]
    return looked


def pinned(path: Path) -> dict[str, bool]:
    """Return for each requirement of a lock file whether it has a hash."""
    blocks = re.split(r"\n(?=[A-Za-z0-9])", path.read_text())
    names = [(block.split()[0], "--hash=sha256:" in block) for block in blocks if "==" in block]
    return dict(names)


def locks() -> Looked:
    """Check that every installed package is pinned by a hash."""
    looked = Looked()
    for name in REQUIREMENTS:
        for requirement, hashed in pinned(ROOT / name).items():
            looked.checked += 1
            if not hashed or "==" not in requirement:
                looked.findings.append(f"{name}: {requirement} has no hash")
    return looked


CHECKS = {
    "bandit": (bandit, "bandit_unexplained"),
    "gitleaks": (secrets, "secrets"),
    "kube-score": (chart, "chart_findings"),
    "pip-audit": (dependencies, "vulnerable"),
    "locks": (locks, "unhashed"),
}


def main() -> int:
    """Run the checks and print their findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(CHECKS), action="append")
    wanted = parser.parse_args().only or list(CHECKS)
    figures: dict[str, int] = {}
    for name in wanted:
        check, figure = CHECKS[name]
        looked = check()
        print(f"{name}: looked at {looked.checked}, found {len(looked.findings)}")
        if looked.unreachable:
            print(f"{name}: NOT LOOKED AT {looked.unreachable}: the service is not reachable here")
        for line in looked.findings:
            print(f"  {line}")
        # Nothing found where nothing was looked at is no figure, and no goal that was met.
        if looked.checked:
            figures[figure] = len(looked.findings)
        figures[f"{name.replace('-', '_')}_seen"] = looked.checked
        figures[f"{name.replace('-', '_')}_unreachable"] = looked.unreachable
    return outcome("audit", figures, [goal for goal in GOALS if goal.figure in figures], REASONS)


if __name__ == "__main__":
    raise SystemExit(main())
