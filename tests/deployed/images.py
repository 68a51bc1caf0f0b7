"""The images that an installation is made of, and how they get to the nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.cluster import images as building
from tests.cluster.progress import step
from tests.support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster.api import Cluster


@dataclass(frozen=True)
class Image:
    """One image of ours: its name, and where it is built from."""

    name: str
    dockerfile: Path
    target: str | None
    context: Path


ENGINEROOM = Image("docker.io/library/engineroom:dev", ROOT / "Dockerfile", "engineroom", ROOT)
RUNTIME = Image(
    "docker.io/library/engineroom-worker-runtime:dev", ROOT / "Dockerfile", "worker-runtime", ROOT
)
SHOP = Image(
    "docker.io/library/engineroom-shop:dev",
    ROOT / "examples/shop/Dockerfile",
    None,
    ROOT / "examples/shop",
)
NGINX = Image(
    "docker.io/library/engineroom-shop-nginx:dev",
    ROOT / "examples/shop/web/Dockerfile",
    None,
    ROOT / "examples/shop/web",
)
ALL = (ENGINEROOM, RUNTIME, SHOP, NGINX)


def build() -> list[Path]:
    """Build what has changed since it was last built; the docker archives."""
    with step("build images"):
        return [
            building.build(image.dockerfile, image.target, image.name, image.context)
            for image in ALL
        ]


def load(cluster: Cluster, archives: list[Path]) -> None:
    """Make all images known to the nodes, Redis included."""
    for archive in archives:
        cluster.load(archive)
    cluster.load(building.REDIS)
