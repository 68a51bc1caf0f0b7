"""CustomResourceDefinitions from the pydantic models: pure, no files, no cluster.

The CEL rules stand here beside the schema they belong to. Each says field, problem and fix in the
words of ``engineroom.api.validation``, which knows all of them and more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from engineroom.api import GROUP, VERSION
from engineroom.api.schema.tree import Node
from engineroom.api.v1alpha1 import workerpool
from engineroom.api.v1alpha1.workerpool import WorkerPool, WorkerPoolSpec, WorkerPoolStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import BaseModel

#: What stays of a JSON schema in a structural one.
_KEPT = (
    "description",
    "type",
    "format",
    "default",
    "enum",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "pattern",
)
#: Longest name of a pool: with the ReplicaSet's hash it must still be a DNS label (63).
MAX_NAME = 52


@dataclass(frozen=True, slots=True)
class Rule:
    """One CEL rule; ``field`` is the path under the node that the API server reports."""

    rule: str
    message: str
    field: str | None = None

    def document(self) -> dict[str, str]:
        """The rule as it stands in the CRD."""
        made = {"rule": self.rule, "message": self.message}
        if self.field is not None:
            made["fieldPath"] = self.field
        return made


_NOT_ZERO = Rule("self.matches('[1-9]')", "is no time at all; write more than zero, such as 30s")

#: By the path of the node that ``self`` is; the empty path is the object itself.
RULES: dict[str, tuple[Rule, ...]] = {
    "": (
        Rule(
            f"self.metadata.name.size() <= {MAX_NAME}",
            f"metadata.name: is too long; shorten it to at most {MAX_NAME} characters, so that the "
            "names made from it fit",
        ),
        Rule(
            "!self.metadata.name.contains('.')",
            "metadata.name: has a dot; write a DNS label: lower-case letters, digits and dashes",
        ),
    ),
    "spec": (
        Rule(
            "!(has(self.replicas) && has(self.autoscaling))",
            "is set beside spec.autoscaling; remove one of the two",
            field=".replicas",
        ),
        Rule(
            "!has(self.autoscaling) || !has(self.autoscaling.targetBacklogPerWorker) || "
            "!self.queues.exists(queue, has(queue.targetLatency))",
            "spec.queues[].targetLatency: is set, but the pool scales by "
            "targetBacklogPerWorker; remove one of the two",
            field=".queues",
        ),
        Rule(
            "!has(self.autoscaling) || !has(self.metricOutage.replicas) || "
            "(self.metricOutage.replicas >= self.autoscaling.minReplicas && "
            "self.metricOutage.replicas <= self.autoscaling.maxReplicas)",
            "is outside minReplicas and maxReplicas of spec.autoscaling; write a number between "
            "them",
            field=".metricOutage.replicas",
        ),
        Rule(
            "!has(self.schedules) || self.schedules.all(schedule, !has(schedule.queue) || "
            "self.queues.exists(queue, queue.name == schedule.queue))",
            "spec.schedules[].queue: is none of the pool's queues; write the name of one of them",
            field=".schedules",
        ),
    ),
    "spec.schedules[]": (
        Rule(
            "[has(self.cron), has(self.every), has(self.at)].filter(said, said).size() == 1",
            "says no time, or more than one; write exactly one of cron, every and at",
        ),
        Rule(
            "!has(self.timeZone) || has(self.cron)",
            "is set without cron; remove it: only cron has a zone",
            field=".timeZone",
        ),
        Rule("!has(self.jitter) || !has(self.at)", "is set beside at; remove it", field=".jitter"),
    ),
    "spec.schedules[].every": (_NOT_ZERO,),
    "spec.schedules[].timeout": (_NOT_ZERO,),
    "spec.schedules[].cron": (
        Rule(
            "!self.startsWith('@')",
            "is a nickname; write the five fields, such as 0 8 * * 1-5",
        ),
    ),
    "spec.queues[].targetLatency": (_NOT_ZERO,),
    "spec.autoscaling": (
        Rule(
            "self.minReplicas <= self.maxReplicas",
            "is more than maxReplicas; lower it or raise maxReplicas",
            field=".minReplicas",
        ),
        Rule(
            "!has(self.schedules) || "
            "self.schedules.all(schedule, schedule.minReplicas <= self.maxReplicas)",
            "spec.autoscaling.schedules[].minReplicas: is more than maxReplicas; lower it or "
            "raise maxReplicas",
            field=".schedules",
        ),
        Rule(
            "!has(self.targetBacklogPerWorker) || self.targetLatency == '30s'",
            "is set beside targetLatency; remove one of the two",
            field=".targetBacklogPerWorker",
        ),
    ),
    "spec.autoscaling.targetLatency": (_NOT_ZERO,),
    "spec.autoscaling.schedules[].duration": (_NOT_ZERO,),
    "spec.autoscaling.schedules[].cron": (
        Rule(
            "!self.startsWith('@')",
            "is a nickname; write the five fields, such as 0 8 * * 1-5",
        ),
    ),
    "spec.drain.maxJobDuration": (_NOT_ZERO,),
    "spec.recovery.poisonWindow": (_NOT_ZERO,),
    "spec.deadLetter.ttl": (_NOT_ZERO,),
    # The API server tries the parent's default, {}, against these before mode has its own.
    "spec.metricOutage": (
        Rule(
            "!has(self.mode) || self.mode != 'Fallback' || has(self.replicas)",
            "Fallback needs a size; write replicas beside it",
            field=".mode",
        ),
        Rule(
            "!has(self.replicas) || (has(self.mode) && self.mode == 'Fallback')",
            "is set, but mode is KeepReplicas; write mode: Fallback or remove it",
            field=".replicas",
        ),
    ),
}

_READY = '.status.conditions[?(@.type=="Ready")]'
COLUMNS: tuple[dict[str, Any], ...] = (
    {
        "name": "Ready",
        "type": "string",
        "jsonPath": f"{_READY}.status",
        "description": "Whether the pool is as its spec says.",
    },
    {
        "name": "Size",
        "type": "integer",
        "jsonPath": ".status.desiredReplicas",
        "description": "Pods that the decision asks for.",
    },
    {
        "name": "Pods",
        "type": "integer",
        "jsonPath": ".status.readyReplicas",
        "description": "Pods that are ready.",
    },
    {
        "name": "Busy",
        "type": "integer",
        "jsonPath": ".status.busyWorkers",
        "description": "Workers with a job in hand.",
    },
    {
        "name": "Waiting",
        "type": "integer",
        "jsonPath": ".status.waitingJobs",
        "description": "Jobs waiting, in all queues together.",
    },
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {
        "name": "Decision",
        "type": "string",
        "jsonPath": ".status.decision",
        "priority": 1,
        "description": "Why the pool has this size.",
    },
    {"name": "Min", "type": "integer", "jsonPath": ".spec.autoscaling.minReplicas", "priority": 1},
    {"name": "Max", "type": "integer", "jsonPath": ".spec.autoscaling.maxReplicas", "priority": 1},
    {"name": "Draining", "type": "integer", "jsonPath": ".status.drainingReplicas", "priority": 1},
    {"name": "Suspended", "type": "boolean", "jsonPath": ".spec.suspend", "priority": 1},
    {"name": "Reason", "type": "string", "jsonPath": f"{_READY}.reason", "priority": 1},
)


def structural(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A pydantic JSON schema as a structural one: references resolved, ``null`` taken out."""
    if "$ref" in schema:
        target = definitions[str(schema["$ref"]).rsplit("/", 1)[-1]]
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return structural({**target, **rest}, definitions)
    branches = [branch for branch in schema.get("anyOf", []) if branch.get("type") != "null"]
    if len(branches) == 1:
        rest = {key: value for key, value in schema.items() if key != "anyOf"}
        return structural({**branches[0], **rest}, definitions)
    made = {key: schema[key] for key in _KEPT if key in schema}
    made |= {key: value for key, value in schema.items() if key.startswith("x-kubernetes-")}
    if branches:
        return made | {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
        }
    if "properties" in schema:
        made["properties"] = {
            name: structural(inner, definitions) for name, inner in schema["properties"].items()
        }
        if schema.get("required"):
            made["required"] = list(schema["required"])
    elif isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = structural(schema["additionalProperties"], definitions)
    if "items" in schema:
        made["items"] = structural(schema["items"], definitions)
    _tidy_default(made)
    return made


def _tidy_default(node: dict[str, Any]) -> None:
    """Drop a default of null; let an object's default be empty, for its fields carry their own."""
    if node.get("default", ...) is None:
        del node["default"]
    if "default" in node and "properties" in node:
        node["default"] = {}


def _without_defaults(node: dict[str, Any]) -> dict[str, Any]:
    """Status is the operator's to write: nothing in it comes from a default."""
    made = {key: value for key, value in node.items() if key != "default"}
    if "properties" in made:
        made["properties"] = {
            name: _without_defaults(inner) for name, inner in made["properties"].items()
        }
    if "items" in made:
        made["items"] = _without_defaults(made["items"])
    return made


def _add_rules(node: dict[str, Any], path: str, rules: Mapping[str, Sequence[Rule]]) -> None:
    if path in rules:
        node["x-kubernetes-validations"] = [rule.document() for rule in rules[path]]
    for name, inner in node.get("properties", {}).items():
        _add_rules(inner, f"{path}.{name}" if path else name, rules)
    if "items" in node:
        _add_rules(node["items"], f"{path}[]", rules)


def open_api_schema() -> dict[str, Any]:
    """``openAPIV3Schema`` of WorkerPool."""
    return schema_of(WorkerPool, WorkerPoolSpec, WorkerPoolStatus, RULES)


def schema_of(
    kind: type[BaseModel],
    spec_model: type[BaseModel],
    status_model: type[BaseModel],
    rules: Mapping[str, Sequence[Rule]],
) -> dict[str, Any]:
    """``openAPIV3Schema`` of a kind from its models and its CEL rules."""
    spec = spec_model.model_json_schema(by_alias=True)
    status = status_model.model_json_schema(by_alias=True)
    root: dict[str, Any] = {
        "description": " ".join((kind.__doc__ or "").split()),
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}."},
            "kind": {"type": "string", "description": f"{kind.__name__}."},
            "metadata": {"type": "object"},
            "spec": structural(spec, spec.get("$defs", {})),
            "status": _without_defaults(structural(status, status.get("$defs", {}))),
        },
    }
    for name in ("spec", "status"):
        described = kind.model_fields[name].description
        if described:
            root["properties"][name]["description"] = described
    # Written by one, always as a whole: whose each field is need not be kept with every object.
    root["properties"]["status"]["x-kubernetes-map-type"] = "atomic"
    _add_rules(root, "", rules)
    return root


def workerpool_crd() -> dict[str, Any]:
    """The CustomResourceDefinition of WorkerPool."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{workerpool.PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": workerpool.KIND,
                "listKind": f"{workerpool.KIND}List",
                "plural": workerpool.PLURAL,
                "singular": workerpool.KIND.lower(),
                "shortNames": [workerpool.SHORT_NAME],
                "categories": ["engineroom"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [dict(column) for column in COLUMNS],
                    "schema": {"openAPIV3Schema": open_api_schema()},
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                }
            ],
        },
    }


@cache
def spec_node() -> Node:
    """The tree of ``spec``, for ``engineroom.api.schema.tree.check``."""
    return node_of(open_api_schema()["properties"]["spec"])


def node_of(schema: dict[str, Any]) -> Node:
    """A structural schema as a tree."""
    kind = (
        "int-or-string" if schema.get("x-kubernetes-int-or-string") else schema.get("type", "any")
    )
    each = schema.get("items", schema.get("additionalProperties"))
    fields = None
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        fields = {name: node_of(inner) for name, inner in schema["properties"].items()}
    keys = schema.get("x-kubernetes-list-map-keys", ())
    return Node(
        kind,
        description=schema.get("description", ""),
        fields=fields,
        required=tuple(schema.get("required", ())),
        each=None if each is None else node_of(each),
        enum=tuple(schema.get("enum", ())),
        minimum=schema.get("minimum"),
        maximum=schema.get("maximum"),
        min_length=schema.get("minLength", schema.get("minItems")),
        max_length=schema.get("maxLength", schema.get("maxItems", schema.get("maxProperties"))),
        pattern=schema.get("pattern"),
        unique_by=keys[0] if len(keys) == 1 else None,
    )
