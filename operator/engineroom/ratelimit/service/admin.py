"""The metrics and top keys of several processes that share the ports, as those of one."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Metrics with the same value in every process.
_SHARED = frozenset({"engineroom_ratelimit_policies", "process_start_time_seconds"})


async def fetch(path: str, target: str, seconds: float) -> tuple[int, bytes]:
    """Return status and body of a request to a Unix socket; raise OSError or TimeoutError."""
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            writer.write(f"GET {target} HTTP/1.1\r\nHost: limiter\r\n\r\n".encode())
            answer = await reader.read()
        finally:
            writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 2:
        raise OSError("the process closed the connection")
    return int(words[1]), body


def merge_metrics(texts: Sequence[bytes]) -> bytes:
    """Merge the expositions of several processes: add samples of the same name and labels.

    Suits counters, histograms, and gauges that count per process.
    """
    comments: dict[str, None] = {}
    values: dict[str, float] = {}
    order: dict[str, list[str]] = {}
    for text in texts:
        family = ""
        for line in text.decode().splitlines():
            if line.startswith("#"):
                comments[line] = None
                family = line.split(" ", 3)[2]
                continue
            name, _, value = line.rpartition(" ")
            if name not in values:
                order.setdefault(family, []).append(name)
            before = values.get(name, 0.0)
            values[name] = max(before, float(value)) if name in _SHARED else before + float(value)
    lines = []
    for comment in comments:
        lines.append(comment)
        if comment.startswith("# TYPE "):
            lines += [f"{name} {values[name]}" for name in order.get(comment.split(" ", 3)[2], ())]
    return ("\n".join(lines) + "\n").encode()


def merge_top(documents: Iterable[bytes], many: int) -> bytes:
    """Merge the top keys of several processes."""
    counts: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    total = 0
    for document in documents:
        recording = json.loads(document)
        total += recording["total"]
        for key in recording["keys"]:
            counts[key["key"]] += key["count"]
            errors[key["key"]] += key["error"]
    keys = [
        {"key": key, "count": count, "error": errors[key]}
        for key, count in counts.most_common(many)
    ]
    return json.dumps({"total": total, "keys": keys}).encode()
