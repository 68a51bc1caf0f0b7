"""The fields of a pod template in Kubernetes, to find misspelt ones before they are stored.

``pod_schema.json`` is extracted from Kubernetes' OpenAPI document by
``python -m engineroom.api.generate --pod-schema FILE``, where FILE is a release's
``api__v1_openapi.json`` or what ``kubectl get --raw /openapi/v3/api/v1`` prints.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from engineroom.api.schema.tree import SchemaNode

_ROOT = "PodTemplateSpec"
_FILE = "pod_schema.json"
#: Enums that the OpenAPI document describes in prose only.
_ENUMS = {
    "PodSpec.restartPolicy": ("Always", "OnFailure", "Never"),
    "PodSpec.dnsPolicy": ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
    "PodSpec.preemptionPolicy": ("PreemptLowerPriority", "Never"),
    "Container.imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "Container.terminationMessagePolicy": ("File", "FallbackToLogsOnError"),
    "ContainerPort.protocol": ("TCP", "UDP", "SCTP"),
    "SeccompProfile.type": ("RuntimeDefault", "Unconfined", "Localhost"),
    "Toleration.operator": ("Exists", "Equal", "Lt", "Gt"),
    "Toleration.effect": ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    "TopologySpreadConstraint.whenUnsatisfiable": ("DoNotSchedule", "ScheduleAnyway"),
}
#: Values of variables may be secrets, even at a wrong place.
_SECRET = {"EnvVar.value", "EnvVar", "Container.env"}


def extract(document: dict[str, Any], version: str) -> dict[str, Any]:
    """Extract the types of a pod template from an OpenAPI v3 document, in short form."""
    schemas = document["components"]["schemas"]
    types: dict[str, Any] = {}
    waiting = [f"io.k8s.api.core.v1.{_ROOT}"]
    visited = set(waiting)
    while waiting:
        full = waiting.pop()
        schema = schemas[full]
        short: dict[str, Any] = {
            "fields": {
                name: _short(property_, waiting, visited)
                for name, property_ in sorted(schema.get("properties", {}).items())
            }
        }
        if schema.get("required"):
            short["required"] = sorted(schema["required"])
        types[_name(full)] = short
    return {"kubernetes": version, "types": dict(sorted(types.items()))}


def _name(full: str) -> str:
    return full.rsplit(".", 1)[-1]


def _short(schema: dict[str, Any], waiting: list[str], visited: set[str]) -> str:
    while "allOf" in schema:
        schema = schema["allOf"][0]
    reference = schema.get("$ref")
    if reference is not None:
        full = reference.rsplit("/", 1)[-1]
        name = _name(full)
        builtin = {
            "Quantity": "quantity",
            "IntOrString": "int-or-string",
            "Time": "string",
            "FieldsV1": "any",
        }.get(name)
        if builtin is not None:
            return builtin
        if full not in visited:
            visited.add(full)
            waiting.append(full)
        return name
    kind = str(schema.get("type", "any"))
    if kind == "array":
        keys = schema.get("x-kubernetes-list-map-keys", [])
        unique_by = keys[0] if len(keys) == 1 else ""
        return f"[{unique_by}]" + _short(schema["items"], waiting, visited)
    if kind == "object" and "additionalProperties" in schema:
        return "{}" + _short(schema["additionalProperties"], waiting, visited)
    return "any" if kind == "object" else kind


@cache
def document() -> dict[str, Any]:
    """Read the stored short form: ``kubernetes`` (a version) and ``types``."""
    text = (resources.files(__package__) / _FILE).read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@cache
def pod_template() -> SchemaNode:
    """Build the tree of a PodTemplateSpec."""
    types = document()["types"]
    built: dict[str, SchemaNode] = {}

    def build(short: str, place: str) -> SchemaNode:
        if short.startswith("["):
            unique_by, _, inner = short[1:].partition("]")
            return SchemaNode(
                "array",
                items=build(inner, place),
                unique_by=unique_by or None,
                secret=place in _SECRET,
            )
        if short.startswith("{}"):
            return SchemaNode("object", items=build(short[2:], place))
        if short not in types:
            return SchemaNode(short, enum=_ENUMS.get(place, ()), secret=place in _SECRET)
        if short not in built:
            described = types[short]
            built[short] = SchemaNode(
                "object",
                fields={
                    name: build(inner, f"{short}.{name}")
                    for name, inner in described["fields"].items()
                },
                required=tuple(described.get("required", ())),
                secret=short in _SECRET,
            )
        return built[short]

    return build(_ROOT, _ROOT)
