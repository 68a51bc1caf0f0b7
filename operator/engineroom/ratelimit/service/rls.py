"""Envoy's rate limit service, version 3: its messages, and their conversion.

The messages are the used part of ``envoy/service/ratelimit/v3/rls.proto`` and its imports, with the
same field numbers; other fields are skipped. They are built at import time for the installed
protobuf runtime, so that no generated file depends on its version. Overrides of limits in a
descriptor are ignored: the policy defines the limits.

Every descriptor is one request to the policy that ``domain`` names, which all of that policy's
limits admit, or none. A request with several descriptors is refused if any of them is.
"""

from __future__ import annotations

import functools
import math
import secrets
from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from engineroom.ratelimit.limits.middleware import limit_headers, refusal
from engineroom.ratelimit.limits.model import HeaderStyle
from engineroom.ratelimit.limits.paths import as_wire_text
from engineroom.ratelimit.service.engine import MissingPolicy
from engineroom.ratelimit.service.request_parsing import UnreadableRequestError, parse_descriptor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engineroom.ratelimit.limits.decision import Decision
    from engineroom.ratelimit.service.engine import DecisionEngine, DecisionResult, EnforcedPolicy
    from engineroom.ratelimit.service.request_parsing import DecisionRequest

#: Most descriptors of one request, and most entries of one descriptor.
MAX_DESCRIPTORS, MAX_ENTRIES = 32, 64
OK, OVER_LIMIT = 1, 2

_PACKAGE = "engineroom.ratelimit.rls"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
    "int64": _Field.TYPE_INT64,
    "int32": _Field.TYPE_INT32,
}
#: The fields of each message as "number type name"; a star before the type means repeated.
_MESSAGES = {
    # Strings in the original: a header that is not UTF-8 would make the message unreadable, and
    # Envoy admits requests after an error.
    "Entry": ("1 bytes key", "2 bytes value"),
    "UInt64Value": ("1 uint64 value",),
    "Descriptor": ("1 *Entry entries", "3 UInt64Value hits_addend"),
    "RateLimitRequest": (
        "1 string domain",
        "2 *Descriptor descriptors",
        "3 uint32 hits_addend",
    ),
    "RateLimit": ("1 uint32 requests_per_unit", "2 Unit unit", "3 string name"),
    "Span": ("1 int64 seconds", "2 int32 nanos"),
    "Status": (
        "1 Code code",
        "2 RateLimit current_limit",
        "3 uint32 limit_remaining",
        "4 Span duration_until_reset",
    ),
    "HeaderValue": ("1 string key", "2 string value"),
    "RateLimitResponse": (
        "1 Code overall_code",
        "2 *Status statuses",
        "3 *HeaderValue response_headers_to_add",
        "5 bytes raw_body",
    ),
}
_ENUMS = {
    "Code": ("UNKNOWN", "OK", "OVER_LIMIT"),
    "Unit": ("UNIT_UNKNOWN", "SECOND", "MINUTE", "HOUR", "DAY"),
}
_CODES = _ENUMS["Code"]
#: Units by their period in microseconds.
_UNITS = {1_000_000: 1, 60_000_000: 2, 3_600_000_000: 3, 86_400_000_000: 4}
_MOST = 2**32 - 1
#: Most cached messages, and the longest of them (bytes).
_MAX_CACHED, _MAX_CACHED_BYTES = 4096, 512
#: Cached variants of a refusal, with different random parts of Retry-After.
_VARIANTS = 64
_cached: dict[bytes, list[DecisionRequest]] = {}


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="engineroom/ratelimit/rls.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for place, value in enumerate(values):
            enum.value.add(name=value, number=place)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for line in fields:
            number, kind, field_name = line.split()
            field = message.field.add(name=field_name, number=int(number))
            repeated = kind.startswith("*")
            kind = kind.removeprefix("*")
            field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
                continue
            field.type = _Field.TYPE_ENUM if kind in _ENUMS else _Field.TYPE_MESSAGE
            field.type_name = f".{_PACKAGE}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


_BUILT = _build()
RateLimitRequest = _BUILT["RateLimitRequest"]
RateLimitResponse = _BUILT["RateLimitResponse"]


def parse_message(data: bytes) -> list[DecisionRequest]:
    """Parse a RateLimitRequest. Raises UnreadableError.

    Short messages are cached, because proxies repeat them.
    """
    cached = _cached.get(data)
    if cached is not None:
        return cached
    try:
        requests = _questions(RateLimitRequest.FromString(data))
    except DecodeError:
        raise UnreadableRequestError("the message is not a RateLimitRequest") from None
    if len(data) <= _MAX_CACHED_BYTES:
        if len(_cached) >= _MAX_CACHED:
            _cached.clear()
        _cached[data] = requests
    return requests


def parse_json(document: object) -> list[DecisionRequest]:
    """Parse a RateLimitRequest in JSON. Raises UnreadableError."""
    fields = _object(document)
    descriptors = _list(fields.get("descriptors"))
    if not 1 <= len(descriptors) <= MAX_DESCRIPTORS:
        raise UnreadableRequestError(f"descriptors: there must be 1 to {MAX_DESCRIPTORS}")
    hits = _hits(fields) or 1
    requests = []
    for entry in descriptors:
        descriptor = _object(entry)
        entries = [_object(pair) for pair in _list(descriptor.get("entries"))]
        if len(entries) > MAX_ENTRIES:
            raise UnreadableRequestError(f"entries: there may be {MAX_ENTRIES}")
        pairs = [
            (str(pair.get("key", "")), as_wire_text(str(pair.get("value", "")))) for pair in entries
        ]
        cost = _hits(descriptor)
        requests.append(
            parse_descriptor(str(fields.get("domain", "")), pairs, hits if cost is None else cost)
        )
    return requests


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise UnreadableRequestError("the body is not a RateLimitRequest: a value is not an object")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise UnreadableRequestError("the body is not a RateLimitRequest: a value is not a list")
    return value


def _hits(fields: dict[str, object]) -> int | None:
    """Return the hits to add, which JSON represents as a number or as digits."""
    value = fields.get("hitsAddend", fields.get("hits_addend"))
    if value is None:
        return None
    text = str(value)
    if text.isascii() and text.isdigit() and len(text) <= 10:
        return min(int(text), _MOST)
    raise UnreadableRequestError("hitsAddend: it is not a whole number of at least 0")


def _questions(request: Any) -> list[DecisionRequest]:
    descriptors = request.descriptors
    if not 1 <= len(descriptors) <= MAX_DESCRIPTORS:
        raise UnreadableRequestError(f"descriptors: there must be 1 to {MAX_DESCRIPTORS}")
    domain, hits = request.domain, request.hits_addend or 1
    requests = []
    for descriptor in descriptors:
        entries = descriptor.entries
        if len(entries) > MAX_ENTRIES:
            raise UnreadableRequestError(f"entries: there may be {MAX_ENTRIES}")
        cost = hits
        if descriptor.HasField("hits_addend"):
            cost = min(descriptor.hits_addend.value, _MOST)
        pairs = [(entry.key.decode("latin-1"), entry.value.decode("latin-1")) for entry in entries]
        requests.append(parse_descriptor(domain, pairs, cost))
    return requests


@dataclass(frozen=True, slots=True)
class RateLimitResult:
    """The results of all descriptors of a request."""

    results: Sequence[DecisionResult]

    @property
    def missing(self) -> MissingPolicy | None:
        """The reason why there is no response; None otherwise."""
        for result in self.results:
            if result.missing in (MissingPolicy.UNKNOWN, MissingPolicy.UNREAD):
                return result.missing
        return None

    @property
    def limited(self) -> bool:
        """True if the request is refused."""
        return not all(result.allowed for result in self.results)

    def message(self) -> Any:
        """Return the RateLimitResponse."""
        response = RateLimitResponse(overall_code=OVER_LIMIT if self.limited else OK)
        statuses = response.statuses
        for result in self.results:
            _set_status(statuses.add(), result)
        _set_headers(response, self.results)
        return response

    def encoded(self) -> bytes:
        """Return the encoded RateLimitResponse; a single admission has a faster encoding."""
        if len(self.results) == 1:
            decision, enforced = self.results[0].decision, self.results[0].enforced
            if (
                decision is not None
                and enforced is not None
                and decision.allowed
                and enforced.policy.response.headers is HeaderStyle.DRAFT
            ):
                return _admission(enforced, decision)
            if decision is not None and enforced is not None:
                return self._refusal(enforced, decision)
        encoded: bytes = self.message().SerializeToString()
        return encoded

    def _refusal(self, enforced: EnforcedPolicy, decision: Decision) -> bytes:
        """Return the response for a single refusal, cached with its Retry-After."""
        key = (
            decision.reason,
            decision.limit,
            decision.remaining,
            None if decision.retry_after is None else math.ceil(decision.retry_after),
            math.ceil(decision.reset),
            secrets.randbelow(_VARIANTS),
        )
        cached: bytes | None = enforced.refusals.get(key)
        return cached or enforced.cache_refusal(key, self.message().SerializeToString())

    def document(self) -> dict[str, Any]:
        """Return the RateLimitResponse in JSON."""
        response = self.message()
        document: dict[str, Any] = {
            "overallCode": _CODES[response.overall_code],
            "statuses": [_status_document(status) for status in response.statuses],
        }
        headers = [
            {"key": header.key, "value": header.value}
            for header in response.response_headers_to_add
        ]
        if headers:
            document["responseHeadersToAdd"] = headers
        if response.raw_body:
            document["rawBody"] = b64encode(response.raw_body).decode()
        return document


def _status_document(status: Any) -> dict[str, Any]:
    """Return a status in protobuf's JSON mapping, which omits zeros.

    protobuf's json_format takes twenty times as long.
    """
    document: dict[str, Any] = {"code": _CODES[status.code]}
    if status.HasField("current_limit"):
        limit = status.current_limit
        document["currentLimit"] = {
            "requestsPerUnit": limit.requests_per_unit,
            "unit": _ENUMS["Unit"][limit.unit],
            "name": limit.name,
        }
    if status.limit_remaining:
        document["limitRemaining"] = status.limit_remaining
    if status.HasField("duration_until_reset"):
        document["durationUntilReset"] = f"{status.duration_until_reset.seconds}s"
    return document


def decide_all(
    engine: DecisionEngine,
    requests: Sequence[DecisionRequest],
    done: Callable[[RateLimitResult], None],
) -> None:
    """Decide on all descriptors; ``done`` is called once all have a result."""
    if len(requests) == 1:
        result = engine.decide(requests[0], lambda result: done(RateLimitResult((result,))))
        if result is not None:
            done(RateLimitResult((result,)))
        return
    results: list[DecisionResult | None] = [None] * len(requests)
    left = len(requests)

    def decided(index: int, result: DecisionResult) -> None:
        nonlocal left
        results[index] = result
        left -= 1
        if not left:
            done(RateLimitResult([result for result in results if result is not None]))

    for index, request in enumerate(requests):
        result = engine.decide(request, functools.partial(decided, index))
        if result is not None:
            decided(index, result)


def _admission(enforced: EnforcedPolicy, decision: Decision) -> bytes:
    """Encode an admission like ``message``; every length in it is below 2**14."""
    seconds = -int(-decision.reset // 1)
    name = decision.limit
    left = f'"{name}";r={decision.remaining};t={seconds}'.encode()
    current, header = enforced.encoded(name, _current_limit)
    span = b"\x08" + _varint(seconds) if seconds else b""
    remaining = min(decision.remaining, _MOST)
    status = b"".join(
        (
            b"\x08\x01",
            current,
            b"\x18" + _varint(remaining) if remaining else b"",
            b"\x22" + bytes((len(span),)) + span,
        )
    )
    header_value = b"\x0a\x09ratelimit\x12" + _varint(len(left)) + left
    return b"".join(
        (
            b"\x08\x01\x12", _varint(len(status)), status, header,
            b"\x1a", _varint(len(header_value)), header_value,
        )
    )  # fmt: skip


def _current_limit(enforced: EnforcedPolicy, name: str) -> tuple[bytes, bytes]:
    """Encode the constant parts of responses by a limit: its rate, and RateLimit-Policy."""
    rate_of = enforced.limits[name].rate
    unit = _UNITS.get(rate_of.period_us)
    current = b""
    if unit is not None:
        message = RateLimitResponse()
        status = message.statuses.add()
        status.current_limit.requests_per_unit = rate_of.requests
        status.current_limit.unit = unit
        status.current_limit.name = name
        current = status.SerializeToString()
    header = RateLimitResponse()
    header.response_headers_to_add.add(key="ratelimit-policy", value=enforced.header)
    return current, header.SerializeToString()


def _varint(number: int) -> bytes:
    """Encode a whole number as protobuf does."""
    if number < 128:
        return bytes((number,))
    parts = bytearray()
    while number >= 128:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _set_status(status: Any, result: DecisionResult) -> None:
    decision, enforced = result.decision, result.enforced
    status.code = OK if result.allowed else OVER_LIMIT
    if decision is None or enforced is None:
        return
    status.limit_remaining = min(decision.remaining, _MOST)
    status.duration_until_reset.seconds = -int(-decision.reset // 1)
    the_rate = enforced.limits[decision.limit].rate
    unit = _UNITS.get(the_rate.period_us)
    if unit is not None:
        status.current_limit.requests_per_unit = the_rate.requests
        status.current_limit.unit = unit
        status.current_limit.name = decision.limit


def _set_headers(response: Any, results: Sequence[DecisionResult]) -> None:
    """Set the headers for the client: of the first refusal, else of the first result."""
    decisive = next((result for result in results if not result.allowed), results[0])
    decision, enforced = decisive.decision, decisive.enforced
    if decision is None or enforced is None:
        return
    policy = enforced.policy
    style = policy.response.headers
    add = response.response_headers_to_add.add
    if decision.allowed:
        if style is HeaderStyle.DRAFT:
            add(key="ratelimit-policy", value=enforced.header)
            seconds = -int(-decision.reset // 1)
            add(key="ratelimit", value=f'"{decision.limit}";r={decision.remaining};t={seconds}')
            return
        for name, value in limit_headers(policy, decision, style):
            add(key=name.lower(), value=value)
        return
    _, headers, body = refusal(policy, decision, style, secrets.randbelow)
    for name, value in headers[:-1]:
        add(key=name.lower(), value=value)
    response.raw_body = body
