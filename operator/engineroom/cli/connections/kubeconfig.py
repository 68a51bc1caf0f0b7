"""Loads the kubeconfig, or the service account of the pod that this process runs in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineroom.cli.errors import CliError, UnreachableError, UsageError

if TYPE_CHECKING:
    from engineroom.cli.connections.model import Document


def load_kubeconfig(kubeconfig: str | None, context: str | None) -> tuple[Any, str]:
    """The client's configuration and the namespace that it speaks for by default."""
    import kubernetes
    import yaml
    from kubernetes.client.configuration import Configuration
    from kubernetes.config.config_exception import ConfigException

    config: Any = kubernetes.config
    configuration = Configuration()
    try:
        if kubeconfig is None and context is None and _in_cluster():
            config.load_incluster_config(client_configuration=configuration)
            return configuration, _own_namespace()
        contexts, active = config.list_kube_config_contexts(config_file=kubeconfig)
        if context is not None:
            active = _chosen(contexts, context)
        config.load_kube_config(
            config_file=kubeconfig, context=context, client_configuration=configuration
        )
    except CliError:
        raise
    # A kubeconfig is the user's own file and can be broken in any way; beside its own exception the
    # loader raises whatever the parser, or an index into the document, does.
    except (
        ConfigException,
        yaml.YAMLError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise UnreachableError(
            f"cannot use the kubeconfig{f' {kubeconfig}' if kubeconfig else ''}",
            why=" ".join(str(error).split()),
            fix="name a good one with --kubeconfig or KUBECONFIG; `kubectl config view` shows what "
            "it holds",
        ) from error
    namespace = ((active or {}).get("context") or {}).get("namespace") or "default"
    return configuration, str(namespace)


def _chosen(contexts: list[Document], name: str) -> Document:
    for context in contexts:
        if context["name"] == name:
            return context
    names = ", ".join(sorted(context["name"] for context in contexts)) or "none"
    raise UsageError(
        f"there is no context {name}",
        why=f"the kubeconfig has: {names}",
        fix="name one of them with --context, or leave it out for the current one",
    )


_SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


def _in_cluster() -> bool:
    """Return whether to use the pod's service account: in a pod, without a kubeconfig."""
    if os.environ.get("KUBECONFIG") or (Path.home() / ".kube" / "config").exists():
        return False
    return Path(_SERVICE_ACCOUNT, "token").exists()


def _own_namespace() -> str:
    return Path(_SERVICE_ACCOUNT, "namespace").read_text().strip()
