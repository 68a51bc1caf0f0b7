"""The description of a job in requests that enqueue it now or by a schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from engineroom.console.rest.routing import Model
from engineroom.queue.priority import MAX_PRIORITY
from engineroom.tasks.async_client import AsyncTasks
from engineroom.tasks.enqueueing.task import (
    DEFAULT_TIMEOUT,
    MAX_SECONDS,
    Retry,
)
from engineroom.tasks.serializers import JSONSerializer, PickleSerializer

if TYPE_CHECKING:
    from engineroom.console.rest.routing import Call

#: Largest size of function, arguments and meta together, in bytes.
MAX_JOB = 256 * 1024

_Seconds = Annotated[int, Field(ge=1, le=MAX_SECONDS)]
_Lifetime = Annotated[int, Field(ge=-1, le=MAX_SECONDS)]


class RetryRule(Model):
    """The number of retries of a failed job, and the seconds before each."""

    maximum: Annotated[int, Field(ge=1, le=1000)]
    intervals: Annotated[
        list[Annotated[int, Field(ge=0, le=MAX_SECONDS)]], Field(min_length=1, max_length=100)
    ] = Field(default_factory=lambda: [0])


class JobRequest(Model):
    """A function by its dotted path, with plain arguments. Durations are seconds.

    `serializer` is the one that the queue's workers use. The API writes plain data with either,
    and never reads a pickle.
    """

    function: Annotated[str, Field(min_length=1, max_length=200)]
    args: Annotated[list[Any], Field(max_length=100)] = Field(default_factory=list)
    kwargs: Annotated[dict[str, Any], Field(max_length=100)] = Field(default_factory=dict)
    queue: Annotated[str, Field(min_length=1, max_length=200)]
    timeout: _Seconds = DEFAULT_TIMEOUT
    ttl: _Seconds | None = None
    result_ttl: _Lifetime | None = None
    failure_ttl: _Lifetime | None = None
    priority: Annotated[int, Field(ge=0, le=MAX_PRIORITY)] = 0
    retry: RetryRule | None = None
    serializer: Literal["pickle", "json"] = "pickle"
    description: Annotated[str, Field(min_length=1, max_length=500)] | None = None

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of a ``Task``."""
        retry = self.retry
        return {
            "queue": self.queue,
            "timeout": self.timeout,
            "ttl": self.ttl,
            "result_ttl": self.result_ttl,
            "failure_ttl": self.failure_ttl,
            "priority": self.priority,
            "retry": retry and Retry(retry.maximum, tuple(retry.intervals)),
            "description": self.description,
        }

    def tasks(self, call: Call) -> AsyncTasks:
        """Return a client with the serializer of the queue's workers."""
        serializer = JSONSerializer if self.serializer == "json" else PickleSerializer
        return AsyncTasks(call.services.redis, max_bytes=MAX_JOB, serializer=serializer)
