"""System requirements of a cluster: find out what is missing and install it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .api import ClusterError, Shape
from .progress import step

_CONTROL_PLANE = frozenset(Shape)
_NODE = frozenset({Shape.NODE})
# Debian keeps these from users' search paths.
_SEARCH = os.pathsep.join(
    (os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin")
)
_OLDEST_GO = (
    1,
    21,
)  # From here on Go fetches a newer toolchain by itself where a module asks for it.


@dataclass(frozen=True)
class Need:
    """A requirement of a shape. `evidence` is a command, or a path that begins with a slash."""

    evidence: str
    package: str
    purpose: str
    shapes: frozenset[Shape] = _NODE

    def met(self) -> bool:
        if self.evidence.startswith("/"):
            return any(Path("/").glob(self.evidence.removeprefix("/")))
        return shutil.which(self.evidence, path=_SEARCH) is not None


NEEDS = (
    Need("openssl", "openssl", "the cluster's certificates", _CONTROL_PLANE),
    Need("go", "golang-go", "building Kubernetes", _CONTROL_PLANE),
    Need("gcc", "gcc", "building runc and the pause program"),
    Need("/usr/lib/*/libc.a", "libc6-dev", "the static pause program"),
    Need("pkg-config", "pkg-config", "building runc"),
    Need("/usr/include/seccomp.h", "libseccomp-dev", "building runc"),
    Need("ip", "iproute2", "the node's network"),
    Need("nft", "nftables", "Services, by kube-proxy"),
    Need("conntrack", "conntrack", "Services, by kube-proxy"),
    Need("nsenter", "util-linux", "the node's network"),
    Need("mount", "mount", "volumes of pods"),
    Need("/usr/lib/cni/ptp", "containernetworking-plugins", "the network of pods"),
    Need("debootstrap", "debootstrap", "the base image"),
    Need(
        "/usr/share/keyrings/debian-archive-keyring.*",
        "debian-archive-keyring",
        "the base image",
    ),
    Need("buildah", "buildah", "building images"),
    Need("make", "make", "the project's targets"),
    Need("redis-server", "redis-server", "the project's integration tests"),
    Need("nginx", "nginx-light", "tests of rate limits"),
    Need("wrk", "wrk", "benchmarks of rate limits"),
    Need("node", "nodejs", "the OIDC provider of the tests"),
    Need("npm", "npm", "the OIDC provider of the tests"),
    Need("/usr/lib/postgresql/*/bin/initdb", "postgresql", "tests of transactions"),
)


def missing(shape: Shape) -> list[Need]:
    """Return the requirements of the shape that the system does not meet."""
    return [need for need in NEEDS if shape in need.shapes and not need.met()]


def require(shape: Shape) -> None:
    """Prepare the system for the shape.

    As root on a Debian-like system, missing packages are installed. Otherwise raises ClusterError
    with the command to run.
    """
    lacking = missing(shape)
    if lacking:
        _get(lacking)
    _check_go()
    if shape is Shape.NODE and os.geteuid() != 0:
        raise ClusterError(
            "a node needs root, for network namespaces and containers; run as root, "
            "or use --shape control-plane, or a cluster of yours with CLUSTER=current"
        )


def _get(lacking: list[Need]) -> None:
    packages = sorted({need.package for need in lacking})
    names = " ".join(packages)
    command = f"apt-get update && apt-get install --no-install-recommends {names}"
    reasons = "\n".join(f"  {need.package}: {need.purpose}" for need in lacking)
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        sudo = "as root" if shutil.which("apt-get") else "your package manager's equivalent of"
        raise ClusterError(f"packages are missing:\n{reasons}\nRun {sudo}: {command}")
    with step(f"install {names}", slow=True):
        problem = _apt_install(packages)
        if problem is not None:
            # The lists may be old, or never fetched.
            _apt("update")
            problem = _apt_install(packages)
    if problem is not None:
        raise ClusterError(f"packages cannot be installed:\n{reasons}\nTry: {command}\n{problem}")
    remaining = [need for need in lacking if not need.met()]
    if remaining:
        names = ", ".join(f"{need.evidence} of {need.package}" for need in remaining)
        raise ClusterError(f"still missing after the packages were installed: {names}")


def _apt_install(packages: list[str]) -> str | None:
    """Install packages; return None on success, else apt's error message."""
    # Debian starts a service when it is installed; what is wanted here is only the program.
    with _NoServices():
        return _apt("install", "--yes", "--no-install-recommends", *packages)


class _NoServices:
    """Prevents packages from starting services while they are installed."""

    _policy = Path("/usr/sbin/policy-rc.d")

    def __enter__(self) -> None:
        self._ours = not self._policy.exists()
        if self._ours:
            self._policy.write_text("#!/bin/sh\nexit 101\n")
            self._policy.chmod(0o755)

    def __exit__(self, *_: object) -> None:
        if self._ours:
            self._policy.unlink(missing_ok=True)


def _apt(*arguments: str) -> str | None:
    result = subprocess.run(
        ["apt-get", "-qq", *arguments],
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return None if result.returncode == 0 else result.stderr.strip()


def _check_go() -> None:
    version = subprocess.run(["go", "version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"go(\d+)\.(\d+)", version)
    if match is None or (int(match[1]), int(match[2])) < _OLDEST_GO:
        oldest = ".".join(map(str, _OLDEST_GO))
        raise ClusterError(
            f"Go {oldest} or newer is needed, {version.strip() or 'none'} is here; see https://go.dev/doc/install"
        )


def report(shape: Shape) -> bool:
    """Print the requirements of the shape and whether they are met; return True if all are."""
    for need in NEEDS:
        if shape in need.shapes:
            mark = "ok     " if need.met() else "missing"
            print(f"{mark} {need.package:30} {need.purpose}", file=sys.stdout)
    return not missing(shape)
