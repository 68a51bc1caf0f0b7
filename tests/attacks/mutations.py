"""Random valid specs of each kind. A kind without an entry fails the walk: it has to join."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from tests.unit.api.policies import policy
from tests.unit.api.specs import pool

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

#: Queues of the walk; pools of every namespace name them.
QUEUES = ("mail", "bills", "reports")
#: Secrets that exist in every namespace of the walk.
SECRETS = ("own-redis", "other-redis")
#: Fields that decide nothing about what runs, with which Secret, on which queue. An oracle of its
#: own, written by hand: the product declares the opposite.
HARMLESS = {
    "WorkerPool": {
        "replicas", "autoscaling", "suspend", "deadLetter", "drain", "recovery", "rightSizing",
        "metricOutage", "workersPerPod", "dequeueStrategy",
    },
    "RateLimitPolicy": {"targetRefs", "limits", "priority", "failureMode", "headers", "mode"},
}  # fmt: skip


def _redis(draw: random.Random) -> dict[str, Any]:
    return {"urlSecretRef": {"name": draw.choice(SECRETS), "key": "url"}}


def _pool(draw: random.Random, spec: dict[str, Any] | None) -> dict[str, Any]:
    if spec is None:
        spec = pool()["spec"]
        spec["queues"] = [{"name": draw.choice(QUEUES)}]
        spec.pop("autoscaling", None)
    container = spec["template"]["spec"]["containers"][0]
    changes: tuple[Callable[[], Any], ...] = (
        lambda: spec.update(replicas=draw.randint(0, 3)),
        lambda: spec.update(suspend=draw.random() < 0.5),
        lambda: spec.update(deadLetter={"maxJobs": draw.randint(1, 5)}),
        lambda: spec.update(workersPerPod=draw.randint(1, 3)),
        lambda: container.update(image=f"shop:{draw.randint(1, 3)}"),
        lambda: container.update(env=[{"name": "A", "value": str(draw.randint(1, 3))}]),
        lambda: container.update(
            env=[
                {
                    "name": "A",
                    "valueFrom": {"secretKeyRef": {"name": draw.choice(SECRETS), "key": "url"}},
                }
            ]
        ),
        lambda: spec["template"]["spec"].update(serviceAccountName=draw.choice(["a", "b"])),
        lambda: spec.update(redis=_redis(draw)),
        lambda: spec.pop("redis", None),
        lambda: spec.update(
            queues=[{"name": name} for name in draw.sample(QUEUES, draw.randint(1, 2))]
        ),
        lambda: spec.update(schedules=[_schedule(draw)]),
        lambda: spec.pop("schedules", None),
    )
    for change in draw.sample(changes, draw.randint(0, 2)):
        change()
    names = [queue["name"] for queue in spec["queues"]]
    for schedule in spec.get("schedules") or ():
        schedule["queue"] = names[0]
    return spec


def _schedule(draw: random.Random) -> dict[str, Any]:
    argument = draw.choice([1, True, "a"])
    return {"name": "nightly", "cron": "0 3 * * *", "function": "os.getenv", "args": [argument]}


def _policy(draw: random.Random, spec: dict[str, Any] | None) -> dict[str, Any]:
    if spec is None:
        spec = policy()["spec"]
        spec.pop("redis", None)
    limit = spec["limits"][0]
    changes: tuple[Callable[[], Any], ...] = (
        lambda: limit["rate"].update(requests=draw.randint(1, 9)),
        lambda: spec.update(redis=_redis(draw)),
        lambda: spec.pop("redis", None),
    )
    for change in draw.sample(changes, draw.randint(0, 2)):
        change()
    return spec


_MUTATIONS = {"WorkerPool": _pool, "RateLimitPolicy": _policy}


def mutated(kind: str, draw: random.Random, spec: dict[str, Any] | None) -> dict[str, Any]:
    """Return a new spec, or a changed copy of ``spec``. Raises KeyError for a kind without one."""
    return _MUTATIONS[kind](draw, copy.deepcopy(spec))


def needs_pods(kind: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Return whether the change decides what runs, with which Secret or on which queue."""
    import json

    fields = (old.keys() | new.keys()) - HARMLESS[kind]
    # As text: 1 and true are equal in Python.
    return any(
        json.dumps(old.get(field) or None, sort_keys=True)
        != json.dumps(new.get(field) or None, sort_keys=True)
        for field in fields
    )


def secrets_named(spec: dict[str, Any]) -> set[str]:
    """Return the Secrets that Engineroom reads for the object."""
    redis = spec.get("redis") or {}
    return {redis["urlSecretRef"]["name"]} if redis else set()
