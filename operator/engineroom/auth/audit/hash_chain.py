"""The chain of the audit log, apart from where it is kept: seals, and what an export tells."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Problems that a verification lists before it stops.
MAX_PROBLEMS = 100


def derived(secret: bytes, purpose: str) -> bytes:
    """A secret for one purpose: who learns it learns nothing of the others."""
    return hmac.new(secret, f"engineroom:{purpose}".encode(), hashlib.sha256).digest()


def seal(secret: bytes, what: str, number: str, value: str) -> str:
    """The HMAC over one thing of the log."""
    message = f"{what}\n{number}\n{value}".encode()
    return hmac.new(secret, message, hashlib.sha256).hexdigest()


def record_mac(secret: bytes, number: int, previous: str, raw: str) -> str:
    """What chains the record ``number``, whose text is ``raw``, to the one before."""
    return seal(secret, "record", str(number), f"{previous}\n{raw}")


def canonical(body: Mapping[str, Any]) -> str:
    """The text of a record as it was sealed."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def verify_export(
    records: Iterable[tuple[Mapping[str, Any], str]],
    secret: bytes,
    anchor: tuple[int, str] | None = None,
) -> tuple[int, tuple[int, str], list[str]]:
    """Check records that were taken out of the log: bodies with their MACs, in any order.

    How many there are, number and MAC of the last, and what is wrong. The first one's own MAC can
    only be checked where it is number 1, or follows the anchor: what is before it is not known. An
    export cannot show that records after its last one are missing; an anchor that is newer does.
    """
    problems: list[str] = []
    seen: dict[int, tuple[Mapping[str, Any], str]] = {}
    for body, mac in records:
        number = body.get("seq")
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            problems.append("a record has no number")
        elif number in seen and seen[number] != (body, mac):
            problems.append(f"record {number}: stands there twice, and differs")
        else:
            seen[number] = (body, mac)
    last, previous = (0, "") if anchor is None else anchor
    if anchor is not None and seen and anchor[0] + 1 < min(seen):
        problems.append(f"records {anchor[0] + 1} to {min(seen) - 1}: missing after the anchor")
    if anchor is not None and anchor[0] > max(seen, default=0):
        problems.append(f"the export ends at {max(seen, default=0)}, the anchor is {anchor[0]}")
    numbers = sorted(seen)
    known: int | None = None
    for number in numbers:
        if len(problems) >= MAX_PROBLEMS:
            break
        body, mac = seen[number]
        if anchor is not None and number == anchor[0] and not _same(mac, anchor[1]):
            problems.append(f"record {number}: is not the one of the anchor")
        if known is not None and number != known + 1:
            gap = f"records {known + 1} to {number - 1}" if number > known + 2 else (
                f"record {known + 1}"
            )  # fmt: skip
            problems.append(f"{gap}: missing")
        elif (known is not None or number == 1 or number == last + 1) and not _same(
            record_mac(secret, number, "" if number == 1 else previous, canonical(body)), mac
        ):
            problems.append(f"record {number}: edited, or what is before it was")
        known, previous = number, mac
    end = (numbers[-1], seen[numbers[-1]][1]) if numbers else (0, "")
    return len(numbers), end, problems[:MAX_PROBLEMS]


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
