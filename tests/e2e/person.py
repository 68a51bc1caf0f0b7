"""A user on a separate machine: a kubeconfig, a home directory, and the program `engineroom`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from tests.deployed.installation import NAMESPACE as SYSTEM
from tests.e2e.pool import NAMESPACE
from tests.integration.console.command import CODE, Command, kubeconfig_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.deployed.installation import Installation

#: What docs/cli.md says that `engineroom ui` needs where the API runs.
_WAY = (
    {"apiGroups": ["apps"], "resources": ["deployments", "replicasets"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get", "create"]},
)


def person(installation: Installation, name: str, home: Path) -> Command:
    """Create a user who may run things in the namespace `e2e` and reach the API's pods, with a
    token only.
    """
    rbac = "rbac.authorization.k8s.io"
    subjects = [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}]

    def bound(namespace: str, kind: str, role: str) -> dict[str, Any]:
        return {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": namespace},
            "roleRef": {"apiGroup": rbac, "kind": kind, "name": role},
            "subjects": subjects,
        }

    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": NAMESPACE},
    }
    role = {
        "apiVersion": f"{rbac}/v1",
        "kind": "Role",
        "metadata": {"name": name, "namespace": SYSTEM},
        "rules": list(_WAY),
    }
    items = [account, role, bound(SYSTEM, "Role", name), bound(NAMESPACE, "ClusterRole", "edit")]
    manifest = {"apiVersion": "v1", "kind": "List", "items": items}
    installation.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    token = installation.kube.token(NAMESPACE, name)
    home.mkdir(exist_ok=True)
    config = kubeconfig_of(home / "kubeconfig", installation.cluster.kubeconfig, token, NAMESPACE)
    return Command(home, config)


@contextmanager
def ui(command: Command) -> Iterator[Link]:
    """Run `engineroom ui` until it prints its link; end it by Ctrl-C."""
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        running = subprocess.Popen(
            [sys.executable, "-c", CODE, "ui", "--system-namespace", SYSTEM],
            env=command.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
        try:
            assert running.stdout is not None
            line = running.stdout.readline().strip()
            base, separator, code = line.partition("/sign-in#")
            if not separator:
                running.wait(10)
                output.seek(0)
                raise AssertionError(f"no link but {line!r}: {output.read()}")
            yield Link(base, code, begun)
            running.send_signal(signal.SIGINT)
            assert running.wait(10) == 0
        finally:
            if running.poll() is None:
                running.kill()
            running.communicate()


class Link:
    """The output of `engineroom ui`: a local port, and a code that is valid once."""

    def __init__(self, base: str, code: str, begun: float) -> None:
        self.base = base
        self.code = code
        #: When the command was typed, on the monotonic clock.
        self.begun = begun

    def redeem(self, http: httpx.Client) -> httpx.Response:
        """Redeem the code as the sign-in page does."""
        return http.post("/api/v1/sign-in-links/redeem", json={"code": self.code})

    def browser(self) -> httpx.Client:
        """Return a browser that is not signed in."""
        return httpx.Client(base_url=self.base, timeout=30)


def cookie(answer: httpx.Response) -> dict[str, str]:
    """Return a session's cookie header. A browser accepts a Secure cookie from the loopback
    address.
    """
    name, _, value = answer.headers["set-cookie"].partition(";")[0].partition("=")
    return {"cookie": f"{name}={value}"}
