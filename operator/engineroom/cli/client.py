"""The edge to Kubernetes: everything the command line reads and the little that it writes.

The official client is imported when a command first needs it, never at start: ``--help`` and
``version --client`` must not wait for it. Its errors are turned into ours here and nowhere else.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from engineroom.api import GROUP, LABEL_POOL, VERSION
from engineroom.cli.errors import (
    INSTALL,
    CliError,
    ForbiddenError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    UsageError,
    program,
)
from engineroom.cli.model import (
    PLURAL,
    RESOURCE,
    Admission,
    Component,
    Definition,
    Document,
    Event,
    Installation,
    Pod,
    Pool,
    parse_component,
    parse_event,
    parse_pod,
    parse_pool,
    parse_usage,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

T = TypeVar("T")

FIELD_MANAGER = "engineroom-cli"
MERGE_PATCH = "application/merge-patch+json"
#: Label by which the installation's own objects are found.
PART_OF = "app.kubernetes.io/part-of=engineroom"
_PAGE = 500
#: Seconds to connect, seconds to answer.
_TIMEOUT = (5.0, 30.0)


class Cluster(Protocol):
    """What commands ask of a cluster. All methods raise CliError."""

    @property
    def server(self) -> str:
        """URL of the API server."""
        ...

    @property
    def namespace(self) -> str:
        """The namespace that the kubeconfig's context names."""
        ...

    def pools(self, namespace: str | None, selector: str | None = None) -> tuple[Pool, ...]:
        """The pools of a namespace, of all where it is None; sorted by id."""
        ...

    def pool(self, namespace: str, name: str) -> Pool:
        """One pool. Raises NotFoundError."""
        ...

    def pods(self, namespace: str | None, pool: str | None = None) -> tuple[Pod, ...]:
        """The worker pods of a pool or of all pools, with their use where it is measured."""
        ...

    def pod(self, namespace: str, name: str) -> Pod:
        """One pod. Raises NotFoundError."""
        ...

    def events(self, pool: Pool) -> tuple[Event, ...]:
        """The pool's events, latest first; empty where they may not be read."""
        ...

    def installation(self) -> Installation:
        """What of Engineroom is there."""
        ...

    def patch_pool(self, pool: Pool, patch: Document, *, dry_run: bool = False) -> Pool:
        """Merge ``patch`` into the pool; what the server made of it."""
        ...

    def scale_pool(self, pool: Pool, replicas: int, *, dry_run: bool = False) -> int:
        """Set the size through the scale subresource; the size the server took."""
        ...

    def annotate_pod(
        self, pod: Pod, annotations: Mapping[str, str | None], *, dry_run: bool = False
    ) -> Pod:
        """Set annotations, or remove those that are None."""
        ...


class KubernetesCluster:
    """The Cluster behind a kubeconfig, or the one that this process runs in."""

    def __init__(self, kubeconfig: str | None = None, context: str | None = None) -> None:
        from kubernetes import client

        self._api, self._namespace = _connect(kubeconfig, context)
        # As Any: the client's own types differ from release to release, and a custom object is
        # JSON to it anyway; parse_* is where types begin.
        self._custom: Any = client.CustomObjectsApi(self._api)
        self._core: Any = client.CoreV1Api(self._api)

    @property
    def server(self) -> str:
        """URL of the API server."""
        return str(self._api.configuration.host)

    @property
    def namespace(self) -> str:
        """The namespace that the kubeconfig's context names."""
        return self._namespace

    def pools(self, namespace: str | None, selector: str | None = None) -> tuple[Pool, ...]:
        """The pools of a namespace, of all where it is None; sorted by id."""
        documents = self._list(GROUP, VERSION, PLURAL, namespace, selector)
        return tuple(sorted(map(parse_pool, documents), key=lambda pool: pool.id))

    def pool(self, namespace: str, name: str) -> Pool:
        """One pool. Raises NotFoundError."""
        with self._errors(f"WorkerPool {namespace}/{name}"):
            return parse_pool(
                self._custom.get_namespaced_custom_object(
                    GROUP, VERSION, namespace, PLURAL, name, _request_timeout=_TIMEOUT
                )
            )

    def pods(self, namespace: str | None, pool: str | None = None) -> tuple[Pod, ...]:
        """The worker pods of a pool or of all pools, with their use where it is measured."""
        selector = f"{LABEL_POOL}={pool}" if pool else LABEL_POOL
        arguments: tuple[str, ...] = ()
        method = self._core.list_pod_for_all_namespaces
        if namespace is not None:
            method, arguments = self._core.list_namespaced_pod, (namespace,)
        with self._errors("the pods"):
            pods = [parse_pod(item) for item in self._pages(method, arguments, selector)]
        usage = self._usage(namespace, selector) if pods else {}
        measured = (replace(pod, usage=usage.get((pod.namespace, pod.name))) for pod in pods)
        return tuple(sorted(measured, key=lambda pod: (pod.namespace, pod.pool, pod.name)))

    def _usage(self, namespace: str | None, selector: str) -> dict[tuple[str, str], Any]:
        """Measured use by pod; empty where no metrics server answers, which is no error."""
        try:
            documents = self._list("metrics.k8s.io", "v1beta1", "pods", namespace, selector)
        except CliError:
            return {}
        return {
            (one["metadata"]["namespace"], one["metadata"]["name"]): parse_usage(one)
            for one in documents
        }

    def pod(self, namespace: str, name: str) -> Pod:
        """One pod. Raises NotFoundError."""
        with self._errors(f"pod {namespace}/{name}"):
            return parse_pod(
                _json(
                    self._core.read_namespaced_pod(
                        name, namespace, _preload_content=False, _request_timeout=_TIMEOUT
                    )
                )
            )

    def events(self, pool: Pool) -> tuple[Event, ...]:
        """The pool's events, latest first; empty where they may not be read."""
        fields = f"involvedObject.kind=WorkerPool,involvedObject.name={pool.name}"
        try:
            with self._errors("the events"):
                answer = self._core.list_namespaced_event(
                    pool.namespace,
                    field_selector=fields,
                    limit=_PAGE,
                    _preload_content=False,
                    _request_timeout=_TIMEOUT,
                )
        except ForbiddenError:
            return ()
        documents = [
            item
            for item in _json(answer).get("items") or []
            # A pool deleted and made anew has the name of the old one, not its history.
            if item["involvedObject"].get("uid", pool.uid) in (pool.uid, "")
        ]
        events = [parse_event(item) for item in documents]
        return tuple(
            sorted(events, key=lambda event: event.last.timestamp() if event.last else 0.0)[::-1]
        )

    def installation(self) -> Installation:
        """What of Engineroom is there; what the account may not read is named, not guessed."""
        from kubernetes import client

        denied: list[str] = []

        with self._errors("the API server's version"):
            version = client.VersionApi(self._api).get_code(_request_timeout=_TIMEOUT)
        definition = self._definition()
        none: list[Component] = []
        components = [
            *_allowed(denied, "Deployments", lambda: self._components("Deployment"), none),
            *_allowed(denied, "StatefulSets", lambda: self._components("StatefulSet"), none),
        ]
        operators = [one for one in components if one.role == "operator"]
        return Installation(
            server=self.server,
            server_version=str(version.git_version),
            definition=definition,
            components=tuple(components),
            admission=_allowed(denied, "webhook configurations", self._admission, None),
            leader=_allowed(denied, "Leases", lambda: self._leader(operators), None),
            denied=tuple(denied),
        )

    def _definition(self) -> Definition | None:
        """By discovery, which every account may use; the release only for who may read CRDs."""
        try:
            with self._errors("discovery"):
                resources = self._custom.get_api_resources(
                    GROUP, VERSION, _request_timeout=_TIMEOUT
                )
        except NotFoundError:
            return None
        if not any(one.name == PLURAL for one in resources.resources):
            return None
        try:
            document = self._get(
                "apiextensions.k8s.io", "v1", "customresourcedefinitions", RESOURCE
            )
        except (ForbiddenError, NotFoundError):
            return Definition(served=(VERSION,))
        labels = document["metadata"].get("labels") or {}
        served = tuple(one["name"] for one in document["spec"]["versions"] if one.get("served"))
        return Definition(served=served, release=labels.get("app.kubernetes.io/version", ""))

    def _components(self, kind: str) -> list[Component]:
        documents = self._list("apps", "v1", f"{kind.lower()}s", None, PART_OF)
        return [parse_component(kind, document) for document in documents]

    def _admission(self) -> Admission | None:
        documents = self._list(
            "admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations", None, None
        )
        for document in documents:
            webhooks = document.get("webhooks") or []
            rules = [rule for webhook in webhooks for rule in webhook.get("rules") or []]
            if any(GROUP in (rule.get("apiGroups") or []) for rule in rules):
                signed = sum(bool(one["clientConfig"].get("caBundle")) for one in webhooks)
                return Admission(document["metadata"]["name"], len(webhooks), signed)
        return None

    def _leader(self, operators: Sequence[Component]) -> str | None:
        for operator in operators:
            if not operator.lease:
                continue
            try:
                with self._errors("the Lease"):
                    lease: Document = self._custom.get_namespaced_custom_object(
                        "coordination.k8s.io",
                        "v1",
                        operator.namespace,
                        "leases",
                        operator.lease,
                        _request_timeout=_TIMEOUT,
                    )
            except NotFoundError:
                continue
            if holder := (lease.get("spec") or {}).get("holderIdentity"):
                return str(holder)
        return None

    def patch_pool(self, pool: Pool, patch: Document, *, dry_run: bool = False) -> Pool:
        """Merge ``patch`` into the pool; what the server made of it."""
        with self._errors(f"WorkerPool {pool.id}"):
            return parse_pool(
                self._custom.patch_namespaced_custom_object(
                    GROUP, VERSION, pool.namespace, PLURAL, pool.name, patch, **_write(dry_run)
                )
            )

    def scale_pool(self, pool: Pool, replicas: int, *, dry_run: bool = False) -> int:
        """Set the size through the scale subresource; the size the server took."""
        patch = {"spec": {"replicas": replicas}}
        with self._errors(f"WorkerPool {pool.id}"):
            scale = self._custom.patch_namespaced_custom_object_scale(
                GROUP, VERSION, pool.namespace, PLURAL, pool.name, patch, **_write(dry_run)
            )
        return int(scale["spec"].get("replicas", 0))

    def annotate_pod(
        self, pod: Pod, annotations: Mapping[str, str | None], *, dry_run: bool = False
    ) -> Pod:
        """Set annotations, or remove those that are None."""
        # With the uid, so that a pod made anew under the name is never the one that is marked.
        metadata: Document = {"annotations": dict(annotations), "uid": pod.uid}
        with self._errors(f"pod {pod.namespace}/{pod.name}"):
            answer = self._core.patch_namespaced_pod(
                pod.name,
                pod.namespace,
                {"metadata": metadata},
                _preload_content=False,
                **_write(dry_run),
            )
        return parse_pod(_json(answer))

    def _get(self, group: str, version: str, plural: str, name: str) -> Document:
        with self._errors(f"{plural} {name}"):
            document: Document = self._custom.get_cluster_custom_object(
                group, version, plural, name, _request_timeout=_TIMEOUT
            )
        return document

    def _list(
        self, group: str, version: str, plural: str, namespace: str | None, selector: str | None
    ) -> list[Document]:
        arguments: tuple[str, ...] = (group, version, plural)
        method = self._custom.list_cluster_custom_object
        if namespace is not None:
            method = self._custom.list_namespaced_custom_object
            arguments = (group, version, namespace, plural)
        with self._errors(f"{plural}.{group}"):
            return list(self._pages(method, arguments, selector))

    def _pages(
        self, method: Callable[..., Any], arguments: tuple[str, ...], selector: str | None
    ) -> Iterator[Document]:
        """All items of a list, page by page: ten thousand pools are no single answer."""
        options: dict[str, Any] = {"limit": _PAGE, "_request_timeout": _TIMEOUT}
        if selector:
            options["label_selector"] = selector
        if getattr(method, "__self__", None) is self._core:
            # As JSON: building the typed models of a thousand pods takes seconds.
            options["_preload_content"] = False
        while True:
            answer = method(*arguments, **options)
            page = answer if isinstance(answer, dict) else _json(answer)
            yield from page.get("items") or []
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return
            options["_continue"] = token

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """The client's errors as ours."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            answer = from_answer(what, error.status or 0, error.reason, error.body, self.server)
            raise answer from error
        except (HTTPError, OSError) as error:
            raise unreachable(self.server, str(error)) from error


def _allowed(denied: list[str], what: str, read: Callable[[], T], otherwise: T) -> T:
    """What ``read`` gives; where that is forbidden, ``otherwise``, and a note of it."""
    try:
        return read()
    except ForbiddenError:
        denied.append(what)
        return otherwise


def _write(dry_run: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "field_manager": FIELD_MANAGER,
        "_content_type": MERGE_PATCH,
        "_request_timeout": _TIMEOUT,
    }
    if dry_run:
        options["dry_run"] = "All"
    return options


def _json(response: Any) -> Document:
    document: Document = json.loads(response.data)
    return document


def from_answer(
    what: str, status: int, reason: str | None, body: str | bytes | None, server: str
) -> CliError:
    """The API server's answer as an error that says what, why and what to do."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else body or ""
    try:
        answer = json.loads(text)
    except ValueError:
        answer = {}
    message = str(answer.get("message") or text.strip() or reason or "")
    if status == 0:
        return unreachable(server, message)
    if status == 401:
        return ForbiddenError(
            f"{server} does not know who you are",
            why=message or "Unauthorized",
            fix="log in again, or choose another --context; `kubectl auth whoami` tries it",
        )
    if "failed calling webhook" in message:
        return RefusedError(
            f"the change of {what} could not be checked, and so was refused",
            why=message,
            fix=f"nothing was written; `{program()} status` shows what is wrong with the webhooks",
        )
    if "admission webhook" in message:
        return RefusedError(
            f"the change of {what} was refused",
            why=message,
            fix="change what the message names; nothing was written",
        )
    if status == 403:
        return ForbiddenError(
            f"you may not do this with {what}",
            why=message,
            fix="ask an administrator for it: the chart adds its rights to the cluster roles view, "
            "edit and admin, so a RoleBinding to edit (view, to look only) in the namespace does",
        )
    if status == 404 and not (answer.get("details") or {}).get("name"):
        # The path itself is unknown, so the kind is, not one object of it.
        return NotFoundError(
            "Engineroom is not installed in this cluster",
            why=f"{server} has no {RESOURCE}" if what != "discovery" else message,
            fix=INSTALL,
        )
    if status == 404:
        return NotFoundError(
            f"{what} is not there", why=message, fix=f"`{program()} get pools -A` lists all pools"
        )
    if status in (409, 422, 400):
        return RefusedError(
            f"the change of {what} was refused",
            why=message,
            fix="look at it as it is now, and try again"
            if status == 409
            else "change what the message names; nothing was written",
        )
    return UnreachableError(
        f"{server} answered {status} {reason or ''}".rstrip(),
        why=message,
        fix="try again; when it stays, look at the API server's log",
    )


def unreachable(server: str, why: str) -> UnreachableError:
    """No answer from the API server."""
    return UnreachableError(
        f"cannot reach the cluster at {server}",
        why=" ".join(why.split()),
        fix="check that the cluster runs and that --kubeconfig and --context name the right one; "
        "`kubectl cluster-info` tries the same way",
    )


def _connect(kubeconfig: str | None, context: str | None) -> tuple[Any, str]:
    """An API client and the namespace it speaks for by default."""
    import kubernetes
    import yaml
    from kubernetes.config.config_exception import ConfigException

    config: Any = kubernetes.config
    configuration = kubernetes.client.Configuration()
    # An answer that does not come is told at once, not after three tries with warnings.
    configuration.retries = False
    try:
        if kubeconfig is None and context is None and _in_cluster():
            config.load_incluster_config(client_configuration=configuration)
            return kubernetes.client.ApiClient(configuration), _own_namespace()
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
    return kubernetes.client.ApiClient(configuration), str(namespace)


def _chosen(contexts: list[Document], name: str) -> Document:
    for context in contexts:
        if context["name"] == name:
            return context
    names = ", ".join(sorted(one["name"] for one in contexts)) or "none"
    raise UsageError(
        f"there is no context {name}",
        why=f"the kubeconfig has: {names}",
        fix="name one of them with --context, or leave it out for the current one",
    )


_SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


def _in_cluster() -> bool:
    """Whether this runs in a pod and nobody said otherwise."""
    import os
    from pathlib import Path

    if os.environ.get("KUBECONFIG") or (Path.home() / ".kube" / "config").exists():
        return False
    return Path(_SERVICE_ACCOUNT, "token").exists()


def _own_namespace() -> str:
    from pathlib import Path

    return Path(_SERVICE_ACCOUNT, "namespace").read_text().strip()
