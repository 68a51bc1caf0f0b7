"""What to write, and who enforces what: pure, from what was compiled and what Redis says."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from engineroom.ratelimit.document import content_hash, write

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engineroom.ratelimit.compile import Compiled
    from engineroom.ratelimit.document import Head, Text
    from engineroom.ratelimit.observe import Enforcer


class Standing(NamedTuple):
    """The document that enforcers are to follow, as far as acknowledging it goes."""

    hash: str
    revision: int
    lineage: str


class Count(NamedTuple):
    """Enforcers of one policy."""

    ready: int
    total: int
    #: Those that have not acknowledged it, and why as far as they say: at most a few.
    lagging: tuple[str, ...] = ()


def next_document(
    namespace: str,
    compiled: Compiled,
    standing: Head | None,
    *,
    least_revision: int,
    lineage: str,
) -> Text | None:
    """The document to write; None when the one that stands says the same.

    ``least_revision`` must be above every revision ever written, even one that a fail-over of Redis
    has lost: an enforcer may have acknowledged it. ``lineage`` names a new line of documents.
    """
    if standing is None:
        if not compiled.parts:
            return None
        return write(
            namespace,
            compiled.parts,
            revision=least_revision,
            lineage=lineage,
            before={},
            texts=compiled.texts,
        )
    whole = content_hash((str(part["name"]), its) for part, its in compiled.parts)
    if whole == standing.hash:
        return None
    return write(
        namespace,
        compiled.parts,
        revision=max(standing.revision + 1, least_revision),
        lineage=standing.lineage,
        before=standing.policies,
        texts=compiled.texts,
    )


def has(enforcer: Enforcer, standing: Standing, since: int) -> bool:
    """Whether an enforcer acknowledged a policy whose content came in revision ``since``."""
    word = enforcer.word
    if word is None:
        return False
    if word.hash == standing.hash:
        return True
    return word.lineage == standing.lineage and since <= word.revision < standing.revision


def count(enforcers: Iterable[Enforcer], standing: Standing, since: int) -> Count:
    """How many of the live enforcers have a policy."""
    ready = total = 0
    lagging: list[str] = []
    # By name, so that the same laggards make the same message.
    for each in sorted(enforcers, key=lambda one: one.identity):
        total += 1
        if has(each, standing, since):
            ready += 1
        elif len(lagging) < 3:
            trouble = each.word.trouble if each.word is not None else "its word cannot be read"
            lagging.append(f"{each.identity} ({trouble})" if trouble else each.identity)
    return Count(ready, total, tuple(lagging))
