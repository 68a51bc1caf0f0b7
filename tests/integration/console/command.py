"""The command line as a separate process with its own home directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from kubernetes.config import kube_config

from tests.integration.forks import FORKS

CODE = "import sys; sys.argv[0] = 'engineroom'; from engineroom.cli.app.main import main; main()"


def _become(runner: str, arguments: list[str], environment: dict[str, str], *files: str) -> None:
    """Run the program in this process, as if it had just started with these arguments and files."""
    os.environ.clear()
    os.environ.update(environment)
    # Read when it was imported, before anybody said where.
    kube_config.KUBE_CONFIG_DEFAULT_LOCATION = environment["KUBECONFIG"]
    for number, name in enumerate(files):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT
        os.dup2(os.open(name, flags, 0o600), number)
    sys.stdin = os.fdopen(0, "r")
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    sys.argv = ["engineroom", *arguments]
    exec(runner, {"__name__": "__main__"})  # noqa: S102


class Command:
    """Runs `engineroom`; ``kubeconfig`` is the default kubeconfig."""

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
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in ("in", "out", "err")]
            files[0].write_text(said)
            process = FORKS.Process(
                target=_become,
                args=(runner, [*where, *arguments], {**self.environment, **environment},
                      *map(str, files)),
            )  # fmt: skip
            process.start()
            process.join(120)
            if process.is_alive():
                process.kill()
                process.join()
            out, err = (file.read_text() if file.exists() else "" for file in files[1:])
            ended = process.exitcode
            process.close()
        assert ended == code, f"{arguments}: {ended}\n{out}{err}"
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(list(arguments), code, out, err)

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "-o", "json", code=code).stdout)


def kubeconfig_of(
    path: Path, admin: Path, token: str, namespace: str, *, by_exec: bool = False
) -> Path:
    """Return a kubeconfig with a token, or with a program that prints one."""
    document = yaml.safe_load(admin.read_text())
    user: dict[str, Any] = {"token": token}
    if by_exec:
        settings = {
            "apiVersion": "client.authentication.k8s.io/v1",
            "kind": "ExecCredential",
            "status": {"token": token},
        }
        user = {
            "exec": {
                "apiVersion": "client.authentication.k8s.io/v1",
                "command": "echo",
                "args": [json.dumps(settings)],
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
