"""Routes: handler, permission check, OpenAPI document and tests are derived from a declaration."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from engineroom.api import kinds
from engineroom.auth.permissions import Access, Permission, RouteRule, scope_of
from engineroom.console.idempotency import HEADER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from engineroom.api.kinds import Kind
    from engineroom.auth.permissions import Principal
    from engineroom.console.services import Services

BASE = "/api/v1"
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_SUBDOMAIN = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"


def kind_parameter(kind: Kind) -> str:
    """Return the name of the path parameter that names an object of the kind."""
    return kind.noun.replace("-", "_")


_KIND_PARAMETERS = {
    kind_parameter(kind): (_SUBDOMAIN, 253, f"Name of the {kind.kind}.")
    for kind in kinds.registry()
}

#: Path parameters: pattern, maximum length, description.
PATH_PARAMETERS: Mapping[str, tuple[str, int, str]] = {
    **_KIND_PARAMETERS,
    "namespace": (_LABEL, 63, "Namespace."),
    "pool": (_LABEL, 63, "Name of the WorkerPool."),
    "pod": (_SUBDOMAIN, 253, "Name of the pod."),
    "queue": (r"[^\s,{}/]+", 200, "Name of the queue."),
    "operation": (r"[0-9a-f]+", 32, "Id of the operation."),
    "job": (r"[A-Za-z0-9_-]+", 200, "Id of the job."),
    "schedule": (r"[A-Za-z0-9_-]+", 160, "Name of the schedule."),
    "transaction": (r"[A-Za-z0-9_-]+", 100, "Id of the transaction."),
    "key": (r"[0-9A-Za-z]+", 16, "Id of the API key; not the key itself."),
    "session": (r"[0-9a-f]+", 16, "Handle of the session; not its id."),
    "subject": (r"[A-Za-z0-9][A-Za-z0-9._:@+-]*", 255, "The user."),
}


class Model(BaseModel):
    """Base of request and response bodies: camelCase names, unknown fields are refused."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True
    )


class NoParameters(Model):
    """A query without parameters."""


@dataclass(slots=True)
class Answer:
    """The result of a handler; ``status`` 0 stands for the route's own."""

    body: Model | None = None
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    #: Details for the audit log.
    details: dict[str, str | int | float | bool | None] = field(default_factory=dict)


@dataclass(slots=True)
class Call:
    """One validated request to a handler."""

    request: Request
    services: Services
    caller: Principal | None
    path: dict[str, str]
    query: Any
    body: Any
    #: Details for the audit log that hold whether the request succeeds or fails.
    attempted: dict[str, str | int | float | bool | None] = field(default_factory=dict)

    @property
    def principal(self) -> Principal:
        """The caller; set on all routes that are not public."""
        assert self.caller is not None  # noqa: S101 - the pipeline checks it
        return self.caller

    @property
    def namespace(self) -> str:
        """The namespace in the path."""
        return self.path["namespace"]

    @property
    def address(self) -> str:
        """The client's IP address."""
        return self.services.address(self.request)

    @property
    def idempotent_id(self) -> str | None:
        """An id for what the request creates, equal for its repetitions; None without a key.

        A handler recognizes by it what an earlier attempt created even if the response was lost
        with the process.
        """
        key = self.request.headers.get(HEADER)
        if key is None:
            return None
        body = None if self.body is None else self.body.model_dump_json()
        content = [
            self.principal.subject, self.path.get("namespace"), self.request.url.path, key, body,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route. ``needs`` is mandatory: a permission, or an explicit ``Access``.

    ``action`` names the change in the audit log; reads have none. ``secret``: the response holds a
    secret and is not stored for repetitions. ``cost`` is the number that the rate limit counts.
    """

    method: str
    path: str
    needs: Permission | Access
    handler: Callable[[Call], Awaitable[Answer | Response]]
    summary: str
    tag: str
    body: type[Model] | None = None
    query: type[Model] = NoParameters
    answer: type[Model] | None = None
    status: int = 200
    media: str = "application/json"
    action: str = ""
    cost: int = 1
    secret: bool = False
    conditional: bool = False
    errors: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        route = f"{self.method} {self.path}"
        if not isinstance(self.needs, Permission | Access):
            raise TypeError(f"{route}: has no permission; set one, or an Access")
        if isinstance(self.needs, Permission):
            namespaced = "namespace" in self.parameters
            if (scope_of(self.needs) == "namespace") is not namespaced:
                raise TypeError(f"{route}: {self.needs} and the path disagree about a namespace")
        unknown = sorted(set(self.parameters) - set(PATH_PARAMETERS))
        if unknown:
            raise TypeError(f"{route}: {unknown[0]} is not in PATH_PARAMETERS")
        if self.changes and not self.action:
            raise TypeError(f"{route}: is a change without an action for the audit log")

    @property
    def changes(self) -> bool:
        """True for every method except GET."""
        return self.method != "GET"

    @property
    def parameters(self) -> list[str]:
        """Names of the path parameters."""
        return re.findall(r"{(\w+)}", self.path)

    @property
    def rule(self) -> RouteRule:
        """The rule of this route for tests of routes and roles."""
        return RouteRule(self.method, self.path, self.needs)
