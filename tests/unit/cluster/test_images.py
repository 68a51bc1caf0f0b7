from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cluster.images import full_name, host
from tests.cluster.images.inputs import content_hash, sources

if TYPE_CHECKING:
    from pathlib import Path

DOCKERFILE = """\
FROM debian:trixie-slim AS build
COPY --chown=1:1 pyproject.toml \\
    src/*.py /src/
COPY ["a b.txt", "/"]
RUN --mount=type=bind,source=scripts,target=/x --mount=type=cache,target=/c ./x/go
FROM debian:trixie-slim
COPY --from=build /src /src
ADD https://example.com/file /
"""


@pytest.mark.parametrize(
    ("given", "full"),
    [
        ("redis", "docker.io/library/redis:latest"),
        ("engineroom:local", "docker.io/library/engineroom:local"),
        ("team/app:1", "docker.io/team/app:1"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:1", "localhost:5000/app:1"),
    ],
)
def test_names_are_completed_as_kubernetes_does(given: str, full: str) -> None:
    assert full_name(given) == full


def test_what_a_dockerfile_takes_from_its_context() -> None:
    assert sources(DOCKERFILE) == ["pyproject.toml", "src/*.py", "a b.txt", "scripts"]


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.py").write_text("1")
    (tmp_path / "other.py").write_text("1")
    (tmp_path / "Dockerfile").write_text("FROM x\nCOPY src /src\n")
    return tmp_path


def test_an_image_is_new_when_a_file_it_copies_changed(context: Path) -> None:
    before = content_hash(context / "Dockerfile", context)
    (context / "src/a.py").write_text("2")
    assert content_hash(context / "Dockerfile", context) != before


def test_an_image_is_the_same_when_other_files_changed(context: Path) -> None:
    before = content_hash(context / "Dockerfile", context)
    (context / "other.py").write_text("2")
    (context / "src/__pycache__").mkdir()
    (context / "src/__pycache__/a.pyc").write_text("2")
    assert content_hash(context / "Dockerfile", context) == before


def test_ignored_files_do_not_count(context: Path) -> None:
    (context / ".dockerignore").write_text("# comment\n**/*.log\n")
    before = content_hash(context / "Dockerfile", context)
    (context / "src/x.log").write_text("2")
    assert content_hash(context / "Dockerfile", context) == before


def test_debian_sources_are_told_from_others_in_both_formats(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://off.example.com/debian bookworm main\n"
        "deb [signed-by=/k.gpg] http://one.example.com/debian bookworm main contrib\n"
        "deb http://vendor.example.com/apt nodistro main\n"
    )
    (folder / "debian.sources").write_text(
        "Types: deb\n# comment\nURIs: http://two.example.com/security\n"
        "Suites: bookworm-security\nComponents: main\n"
    )
    monkeypatch.setattr(host, "_APT_SOURCES", tmp_path)
    release = {"ID": "debian", "VERSION_CODENAME": "bookworm"}
    monkeypatch.setattr(host, "_release", lambda: release)
    assert host.debian_mirror() == "http://one.example.com/debian"
    sources = host.debian_sources()
    assert sources is not None
    assert "URIs: http://two.example.com/security\nSuites: trixie-security\n" in sources
    assert "vendor" not in sources
    assert "bookworm" not in sources


def test_a_machine_that_is_no_debian_lends_no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_release", lambda: {"ID": "ubuntu"})
    assert host.debian_mirror() is None
    assert host.debian_sources() is None
