"""Rules of WorkerPool beyond its schema; see ``engineroom.api.validation``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engineroom.api.quantity import QuantityError, parse_quantity
from engineroom.api.schema.tree import describe_pattern
from engineroom.api.v1alpha1.types import read_duration
from engineroom.api.validation import job_schedules, pod_template
from engineroom.api.validation.common import KindRules
from engineroom.core.errors import Problem
from engineroom.core.validation.cron import cron_problem, zone_problem
from engineroom.core.validation.json_values import as_integer, as_list, as_map
from engineroom.core.validation.paths import child, nearest, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds.
_LONGEST = 365 * 86400
_RESOURCES = ("cpu", "memory")

describe_pattern(r"^[^\s,{}]+$", "a name of a queue", "leave out spaces, commas and curly brackets")


def _problems(spec: dict[str, Any]) -> Iterator[Problem]:
    yield from _sizing(spec)
    yield from _durations(spec)
    yield from _schedules(as_map(spec.get("autoscaling")))
    yield from job_schedules.problems(spec)
    yield from _outage(spec)
    yield from _right_sizing(as_map(spec.get("rightSizing")))
    yield from _template(spec)


def _sizing(spec: dict[str, Any]) -> Iterator[Problem]:
    auto = spec.get("autoscaling")
    if spec.get("replicas") is not None and auto is not None:
        yield Problem("spec.replicas", "conflicts with spec.autoscaling", "remove one of the two")
    if not isinstance(auto, dict):
        return
    path = "spec.autoscaling"
    low, high = as_integer(auto.get("minReplicas"), 0), as_integer(auto.get("maxReplicas"), 10)
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
            "conflicts with targetLatency",
            "remove one of the two",
        )
    for index, queue in enumerate(as_list(spec.get("queues"))):
        if as_map(queue).get("targetLatency") is not None:
            yield Problem(
                f"spec.queues[{index}].targetLatency",
                "is set, but the pool scales by targetBacklogPerWorker",
                "remove one of the two",
            )


def _durations(spec: dict[str, Any]) -> Iterator[Problem]:
    auto, drain = as_map(spec.get("autoscaling")), as_map(spec.get("drain"))
    down, recovery = as_map(auto.get("scaleDown")), as_map(spec.get("recovery"))
    path = "spec.autoscaling"
    yield from _duration(auto.get("targetLatency"), f"{path}.targetLatency", 0.001)
    yield from _duration(auto.get("idleTimeout"), f"{path}.idleTimeout", 0.0)
    yield from _duration(
        down.get("stabilizationWindow"), f"{path}.scaleDown.stabilizationWindow", 0.0
    )
    for index, schedule in enumerate(as_list(auto.get("schedules"))):
        yield from _duration(
            as_map(schedule).get("duration"), f"{path}.schedules[{index}].duration", 1.0
        )
    for index, queue in enumerate(as_list(spec.get("queues"))):
        yield from _duration(
            as_map(queue).get("targetLatency"), f"spec.queues[{index}].targetLatency", 0.001
        )
    yield from _duration(drain.get("maxJobDuration"), "spec.drain.maxJobDuration", 1.0)
    yield from _duration(recovery.get("poisonWindow"), "spec.recovery.poisonWindow", 1.0)
    yield from _duration(as_map(spec.get("deadLetter")).get("ttl"), "spec.deadLetter.ttl", 1.0)


def _duration(value: object, field: str, least: float) -> Iterator[Problem]:
    seconds = read_duration(value)
    if seconds is None:
        return
    if seconds == 0 and least > 0:
        problem = f"{quoted(value)} is zero"
        yield Problem(field, problem, "write more than zero, such as 30s")
    elif seconds < least:
        yield Problem(field, f"{quoted(value)} is shorter than a second", "write 1s or more")
    elif seconds > _LONGEST:
        yield Problem(field, f"{quoted(value)} is longer than a year", "write 365d or less")


def _schedules(auto: dict[str, Any]) -> Iterator[Problem]:
    high = as_integer(auto.get("maxReplicas"), 10)
    for index, schedule in enumerate(as_list(auto.get("schedules"))[:64]):
        if not isinstance(schedule, dict):
            continue
        path = f"spec.autoscaling.schedules[{index}]"
        low = as_integer(schedule.get("minReplicas"))
        if low is not None and high is not None and low > high:
            yield Problem(
                f"{path}.minReplicas",
                f"{low} is more than maxReplicas ({high})",
                "lower it or raise maxReplicas",
            )
        cron = schedule.get("cron")
        if isinstance(cron, str) and 0 < len(cron) <= 100:
            problem = cron_problem(cron)
            if problem is not None:
                yield Problem(f"{path}.cron", *problem)
        zone = schedule.get("timeZone")
        problem = zone_problem(zone) if isinstance(zone, str) and len(zone) <= 64 else None
        if problem is not None:
            yield Problem(f"{path}.timeZone", *problem)


def _outage(spec: dict[str, Any]) -> Iterator[Problem]:
    outage = as_map(spec.get("metricOutage"))
    path = "spec.metricOutage"
    mode, size = outage.get("mode", "KeepReplicas"), as_integer(outage.get("replicas"))
    if mode == "Fallback" and outage.get("replicas") is None:
        yield Problem(f"{path}.mode", "Fallback needs a size", "set replicas, too")
    if mode == "KeepReplicas" and outage.get("replicas") is not None:
        yield Problem(
            f"{path}.replicas",
            "is set, but mode is KeepReplicas",
            "write mode: Fallback or remove it",
        )
    auto = spec.get("autoscaling")
    if size is None or not isinstance(auto, dict) or mode != "Fallback":
        return
    low, high = as_integer(auto.get("minReplicas"), 0), as_integer(auto.get("maxReplicas"), 10)
    if low is not None and high is not None and low <= high and not low <= size <= high:
        yield Problem(
            f"{path}.replicas",
            f"{size} is outside minReplicas ({low}) and maxReplicas ({high})",
            "write a number between them",
        )


def _right_sizing(sizing: dict[str, Any]) -> Iterator[Problem]:
    quantities: dict[tuple[str, str], Any] = {}
    for bound in ("minAllowed", "maxAllowed"):
        path = f"spec.rightSizing.{bound}"
        for name, value in as_map(sizing.get(bound)).items():
            field = child(path, str(name))
            if name not in _RESOURCES:
                guess = nearest(str(name), _RESOURCES)
                fix = f"did you mean {guess}?" if guess else "write cpu or memory"
                yield Problem(field, "is not a resource that is sized", fix)
                continue
            if isinstance(value, bool) or not isinstance(value, int | str):
                continue  # the schema reports it
            try:
                quantity = parse_quantity(value)
            except QuantityError:
                yield Problem(
                    field,
                    f"{quoted(value)} is not a quantity",
                    "write a Kubernetes quantity such as 500m, 2, 256Mi or 1Gi",
                )
                continue
            if quantity <= 0:
                yield Problem(
                    field, f"{quoted(value)} is not more than zero", "write more than zero"
                )
                continue
            quantities[bound, name] = (quantity, value)
    for name in _RESOURCES:
        low, high = quantities.get(("minAllowed", name)), quantities.get(("maxAllowed", name))
        if low is not None and high is not None and low[0] > high[0]:
            yield Problem(
                f"spec.rightSizing.minAllowed.{name}",
                f"{quoted(low[1])} is more than maxAllowed ({quoted(high[1])})",
                "lower it or raise maxAllowed",
            )


def _template(spec: dict[str, Any]) -> Iterator[Problem]:
    template = spec.get("template")
    if isinstance(template, dict):
        longest = as_map(spec.get("drain")).get("maxJobDuration", "1h")
        yield from pod_template.problems(template, read_duration(longest))


def _warnings(spec: dict[str, Any]) -> Iterator[str]:
    redis = as_map(spec.get("redis"))
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
    for index, queue in enumerate(as_list(spec.get("queues"))):
        if as_map(queue).get("targetLatency") is not None and auto is None:
            yield f"spec.queues[{index}].targetLatency: has no effect without spec.autoscaling"
        if as_map(queue).get("priority") and spec.get("dequeueStrategy", "Priority") != "Priority":
            yield f"spec.queues[{index}].priority: has no effect unless dequeueStrategy is Priority"
    if as_map(spec.get("metricOutage")).get("mode") == "Fallback" and auto is None:
        yield "spec.metricOutage.mode: Fallback has no effect without spec.autoscaling"
    least = as_integer(as_map(auto).get("minReplicas"), 0)
    for index, schedule in enumerate(as_list(as_map(auto).get("schedules"))):
        size = as_integer(as_map(schedule).get("minReplicas"))
        if size is not None and least is not None and size <= least:
            yield (
                f"spec.autoscaling.schedules[{index}].minReplicas: {size} is not more than "
                f"minReplicas ({least}), so the schedule changes nothing"
            )
    if as_map(spec.get("rightSizing")).get("mode") == "InPlace":
        yield from _restarts(as_map(as_map(spec.get("template")).get("spec")).get("containers"))
    yield from pod_template.warnings(as_map(spec.get("template")))


def _restarts(containers: object) -> Iterator[str]:
    """Warn of resources in the workers' container that InPlace cannot change."""
    listed = [as_map(container) for container in as_list(containers)]
    index = pod_template.worker_container(listed)
    worker = {} if index is None else listed[index]
    policies = worker.get("resizePolicy")
    for policy in policies if isinstance(policies, list) else ():
        if as_map(policy).get("restartPolicy") == "RestartContainer":
            yield (
                f"spec.rightSizing.mode: {as_map(policy).get('resourceName')} is left as it is, "
                "because the container's resizePolicy would restart it, and its jobs with it"
            )


RULES = KindRules(
    missing_spec="add it with queues and template", problems=_problems, warnings=_warnings
)
