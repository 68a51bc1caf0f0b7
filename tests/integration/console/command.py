"""The command line as a process of its own, with a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pathlib import Path

CODE = "import sys; sys.argv[0] = 'engineroom'; from engineroom.cli.main import main; main()"


class Command:
    """Runs `engineroom`; ``kubeconfig`` is what it finds when nothing else is said."""

    def __init__(self, home: Path, kubeconfig: Path | str, namespace: str = "") -> None:
        self.home = home
        self.namespace = namespace
        home.mkdir(exist_ok=True)
        dropped = {"COLUMNS", "ENGINEROOM_SERVER", "ENGINEROOM_TOKEN", "ENGINEROOM_CA_FILE"}
        self.environment = {k: v for k, v in os.environ.items() if k not in dropped} | {
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_STATE_HOME": str(home / "state"),
            "KUBECONFIG": str(kubeconfig),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }

    @property
    def credentials(self) -> Path:
        return self.home / "config" / "engineroom" / "credentials.json"

    def run(
        self, *arguments: str, code: int = 0, said: str = "", runner: str = CODE, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        where = ["-n", self.namespace] if self.namespace else []
        done = subprocess.run(
            [sys.executable, "-c", runner, *where, *arguments],
            env={**self.environment, **environment},
            input=said,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == code, (
            f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "-o", "json", code=code).stdout)


def kubeconfig_of(
    path: Path, admin: Path, token: str, namespace: str, *, by_exec: bool = False
) -> Path:
    """A kubeconfig of somebody with a token, or with a program that says it."""
    document = yaml.safe_load(admin.read_text())
    user: dict[str, Any] = {"token": token}
    if by_exec:
        said = {
            "apiVersion": "client.authentication.k8s.io/v1",
            "kind": "ExecCredential",
            "status": {"token": token},
        }
        user = {
            "exec": {
                "apiVersion": "client.authentication.k8s.io/v1",
                "command": "echo",
                "args": [json.dumps(said)],
                "interactiveMode": "Never",
            }
        }
    document["users"] = [{"name": "person", "user": user}]
    cluster = document["contexts"][0]["context"]["cluster"]
    context = {"cluster": cluster, "user": "person", "namespace": namespace}
    document["contexts"] = [{"name": "person", "context": context}]
    document["current-context"] = "person"
    path.write_text(yaml.safe_dump(document))
    return path
