"""CustomResourceDefinitions from a kind's declaration and models: pure, no files, no cluster.

Each CEL rule gives field, problem and fix in the words of ``engineroom.api.validation``, which
checks all of them and more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from engineroom.api.schema.tree import SchemaNode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import BaseModel

    from engineroom.api.kinds import Kind

#: Keywords that a structural schema takes over from a JSON schema.
_KEYWORDS = (
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
#: Longest name of an object whose name is not part of other names (a DNS label).
_LONGEST_NAME = 63


@dataclass(frozen=True, slots=True)
class CelRule:
    """A CEL rule; ``field`` is the path below the rule's node that the API server reports."""

    rule: str
    message: str
    field: str | None = None

    def document(self) -> dict[str, str]:
        """Return the rule as an item of ``x-kubernetes-validations``."""
        document = {"rule": self.rule, "message": self.message}
        if self.field is not None:
            document["fieldPath"] = self.field
        return document


@dataclass(frozen=True, slots=True, kw_only=True)
class KindSchema:
    """The part of a kind's CRD that the declaration and the model do not give."""

    spec: type[BaseModel]
    status: type[BaseModel]
    #: CEL rules by the path of their node, such as ``spec.queues[]``.
    rules: Mapping[str, tuple[CelRule, ...]]
    #: Printer columns of ``kubectl get``, as in the CRD.
    columns: tuple[Mapping[str, Any], ...]
    #: Labels of the CRD.
    labels: Mapping[str, str] = field(default_factory=dict)


def crd(kind: Kind) -> dict[str, Any]:
    """Build the CustomResourceDefinition of ``kind``."""
    schema: KindSchema = kind.schema.load()
    subresources: dict[str, Any] = {"status": {}}
    if kind.scalable:
        subresources["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    metadata: dict[str, Any] = {"name": kind.resource}
    if schema.labels:
        metadata["labels"] = dict(schema.labels)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": metadata,
        "spec": {
            "group": kind.group,
            "scope": "Namespaced",
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": list(kind.short_names),
                "categories": list(kind.categories),
            },
            "versions": [
                {
                    "name": kind.version,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [dict(column) for column in schema.columns],
                    "schema": {"openAPIV3Schema": without_item_defaults(open_api_schema(kind))},
                    "subresources": subresources,
                }
            ],
        },
    }


def open_api_schema(kind: Kind) -> dict[str, Any]:
    """Build the schema of ``kind`` from its models and CEL rules, with every default."""
    schema: KindSchema = kind.schema.load()
    model: type[BaseModel] = kind.model.load()
    spec = schema.spec.model_json_schema(by_alias=True)
    status = schema.status.model_json_schema(by_alias=True)
    root: dict[str, Any] = {
        "description": " ".join((model.__doc__ or "").split()),
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{kind.api_version}."},
            "kind": {"type": "string", "description": f"{kind.kind}."},
            "metadata": {"type": "object"},
            "spec": structural(spec, spec.get("$defs", {})),
            "status": _without_defaults(structural(status, status.get("$defs", {}))),
        },
    }
    for name in ("spec", "status"):
        description = model.model_fields[name].description
        if description:
            root["properties"][name]["description"] = description
    # The operator alone writes status, always as a whole: owners by field would only take room.
    root["properties"]["status"]["x-kubernetes-map-type"] = "atomic"
    # No generation is -1: kstatus and GitOps engines wait for the first status of a new object.
    root["properties"]["status"]["default"] = {"observedGeneration": -1}
    _add_rules(root, "", {"": _name_rules(kind.max_name_length), **schema.rules})
    return root


def _name_rules(longest: int) -> tuple[CelRule, ...]:
    reason = ", so that the names made from it fit" if longest < _LONGEST_NAME else ""
    return (
        CelRule(
            f"self.metadata.name.size() <= {longest}",
            f"metadata.name: is too long; shorten it to at most {longest} characters{reason}",
        ),
        CelRule(
            "!self.metadata.name.contains('.')",
            "metadata.name: has a dot; write a DNS label: lower-case letters, digits and dashes",
        ),
    )


def structural(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Turn a pydantic JSON schema into a structural one: references resolved, no ``null``."""
    if "$ref" in schema:
        target = definitions[str(schema["$ref"]).rsplit("/", 1)[-1]]
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return structural({**target, **rest}, definitions)
    branches = [branch for branch in schema.get("anyOf", []) if branch.get("type") != "null"]
    if len(branches) == 1:
        rest = {key: value for key, value in schema.items() if key != "anyOf"}
        return structural({**branches[0], **rest}, definitions)
    node = {key: schema[key] for key in _KEYWORDS if key in schema}
    node |= {key: value for key, value in schema.items() if key.startswith("x-kubernetes-")}
    if branches:
        return node | {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
        }
    if "properties" in schema:
        node["properties"] = {
            name: structural(inner, definitions) for name, inner in schema["properties"].items()
        }
        if schema.get("required"):
            node["required"] = list(schema["required"])
    elif isinstance(schema.get("additionalProperties"), dict):
        node["additionalProperties"] = structural(schema["additionalProperties"], definitions)
    if "items" in schema:
        node["items"] = structural(schema["items"], definitions)
    _tidy_default(node)
    return node


def _tidy_default(node: dict[str, Any]) -> None:
    """Drop a null default; make an object's default empty, because its fields have defaults."""
    if node.get("default", ...) is None:
        del node["default"]
    if "default" in node and "properties" in node:
        node["default"] = {}


def _without_defaults(node: dict[str, Any]) -> dict[str, Any]:
    """Copy the schema of a status without defaults: the operator alone writes a status."""
    copy = {key: value for key, value in node.items() if key != "default"}
    if "properties" in copy:
        copy["properties"] = {
            name: _without_defaults(inner) for name, inner in copy["properties"].items()
        }
    if "items" in copy:
        copy["items"] = _without_defaults(copy["items"])
    return copy


def without_item_defaults(schema: dict[str, Any], *, inside: bool = False) -> dict[str, Any]:
    """Copy a schema without defaults inside list items; descriptions state them instead.

    The models fill them in when an object is read. The API server would own what it fills into
    list items: a second server-side apply of the same text would conflict, and ``kubectl apply``
    would never report "unchanged".
    """
    copy = dict(schema)
    if inside and "default" in copy:
        text = _default_text(copy.pop("default"))
        if text:
            copy["description"] = f"{copy.get('description', '')} Defaults to {text}.".lstrip()
    if "properties" in copy:
        copy["properties"] = {
            name: without_item_defaults(inner, inside=inside)
            for name, inner in copy["properties"].items()
        }
    if "items" in copy:
        copy["items"] = without_item_defaults(copy["items"], inside=True)
    return copy


def _default_text(default: Any) -> str:
    if default in ({}, []):
        return ""
    return default if isinstance(default, str) else json.dumps(default)


def _add_rules(node: dict[str, Any], path: str, rules: Mapping[str, Sequence[CelRule]]) -> None:
    if path in rules:
        node["x-kubernetes-validations"] = [rule.document() for rule in rules[path]]
    for name, inner in node.get("properties", {}).items():
        _add_rules(inner, f"{path}.{name}" if path else name, rules)
    if "items" in node:
        _add_rules(node["items"], f"{path}[]", rules)


@cache
def spec_node(kind: Kind) -> SchemaNode:
    """Return the tree of the kind's ``spec``, for ``engineroom.api.schema.tree.check``."""
    return node_of(open_api_schema(kind)["properties"]["spec"])


def node_of(schema: dict[str, Any]) -> SchemaNode:
    """Turn a structural schema into a tree."""
    type_ = (
        "int-or-string" if schema.get("x-kubernetes-int-or-string") else schema.get("type", "any")
    )
    items = schema.get("items", schema.get("additionalProperties"))
    fields = None
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        fields = {name: node_of(inner) for name, inner in schema["properties"].items()}
    keys = schema.get("x-kubernetes-list-map-keys", ())
    return SchemaNode(
        type_,
        description=schema.get("description", ""),
        fields=fields,
        required=tuple(schema.get("required", ())),
        items=None if items is None else node_of(items),
        enum=tuple(schema.get("enum", ())),
        minimum=schema.get("minimum"),
        maximum=schema.get("maximum"),
        min_length=schema.get("minLength", schema.get("minItems")),
        max_length=schema.get("maxLength", schema.get("maxItems", schema.get("maxProperties"))),
        pattern=schema.get("pattern"),
        unique_by=keys[0] if len(keys) == 1 else None,
    )
