"""Pure decisions on a namespace's document and its enforcers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engineroom.ratelimit.distribution.document import content_hash, render_document
from engineroom.ratelimit.distribution.redis_schema import LIMITER, owner_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from engineroom.ratelimit.distribution.compile import CompiledNamespace
    from engineroom.ratelimit.distribution.document import DocumentHead, DocumentText
    from engineroom.ratelimit.reconcile.observe import Enforcer


#: Seconds without a check after which another installation's document may be replaced.
OWNER_GONE_SECONDS: Final = 600.0
#: Most enforcers named in a message.
_MAX_NAMED: Final = 3


class CurrentDocument(NamedTuple):
    """The document that enforcers have to acknowledge."""

    hash: str
    revision: int
    lineage: str


NO_DOCUMENT: Final = CurrentDocument("", 0, "")


class EnforcerCount(NamedTuple):
    """The enforcers of one policy."""

    #: Live enforcers that acknowledged the policy, and all live ones.
    ready: int
    total: int
    #: Some of the live enforcers that did not, with their problem.
    lagging: tuple[str, ...] = ()
    #: Some of the enforcers that vanished without signing off, and may enforce something else.
    lost: tuple[str, ...] = ()
    #: Whether applications enforce the policy by their labels; otherwise decision services do.
    by_labels: bool = False
    #: The older policy that applications follow if their labels match both selectors.
    shadowed_by: str = ""


class EnforcerSet(NamedTuple):
    """The enforcers of one policy, live and lost."""

    members: tuple[Enforcer, ...]
    by_labels: bool
    shadowed_by: str = ""


_EMPTY: Final = EnforcerSet((), by_labels=False)


class EnforcerAssignment:
    """Assigns the followers of a document to the policies that they enforce.

    A decision service enforces policies with targets. A middleware enforces the oldest policy whose
    selector matches its application's labels. Enforcers in neither group are ignored. One whose
    acknowledgement cannot be parsed counts for every policy.
    """

    def __init__(
        self, enforcers: Iterable[Enforcer], parts: Iterable[tuple[Mapping[str, Any], str]]
    ) -> None:
        # Sorted, so that the same enforcers result in the same message.
        ordered = sorted(enforcers, key=lambda enforcer: enforcer.identity)
        self._unreadable = tuple(
            enforcer for enforcer in ordered if enforcer.acknowledgement is None
        )
        services = tuple(
            enforcer
            for enforcer in ordered
            if enforcer.acknowledgement is None or enforcer.acknowledgement.role == LIMITER
        )
        self._services = EnforcerSet(services, by_labels=False)
        self._applications: dict[str, list[Enforcer]] = {}
        self._shadowed_by: dict[str, str] = {}
        #: Every policy of the document, and whether it has a selector.
        self._by_labels: dict[str, bool] = {}
        matching = self._matcher(parts)
        matches: dict[tuple[tuple[str, str], ...], list[str]] = {}
        for enforcer in ordered:
            acknowledgement = enforcer.acknowledgement
            if acknowledgement is None or not acknowledgement.labels:
                continue
            labels = acknowledgement.labels
            names = matches.get(labels)
            if names is None:
                names = matches[labels] = matching(labels)
            if names:
                self._applications.setdefault(names[0], []).append(enforcer)
                self._shadowed_by.update(dict.fromkeys(names[1:], names[0]))

    def of(self, name: str) -> EnforcerSet:
        """Return the enforcers of a policy; an empty set for one that is not in the document."""
        by_labels = self._by_labels.get(name)
        if not by_labels:
            return _EMPTY if by_labels is None else self._services
        members = (*self._applications.get(name, ()), *self._unreadable)
        return EnforcerSet(members, by_labels=True, shadowed_by=self._shadowed_by.get(name, ""))

    def _matcher(
        self, parts: Iterable[tuple[Mapping[str, Any], str]]
    ) -> Callable[[tuple[tuple[str, str], ...]], list[str]]:
        """Return a function from labels to the policies whose selectors match, oldest first."""
        # Indexed by one pair of each selector: there may be thousands of selectors.
        by_pair: dict[tuple[str, str], list[tuple[int, str, Mapping[str, str]]]] = {}
        for position, (part, _) in enumerate(parts):
            selector = part.get("selector")
            self._by_labels[str(part["name"])] = bool(selector)
            if selector:
                pair = min(selector.items())
                by_pair.setdefault(pair, []).append((position, str(part["name"]), selector))

        def matching(labels: tuple[tuple[str, str], ...]) -> list[str]:
            pairs = dict(labels)
            matches = [
                (position, name)
                for pair in labels
                for position, name, selector in by_pair.get(pair, ())
                if all(pairs.get(key) == value for key, value in selector.items())
            ]
            return [name for _, name in sorted(matches)]

        return matching


def next_document(
    namespace: str,
    compiled: CompiledNamespace,
    current: DocumentHead | None,
    *,
    least_revision: int,
    lineage: str,
) -> DocumentText | None:
    """Return the document to write; None if the current one has the same content.

    ``least_revision`` must exceed every revision ever written, including one that a fail-over of
    Redis lost: an enforcer may have acknowledged it. ``lineage`` names a new lineage, which begins
    without a current document, or if the current one has another owner.
    """
    if current is None or owner_of(current.lineage) != owner_of(lineage):
        if current is None and not compiled.parts:
            return None
        least = least_revision if current is None else max(current.revision + 1, least_revision)
        return render_document(
            namespace,
            compiled.parts,
            revision=least,
            lineage=lineage,
            before={},
            texts=compiled.texts,
        )
    content = content_hash((str(part["name"]), part_digest) for part, part_digest in compiled.parts)
    if content == current.hash:
        return None
    return render_document(
        namespace,
        compiled.parts,
        revision=max(current.revision + 1, least_revision),
        lineage=current.lineage,
        before=current.policies,
        texts=compiled.texts,
    )


def is_owner_gone(watched: float, since_check: float | None) -> bool:
    """Return whether the document of another installation may be replaced.

    ``watched`` is how long that document was observed. ``since_check`` is the time since the
    installation's last check, None if Redis has no record of it. Both are in seconds.
    """
    return watched >= OWNER_GONE_SECONDS and (
        since_check is None or since_check >= OWNER_GONE_SECONDS
    )


def has_acknowledged(enforcer: Enforcer, current: CurrentDocument, since: int) -> bool:
    """Return whether an enforcer acknowledged a policy that last changed in revision ``since``."""
    acknowledgement = enforcer.acknowledgement
    if acknowledgement is None:
        return False
    if acknowledgement.hash == current.hash:
        return True
    return (
        acknowledgement.lineage == current.lineage
        and since <= acknowledgement.revision < current.revision
    )


def count_enforcers(enforcers: EnforcerSet, current: CurrentDocument, since: int) -> EnforcerCount:
    """Count the live enforcers of a policy that last changed in revision ``since``.

    An enforcer that vanished after its acknowledgement still enforces the policy if it runs at all.
    """
    ready = total = 0
    lagging: list[str] = []
    lost: list[str] = []
    vanished = [enforcer.identity for enforcer in enforcers.members if not enforcer.live]
    for enforcer in enforcers.members:
        acknowledged = has_acknowledged(enforcer, current, since)
        if not enforcer.live:
            if not acknowledged:
                lost.append(enforcer.identity)
            continue
        total += 1
        if acknowledged:
            ready += 1
        elif len(lagging) < _MAX_NAMED:
            acknowledgement = enforcer.acknowledgement
            problem = (
                "its acknowledgement cannot be read"
                if acknowledgement is None
                else acknowledgement.problem
            )
            lagging.append(f"{enforcer.identity} ({problem})" if problem else enforcer.identity)
    # Without a live enforcer, each vanished one may still enforce something.
    doubtful = vanished if total == 0 else lost
    return EnforcerCount(
        ready,
        total,
        tuple(lagging),
        tuple(doubtful[:_MAX_NAMED]),
        enforcers.by_labels,
        enforcers.shadowed_by,
    )
