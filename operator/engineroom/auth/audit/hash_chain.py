"""The hash chain of the audit log: seals, and the verification of exports."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: Most problems that a verification lists.
MAX_PROBLEMS = 100


def derive_secret(secret: bytes, purpose: str) -> bytes:
    """Derive a secret for one purpose; it reveals nothing about ``secret`` or other purposes."""
    return hmac.new(secret, f"engineroom:{purpose}".encode(), hashlib.sha256).digest()


def seal(secret: bytes, what: str, number: str, value: str) -> str:
    """Return the HMAC of one part of the log."""
    message = f"{what}\n{number}\n{value}".encode()
    return hmac.new(secret, message, hashlib.sha256).hexdigest()


def record_mac(secret: bytes, number: int, previous: str, raw: str) -> str:
    """Return the MAC that chains record ``number``, with the text ``raw``, to the previous one."""
    return seal(secret, "record", str(number), f"{previous}\n{raw}")


def canonical(body: Mapping[str, Any]) -> str:
    """Return the text of a record that its MAC covers."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def verify_export(
    records: Iterable[tuple[Mapping[str, Any], str]],
    secret: bytes,
    anchor: tuple[int, str] | None = None,
) -> tuple[int, tuple[int, str], list[str]]:
    """Verify exported records: bodies with their MACs, in any order.

    Returns the number of records, number and MAC of the last one, and the problems. The MAC of the
    first record can only be checked if it is number 1 or follows the anchor. Missing records at the
    end of an export show only by a newer anchor.
    """
    problems: list[str] = []
    by_number: dict[int, tuple[Mapping[str, Any], str]] = {}
    for body, mac in records:
        number = body.get("seq")
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            problems.append("a record has no number")
        elif number in by_number and by_number[number] != (body, mac):
            problems.append(f"record {number}: occurs twice with different contents")
        else:
            by_number[number] = (body, mac)
    last, previous = (0, "") if anchor is None else anchor
    numbers = sorted(by_number)
    first, final = (numbers[0], numbers[-1]) if numbers else (0, 0)
    if anchor is not None and numbers and anchor[0] + 1 < first:
        problems.append(f"records {anchor[0] + 1} to {first - 1}: missing after the anchor")
    if anchor is not None and anchor[0] > final:
        problems.append(f"the export ends at {final}, the anchor is {anchor[0]}")
    before: int | None = None
    for number in numbers:
        if len(problems) >= MAX_PROBLEMS:
            break
        body, mac = by_number[number]
        if anchor is not None and number == anchor[0] and not _same(mac, anchor[1]):
            problems.append(f"record {number}: differs from the anchor")
        if before is not None and number != before + 1:
            gap = f"records {before + 1} to {number - 1}" if number > before + 2 else (
                f"record {before + 1}"
            )  # fmt: skip
            problems.append(f"{gap}: missing")
        elif (before is not None or number == 1 or number == last + 1) and not _same(
            record_mac(secret, number, "" if number == 1 else previous, canonical(body)), mac
        ):
            problems.append(f"record {number}: it or an earlier record was edited")
        before, previous = number, mac
    end = (final, by_number[final][1]) if numbers else (0, "")
    return len(numbers), end, problems[:MAX_PROBLEMS]


def _same(left: str, right: str) -> bool:
    return hmac.compare_digest(left.encode(), right.encode())
