"""What to write, and who enforces what: pure, from what was compiled and what Redis says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engineroom.ratelimit.distribution.document import content_hash, write
from engineroom.ratelimit.distribution.redis_schema import LIMITER, owner_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from engineroom.ratelimit.distribution.compile import Compiled
    from engineroom.ratelimit.distribution.document import Head, Text
    from engineroom.ratelimit.reconcile.observe import Enforcer


#: Another installation's document is left alone until that has not looked at it for so long
#: (seconds).
GONE_AFTER: Final = 600.0
#: Enforcers that a message names.
_NAMED: Final = 3


class Standing(NamedTuple):
    """The document that enforcers are to follow, as far as acknowledging it goes."""

    hash: str
    revision: int
    lineage: str


class Count(NamedTuple):
    """Enforcers of one policy."""

    #: Live ones that acknowledged it, and all live ones.
    ready: int
    total: int
    #: Live ones that have not, and why as far as they say: at most a few.
    lagging: tuple[str, ...] = ()
    #: Who vanished without signing off and may enforce something else: at most a few.
    lost: tuple[str, ...] = ()
    #: Whether applications enforce it by their labels; else decision services do, by targets.
    by_labels: bool = False
    #: The older policy that applications follow whose labels match this one's selector, too.
    instead: str = ""


class Crew(NamedTuple):
    """Who enforces one policy."""

    members: tuple[Enforcer, ...]
    by_labels: bool
    instead: str = ""


_NOBODY: Final = Crew((), by_labels=False)


class Crews:
    """Who enforces which policy of a document, of those who follow it.

    A decision service enforces what is attached to targets; an application with the middleware the
    oldest policy whose selector its labels have. Others enforce nothing that is known of. Somebody
    whose word cannot be read may be any of them.
    """

    def __init__(
        self, enforcers: Iterable[Enforcer], parts: Iterable[tuple[Mapping[str, Any], str]]
    ) -> None:
        # By name, so that the same laggards make the same message.
        every = sorted(enforcers, key=lambda one: one.identity)
        services = [each for each in every if each.word is None or each.word.role == LIMITER]
        self._services = Crew(tuple(services), by_labels=False)
        self._unread = tuple(each for each in every if each.word is None)
        self._applications: dict[str, list[Enforcer]] = {}
        self._instead: dict[str, str] = {}
        #: Every policy of the document, and whether labels select who enforces it.
        self._by_labels: dict[str, bool] = {}
        matching = self._matcher(parts)
        found: dict[tuple[tuple[str, str], ...], list[str]] = {}
        for each in every:
            if each.word is None or not each.word.labels:
                continue
            labels = each.word.labels
            names = found.get(labels)
            if names is None:
                names = found[labels] = matching(labels)
            if names:
                self._applications.setdefault(names[0], []).append(each)
                self._instead.update(dict.fromkeys(names[1:], names[0]))

    def of(self, name: str) -> Crew:
        """Who enforces a policy; nobody does that is not in the document."""
        by_labels = self._by_labels.get(name)
        if not by_labels:
            return _NOBODY if by_labels is None else self._services
        members = (*self._applications.get(name, ()), *self._unread)
        return Crew(members, by_labels=True, instead=self._instead.get(name, ""))

    def _matcher(
        self, parts: Iterable[tuple[Mapping[str, Any], str]]
    ) -> Callable[[tuple[tuple[str, str], ...]], list[str]]:
        """Names of the policies that labels have the selectors of, oldest first."""
        # By one pair of each selector: there may be thousands of selectors.
        places: dict[tuple[str, str], list[tuple[int, str, Mapping[str, str]]]] = {}
        for place, (part, _) in enumerate(parts):
            selector = part.get("selector")
            self._by_labels[str(part["name"])] = bool(selector)
            if selector:
                pair = min(selector.items())
                places.setdefault(pair, []).append((place, str(part["name"]), selector))

        def matching(labels: tuple[tuple[str, str], ...]) -> list[str]:
            pairs = dict(labels)
            found = [
                (place, name)
                for pair in labels
                for place, name, selector in places.get(pair, ())
                if all(pairs.get(key) == value for key, value in selector.items())
            ]
            return [name for _, name in sorted(found)]

        return matching


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
    has lost: an enforcer may have acknowledged it. ``lineage`` names a new line of documents; it is
    begun, too, where the one that stands is of another owner.
    """
    if standing is None or owner_of(standing.lineage) != owner_of(lineage):
        if standing is None and not compiled.parts:
            return None
        least = least_revision if standing is None else max(standing.revision + 1, least_revision)
        return write(
            namespace,
            compiled.parts,
            revision=least,
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


def is_gone(watched: float, silent: float | None) -> bool:
    """Whether another installation, whose document was watched for so long, may be replaced.

    ``silent`` is how long it has not looked, None where Redis has forgotten it or it has not
    written all of its documents yet; both in seconds.
    """
    return watched >= GONE_AFTER and (silent is None or silent >= GONE_AFTER)


def has(enforcer: Enforcer, standing: Standing, since: int) -> bool:
    """Whether an enforcer acknowledged a policy whose content came in revision ``since``."""
    word = enforcer.word
    if word is None:
        return False
    if word.hash == standing.hash:
        return True
    return word.lineage == standing.lineage and since <= word.revision < standing.revision


def count(crew: Crew, standing: Standing, since: int) -> Count:
    """How many of a policy's live enforcers have it.

    One that vanished after it had acknowledged it enforces it still, if it is there at all.
    """
    ready = total = 0
    lagging: list[str] = []
    lost: list[str] = []
    vanished = [each.identity for each in crew.members if not each.live]
    for each in crew.members:
        it_has = has(each, standing, since)
        if not each.live:
            if not it_has:
                lost.append(each.identity)
            continue
        total += 1
        if it_has:
            ready += 1
        elif len(lagging) < _NAMED:
            trouble = each.word.trouble if each.word is not None else "its word cannot be read"
            lagging.append(f"{each.identity} ({trouble})" if trouble else each.identity)
    # With nobody there it is not known of any whether it still enforces something.
    doubted = vanished if total == 0 else lost
    return Count(
        ready, total, tuple(lagging), tuple(doubted[:_NAMED]), crew.by_labels, crew.instead
    )
