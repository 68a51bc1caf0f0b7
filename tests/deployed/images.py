"""The images of an installation: build them and load them onto the nodes."""

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
    """One of our images: its name and its build context."""

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
    """Build the images whose inputs changed; return their docker archives."""
    with step("build images"):
        return [
            building.build(image.dockerfile, image.target, image.name, image.context)
            for image in ALL
        ]


def load(cluster: Cluster, archives: list[Path]) -> None:
    """Load all images, including Redis, onto the nodes."""
    for archive in archives:
        cluster.load(archive)
    cluster.load(building.REDIS)
