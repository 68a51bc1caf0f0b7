"""Settings come from the environment, and wrong ones are named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from engineroom.kube.runtime.process import EXIT_CONFIG
from engineroom.main import main
from engineroom.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


def test_all_have_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENGINEROOM_POD_NAME", raising=False)
    settings = Settings()
    assert settings.namespaces == ()
    assert settings.read_redis_url() is None
    assert settings.who
    low, high = settings.resync
    assert (low, high) == (300, 600)


def test_the_environment_as_the_chart_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "POD_NAME": "engineroom-operator-abc",
        "LEASE_NAMESPACE": "system",
        "NAMESPACES": "shop, blog,shop,",
        "RUNTIME_IMAGE": "image:1",
        "RUNTIME_IMAGE_PULL_POLICY": "Always",
        "LOG_LEVEL": "debug",
        "METRICS_PORT": "8080",
        "PROBE_PORT": "",
        "REDIS_URL": "redis://u:hunter2@host/0",
    }.items():
        monkeypatch.setenv(f"ENGINEROOM_{name}", value)
    settings = Settings()
    assert settings.who == "engineroom-operator-abc"
    assert settings.namespaces == ("shop", "blog")
    assert settings.log_level == "DEBUG"
    assert settings.probe_port is None
    assert settings.read_redis_url() == "redis://u:hunter2@host/0"
    assert "hunter2" not in repr(settings)


def test_no_namespaces_are_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEROOM_NAMESPACES", "")
    assert Settings().namespaces == ()


def test_a_file_wins_over_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "url"
    file.write_text("redis://from-file\n")
    monkeypatch.setenv("ENGINEROOM_REDIS_URL", "redis://from-variable")
    monkeypatch.setenv("ENGINEROOM_REDIS_URL_FILE", str(file))
    assert Settings().read_redis_url() == "redis://from-file"


def test_a_wrong_setting_ends_the_process_with_its_name_and_not_its_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENGINEROOM_CONCURRENCY", "hunter2")
    with pytest.raises(ValidationError):
        Settings()
    assert main() == EXIT_CONFIG
    said = capsys.readouterr().err
    assert "CONCURRENCY" in said
    assert "hunter2" not in said
