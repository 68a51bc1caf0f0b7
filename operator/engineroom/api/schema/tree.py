"""Schemas as trees, and the walk that compares a document with one.

The tree of a kind's spec comes from the pydantic models, as the CRD does; the tree of a pod
template comes from Kubernetes' own OpenAPI document. Both give problems of one form: the field's
path, what is wrong, what to write instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engineroom.api.quantity import QuantityError, parse_quantity
from engineroom.core.errors import Problem
from engineroom.core.validation.paths import child, nearest, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Longest list of problems, so that a broken document does not fill pages.
MAX_PROBLEMS = 40

_TYPE_NAMES = {
    "object": "a map",
    "array": "a list",
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "quantity": "a quantity",
    "int-or-string": "a whole number or a string",
}

#: The usual Python class of a type's values; other values are examined further.
_USUAL = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": int,
    "int-or-string": str,
}

#: By pattern: what it asks for in words, and the fix.
_PATTERNS: dict[str, tuple[str, str]] = {}


def describe_pattern(pattern: str, name: str, fix: str) -> None:
    """Register the words for a value that breaks ``pattern``: "is not <name>; <fix>"."""
    _PATTERNS[pattern] = (name, fix)


@dataclass(frozen=True, slots=True)
class SchemaNode:
    """The schema of one value; ``type`` is a key of ``_TYPE_NAMES`` or ``any``."""

    type: str
    description: str = ""
    #: The fields of an object; None where all are accepted.
    fields: Mapping[str, SchemaNode] | None = None
    required: tuple[str, ...] = ()
    #: The schema of the values of a free map or the items of a list.
    items: SchemaNode | None = None
    enum: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str | None = None
    #: The field that identifies an item of a list.
    unique_by: str | None = None
    #: Values are never shown: they may be secrets.
    secret: bool = False
    _compiled: list[re.Pattern[str]] = field(default_factory=list, compare=False, repr=False)

    def matches(self, value: str) -> bool:
        """Return whether the whole of ``value`` matches the pattern."""
        if self.pattern is None:
            return True
        if not self._compiled:
            self._compiled.append(re.compile(self.pattern))
        return self._compiled[0].fullmatch(value) is not None


def kind_of(value: object) -> str:
    """Return the value's JSON type in words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, float):
        return "a number with a fraction"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, dict):
        return "a map"
    if isinstance(value, list):
        return "a list"
    return f"a {type(value).__name__}"


def check(node: SchemaNode, value: Any, path: str) -> Iterator[Problem]:
    """Yield every difference between ``value`` and ``node``, in the document's order."""
    if node.type == "any":
        return
    wrong = _wrong_type(node, value, path)
    if wrong is not None:
        yield wrong
    elif isinstance(value, dict):
        yield from _check_object(node, value, path)
    elif isinstance(value, list):
        yield from _check_list(node, value, path)
    elif isinstance(value, str):
        yield from _check_string(node, value, path)
    elif isinstance(value, int) and node.type == "integer":
        yield from _check_integer(node, value, path)


def _wrong_type(node: SchemaNode, value: Any, path: str) -> Problem | None:
    if value.__class__ is _USUAL.get(node.type):
        return None
    if node.type == "quantity":
        return _wrong_quantity(node, value, path)
    fits = {
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
        "int-or-string": isinstance(value, int | str) and not isinstance(value, bool),
    }[node.type]
    if fits:
        return None
    expected = _TYPE_NAMES[node.type]
    problem = f"is {kind_of(value)}, not {expected}"
    if not isinstance(value, dict | list) and value is not None:
        problem = f"{_display(node, value)} {problem}"
    if value is False and "Off" in node.enum:
        return Problem(path, "Off without quotes is read as false", 'write "Off", in quotes')
    if node.type == "string" and isinstance(value, int | float):
        fix = "put it in quotes" if node.secret else f'write "{quoted(value)}", in quotes'
        if node.enum:
            fix = f"write one of {', '.join(node.enum)}"
        elif node.pattern in _PATTERNS and not node.matches(quoted(value)):
            fix = _PATTERNS[node.pattern][1]
        return Problem(path, problem, fix)
    if (
        node.type in {"integer", "number"}
        and isinstance(value, str)
        and value.isascii()
        and value.isdigit()
    ):
        return Problem(path, problem, f"write {value[:20]} without quotes")
    if node.type == "boolean":
        return Problem(path, problem, "write true or false, without quotes")
    if node.type == "array" and not isinstance(value, list):
        return Problem(path, problem, "start each item with a dash (-)")
    return Problem(path, problem, f"write {expected}")


def _wrong_quantity(node: SchemaNode, value: Any, path: str) -> Problem | None:
    del node
    fix = "write a Kubernetes quantity such as 500m, 2, 256Mi or 1Gi"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return Problem(path, f"{quoted(value)} is {kind_of(value)}, not a quantity", fix)
    try:
        parse_quantity(value)
    except QuantityError:
        return Problem(path, f"{quoted(value)} is not a quantity", fix)
    return None


def _check_object(node: SchemaNode, value: dict[Any, Any], path: str) -> Iterator[Problem]:
    for key, item in value.items():
        if not isinstance(key, str):
            yield Problem(path, f"the key {quoted(key)} is no string", "put the key in quotes")
            continue
        inner = node.fields.get(key) if node.fields is not None else None
        if inner is None and node.fields is not None and node.items is None:
            yield unknown_field(node, key, path)
        elif item is None:
            continue  # the API server drops nulls before it validates
        elif inner is not None:
            yield from check(inner, item, child(path, key))
        elif node.items is not None:
            yield from check(node.items, item, child(path, key))
    if node.max_length is not None and len(value) > node.max_length:
        yield Problem(path, f"has {len(value)} entries", f"keep at most {node.max_length} of them")
    for name in node.required:
        if value.get(name) is None:
            described = (node.fields or {}).get(name)
            description = described.description.rstrip(".") if described is not None else ""
            yield Problem(
                child(path, name), "is missing", f"add it{': ' if description else ''}{description}"
            )


def unknown_field(node: SchemaNode, key: str, path: str) -> Problem:
    """Return the problem of a field that is not in the schema, with its probable spelling."""
    fields = node.fields or {}
    guess = nearest(key, fields)
    if guess is not None:
        fix = f"did you mean {guess}?"
    elif len(fields) <= 20:
        fix = f"remove it; the fields here are {', '.join(sorted(fields))}"
    else:
        fix = "remove it"
    return Problem(child(path, key), "is not a known field", fix)


def _check_list(node: SchemaNode, value: list[Any], path: str) -> Iterator[Problem]:
    if node.min_length is not None and len(value) < node.min_length:
        yield Problem(path, "is empty", "add at least one item")
    if node.max_length is not None and len(value) > node.max_length:
        yield Problem(path, f"has {len(value)} items", f"keep at most {node.max_length} of them")
        return
    indices: dict[str, int] = {}
    for index, item in enumerate(value):
        if node.items is not None:
            yield from check(node.items, item, f"{path}[{index}]")
        if node.unique_by is None or not isinstance(item, dict):
            continue
        name = item.get(node.unique_by)
        if not isinstance(name, str):
            continue
        if name in indices:
            yield Problem(
                f"{path}[{index}].{node.unique_by}",
                f"{quoted(name)} is already the {node.unique_by} of {path}[{indices[name]}]",
                f"give each item a {node.unique_by} of its own",
            )
        indices.setdefault(name, index)


def _check_string(node: SchemaNode, value: str, path: str) -> Iterator[Problem]:
    if node.enum and value not in node.enum:
        guess = nearest(value, node.enum)
        one_of = ", ".join(node.enum)
        fix = f"did you mean {guess}?" if guess else f"write one of {one_of}"
        yield Problem(path, f"{_display(node, value)} is not one of {one_of}", fix)
    elif node.min_length is not None and len(value) < node.min_length:
        yield Problem(path, "is empty", f"write it: {node.description.rstrip('.')}")
    elif node.max_length is not None and len(value) > node.max_length:
        yield Problem(path, f"has {len(value)} characters", f"keep it to at most {node.max_length}")
    elif not node.matches(value):
        name, fix = _PATTERNS.get(
            node.pattern or "", ("allowed here", f"write what matches {node.pattern}")
        )
        yield Problem(path, f"{_display(node, value)} is not {name}", fix)


def _display(node: SchemaNode, value: object) -> str:
    return "the value" if node.secret else quoted(value)


def _check_integer(node: SchemaNode, value: int, path: str) -> Iterator[Problem]:
    low, high = node.minimum, node.maximum
    if low is not None and high is not None:
        fix = f"write a number from {low} to {high}"
    elif low is not None:
        fix = f"write {low} or more"
    else:
        fix = f"write {high} or less"
    if low is not None and value < low:
        yield Problem(path, f"{quoted(value)} is less than {low}", fix)
    elif high is not None and value > high:
        yield Problem(path, f"{quoted(value)} is more than {high}", fix)
