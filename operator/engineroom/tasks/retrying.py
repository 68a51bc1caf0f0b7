"""Retries by the kind of failure: what passes is tried again later and later, what cannot is not.

``decide`` is pure; the decorator ``retrying`` books its decision on the job that is running, where
RQ reads it as the job's own Retry a moment later. So it holds under any worker, RQ 2 or 3.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar, cast

from engineroom.core.clock import SystemClock
from engineroom.core.error_responses import JobFate, job_outcome
from engineroom.core.errors import EngineroomError
from engineroom.core.logging import get_logger
from engineroom.core.redaction import redact_text
from engineroom.tasks.errors import InvalidTaskError, TasksUnavailableError
from engineroom.tasks.redis_steps import Batch, Invoke, Script, Steps, run

if TYPE_CHECKING:
    from datetime import datetime

_F = TypeVar("_F", bound=Callable[..., Any])

#: Failures that are remembered of one job.
MAX_HISTORY = 20
META = "engineroom"

log = get_logger(__name__)


class FailureCategory(StrEnum):
    """What kind of failure it was."""

    TRANSIENT = "transient"  # may pass: a lost connection, a busy service
    PERMANENT = "permanent"  # the same call fails again
    POISON = "poison"  # must not be tried again: it harms whoever runs it


#: Mistakes in the program: trying again runs into them again.
_BUGS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError,
    NotImplementedError, TypeError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rule:
    """What is done when one of ``exceptions`` (or of their subclasses) is raised.

    ``maximum`` tries after the first; the nth waits ``first * factor**(n-1)`` seconds, ``longest``
    at most, less a random part of up to ``jitter`` of it.
    """

    exceptions: tuple[type[BaseException], ...]
    category: FailureCategory = FailureCategory.TRANSIENT
    maximum: int = 5
    first: float = 1.0
    factor: float = 2.0
    longest: float = 3600.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.maximum <= 1000:
            raise InvalidTaskError("rule.maximum", f"{self.maximum}", "use 0 to 1000")
        if not 0 <= self.jitter <= 1:
            raise InvalidTaskError("rule.jitter", f"{self.jitter}", "use 0 to 1")
        if not (self.first >= 0 and self.factor >= 1 and self.longest >= 0):
            raise InvalidTaskError("rule.first", "is below 0, or factor below 1", "use more")


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a job that raised: ``delay`` is in seconds; None leaves it to its Retry."""

    category: FailureCategory
    retries_left: int | None
    delay: int = 0


def category_of(error: BaseException) -> FailureCategory:
    """The category where no rule says one."""
    if isinstance(error, EngineroomError):
        again = job_outcome(error, retries_left=1).fate is JobFate.RETRY
        return FailureCategory.TRANSIENT if again else FailureCategory.PERMANENT
    return FailureCategory.PERMANENT if isinstance(error, _BUGS) else FailureCategory.TRANSIENT


def decide(error: BaseException, tried: int, rules: tuple[Rule, ...], chance: float) -> Decision:
    """``tried`` is how often it failed before; ``chance`` is from 0 to 1. The first rule wins."""
    rule = next((each for each in rules if isinstance(error, each.exceptions)), None)
    category = rule.category if rule is not None else category_of(error)
    if category is not FailureCategory.TRANSIENT:
        return Decision(category, 0)
    if rule is None:
        return Decision(category, None)
    left = max(0, rule.maximum - tried)
    # Beyond 64 doublings a float could overflow; by then it is the longest anyway.
    wait = min(rule.longest, rule.first * rule.factor ** min(tried, 64))
    return Decision(category, left, math.ceil(wait * (1 - rule.jitter * chance)))


def retrying(*rules: Rule) -> Callable[[_F], _F]:
    """Decorate a job's function: failures are classified, remembered and retried by ``rules``.

    What no rule names is retried as the job's own Retry says, unless it is a mistake in the
    program or an EngineroomError that is not retryable: those are not tried again.
    """

    def decorate(function: _F) -> _F:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wait(*args: Any, **kwargs: Any) -> Any:
                try:
                    return await function(*args, **kwargs)
                except Exception as error:
                    _book(error, rules)
                    raise

            return cast("_F", wait)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                _book(error, rules)
                raise

        return cast("_F", call)

    return decorate


def _book(error: Exception, rules: tuple[Rule, ...]) -> None:
    from rq import get_current_job

    job: Any = get_current_job()
    if job is None:
        return
    told = job.meta.get(META)
    history = list(told.get("failures", ())) if isinstance(told, dict) else []
    try:
        tried = run(job.connection, _tried(job.key))
    except TasksUnavailableError:
        tried = len(history)
    chance = random.random()  # noqa: S311 # nosec B311 - spreads load, guards nothing
    decision = decide(error, tried, rules, chance)
    history.append(_entry(error, decision, SystemClock().now()))
    history = history[-MAX_HISTORY:]
    job.meta[META] = {
        **(told if isinstance(told, dict) else {}),
        "category": decision.category.value,
        "failures": history,
    }
    if decision.retries_left is not None:
        job.retries_left = decision.retries_left
        job.retry_intervals = [decision.delay]
    meta = job.serializer.dumps(job.meta)
    try:
        fields = ["er_category", decision.category.value, "er_failures", json.dumps(history)]
        run(job.connection, _remember(job.key, [*fields, "er_tried", tried + 1, "meta", meta]))
    except TasksUnavailableError as unavailable:
        # The job's own failure is what counts; RQ writes the rest with its next transaction.
        log.warning("failure not remembered", job=job.id, error=str(unavailable))


def _entry(error: Exception, decision: Decision, now: datetime) -> dict[str, Any]:
    kind = type(error)
    builtin = kind.__module__ == "builtins"
    return {
        "at": now.isoformat(),
        "exception": kind.__qualname__ if builtin else f"{kind.__module__}.{kind.__qualname__}",
        "message": redact_text(str(error))[:300],
        "category": decision.category.value,
    }


def _tried(key: str) -> Steps[int]:
    # Beside RQ's own fields and not in the meta: whoever requeues the job starts it at zero.
    [tried] = yield Batch([["HGET", key, "er_tried"]])
    return int(tried or 0)


def _remember(key: str, fields: list[Any]) -> Steps[None]:
    yield Invoke(_REMEMBER, [key], fields)


#: A job that was deleted while it ran stays deleted.
_REMEMBER = Script("""
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('HSET', KEYS[1], unpack(ARGV))
""")
