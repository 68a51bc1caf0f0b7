"""A pool's Kubernetes objects, from its spec and nothing else: no client, no clock, no globals."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineroom.api import (
    ANNOTATION_TEMPLATE_HASH,
    API_VERSION,
    LABEL_POOL,
    kinds,
)

if TYPE_CHECKING:
    from engineroom.api.v1alpha1.workerpool import WorkerPool

Object = dict[str, Any]

RUNTIME_VOLUME = "engineroom-runtime"
TMP_VOLUME = "engineroom-tmp"
CA_VOLUME = "engineroom-redis-ca"
RUNTIME_PATH = "/engineroom"
CA_PATH = "/engineroom-redis-ca"
METRICS_PORT = 9477
REDIS_SECRET_KEY = "url"  # noqa: S105 - the name of a key
#: What a worker gets over maxJobDuration to put its job down in order (seconds).
GRACE_MARGIN = 30
#: User of a container whose template names none: what restricted Pod Security needs.
DEFAULT_USER = 65532


@dataclass(frozen=True, slots=True)
class RuntimeImage:
    """The image that brings the worker runtime into users' pods."""

    image: str
    pull_policy: str = "IfNotPresent"


def inputs_hash(spec: Any, runtime: RuntimeImage, redis_secret: tuple[str, str]) -> str:
    """Fingerprint of all that a pool's objects are made from, size excluded.

    Equal fingerprints mean equal objects, so that a restarted operator knows without building
    anything that there is nothing to write.
    """
    relevant = {key: spec.get(key) for key in ("template", "queues", "dequeueStrategy",
                "workersPerPod", "drain", "deadLetter", "redis")}  # fmt: skip
    text = json.dumps(
        [_OBJECTS_VERSION, relevant, runtime.image, runtime.pull_policy, redis_secret],
        sort_keys=True,
        separators=(",", ":"),
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


#: Raise it whenever the objects below change for the same spec.
_OBJECTS_VERSION = 3


def owner_reference(name: str, uid: str) -> Object:
    """Return the reference that makes Kubernetes delete a child with its pool."""
    return {
        "apiVersion": API_VERSION,
        "kind": kinds.WORKER_POOL.kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def labels(name: str) -> dict[str, str]:
    """Labels of every object of the pool."""
    return {
        LABEL_POOL: name,
        "app.kubernetes.io/managed-by": "engineroom",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/component": "worker",
    }


def selector(name: str) -> str:
    """Label selector of the pool's pods, as a string."""
    return f"{LABEL_POOL}={name}"


def template_account(pool: WorkerPool) -> str:
    """Name of the account that the pool's template names; "" without one."""
    spec = pool.spec.template.get("spec") or {}
    return str(spec.get("serviceAccountName") or spec.get("serviceAccount") or "")


def service_account(pool: WorkerPool, uid: str) -> Object:
    """An account without any right; nothing in a worker needs the Kubernetes API."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(pool, uid, own_account(pool)),
        "automountServiceAccountToken": False,
    }


def own_account(pool: WorkerPool) -> str:
    """Name of the account that the operator creates for a pool whose template names none."""
    return f"{pool.name}-worker"


def disruption_budget(pool: WorkerPool, uid: str) -> Object:
    """Node drains take a quarter of the workers at a time, each after its job."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(pool, uid, pool.name),
        "spec": {
            "maxUnavailable": "25%",
            "selector": {"matchLabels": {LABEL_POOL: pool.name}},
        },
    }


def redis_secret(pool: WorkerPool, uid: str, url: str) -> Object:
    """The chart's Redis for this pool's workers; immutable, a new URL makes a new Secret."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(pool, uid, redis_secret_name(pool.name, uid, url)),
        "immutable": True,
        "type": "Opaque",
        "stringData": {REDIS_SECRET_KEY: url},
    }


def redis_secret_name(pool: str, *contents: str) -> str:
    """Name of the Secret for ``contents``, the pool's uid and the URL.

    Only their hash is in the name. The operator may not read Secrets, so it cannot see whose Secret
    of that name exists: the uid keeps pools apart, and only a client that has the URL can create
    the Secret before the operator does.
    """
    text = "\n".join(contents)
    return f"{pool}-redis-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def deployment(
    pool: WorkerPool,
    uid: str,
    *,
    replicas: int,
    runtime: RuntimeImage,
    redis_secret: tuple[str, str],
    inputs: str,
) -> Object:
    """The Deployment: the user's template with the worker runtime put in."""
    metadata = _metadata(pool, uid, pool.name)
    metadata["annotations"] = {ANNOTATION_TEMPLATE_HASH: inputs}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {LABEL_POOL: pool.name}},
            # New pods come up before old ones go; an old one takes SIGTERM as "finish and go".
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0},
            },
            "template": _template(pool, runtime, redis_secret),
        },
    }


def _metadata(pool: WorkerPool, uid: str, name: str) -> Object:
    return {
        "name": name,
        "namespace": pool.namespace,
        "labels": labels(pool.name),
        "ownerReferences": [owner_reference(pool.name, uid)],
    }


def _template(pool: WorkerPool, runtime: RuntimeImage, redis_secret: tuple[str, str]) -> Object:
    template = copy.deepcopy(pool.spec.template)
    metadata = template.setdefault("metadata", {})
    metadata["labels"] = {**(metadata.get("labels") or {}), **labels(pool.name)}
    spec: Object = template.setdefault("spec", {})
    grace = math.ceil(pool.spec.drain.max_job_duration.seconds) + GRACE_MARGIN
    spec["terminationGracePeriodSeconds"] = max(
        grace, int(spec.get("terminationGracePeriodSeconds") or 0)
    )
    # Kubernetes reads "" as the namespace's account "default".
    spec["serviceAccountName"] = template_account(pool) or own_account(pool)
    spec.pop("serviceAccount", None)
    # The account that a template names may have rights, and its own default is to mount a token.
    spec["automountServiceAccountToken"] = spec.get("automountServiceAccountToken") is True
    spec.setdefault("enableServiceLinks", False)
    security = spec.setdefault("securityContext", {})
    security.setdefault("runAsNonRoot", True)
    security.setdefault("seccompProfile", {"type": "RuntimeDefault"})
    security.setdefault("runAsUser", DEFAULT_USER)
    security.setdefault("runAsGroup", DEFAULT_USER)
    security.setdefault("fsGroup", DEFAULT_USER)
    containers: list[Object] = spec["containers"]
    worker = worker_container(containers)
    for container in [*containers, *(spec.get("initContainers") or ())]:
        _restrict(container)
    _add_runtime(worker, pool, redis_secret)
    init = {
        "name": "engineroom-runtime",
        "image": runtime.image,
        "imagePullPolicy": runtime.pull_policy,
        "command": ["/copy-runtime", RUNTIME_PATH],
        "volumeMounts": [{"name": RUNTIME_VOLUME, "mountPath": RUNTIME_PATH}],
        "resources": {
            "requests": {"cpu": "10m", "memory": "16Mi"},
            "limits": {"memory": "64Mi"},
        },
    }
    _restrict(init)
    spec["initContainers"] = [init, *(spec.get("initContainers") or ())]
    volumes = [v for v in spec.get("volumes") or () if v.get("name") != TMP_VOLUME]
    volumes.append({"name": RUNTIME_VOLUME, "emptyDir": {"sizeLimit": "16Mi"}})
    if any(m["name"] == TMP_VOLUME for m in worker["volumeMounts"]):
        volumes.append({"name": TMP_VOLUME, "emptyDir": {}})
    ca = pool.spec.redis.tls.ca_secret_ref if pool.spec.redis and pool.spec.redis.tls else None
    if ca is not None:
        items = [{"key": ca.key, "path": "ca.crt"}]
        volumes.append({"name": CA_VOLUME, "secret": {"secretName": ca.name, "items": items}})
    spec["volumes"] = volumes
    return template


def worker_container(containers: list[Object]) -> Object:
    """The container that runs the workers: the one named ``worker``, else the first."""
    return next((c for c in containers if c.get("name") == "worker"), containers[0])


def _add_runtime(container: Object, pool: WorkerPool, redis_secret: tuple[str, str]) -> None:
    """Make a container of the user's image run the worker runtime."""
    interpreter = container.get("command") or ["python3"]
    # `start` keeps a SIGTERM that comes before Python can hear it; see deploy/worker-runtime.
    container["command"] = [f"{RUNTIME_PATH}/start", *interpreter, "-m", "engineroom_worker"]
    container.pop("args", None)
    # `heard` makes the kubelet hold the signal back until a process can handle it.
    lifecycle = container.setdefault("lifecycle", {})
    lifecycle.setdefault("preStop", {"exec": {"command": [f"{RUNTIME_PATH}/heard"]}})
    spec = pool.spec
    env: list[Object] = list(container.get("env") or ())
    users_path = next((e.get("value") for e in env if e["name"] == "PYTHONPATH"), None)
    env = [e for e in env if e["name"] != "PYTHONPATH"]
    names = {e["name"] for e in env}
    ordered = sorted(spec.queues, key=lambda queue: -queue.priority)
    queues = [{"name": queue.name, "priority": queue.priority} for queue in ordered]
    ours: list[Object] = [
        {"name": "PYTHONPATH", "value": ":".join(filter(None, [RUNTIME_PATH, users_path]))},
        {"name": "ENGINEROOM_POOL", "value": f"{pool.namespace}/{pool.name}"},
        {"name": "ENGINEROOM_POD_NAME", "valueFrom": _field("metadata.name")},
        {"name": "ENGINEROOM_POD_UID", "valueFrom": _field("metadata.uid")},
        {
            "name": "ENGINEROOM_REDIS_URL",
            "valueFrom": {"secretKeyRef": {"name": redis_secret[0], "key": redis_secret[1]}},
        },
        {"name": "ENGINEROOM_QUEUES", "value": json.dumps(queues, separators=(",", ":"))},
        {"name": "ENGINEROOM_DEQUEUE_STRATEGY", "value": spec.dequeue_strategy.value},
        {"name": "ENGINEROOM_WORKERS", "value": str(spec.workers_per_pod)},
        {
            "name": "ENGINEROOM_MAX_JOB_DURATION",
            "value": f"{spec.drain.max_job_duration.seconds:g}",
        },
        {"name": "ENGINEROOM_ON_DEADLINE", "value": spec.drain.on_deadline.value},
        {"name": "ENGINEROOM_DEAD_LETTER_TTL", "value": f"{spec.dead_letter.ttl.seconds:.0f}"},
        {"name": "ENGINEROOM_METRICS_PORT", "value": str(METRICS_PORT)},
    ]
    tls = spec.redis.tls if spec.redis else None
    if tls is not None and tls.insecure_skip_verify:
        ours.append({"name": "ENGINEROOM_REDIS_INSECURE", "value": "1"})
    mounts = list(container.get("volumeMounts") or ())
    mounts.append({"name": RUNTIME_VOLUME, "mountPath": RUNTIME_PATH, "readOnly": True})
    if tls is not None and tls.ca_secret_ref is not None:
        ours.append({"name": "ENGINEROOM_REDIS_CA_FILE", "value": f"{CA_PATH}/ca.crt"})
        mounts.append({"name": CA_VOLUME, "mountPath": CA_PATH, "readOnly": True})
    if not any(m.get("mountPath") == "/tmp" for m in mounts):  # noqa: S108 - in the pod
        mounts.append({"name": TMP_VOLUME, "mountPath": "/tmp"})  # noqa: S108 - in the pod
    if "HOME" not in names:
        ours.append({"name": "HOME", "value": "/tmp"})  # noqa: S108 - in the pod
    container["env"] = [*env, *ours]
    container["volumeMounts"] = mounts
    ports = list(container.get("ports") or ())
    if not any(port.get("containerPort") == METRICS_PORT for port in ports):
        ports.append({"name": "er-metrics", "containerPort": METRICS_PORT, "protocol": "TCP"})
    container["ports"] = ports
    container.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")


def _field(path: str) -> Object:
    return {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}


def _restrict(container: Object) -> None:
    """Restricted Pod Security where the template says nothing of its own."""
    security = container.setdefault("securityContext", {})
    capabilities = security.setdefault("capabilities", {})
    # With these Kubernetes accepts no false.
    if security.get("privileged") is not True and "CAP_SYS_ADMIN" not in (
        capabilities.get("add") or ()
    ):
        security.setdefault("allowPrivilegeEscalation", False)
    security.setdefault("readOnlyRootFilesystem", True)
    capabilities.setdefault("drop", ["ALL"])
