"""A minimal Kubernetes client for starting a cluster, with the standard library only."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .api import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


class Client:
    """Sends requests to an API server with a client certificate, each on its own connection."""

    def __init__(self, server: str, authority: Path, certificate: Path, key: Path) -> None:
        self._address = urlsplit(server).netloc
        self._context = ssl.create_default_context(cafile=str(authority))
        self._context.load_cert_chain(certificate, key)

    def request(
        self, method: str, path: str, body: object = None, *, media: str = "application/json"
    ) -> tuple[int, bytes]:
        """Return status and body of the response. Raises OSError."""
        connection = http.client.HTTPSConnection(self._address, context=self._context, timeout=30)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": media})
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()

    def ready(self, path: str = "/readyz") -> bool:
        """Return True if a path answers with success."""
        try:
            return self.request("GET", path)[0] == 200
        except OSError:
            return False

    def get(self, path: str) -> Any:
        """Get the object at a path. Raises ClusterError."""
        status, body = self.request("GET", path)
        if status != 200:
            raise ClusterError(f"GET {path}: {status} {body.decode(errors='replace')}")
        return json.loads(body)

    def apply(self, objects: Iterable[Mapping[str, Any]]) -> None:
        """Apply the objects by server-side apply. Raises ClusterError if one is refused."""
        for thing in objects:
            path = _path(thing) + "?fieldManager=engineroom-test-cluster&force=true"
            status, body = self.request("PATCH", path, thing, media="application/apply-patch+yaml")
            if status not in (200, 201):
                what = f"{thing['kind']} {thing['metadata']['name']}"
                raise ClusterError(f"apply {what}: {status} {body.decode(errors='replace')}")


_PLURALS = {"EndpointSlice": "endpointslices", "APIService": "apiservices"}


def _path(thing: Mapping[str, Any]) -> str:
    version, metadata = thing["apiVersion"], thing["metadata"]
    plural = _PLURALS.get(thing["kind"], thing["kind"].lower() + "s")
    parts = ["/apis" if "/" in version else "/api", version]
    if "namespace" in metadata:
        parts += ["namespaces", metadata["namespace"]]
    return "/".join([*parts, plural, metadata["name"]])


def write_kubeconfig(
    path: Path, name: str, server: str, authority: Path, certificate: Path, key: Path
) -> None:
    """Write a kubeconfig with embedded certificates, which can be copied. It is JSON, a subset of
    YAML.
    """

    def embedded(file: Path) -> str:
        return base64.b64encode(file.read_bytes()).decode()

    cluster = {"server": server, "certificate-authority-data": embedded(authority)}
    user = {"client-certificate-data": embedded(certificate), "client-key-data": embedded(key)}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
    new = path.with_name(path.name + ".new")
    new.touch(mode=0o600)
    new.write_text(json.dumps(document, indent=1) + "\n")
    new.rename(path)
