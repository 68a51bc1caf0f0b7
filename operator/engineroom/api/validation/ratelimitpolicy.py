"""Rules of RateLimitPolicy beyond its schema; see ``engineroom.api.validation``."""

from __future__ import annotations

import ipaddress
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from engineroom.api.schema.ratelimitpolicy import NAMED
from engineroom.api.schema.tree import describe_pattern
from engineroom.api.v1alpha1.ratelimitpolicy import GROUPS, TargetKind
from engineroom.api.v1alpha1.types import read_duration
from engineroom.api.validation.common import KindRules
from engineroom.core.errors import Problem
from engineroom.core.validation.json_values import as_integer, as_list, as_map, as_text
from engineroom.core.validation.paths import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds.
MIN_PERIOD, MAX_PERIOD = 0.001, 366 * 86400.0
_MAX_TIMEOUT, _MAX_LEASE_TTL = 10.0, 60.0
_MICROSECONDS = 1_000_000
#: Sources whose value the client chooses freely.
_FREE = frozenset({"Header", "Query", "Cookie", "APIKey"})

describe_pattern(
    r"^[^\s,;=\"]+$", "a valid name", "leave out spaces, commas, semicolons, '=' and quotes"
)
describe_pattern(
    r"^(0?\.[0-9]{1,9}|1(\.0{1,9})?)$",
    "a ratio above 0 and at most 1",
    'write it with a point and in quotes, such as "0.1"',
)


def _problems(spec: dict[str, Any]) -> Iterator[Problem]:
    """Yield each problem that the schema does not find, for a spec of any shape."""
    yield from _attachment(spec)
    leased = as_map(spec.get("distribution")).get("mode") == "Leased"
    fraction = _fraction(as_map(spec.get("distribution")).get("maxLeaseFraction", "0.1"))
    # The schema bounds the number of limits; further ones are not checked.
    for index, limit in enumerate(as_list(spec.get("limits"))[:65]):
        if isinstance(limit, dict):
            yield from _limit(limit, f"spec.limits[{index}]", fraction if leased else None)
    yield from _times(spec)


def _warnings(spec: dict[str, Any]) -> Iterator[str]:
    """Yield warnings: what is allowed but probably not meant."""
    for index, limit in enumerate(as_list(spec.get("limits"))[:65]):
        path = f"spec.limits[{index}]"
        for number, exemption in enumerate(as_list(as_map(limit).get("exempt"))[:16]):
            sources = {
                as_text(as_map(condition).get("source"))
                for condition in as_list(as_map(exemption).get("match"))
            }
            if sources and sources <= _FREE:
                yield (
                    f"{path}.exempt[{number}]: a client chooses this freely, and so escapes the "
                    "limit; match what the enforcer knows (ClientIP, Tenant, JWTClaim)"
                )
        key = {
            as_text(as_map(source).get("source")) for source in as_list(as_map(limit).get("key"))
        }
        if key and key <= _FREE and as_map(limit).get("missingKey", "Shared") == "Skip":
            yield (
                f"{path}.missingKey: Skip admits every client that leaves the key out; write "
                "Shared or Deny"
            )
    if as_map(spec.get("failure")).get("mode") == "Open":
        yield "spec.failure.mode: Open admits everything while Redis does not answer"
    if as_map(as_map(spec.get("redis")).get("tls")).get("insecureSkipVerify") is True:
        yield "spec.redis.tls.insecureSkipVerify: anybody on the way can pose as Redis"


def _attachment(spec: dict[str, Any]) -> Iterator[Problem]:
    targets, selector = as_list(spec.get("targetRefs")), spec.get("selector")
    if targets and selector is not None:
        yield Problem("spec.selector", "conflicts with spec.targetRefs", "remove one of the two")
    if not targets and selector is None and not isinstance(spec.get("targetRefs"), str | int):
        yield Problem(
            "spec.targetRefs",
            "is empty, and there is no spec.selector",
            "write what the policy is attached to, or the labels of applications that enforce it",
        )
    indices: dict[tuple[object, object, object], int] = {}
    for index, target in enumerate(targets[:17]):
        if not isinstance(target, dict):
            continue
        kind, group = target.get("kind"), target.get("group")
        path = f"spec.targetRefs[{index}]"
        if isinstance(kind, str) and kind in set(TargetKind):
            right = GROUPS[TargetKind(kind)]
            if isinstance(group, str) and group != right:
                problem = f"{quoted(group)} is not the group of {kind}"
                fix = f"write {right}" if right else "write an empty string"
                yield Problem(f"{path}.group", problem, f"{fix}, or leave it out")
        place = (str(kind), str(target.get("name")), str(target.get("sectionName")))
        if place in indices:
            yield Problem(path, f"is the same as spec.targetRefs[{indices[place]}]", "remove it")
        indices.setdefault(place, index)


def _limit(limit: dict[str, Any], path: str, leased: Fraction | None) -> Iterator[Problem]:
    algorithm, mode = as_text(limit.get("algorithm", "TokenBucket")), as_text(limit.get("mode"))
    cost = as_integer(as_map(limit.get("cost")).get("request", 1))
    yield from _quantity(limit, path, cost, leased)
    if limit.get("burst") is not None and algorithm in {"SlidingWindow", "FixedWindow"}:
        yield Problem(
            f"{path}.burst", f"{algorithm} has no burst of its own", "remove it, or use TokenBucket"
        )
    if leased is not None and algorithm in {"SlidingWindow", "FixedWindow"}:
        yield Problem(
            f"{path}.algorithm",
            f"{algorithm} cannot be leased",
            "use TokenBucket, or distribution mode Strict",
        )
    if leased is not None and mode == "Shadow":
        yield Problem(
            f"{path}.mode",
            "Shadow cannot be leased",
            "use distribution mode Strict while the limit is tried",
        )
    for index, source in enumerate(as_list(limit.get("key"))[:9]):
        yield from _source(source, f"{path}.key[{index}]")
    for index, match in enumerate(as_list(limit.get("when"))[:17]):
        yield from _match(match, f"{path}.when[{index}]")
    for index, tier in enumerate(as_list(limit.get("tiers"))[:17]):
        if not isinstance(tier, dict):
            continue
        place = f"{path}.tiers[{index}]"
        yield from _quantity(tier, place, cost, leased, windowed=algorithm != "TokenBucket")
        for number, match in enumerate(as_list(tier.get("match"))[:17]):
            yield from _match(match, f"{place}.match[{number}]")
    for index, exemption in enumerate(as_list(limit.get("exempt"))[:17]):
        for number, match in enumerate(as_list(as_map(exemption).get("match"))[:17]):
            yield from _match(match, f"{path}.exempt[{index}].match[{number}]")


def _quantity(
    node: dict[str, Any],
    path: str,
    cost: int | None,
    leased: Fraction | None,
    *,
    windowed: bool = False,
) -> Iterator[Problem]:
    """Check rate, burst and cost of a limit or a tier against each other."""
    rate = as_map(node.get("rate"))
    requests = as_integer(rate.get("requests"))
    period, problem = _period(rate.get("period"), f"{path}.rate.period")
    if problem is not None:
        yield problem
    if requests is None or requests < 1:
        return
    if period is not None and requests > round(period * _MICROSECONDS):
        yield Problem(
            f"{path}.rate",
            f"{requests} in {rate.get('period')} is more than one a microsecond",
            "ask for at most 1,000,000 a second",
        )
        return
    if windowed and node.get("burst") is not None:
        yield Problem(
            f"{path}.burst", "a window has no burst of its own", "remove it, or use TokenBucket"
        )
        return
    burst = as_integer(node.get("burst", requests))
    if burst is None or burst < 1:
        return
    field = f"{path}.burst" if "burst" in node else f"{path}.rate.requests"
    yield from _burst(burst, field, cost, leased)
    if period is not None and (cost is None or cost <= burst):
        interval = -(-round(period * _MICROSECONDS) // requests)
        if burst * interval > MAX_PERIOD * _MICROSECONDS:
            yield Problem(
                f"{path}.burst",
                f"{burst} would take more than 366 days to come back",
                "write a smaller burst or a higher rate",
            )


def _period(text: object, path: str) -> tuple[float | None, Problem | None]:
    """Read a period: its seconds if it is valid, and the problem if it is out of range."""
    period = read_duration(text)
    if period is not None and period < MIN_PERIOD:
        fix = "write 1ms or more, such as 1s"
        return None, Problem(path, f"{quoted(text)} is zero", fix)
    if period is not None and period > MAX_PERIOD:
        return None, Problem(path, f"{quoted(text)} is longer than 366 days", "write 366d or less")
    return period, None


def _burst(burst: int, field: str, cost: int | None, leased: Fraction | None) -> Iterator[Problem]:
    """Check that a bucket of this size admits a request; ``field`` is the field that sets it."""
    if cost is None:
        return
    if cost > burst:
        yield Problem(
            field,
            f"{burst} is below cost.request {cost}, so every request would be refused",
            f"write at least {cost}",
        )
    elif leased is not None and int(leased * burst) < cost:
        yield Problem(
            field,
            f"distribution.maxLeaseFraction of {burst} is less than one request",
            "raise the burst or the fraction, or use distribution mode Strict",
        )


def _source(source: object, path: str) -> Iterator[Problem]:
    if not isinstance(source, dict):
        return
    kind = source.get("source")
    if not isinstance(kind, str):
        return
    if kind in NAMED and source.get("name") is None:
        yield Problem(f"{path}.name", "is missing", f"write the name that {kind} reads")
    if source.get("name") is not None and kind not in NAMED and kind != "APIKey":
        yield Problem(f"{path}.name", f"is set, but {kind} has no name", "remove it")
    if kind == "Constant" and source.get("value") is None:
        yield Problem(f"{path}.value", "is missing", "write the value of the constant")
    if source.get("value") is not None and kind != "Constant":
        yield Problem(f"{path}.value", f"is set, but {kind} has none", "remove it")
    if source.get("ipv6Prefix") is not None and kind != "ClientIP":
        yield Problem(f"{path}.ipv6Prefix", f"is set, but the source is {kind}", "remove it")


def _match(match: object, path: str) -> Iterator[Problem]:
    if not isinstance(match, dict):
        return
    yield from _source(match, path)
    operator, values = as_text(match.get("operator", "In")), as_list(match.get("values"))
    if operator in {"Exists", "DoesNotExist"}:
        if values:
            yield Problem(f"{path}.values", f"{operator} compares with nothing", "remove them")
        return
    if not values:
        yield Problem(f"{path}.values", f"{operator} has nothing to compare with", "add values")
    if operator != "InNetwork":
        return
    if match.get("source") is not None and as_text(match.get("source")) != "ClientIP":
        yield Problem(
            f"{path}.operator",
            "InNetwork compares addresses",
            "use it with source ClientIP",
        )
    prefix = as_integer(match.get("ipv6Prefix", 64))
    for index, value in enumerate(values[:65]):
        if not isinstance(value, str):
            continue
        try:
            network = ipaddress.ip_network(value, strict=False)
        except ValueError:
            yield Problem(
                f"{path}.values[{index}]",
                f"{quoted(value)} is not a network",
                "write it as 10.0.0.0/8 or 2001:db8::/32",
            )
            continue
        if network.version == 6 and prefix is not None and network.prefixlen > prefix:
            yield Problem(
                f"{path}.values[{index}]",
                f"{quoted(value)} is smaller than ipv6Prefix {prefix}, so nothing is in it",
                f"set ipv6Prefix to {network.prefixlen} or more",
            )


def _times(spec: dict[str, Any]) -> Iterator[Problem]:
    failure = as_map(spec.get("failure"))
    for value, path, most in (
        (
            as_map(spec.get("distribution")).get("leaseTTL"),
            "spec.distribution.leaseTTL",
            _MAX_LEASE_TTL,
        ),
        (failure.get("timeout"), "spec.failure.timeout", _MAX_TIMEOUT),
        (
            as_map(failure.get("breaker")).get("pause"),
            "spec.failure.breaker.pause",
            _MAX_TIMEOUT,
        ),
    ):
        seconds = read_duration(value)
        if seconds is None:
            continue
        if seconds < MIN_PERIOD:
            yield Problem(path, f"{quoted(value)} is zero", "write 1ms or more")
        elif seconds > most:
            yield Problem(path, f"{quoted(value)} is longer than {most:g}s", "write less")
    fraction = as_map(spec.get("distribution")).get("maxLeaseFraction")
    if isinstance(fraction, str) and _fraction(fraction) == 0:
        yield Problem(
            "spec.distribution.maxLeaseFraction",
            f"{quoted(fraction)} is not above 0",
            'write a ratio such as "0.1"',
        )


def _fraction(value: object) -> Fraction:
    if not isinstance(value, str) or len(value) > 12:
        return Fraction(0)
    try:
        return Fraction(value)
    except (ValueError, ZeroDivisionError):
        return Fraction(0)


RULES = KindRules(
    missing_spec="add it with limits, and targetRefs or selector",
    problems=_problems,
    warnings=_warnings,
)
