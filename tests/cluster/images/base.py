"""The base image: the content of `debian:trixie-slim`, created by debootstrap from the machine's
mirror.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from ..api import ClusterError
from ..progress import step
from . import host

if TYPE_CHECKING:
    from pathlib import Path

NAME = "debian:trixie-slim"
SUITE = "trixie"
# As in Debian's slim images: manuals are of no use in a container.
_LEFT_OUT = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
)
_DPKG = "".join(f"path-exclude /{folder}/*\n" for folder in _LEFT_OUT) + "force-unsafe-io\n"
_APT = """\
APT::Install-Recommends "true";
Acquire::Languages "none";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb \
|| true"; };
"""
_APT_INDEXES = 'Acquire::GzipIndexes "true";\n'
RECIPE = hashlib.sha256(
    f"{SUITE}\n{_DPKG}\n{_APT}\n{_APT_INDEXES}\nca-certificates".encode()
).hexdigest()[:12]


def bootstrap(folder: Path) -> Path:
    """Create the root file system below the folder, as root. Takes half a minute."""
    if os.geteuid() != 0:
        raise ClusterError("the base image is made by debootstrap, which needs root")
    root = folder / "root"
    with step(f"bootstrap {NAME}", slow=True):
        mirror = host.debian_mirror()
        command = ["debootstrap", "--variant=minbase", "--include=ca-certificates", SUITE]
        environment = os.environ | {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}
        result = subprocess.run(
            # Without a mirror of the machine's own debootstrap knows one.
            [*command, str(root), *([mirror] if mirror else [])],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            end = "\n".join(result.stdout.splitlines()[-10:])
            raise ClusterError(f"debootstrap failed:\n{end}")
        _make_general(root, sources=mirror is None)
    return root


def _make_general(root: Path, *, sources: bool) -> None:
    """Remove everything specific to this machine; `sources` says whether the sources of debootstrap
    stay.
    """
    for name in ("etc/resolv.conf", "etc/hostname", "etc/machine-id"):
        (root / name).unlink(missing_ok=True)
    # Where builds mount the machine's own.
    place = root / "etc/apt/sources.list.d/debian.sources"
    place.parent.mkdir(exist_ok=True)
    place.touch()
    if not sources:
        (root / "etc/apt/sources.list").unlink(missing_ok=True)
    (root / "etc/apt/apt.conf.d/docker-clean").write_text(_APT)
    # Where builds mount the machine's own settings; official images have this file too.
    (root / "etc/apt/apt.conf.d/docker-gzip-indexes").write_text(_APT_INDEXES)
    (root / "etc/dpkg/dpkg.cfg.d/docker").write_text(_DPKG)
    for name in ("var/lib/apt/lists", "var/cache/apt", "var/log", *_LEFT_OUT):
        for entry in (root / name).glob("*"):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for name in ("var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/log/apt"):
        (root / name).mkdir(parents=True, exist_ok=True)
