"""Authors of the attack walk, and their requests to the API server by impersonation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import requests
import yaml

if TYPE_CHECKING:
    from pathlib import Path

    from engineroom.kube.client.resources import Resource

RBAC = "rbac.authorization.k8s.io"


@dataclass(frozen=True)
class Author:
    """A user that may write Engineroom's kinds, with or without rights to pods and Secrets."""

    name: str
    creates_pods: bool
    gets_secrets: bool


AUTHORS = (
    Author("writes-only", creates_pods=False, gets_secrets=False),
    Author("creates-pods", creates_pods=True, gets_secrets=False),
    Author("gets-secrets", creates_pods=False, gets_secrets=True),
    Author("does-both", creates_pods=True, gets_secrets=True),
)


def roles(author: Author) -> list[dict[str, Any]]:
    """Return the ClusterRole and binding that give the author its rights."""
    name = f"attack-{author.name}"
    rules = [
        {
            "apiGroups": ["engineroom.dev"],
            "resources": ["*"],
            "verbs": ["get", "create", "update", "delete"],
        }
    ]
    if author.creates_pods:
        rules.append({"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]})
    if author.gets_secrets:
        rules.append({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]})
    role = {"kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}
    binding = {
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": name},
        "subjects": [{"apiGroup": RBAC, "kind": "User", "name": author.name}],
    }
    return [{"apiVersion": f"{RBAC}/v1", **each} for each in (role, binding)]


class Requests:
    """Requests of an administrator, or as an author."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._server = cluster["server"]
        self._session = requests.Session()
        # REQUESTS_CA_BUNDLE would replace the cluster's CA.
        self._session.trust_env = False
        self._session.verify = _file(cluster, "certificate-authority", folder)
        self._session.cert = (
            _file(user, "client-certificate", folder),
            _file(user, "client-key", folder),
        )

    def send(
        self,
        method: str,
        resource: Resource,
        namespace: str | None,
        name: str | None = None,
        body: dict[str, Any] | None = None,
        author: Author | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Return the status and the document of the response."""
        headers = {} if author is None else {"Impersonate-User": author.name}
        response = self._session.request(
            method,
            self._server + resource.path(namespace, name),
            json=body,
            headers=headers,
            timeout=30,
        )
        return response.status_code, response.json()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()


def _file(section: dict[str, Any], key: str, folder: Path) -> str:
    """Return the file of a certificate or key, written from the kubeconfig where it is inside."""
    import base64

    if key in section:
        return str(section[key])
    path = folder / key
    path.write_bytes(base64.b64decode(section[f"{key}-data"]))
    path.chmod(0o600)
    return str(path)
