"""The document of a namespace's compiled policies, which the controller writes and enforcers read.

Pure: no Redis, no clock. The text is canonical: equal policies result in equal bytes, whose digest
enforcers acknowledge. The ``revision`` grows with every document. Each policy has the revision of
its last change (``since``), so that an enforcer with a later revision has that policy. Revisions
are comparable within one ``lineage`` only: a Redis that lost the document begins a new lineage.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
from engineroom.ratelimit.limits.request import RequestView
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
    Route,
    Tenant,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ValueSource = Callable[[RequestView], str | None]

#: Version of the format; a reader of another version ignores the document.
FORMAT = 1
#: Size of the largest document (bytes), and most policies in it.
MAX_BYTES = 8 * 1024 * 1024
MAX_POLICIES = 4096


class Target(NamedTuple):
    """The object that a policy is attached to, or a ``section`` of it, such as a listener."""

    group: str
    kind: str
    name: str
    section: str = ""


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """One policy as enforcers read it."""

    namespace: str
    name: str
    #: ``policy.name`` is ``namespace/name``.
    policy: Policy
    #: The targets that the policy has after conflicts with older policies.
    targets: tuple[Target, ...] = ()
    #: Labels of the applications that enforce it; empty for a policy with targets.
    selector: Mapping[str, str] = field(default_factory=dict)
    #: Digest of the fields above, and the revision of their last change.
    hash: str = ""
    since: int = 0


@dataclass(frozen=True, slots=True)
class PolicySnapshot:
    """All policies of a namespace at one time, in the Gateway API's order: oldest first."""

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
        """Return a policy by its name without the namespace."""
        return self._by_name.get(name)

    def for_target(self, kind: str, name: str, section: str = "") -> CompiledPolicy | None:
        """Return the policy of an object's section, or else of the whole object."""
        policy = self._by_target.get((kind, name, section)) if section else None
        return policy or self._by_target.get((kind, name, ""))

    def for_labels(self, labels: Mapping[str, str]) -> CompiledPolicy | None:
        """Return the oldest policy whose selector matches an application's labels."""
        for entry in self.entries:
            selector = entry.selector
            if selector and all(labels.get(key) == value for key, value in selector.items()):
                return entry
        return None


#: The snapshot before the first document.
NO_POLICIES: Final = PolicySnapshot()


# -- writing ------------------------------------------------------------------------------------


class DocumentText(NamedTuple):
    """A document as text, with the fields that Redis holds beside it."""

    text: str
    hash: str
    revision: int
    lineage: str
    #: The revision of the last change of each policy, by name.
    since: Mapping[str, int]


def canonical(value: object) -> str:
    """Return canonical JSON: equal values result in equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(text: str) -> str:
    """Return the digest of a text: 32 hexadecimal digits."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def part_of(compiled: CompiledPolicy) -> dict[str, Any]:
    """Return the part of the document that describes one policy, without hash and revision."""
    part: dict[str, Any] = {"name": compiled.name, "policy": encode_policy(compiled.policy)}
    if compiled.targets:
        part["targets"] = [list(target) for target in compiled.targets]
    if compiled.selector:
        part["selector"] = dict(compiled.selector)
    return part


def part_hash(part: Mapping[str, Any]) -> str:
    """Return the digest of one policy's part."""
    return digest(canonical(part))


def content_hash(hashes: Iterable[tuple[str, str]]) -> str:
    """Return the digest of a document, from name and digest of each policy in order."""
    return digest(canonical([FORMAT, [list(pair) for pair in hashes]]))


def render_document(
    namespace: str,
    parts: Iterable[tuple[Mapping[str, Any], str]],
    *,
    revision: int,
    lineage: str,
    before: Mapping[str, tuple[str, int]],
    texts: Mapping[str, str] = MappingProxyType({}),
) -> DocumentText:
    """Return the document of parts with their digests.

    ``before`` has digest and revision of each policy in the replaced document, by name. ``texts``
    may have canonical texts of parts, by digest.
    """
    rows: list[str] = []
    since: dict[str, int] = {}
    hashes: list[tuple[str, str]] = []
    for part, part_digest in parts:
        name = part["name"]
        old = before.get(name)
        since[name] = old[1] if old is not None and old[0] == part_digest else revision
        hashes.append((name, part_digest))
        row = texts.get(part_digest) or canonical(part)
        rows.append(f'{row[:-1]},"hash":"{part_digest}","since":{since[name]}}}')
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
    return DocumentText(text, whole, revision, lineage, MappingProxyType(since))


class DocumentHead(NamedTuple):
    """The fields of a document in Redis that the controller compares."""

    hash: str
    revision: int
    lineage: str
    #: Digest and revision of each policy by name.
    policies: Mapping[str, tuple[str, int]]
    #: The part of each policy by name.
    parts: Mapping[str, Mapping[str, Any]]


def head_of(document: DocumentText, parts: Iterable[tuple[Mapping[str, Any], str]]) -> DocumentHead:
    """Return the head of a document that was rendered from ``parts``, like ``parse_head``."""
    pairs = [(str(part["name"]), part, part_digest) for part, part_digest in parts]
    return DocumentHead(
        document.hash,
        document.revision,
        document.lineage,
        {name: (part_digest, document.since[name]) for name, _, part_digest in pairs},
        {name: part for name, part, _ in pairs},
    )


def parse_head(text: str | bytes) -> DocumentHead:
    """Parse the head of a document; raises UnreadableDocumentError."""
    whole = _load(text)
    try:
        policies = {
            str(row["name"]): (str(row["hash"]), int(row["since"])) for row in whole["policies"]
        }
        parts = {str(row["name"]): row for row in whole["policies"]}
        return DocumentHead(
            str(whole["hash"]), int(whole["revision"]), str(whole["lineage"]), policies, parts
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableDocumentError(f"the document lacks {error}") from error


# -- reading ------------------------------------------------------------------------------------


def parse_document(text: str | bytes, before: PolicySnapshot = NO_POLICIES) -> PolicySnapshot:
    """Return the policies of a document; unchanged policies of ``before`` are reused.

    Raises UnreadableDocumentError if any policy is unreadable.
    """
    whole = _load(text)
    reusable = {entry.hash: entry for entry in before.entries}
    try:
        namespace = str(whole["namespace"])
        entries = tuple(_entry(namespace, row, reusable) for row in whole["policies"])
        return PolicySnapshot(
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
        version = whole.get("format") if isinstance(whole, dict) else None
        raise UnreadableDocumentError(
            f"the document has format {version!r}, this version reads {FORMAT}; update the enforcer"
        )
    return whole


def _entry(
    namespace: str, row: dict[str, Any], reusable: Mapping[str, CompiledPolicy]
) -> CompiledPolicy:
    digest_, since = str(row["hash"]), int(row["since"])
    old = reusable.get(digest_)
    if old is not None and old.name == row["name"] and old.namespace == namespace:
        return old if old.since == since else replace(old, since=since)
    return CompiledPolicy(
        namespace,
        str(row["name"]),
        decode_policy(row["policy"]),
        tuple(Target(*(str(part) for part in target)) for target in row.get("targets", ())),
        {str(key): str(value) for key, value in row.get("selector", {}).items()},
        digest_,
        since,
    )


# -- one policy ---------------------------------------------------------------------------------

#: Value sources by their name in the spec, with the field of each.
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


def encode_source(source: ValueSource) -> list[Any]:
    """Return a source as JSON; raise InvalidPolicyError for one that is not in SOURCES."""
    name = type(source).__name__
    kind, argument = SOURCES.get(name, (None, ""))
    if type(source) is not kind:
        problem = Problem("key", f"{name} has no name in a policy", "use one of the named sources")
        raise InvalidPolicyError([problem])
    return [name, getattr(source, argument)] if argument else [name]


def decode_source(value: list[Any]) -> ValueSource:
    """Return the source of its JSON. Raises ValueError, KeyError or TypeError for invalid JSON."""
    kind, argument = SOURCES[value[0]]
    source: ValueSource = kind(value[1]) if argument else kind()
    return source


def encode_policy(policy: Policy) -> dict[str, Any]:
    """Return a policy as JSON; raise InvalidPolicyError for sources that are not in SOURCES."""
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
    """Return the policy of its JSON. Raises ValueError, KeyError or TypeError for invalid JSON."""
    mode, timeout, failures, pause = value["failure"]
    distribution, fraction, ttl = value["distribution"]
    status, headers = value["response"]
    return Policy(
        value["name"],
        tuple(_decode_limit(limit) for limit in value["limits"]),
        Failure(FailureMode(mode), timeout, failures, pause),
        Distribution(DistributionMode(distribution), fraction, ttl),
        Response(status, HeaderStyle(headers)),
        value["hops"],
    )


def _encode_limit(limit: Limit) -> dict[str, Any]:
    encoded: dict[str, Any] = {
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
        encoded["when"] = _encode_conditions(limit.when)
    if limit.tiers:
        encoded["tiers"] = [
            [tier.name, _encode_conditions(tier.match), _encode_rate(tier.rate), tier.burst]
            for tier in limit.tiers
        ]
    if limit.exempt:
        encoded["exempt"] = [_encode_conditions(entry) for entry in limit.exempt]
    if limit.response_cost:
        encoded["responseCost"] = limit.response_cost
    return encoded


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
        tuple(_decode_conditions(entry) for entry in value.get("exempt", ())),
        value.get("responseCost", ""),
    )


def _encode_rate(rate: Rate) -> list[int]:
    return [rate.requests, rate.period_us]


def _decode_rate(value: list[int]) -> Rate:
    requests, period = value
    return Rate(requests, period / 1_000_000)


def _encode_conditions(conditions: Iterable[Condition]) -> list[Any]:
    return [
        [encode_source(condition.source), condition.operator.value, list(condition.values)]
        for condition in conditions
    ]


def _decode_conditions(value: Iterable[Any]) -> tuple[Condition, ...]:
    return tuple(
        Condition(decode_source(source), Operator(operator), tuple(values))
        for source, operator, values in value
    )
