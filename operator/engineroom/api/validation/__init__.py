"""Whether an object of ours is valid: one answer for webhook, controller, command line and API.

``problems`` takes any JSON and never raises. The rules that need no code stand in the models and
are checked by their schema, exactly as the API server does; the rest stands here and in
``policy_rules``, ``pod_template`` and ``pod_security``. Values of environment variables are never
shown.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import ValidationError

from engineroom.api import API_VERSION, GROUP, names
from engineroom.api.quantity import QuantityError, parse_quantity
from engineroom.api.schema import ratelimitpolicy as policy_schema
from engineroom.api.schema.crd import MAX_NAME, spec_node
from engineroom.api.schema.tree import MAX_PROBLEMS, check, describe_pattern, kind_of
from engineroom.api.v1alpha1 import workerpool
from engineroom.api.v1alpha1.ratelimitpolicy import KIND as POLICY_KIND
from engineroom.api.v1alpha1.ratelimitpolicy import RateLimitPolicy
from engineroom.api.v1alpha1.types import DURATION_PATTERN, read_duration
from engineroom.api.v1alpha1.workerpool import WorkerPool
from engineroom.api.validation import job_schedules, pod_security, pod_template
from engineroom.api.validation import ratelimitpolicy as policy_rules
from engineroom.api.validation.pod_security import Level
from engineroom.core.errors import InvalidSpecError, Problem
from engineroom.core.validation.cron import cron_problem, zone_problem
from engineroom.core.validation.documents import MAX_DEPTH
from engineroom.core.validation.paths import child, nearest, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from engineroom.api.schema.tree import Node
    from engineroom.api.v1alpha1.types import Model

_Kind = TypeVar("_Kind", bound="Model")

#: Larger documents are refused before anything walks them; no real one comes near.
MAX_VALUES = 20_000
_LONGEST = 365 * 86400
_RESOURCES = ("cpu", "memory")

describe_pattern(
    DURATION_PATTERN,
    "a duration",
    "write a number and its unit (ms, s, m, h or d), such as 30s or 1h30m",
)
describe_pattern(r"^[^\s,{}]+$", "a name of a queue", "leave out spaces, commas and curly brackets")
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
class Context:
    """What validity depends on besides the object itself."""

    #: Level that the pool's namespace enforces; without a label it counts as restricted.
    pod_security: Level = Level.RESTRICTED


RESTRICTED = Context()


def parse(obj: Mapping[str, Any], context: Context = RESTRICTED) -> WorkerPool:
    """The model of a valid pool, with defaults; raises InvalidSpecError with every problem."""
    return _parse(WorkerPool, obj, context)


def parse_policy(obj: Mapping[str, Any]) -> RateLimitPolicy:
    """The model of a valid policy, with defaults; raises InvalidSpecError with every problem."""
    return _parse(RateLimitPolicy, obj, RESTRICTED)


def _parse(model: type[_Kind], obj: Mapping[str, Any], context: Context) -> _Kind:
    bound = _unbounded(obj)
    found = problems(obj, context) if bound is None else [bound]
    if found:
        raise InvalidSpecError(found)
    cleaned = _without_nulls(obj)
    kept = {key: cleaned[key] for key in ("apiVersion", "kind", "metadata", "spec")}
    try:
        return model.model_validate_json(
            json.dumps(kept), strict=True, by_alias=True, by_name=False
        )
    except ValidationError as error:
        raise InvalidSpecError(_translated(error)) from error


def problems(obj: Any, context: Context = RESTRICTED) -> list[Problem]:
    """Everything that is wrong with an object, in its own order; empty when it is valid.

    Takes anything at all and never raises. At most MAX_PROBLEMS are told.
    """
    bound = _unbounded(_map(obj).get("spec"))
    if bound is not None:
        return [bound]
    found: dict[tuple[str, str], Problem] = {}
    for problem in _problems(obj, context):
        found.setdefault((problem.field, problem.problem), problem)
        if len(found) >= MAX_PROBLEMS:
            break
    return list(found.values())


def warnings(obj: Any) -> list[str]:
    """What is allowed but probably not meant; never raises."""
    spec = _map(_map(obj).get("spec"))
    return list(islice(_rules_of(_map(obj).get("kind")).warnings(spec), MAX_PROBLEMS))


def escalations(obj: Any) -> list[pod_security.Escalation]:
    """What in the object's template needs a Pod Security level above restricted."""
    pod = _map(_map(_map(_map(obj).get("spec")).get("template")).get("spec"))
    return list(islice(pod_security.escalations(pod, pod_template.SPEC), MAX_PROBLEMS))


def _unbounded(obj: object) -> Problem | None:
    """The problem of a document too deep or too large to look at; walks without recursion."""
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
            # Only what can hold more has to wait its turn.
            if inner.__class__ in _PLAIN:
                count += 1
            else:
                waiting.append((inner, depth + 1))
    return None


def _problems(obj: Any, context: Context) -> Iterator[Problem]:
    if not isinstance(obj, dict):
        kinds = " or a ".join(_rules())
        yield Problem("(document)", f"is {kind_of(obj)}, not an object", f"write a {kinds}")
        return
    rules = _rules_of(obj.get("kind"))
    yield from _identity(obj)
    yield from _object_metadata(obj.get("metadata"), rules.max_name)
    for key in obj:
        if key not in {"apiVersion", "kind", "metadata", "spec", "status"}:
            guess = nearest(str(key), ("apiVersion", "kind", "metadata", "spec"))
            misplaced = isinstance(key, str) and key in (rules.node().fields or {})
            fix = (
                f"move it to spec.{key}"
                if misplaced
                else (f"did you mean {guess}?" if guess else "remove it")
            )
            yield Problem(child("", str(key)), "is not a known field", fix)
    spec = obj.get("spec")
    if spec is None:
        yield Problem("spec", "is missing", rules.needs)
        return
    # Nulls are gone before the API server validates; in the template they mean the same.
    spec = _without_nulls(spec)
    yield from check(rules.node(), spec, "spec")
    if isinstance(spec, dict):
        yield from rules.problems(spec, context)


class _Rules(NamedTuple):
    """What is particular to a kind."""

    node: Callable[[], Node]
    max_name: int
    #: What to do about a missing spec.
    needs: str
    problems: Callable[[dict[str, Any], Context], Iterator[Problem]]
    warnings: Callable[[dict[str, Any]], Iterator[str]]


@cache
def _rules() -> dict[str, _Rules]:
    return {
        workerpool.KIND: _Rules(
            spec_node, MAX_NAME, "add it with queues and template", _pool_problems, _warnings
        ),
        POLICY_KIND: _Rules(
            policy_schema.spec_node,
            policy_schema.MAX_NAME,
            "add it with limits, and targetRefs or selector",
            lambda spec, _context: policy_rules.problems(spec),
            policy_rules.warnings,
        ),
    }


def _rules_of(kind: object) -> _Rules:
    """The rules of a kind; a pool's for what is none of ours."""
    return _rules().get(kind if isinstance(kind, str) else "") or _rules()[workerpool.KIND]


def _pool_problems(spec: dict[str, Any], context: Context) -> Iterator[Problem]:
    yield from _sizing(spec)
    yield from _durations(spec)
    yield from _schedules(_map(spec.get("autoscaling")))
    yield from job_schedules.problems(spec, read_duration)
    yield from _outage(spec)
    yield from _right_sizing(_map(spec.get("rightSizing")))
    yield from _template(spec, context)


def _identity(obj: dict[str, Any]) -> Iterator[Problem]:
    version, kind = obj.get("apiVersion"), obj.get("kind")
    if version != API_VERSION:
        told = "is missing" if version is None else f"{shown(version)} is not known here"
        yield Problem("apiVersion", told, f"write {API_VERSION}")
    if not isinstance(kind, str) or kind not in _rules():
        told = "is missing" if kind is None else f"{shown(kind)} is not a kind of {GROUP}"
        guess = nearest(kind, _rules()) if isinstance(kind, str) else None
        yield Problem("kind", told, f"write {guess or ' or '.join(_rules())}")


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
            f"{shown(name)} is not a DNS label",
            "write lower-case letters, digits and dashes, with a letter or digit at both ends",
        )
    for kind in ("labels", "annotations"):
        given = metadata.get(kind)
        if given is not None and not isinstance(given, dict):
            yield Problem(f"metadata.{kind}", f"is {kind_of(given)}, not a map", "write a map")


def _sizing(spec: dict[str, Any]) -> Iterator[Problem]:
    auto = spec.get("autoscaling")
    if spec.get("replicas") is not None and auto is not None:
        yield Problem("spec.replicas", "is set beside spec.autoscaling", "remove one of the two")
    if not isinstance(auto, dict):
        return
    path = "spec.autoscaling"
    low, high = _int(auto.get("minReplicas"), 0), _int(auto.get("maxReplicas"), 10)
    if low is not None and high is not None and low > high:
        yield Problem(
            f"{path}.minReplicas",
            f"{low} is more than maxReplicas ({high})",
            "lower it or raise maxReplicas",
        )
    if auto.get("targetBacklogPerWorker") is None:
        return
    if auto.get("targetLatency", "30s") != "30s":
        yield Problem(
            f"{path}.targetBacklogPerWorker",
            "is set beside targetLatency",
            "remove one of the two",
        )
    for index, queue in enumerate(_list(spec.get("queues"))):
        if _map(queue).get("targetLatency") is not None:
            yield Problem(
                f"spec.queues[{index}].targetLatency",
                "is set, but the pool scales by targetBacklogPerWorker",
                "remove one of the two",
            )


def _durations(spec: dict[str, Any]) -> Iterator[Problem]:
    auto, drain = _map(spec.get("autoscaling")), _map(spec.get("drain"))
    down, recovery = _map(auto.get("scaleDown")), _map(spec.get("recovery"))
    path = "spec.autoscaling"
    yield from _duration(auto.get("targetLatency"), f"{path}.targetLatency", 0.001)
    yield from _duration(auto.get("idleTimeout"), f"{path}.idleTimeout", 0.0)
    yield from _duration(
        down.get("stabilizationWindow"), f"{path}.scaleDown.stabilizationWindow", 0.0
    )
    for index, schedule in enumerate(_list(auto.get("schedules"))):
        yield from _duration(
            _map(schedule).get("duration"), f"{path}.schedules[{index}].duration", 1.0
        )
    for index, queue in enumerate(_list(spec.get("queues"))):
        yield from _duration(
            _map(queue).get("targetLatency"), f"spec.queues[{index}].targetLatency", 0.001
        )
    yield from _duration(drain.get("maxJobDuration"), "spec.drain.maxJobDuration", 1.0)
    yield from _duration(recovery.get("poisonWindow"), "spec.recovery.poisonWindow", 1.0)
    yield from _duration(_map(spec.get("deadLetter")).get("ttl"), "spec.deadLetter.ttl", 1.0)


def _duration(value: object, field: str, least: float) -> Iterator[Problem]:
    seconds = read_duration(value)
    if seconds is None:
        return
    if seconds == 0 and least > 0:
        problem = f"{shown(value)} is no time at all"
        yield Problem(field, problem, "write more than zero, such as 30s")
    elif seconds < least:
        yield Problem(field, f"{shown(value)} is shorter than a second", "write 1s or more")
    elif seconds > _LONGEST:
        yield Problem(field, f"{shown(value)} is longer than a year", "write 365d or less")


def _schedules(auto: dict[str, Any]) -> Iterator[Problem]:
    high = _int(auto.get("maxReplicas"), 10)
    for index, schedule in enumerate(_list(auto.get("schedules"))[:64]):
        if not isinstance(schedule, dict):
            continue
        path = f"spec.autoscaling.schedules[{index}]"
        low = _int(schedule.get("minReplicas"), None)
        if low is not None and high is not None and low > high:
            yield Problem(
                f"{path}.minReplicas",
                f"{low} is more than maxReplicas ({high})",
                "lower it or raise maxReplicas",
            )
        cron = schedule.get("cron")
        if isinstance(cron, str) and 0 < len(cron) <= 100:
            told = cron_problem(cron)
            if told is not None:
                yield Problem(f"{path}.cron", *told)
        zone = schedule.get("timeZone")
        told = zone_problem(zone) if isinstance(zone, str) and len(zone) <= 64 else None
        if told is not None:
            yield Problem(f"{path}.timeZone", *told)


def _outage(spec: dict[str, Any]) -> Iterator[Problem]:
    outage = _map(spec.get("metricOutage"))
    path = "spec.metricOutage"
    mode, size = outage.get("mode", "KeepReplicas"), _int(outage.get("replicas"), None)
    if mode == "Fallback" and outage.get("replicas") is None:
        yield Problem(f"{path}.mode", "Fallback needs a size", "write replicas beside it")
    if mode == "KeepReplicas" and outage.get("replicas") is not None:
        yield Problem(
            f"{path}.replicas",
            "is set, but mode is KeepReplicas",
            "write mode: Fallback or remove it",
        )
    auto = spec.get("autoscaling")
    if size is None or not isinstance(auto, dict) or mode != "Fallback":
        return
    low, high = _int(auto.get("minReplicas"), 0), _int(auto.get("maxReplicas"), 10)
    if low is not None and high is not None and low <= high and not low <= size <= high:
        yield Problem(
            f"{path}.replicas",
            f"{size} is outside minReplicas ({low}) and maxReplicas ({high})",
            "write a number between them",
        )


def _right_sizing(sizing: dict[str, Any]) -> Iterator[Problem]:
    known: dict[tuple[str, str], Any] = {}
    for bound in ("minAllowed", "maxAllowed"):
        path = f"spec.rightSizing.{bound}"
        for name, value in _map(sizing.get(bound)).items():
            field = child(path, str(name))
            if name not in _RESOURCES:
                guess = nearest(str(name), _RESOURCES)
                fix = f"did you mean {guess}?" if guess else "write cpu or memory"
                yield Problem(field, "is not a resource that is sized", fix)
                continue
            if isinstance(value, bool) or not isinstance(value, int | str):
                continue  # told by the schema
            try:
                quantity = parse_quantity(value)
            except QuantityError:
                yield Problem(
                    field,
                    f"{shown(value)} is not a quantity",
                    "write a Kubernetes quantity such as 500m, 2, 256Mi or 1Gi",
                )
                continue
            if quantity <= 0:
                yield Problem(
                    field, f"{shown(value)} is not more than zero", "write more than zero"
                )
                continue
            known[bound, name] = (quantity, value)
    for name in _RESOURCES:
        low, high = known.get(("minAllowed", name)), known.get(("maxAllowed", name))
        if low is not None and high is not None and low[0] > high[0]:
            yield Problem(
                f"spec.rightSizing.minAllowed.{name}",
                f"{shown(low[1])} is more than maxAllowed ({shown(high[1])})",
                "lower it or raise maxAllowed",
            )


def _template(spec: dict[str, Any], context: Context) -> Iterator[Problem]:
    template = spec.get("template")
    if not isinstance(template, dict):
        return
    large = pod_template.too_large(template)
    if large is not None:
        yield large
        return
    longest = _map(spec.get("drain")).get("maxJobDuration", "1h")
    yield from pod_template.problems(template, read_duration(longest))
    pod = _map(template.get("spec"))
    for escalation in pod_security.escalations(pod, pod_template.SPEC):
        if escalation.needs > context.pod_security:
            yield escalation.refused(context.pod_security)


def _warnings(spec: dict[str, Any]) -> Iterator[str]:
    redis = _map(spec.get("redis"))
    tls = redis.get("tls")
    if isinstance(tls, dict):
        if tls.get("insecureSkipVerify") is True:
            yield "spec.redis.tls.insecureSkipVerify: anybody on the way can pose as Redis"
        elif not tls.get("caSecretRef"):
            yield (
                "spec.redis.tls: says nothing; a URL that begins with rediss:// turns TLS on, "
                "checked by the system's certificates"
            )
    auto = spec.get("autoscaling")
    for index, queue in enumerate(_list(spec.get("queues"))):
        if _map(queue).get("targetLatency") is not None and auto is None:
            yield f"spec.queues[{index}].targetLatency: has no effect without spec.autoscaling"
        if _map(queue).get("priority") and spec.get("dequeueStrategy", "Priority") != "Priority":
            yield f"spec.queues[{index}].priority: has no effect unless dequeueStrategy is Priority"
    if _map(spec.get("metricOutage")).get("mode") == "Fallback" and auto is None:
        yield "spec.metricOutage.mode: Fallback has no effect without spec.autoscaling"
    least = _int(_map(auto).get("minReplicas"), 0)
    for index, schedule in enumerate(_list(_map(auto).get("schedules"))):
        size = _int(_map(schedule).get("minReplicas"), None)
        if size is not None and least is not None and size <= least:
            yield (
                f"spec.autoscaling.schedules[{index}].minReplicas: {size} is not more than "
                f"minReplicas ({least}), so the schedule changes nothing"
            )
    if _map(spec.get("rightSizing")).get("mode") == "InPlace":
        yield from _restarts(_map(_map(spec.get("template")).get("spec")).get("containers"))
    yield from pod_template.warnings(_map(spec.get("template")))


def _restarts(containers: object) -> Iterator[str]:
    """What InPlace leaves alone in the container that runs the workers."""
    known = [_map(c) for c in containers] if isinstance(containers, list) else []
    worker = next((c for c in known if c.get("name") == "worker"), known[0] if known else {})
    policies = worker.get("resizePolicy")
    for policy in policies if isinstance(policies, list) else ():
        if _map(policy).get("restartPolicy") == "RestartContainer":
            yield (
                f"spec.rightSizing.mode: {_map(policy).get('resourceName')} is left as it is, "
                "because the container's resizePolicy would restart it, and its jobs with it"
            )


def _translated(error: ValidationError) -> list[Problem]:
    """What pydantic finds and the schema did not: a net beneath it, in plainer words."""
    found = []
    for detail in error.errors(include_url=False, include_input=False):
        path = ""
        for part in detail["loc"]:
            path = f"{path}[{part}]" if isinstance(part, int) else child(path, str(part))
        found.append(Problem(path or "(document)", detail["msg"], "correct it"))
    return found


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


def _int(value: object, default: int | None) -> int | None:
    if value is None:
        return default
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _map(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
