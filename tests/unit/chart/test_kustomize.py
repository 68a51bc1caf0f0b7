"""The kustomize base is the chart, rendered."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from engineroom.api import kinds
from tests.cluster import binaries
from tests.unit.chart.rendering import ROOT, helm

if TYPE_CHECKING:
    from pathlib import Path

KUSTOMIZE = ROOT / "deploy/kustomize"


def kubectl() -> str:
    found = shutil.which("kubectl")
    if found is not None:
        return found
    program = binaries.PROGRAMS["kubernetes"].folder / "kubectl"
    if not program.exists():
        pytest.skip("kubectl is missing")
    return str(program)


def build(folder: Path) -> list[dict[str, Any]]:
    command = [kubectl(), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [thing for thing in yaml.safe_load_all(done.stdout) if thing]


def test_the_base_is_what_the_chart_renders() -> None:
    specification = importlib.util.spec_from_file_location("render", KUSTOMIZE / "render.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["render"] = module
    specification.loader.exec_module(module)
    for path, text in module.files(helm()).items():
        assert path.read_text() == text, f"run deploy/kustomize/render.py: {path.name} is old"


def test_neither_flux_nor_argo_cd_prunes_the_crds_and_the_namespace() -> None:
    kept = [
        thing
        for thing in build(KUSTOMIZE / "base")
        if thing["kind"] in {"CustomResourceDefinition", "Namespace"}
    ]

    assert len(kept) == len(kinds.KINDS) + 1
    for thing in kept:
        annotations = thing["metadata"]["annotations"]
        assert annotations["kustomize.toolkit.fluxcd.io/prune"] == "disabled"
        assert annotations["argocd.argoproj.io/sync-options"] == "Prune=false"


def test_the_base_builds_without_a_trace_of_helm() -> None:
    objects = build(KUSTOMIZE / "base")
    kinds = {thing["kind"] for thing in objects}
    assert {"Namespace", "CustomResourceDefinition", "Deployment", "StatefulSet"} <= kinds
    assert "Pod" not in kinds
    assert "helm" not in yaml.safe_dump_all(objects).lower()
    (namespace,) = [thing for thing in objects if thing["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_example_gives_every_pod_the_secrets_that_the_user_made(tmp_path: Path) -> None:
    shutil.copytree(KUSTOMIZE, tmp_path / "kustomize")
    example = tmp_path / "kustomize/example"
    (example / "redis.env").write_text("password=abc\nurl=redis://:abc@engineroom-redis:6379/0\n")
    (example / "api.env").write_text("secret=0123456789abcdef\nadmin-password=def\n")
    objects = build(example)
    secrets = {
        o["metadata"]["name"].rpartition("-")[0]: o["metadata"]["name"]
        for o in objects
        if o["kind"] == "Secret" and "data" in o
    }
    assert secrets.keys() == {"engineroom-redis", "engineroom-api"}
    workloads = [o for o in objects if o["kind"] in ("Deployment", "StatefulSet")]

    def users(secret: str) -> set[str]:
        found = [w for w in workloads if re.search(f"[nN]ame: {secret}\n", yaml.safe_dump(w))]
        return {w["metadata"]["name"] for w in found}

    everybody = {"engineroom-operator", "engineroom-redis", "engineroom-api"}
    assert users(secrets["engineroom-redis"]) == everybody
    assert users(secrets["engineroom-api"]) == {"engineroom-api"}
