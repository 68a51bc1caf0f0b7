"""The command line: `python -m tests.cluster`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import binaries, choose, images, local, system
from .api import Cluster, ClusterError, Shape


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Return 1 after a failure, with the reason on standard error."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _up(options: argparse.Namespace) -> None:
    cluster = choose.select(options.name)
    cluster.up(options.shape)
    for image in options.load:
        cluster.load(image)
    _print_kubeconfig(cluster)


def _down(options: argparse.Namespace) -> None:
    if not options.all:
        choose.select(options.name).down()
        return
    for layout in local.layouts():
        local.Local(layout.name).down()


def _status(options: argparse.Namespace) -> int:
    del options
    everything = local.layouts()
    if not everything:
        print("no local cluster")
    healthy = True
    for layout in everything:
        cluster = local.Local(layout.name)
        states = cluster.status()
        healthy &= all(states.values())
        print(f"{layout.name}  {layout.shape}  {layout.server}")
        for component, running in states.items():
            print(f"  {component:20} {'running' if running else 'stopped'}")
    return 0 if healthy else 1


def _doctor(options: argparse.Namespace) -> int:
    try:
        if not options.check:
            system.require(options.shape)
    finally:
        complete = system.report(options.shape)
    return 0 if complete else 1


def _build(options: argparse.Namespace) -> None:
    system.require(options.shape)
    binaries.ensure(options.shape)
    for name in binaries.NEEDED[options.shape]:
        print(binaries.PROGRAMS[name].folder)


def _images(options: argparse.Namespace) -> None:
    if options.dockerfile is None:
        for image in images.OWN:
            print(images.own(image))
        return
    path = images.build(options.dockerfile, options.target, options.tag, options.context)
    print(path)


def _load(options: argparse.Namespace) -> None:
    cluster = choose.select(options.name)
    for image in options.images:
        cluster.load(image)


def _kubeconfig(options: argparse.Namespace) -> None:
    _print_kubeconfig(choose.select(options.name))


def _print_kubeconfig(cluster: Cluster) -> None:
    print(f"export KUBECONFIG={cluster.kubeconfig}")
    if isinstance(cluster, local.Local):
        print(
            f"export PATH={binaries.PROGRAMS['kubernetes'].folder}:"
            f"{binaries.PROGRAMS['helm'].folder}:$PATH"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster",
        description="Real Kubernetes for tests and demonstrations. "
        "CLUSTER=current|kind|local chooses where; "
        "unset: kind where a Docker engine answers, else processes of this machine.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument(
        "--name", default=choose.DEFAULT_NAME, help="the cluster (default: %(default)s)"
    )
    shaped = argparse.ArgumentParser(add_help=False)
    shaped.add_argument(
        "--shape",
        type=Shape,
        choices=list(Shape),
        default=Shape.NODE,
        help="control-plane: API server and controllers, no root needed; "
        "scale: with simulated nodes; "
        "node: everything, pods really run (default: %(default)s)",
    )

    up = commands.add_parser(
        "up", parents=[named, shaped], help="start a cluster, or what is missing of it"
    )
    up.add_argument(
        "--load", action="append", default=[], metavar="IMAGE", help="and load an image"
    )
    up.set_defaults(run=_up)
    down = commands.add_parser("down", parents=[named], help="stop it and remove all that it left")
    down.add_argument("--all", action="store_true", help="every local cluster of this user")
    down.set_defaults(run=_down)
    status = commands.add_parser("status", help="the local clusters and their processes")
    status.set_defaults(run=_status)
    doctor = commands.add_parser(
        "doctor", parents=[shaped], help="install what is missing, or say how to"
    )
    doctor.add_argument("--check", action="store_true", help="only report; install nothing")
    doctor.set_defaults(run=_doctor)
    build = commands.add_parser(
        "build", parents=[shaped], help="build the programs now; print their folders"
    )
    build.set_defaults(run=_build)
    image = commands.add_parser(
        "images", help="build an image, or without options the cluster's own"
    )
    image.add_argument("--dockerfile", type=Path, help="of the image to build")
    image.add_argument("--target", help="the Dockerfile's stage")
    image.add_argument("--tag", help="the image's name")
    image.add_argument(
        "--context", type=Path, default=Path(), help="the build context (default: .)"
    )
    image.set_defaults(run=_images)
    load = commands.add_parser("load", parents=[named], help="make images known to the nodes")
    load.add_argument(
        "images", nargs="+", metavar="IMAGE", help="a docker archive, or a built image's name"
    )
    load.set_defaults(run=_load)
    kubeconfig = commands.add_parser(
        "kubeconfig", parents=[named], help="print the lines for the shell"
    )
    kubeconfig.set_defaults(run=_kubeconfig)
    return parser


if __name__ == "__main__":
    sys.exit(main())
