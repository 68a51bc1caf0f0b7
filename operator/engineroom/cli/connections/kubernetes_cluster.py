"""The cluster of a kubeconfig: what the command line reads and writes at the API server.

The Kubernetes client is imported at first use: ``--help`` and ``version --client`` start without
it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from engineroom import __version__
from engineroom.api import API_VERSION, LABEL_POOL, VERSION
from engineroom.cli.connections.api_server_errors import answer_error, unreachable
from engineroom.cli.connections.kubeconfig import load_kubeconfig
from engineroom.cli.connections.model import (
    RESOURCE,
    Document,
    Event,
    Installation,
    InstalledComponent,
    KindDefinition,
    Pod,
    Pool,
    ResourceUsage,
    WebhookRegistration,
)
from engineroom.cli.connections.parsing import (
    parse_component,
    parse_event,
    parse_pod,
    parse_pool,
    parse_usage,
)
from engineroom.cli.connections.pod_ports import open_pod_port
from engineroom.cli.connections.release import PART_OF, registered_releases
from engineroom.cli.errors import CliError, ForbiddenError, NotFoundError, UnreachableError
from engineroom.kube.client.resources import (
    CRDS,
    DEPLOYMENTS,
    LEASES,
    PODS,
    VALIDATING_WEBHOOKS,
    WORKERPOOLS,
    Resource,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from socket import socket

    from engineroom.kube.client.resources import ObjectRef

T = TypeVar("T")

FIELD_MANAGER = "engineroom-cli"
MERGE_PATCH = "application/merge-patch+json"
_STATEFUL_SETS = Resource("apps", "v1", "statefulsets", "StatefulSet")
#: The older API of events: it can be asked for those of one object.
_EVENTS = Resource("", "v1", "events", "Event")
_POD_METRICS = Resource("metrics.k8s.io", "v1beta1", "pods", "PodMetrics")
_PAGE = 500
#: Seconds to connect, seconds to answer.
_TIMEOUT = (5.0, 30.0)


class KubernetesCluster:
    """The Cluster behind a kubeconfig, or the one that this process runs in.

    Of the official client it uses what is hard, the kubeconfig with its ways to log in, TLS and
    proxies; objects stay JSON. Its typed API would cost 0.6 s of CPU to import, at every command.
    """

    def __init__(
        self,
        kubeconfig: str | None = None,
        context: str | None = None,
        system_namespace: str | None = None,
    ) -> None:
        from kubernetes.client.rest import RESTClientObject

        self._configuration, self._namespace = load_kubeconfig(kubeconfig, context)
        self._system_namespace = system_namespace
        self._pool: Any = RESTClientObject(self._configuration).pool_manager

    @property
    def server(self) -> str:
        """URL of the API server."""
        return str(self._configuration.host)

    @property
    def namespace(self) -> str:
        """The namespace that the kubeconfig's context names."""
        return self._namespace

    def pools(self, namespace: str | None, selector: str | None = None) -> tuple[Pool, ...]:
        """The pools of a namespace, of all where it is None; sorted by id."""
        documents = self._list(WORKERPOOLS, namespace, labelSelector=selector)
        return tuple(sorted(map(parse_pool, documents), key=lambda pool: pool.id))

    def pool(self, namespace: str, name: str) -> Pool:
        """One pool. Raises NotFoundError."""
        return parse_pool(self._get(WORKERPOOLS, namespace, name))

    def pods(self, namespace: str | None, pool: str | None = None) -> tuple[Pod, ...]:
        """The worker pods of a pool or of all pools, with their use where it is measured."""
        selector = f"{LABEL_POOL}={pool}" if pool else LABEL_POOL
        pods = [parse_pod(entry) for entry in self._list(PODS, namespace, labelSelector=selector)]
        usage = self._usage(namespace, selector) if pods else {}
        measured = (replace(pod, usage=usage.get((pod.namespace, pod.name))) for pod in pods)
        return tuple(sorted(measured, key=lambda pod: (pod.namespace, pod.pool, pod.name)))

    def _usage(self, namespace: str | None, selector: str) -> dict[tuple[str, str], ResourceUsage]:
        """Measured use by pod; empty where no metrics server answers, which is no error."""
        try:
            documents = self._list(_POD_METRICS, namespace, labelSelector=selector)
        except CliError:
            return {}
        return {
            (document["metadata"]["namespace"], document["metadata"]["name"]): parse_usage(document)
            for document in documents
        }

    def pod(self, namespace: str, name: str) -> Pod:
        """One pod. Raises NotFoundError."""
        return parse_pod(self._get(PODS, namespace, name))

    def events(self, obj: ObjectRef) -> tuple[Event, ...]:
        """Return the object's events, latest first; none if they may not be read."""
        fields = f"involvedObject.kind={obj.kind},involvedObject.name={obj.name}"
        try:
            documents = self._list(_EVENTS, obj.namespace, fieldSelector=fields)
        except ForbiddenError:
            return ()
        events = [
            parse_event(document)
            for document in documents
            # An object of the same name that was deleted has another uid.
            if document["involvedObject"].get("uid", obj.uid) in (obj.uid, "")
        ]
        return tuple(
            sorted(events, key=lambda event: event.last.timestamp() if event.last else 0.0)[::-1]
        )

    def installation(self) -> Installation:
        """Return the installed parts of Engineroom, with names of what the account may not read."""
        denied: list[str] = []
        version = self._ask("GET", "/version", "the API server's version")
        configurations: list[Document] = _read_if_allowed(
            denied, "webhook configurations", lambda: self._list(VALIDATING_WEBHOOKS, None), []
        )
        namespaces = (
            (self._system_namespace,)
            if self._system_namespace
            else tuple(
                sorted({release.namespace for release in registered_releases(configurations)})
            )
        )
        none: list[InstalledComponent] = []

        def read_components(resource: Resource) -> list[InstalledComponent]:
            return _read_if_allowed(
                denied, f"{resource.kind}s", lambda: self._components(resource, namespaces), none
            )

        components = [*read_components(DEPLOYMENTS), *read_components(_STATEFUL_SETS)]
        operators = [component for component in components if component.role == "operator"]
        return Installation(
            server=self.server,
            server_version=str(version.get("gitVersion", "")),
            definition=self._definition(),
            components=tuple(components),
            admission=_registration(configurations, namespaces),
            leader=_read_if_allowed(denied, "Leases", lambda: self._leader(operators), None),
            namespaces=namespaces,
            denied=tuple(denied),
        )

    def _definition(self) -> KindDefinition | None:
        """By discovery, which every account may use; the release only for who may read CRDs."""
        try:
            discovery = self._ask("GET", f"/apis/{API_VERSION}", "discovery")
        except NotFoundError:
            return None
        if not any(resource["name"] == WORKERPOOLS.plural for resource in discovery["resources"]):
            return None
        try:
            document = self._get(CRDS, None, RESOURCE)
        except (ForbiddenError, NotFoundError):
            return KindDefinition(served=(VERSION,))
        labels = document["metadata"].get("labels") or {}
        served = tuple(
            version["name"] for version in document["spec"]["versions"] if version.get("served")
        )
        return KindDefinition(served=served, release=labels.get("app.kubernetes.io/version", ""))

    def _components(
        self, resource: Resource, namespaces: Sequence[str]
    ) -> list[InstalledComponent]:
        return [
            parse_component(resource.kind, document)
            for namespace in namespaces
            for document in self._list(resource, namespace, labelSelector=PART_OF)
        ]

    def _leader(self, operators: Sequence[InstalledComponent]) -> str | None:
        for operator in operators:
            if not operator.lease:
                continue
            try:
                lease = self._get(LEASES, operator.namespace, operator.lease)
            except NotFoundError:
                continue
            if holder := (lease.get("spec") or {}).get("holderIdentity"):
                return str(holder)
        return None

    def patch_pool(self, pool: Pool, patch: Document, *, dry_run: bool = False) -> Pool:
        """Merge ``patch`` into the pool; what the server made of it."""
        return parse_pool(self._patch(WORKERPOOLS, pool.namespace, pool.name, patch, dry_run))

    def scale_pool(self, pool: Pool, replicas: int, *, dry_run: bool = False) -> int:
        """Set the size through the scale subresource; the size the server took."""
        patch = {"spec": {"replicas": replicas}}
        scale = self._patch(WORKERPOOLS, pool.namespace, pool.name, patch, dry_run, "scale")
        return int(scale["spec"].get("replicas", 0))

    def annotate_pod(
        self, pod: Pod, annotations: Mapping[str, str | None], *, dry_run: bool = False
    ) -> Pod:
        """Set annotations, or remove those that are None."""
        # With the uid, so that a pod made anew under the name is never the one that is marked.
        patch: Document = {"metadata": {"annotations": dict(annotations), "uid": pod.uid}}
        return parse_pod(self._patch(PODS, pod.namespace, pod.name, patch, dry_run))

    def read(self, resource: Resource, namespace: str | None, name: str) -> Document:
        """One object as the API server has it. Raises NotFoundError."""
        return self._get(resource, namespace, name)

    def read_all(
        self, resource: Resource, namespace: str | None, selector: str | None = None
    ) -> list[Document]:
        """The objects of a namespace, of all where it is None."""
        return self._list(resource, namespace, labelSelector=selector)

    def open_port(self, namespace: str, pod: str, port: int) -> socket:
        """A connection to a port of a pod, through the API server."""
        from websocket import WebSocketException

        url = f"{self.server}{PODS.path(namespace, pod, 'portforward')}"
        try:
            return open_pod_port(self._configuration, url, port, self._authorization())
        except (WebSocketException, OSError) as error:
            why = " ".join(str(error).split())[:300]
            if "403" in why:
                raise ForbiddenError(
                    f"you may not forward to pod {namespace}/{pod}",
                    why=why,
                    # API servers take an upgrade of GET for `get`; newer ones want `create`, too.
                    fix="ask for the rights to `get` and `create` `pods/portforward` there (the "
                    "role edit has them), or give an URL that can be reached from here",
                ) from error
            raise UnreachableError(
                f"cannot forward to port {port} of pod {namespace}/{pod}",
                why=why,
                fix="`kubectl port-forward` tries the same way",
            ) from error

    def bearer(self) -> str | None:
        """The token that the kubeconfig logs in with, asked for anew; None where it has none."""
        for name, value in self._authorization().items():
            kind, _, token = value.partition(" ")
            if name.lower() == "authorization" and kind.lower() == "bearer":
                return token.strip() or None
        return None

    def _authorization(self) -> dict[str, str]:
        """Headers that say who asks, asked anew: a token of a login helper may have run out."""
        return {
            setting["key"]: setting["value"]
            for setting in self._configuration.auth_settings().values()
            if setting["in"] == "header" and setting["value"]
        }

    def _get(self, resource: Resource, namespace: str | None, name: str) -> Document:
        return self._ask(
            "GET", resource.path(namespace, name), _display_name(resource, namespace, name)
        )

    def _list(
        self, resource: Resource, namespace: str | None, **query: str | None
    ) -> list[Document]:
        """Return all objects, read page by page, because one response must not hold 10,000."""
        what = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
        query["limit"] = str(_PAGE)
        items: list[Document] = []
        while True:
            page = self._ask("GET", resource.path(namespace), what, query)
            items += page.get("items") or []
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return items
            query["continue"] = token

    def _patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        patch: Document,
        dry_run: bool,
        subresource: str | None = None,
    ) -> Document:
        path = resource.path(namespace, name, subresource)
        query = {"fieldManager": FIELD_MANAGER, "dryRun": "All" if dry_run else None}
        return self._ask("PATCH", path, _display_name(resource, namespace, name), query, patch)

    def _ask(
        self,
        method: str,
        path: str,
        what: str,
        query: Mapping[str, str | None] | None = None,
        body: Document | None = None,
    ) -> Document:
        """One request and its JSON answer; every failure as a CliError about ``what``."""
        status, reason, data = self.send(method, path, query, body, MERGE_PATCH)
        if not 200 <= status < 300:
            raise answer_error(what, status, reason, data, self.server)
        try:
            answer: Document = json.loads(data)
        except ValueError as error:
            # A captive portal or a proxy's own page, most likely.
            raise unreachable(
                self.server, f"what answers there is no API server: {error}"
            ) from error
        return answer

    def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | None] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, str, bytes]:
        """One request: status, reason and body, whatever they are. Raises UnreachableError."""
        from urllib.parse import quote, urlencode

        from urllib3.exceptions import HTTPError
        from urllib3.util import Timeout

        parameters = {name: value for name, value in (query or {}).items() if value is not None}
        url = f"{self.server}{quote(path)}" + (f"?{urlencode(parameters)}" if parameters else "")
        headers = {"Accept": "application/json", "User-Agent": f"engineroom-cli/{__version__}"}
        headers |= self._authorization()
        data = None
        if body is not None:
            headers["Content-Type"] = content_type
            data = json.dumps(body).encode()
        try:
            response = self._pool.request(
                method, url, body=data, headers=headers, timeout=Timeout(*_TIMEOUT), retries=False
            )
        except (HTTPError, OSError) as error:
            raise unreachable(self.server, str(error)) from error
        return int(response.status), str(response.reason or ""), bytes(response.data)


def _display_name(resource: Resource, namespace: str | None, name: str) -> str:
    kind = resource.kind if resource.group else resource.kind.lower()
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


def _registration(
    configurations: Sequence[Document], namespaces: Sequence[str]
) -> WebhookRegistration | None:
    """Return the webhooks of an installation in one of the namespaces."""
    for document in configurations:
        releases = registered_releases([document])
        if any(release.namespace in namespaces for release in releases):
            webhooks = document["webhooks"]
            signed = sum(bool(webhook["clientConfig"].get("caBundle")) for webhook in webhooks)
            return WebhookRegistration(document["metadata"]["name"], len(webhooks), signed)
    return None


def _read_if_allowed(denied: list[str], what: str, read: Callable[[], T], otherwise: T) -> T:
    """Return the result of ``read``; if it is forbidden, ``otherwise``, and note ``what``."""
    try:
        return read()
    except ForbiddenError:
        denied.append(what)
        return otherwise
