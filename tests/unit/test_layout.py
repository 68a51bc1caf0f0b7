"""The project's own rules about its files."""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from engineroom.core import reasons
from tests.support import ROOT

#: Written so that this file does not break its own rule.
UNFINISHED = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX")))
MACHINE_PATH = re.compile(r"(?<![\w.-])/(?:root|work|home/\w+|tmp/v)/")
LOCKS = [*sorted(ROOT.glob("requirements/*.txt")), ROOT / "examples/shop/requirements.txt"]


@cache
def files() -> tuple[Path, ...]:
    """Files under version control, or about to be."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    paths = (ROOT / name.decode() for name in listed.split(b"\0") if name)
    return tuple(path for path in paths if path.is_file() and not path.is_symlink())


@cache
def texts() -> dict[str, str]:
    """What stands in each text file."""
    found = {}
    for path in files():
        try:
            found[str(path.relative_to(ROOT))] = path.read_text()
        except UnicodeDecodeError:
            continue
    return found


def test_operator_is_no_package() -> None:
    # With an __init__.py it would stand in front of the standard library's module operator.
    assert not (ROOT / "operator/__init__.py").exists()
    assert not (ROOT / "operator/__init__.pyi").exists()
    import operator

    assert ROOT not in Path(str(operator.__file__)).parents


def test_nothing_is_left_unfinished() -> None:
    # The licence's own text and locked hashes are not ours to write.
    ours = {
        name: text
        for name, text in texts().items()
        if not name.endswith((".sum", ".txt", "-lock.json"))
    }
    assert [name for name, text in ours.items() if UNFINISHED.search(text)] == []


def test_no_file_knows_where_it_was_written() -> None:
    assert [name for name, text in texts().items() if MACHINE_PATH.search(text)] == []


def test_no_file_names_a_package_index_of_the_machine() -> None:
    hosts = machine_hosts()
    named = [(name, host) for name, text in texts().items() for host in hosts if host in text]
    assert named == []


def test_the_lock_of_npm_names_no_source_and_hashes_everything() -> None:
    text = (ROOT / "tests/oidc/package-lock.json").read_text()
    assert "://" not in text
    packages = json.loads(text)["packages"]
    assert len(packages) > 10
    for name, entry in packages.items():
        assert "resolved" not in entry, name
        assert not name or entry["integrity"].startswith("sha512-"), name


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_locks_name_no_source_and_hash_everything(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert not re.search(r"^\s*--(index|extra-index|find-links|trusted-host)", text, re.MULTILINE)
    pinned = re.split(r"\n(?=\S)", text.strip())
    assert pinned
    for requirement in pinned:
        assert re.match(r"[\w.-]+==\S+", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement


def test_the_locks_agree_with_each_other() -> None:
    def versions(name: str) -> dict[str, str]:
        text = (ROOT / "requirements" / name).read_text()
        return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))

    everything = versions("dev.txt")
    assert versions("image.txt").items() <= everything.items()
    for name, version in versions("build.txt").items():
        assert everything.get(name, version) == version
    rq2 = versions("rq2.txt")
    assert rq2.pop("rq").startswith("2.")
    assert rq2.items() <= everything.items()


def test_imports_point_one_way() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_reason_is_described() -> None:
    constants = {
        value for name, value in vars(reasons).items() if name.isupper() and isinstance(value, str)
    }
    assert constants == set(reasons.DESCRIPTIONS)
    for reason, description in reasons.DESCRIPTIONS.items():
        assert re.fullmatch(r"([A-Z][a-z0-9]*)+", reason), reason
        assert description.endswith("."), reason


def test_every_reason_stands_in_the_documentation() -> None:
    pages = "\n".join(text for name, text in texts().items() if name.startswith("docs/"))
    assert [reason for reason in reasons.DESCRIPTIONS if f"`{reason}`" not in pages] == []


def test_every_target_of_make_has_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^\.PHONY: ([\w-]+)$", makefile, re.MULTILINE)
    assert targets
    for target in set(targets) - {"system"}:  # doctor, said quietly
        assert re.search(rf"^{target}:.*## \S", makefile, re.MULTILINE), target


def test_ci_runs_the_command_of_the_readme() -> None:
    assert "make test" in (ROOT / "README.md").read_text()
    runner = ROOT / ".ci/run"
    assert re.search(r"^make test$", runner.read_text(), re.MULTILINE)
    assert "set -euo pipefail" in runner.read_text()
    assert os.access(runner, os.X_OK)


def machine_hosts() -> set[str]:
    """Hosts of package indexes that this machine's own settings name, but for the public ones."""
    urls = [
        value
        for name, value in os.environ.items()
        if re.search(r"(INDEX_URL|REGISTRY|GOPROXY|DEFAULT_INDEX)$", name, re.IGNORECASE)
    ]
    for place in (
        "/etc/pip.conf",
        Path.home() / ".config/pip/pip.conf",
        Path.home() / ".pip/pip.conf",
    ):
        settings = configparser.ConfigParser(interpolation=None)
        settings.read(place)
        for section in settings.sections():
            urls += [value for key, value in settings[section].items() if key.endswith("index-url")]
    found = {urlsplit(part.strip()).hostname for url in urls for part in re.split(r"[\s,|]+", url)}
    return {host for host in found if host and host not in ("localhost", "127.0.0.1")}
