"""Start a cluster, install Engineroom, process 500 jobs in a pool and load-test a rate limit."""

from __future__ import annotations

import argparse
import base64
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tests.cluster import choose
from tests.cluster.api import Cluster, ClusterError
from tests.cluster.local import Local
from tests.cluster.progress import step
from tests.demo import limits
from tests.demo.show import Show
from tests.demo.watch import READ_ERRORS, Snapshot, Watcher
from tests.deployed import images, shop, web
from tests.deployed.installation import Installation, installed
from tests.deployed.kube import condition, wait_for
from tests.support import ROOT

if TYPE_CHECKING:
    from tests.deployed.forward import Forward

CLUSTER = "engineroom-demo"
NAMESPACE = "shop"
POOL = "orders"
BOOK = "today"
ORDERS = 500
MANIFESTS = ROOT / "examples/shop"
#: One limiter at first, to show that three admit no more.
VALUES = {
    "limiter": {"enabled": True, "replicas": 1},
    "networkPolicy": {"limiterClients": [NAMESPACE]},
}
#: Seconds from the first order to the last pod, after which the demonstration fails.
TIMEOUT = 300.0


def main() -> int:
    """Run the command; return 0 if every order was done exactly once and the limit held."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("command", choices=("up", "down", "images"), nargs="?", default="up")
    options = parser.parse_args()
    try:
        if options.command == "images":
            for archive in images.build():
                print(archive)
            return 0
        cluster = choose.select(CLUSTER)
        if options.command == "down":
            cluster.down()
            return 0
        return up(cluster)
    except (ClusterError, AssertionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nThe cluster keeps running; `make demo-down` removes it.", file=sys.stderr)
        return 130


def up(cluster: Cluster) -> int:
    """Run the demonstration; return the exit status."""
    started = time.monotonic()
    with installed(cluster, VALUES) as installation, installation.redis() as forward:
        with step("deploy the shop: an application with its own image"):
            deploy(installation, forward)
        with step("deploy its web application behind nginx"):
            limits.deploy(installation)
        watcher = Watcher(installation.kube, forward, NAMESPACE, POOL, BOOK)
        snapshots = run(installation, watcher)
        good = report(watcher, snapshots, forward)
        good = limits.run(installation) and good
    print(f"\nThe whole demonstration took {time.monotonic() - started:.0f} s.")
    print_next_steps(cluster)
    return 0 if good else 1


def deploy(installation: Installation, forward: Forward) -> None:
    """Create the namespace, the application's Secret and its pool, without enqueueing jobs."""
    kube = installation.kube
    installation.kubectl("apply", "-f", str(MANIFESTS / "namespace.yaml"))
    # Leftovers of an earlier demonstration.
    kube.delete("jobs", NAMESPACE, "enqueue", grace=0)
    shop.forget(forward.client, BOOK)
    url = base64.b64encode(installation.redis_url().encode()).decode()
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "shop-redis"},
        "data": {"url": url},
    }
    kube.apply("secrets", NAMESPACE, secret)
    installation.kubectl("apply", "-f", str(MANIFESTS / "pool.yaml"))

    def ready() -> bool:
        pool = kube.get("workerpools", NAMESPACE, POOL)
        return (
            condition(pool, "Ready")["status"] == "True"
            and not kube.all("pods", NAMESPACE, selector=f"engineroom.dev/pool={POOL}")
            and kube.find("jobs", NAMESPACE, "enqueue") is None
        )

    wait_for(ready, 60, lambda: f"pool Ready: {kube.get('workerpools', NAMESPACE, POOL)['status']}")


def run(installation: Installation, watcher: Watcher) -> list[Snapshot]:
    """Enqueue the orders, and watch until all are done and the pool is at zero again."""
    installation.kubectl("apply", "-f", str(MANIFESTS / "enqueue.yaml"))
    snapshots: list[Snapshot] = []
    deadline = time.monotonic() + TIMEOUT
    with Show(ORDERS) as show:
        while time.monotonic() < deadline:
            try:
                snapshot = watcher.snapshot()
            except READ_ERRORS as error:
                print(f"cannot read the state: {error}", file=sys.stderr)
                time.sleep(1)
                continue
            snapshots.append(snapshot)
            show.show(snapshot)
            if snapshot.finished >= ORDERS and snapshot.pods == 0:
                break
            time.sleep(0.4)
        else:
            print(f"error: not finished within {TIMEOUT:.0f} s", file=sys.stderr)
    return snapshots


def report(watcher: Watcher, snapshots: list[Snapshot], forward: Forward) -> bool:
    """Print the result; return True if every order was done exactly once."""
    client = forward.client
    account = shop.account(client, BOOK)
    failed = shop.failed(client)
    table = Table(title="Result of the orders", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    recorded = "the jobs' records in Redis"
    table.add_row("jobs enqueued", str(account.enqueued), recorded)
    table.add_row("jobs finished", str(account.finished), recorded)
    table.add_row("lost", str(len(account.lost)), "enqueued and never finished")
    table.add_row("doubled", str(len(account.doubled)), "finished more than once")
    table.add_row("killed", str(len(account.killed)), "started and not ended")
    table.add_row("failed", str(failed), "RQ's registry of failed jobs")
    table.add_row(
        "first job's wait",
        _seconds(account.first_wait),
        "from enqueue to start, with pod start",
    )
    table.add_row("longest wait", _seconds(account.longest_wait), recorded)
    table.add_row(
        "all done after", _seconds(account.seconds), "from the first enqueue to the last end"
    )
    table.add_row(
        "largest size", f"{watcher.largest} pods", "pods of the pool, without draining ones"
    )
    table.add_row(
        "failed pods",
        str(len(watcher.pods.failures)),
        ", ".join(f"{pod}: {why}" for pod, why in watcher.pods.failures.items())
        or f"of {len(watcher.pods.names)}; exit codes and restarts from the API server",
    )
    back = snapshots[-1].pods == 0 if snapshots else False
    table.add_row(
        "back at zero",
        "yes" if back else "no",
        f"{snapshots[-1].at:.0f} s after the start" if snapshots else "",
    )
    Console(highlight=False, soft_wrap=True).print(table)
    return account.clean and account.enqueued == ORDERS and failed == 0 and back


def print_next_steps(cluster: Cluster) -> None:
    """Print commands to explore the cluster."""
    print("\nThe cluster is running. To explore it:\n")
    print(f"  export KUBECONFIG={shlex.quote(str(cluster.kubeconfig))}")
    if isinstance(cluster, Local):
        first = cluster.env()["PATH"].split(":")[0]
        ours = str(Path(sys.executable).parent)
        print(f"  export PATH={shlex.quote(first)}:{shlex.quote(ours)}:$PATH")
    print(f"  kubectl get workerpools -A; engineroom explain -n {NAMESPACE} {POOL}")
    print(f"  kubectl -n {NAMESPACE} replace --force -f examples/shop/enqueue.yaml   # 500 more")
    print(f"  kubectl -n {NAMESPACE} describe ratelimitpolicy {web.POLICY}")
    print("\nmake demo-down removes it.")


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
