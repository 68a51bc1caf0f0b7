"""Rules of ``spec.template``: what Kubernetes would refuse, and what a pool cannot run.

Every function takes any JSON and never raises. The schema reports wrong types, so the rules ignore
values of a wrong type.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

from engineroom.api import names
from engineroom.api.quantity import QuantityError, parse_quantity
from engineroom.api.schema.pod_schema import pod_template
from engineroom.api.schema.tree import check
from engineroom.core.errors import Problem
from engineroom.core.validation.json_values import as_list, as_map
from engineroom.core.validation.paths import child, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Kubernetes copies the template into every revision of the Deployment; files belong elsewhere.
MAX_BYTES = 64 * 1024
MAX_CONTAINERS = 32
PATH = "spec.template"
SPEC = f"{PATH}.spec"

_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?")
_ENV_NAME = re.compile(r"[ -<>-~]+")
_SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh"})
#: Fields of a pod template's metadata that have no effect there, or a harmful one.
_MEANINGLESS = frozenset(
    {"name", "namespace", "generateName", "ownerReferences", "finalizers", "uid"}
)


def problems(template: dict[str, Any], max_job_duration: float | None) -> Iterator[Problem]:
    """Yield each problem of a template; ``max_job_duration`` in seconds, None if it is invalid."""
    size = len(json.dumps(template, separators=(",", ":"), default=str).encode("utf-8", "replace"))
    if size > MAX_BYTES:
        fix = f"keep it to at most {MAX_BYTES}; put files into a ConfigMap or the image"
        yield Problem(PATH, f"has {size} bytes", fix)
        return
    yield from _structure(template)
    yield from _metadata(as_map(template.get("metadata")))
    spec = as_map(template.get("spec"))
    yield from _pod(spec, max_job_duration)
    yield from _containers(spec)
    yield from _volumes(spec)


def _structure(template: dict[str, Any]) -> Iterator[Problem]:
    """Check fields and types against Kubernetes' own schema."""
    node = pod_template()
    pod = (node.fields or {})["spec"].fields or {}
    misplaced = [key for key in template if isinstance(key, str) and key in pod]
    for key in misplaced:
        field = child(PATH, key)
        yield Problem(field, "is a field of the pod's spec", f"move it to {child(SPEC, key)}")
    rest = {key: value for key, value in template.items() if key not in misplaced}
    yield from check(node, rest, PATH)
    if template.get("spec") is None and "containers" not in misplaced:
        yield Problem(SPEC, "is missing", "add it with the application's container")


def _metadata(metadata: dict[str, Any]) -> Iterator[Problem]:
    path = f"{PATH}.metadata"
    for key in metadata:
        if key in _MEANINGLESS:
            yield Problem(child(path, key), "has no meaning in a pod template", "remove it")
    for kind in ("labels", "annotations"):
        entries: dict[Any, Any] = as_map(metadata.get(kind))
        for key, value in entries.items():
            if not isinstance(key, str):
                continue  # the schema reports it
            field = child(f"{path}.{kind}", key)
            if not names.is_key(key):
                yield Problem(
                    field,
                    "is not a valid key",
                    "write a name of letters, digits, '-', '_' and '.', if need be after a "
                    "domain and a slash",
                )
            elif names.is_reserved_key(key) or key in names.OWN_ANNOTATIONS:
                yield Problem(field, "is set by Engineroom itself", "remove it")
            elif kind == "labels" and isinstance(value, str) and not names.is_label_value(value):
                yield Problem(
                    field,
                    f"{quoted(value)} is not a valid label value",
                    "write at most 63 letters, digits, '-', '_' and '.', with a letter or digit "
                    "at both ends",
                )


def _pod(spec: dict[str, Any], max_job_duration: float | None) -> Iterator[Problem]:
    policy = spec.get("restartPolicy")
    if policy in ("OnFailure", "Never"):
        yield Problem(
            f"{SPEC}.restartPolicy",
            f"{quoted(policy)} would leave the pool without a worker that ended",
            "remove it or write Always",
        )
    if spec.get("nodeName") is not None:
        yield Problem(
            f"{SPEC}.nodeName",
            "ties every worker to one node, past the scheduler",
            "use nodeSelector or affinity",
        )
    if spec.get("activeDeadlineSeconds") is not None:
        yield Problem(
            f"{SPEC}.activeDeadlineSeconds",
            "would kill workers with a job in hand",
            "remove it; spec.drain.maxJobDuration bounds jobs",
        )
    if spec.get("ephemeralContainers") is not None:
        yield Problem(
            f"{SPEC}.ephemeralContainers",
            "cannot be part of a template",
            "remove it; kubectl debug adds them to a running pod",
        )
    if spec.get("schedulingGates"):
        yield Problem(
            f"{SPEC}.schedulingGates",
            "would hold back every worker until the gate is removed",
            "remove it",
        )
    grace = spec.get("terminationGracePeriodSeconds")
    if isinstance(grace, int) and not isinstance(grace, bool) and max_job_duration is not None:
        least = math.ceil(max_job_duration)
        if grace < least:
            yield Problem(
                f"{SPEC}.terminationGracePeriodSeconds",
                f"{quoted(grace)} is shorter than spec.drain.maxJobDuration ({least} s), so jobs "
                "would be killed",
                "remove it (Engineroom sets it) or lower spec.drain.maxJobDuration",
            )
    for field in ("serviceAccountName", "serviceAccount", "priorityClassName"):
        name = spec.get(field)
        if isinstance(name, str) and name and not _subdomain(name):
            yield Problem(
                f"{SPEC}.{field}",
                f"{quoted(name)} is not the name of an object",
                "write lower-case letters, digits, '-' and '.'",
            )


def _containers(spec: dict[str, Any]) -> Iterator[Problem]:
    containers = spec.get("containers")
    if isinstance(containers, list) and not containers:
        yield Problem(
            f"{SPEC}.containers", "is empty", "add the application's container, with its image"
        )
    worker = worker_container(containers) if isinstance(containers, list) else None
    places: dict[str, str] = {}
    for group in ("containers", "initContainers"):
        listed = spec.get(group)
        if not isinstance(listed, list):
            continue
        if len(listed) > MAX_CONTAINERS:
            yield Problem(
                f"{SPEC}.{group}",
                f"has {len(listed)} items",
                f"keep at most {MAX_CONTAINERS} of them",
            )
            continue
        for index, container in enumerate(listed):
            path = f"{SPEC}.{group}[{index}]"
            if not isinstance(container, dict):
                continue  # the schema reports it
            yield from _container_name(container, path, places, own_group=group)
            yield from _container(container, path)
            if group == "containers" and index == worker:
                yield from _worker(container, path)
            elif group == "containers":
                yield from _beside_worker(container, path)


def worker_container(containers: list[Any]) -> int | None:
    """Return the index of the workers' container: named ``worker``, else the first."""
    for index, container in enumerate(containers):
        if isinstance(container, dict) and container.get("name") == "worker":
            return index
    return 0 if containers else None


def _container_name(
    container: dict[str, Any], path: str, places: dict[str, str], *, own_group: str
) -> Iterator[Problem]:
    name = container.get("name")
    if not isinstance(name, str):
        return
    if not names.DNS_LABEL.fullmatch(name):
        yield Problem(
            f"{path}.name",
            f"{quoted(name)} is not a valid name",
            "write at most 63 lower-case letters, digits and dashes",
        )
    elif name == names.INIT_CONTAINER:
        yield Problem(
            f"{path}.name", f"{quoted(name)} is Engineroom's own container", "choose another name"
        )
    # The schema reports duplicates within one list.
    if name in places and not places[name].startswith(f"{SPEC}.{own_group}["):
        yield Problem(
            f"{path}.name",
            f"{quoted(name)} is already the name of {places[name]}",
            "choose another",
        )
    places.setdefault(name, path)


def _container(container: dict[str, Any], path: str) -> Iterator[Problem]:
    image = container.get("image")
    if image is None or image == "":
        yield Problem(f"{path}.image", "is missing", "add the image of your application")
    elif isinstance(image, str) and (image != image.strip() or re.search(r"\s", image)):
        yield Problem(f"{path}.image", f"{quoted(image)} contains white space", "remove it")
    yield from _env(container, path)
    yield from _mounts(container, path)
    yield from _resources(container, path)
    for index, port in enumerate(as_list(container.get("ports"))):
        number, name = as_map(port).get("containerPort"), as_map(port).get("name")
        where = f"{path}.ports[{index}]"
        if isinstance(number, int) and not isinstance(number, bool) and not 0 < number < 65536:
            yield Problem(
                f"{where}.containerPort",
                f"{quoted(number)} is not a port",
                "write a number from 1 to 65535",
            )
        if isinstance(name, str) and name and not _PORT_NAME.fullmatch(name):
            yield Problem(
                f"{where}.name",
                f"{quoted(name)} is not a valid name of a port",
                "write at most 15 lower-case letters, digits and dashes",
            )


def _env(container: dict[str, Any], path: str) -> Iterator[Problem]:
    for index, variable in enumerate(as_list(container.get("env"))):
        name = as_map(variable).get("name")
        where = f"{path}.env[{index}]"
        if not isinstance(name, str):
            continue
        if not _ENV_NAME.fullmatch(name):
            yield Problem(
                f"{where}.name",
                f"{quoted(name)} is not a valid name of a variable",
                "write letters, digits and '_'",
            )
        elif name.startswith(names.ENV_PREFIX):
            yield Problem(
                f"{where}.name",
                f"{quoted(name)} is set by Engineroom itself",
                f"choose a name that does not begin with {names.ENV_PREFIX}",
            )
        value, source = as_map(variable).get("value"), as_map(variable).get("valueFrom")
        if value and source is not None:
            yield Problem(f"{where}.valueFrom", "conflicts with value", "remove one of the two")


def _mounts(container: dict[str, Any], path: str) -> Iterator[Problem]:
    for index, mount in enumerate(as_list(container.get("volumeMounts"))):
        where = f"{path}.volumeMounts[{index}].mountPath"
        target = as_map(mount).get("mountPath")
        if not isinstance(target, str):
            continue
        if target == "":
            yield Problem(where, "is empty", "write the folder to mount the volume at")
        elif _under_engineroom(target):
            yield Problem(where, f"{quoted(target)} is Engineroom's own folder", "choose another")


def _under_engineroom(path: str) -> bool:
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if not path.startswith("/") or not parts:
        return False
    top = "/" + parts[0]
    return top == names.MOUNT_PREFIX or top.startswith(f"{names.MOUNT_PREFIX}-")


def _resources(container: dict[str, Any], path: str) -> Iterator[Problem]:
    resources = as_map(container.get("resources"))
    limits = as_map(resources.get("limits"))
    for name, value in as_map(resources.get("requests")).items():
        request, limit = _quantity(value), _quantity(limits.get(name))
        if request is not None and request < 0:
            yield Problem(
                child(f"{path}.resources.requests", str(name)),
                f"{quoted(value)} is negative",
                "write zero or more",
            )
        elif request is not None and limit is not None and request > limit:
            yield Problem(
                child(f"{path}.resources.requests", str(name)),
                f"{quoted(value)} is more than the limit ({quoted(limits[name])})",
                "lower it or raise the limit",
            )


def _worker(container: dict[str, Any], path: str) -> Iterator[Problem]:
    """Check the fields that the workers' container must not set."""
    if container.get("args"):
        yield Problem(
            f"{path}.args",
            "is set, but Engineroom starts the workers in this container",
            "remove it; command may name the Python interpreter",
        )
    command = [word for word in as_list(container.get("command")) if isinstance(word, str)]
    if command:
        program = command[0].rsplit("/", 1)[-1]
        if (program in _SHELLS and len(command) > 1) or "rq" in {
            word.rsplit("/", 1)[-1] for word in command
        }:
            yield Problem(
                f"{path}.command",
                "starts something of its own, but `-m engineroom_worker` is put behind it",
                'write only the Python interpreter, such as ["/venv/bin/python"], or remove it',
            )
    if as_map(container.get("lifecycle")).get("preStop") is not None:
        yield Problem(
            f"{path}.lifecycle.preStop",
            "would run before the worker is told to finish, out of its grace period",
            "remove it; the runtime finishes its job when the pod ends",
        )
    if container.get("restartPolicy") is not None or container.get("restartPolicyRules"):
        yield Problem(f"{path}.restartPolicy", "belongs to init containers", "remove it")
    for index, variable in enumerate(as_list(container.get("env"))):
        if as_map(variable).get("name") == "PYTHONPATH" and as_map(variable).get("valueFrom"):
            yield Problem(
                f"{path}.env[{index}].valueFrom",
                "cannot be joined with the runtime's own PYTHONPATH",
                "write a plain value",
            )


def _beside_worker(container: dict[str, Any], path: str) -> Iterator[Problem]:
    for index, port in enumerate(as_list(container.get("ports"))):
        if as_map(port).get("containerPort") == names.METRICS_PORT:
            yield Problem(
                f"{path}.ports[{index}].containerPort",
                f"{names.METRICS_PORT} is the port of the worker's metrics",
                "choose another",
            )


def _volumes(spec: dict[str, Any]) -> Iterator[Problem]:
    names_in_use: set[str] = set()
    for index, volume in enumerate(as_list(spec.get("volumes"))):
        if not isinstance(volume, dict):
            continue
        name = volume.get("name")
        where = f"{SPEC}.volumes[{index}]"
        if isinstance(name, str):
            names_in_use.add(name)
            if not names.DNS_LABEL.fullmatch(name):
                yield Problem(
                    f"{where}.name",
                    f"{quoted(name)} is not a valid name",
                    "write at most 63 lower-case letters, digits and dashes",
                )
            elif name == names.VOLUME_PREFIX or name.startswith(f"{names.VOLUME_PREFIX}-"):
                yield Problem(
                    f"{where}.name",
                    f"{quoted(name)} is a name of Engineroom's own volumes",
                    "choose another",
                )
        sources = [key for key in volume if key != "name" and volume[key] is not None]
        if not sources:
            yield Problem(where, "says nothing of where it comes from", "add emptyDir: {}")
        elif len(sources) > 1:
            yield Problem(
                where, f"has {len(sources)} sources", "keep one and make volumes of the others"
            )
    for group in ("containers", "initContainers"):
        for index, container in enumerate(as_list(spec.get(group))):
            for number, mount in enumerate(as_list(as_map(container).get("volumeMounts"))):
                name = as_map(mount).get("name")
                if isinstance(name, str) and name not in names_in_use:
                    yield Problem(
                        f"{SPEC}.{group}[{index}].volumeMounts[{number}].name",
                        f"{quoted(name)} is not among the volumes",
                        f"add it to {SPEC}.volumes",
                    )


def warnings(template: dict[str, Any]) -> Iterator[str]:
    """Yield warnings: what works but is probably not meant."""
    metadata, spec = as_map(template.get("metadata")), as_map(template.get("spec"))
    for key in as_map(metadata.get("labels")):
        if key in names.SET_LABELS:
            yield f"{child(f'{PATH}.metadata.labels', key)}: Engineroom writes its own value there"
    if spec.get("serviceAccount") and not spec.get("serviceAccountName"):
        yield f"{SPEC}.serviceAccount: is deprecated; write serviceAccountName"
    containers = as_list(spec.get("containers"))
    worker = worker_container(containers)
    for index, container in enumerate(containers):
        if not isinstance(container, dict):
            continue
        path = f"{SPEC}.containers[{index}]"
        image = container.get("image")
        if isinstance(image, str) and image and _floating(image):
            yield (
                f"{path}.image: {quoted(image)} names no fixed version, so pods of one pool may "
                "run different code; write a tag or a digest"
            )
        if index != worker:
            continue
        if container.get("livenessProbe") is not None:
            yield (
                f"{path}.livenessProbe: restarts the container with its job when it fails; the "
                "runtime watches over its workers itself"
            )
        if container.get("readinessProbe") is not None:
            yield f"{path}.readinessProbe: takes the place of the runtime's own"
        command = [word for word in as_list(container.get("command")) if isinstance(word, str)]
        if command and not re.match(r"(python|pypy)", command[-1].rsplit("/", 1)[-1]):
            yield (
                f"{path}.command: does not end with a Python interpreter; `-m engineroom_worker` "
                "is put behind it"
            )


def _floating(image: str) -> bool:
    if "@" in image:
        return False
    last = image.rsplit("/", 1)[-1]
    return ":" not in last or last.endswith(":latest")


def _quantity(value: object) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return parse_quantity(value)
    except QuantityError:
        return None


def _subdomain(name: str) -> bool:
    return len(name) <= 253 and names.DNS_SUBDOMAIN.fullmatch(name) is not None
