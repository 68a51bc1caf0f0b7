"""Envoy's rate limit service, version 3: its messages, and how verdicts become them.

The messages are the part of ``envoy/service/ratelimit/v3/rls.proto`` and of what it imports that is
used here, by the same numbers; fields left out are skipped when they arrive. They are built when
this is imported, for protobuf's own runtime, so there is no generated file that must fit its
version. Overrides of limits in a descriptor are not heeded: limits are the policy's.

Every descriptor is one request to the policy that ``domain`` names: all of that policy's limits or
none. A request with several descriptors is refused where any of them is.
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
from engineroom.ratelimit.service.engine import Missing
from engineroom.ratelimit.service.request_parsing import UnreadableError, of_descriptor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engineroom.ratelimit.limits.decision import Decision
    from engineroom.ratelimit.service.engine import Enforced, Engine, Verdict
    from engineroom.ratelimit.service.request_parsing import Question

#: Descriptors of one request, and entries of one descriptor.
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
#: Message -> its fields as "number type name"; a star before the type: repeated.
_MESSAGES = {
    # Strings in the original: a header's bytes that are no UTF-8 would make the whole unreadable,
    # and Envoy admits what is answered with an error.
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
#: Periods that have a name, microseconds.
_UNITS = {1_000_000: 1, 60_000_000: 2, 3_600_000_000: 3, 86_400_000_000: 4}
_MOST = 2**32 - 1
#: Messages remembered, and the longest of them (bytes).
_MAX_REMEMBERED, _MAX_REMEMBERED_BYTES = 4096, 512
#: Different times to come back that those are told who are refused together.
_VARIANTS = 64
_remembered: dict[bytes, list[Question]] = {}


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


def of_message(data: bytes) -> list[Question]:
    """The questions in a RateLimitRequest; raises UnreadableError.

    Whoever asks often asks the same: short messages are remembered with what they mean.
    """
    known = _remembered.get(data)
    if known is not None:
        return known
    try:
        questions = _questions(RateLimitRequest.FromString(data))
    except DecodeError:
        raise UnreadableError("the message is no RateLimitRequest") from None
    if len(data) <= _MAX_REMEMBERED_BYTES:
        if len(_remembered) >= _MAX_REMEMBERED:
            _remembered.clear()
        _remembered[data] = questions
    return questions


def of_json(document: object) -> list[Question]:
    """The questions in a RateLimitRequest as JSON; raises UnreadableError."""
    fields = _object(document)
    descriptors = _list(fields.get("descriptors"))
    if not 1 <= len(descriptors) <= MAX_DESCRIPTORS:
        raise UnreadableError(f"descriptors: there must be 1 to {MAX_DESCRIPTORS}")
    hits = _hits(fields) or 1
    questions = []
    for each in descriptors:
        descriptor = _object(each)
        entries = [_object(entry) for entry in _list(descriptor.get("entries"))]
        if len(entries) > MAX_ENTRIES:
            raise UnreadableError(f"entries: there may be {MAX_ENTRIES}")
        pairs = [
            (str(entry.get("key", "")), as_wire_text(str(entry.get("value", ""))))
            for entry in entries
        ]
        cost = _hits(descriptor)
        questions.append(
            of_descriptor(str(fields.get("domain", "")), pairs, hits if cost is None else cost)
        )
    return questions


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise UnreadableError("the body is no RateLimitRequest: something is not an object")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise UnreadableError("the body is no RateLimitRequest: something is not a list")
    return value


def _hits(fields: dict[str, object]) -> int | None:
    """Hits to add; JSON has them as a number, or as digits where they may be large."""
    value = fields.get("hitsAddend", fields.get("hits_addend"))
    if value is None:
        return None
    text = str(value)
    if text.isascii() and text.isdigit() and len(text) <= 10:
        return min(int(text), _MOST)
    raise UnreadableError("hitsAddend: it is no whole number of at least 0")


def _questions(request: Any) -> list[Question]:
    descriptors = request.descriptors
    if not 1 <= len(descriptors) <= MAX_DESCRIPTORS:
        raise UnreadableError(f"descriptors: there must be 1 to {MAX_DESCRIPTORS}")
    domain, hits = request.domain, request.hits_addend or 1
    questions = []
    for descriptor in descriptors:
        entries = descriptor.entries
        if len(entries) > MAX_ENTRIES:
            raise UnreadableError(f"entries: there may be {MAX_ENTRIES}")
        cost = hits
        if descriptor.HasField("hits_addend"):
            cost = min(descriptor.hits_addend.value, _MOST)
        pairs = [(entry.key.decode("latin-1"), entry.value.decode("latin-1")) for entry in entries]
        questions.append(of_descriptor(domain, pairs, cost))
    return questions


@dataclass(frozen=True, slots=True)
class Rated:
    """What came of all descriptors of a request."""

    verdicts: Sequence[Verdict]

    @property
    def missing(self) -> Missing | None:
        """Why there is no answer; None where there is one."""
        for verdict in self.verdicts:
            if verdict.missing in (Missing.UNKNOWN, Missing.UNREAD):
                return verdict.missing
        return None

    @property
    def limited(self) -> bool:
        """Whether the request is refused."""
        return not all(verdict.allowed for verdict in self.verdicts)

    def message(self) -> Any:
        """As RateLimitResponse."""
        response = RateLimitResponse(overall_code=OVER_LIMIT if self.limited else OK)
        statuses = response.statuses
        for verdict in self.verdicts:
            _tell_status(statuses.add(), verdict)
        _tell_headers(response, self.verdicts)
        return response

    def encoded(self) -> bytes:
        """As RateLimitResponse on the wire; one admission, which most are, is written by hand."""
        if len(self.verdicts) == 1:
            decision, enforced = self.verdicts[0].decision, self.verdicts[0].enforced
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

    def _refusal(self, enforced: Enforced, decision: Decision) -> bytes:
        """Another answer of one verdict: the same for a while, with the same Retry-After."""
        key = (
            decision.reason,
            decision.limit,
            decision.remaining,
            None if decision.retry_after is None else math.ceil(decision.retry_after),
            math.ceil(decision.reset),
            secrets.randbelow(_VARIANTS),
        )
        known: bytes | None = enforced.refusals.get(key)
        return known or enforced.keep(key, self.message().SerializeToString())

    def document(self) -> dict[str, Any]:
        """As RateLimitResponse in JSON."""
        response = self.message()
        document: dict[str, Any] = {
            "overallCode": _CODES[response.overall_code],
            "statuses": [_status_document(status) for status in response.statuses],
        }
        headers = [
            {"key": each.key, "value": each.value} for each in response.response_headers_to_add
        ]
        if headers:
            document["responseHeadersToAdd"] = headers
        if response.raw_body:
            document["rawBody"] = b64encode(response.raw_body).decode()
        return document


def _status_document(status: Any) -> dict[str, Any]:
    """As protobuf's mapping to JSON says, which leaves out what is 0; json_format takes twenty
    times as long."""
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


def rate(engine: Engine, questions: Sequence[Question], done: Callable[[Rated], None]) -> None:
    """Ask about all descriptors at once; ``done`` is called when the last one is decided."""
    if len(questions) == 1:
        verdict = engine.ask(questions[0], lambda verdict: done(Rated((verdict,))))
        if verdict is not None:
            done(Rated((verdict,)))
        return
    found: list[Verdict | None] = [None] * len(questions)
    left = len(questions)

    def decided(place: int, verdict: Verdict) -> None:
        nonlocal left
        found[place] = verdict
        left -= 1
        if not left:
            done(Rated([each for each in found if each is not None]))

    for place, question in enumerate(questions):
        verdict = engine.ask(question, functools.partial(decided, place))
        if verdict is not None:
            decided(place, verdict)


def _admission(enforced: Enforced, decision: Decision) -> bytes:
    """The same bytes as ``message``; every length in it is below 2**14."""
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
    told = b"\x0a\x09ratelimit\x12" + _varint(len(left)) + left
    return b"".join(
        (
            b"\x08\x01\x12", _varint(len(status)), status, header,
            b"\x1a", _varint(len(told)), told,
        )
    )  # fmt: skip


def _current_limit(enforced: Enforced, name: str) -> tuple[bytes, bytes]:
    """What is the same in every answer by a limit: its rate, and RateLimit-Policy."""
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
    """As protobuf writes whole numbers."""
    if number < 128:
        return bytes((number,))
    parts = bytearray()
    while number >= 128:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _tell_status(status: Any, verdict: Verdict) -> None:
    decision, enforced = verdict.decision, verdict.enforced
    status.code = OK if verdict.allowed else OVER_LIMIT
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


def _tell_headers(response: Any, verdicts: Sequence[Verdict]) -> None:
    """Headers for the client: of the first verdict that refuses, else of the first."""
    told = next((each for each in verdicts if not each.allowed), verdicts[0])
    decision, enforced = told.decision, told.enforced
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
