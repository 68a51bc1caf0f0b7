"""Builds images without a registry, from packages; caches them as archives for the user."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..api import ClusterError
from ..choose import docker_answers
from ..paths import cache_directory
from ..progress import step
from . import base, host
from .inputs import content_hash

if TYPE_CHECKING:
    from collections.abc import Iterator

_HERE = Path(__file__).parent
PAUSE = "engineroom-pause:local"
REDIS = "engineroom-redis:local"
OWN = (base.NAME, PAUSE, REDIS)
# Part of every image's key: raise it when the way of building changes what comes out.
_RECIPE = "1"


def full_name(image: str) -> str:
    """Return the name as Kubernetes resolves it: `redis` is `docker.io/library/redis:latest`."""
    first, slash, _ = image.partition("/")
    if not slash:
        image = f"docker.io/library/{image}"
    elif not ("." in first or ":" in first or first == "localhost"):
        image = f"docker.io/{image}"
    return image if ":" in image.rpartition("/")[2] or "@" in image else f"{image}:latest"


def build(dockerfile: Path, target: str | None, tag: str, context: Path) -> Path:
    """Build an image and return its docker archive.

    `target` is a stage of the Dockerfile, None for the last. If none of its inputs has changed, the
    earlier archive is returned. Raises ClusterError with the end of the output if the build fails.
    """
    if not tag:
        raise ClusterError("an image needs a --tag")
    if not dockerfile.is_file():
        raise ClusterError(f"there is no Dockerfile {dockerfile}")
    name = full_name(tag)
    key = content_hash(dockerfile, context, _RECIPE, target or "", name, base.RECIPE)
    archive = _archive(name, key)
    if archive.exists():
        return archive
    with _lock(archive.parent):
        if not archive.exists():
            with step(f"build image {tag}", slow=True):
                engine = _Docker() if docker_answers() else _Buildah()
                engine.build(dockerfile, target, name, context)
                _keep(engine, name, archive)
    return archive


def own(image: str) -> Path:
    """Return the archive of one of the cluster's own images; build it first if necessary. Raises
    KeyError for other names.
    """
    if image == base.NAME:
        return _base()
    if image == REDIS:
        folder = _HERE / "redis"
        return build(folder / "Dockerfile", None, REDIS, folder)
    if image == PAUSE:
        return _pause()
    raise KeyError(image)


@contextmanager
def archive_of(image: str | Path) -> Iterator[Path]:
    """Return the docker archive of an image: a file, one of the cluster's own, or a built one by
    name.

    Raises ClusterError if there is none.
    """
    if Path(image).is_file():
        yield Path(image)
        return
    if str(image) in OWN:
        yield own(str(image))
        return
    name = full_name(str(image))
    archives = _archives(name)
    if archives:
        yield archives[-1]
        return
    engine = _Docker() if docker_answers() else _Buildah()
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "image.tar"
        engine.save(name, archive)
        yield archive


class _Buildah:
    """Builds without a Docker engine."""

    def __init__(self) -> None:
        root = cache_directory() / "storage"
        # What is in use does not survive a reboot, and must not be believed to.
        runtime = Path("/run" if os.geteuid() == 0 else tempfile.gettempdir()) / "engineroom-images"
        self._command = ["buildah", "--root", str(root), "--runroot", str(runtime)]
        self._environment = os.environ | {
            "STORAGE_DRIVER": _storage_driver(root),
            "BUILDAH_ISOLATION": "chroot",
        }

    def build(self, dockerfile: Path, target: str | None, name: str, context: Path) -> None:
        if "debian:trixie-slim" in dockerfile.read_text():
            self.ensure_base()
        stage = [] if target is None else ["--target", target]
        with host.package_indexes() as mounts:
            volumes = [f"--volume={source}:{place}:ro" for source, place in mounts]
            options = ["--pull-never", "--layers", "--file", str(dockerfile), "--tag", name]
            self.run("bud", *options, *stage, *volumes, str(context))

    def ensure_base(self) -> None:
        """Ensure that the store has the base image, and cache its archive."""
        key = base.RECIPE
        if self._has(f"{full_name(base.NAME)}") and self._has(f"engineroom.invalid/base:{key}"):
            return
        with tempfile.TemporaryDirectory(dir=_folder()) as scratch:
            root = base.bootstrap(Path(scratch))
            container = self.run("from", "scratch").strip()
            try:
                self.run("add", "--quiet", container, str(root), "/")
                self.run("config", "--cmd", '["bash"]', container)
                self.run("commit", "--quiet", container, full_name(base.NAME))
            finally:
                self.run("rm", container)
        self.run("tag", full_name(base.NAME), f"engineroom.invalid/base:{key}")

    def save(self, name: str, archive: Path) -> None:
        if not self._has(name):
            raise ClusterError(
                f"there is no image {name}: build it first, with `python -m tests.cluster images`"
            )
        self.run("push", "--quiet", name, f"docker-archive:{archive}:{name}")

    def _has(self, name: str) -> bool:
        command = [*self._command, "inspect", "--type", "image", name]
        result = subprocess.run(command, env=self._environment, capture_output=True, check=False)
        return result.returncode == 0

    def run(self, *arguments: str) -> str:
        return _run([*self._command, *arguments], self._environment)


class _Docker:
    """Builds with a Docker engine, which pulls base images itself."""

    def build(self, dockerfile: Path, target: str | None, name: str, context: Path) -> None:
        stage = [] if target is None else ["--target", target]
        _run(["docker", "build", "--file", str(dockerfile), "--tag", name, *stage, str(context)])

    def save(self, name: str, archive: Path) -> None:
        _run(["docker", "save", "--output", str(archive), name])


def _storage_driver(root: Path) -> str:
    """Return overlay, which stores layers as differences, or vfs, which copies them and works on
    every file system.
    """
    chosen = os.environ.get("STORAGE_DRIVER")
    if chosen:
        return chosen
    root.mkdir(parents=True, exist_ok=True)
    command = ["stat", "--file-system", "--format=%T", str(root)]
    kind = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return "vfs" if kind == "overlayfs" or os.geteuid() != 0 else "overlay"


def _base() -> Path:
    name = full_name(base.NAME)
    archive = _archive(name, base.RECIPE)
    if archive.exists():
        return archive
    with _lock(archive.parent):
        if not archive.exists():
            buildah = _Buildah()
            buildah.ensure_base()
            _keep(buildah, name, archive)
    return archive


def _pause() -> Path:
    folder = _HERE / "pause"
    name = full_name(PAUSE)
    archive = _archive(name, content_hash(folder / "Dockerfile", folder, _RECIPE, "pause.c"))
    if archive.exists():
        return archive
    with _lock(archive.parent), tempfile.TemporaryDirectory() as scratch:
        if not archive.exists():
            program, dockerfile = Path(scratch) / "pause", Path(scratch) / "Dockerfile"
            _run(["gcc", "-Os", "-static", "-s", "-o", str(program), str(folder / "pause.c")])
            shutil.copy(folder / "Dockerfile", dockerfile)
            engine = _Docker() if docker_answers() else _Buildah()
            engine.build(dockerfile, None, name, Path(scratch))
            _keep(engine, name, archive)
    return archive


def _keep(engine: _Buildah | _Docker, name: str, archive: Path) -> None:
    """Write the archive atomically and delete older ones of the same name."""
    older = _archives(name)
    new = archive.with_suffix(".new")
    new.unlink(missing_ok=True)
    engine.save(name, new)
    new.rename(archive)
    for path in older:
        path.unlink(missing_ok=True)


def _folder() -> Path:
    folder = cache_directory() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _label(name: str) -> str:
    readable = "".join(c if c.isalnum() or c in ".-" else "_" for c in name)
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _archive(name: str, key: str) -> Path:
    return _folder() / f"{_label(name)}-{key}.tar"


def _archives(name: str) -> list[Path]:
    """Return the archives of a name, the newest last."""
    return sorted(_folder().glob(f"{_label(name)}-*.tar"), key=lambda path: path.stat().st_mtime)


def _run(command: list[str], environment: dict[str, str] | None = None) -> str:
    result = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        lines = (result.stdout + result.stderr).strip().splitlines()
        end = "\n".join(lines[-25:])
        raise ClusterError(f"{command[0]} failed ({' '.join(command)}):\n{end}")
    return result.stdout


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
