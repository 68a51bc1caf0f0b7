"""Fields through which an author reaches for pods, Secrets and accounts of the namespace.

The kind's declaration (``Kind.guarded``) names them. Three things hold for every kind. An author
who writes such a field needs the right to create pods in the namespace. One who names a Secret
needs the right to get it. A field that looks like one without being declared is refused.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from engineroom.api.schema.common import open_api_schema
from engineroom.api.validation.pod_security import template_escalations
from engineroom.core.errors import Problem
from engineroom.core.validation.json_values import as_list, as_map, is_same
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
_SECRET = re.compile(r".*secret(ref|name)?", re.IGNORECASE)
#: The maximum number of Secrets whose readers are asked for.
MAX_SECRETS = 32


def escalations(kind: Kind, obj: object) -> Iterator[Escalation]:
    """Yield what the object's pod templates need beyond Pod Security level restricted.

    These are the fields that any version's rules forbid; ``Escalation.exceeds`` judges by one
    level of one version.
    """
    for path in kind.guarded.pod_templates:
        for place, template in values_at(obj, path):
            yield from template_escalations(template, place)


def guarded_fields(kind: Kind, new: object, old: object = None) -> list[str]:
    """List the changed fields that only an author who may create pods may write.

    Without ``old`` every field with a value counts as changed. The removal of a value is a
    change, too: a pool without ``spec.redis`` uses another Redis.
    """
    fields = []
    for path in kind.guarded.restricted:
        before = [value for _, value in _filled(old, path)]
        after = list(_filled(new, path))
        if not is_same([value for _, value in after], before):
            fields += [
                place for place, value in after if not any(is_same(value, one) for one in before)
            ] or [path]
    return fields


def secret_names(kind: Kind, obj: object) -> dict[str, str]:
    """Return the Secrets that the object hands to Engineroom: name by the field that names it.

    It returns at most one more than ``MAX_SECRETS``.
    """
    fields = (
        field
        for path in kind.guarded.secrets
        for place, value in values_at(obj, path)
        for field in _secrets_below(value, place)
    )
    return dict(islice(fields, MAX_SECRETS + 1))


def secret_problems(kind: Kind, obj: object) -> Iterator[Problem]:
    """Yield a problem for an object that names too many Secrets to ask for their readers."""
    names = secret_names(kind, obj)
    if len(names) > MAX_SECRETS:
        yield Problem(
            list(names)[-1], f"is the Secret after the {MAX_SECRETS}th", "name fewer Secrets"
        )


def _secrets_below(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _secrets_below(item, f"{place}[{index}]")
    for key, inner in as_map(value).items():
        field = child(place, str(key))
        name = as_map(inner).get("name") if isinstance(inner, dict) else inner
        if _SECRET.fullmatch(str(key)) and isinstance(name, str):
            yield field, name
        else:
            yield from _secrets_below(inner, field)


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


def _filled(obj: object, path: str) -> Iterator[tuple[str, Any]]:
    """Yield what ``values_at`` yields, empty lists, maps and texts left out."""
    return ((place, value) for place, value in values_at(obj, path) if value not in ([], {}, ""))


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
