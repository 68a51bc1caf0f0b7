"""Compilation of a namespace's policies into the parts of one document: pure, of bounded size.

Conflicts follow the Gateway API's order: the older policy has the target, and of two policies of
the same age the one whose ``namespace/name`` comes first. The other policy loses that target, and
is not programmed once it has no target left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from engineroom.api.v1alpha1.ratelimitpolicy import GROUPS
from engineroom.ratelimit.distribution.document import (
    MAX_BYTES,
    MAX_POLICIES,
    CompiledPolicy,
    Target,
    ValueSource,
    canonical,
    decode_source,
    digest,
    part_hash,
    part_of,
)
from engineroom.ratelimit.limits.matching import Condition, Operator
from engineroom.ratelimit.limits.model import (
    Algorithm,
    Distribution,
    DistributionMode,
    Failure,
    FailureMode,
    HeaderStyle,
    Limit,
    MissingKey,
    Mode,
    Policy,
    Rate,
    Response,
    Tier,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from engineroom.api.v1alpha1 import ratelimitpolicy as api

#: Bytes of a document besides its policies.
_FRAME = 1024


@dataclass(frozen=True, slots=True)
class Candidate:
    """One compiled policy, before conflicts with others."""

    name: str
    #: creationTimestamp in RFC 3339 and UTC, which sorts as text.
    created: str
    targets: tuple[Target, ...]
    selector: tuple[tuple[str, str], ...]
    part: Mapping[str, Any]
    hash: str
    #: The canonical text of the part.
    text: str

    @property
    def size(self) -> int:
        """An upper bound of the bytes in the document."""
        return 4 * len(self.text) + 128 if not self.text.isascii() else len(self.text) + 128


class LostTarget(NamedTuple):
    """A target, or the selector (None), that an older policy has."""

    target: Target | None
    #: The name of the older policy.
    owner: str


@dataclass(frozen=True, slots=True)
class CompileResult:
    """The result of the compilation for one policy."""

    #: Digest of the programmed part; "" if the policy is not programmed.
    hash: str
    targets: tuple[Target, ...] = ()
    lost: tuple[LostTarget, ...] = ()
    #: The limit of the document that left no room for the policy.
    refused: Literal["", "count", "bytes"] = ""

    @property
    def programmed(self) -> bool:
        """True if the document contains the policy."""
        return bool(self.hash)


class CompiledNamespace(NamedTuple):
    """The parts of a document with their digests, oldest first, and the result of each policy."""

    parts: tuple[tuple[Mapping[str, Any], str], ...]
    results: Mapping[str, CompileResult]
    #: Canonical texts of parts, by digest.
    texts: Mapping[str, str]


def compile_policy(policy: api.RateLimitPolicy, created: str) -> Candidate:
    """Compile a valid policy. Raises InvalidPolicyError if the library rejects it."""
    spec = policy.spec
    targets = tuple(
        Target(GROUPS[ref.kind], ref.kind.value, ref.name, ref.section_name or "")
        for ref in spec.target_refs
    )
    selector = dict(spec.selector.match_labels) if spec.selector is not None else {}
    compiled = CompiledPolicy(
        policy.namespace, policy.name, library_policy(policy), targets, selector
    )
    return _candidate(compiled.name, created, part_of(compiled))


def last_valid_candidate(part: Mapping[str, Any], created: str) -> Candidate:
    """Return a policy as the document has it, because its spec became invalid."""
    content = {key: value for key, value in part.items() if key not in ("hash", "since")}
    return _candidate(str(content["name"]), created, content)


def _candidate(name: str, created: str, part: Mapping[str, Any]) -> Candidate:
    text = canonical(part)
    return Candidate(
        name,
        created,
        tuple(Target(*target) for target in part.get("targets", ())),
        tuple(sorted(part.get("selector", {}).items())),
        part,
        digest(text),
        text,
    )


def compile_namespace(candidates: Iterable[Candidate]) -> CompiledNamespace:
    """Resolve the conflicts between the policies of one namespace."""
    parts: list[tuple[Mapping[str, Any], str]] = []
    results: dict[str, CompileResult] = {}
    texts: dict[str, str] = {}
    owners: dict[Target, str] = {}
    selectors: dict[tuple[tuple[str, str], ...], str] = {}
    room = MAX_BYTES - _FRAME
    for policy in sorted(candidates, key=lambda policy: (policy.created, policy.name)):
        targets = tuple(target for target in policy.targets if target not in owners)
        lost = [LostTarget(target, owners[target]) for target in policy.targets if target in owners]
        if policy.selector and policy.selector in selectors:
            lost.append(LostTarget(None, selectors[policy.selector]))
        if lost and not targets:
            results[policy.name] = CompileResult("", (), tuple(lost))
            continue
        if len(parts) >= MAX_POLICIES or policy.size > room:
            full: Literal["count", "bytes"] = "count" if len(parts) >= MAX_POLICIES else "bytes"
            results[policy.name] = CompileResult("", (), tuple(lost), full)
            continue
        part, part_digest = policy.part, policy.hash
        texts[part_digest] = policy.text
        if lost:
            part = {**part, "targets": [list(target) for target in targets]}
            part_digest = part_hash(part)
        room -= policy.size
        owners.update(dict.fromkeys(targets, policy.name))
        if policy.selector:
            selectors[policy.selector] = policy.name
        parts.append((part, part_digest))
        results[policy.name] = CompileResult(part_digest, targets, tuple(lost))
    return CompiledNamespace(tuple(parts), results, texts)


def library_policy(policy: api.RateLimitPolicy) -> Policy:
    """Return the policy as enforcers read it."""
    spec = policy.spec
    failure, distribution = spec.failure, spec.distribution
    return Policy(
        f"{policy.namespace}/{policy.name}",
        tuple(_limit(limit) for limit in spec.limits),
        Failure(
            FailureMode(failure.mode.value),
            failure.timeout.seconds,
            failure.breaker.failures,
            failure.breaker.pause.seconds,
        ),
        Distribution(
            DistributionMode(distribution.mode.value),
            distribution.max_lease_fraction,
            distribution.lease_ttl.seconds,
        ),
        Response(spec.response.status, HeaderStyle(spec.response.headers.value)),
        spec.trusted_proxy_hops,
    )


def _limit(limit: api.Limit) -> Limit:
    response = limit.cost.response
    return Limit(
        limit.name,
        _rate(limit.rate),
        limit.burst or 0,
        Algorithm(limit.algorithm.value),
        limit.cost.request,
        Mode(limit.mode.value),
        tuple(_source(source) for source in limit.key),
        MissingKey(limit.missing_key.value),
        _conditions(limit.when),
        tuple(
            Tier(tier.name, _conditions(tier.match), _rate(tier.rate), tier.burst or 0)
            for tier in limit.tiers
        ),
        tuple(_conditions(entry.match) for entry in limit.exempt),
        response.header if response is not None else "",
    )


def _rate(rate: api.Rate) -> Rate:
    return Rate(rate.requests, rate.period.seconds)


def _conditions(matches: Iterable[api.Match]) -> tuple[Condition, ...]:
    return tuple(
        Condition(_source(match), Operator(match.operator.value), tuple(match.values))
        for match in matches
    )


def _source(source: api.Source) -> ValueSource:
    kind = source.source.value
    if kind == "ClientIP":
        return decode_source([kind, source.ipv6_prefix or 64])
    if kind == "APIKey":
        return decode_source([kind, source.name or "X-Api-Key"])
    if kind == "Constant":
        return decode_source([kind, source.value])
    return decode_source([kind, source.name])
