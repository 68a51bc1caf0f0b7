"""One declaration a route: the handler, the check, the document and the matrix all come from it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from engineroom.auth.permissions import Access, Permission, Rule, scope_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from engineroom.auth.permissions import Principal
    from engineroom.console.services import Services

BASE = "/api/v1"
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"

#: Of every parameter in a path: its pattern, its longest, and what it is.
PATH_PARAMETERS: Mapping[str, tuple[str, int, str]] = {
    "namespace": (_LABEL, 63, "Namespace."),
    "pool": (_LABEL, 63, "Name of the WorkerPool."),
    "pod": (r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", 253, "Name of the pod."),
    "queue": (r"[^\s,{}/]+", 200, "Name of the queue."),
    "operation": (r"[0-9a-f]+", 32, "Id of the operation."),
    "job": (r"[A-Za-z0-9_-]+", 200, "Id of the job."),
    "schedule": (r"[A-Za-z0-9_-]+", 160, "Name of the schedule."),
    "transaction": (r"[A-Za-z0-9_-]+", 100, "Id of the transaction."),
    "key": (r"[0-9A-Za-z]+", 16, "Id of the API key; not the key itself."),
    "session": (r"[0-9a-f]+", 16, "Handle of the session; not its id."),
    "subject": (r"[A-Za-z0-9][A-Za-z0-9._:@+-]*", 255, "Whose."),
}


class Model(BaseModel):
    """What the API takes and gives: names in camelCase, nothing unknown."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True
    )


class Nothing(Model):
    """No parameters."""


@dataclass(slots=True)
class Answer:
    """What a handler answers with; ``status`` 0 is the route's own."""

    body: Model | None = None
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    #: For the audit log: what else is to be known of it.
    details: dict[str, str | int | float | bool | None] = field(default_factory=dict)


@dataclass(slots=True)
class Call:
    """One request to a handler, checked as its route says."""

    request: Request
    services: Services
    caller: Principal | None
    path: dict[str, str]
    query: Any
    body: Any
    #: For the audit log, of whatever comes of this: what is known of it before it is tried.
    tried: dict[str, str | int | float | bool | None] = field(default_factory=dict)

    @property
    def principal(self) -> Principal:
        """Who asks; there is always somebody where the route is not public."""
        assert self.caller is not None  # noqa: S101 - the pipeline has looked
        return self.caller

    @property
    def namespace(self) -> str:
        """The namespace in the path."""
        return self.path["namespace"]

    @property
    def address(self) -> str:
        """Where the request came from."""
        return self.services.address(self.request)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route. There is none without ``needs``: a permission, or an Access said out loud.

    ``action`` names the change in the audit log; reads have none. ``secret``: the answer holds what
    is shown once, so it is not kept for a repeated request. ``cost`` is what the rate limit counts.
    """

    method: str
    path: str
    needs: Permission | Access
    handler: Callable[[Call], Awaitable[Answer | Response]]
    summary: str
    tag: str
    body: type[Model] | None = None
    query: type[Model] = Nothing
    answer: type[Model] | None = None
    status: int = 200
    media: str = "application/json"
    action: str = ""
    cost: int = 1
    secret: bool = False
    conditional: bool = False
    errors: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        where = f"{self.method} {self.path}"
        if not isinstance(self.needs, Permission | Access):
            raise TypeError(f"{where}: needs no permission; write one, or an Access")
        if isinstance(self.needs, Permission):
            named = "namespace" in self.parameters
            if (scope_of(self.needs) == "namespace") is not named:
                raise TypeError(f"{where}: {self.needs} and the path differ about a namespace")
        unknown = sorted(set(self.parameters) - set(PATH_PARAMETERS))
        if unknown:
            raise TypeError(f"{where}: {unknown[0]} is no known parameter of a path")
        if self.changes and not self.action:
            raise TypeError(f"{where}: changes something and has no action for the audit log")

    @property
    def changes(self) -> bool:
        """Whether it does more than read."""
        return self.method != "GET"

    @property
    def parameters(self) -> list[str]:
        """The names of the parameters in its path."""
        return re.findall(r"{(\w+)}", self.path)

    @property
    def rule(self) -> Rule:
        """For the matrix of routes and roles."""
        return Rule(self.method, self.path, self.needs)
