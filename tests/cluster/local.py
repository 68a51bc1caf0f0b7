"""A cluster of processes on this machine."""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from . import binaries, system
from .api import ClusterError, Shape
from .control_plane import ControlPlane
from .layout import Layout, check_name, plan
from .paths import clusters_directory
from .process import Component, Identity, components
from .progress import step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_COVERS = {
    Shape.CONTROL_PLANE: {Shape.CONTROL_PLANE},
    Shape.SCALE: {Shape.SCALE, Shape.CONTROL_PLANE},
    Shape.NODE: {Shape.NODE, Shape.CONTROL_PLANE},
}
_ATTEMPTS = 3


class Extension(Protocol):
    """The components of a shape beside its control plane."""

    def prepare(self) -> None:
        """Create what must exist before the processes start."""

    def start(self) -> None:
        """Configure and start the stopped processes; return when they are ready."""

    def load(self, archive: Path, image: str) -> None:
        """Load the images of a docker archive onto the nodes."""

    def wait(self, component: str) -> None:
        """Return when a component that was just started works."""


class Local:
    """A cluster of local processes; several can run, distinguished by name.

    With an `owner` (the fields of an `Identity`) the cluster is private to that process, and
    `remove_abandoned` removes it when the process has ended.
    """

    def __init__(self, name: str, *, owner: tuple[int, int, str] | None = None) -> None:
        check_name(name)
        self.name = name
        self._owner = owner
        self._root = clusters_directory() / name

    @property
    def kubeconfig(self) -> Path:
        return self._root / "kubeconfig"

    @property
    def server(self) -> str:
        return self._layout().server

    def up(self, shape: Shape) -> None:
        system.require(shape)
        binaries.ensure(shape)
        with self._lock(), step(f"start cluster {self.name} ({shape})"):
            layout = self._layout_for(shape)
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    self._start(layout)
                    return
                except ClusterError as error:
                    in_use = "address already in use" in str(error)
                    if layout.own_network or not in_use or attempt == _ATTEMPTS:
                        raise
                    # Someone took a port between our choice and the server's start.
                    self._end_processes()
                    shutil.rmtree(self._root / "etcd", ignore_errors=True)
                    layout = layout.with_other_ports(layouts())
                    layout.save()

    def down(self) -> None:
        with self._lock():
            layout = Layout.read(self._root)
            if layout is None and not self._root.exists():
                return
            with step(f"stop cluster {self.name}"):
                self._end_processes()
                if layout is not None and layout.own_network:
                    from .node import remove

                    remove(layout)
                shutil.rmtree(self._root)

    def load(self, image: str | Path) -> None:
        layout = self._layout()
        extension = _extension(layout)
        if extension is None:
            raise ClusterError(
                f"cluster {self.name} ({layout.shape}) has no node to load an image on"
            )
        from .images import archive_of

        with archive_of(image) as archive, step(f"load {image}"):
            extension.load(archive, str(image))

    def env(self) -> dict[str, str]:
        programs = [binaries.PROGRAMS[name].folder for name in ("kubernetes", "helm")]
        path = [str(folder) for folder in programs if folder.exists()]
        if "PATH" in os.environ:
            path.append(os.environ["PATH"])
        return os.environ | {"KUBECONFIG": str(self.kubeconfig), "PATH": os.pathsep.join(path)}

    def stop(self, component: str) -> None:
        # The API server waits long for watchers to leave; a fault does not.
        self._component(component).stop(grace=2.0)

    def start(self, component: str) -> None:
        self._component(component).start()
        layout = self._layout()
        if component in ("apiserver", "etcd"):
            control_plane = ControlPlane(layout)
            # The API server may have given up on etcd meanwhile.
            control_plane.wait_for_apiserver()
        elif (extension := _extension(layout)) is not None:
            extension.wait(component)

    def restart(self, component: str) -> None:
        self.stop(component)
        self.start(component)

    def status(self) -> dict[str, bool]:
        """Return the state of each component; empty if there is no cluster."""
        return {component.name: component.running() for component in components(self._root)}

    @property
    def shape(self) -> Shape | None:
        """Return the shape that the cluster was started in; None if there is no cluster."""
        layout = Layout.read(self._root)
        return None if layout is None else layout.shape

    def _layout(self) -> Layout:
        layout = Layout.read(self._root)
        if layout is None:
            raise ClusterError(
                f"there is no cluster {self.name}; `python -m tests.cluster up --name {self.name}`"
            )
        return layout

    def _layout_for(self, shape: Shape) -> Layout:
        """Return the layout of the existing cluster, or a new one."""
        present = Layout.read(self._root)
        if present is None:
            with _locked(clusters_directory() / ".plan.lock"):
                planned = plan(self._root, shape, layouts(), self._owner)
                planned.save()
            return planned
        if shape not in _COVERS[present.shape]:
            raise ClusterError(
                f"cluster {self.name} is up as {present.shape}, not {shape}; "
                "take it down first, or use another name"
            )
        if present.owner != self._owner:
            present = replace(present, owner=self._owner)
            present.save()
        return present

    def _start(self, layout: Layout) -> None:
        extension = _extension(layout)
        if extension is not None:
            extension.prepare()
        control_plane = ControlPlane(layout)
        control_plane.configure()
        with step("control plane"):
            control_plane.start()
        if extension is not None:
            extension.start()

    def _end_processes(self) -> None:
        """Stop clients before servers, so that none waits for a stopped server."""
        last = ["apiserver", "etcd"]
        everything = components(self._root)
        for component in sorted(
            everything, key=lambda c: last.index(c.name) if c.name in last else -1
        ):
            component.stop(grace=5.0)

    def _component(self, name: str) -> Component:
        component = Component(self._root, name)
        if not component.configured:
            names = ", ".join(component.name for component in components(self._root)) or "none"
            raise ClusterError(f"cluster {self.name} has no component {name}; it has: {names}")
        return component

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with _locked(clusters_directory() / f".{self.name}.lock"):
            yield


def layouts() -> list[Layout]:
    """Return the layouts of this user's clusters, running or left behind."""
    layouts = (Layout.read(root) for root in sorted(clusters_directory().glob("[!.]*")))
    return [layout for layout in layouts if layout is not None]


def remove_abandoned() -> None:
    """Remove private clusters whose owner has ended."""
    for layout in layouts():
        if layout.owner is not None and not Identity(*layout.owner).alive():
            Local(layout.name).down()


def _extension(layout: Layout) -> Extension | None:
    if layout.shape is Shape.SCALE:
        from .scale import Scale

        return Scale(layout)
    if layout.shape is Shape.NODE:
        from .node import Node

        return Node(layout)
    return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
