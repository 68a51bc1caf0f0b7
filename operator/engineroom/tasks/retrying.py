"""Retries by the kind of failure: transient failures are retried with growing delays.

``decide`` is a pure function. The decorator ``retrying`` writes its decision to the running job's
retry fields, which RQ reads when the job ends. It therefore works under any worker of RQ 2 and 3.
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
from engineroom.tasks.redis_steps import BatchStep, LuaScript, ScriptStep, Steps, run

if TYPE_CHECKING:
    from datetime import datetime

_F = TypeVar("_F", bound=Callable[..., Any])

#: Failures that a job's history holds.
MAX_HISTORY = 20
META = "engineroom"

log = get_logger(__name__)


class FailureCategory(StrEnum):
    """The kind of a failure."""

    TRANSIENT = "transient"  # may pass: a lost connection, a busy service
    PERMANENT = "permanent"  # the same call fails again
    POISON = "poison"  # must not run again: it harms the worker


#: Exceptions that point to a mistake in the program: a retry raises them again.
_BUGS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError,
    NotImplementedError, TypeError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rule:
    """The treatment of ``exceptions`` and their subclasses.

    ``maximum`` is the number of retries. The nth retry waits ``first * factor**(n-1)`` seconds, but
    at most ``longest``, minus a random part of up to ``jitter`` of the delay.
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
class RetryDecision:
    """The treatment of a job that raised.

    ``delay`` is in seconds. ``retries_left`` is None if the job's own Retry applies.
    """

    category: FailureCategory
    retries_left: int | None
    delay: int = 0


def category_of(error: BaseException) -> FailureCategory:
    """Return the category of an exception that no rule names."""
    if isinstance(error, EngineroomError):
        again = job_outcome(error, retries_left=1).fate is JobFate.RETRY
        return FailureCategory.TRANSIENT if again else FailureCategory.PERMANENT
    return FailureCategory.PERMANENT if isinstance(error, _BUGS) else FailureCategory.TRANSIENT


def decide(
    error: BaseException, failures: int, rules: tuple[Rule, ...], chance: float
) -> RetryDecision:
    """Return the decision of the first rule that names the exception.

    ``failures`` is the number of failures before this one; ``chance`` is random, from 0 to 1.
    """
    rule = next((rule for rule in rules if isinstance(error, rule.exceptions)), None)
    category = rule.category if rule is not None else category_of(error)
    if category is not FailureCategory.TRANSIENT:
        return RetryDecision(category, 0)
    if rule is None:
        return RetryDecision(category, None)
    left = max(0, rule.maximum - failures)
    # A larger exponent could overflow a float, and the delay has reached its maximum before.
    wait = min(rule.longest, rule.first * rule.factor ** min(failures, 64))
    return RetryDecision(category, left, math.ceil(wait * (1 - rule.jitter * chance)))


def retrying(*rules: Rule) -> Callable[[_F], _F]:
    """Decorate a job's function: classify, record and retry its failures by ``rules``.

    The job's own Retry applies to exceptions that no rule names. Mistakes in the program and
    EngineroomErrors that are not retryable are never retried.
    """

    def decorate(function: _F) -> _F:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wait(*args: Any, **kwargs: Any) -> Any:
                try:
                    return await function(*args, **kwargs)
                except Exception as error:
                    _record_failure(error, rules)
                    raise

            return cast("_F", wait)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                _record_failure(error, rules)
                raise

        return cast("_F", call)

    return decorate


def _record_failure(error: Exception, rules: tuple[Rule, ...]) -> None:
    from rq import get_current_job

    job: Any = get_current_job()
    if job is None:
        return
    stored = job.meta.get(META)
    own_meta = stored if isinstance(stored, dict) else {}
    history = list(own_meta.get("failures", ()))
    try:
        failures = run(job.connection, _read_failures(job.key))
    except TasksUnavailableError:
        failures = len(history)
    chance = random.random()  # noqa: S311 # nosec B311 - spreads load, guards nothing
    decision = decide(error, failures, rules, chance)
    history.append(_entry(error, decision, SystemClock().now()))
    history = history[-MAX_HISTORY:]
    job.meta[META] = {
        **own_meta,
        "category": decision.category.value,
        "failures": history,
    }
    if decision.retries_left is not None:
        job.retries_left = decision.retries_left
        job.retry_intervals = [decision.delay]
    meta = job.serializer.dumps(job.meta)
    try:
        fields = ["er_category", decision.category.value, "er_failures", json.dumps(history)]
        run(
            job.connection,
            _write_failure(job.key, [*fields, "er_tried", failures + 1, "meta", meta]),
        )
    except TasksUnavailableError as unavailable:
        # The job's own failure matters more; RQ writes the meta with its next transaction.
        log.warning("failure not remembered", job=job.id, error=str(unavailable))


def _entry(error: Exception, decision: RetryDecision, now: datetime) -> dict[str, Any]:
    kind = type(error)
    builtin = kind.__module__ == "builtins"
    return {
        "at": now.isoformat(),
        "exception": kind.__qualname__ if builtin else f"{kind.__module__}.{kind.__qualname__}",
        "message": redact_text(str(error))[:300],
        "category": decision.category.value,
    }


def _read_failures(key: str) -> Steps[int]:
    # A field of the hash and not in the meta: requeueing the job resets it.
    [failures] = yield BatchStep([["HGET", key, "er_tried"]])
    return int(failures or 0)


def _write_failure(key: str, fields: list[Any]) -> Steps[None]:
    yield ScriptStep(_WRITE_FAILURE, [key], fields)


#: A job that was deleted while it ran must stay deleted.
_WRITE_FAILURE = LuaScript("""
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('HSET', KEYS[1], unpack(ARGV))
""")
