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
        description="API group of the kind; absent: the one of the kind.",
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
        description=(
            "A part of the object: a listener, a rule or a port by name. Absent: the whole object."
        ),
    )


class Selector(Model):
    """Applications that enforce the policy themselves, selected by their labels."""

    match_labels: dict[str, str] = Field(
        min_length=1,
        max_length=16,
        description="An application follows the oldest policy whose labels it all has.",
    )


class Rate(Model):
    """A number of requests in each period."""

    requests: int = Field(ge=1, le=1_000_000_000, description="Requests in each period.")
    period: Duration = Field(
        description=("Length of the period, from 1ms to 366d; at most one request per microsecond.")
    )


class Source(Model):
    """A part of a request."""

    source: SourceKind = Field(
        description=(
            "Header, Query, Cookie, JWTClaim, APIKey, ClientIP, Tenant, Route, Method, "
            "Path or Constant. The enforcer supplies Tenant, Route and JWTClaim; they "
            "are never unverified data of the request."
        )
    )
    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        pattern=r"^[^\s,;=\"]+$",
        description=(
            "Name of the header, parameter, cookie or claim; with APIKey the header [X-Api-Key]."
        ),
    )
    value: str | None = Field(
        default=None, min_length=1, max_length=256, description="The value, for Constant."
    )
    ipv6_prefix: int | None = Field(
        default=None,
        ge=1,
        le=128,
        alias="ipv6Prefix",
        description="Prefix length that counts as one IPv6 client [64], for ClientIP.",
    )


class Match(Source):
    """A condition on a part of a request."""

    operator: ConditionOperator = Field(
        default=ConditionOperator.IN,
        description=(
            "In, NotIn (also if the part is missing), StartsWith, InNetwork, Exists or "
            "DoesNotExist."
        ),
    )
    values: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(
        default_factory=list,
        max_length=64,
        description="Values to compare with; for InNetwork networks such as 10.0.0.0/8.",
    )


class Tier(Model):
    """Another rate for some requests, which are counted separately."""

    name: str = Field(pattern=_NAME, min_length=1, max_length=63, description="Name of the tier.")
    match: list[Match] = Field(
        min_length=1,
        max_length=16,
        description="Conditions that must all be met; the first tier that matches applies.",
    )
    rate: Rate = Field(description="The rate of this tier.")
    burst: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000,
        description="Size of a full bucket of this tier [rate.requests].",
    )


class Exemption(Model):
    """Requests to which a limit does not apply."""

    match: list[Match] = Field(
        min_length=1, max_length=16, description="Conditions that must all be met."
    )


class ResponseCost(Model):
    """Cost that the application reports in its response."""

    header: str = Field(
        min_length=1,
        max_length=256,
        pattern=r"^[^\s,;=\"]+$",
        description=("Response header that contains the number of further tokens, a whole number."),
    )


class Cost(Model):
    """Tokens that a request takes."""

    request: int = Field(
        default=1,
        ge=1,
        le=1_000_000_000,
        description="Tokens taken before the request is admitted.",
    )
    response: ResponseCost | None = Field(
        default=None,
        description="Tokens taken after the response; the bucket falls at most to empty.",
    )


class Limit(Model):
    """One limit. A request that one limit of a policy refuses takes tokens from none of them."""

    name: str = Field(pattern=_NAME, min_length=1, max_length=63, description="Name of the limit.")
    rate: Rate = Field(description="Number of requests per period.")
    burst: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000,
        description="Size of a full bucket [rate.requests]; TokenBucket only.",
    )
    algorithm: Algorithm = Field(
        default=Algorithm.TOKEN_BUCKET,
        description=(
            "TokenBucket: a burst, then an even rate. SlidingWindow: at most requests "
            "in any window of a period. FixedWindow: at most requests from tick to "
            "tick, up to twice as many around a tick."
        ),
    )
    key: list[Source] = Field(
        default_factory=list,
        max_length=8,
        description=(
            "Parts of a request that select its bucket. Empty: one bucket for all requests."
        ),
    )
    missing_key: MissingKey = Field(
        default=MissingKey.SHARED,
        description=(
            "A request without a part of the key is not limited (Skip), shares one "
            "bucket with all such requests (Shared), or is refused (Deny)."
        ),
    )
    when: list[Match] = Field(
        default_factory=list,
        max_length=16,
        description="The limit applies only to requests that meet all these conditions.",
    )
    cost: Cost = Field(default=Cost(), description="Tokens that a request takes.")
    mode: LimitMode = Field(
        default=LimitMode.ENFORCE, description="Enforce, or Shadow: only report refusals."
    )
    tiers: list[Tier] = Field(
        default_factory=list,
        max_length=16,
        description="Other rates for some requests; the first tier that matches applies.",
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
        description=(
            "Strict: Redis decides each request. Leased: enforcers take tokens in advance."
        ),
    )
    max_lease_fraction: str = Field(
        default="0.1",
        pattern=r"^(0?\.[0-9]{1,9}|1(\.0{1,9})?)$",
        max_length=12,
        description=(
            "Largest fraction of the burst that may be leased; a number such as 0.1, in quotes."
        ),
    )
    lease_ttl: Duration = Field(
        default=Duration("500ms"),
        alias="leaseTTL",
        description="Lifetime of a lease, 1ms to 1m.",
    )


class Breaker(Model):
    """Circuit breaker of the connection to Redis."""

    failures: int = Field(
        default=5, ge=1, le=1000, description="Consecutive failures until Redis is not called."
    )
    pause: Duration = Field(
        default=Duration("1s"), description="Time for which Redis is not called, 1ms to 10s."
    )


class Failure(Model):
    """Behaviour while Redis does not decide in time."""

    mode: FailureMode = Field(
        default=FailureMode.LOCAL,
        description="Local: enforcers split the rate. Open: admit, and count. Closed: 503.",
    )
    timeout: Duration = Field(
        default=Duration("20ms"),
        description="Longest time that a decision waits for Redis, 1ms to 10s.",
    )
    breaker: Breaker = Field(default=Breaker(), description="Circuit breaker for Redis.")


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
        default=None, description="Applications that enforce the policy with the middleware."
    )
    limits: list[Limit] = Field(
        min_length=1,
        max_length=64,
        description="The limits; a request is admitted by all of them or consumes nothing.",
        json_schema_extra=_BY_NAME,
    )
    distribution: Distribution = Field(
        default=Distribution(), description="Where decisions are made."
    )
    failure: Failure = Field(default=Failure(), description="Behaviour while Redis is unavailable.")
    response: Response = Field(default=Response(), description="Responses to clients.")
    trusted_proxy_hops: int = Field(
        default=0,
        ge=0,
        le=32,
        description=(
            "Number of proxies in front that append to X-Forwarded-For; with 0 the "
            "header is not read."
        ),
    )
    redis: RedisConnection | None = Field(
        default=None, description="Redis that holds the buckets. Absent: the chart's own Redis."
    )


class AncestorRef(Model):
    """An object that the policy is attached to."""

    group: str = Field(default="", description="API group.")
    kind: str = Field(description="Kind.")
    name: str = Field(description="Name.")
    section_name: str | None = Field(default=None, description="Part of the object.")


class Ancestor(Model):
    """Conditions of the policy at one target."""

    ancestor_ref: AncestorRef = Field(description="The target.")
    controller_name: str = Field(
        description="Controller that wrote this: engineroom.dev/controller."
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Accepted.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class Enforcers(Model):
    """Counts of the processes that enforce the policy."""

    ready: int = Field(
        default=0, description="Enforcers that have acknowledged the present content."
    )
    total: int = Field(
        default=0,
        description=(
            "Live enforcers: decision services for targetRefs, applications with "
            "matching labels for a selector."
        ),
    )
    config_hash: str = Field(default="", description="Digest of the compiled policy.")
    since: str | None = Field(
        default=None,
        description=(
            "Time since which all of them have the present content; absent while "
            "Enforced is not True."
        ),
        json_schema_extra={"format": "date-time"},
    )
    without_redis: int | None = Field(
        default=None,
        description="Decisions without Redis, by spec.failure; reset after a day without any.",
    )


class RateLimitPolicyStatus(Model):
    """State of the policy: targets, enforcers and conditions."""

    observed_generation: int = Field(
        default=0,
        description=(
            "Generation of the spec that this status describes; -1 before the operator wrote one."
        ),
    )
    enforcers: Enforcers | None = Field(
        default=None, description="Processes that enforce the policy."
    )
    ancestors: list[Ancestor] = Field(
        default_factory=list,
        max_length=16,
        description="State of the policy for each target.",
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        description=(
            "Accepted: valid and without conflict. Programmed: in the document that "
            "enforcers follow. Enforced: every live enforcer has acknowledged it. "
            "Degraded: some recent decisions were made without Redis. Ready, "
            "Reconciling, Stalled: as in kstatus."
        ),
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class RateLimitPolicy(Model):
    """Limits on the number of requests, across all replicas, enforced in the application or in
    front of it."""

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
