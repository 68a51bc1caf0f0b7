"""Fields through which an author reaches for pods, Secrets and accounts of the namespace.

The kind's declaration (``Kind.guarded``) names them. Two things hold for every kind: an author who
writes such a field needs the right to create pods in the namespace, and a field that looks like one
without being declared is refused.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from engineroom.api.schema.common import open_api_schema
from engineroom.api.schema.tree import MAX_PROBLEMS
from engineroom.api.validation.pod_security import template_escalations
from engineroom.core.errors import Problem
from engineroom.core.validation.json_values import as_list, as_map
from engineroom.core.validation.paths import child

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engineroom.api.kinds import Kind
    from engineroom.api.validation.pod_security import Escalation

#: Names of fields that refer to pods, Secrets, ConfigMaps or accounts: secretKeyRef, urlSecretRef,
#: serviceAccountName, containers, podTemplate and the like.
_REFERENCE = re.compile(
    r".*secret.*|.*serviceaccount.*|.*configmap.*|(init|ephemeral)?containers|volumes"
    r"|envfrom|valuefrom|pod(template|spec).*",
    re.IGNORECASE,
)
#: Names of fields that choose what runs.
_CODE = re.compile(r".*image|command|args|script", re.IGNORECASE)
_TEMPLATE = re.compile(r".*template", re.IGNORECASE)
_ACCOUNTS = (
    "serviceAccountName",
    "serviceAccount",
    "automountServiceAccountToken",
    "imagePullSecrets",
)
_VOLUMES = ("secret", "projected", "csi")


def escalations(kind: Kind, obj: object) -> Iterator[Escalation]:
    """Yield what the object's pod templates need beyond Pod Security level restricted.

    These are the fields that any version's rules forbid; ``Escalation.exceeds`` judges by one
    level of one version.
    """
    for path in kind.guarded.pod_templates:
        for place, template in values_at(obj, path):
            yield from template_escalations(template, place)


def guarded_fields(kind: Kind, new: object, old: object = None) -> list[str]:
    """List the fields of ``new`` that only an author who may create pods may write.

    A value that ``old`` has at the same declared path is no news, and is left out.
    """
    guarded = kind.guarded
    fields = []
    unchanged_template = False
    for path in guarded.pod_templates:
        before = [value for _, value in values_at(old, path)]
        for place, template in values_at(new, path):
            reached = list(template_fields(template, place))
            if template not in before:
                fields += reached
            elif reached:
                unchanged_template = True
    for path in guarded.fields:
        before = [value for _, value in values_at(old, path)]
        fields += [place for place, value in values_at(new, path) if value not in before]
    if unchanged_template:
        # What is called runs where the template's Secrets and accounts are.
        fields += [path for path in guarded.calls if _all(new, path) != _all(old, path)]
    return fields


def template_fields(template: object, path: str) -> Iterator[str]:
    """List the fields of a PodTemplateSpec that need a right: escalations, accounts, Secrets."""
    fields = (escalation.field for escalation in template_escalations(template, path))
    yield from islice(dict.fromkeys(fields), MAX_PROBLEMS)
    pod = as_map(as_map(template).get("spec"))
    path = f"{path}.spec"
    for name in _ACCOUNTS:
        if pod.get(name):
            yield f"{path}.{name}"
    for index, volume in enumerate(as_list(pod.get("volumes"))):
        for source in _VOLUMES:
            if as_map(volume).get(source) is not None:
                yield f"{path}.volumes[{index}].{source}"
    for group in ("containers", "initContainers", "ephemeralContainers"):
        for index, container in enumerate(as_list(pod.get(group))):
            yield from _secrets_of(as_map(container), f"{path}.{group}[{index}]")


def _secrets_of(container: dict[str, Any], path: str) -> Iterator[str]:
    for index, variable in enumerate(as_list(container.get("env"))):
        if as_map(as_map(variable).get("valueFrom")).get("secretKeyRef") is not None:
            yield f"{path}.env[{index}].valueFrom.secretKeyRef"
    for index, source in enumerate(as_list(container.get("envFrom"))):
        if as_map(source).get("secretRef") is not None:
            yield f"{path}.envFrom[{index}].secretRef"


def values_at(obj: object, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) for each value of an object at a declared path, null left out."""
    places: list[tuple[str, Any]] = [("", obj)]
    for part in path.split("."):
        name = part.removesuffix("[]")
        inner = [(child(place, name), as_map(value).get(name)) for place, value in places]
        if part.endswith("[]"):
            inner = [
                (f"{place}[{index}]", item)
                for place, value in inner
                for index, item in enumerate(as_list(value))
            ]
        places = [(place, value) for place, value in inner if value is not None]
    yield from places


def _all(obj: object, path: str) -> list[Any]:
    return [value for _, value in values_at(obj, path) if value]


def undeclared_problems(kind: Kind, obj: object) -> Iterator[Problem]:
    """Yield a problem for each field that looks like a guarded one and is not declared."""
    for path in undeclared_paths(kind):
        for place, _ in values_at(obj, path):
            yield _undeclared(place)
    for path in _free_paths(kind):
        for place, value in values_at(obj, path):
            yield from _suspicious_keys(value, place)


def _suspicious_keys(value: Any, place: str) -> Iterator[Problem]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if _REFERENCE.fullmatch(str(key)) or _CODE.fullmatch(str(key)):
                yield _undeclared(child(place, str(key)))
            else:
                yield from _suspicious_keys(inner, child(place, str(key)))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _suspicious_keys(item, f"{place}[{index}]")


def _undeclared(place: str) -> Problem:
    return Problem(
        place,
        "looks like a reference to pods, Secrets or accounts, which this kind has not here",
        "remove it",
    )


@cache
def undeclared_paths(kind: Kind) -> tuple[str, ...]:
    """List the paths of the kind's schema that look like guarded fields and are not declared.

    A kind with such paths cannot be used; see ``validation.check_registry``.
    """
    return tuple(
        path
        for path, node in _nodes(kind)
        if _looks_guarded(path, node) and not _is_covered(kind, path)
    )


@cache
def _free_paths(kind: Kind) -> tuple[str, ...]:
    """List the paths of free-form values that are not declared."""
    declared = (*kind.guarded.pod_templates, *kind.guarded.fields, *kind.guarded.data)
    return tuple(
        path for path, node in _nodes(kind) if _is_free(node) and not _is_below(path, declared)
    )


def _nodes(kind: Kind) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (declared path, schema) for each field below ``spec``."""
    waiting = [("spec", open_api_schema(kind)["properties"]["spec"])]
    while waiting:
        path, node = waiting.pop()
        if path != "spec":
            yield path, node
        waiting += [(f"{path}.{name}", inner) for name, inner in node.get("properties", {}).items()]
        if "items" in node:
            waiting.append((f"{path}[]", node["items"]))


def _looks_guarded(path: str, node: dict[str, Any]) -> bool:
    name = _name_of(path)
    if _REFERENCE.fullmatch(name) or _CODE.fullmatch(name):
        return True
    return bool(_TEMPLATE.fullmatch(name)) and _is_free(node)


def _is_covered(kind: Kind, path: str) -> bool:
    guarded = kind.guarded
    if _is_below(path, (*guarded.pod_templates, *guarded.fields, *guarded.data)):
        return True
    return bool(_CODE.fullmatch(_name_of(path))) and _is_below(path, guarded.calls)


def _name_of(path: str) -> str:
    return path.rpartition(".")[2].removesuffix("[]")


def _is_free(node: dict[str, Any]) -> bool:
    """Return whether the API server keeps fields here that the schema does not name."""
    if node.get("x-kubernetes-preserve-unknown-fields"):
        return True
    values = node.get("additionalProperties")
    return isinstance(values, dict) and _is_free(values)


def _is_below(path: str, declared: tuple[str, ...]) -> bool:
    return any(
        path == parent or path.startswith((f"{parent}.", f"{parent}[]")) for parent in declared
    )
