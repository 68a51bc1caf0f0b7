"""From the policies of a namespace to the parts of one document: pure, and of bounded size.

Where two policies want the same thing the Gateway API's order decides: the older one has it, of two
of one age the one whose ``namespace/name`` comes first. The other loses that target, and all of it
when no target is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from engineroom.api.v1alpha1.ratelimitpolicy import GROUPS
from engineroom.ratelimit.distribution.document import (
    MAX_BYTES,
    MAX_POLICIES,
    CompiledPolicy,
    Source,
    Target,
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

#: What of a document is not policies, bytes.
_FRAME = 1024


@dataclass(frozen=True, slots=True)
class Candidate:
    """One policy by itself, compiled."""

    name: str
    #: creationTimestamp, RFC 3339 in UTC: compares as text.
    created: str
    targets: tuple[Target, ...]
    selector: tuple[tuple[str, str], ...]
    part: Mapping[str, Any]
    hash: str
    #: The part as it stands in the document.
    text: str

    @property
    def size(self) -> int:
        """Bytes of the document, at most."""
        return 4 * len(self.text) + 128 if not self.text.isascii() else len(self.text) + 128


class Lost(NamedTuple):
    """A target, or the selector (None), that another policy has."""

    target: Target | None
    to: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one policy."""

    #: Digest of what is programmed; "" when nothing of it is.
    hash: str
    targets: tuple[Target, ...] = ()
    lost: tuple[Lost, ...] = ()
    #: The document holds no more.
    refused: Literal["", "count", "bytes"] = ""

    @property
    def programmed(self) -> bool:
        """Whether enforcers are told of it."""
        return bool(self.hash)


class Compiled(NamedTuple):
    """The parts of a document with their digests, oldest first, and each policy's verdict."""

    parts: tuple[tuple[Mapping[str, Any], str], ...]
    verdicts: Mapping[str, Verdict]
    #: Canonical text of parts by digest, as far as it is at hand.
    texts: Mapping[str, str]


def candidate(policy: api.RateLimitPolicy, created: str) -> Candidate:
    """A valid policy, compiled. Raises InvalidPolicyError where the library disagrees."""
    spec = policy.spec
    targets = tuple(
        Target(GROUPS[each.kind], each.kind.value, each.name, each.section_name or "")
        for each in spec.target_refs
    )
    selector = dict(spec.selector.match_labels) if spec.selector is not None else {}
    made = CompiledPolicy(policy.namespace, policy.name, library_policy(policy), targets, selector)
    return _candidate(made.name, created, part_of(made))


def standing_candidate(part: Mapping[str, Any], created: str) -> Candidate:
    """What a document holds of a policy that has become invalid since: it goes on as it was."""
    kept = {key: value for key, value in part.items() if key not in ("hash", "since")}
    return _candidate(str(kept["name"]), created, kept)


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


def compile_all(candidates: Iterable[Candidate]) -> Compiled:
    """Everything of one namespace at once."""
    parts: list[tuple[Mapping[str, Any], str]] = []
    verdicts: dict[str, Verdict] = {}
    texts: dict[str, str] = {}
    owners: dict[Target, str] = {}
    selectors: dict[tuple[tuple[str, str], ...], str] = {}
    room = MAX_BYTES - _FRAME
    for each in sorted(candidates, key=lambda one: (one.created, one.name)):
        won = tuple(target for target in each.targets if target not in owners)
        lost = [Lost(target, owners[target]) for target in each.targets if target in owners]
        if each.selector and each.selector in selectors:
            lost.append(Lost(None, selectors[each.selector]))
        if lost and not won:
            verdicts[each.name] = Verdict("", (), tuple(lost))
            continue
        if len(parts) >= MAX_POLICIES or each.size > room:
            full: Literal["count", "bytes"] = "count" if len(parts) >= MAX_POLICIES else "bytes"
            verdicts[each.name] = Verdict("", (), tuple(lost), full)
            continue
        part, its_hash = each.part, each.hash
        texts[its_hash] = each.text
        if lost:
            part = {**part, "targets": [list(target) for target in won]}
            its_hash = part_hash(part)
        room -= each.size
        owners.update(dict.fromkeys(won, each.name))
        if each.selector:
            selectors[each.selector] = each.name
        parts.append((part, its_hash))
        verdicts[each.name] = Verdict(its_hash, won, tuple(lost))
    return Compiled(tuple(parts), verdicts, texts)


def library_policy(policy: api.RateLimitPolicy) -> Policy:
    """The policy as enforcers have it."""
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
        tuple(_conditions(each.match) for each in limit.exempt),
        response.header if response is not None else "",
    )


def _rate(rate: api.Rate) -> Rate:
    return Rate(rate.requests, rate.period.seconds)


def _conditions(matches: Iterable[api.Match]) -> tuple[Condition, ...]:
    return tuple(
        Condition(_source(each), Operator(each.operator.value), tuple(each.values))
        for each in matches
    )


def _source(source: api.Source) -> Source:
    kind = source.source.value
    if kind == "ClientIP":
        return decode_source([kind, source.ipv6_prefix or 64])
    if kind == "APIKey":
        return decode_source([kind, source.name or "X-Api-Key"])
    if kind == "Constant":
        return decode_source([kind, source.value])
    return decode_source([kind, source.name])
