"""The programs of a cluster, built from Go modules once per version and cached for the user."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .api import ClusterError, Shape
from .paths import cache_directory
from .progress import step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SOURCE = Path(__file__).parent / "go" / "kubernetes"
_TRAEFIK = Path(__file__).parent / "go" / "traefik"
_KEDA = Path(__file__).parent / "go" / "keda"
_KSTATUS = Path(__file__).parent / "go" / "kstatus"
KUBERNETES = "v1.37.2"


@dataclass(frozen=True)
class Program:
    """A program to build: packages of a published module, or of a module in this repository."""

    name: str
    version: str
    packages: tuple[str, ...]
    provides: tuple[str, ...]
    module: Path | None = None  # built in place; its go.mod says the versions
    tags: str = ""
    cgo: bool = False
    link: str = ""  # further flags for the linker

    @property
    def key(self) -> str:
        """A hash of everything that the build depends on."""
        digest = hashlib.sha256()
        parts = (self.packages, self.provides, self.version, self.tags, self.cgo, self.link)
        digest.update(repr((parts, platform.machine())).encode())
        if self.module is not None:
            for path in sorted(self.module.iterdir()):
                digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        return digest.hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """The folder of the built programs."""
        return cache_directory() / "programs" / f"{self.name}-{self.version}-{self.key}"


def _kubernetes_version_flags() -> str:
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    values = {
        "gitVersion": KUBERNETES,
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
    }
    return " ".join(f"-X k8s.io/component-base/version.{k}={v}" for k, v in values.items())


_CONTAINERD = "github.com/containerd/containerd/v2/cmd"

PROGRAMS: dict[str, Program] = {
    program.name: program
    for program in (
        Program(
            "kubernetes",
            KUBERNETES,
            (".",),
            (
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kubelet",
                "kube-proxy",
                "kubectl",
                "etcd",
            ),
            module=_SOURCE,
            link=_kubernetes_version_flags(),
        ),
        Program(
            "containerd",
            "v2.4.2",
            tuple(
                f"{_CONTAINERD}/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr")
            ),
            ("containerd", "containerd-shim-runc-v2", "ctr"),
        ),
        Program(
            "runc",
            "v1.5.2",
            ("github.com/opencontainers/runc",),
            ("runc",),
            tags="seccomp",
            cgo=True,
        ),
        Program("helm", "v4.3.1", ("helm.sh/helm/v4/cmd/helm",), ("helm",)),
        Program("coredns", "v1.15.0", ("github.com/coredns/coredns",), ("coredns",)),
        Program("kwok", "v0.8.0", ("sigs.k8s.io/kwok/cmd/kwok",), ("kwok",)),
        Program(
            "metrics-server",
            "v0.9.0",
            ("sigs.k8s.io/metrics-server/cmd/metrics-server",),
            ("metrics-server",),
        ),
        # What the tests of rate limits stand in front of an application.
        Program(
            "traefik",
            "v3.5.3",
            ("github.com/traefik/traefik/v3/cmd/traefik",),
            ("traefik",),
            module=_TRAEFIK,
        ),
        # The health checks of GitOps engines, for the tests of status.
        Program("kstatus", "v0.37.2", (".",), ("kstatus",), module=_KSTATUS),
        # What `make audit` looks with: for secrets in the history, at the rendered chart.
        Program("gitleaks", "v8.30.1", ("github.com/zricethezav/gitleaks/v8",), ("gitleaks",)),
        Program(
            "kube-score",
            "v1.20.0",
            ("github.com/zegl/kube-score/cmd/kube-score",),
            ("kube-score",),
        ),
        # The peers of benchmarks: of the reaction, and of rate limits.
        Program(
            "keda",
            "v2.21.0",
            ("github.com/kedacore/keda/v2/cmd/operator",),
            ("keda",),
            module=_KEDA,
        ),
        Program(
            "envoy-ratelimit",
            "v1.4.1-0.20260122083618-3fb702589d36",
            ("github.com/envoyproxy/ratelimit/src/service_cmd",),
            ("service_cmd",),
        ),
    )
}

# Nothing is built that a shape does not run: the control plane alone is there soonest.
NEEDED: dict[Shape, tuple[str, ...]] = {
    Shape.CONTROL_PLANE: ("kubernetes",),
    Shape.SCALE: ("kubernetes", "kwok"),
    Shape.NODE: ("kubernetes", "containerd", "runc", "helm", "coredns", "metrics-server"),
}


def ensure(shape: Shape) -> None:
    """Build the programs that the shape needs and the cache lacks. The first build takes minutes.

    Raises ClusterError with the compiler's last lines if a build fails.
    """
    for name in NEEDED[shape]:
        build(PROGRAMS[name])


def build(program: Program) -> Path:
    """Return the folder of the built program. If several processes call it, one builds and the
    others wait.
    """
    if program.folder.exists():
        return program.folder
    with _lock(program):
        if not program.folder.exists():
            with step(f"build {program.name} {program.version}", slow=True) as detail:
                _build(program, detail)
    return program.folder


def module_folder(program: Program, module: str) -> Path:
    """Return the folder of the sources of ``module`` as ``program`` is built from it."""
    command = ["go", "list", "-m", "-f", "{{.Dir}}", module]
    done = subprocess.run(
        command, cwd=program.module, check=True, stdout=subprocess.PIPE, text=True
    )
    return Path(done.stdout.strip())


def path_of(command: str) -> Path:
    """Return the path of a program's executable; build it first if necessary."""
    return build(_provider(command)) / command


def built() -> list[Path]:
    """Return the folders of the cached programs, for a PATH."""
    return [program.folder for program in PROGRAMS.values() if program.folder.exists()]


def _provider(command: str) -> Program:
    for program in PROGRAMS.values():
        if command in program.provides:
            return program
    raise KeyError(command)


def _build(program: Program, detail: Callable[[str], None]) -> None:
    folder = program.folder
    with tempfile.TemporaryDirectory(prefix=f".{program.name}-", dir=folder.parent) as scratch:
        output = Path(scratch) / "output"
        output.mkdir()
        arguments = [
            "-v",
            "-trimpath",
            "-buildvcs=false",
            "-ldflags",
            f"-s -w {program.link}".rstrip(),
        ]
        if program.tags:
            arguments += ["-tags", program.tags]
        environment = os.environ | {"CGO_ENABLED": "1" if program.cgo else "0"}
        if program.module is not None:
            command = [
                "go",
                "build",
                "-o",
                f"{output}/{program.name}",
                *arguments,
                *program.packages,
            ]
        else:
            environment |= {"GOBIN": str(output)}
            wanted = [f"{package}@{program.version}" for package in program.packages]
            command = ["go", "install", *arguments, *wanted]
        _run_go(command, program.module or Path(scratch), environment, detail)
        if program.module is not None:
            for name in program.provides:
                if name != program.name:
                    (output / name).symlink_to(program.name)
        # What is at the final place is whole: an interrupted build leaves only the scratch folder.
        output.rename(folder)


def _run_go(
    command: list[str], folder: Path, environment: dict[str, str], detail: Callable[[str], None]
) -> None:
    if shutil.which("go") is None:
        raise ClusterError("Go is missing; `python -m tests.cluster doctor` says how to get it")
    lines: list[str] = []
    packages = 0
    with subprocess.Popen(
        ["nice", *command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                lines = [*lines[-30:], line]
                if not line.startswith("go: "):
                    packages += 1
                detail(f"{packages} packages compiled" if packages else "downloading modules")
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
    if code != 0:
        raise ClusterError(f"{' '.join(command)} failed:\n{''.join(lines)}")


@contextmanager
def _lock(program: Program) -> Iterator[None]:
    folder = program.folder.parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{program.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step(f"wait for another process to build {program.name}", slow=True):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
