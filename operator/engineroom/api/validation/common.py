"""Validation of objects of every kind: the same for webhook, controller, command line and API.

``problems`` takes any JSON and never raises. The schema, made from the models, is checked exactly
as the API server does; each kind adds ``KindRules``. Values of environment variables are never
shown.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from engineroom.api import API_VERSION, GROUP, kinds, names
from engineroom.api.kinds import KindError
from engineroom.api.schema.common import spec_node
from engineroom.api.schema.tree import MAX_PROBLEMS, check, describe_pattern, kind_of
from engineroom.api.v1alpha1.types import DURATION_PATTERN
from engineroom.api.validation import guarded_fields
from engineroom.api.validation.pod_security import PodSecurityLevel
from engineroom.core.errors import InvalidSpecError, Problem
from engineroom.core.validation.documents import MAX_DEPTH
from engineroom.core.validation.json_values import as_map
from engineroom.core.validation.paths import child, nearest, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from engineroom.api.kinds import Kind, Registry
    from engineroom.api.v1alpha1.types import Model
    from engineroom.api.validation.pod_security import Escalation

_Model = TypeVar("_Model", bound="Model")

#: Larger documents are refused before anything walks them; no real one comes near.
MAX_VALUES = 20_000
#: Characters that the name of an object of an unknown kind may have (a DNS label).
_MAX_NAME = 63

describe_pattern(
    DURATION_PATTERN,
    "a duration",
    "write a number and its unit (ms, s, m, h or d), such as 30s or 1h30m",
)
describe_pattern(
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    "a valid name",
    "write lower-case letters, digits and dashes, with a letter or digit at both ends",
)
describe_pattern(
    r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
    "the name of an object",
    "write lower-case letters, digits, '-' and '.', with a letter or digit at both ends",
)
describe_pattern(
    r"^[-._a-zA-Z0-9]+$", "a key of a Secret", "write letters, digits, '-', '_' and '.'"
)


@dataclass(frozen=True, slots=True)
class KindRules:
    """The rules of one kind beyond its schema; the functions take the spec, of any shape."""

    #: The fix for a missing spec.
    missing_spec: str
    problems: Callable[[dict[str, Any]], Iterator[Problem]]
    #: Warnings, each as ``field: problem; fix``.
    warnings: Callable[[dict[str, Any]], Iterator[str]]


@dataclass(frozen=True, slots=True)
class ValidationContext:
    """Facts besides the object that validity depends on."""

    #: Pod Security level that the object's namespace enforces; restricted without a label.
    pod_security: PodSecurityLevel = PodSecurityLevel.RESTRICTED


RESTRICTED = ValidationContext()


def parse(
    model: type[_Model], obj: Mapping[str, Any], context: ValidationContext = RESTRICTED
) -> _Model:
    """Read a valid object, defaults filled in. Raises InvalidSpecError with every problem."""
    bound = _size_problem(obj)
    invalid = problems(obj, context) if bound is None else [bound]
    if invalid:
        raise InvalidSpecError(invalid)
    cleaned = _without_nulls(obj)
    fields = {key: cleaned[key] for key in ("apiVersion", "kind", "metadata", "spec")}
    try:
        return model.model_validate_json(
            json.dumps(fields), strict=True, by_alias=True, by_name=False
        )
    except ValidationError as error:
        raise InvalidSpecError(_model_problems(error)) from error


def problems(obj: Any, context: ValidationContext = RESTRICTED) -> list[Problem]:
    """List the problems of an object, in its own order; empty when it is valid.

    Takes any JSON and never raises. The list ends after MAX_PROBLEMS.
    """
    bound = _size_problem(as_map(obj).get("spec"))
    if bound is not None:
        return [bound]
    distinct: dict[tuple[str, str], Problem] = {}
    for problem in _problems(obj, context):
        distinct.setdefault((problem.field, problem.problem), problem)
        if len(distinct) >= MAX_PROBLEMS:
            break
    return list(distinct.values())


def warnings(obj: Any) -> list[str]:
    """List what is allowed but probably not meant; takes any JSON and never raises."""
    kind = kinds.registry().find(as_map(obj).get("kind"))
    if kind is None:
        return []
    rules: KindRules = kind.rules.load()
    return list(islice(rules.warnings(as_map(as_map(obj).get("spec"))), MAX_PROBLEMS))


def escalations(obj: Any) -> list[Escalation]:
    """List what the object's pod templates need beyond Pod Security level restricted.

    The list holds what any version's rules forbid, and ends after MAX_PROBLEMS.
    """
    kind = kinds.registry().find(as_map(obj).get("kind"))
    found = () if kind is None else guarded_fields.escalations(kind, obj)
    return list(islice(found, MAX_PROBLEMS))


def check_registry(registry: Registry) -> None:
    """Check at start that each kind can be validated. Raises KindError.

    A kind whose schema has fields that look like references to pods or Secrets without declaring
    them cannot be used: admission would not ask whether the author may write them.
    """
    for kind in registry:
        for name in (kind.model, kind.schema, kind.rules):
            name.load()
        undeclared = guarded_fields.undeclared_paths(kind)
        if undeclared:
            raise KindError(f"{kind.kind}: guarded does not declare {', '.join(undeclared)}")


def _size_problem(obj: object) -> Problem | None:
    """Return the problem of a document too deep or too large to check. Needs no recursion."""
    waiting: list[tuple[Any, int]] = [(obj, 1)]
    count = 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH:
            return Problem("spec", f"is nested deeper than {MAX_DEPTH} levels", "flatten it")
        if count > MAX_VALUES:
            return Problem("spec", f"has more than {MAX_VALUES} values", "make it smaller")
        inside: Iterable[Any] = ()
        if isinstance(value, dict):
            inside = value.values()
        elif isinstance(value, list):
            inside = value
        for inner in inside:
            # Only maps and lists have values inside.
            if inner.__class__ in _PLAIN:
                count += 1
            else:
                waiting.append((inner, depth + 1))
    return None


def _problems(obj: Any, context: ValidationContext) -> Iterator[Problem]:
    registry = kinds.registry()
    if not isinstance(obj, dict):
        titles = " or a ".join(kind.kind for kind in registry)
        yield Problem("(document)", f"is {kind_of(obj)}, not an object", f"write a {titles}")
        return
    kind = registry.find(obj.get("kind"))
    yield from _identity(obj, kind)
    longest = _MAX_NAME if kind is None else kind.max_name_length
    yield from _object_metadata(obj.get("metadata"), longest)
    if kind is not None:
        yield from _top_level(obj, kind)
        yield from _spec(obj, kind, context)


def _top_level(obj: dict[str, Any], kind: Kind) -> Iterator[Problem]:
    for key in obj:
        if key in {"apiVersion", "kind", "metadata", "spec", "status"}:
            continue
        guess = nearest(str(key), ("apiVersion", "kind", "metadata", "spec"))
        fix = f"did you mean {guess}?" if guess else "remove it"
        if isinstance(key, str) and key in (spec_node(kind).fields or {}):
            fix = f"move it to spec.{key}"
        yield Problem(child("", str(key)), "is not a known field", fix)


def _spec(obj: dict[str, Any], kind: Kind, context: ValidationContext) -> Iterator[Problem]:
    rules: KindRules = kind.rules.load()
    if obj.get("spec") is None:
        yield Problem("spec", "is missing", rules.missing_spec)
        return
    # Nulls are gone before the API server validates; in the template they mean the same.
    spec = _without_nulls(obj["spec"])
    yield from check(spec_node(kind), spec, "spec")
    if not isinstance(spec, dict):
        return
    yield from rules.problems(spec)
    yield from guarded_fields.undeclared_problems(kind, {"spec": spec})
    yield from guarded_fields.secret_problems(kind, {"spec": spec})
    for escalation in guarded_fields.escalations(kind, {"spec": spec}):
        if escalation.exceeds(context.pod_security):
            yield escalation.refused(context.pod_security)


def _identity(obj: dict[str, Any], entry: Kind | None) -> Iterator[Problem]:
    version, kind = obj.get("apiVersion"), obj.get("kind")
    if version != API_VERSION:
        problem = "is missing" if version is None else f"{quoted(version)} is not known here"
        yield Problem("apiVersion", problem, f"write {API_VERSION}")
    if entry is None:
        titles = [entry.kind for entry in kinds.registry()]
        problem = "is missing" if kind is None else f"{quoted(kind)} is not a kind of {GROUP}"
        guess = nearest(kind, titles) if isinstance(kind, str) else None
        yield Problem("kind", problem, f"write {guess or ' or '.join(titles)}")


def _object_metadata(metadata: object, max_name: int) -> Iterator[Problem]:
    if metadata is None:
        yield Problem("metadata", "is missing", "add it with a name")
        return
    if not isinstance(metadata, dict):
        yield Problem("metadata", f"is {kind_of(metadata)}, not a map", "write a map with a name")
        return
    name = metadata.get("name")
    if name is None and not metadata.get("generateName"):
        yield Problem("metadata.name", "is missing", "add a name")
    elif name is not None and not isinstance(name, str):
        fix = "write it in quotes" if isinstance(name, int | float) else "write a name"
        yield Problem("metadata.name", f"is {kind_of(name)}, not a string", fix)
    elif isinstance(name, str) and len(name) > max_name:
        yield Problem(
            "metadata.name",
            f"has {len(name)} characters",
            f"shorten it to at most {max_name}, so that the names made from it fit",
        )
    elif isinstance(name, str) and not names.DNS_LABEL.fullmatch(name):
        yield Problem(
            "metadata.name",
            f"{quoted(name)} is not a DNS label",
            "write lower-case letters, digits and dashes, with a letter or digit at both ends",
        )
    for kind in ("labels", "annotations"):
        value = metadata.get(kind)
        if value is not None and not isinstance(value, dict):
            yield Problem(f"metadata.{kind}", f"is {kind_of(value)}, not a map", "write a map")


def _model_problems(error: ValidationError) -> list[Problem]:
    """List what pydantic found and the schema did not, in plainer words."""
    translated = []
    for detail in error.errors(include_url=False, include_input=False):
        path = ""
        for part in detail["loc"]:
            path = f"{path}[{part}]" if isinstance(part, int) else child(path, str(part))
        translated.append(Problem(path or "(document)", detail["msg"], "correct it"))
    return translated


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: inner if inner.__class__ in _PLAIN else _without_nulls(inner)
            for key, inner in value.items()
            if inner is not None
        }
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


_PLAIN = frozenset({str, int, bool, float})
