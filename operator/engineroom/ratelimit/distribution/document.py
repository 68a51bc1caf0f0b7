"""The compiled policies of a namespace as one document: what the controller writes into Redis and
enforcers read. Pure: no Redis, no clock.

The text is canonical: the same policies make the same bytes, whose digest enforcers acknowledge. A
``revision`` grows with every document; each policy carries the one in which its content came
(``since``), so that an enforcer that has a later one has that policy. Revisions compare within one
``lineage`` only: a Redis that lost the document begins a new one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engineroom.core.errors import Problem
from engineroom.ratelimit.limits.errors import InvalidPolicyError, UnreadableDocumentError
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
from engineroom.ratelimit.limits.sources import (
    APIKey,
    ClientIP,
    Constant,
    Cookie,
    Header,
    JWTClaim,
    Method,
    Path,
    Query,
    RequestView,
    Route,
    Tenant,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Source = Callable[[RequestView], str | None]

#: Version of the document; a reader of another one keeps what it has.
FORMAT = 1
#: Largest document (bytes) and most policies in it.
MAX_BYTES = 8 * 1024 * 1024
MAX_POLICIES = 4096


class Target(NamedTuple):
    """What a policy is attached to; ``section`` names a part of it, such as a listener."""

    group: str
    kind: str
    name: str
    section: str = ""


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """One policy as enforcers have it."""

    namespace: str
    name: str
    #: ``policy.name`` is ``namespace/name``.
    policy: Policy
    #: The targets that it has won; see the Gateway API's order of conflicts.
    targets: tuple[Target, ...] = ()
    #: Labels of the applications that enforce it; empty: found by targets or by name only.
    selector: Mapping[str, str] = field(default_factory=dict)
    #: Digest of all of the above, and the revision in which that came.
    hash: str = ""
    since: int = 0


@dataclass(frozen=True, slots=True)
class Policies:
    """All policies of a namespace at one moment, in the Gateway API's order, oldest first."""

    namespace: str = ""
    hash: str = ""
    revision: int = 0
    lineage: str = ""
    entries: tuple[CompiledPolicy, ...] = ()
    _by_name: Mapping[str, CompiledPolicy] = field(init=False, repr=False, compare=False)
    _by_target: Mapping[tuple[str, str, str], CompiledPolicy] = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        by_target: dict[tuple[str, str, str], CompiledPolicy] = {}
        for entry in self.entries:
            for target in entry.targets:
                by_target.setdefault((target.kind, target.name, target.section), entry)
        by_name = {entry.name: entry for entry in self.entries}
        object.__setattr__(self, "_by_name", MappingProxyType(by_name))
        object.__setattr__(self, "_by_target", MappingProxyType(by_target))

    def get(self, name: str) -> CompiledPolicy | None:
        """The policy of that name, without its namespace."""
        return self._by_name.get(name)

    def for_target(self, kind: str, name: str, section: str = "") -> CompiledPolicy | None:
        """The policy attached to an object: to the section of it, else to the whole."""
        found = self._by_target.get((kind, name, section)) if section else None
        return found or self._by_target.get((kind, name, ""))

    def for_labels(self, labels: Mapping[str, str]) -> CompiledPolicy | None:
        """The oldest policy whose selector an application's labels have."""
        for entry in self.entries:
            wanted = entry.selector
            if wanted and all(labels.get(key) == value for key, value in wanted.items()):
                return entry
        return None


#: Of an enforcer that knows no policies.
NOTHING: Final = Policies()


# -- writing ------------------------------------------------------------------------------------


class Text(NamedTuple):
    """A document as it stands in Redis."""

    text: str
    hash: str
    revision: int
    lineage: str
    #: Of each policy by name the revision in which its content came.
    since: Mapping[str, int]


def canonical(value: object) -> str:
    """JSON that is the same for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(text: str) -> str:
    """Of a text; 32 hexadecimal digits."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def part_of(compiled: CompiledPolicy) -> dict[str, Any]:
    """What is hashed of one policy."""
    part: dict[str, Any] = {"name": compiled.name, "policy": encode_policy(compiled.policy)}
    if compiled.targets:
        part["targets"] = [list(target) for target in compiled.targets]
    if compiled.selector:
        part["selector"] = dict(compiled.selector)
    return part


def part_hash(part: Mapping[str, Any]) -> str:
    """Digest of one policy's part."""
    return digest(canonical(part))


def content_hash(hashes: Iterable[tuple[str, str]]) -> str:
    """Digest of a document from the name and digest of each policy in order."""
    return digest(canonical([FORMAT, [list(pair) for pair in hashes]]))


def write(
    namespace: str,
    parts: Iterable[tuple[Mapping[str, Any], str]],
    *,
    revision: int,
    lineage: str,
    before: Mapping[str, tuple[str, int]],
    texts: Mapping[str, str] = MappingProxyType({}),
) -> Text:
    """The document of these parts with their digests, as the given revision.

    ``before`` has digest and revision of each policy in the document that this one replaces;
    ``texts`` the canonical text of parts by digest, as far as it is at hand.
    """
    rows: list[str] = []
    since: dict[str, int] = {}
    hashes: list[tuple[str, str]] = []
    for part, its_hash in parts:
        name = part["name"]
        old = before.get(name)
        since[name] = old[1] if old is not None and old[0] == its_hash else revision
        hashes.append((name, its_hash))
        row = texts.get(its_hash) or canonical(part)
        rows.append(f'{row[:-1]},"hash":"{its_hash}","since":{since[name]}}}')
    whole = content_hash(hashes)
    frame = canonical(
        {
            "format": FORMAT,
            "hash": whole,
            "lineage": lineage,
            "namespace": namespace,
            "revision": revision,
        }
    )
    text = f'{frame[:-1]},"policies":[{",".join(rows)}]}}'
    return Text(text, whole, revision, lineage, MappingProxyType(since))


class Head(NamedTuple):
    """What the controller needs to know of a document that stands in Redis."""

    hash: str
    revision: int
    lineage: str
    #: Digest and revision of each policy by name.
    policies: Mapping[str, tuple[str, int]]
    #: What stands there of each policy by name.
    parts: Mapping[str, Mapping[str, Any]]


def head_of(document: Text, parts: Iterable[tuple[Mapping[str, Any], str]]) -> Head:
    """What ``read_head`` would say of a document that was just written of these parts."""
    pairs = [(str(part["name"]), part, its_hash) for part, its_hash in parts]
    return Head(
        document.hash,
        document.revision,
        document.lineage,
        {name: (its_hash, document.since[name]) for name, _, its_hash in pairs},
        {name: part for name, part, _ in pairs},
    )


def read_head(text: str | bytes) -> Head:
    """Raises UnreadableDocumentError."""
    whole = _load(text)
    try:
        policies = {
            str(row["name"]): (str(row["hash"]), int(row["since"])) for row in whole["policies"]
        }
        parts = {str(row["name"]): row for row in whole["policies"]}
        return Head(
            str(whole["hash"]), int(whole["revision"]), str(whole["lineage"]), policies, parts
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableDocumentError(f"the document lacks {error}") from error


# -- reading ------------------------------------------------------------------------------------


def read(text: str | bytes, before: Policies = NOTHING) -> Policies:
    """The policies of a document; raises UnreadableDocumentError for what cannot be enforced whole.

    Policies of ``before`` that did not change are taken over as they are.
    """
    whole = _load(text)
    known = {entry.hash: entry for entry in before.entries}
    try:
        namespace = str(whole["namespace"])
        entries = tuple(_entry(namespace, row, known) for row in whole["policies"])
        return Policies(
            namespace,
            str(whole["hash"]),
            int(whole["revision"]),
            str(whole["lineage"]),
            entries,
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        # An InvalidPolicyError is a ValueError.
        raise UnreadableDocumentError(f"a policy cannot be read: {error}"[:500]) from error


def _load(text: str | bytes) -> dict[str, Any]:
    if len(text) > MAX_BYTES:
        raise UnreadableDocumentError(f"the document has more than {MAX_BYTES} bytes")
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableDocumentError(f"the document is not JSON: {error}") from error
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        found = whole.get("format") if isinstance(whole, dict) else None
        raise UnreadableDocumentError(
            f"the document has format {found!r}, this version reads {FORMAT}; update the enforcer"
        )
    return whole


def _entry(
    namespace: str, row: dict[str, Any], known: Mapping[str, CompiledPolicy]
) -> CompiledPolicy:
    its_hash, since = str(row["hash"]), int(row["since"])
    old = known.get(its_hash)
    if old is not None and old.name == row["name"] and old.namespace == namespace:
        return old if old.since == since else _since(old, since)
    return CompiledPolicy(
        namespace,
        str(row["name"]),
        decode_policy(row["policy"]),
        tuple(Target(*(str(part) for part in target)) for target in row.get("targets", ())),
        {str(key): str(value) for key, value in row.get("selector", {}).items()},
        its_hash,
        since,
    )


def _since(old: CompiledPolicy, since: int) -> CompiledPolicy:
    return CompiledPolicy(
        old.namespace, old.name, old.policy, old.targets, old.selector, old.hash, since
    )


# -- one policy ---------------------------------------------------------------------------------

#: Sources by their name in the spec, and which of its fields each has.
SOURCES: Final[Mapping[str, tuple[type[Any], str]]] = MappingProxyType(
    {
        "Header": (Header, "name"),
        "Query": (Query, "name"),
        "Cookie": (Cookie, "name"),
        "JWTClaim": (JWTClaim, "name"),
        "APIKey": (APIKey, "header"),
        "ClientIP": (ClientIP, "ipv6_prefix"),
        "Tenant": (Tenant, ""),
        "Route": (Route, ""),
        "Method": (Method, ""),
        "Path": (Path, ""),
        "Constant": (Constant, "value"),
    }
)


def encode_source(source: Source) -> list[Any]:
    """A source as JSON; raises InvalidPolicyError for one that has no name in a policy."""
    name = type(source).__name__
    known = SOURCES.get(name)
    if known is None or type(source) is not known[0]:
        problem = Problem("key", f"{name} has no name in a policy", "use one of the named sources")
        raise InvalidPolicyError([problem])
    return [name, getattr(source, known[1])] if known[1] else [name]


def decode_source(value: list[Any]) -> Source:
    """The source of its JSON. Raises ValueError, KeyError or TypeError for what is none."""
    kind, argument = SOURCES[value[0]]
    made: Source = kind(value[1]) if argument else kind()
    return made


def encode_policy(policy: Policy) -> dict[str, Any]:
    """A policy as JSON; raises InvalidPolicyError for sources that are only Python."""
    failure, distribution = policy.failure, policy.distribution
    return {
        "name": policy.name,
        "limits": [_encode_limit(limit) for limit in policy.limits],
        "failure": [
            failure.mode.value,
            float(failure.timeout),
            failure.breaker_failures,
            float(failure.breaker_pause),
        ],
        "distribution": [
            distribution.mode.value,
            distribution.max_lease_fraction,
            float(distribution.lease_ttl),
        ],
        "response": [policy.response.status, policy.response.headers.value],
        "hops": policy.trusted_proxy_hops,
    }


def decode_policy(value: Mapping[str, Any]) -> Policy:
    """The policy of its JSON. Raises ValueError, KeyError or TypeError for what is none."""
    mode, timeout, failures, pause = value["failure"]
    distribution, fraction, ttl = value["distribution"]
    status, headers = value["response"]
    return Policy(
        value["name"],
        tuple(_decode_limit(each) for each in value["limits"]),
        Failure(FailureMode(mode), timeout, failures, pause),
        Distribution(DistributionMode(distribution), fraction, ttl),
        Response(status, HeaderStyle(headers)),
        value["hops"],
    )


def _encode_limit(limit: Limit) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": limit.name,
        "rate": _encode_rate(limit.rate),
        "burst": limit.burst,
        "algorithm": limit.algorithm.value,
        "cost": limit.cost,
        "mode": limit.mode.value,
        "key": [encode_source(source) for source in limit.key],
        "missing": limit.missing_key.value,
    }
    if limit.when:
        made["when"] = _encode_conditions(limit.when)
    if limit.tiers:
        made["tiers"] = [
            [tier.name, _encode_conditions(tier.match), _encode_rate(tier.rate), tier.burst]
            for tier in limit.tiers
        ]
    if limit.exempt:
        made["exempt"] = [_encode_conditions(each) for each in limit.exempt]
    if limit.response_cost:
        made["responseCost"] = limit.response_cost
    return made


def _decode_limit(value: Mapping[str, Any]) -> Limit:
    return Limit(
        value["name"],
        _decode_rate(value["rate"]),
        value["burst"],
        Algorithm(value["algorithm"]),
        value["cost"],
        Mode(value["mode"]),
        tuple(decode_source(source) for source in value["key"]),
        MissingKey(value["missing"]),
        _decode_conditions(value.get("when", ())),
        tuple(
            Tier(name, _decode_conditions(match), _decode_rate(rate), burst)
            for name, match, rate, burst in value.get("tiers", ())
        ),
        tuple(_decode_conditions(each) for each in value.get("exempt", ())),
        value.get("responseCost", ""),
    )


def _encode_rate(rate: Rate) -> list[int]:
    return [rate.requests, rate.period_us]


def _decode_rate(value: list[int]) -> Rate:
    requests, period = value
    return Rate(requests, period / 1_000_000)


def _encode_conditions(conditions: Iterable[Condition]) -> list[Any]:
    return [
        [encode_source(each.source), each.operator.value, list(each.values)] for each in conditions
    ]


def _decode_conditions(value: Iterable[Any]) -> tuple[Condition, ...]:
    return tuple(
        Condition(decode_source(source), Operator(operator), tuple(values))
        for source, operator, values in value
    )
