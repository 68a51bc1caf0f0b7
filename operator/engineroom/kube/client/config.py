"""The API server's address and our credentials: kubeconfig or the pod's service account."""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from engineroom.kube.client.errors import ClientConfigError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

#: A projected token is renewed by the kubelet long before it expires; client-go reads it as often.
TOKEN_MAX_AGE = 60.0


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """Address and credentials of one API server. Secrets are kept out of ``repr``."""

    server: str
    ca_data: bytes | None = field(default=None, repr=False)
    ca_file: Path | None = None
    insecure: bool = False
    tls_server_name: str | None = None
    certificate: bytes | None = field(default=None, repr=False)
    private_key: bytes | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    proxy: str | None = None
    namespace: str = "default"

    def with_server(self, server: str) -> ApiConfig:
        """The same credentials at another address, such as a proxy's."""
        return replace(self, server=server.rstrip("/"))

    def read_token(self) -> str | None:
        """The bearer token as it is now; raises ConfigError when its file cannot be read."""
        if self.token_file is None:
            return self.token
        try:
            return self.token_file.read_text().strip()
        except OSError as error:
            raise ClientConfigError(
                f"cannot read the token file {self.token_file}: {error}"
            ) from error

    def read_ca(self) -> bytes | None:
        """The CA bundle as it is now (PEM), or None for the machine's own trust store."""
        if self.ca_data is not None:
            return self.ca_data
        if self.ca_file is None:
            return None
        try:
            return self.ca_file.read_bytes()
        except OSError as error:
            raise ClientConfigError(f"cannot read the CA file {self.ca_file}: {error}") from error

    def ssl_context(self) -> ssl.SSLContext | None:
        """A fresh context with the CA and client certificate as they are now; None for http."""
        if not self.server.startswith("https://"):
            return None
        ca = self.read_ca()
        context = ssl.create_default_context(cadata=ca.decode() if ca else None)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate and self.private_key:
            _load_pair(context, self.certificate, self.private_key)
        return context


def _load_pair(context: ssl.SSLContext, certificate: bytes, private_key: bytes) -> None:
    # OpenSSL's binding reads the pair from a file only: private to us, gone right after.
    descriptor, name = tempfile.mkstemp(suffix=".pem")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(certificate + b"\n" + private_key)
        context.load_cert_chain(name)
    except ssl.SSLError as error:
        raise ClientConfigError(
            f"the client certificate of the kubeconfig is not usable: {error}"
        ) from error
    finally:
        Path(name).unlink()


def in_cluster(directory: Path = SERVICE_ACCOUNT) -> ApiConfig:
    """The pod's own service account; raises ConfigError outside a pod."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not (directory / "token").exists():
        raise ClientConfigError(
            "not inside a pod with a service account token; set KUBECONFIG to run outside a cluster"
        )
    if ":" in host:
        host = f"[{host}]"
    namespace_file = directory / "namespace"
    namespace = namespace_file.read_text().strip() if namespace_file.exists() else "default"
    return ApiConfig(
        server=f"https://{host}:{port}",
        ca_file=directory / "ca.crt",
        token_file=directory / "token",
        namespace=namespace or "default",
    )


def from_kubeconfig(path: str | Path | None = None, context: str | None = None) -> ApiConfig:
    """Read a kubeconfig: ``path``, else every file of $KUBECONFIG, else ``~/.kube/config``.

    Of several files the first that names a cluster, user or context wins, as with kubectl. Raises
    ConfigError for what is missing or not supported (exec plugins, auth providers).
    """
    paths = _paths(path)
    merged: dict[str, Any] = {"clusters": {}, "users": {}, "contexts": {}, "current-context": ""}
    found = False
    for file in paths:
        if not file.exists():
            continue
        found = True
        try:
            document = yaml.safe_load(file.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ClientConfigError(f"cannot read the kubeconfig {file}: {error}") from error
        merged["current-context"] = merged["current-context"] or document.get("current-context", "")
        for section, key in (("clusters", "cluster"), ("users", "user"), ("contexts", "context")):
            for entry in document.get(section) or ():
                merged[section].setdefault(entry["name"], (entry.get(key) or {}, file.parent))
    if not found:
        raise ClientConfigError(
            f"no kubeconfig at {', '.join(map(str, paths))}; set KUBECONFIG to the file to use"
        )
    name = context or merged["current-context"]
    if not name:
        raise ClientConfigError("the kubeconfig has no current-context; choose one with --context")
    chosen, _ = _entry(merged, "contexts", name)
    cluster, cluster_dir = _entry(merged, "clusters", str(chosen.get("cluster")))
    user_name = chosen.get("user")
    user, user_dir = _entry(merged, "users", str(user_name)) if user_name else ({}, Path())
    for unsupported in ("exec", "auth-provider"):
        if unsupported in user:
            raise ClientConfigError(
                f"user {user_name!r} of the kubeconfig signs in by {unsupported}, which is not "
                "supported; use a token or a client certificate "
                "(kubectl create token SERVICEACCOUNT makes one)"
            )
    token_file = user.get("tokenFile")
    return ApiConfig(
        server=str(cluster["server"]).rstrip("/"),
        ca_data=_data(cluster, cluster_dir, "certificate-authority"),
        insecure=bool(cluster.get("insecure-skip-tls-verify", False)),
        tls_server_name=cluster.get("tls-server-name"),
        certificate=_data(user, user_dir, "client-certificate"),
        private_key=_data(user, user_dir, "client-key"),
        token=user.get("token"),
        token_file=user_dir / token_file if token_file else None,
        username=user.get("username"),
        password=user.get("password"),
        proxy=cluster.get("proxy-url"),
        namespace=chosen.get("namespace") or "default",
    )


def load(path: str | Path | None = None, context: str | None = None) -> ApiConfig:
    """A kubeconfig where one is named (argument or $KUBECONFIG), else the pod's service account,
    else ``~/.kube/config``."""
    if path is not None or context is not None or os.environ.get("KUBECONFIG"):
        return from_kubeconfig(path, context)
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return in_cluster()
    return from_kubeconfig()


def _paths(path: str | Path | None) -> list[Path]:
    if path is not None:
        return [Path(path).expanduser()]
    variable = os.environ.get("KUBECONFIG", "")
    named = [Path(part).expanduser() for part in variable.split(os.pathsep) if part]
    return named or [Path("~/.kube/config").expanduser()]


def _entry(merged: dict[str, Any], section: str, name: str) -> tuple[dict[str, Any], Path]:
    try:
        entry: tuple[dict[str, Any], Path] = merged[section][name]
    except KeyError:
        known = ", ".join(sorted(merged[section])) or "none"
        raise ClientConfigError(
            f"the kubeconfig has no {section[:-1]} {name!r}; it has: {known}"
        ) from None
    return entry


def _data(entry: dict[str, Any], directory: Path, key: str) -> bytes | None:
    inline = entry.get(f"{key}-data")
    if inline:
        return base64.b64decode(inline)
    name = entry.get(key)
    if not name:
        return None
    try:
        return (directory / str(name)).read_bytes()
    except OSError as error:
        raise ClientConfigError(f"cannot read {key} of the kubeconfig: {error}") from error
