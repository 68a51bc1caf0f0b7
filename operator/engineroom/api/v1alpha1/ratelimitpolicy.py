"""RateLimitPolicy: limits of requests, in the application and in front of it.

The descriptions are what ``kubectl explain`` shows; the CRD is generated from this module.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from engineroom.api.v1alpha1.types import Condition, Duration, Model
from engineroom.api.v1alpha1.workerpool import RedisConnection  # noqa: TC001 - pydantic reads it

#: A list whose items are identified by their name.
_BY_NAME: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"


class TargetKind(StrEnum):
    """Kinds of objects that a policy can be attached to."""

    GATEWAY = "Gateway"
    HTTP_ROUTE = "HTTPRoute"
    GRPC_ROUTE = "GRPCRoute"
    SERVICE = "Service"
    INGRESS = "Ingress"


#: The API group of each kind of target.
GROUPS = {
    TargetKind.GATEWAY: "gateway.networking.k8s.io",
    TargetKind.HTTP_ROUTE: "gateway.networking.k8s.io",
    TargetKind.GRPC_ROUTE: "gateway.networking.k8s.io",
    TargetKind.SERVICE: "",
    TargetKind.INGRESS: "networking.k8s.io",
}


class SourceKind(StrEnum):
    """Parts of a request that keys and conditions can use."""

    HEADER = "Header"
    QUERY = "Query"
    COOKIE = "Cookie"
    JWT_CLAIM = "JWTClaim"
    API_KEY = "APIKey"
    CLIENT_IP = "ClientIP"
    TENANT = "Tenant"
    ROUTE = "Route"
    METHOD = "Method"
    PATH = "Path"
    CONSTANT = "Constant"


class Algorithm(StrEnum):
    """Algorithm of a limit."""

    TOKEN_BUCKET = "TokenBucket"  # noqa: S105 # nosec B105 - no password
    SLIDING_WINDOW = "SlidingWindow"
    FIXED_WINDOW = "FixedWindow"


class MissingKey(StrEnum):
    """Treatment of a request that lacks a part of the key."""

    SKIP = "Skip"
    SHARED = "Shared"
    DENY = "Deny"


class LimitMode(StrEnum):
    """Effect of a limit that is reached."""

    ENFORCE = "Enforce"
    SHADOW = "Shadow"


class ConditionOperator(StrEnum):
    """Comparison of a condition."""

    IN = "In"
    NOT_IN = "NotIn"
    STARTS_WITH = "StartsWith"
    IN_NETWORK = "InNetwork"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class DistributionMode(StrEnum):
    """Place where requests are admitted: in Redis, or ahead by leases."""

    STRICT = "Strict"
    LEASED = "Leased"


class FailureMode(StrEnum):
    """Treatment of requests while Redis does not decide in time."""

    OPEN = "Open"
    CLOSED = "Closed"
    LOCAL = "Local"


class HeaderStyle(StrEnum):
    """Headers of a response that give limit and remaining requests."""

    NONE = "None"
    DRAFT = "Draft"
    X_RATE_LIMIT = "XRateLimit"


class TargetRef(Model):
    """An object in the same namespace that the policy is attached to."""

    group: str | None = Field(
        default=None,
        max_length=253,
        description="API group of the kind; filled in by kind where it is left out.",
    )
    kind: TargetKind = Field(description="Gateway, HTTPRoute, GRPCRoute, Service or Ingress.")
    name: str = Field(
        pattern=_NAME, min_length=1, max_length=253, description="Name of the object."
    )
    section_name: str | None = Field(
        default=None,
        pattern=_NAME,
        min_length=1,
        max_length=253,
        description="A part of it: a listener, a rule or a port by name. Absent: all of it.",
    )


class Selector(Model):
    """Applications that enforce the policy themselves, selected by their labels."""

    match_labels: dict[str, str] = Field(
        min_length=1,
        max_length=16,
        description="An application follows the oldest policy all of whose labels it has.",
    )


class Rate(Model):
    """A number of requests in each period."""

    requests: int = Field(ge=1, le=1_000_000_000, description="Requests in each period.")
    period: Duration = Field(
        description="The period, from 1ms to 366d; at most one request a microsecond."
    )


class Source(Model):
    """A part of a request."""

    source: SourceKind = Field(
        description="Header, Query, Cookie, JWTClaim, APIKey, ClientIP, Tenant, Route, Method, "
        "Path or Constant. Tenant, Route and JWTClaim are what the enforcer knows, never what a "
        "request claims unchecked."
    )
    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        pattern=r"^[^\s,;=\"]+$",
        description="Of the header, parameter, cookie or claim; with APIKey of the header "
        "[X-Api-Key].",
    )
    value: str | None = Field(
        default=None, min_length=1, max_length=256, description="The value, with Constant."
    )
    ipv6_prefix: int | None = Field(
        default=None,
        ge=1,
        le=128,
        alias="ipv6Prefix",
        description="Bits of an IPv6 address that one client has [64], with ClientIP.",
    )


class Match(Source):
    """A condition on a part of a request."""

    operator: ConditionOperator = Field(
        default=ConditionOperator.IN,
        description="In, NotIn (also where the part is missing), StartsWith, InNetwork, Exists or "
        "DoesNotExist.",
    )
    values: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(
        default_factory=list,
        max_length=64,
        description="What it is compared with; networks as 10.0.0.0/8 with InNetwork.",
    )


class Tier(Model):
    """Another rate for some requests, which are counted separately."""

    name: str = Field(pattern=_NAME, min_length=1, max_length=63, description="Name of the tier.")
    match: list[Match] = Field(
        min_length=1, max_length=16, description="All of it has to hold; the first tier counts."
    )
    rate: Rate = Field(description="The rate of this tier.")
    burst: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000,
        description="What a full bucket of this tier holds [rate.requests].",
    )


class Exemption(Model):
    """Requests to which a limit does not apply."""

    match: list[Match] = Field(min_length=1, max_length=16, description="All of it has to hold.")


class ResponseCost(Model):
    """Cost that the application reports in its response."""

    header: str = Field(
        min_length=1,
        max_length=256,
        pattern=r"^[^\s,;=\"]+$",
        description="Response header with a whole number of further tokens that the request took.",
    )


class Cost(Model):
    """Tokens that a request takes."""

    request: int = Field(
        default=1, ge=1, le=1_000_000_000, description="Tokens taken before it is admitted."
    )
    response: ResponseCost | None = Field(
        default=None,
        description="Tokens taken after it was answered; the bucket is then empty at most.",
    )


class Limit(Model):
    """One limit. A request that one limit of a policy refuses takes tokens from none of them."""

    name: str = Field(pattern=_NAME, min_length=1, max_length=63, description="Name of the limit.")
    rate: Rate = Field(description="How many requests in which time.")
    burst: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000,
        description="What a full bucket holds [rate.requests]; TokenBucket only.",
    )
    algorithm: Algorithm = Field(
        default=Algorithm.TOKEN_BUCKET,
        description="TokenBucket: a burst, then evenly. SlidingWindow: at most requests in any "
        "window of a period. FixedWindow: from tick to tick, twice as many around a tick.",
    )
    key: list[Source] = Field(
        default_factory=list,
        max_length=8,
        description="By which parts of a request it counts. Empty: all requests together.",
    )
    missing_key: MissingKey = Field(
        default=MissingKey.SHARED,
        description="A request without a part of the key is not limited (Skip), shares one bucket "
        "with its like (Shared), or is refused (Deny).",
    )
    when: list[Match] = Field(
        default_factory=list,
        max_length=16,
        description="The limit applies to requests of which all of this holds.",
    )
    cost: Cost = Field(default=Cost(), description="What a request takes.")
    mode: LimitMode = Field(
        default=LimitMode.ENFORCE, description="Enforce, or Shadow: only says it would refuse."
    )
    tiers: list[Tier] = Field(
        default_factory=list,
        max_length=16,
        description="Other rates for some requests; the first that matches counts.",
        json_schema_extra=_BY_NAME,
    )
    exempt: list[Exemption] = Field(
        default_factory=list,
        max_length=16,
        description="Requests to which the limit does not apply.",
    )


class Distribution(Model):
    """Leases of tokens that enforcers take ahead."""

    mode: DistributionMode = Field(
        default=DistributionMode.STRICT,
        description="Strict: Redis decides each request. Leased: enforcers take tokens ahead.",
    )
    max_lease_fraction: str = Field(
        default="0.1",
        pattern=r"^(0?\.[0-9]{1,9}|1(\.0{1,9})?)$",
        max_length=12,
        description="Of the burst, what may be out on lease; a ratio such as 0.1, in quotes.",
    )
    lease_ttl: Duration = Field(
        default=Duration("500ms"),
        alias="leaseTTL",
        description="How long a lease lasts, 1ms to 1m.",
    )


class Breaker(Model):
    """Circuit breaker of the connection to Redis."""

    failures: int = Field(
        default=5, ge=1, le=1000, description="Failures in a row until it is left alone."
    )
    pause: Duration = Field(
        default=Duration("1s"), description="How long it is left alone, 1ms to 10s."
    )


class Failure(Model):
    """Behaviour while Redis does not decide in time."""

    mode: FailureMode = Field(
        default=FailureMode.LOCAL,
        description="Local: enforcers share the rate. Open: admit, and count. Closed: 503.",
    )
    timeout: Duration = Field(
        default=Duration("20ms"), description="How long a decision waits for Redis, 1ms to 10s."
    )
    breaker: Breaker = Field(default=Breaker(), description="When Redis is left alone.")


class Response(Model):
    """Status and headers of responses."""

    status: int = Field(default=429, ge=400, le=599, description="HTTP status of a refusal.")
    headers: HeaderStyle = Field(
        default=HeaderStyle.DRAFT,
        description="None, Draft (RateLimit, RateLimit-Policy of the IETF) or XRateLimit.",
    )


class RateLimitPolicySpec(Model):
    """Limits, and the places that enforce them."""

    target_refs: list[TargetRef] = Field(
        default_factory=list,
        max_length=16,
        description="Objects whose requests are limited in front of the application.",
    )
    selector: Selector | None = Field(
        default=None, description="Applications that enforce it with the middleware instead."
    )
    limits: list[Limit] = Field(
        min_length=1,
        max_length=64,
        description="The limits; a request is admitted by all of them or consumes nothing.",
        json_schema_extra=_BY_NAME,
    )
    distribution: Distribution = Field(
        default=Distribution(), description="Whether tokens are taken ahead."
    )
    failure: Failure = Field(default=Failure(), description="When Redis does not decide.")
    response: Response = Field(default=Response(), description="What is answered.")
    trusted_proxy_hops: int = Field(
        default=0,
        ge=0,
        le=32,
        description="Proxies in front that append to X-Forwarded-For; 0 does not read it.",
    )
    redis: RedisConnection | None = Field(
        default=None, description="Where it is counted. Absent: the chart's own Redis."
    )


class AncestorRef(Model):
    """An object that the policy is attached to."""

    group: str = Field(default="", description="API group.")
    kind: str = Field(description="Kind.")
    name: str = Field(description="Name.")
    section_name: str | None = Field(default=None, description="Part of it.")


class Ancestor(Model):
    """Conditions of the policy at one target."""

    ancestor_ref: AncestorRef = Field(description="The target.")
    controller_name: str = Field(description="Who says so: engineroom.dev/controller.")
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Accepted.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class Enforcers(Model):
    """Counts of the processes that enforce the policy."""

    ready: int = Field(default=0, description="Enforcers that acknowledged this very content.")
    total: int = Field(
        default=0,
        description="Enforcers that are alive: decision services for targetRefs, applications that "
        "follow it by their labels for a selector.",
    )
    config_hash: str = Field(default="", description="Digest of what the policy was compiled to.")
    since: str | None = Field(
        default=None,
        description="Since when all of them have this very content; absent while Enforced is not "
        "True.",
        json_schema_extra={"format": "date-time"},
    )
    without_redis: int | None = Field(
        default=None,
        description="Decisions that were made without Redis, as spec.failure says, because it did "
        "not decide in time; since there was none for a day.",
    )


class RateLimitPolicyStatus(Model):
    """State of the policy: targets, enforcers and conditions."""

    observed_generation: int = Field(
        default=0,
        description="Generation that this status is about; -1 before the operator wrote one.",
    )
    enforcers: Enforcers | None = Field(default=None, description="Who enforces it.")
    ancestors: list[Ancestor] = Field(
        default_factory=list,
        max_length=16,
        description="What became of it at each target.",
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Accepted: valid, with targets of its own. Programmed: in the document that "
        "enforcers follow. Enforced: every live enforcer acknowledged it. Degraded: Redis did not "
        "decide in time of late. Ready, Reconciling, Stalled: as kstatus has them.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class RateLimitPolicy(Model):
    """Limits of requests that hold across every replica, in the application and in front of it."""

    api_version: Annotated[str, Field(pattern=r"^engineroom\.dev/v1alpha1$")]
    kind: Annotated[str, Field(pattern=r"^RateLimitPolicy$")]
    metadata: dict[str, Any] = Field(json_schema_extra={"type": "object"})
    spec: RateLimitPolicySpec = Field(description="Limits, and the places that enforce them.")
    status: dict[str, Any] | None = Field(default=None, description="State of the policy.")

    @property
    def name(self) -> str:
        """The object's name."""
        return str(self.metadata["name"])

    @property
    def namespace(self) -> str:
        """The object's namespace."""
        return str(self.metadata.get("namespace") or "")
