"""RateLimitPolicy: compile a namespace, write its document, read who follows, set status.

All policies of a namespace are considered together, because they share a document and may conflict.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from engineroom.api import validation
from engineroom.api.v1alpha1.ratelimitpolicy import RateLimitPolicy
from engineroom.core import reasons
from engineroom.core.errors import (
    DependencyError,
    EngineroomError,
    InvalidSpecError,
    MeasurementError,
    SecretError,
)
from engineroom.kube.client.errors import Forbidden, NotFound
from engineroom.kube.client.resources import RATELIMITPOLICIES
from engineroom.kube.client.secrets import Secrets
from engineroom.ratelimit.distribution.compile import (
    Candidate,
    CompiledNamespace,
    compile_namespace,
    compile_policy,
    last_valid_candidate,
)
from engineroom.ratelimit.distribution.document import head_of
from engineroom.ratelimit.distribution.publish import record_check, replace_document
from engineroom.ratelimit.distribution.redis_schema import lineage_of, owner_of
from engineroom.ratelimit.limits.model import FailureMode
from engineroom.ratelimit.reconcile.decide import (
    OWNER_GONE_SECONDS,
    CurrentDocument,
    EnforcerAssignment,
    EnforcerCount,
    count_enforcers,
    is_owner_gone,
    next_document,
)
from engineroom.ratelimit.reconcile.metrics import PolicyMetrics
from engineroom.ratelimit.reconcile.observe import (
    EnforcerRoster,
    read_current,
    read_identity,
    read_roster,
    seconds_since_check,
)
from engineroom.ratelimit.reconcile.redis_connections import Links
from engineroom.ratelimit.reconcile.status import (
    Failing,
    Seen,
    invalid_text,
    is_enforced,
    policy_status,
)
from engineroom.ratelimit.reconcile.targets import Targets
from engineroom.redis.address import Address, reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from engineroom.kube.runtime.controller import Context, Record
    from engineroom.ratelimit.distribution.document import DocumentHead, Target
    from engineroom.ratelimit.reconcile.observe import FallbackCount
    from engineroom.ratelimit.reconcile.redis_connections import Link

log = structlog.get_logger(__name__)

#: Seconds between looks: at a namespace where somebody has yet to acknowledge, at one at rest, and
#: at one whose Redis does not answer.
LOOK_AWAITING, LOOK_AT_REST, LOOK_BLIND = 1.0, 3.0, 1.0
#: After a document was written enforcers are waited for so long before status is written, so that
#: it mostly is written once, and asked so often (seconds); words that they say later are looked at
#: together when they come within so long.
ACKNOWLEDGE_WITHIN, ACKNOWLEDGE_GLANCE, WORDS_TOGETHER = 0.25, 0.01, 0.01
#: Statuses are written for so long at a time; then it is looked whether there is other news.
TELL_FOR = 5.0
#: Mere figures, of enforcers that come and go, are written so often at most a policy (seconds), and
#: so many at a look; others' news goes before.
FIGURES_EVERY, FIGURES_AT_ONCE = 3.0, 64
#: A policy is degraded for so long after the last decision without Redis that was told of, and how
#: many there were is written so often at most (seconds).
DEGRADED_FOR, FAILURES_EVERY = 30.0, 15.0
#: While not all documents are written to a Redis that was empty, so soon it is looked again.
LOOK_UNPUBLISHED = 0.1
#: Statuses written at the same time.
STATUSES_AT_ONCE = 16
#: How often documents are looked for whose namespace has no policy any more (seconds).
SWEEP = 300.0
#: Keys of the queue that are no policies and no namespaces, which cannot begin with a slash.
SWEEP_KEY, PUBLISHED_KEY = "/sweep", "/published"
_NEVER = -1e9


@dataclass(slots=True)
class _Known:
    """What the controller remembers of a policy; all of it can be found again by looking."""

    uid: str
    generation: int
    created: str
    candidate: Candidate | None
    invalid: str
    targets: tuple[Target, ...]
    #: The Secrets that its Redis is named by; None: the installation's own.
    redis: tuple[tuple[str, str], tuple[str, str] | None, bool] | None
    #: What its status was made from last, and when (monotonic seconds).
    told: Seen | None = None
    told_at: float = _NEVER
    enforced: bool = False
    #: What was said last of decisions without Redis, and when.
    failing: Failing = field(default_factory=Failing)
    failing_at: float = _NEVER


@dataclass(slots=True)
class _Line:
    """One document: a namespace's policies in one Redis."""

    #: The head that stands there by our knowledge, and what the document says.
    head_text: str | None = None
    head: DocumentHead | None = None
    #: What was compiled last, and from what.
    compiled: CompiledNamespace | None = None
    inputs: tuple[Candidate, ...] = ()
    #: Since when the document is another installation's (monotonic seconds).
    foreign_since: float | None = None
    #: When the last look began that found it as it should be (monotonic seconds).
    looked: float = _NEVER


@dataclass(slots=True)
class _Group:
    """One namespace."""

    names: set[str] = field(default_factory=set)
    known: dict[str, _Known] = field(default_factory=dict)
    lines: dict[Address, _Line] = field(default_factory=dict)
    #: Something changed since the run under way began.
    dirty: bool = True
    #: What all statuses were made from last; None when one of them has to be looked at.
    settled: object = None
    #: When the last look began that came to its end (monotonic seconds).
    looked: float = _NEVER


class _Result(NamedTuple):
    """What became of the policies of one Redis."""

    compiled: CompiledNamespace | None
    head: DocumentHead | None
    roll: EnforcerRoster | None
    trouble: tuple[str, str] | None
    #: Why nothing is written: the document is another installation's.
    foreign: str = ""


class RateLimitPolicyController:
    """Reconciles RateLimitPolicies: one document a namespace, and the status of each policy."""

    kind = RATELIMITPOLICIES

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._groups: dict[str, _Group] = {}
        #: Above every revision that was ever written from here.
        self._revision = 0
        #: Since when a Redis is known not to have all documents (monotonic seconds).
        self._incomplete: dict[Address, float] = {}
        self._context: Context
        self._secrets: Secrets
        self._links: Links
        self._targets: Targets
        self._census: PolicyMetrics

    # -- what happens outside --------------------------------------------------------------------

    async def start(self, context: Context) -> None:
        """Connections and caches open as policies need them."""
        self._context = context
        self._secrets = Secrets(context.client, context.clock)
        self._links = Links(self._worded, self._up)
        self._targets = Targets(context, self._look)
        self._census = PolicyMetrics(context.gauge, context.histogram)
        context.queue.add_after(SWEEP_KEY, 0.0)
        context.queue.add_after(PUBLISHED_KEY, 0.0)
        context.gauge(
            "engineroom_ratelimit_policies_unenforced",
            "Policies that not every live enforcer has acknowledged, or that nobody follows.",
            self._unenforced,
        )

    def _unenforced(self) -> float:
        every = (known for group in self._groups.values() for known in group.known.values())
        return float(sum(not known.enforced for known in every))

    async def stop(self) -> None:
        """Close the connections to Redis and the caches."""
        await self._targets.stop()
        await self._links.close()

    def changed(self, key: str, obj: Record | None) -> None:
        """A policy is new, different or gone (None)."""
        namespace, _, name = key.partition("/")
        group = self._groups.setdefault(namespace, _Group())
        group.settled = None
        if obj is None:
            group.dirty = True
            group.names.discard(name)
            self._census.deleted(key)
            self._context.queue.forget(key)
            self._context.queue.add(namespace, urgent=True)
            return
        group.names.add(name)
        known = group.known.get(name)
        if known is None or (known.uid, known.generation) != (obj.uid, obj.generation):
            group.dirty = True
            self._census.changed(key, obj.generation, self._context.clock.monotonic())
        if known is not None:
            known.told = None  # somebody else may have written its status

    def _worded(self, namespace: str) -> None:
        if namespace in self._groups:
            self._context.queue.add_after(namespace, WORDS_TOGETHER)

    def _up(self) -> None:
        for namespace in self._groups:
            self._context.queue.add(namespace)
        self._context.queue.add(PUBLISHED_KEY)

    def _look(self, namespace: str) -> None:
        if namespace in self._groups:
            self._context.queue.add(namespace)

    # -- the reconcile ---------------------------------------------------------------------------

    async def reconcile(self, key: str) -> float | None:
        """Make a namespace's document as its policies say; returns seconds until to look again."""
        if key == SWEEP_KEY:
            return await self._sweep()
        if key == PUBLISHED_KEY:
            return await self._publish()
        namespace, found, _ = key.partition("/")
        if found:
            self._context.queue.add(namespace, urgent=True)
            return None
        group = self._groups.get(namespace)
        if group is None:
            return None
        return await self._reconcile(namespace, group)

    async def _reconcile(self, namespace: str, group: _Group) -> float | None:
        group.dirty = False
        began = self._context.clock.monotonic()
        self._parse(namespace, group)
        by_address, troubled = await self._addresses(namespace, group)
        by_address = await self._merged(group, by_address)
        results: dict[str, _Result] = {}
        for name, trouble in troubled.items():
            results[name] = _Result(None, None, None, trouble)
        for address in {**dict.fromkeys(group.lines), **by_address}:
            names = by_address.get(address, [])
            result = await self._program(namespace, group, address, names)
            results.update(dict.fromkeys(names, result))
            if not names and result.trouble is None:
                group.lines.pop(address, None)
        group.looked = began
        if not group.names:
            if not group.lines:
                self._groups.pop(namespace, None)
                await self._close_unused()
                return None
            return LOOK_BLIND
        more = await self._tell(namespace, group, results)
        await self._close_unused()
        if more:
            return 0.1
        return _again(results.values())

    def _parse(self, namespace: str, group: _Group) -> None:
        """Look at the specs that are new; forget who is gone."""
        for name in list(group.names):
            record = self._context.store.get(f"{namespace}/{name}")
            if record is None or record.deleting:
                group.names.discard(name)
                continue
            known = group.known.get(name)
            if known is None or known.uid != record.uid or known.generation != record.generation:
                before = known if known is not None and known.uid == record.uid else None
                group.known[name] = _known(record, before)
        for name in group.known.keys() - group.names:
            del group.known[name]

    async def _addresses(
        self, namespace: str, group: _Group
    ) -> tuple[dict[Address, list[str]], dict[str, tuple[str, str]]]:
        """Policies by the Redis that they name, and what is wrong with those that name none."""
        found: dict[Address, list[str]] = {}
        troubled: dict[str, tuple[str, str]] = {}
        for name, known in group.known.items():
            try:
                address = await self._address(namespace, known)
            except SecretError as error:
                troubled[name] = (error.reason, str(error))
            except DependencyError as error:
                troubled[name] = (reasons.REDIS_UNREACHABLE, f"the address is not known: {error}")
            else:
                found.setdefault(address, []).append(name)
        return found, troubled

    async def _address(self, namespace: str, known: _Known) -> Address:
        if known.redis is None:
            if not self._redis_url:
                raise SecretError(
                    reasons.SECRET_NOT_FOUND,
                    "the installation has no Redis of its own; set spec.redis.urlSecretRef",
                )
            return Address(self._redis_url)
        url, ca, insecure = known.redis
        text = "" if ca is None else await self._secrets.value(namespace, *ca)
        return Address(await self._secrets.value(namespace, *url), text, insecure)

    async def _merged(
        self, group: _Group, by_address: dict[Address, list[str]]
    ) -> dict[Address, list[str]]:
        """The same with one address for each Redis: two may be spellings of one, which holds one
        document. Lines at the other spellings are forgotten: what stands there is not left over."""
        kept = [address for address in group.lines if address in by_address]
        every = list(dict.fromkeys([*kept, *by_address, *group.lines]))
        if len(every) < 2:
            return by_address
        first: dict[str, Address] = {}
        merged: dict[Address, list[str]] = {}
        for address in every:
            names = by_address.get(address, [])
            try:
                place = first.setdefault(
                    await read_identity(self._links.of(address).redis), address
                )
            except (SecretError, MeasurementError):
                place = address  # the look at it says what is wrong
            if place is not address:
                group.lines.pop(address, None)
            if names:
                merged.setdefault(place, []).extend(names)
        return merged

    # -- the document ----------------------------------------------------------------------------

    async def _program(
        self, namespace: str, group: _Group, address: Address, names: list[str]
    ) -> _Result:
        line = group.lines.setdefault(address, _Line())
        began = self._context.clock.monotonic()
        try:
            link = self._links.of(address)
            seen = await read_roster(link.redis, namespace)
            if line.head_text and not seen.head:
                self._context.queue.add(PUBLISHED_KEY)  # flushed
            if line.head_text is None or seen.head != line.head_text:
                line.head_text, line.head = await read_current(link.redis, namespace)
                line.compiled = None
            foreign = await self._foreign(namespace, link, line, left=not names)
            if foreign:
                line.looked = began
                return _Result(None, None, None, None, foreign)
            compiled = self._compile(group, line, names)
            if await self._write(namespace, link, line, compiled):
                seen = await self._acknowledged(namespace, link, line)
        except SecretError as error:
            return _Result(line.compiled, line.head, None, (error.reason, str(error)))
        except (MeasurementError, DependencyError) as error:
            # Whether a write that failed was made is not known: read again what stands there.
            line.head_text = None
            for name in names:
                self._doubt(namespace, group.known[name])
            return _Result(line.compiled, line.head, None, (reason_of(error), str(error)))
        line.looked = began
        self._followed(namespace, address, seen, line.head)
        return _Result(compiled, line.head, seen, None)

    async def _foreign(self, namespace: str, link: Link, line: _Line, *, left: bool) -> str:
        """Why the document has to be left alone: another installation's is, unless that has gone
        and there are policies to take its place. "" when it may be replaced."""
        owner = owner_of(line.head_text or "")
        if not owner or owner == self._context.installation():
            line.foreign_since = None
            return ""
        now = self._context.clock.monotonic()
        if line.foreign_since is None:
            line.foreign_since = now
        silent = await seconds_since_check(link.redis, owner)
        if not left and is_owner_gone(now - line.foreign_since, silent):
            log.warning("policies taken over", namespace=namespace, installation=owner)
            return ""
        return (
            f"in this Redis the policies of namespace {namespace} are written by another "
            f"installation ({owner}); give each a Redis or a database of its own. If it is no "
            f"more, its place is taken {OWNER_GONE_SECONDS / 60:.0f} minutes after its last sign"
        )

    def _followed(
        self, namespace: str, address: Address, seen: EnforcerRoster, head: DocumentHead | None
    ) -> None:
        newest = "" if head is None else head.hash
        live = [each for each in seen.enforcers if each.live]
        current = sum(
            each.acknowledgement is not None and each.acknowledgement.hash == newest
            for each in live
        )
        self._census.enforcers(namespace, address, len(live), current)

    def _compile(self, group: _Group, line: _Line, names: list[str]) -> CompiledNamespace:
        inputs = []
        for name in names:
            known = group.known[name]
            if known.candidate is not None:
                inputs.append(known.candidate)
            elif line.head is not None and name in line.head.parts:
                inputs.append(last_valid_candidate(line.head.parts[name], known.created))
        if line.compiled is None or line.inputs != tuple(inputs):
            line.inputs = tuple(inputs)
            line.compiled = compile_namespace(inputs)
        return line.compiled

    async def _write(
        self, namespace: str, link: Link, line: _Line, compiled: CompiledNamespace
    ) -> bool:
        """Replace the document if it says something else; returns whether it did."""
        now = int(self._context.clock.now().timestamp() * 1000)
        text = next_document(
            namespace,
            compiled,
            line.head,
            least_revision=max(self._revision + 1, now),
            lineage=lineage_of(self._context.installation(), secrets.token_hex(6)),
        )
        if text is None:
            return False
        self._revision = max(self._revision, text.revision)
        line.head_text = await replace_document(link.redis, namespace, line.head_text or "", text)
        line.head = head_of(text, compiled.parts)
        log.info(
            "policies programmed",
            namespace=namespace,
            revision=text.revision,
            policies=len(compiled.parts),
            bytes=len(text.text),
        )
        return True

    async def _acknowledged(self, namespace: str, link: Link, line: _Line) -> EnforcerRoster:
        """Who follows, once all of them do, or have had their time."""
        monotonic = self._context.clock.monotonic
        until = monotonic() + ACKNOWLEDGE_WITHIN
        while True:
            seen = await read_roster(link.redis, namespace)
            words = [each.acknowledgement for each in seen.enforcers if each.live]
            whole = line.head is None or all(w and w.hash == line.head.hash for w in words)
            if whole or monotonic() >= until:
                return seen
            await asyncio.sleep(ACKNOWLEDGE_GLANCE)

    def _doubt(self, namespace: str, known: _Known) -> None:
        if known.redis is not None:
            for reference in known.redis[:2]:
                if reference is not None:
                    self._secrets.doubt(namespace, reference[0])

    # -- say so ----------------------------------------------------------------------------------

    async def _tell(self, namespace: str, group: _Group, results: dict[str, _Result]) -> bool:
        """Write the statuses that differ; returns whether some have to wait for the next look."""
        inputs = self._inputs(results)
        if group.settled == inputs:
            return False
        group.settled = None
        due: list[tuple[str, _Known, Seen]] = []
        figures = waiting = 0
        now = self._context.clock.monotonic()
        counted = _counted(results.values())
        more = False
        for name, known in group.known.items():
            seen = await self._seen(namespace, known, name, results[name], counted)
            known.enforced = is_enforced(seen)
            if seen == known.told:
                continue
            if known.told is not None and _same_verdict(seen, known.told):
                if now - known.told_at < FIGURES_EVERY:
                    waiting += 1
                    continue
                figures += 1
                if figures > FIGURES_AT_ONCE:
                    more = True
                    continue
            due.append((name, known, seen))
        while due and not group.dirty and self._context.clock.monotonic() - now < TELL_FOR:
            chunk, due = due[:STATUSES_AT_ONCE], due[STATUSES_AT_ONCE:]
            told = await asyncio.gather(
                *(self._write_status(namespace, *each) for each in chunk), return_exceptions=True
            )
            for error in told:
                if isinstance(error, BaseException):
                    raise error
        if not (more or due or waiting or group.dirty):
            told_all = all(known.told is not None for known in group.known.values())
            group.settled = inputs if told_all else None
        return more or bool(due)

    def _inputs(self, results: dict[str, _Result]) -> object:
        """What statuses depend on besides the policies themselves; equal when nothing changed."""
        every = {id(result): result for result in results.values()}.values()
        return self._targets.changes, frozenset(
            (
                id(result.compiled),
                result.head and result.head[:3],
                result.roll
                and frozenset(
                    (each.identity, each.acknowledgement, each.live)
                    for each in result.roll.enforcers
                ),
                result.roll
                and frozenset(
                    (name, told.total, told.age < DEGRADED_FOR)
                    for name, told in result.roll.fallbacks.items()
                ),
                result.trouble,
                result.foreign,
            )
            for result in every
        )

    async def _seen(
        self,
        namespace: str,
        known: _Known,
        name: str,
        result: _Result,
        counted: Callable[[_Result, str], EnforcerCount | None],
    ) -> Seen:
        verdict = result.compiled.results.get(name) if result.compiled is not None else None
        if result.roll is not None:
            self._note_failures(known, result, name)
        return Seen(
            known.generation,
            verdict,
            counted(result, name),
            known.targets,
            await self._targets.missing(namespace, known.targets),
            known.invalid,
            result.trouble,
            result.foreign,
            known.failing,
        )

    def _note_failures(self, known: _Known, result: _Result, name: str) -> None:
        """Decisions without Redis, as status is to say: not anew at each heartbeat."""
        told: FallbackCount | None = (
            result.roll.fallbacks.get(name) if result.roll is not None else None
        )
        if told is None:
            failing = Failing()
        else:
            part = result.head.parts.get(name) if result.head is not None else None
            mode = FailureMode(part["policy"]["failure"][0]) if part else FailureMode.LOCAL
            failing = Failing(told.total, told.age < DEGRADED_FOR, mode)
        now, said = self._context.clock.monotonic(), known.failing
        same = (failing.now, failing.mode) == (said.now, said.mode)
        if same and failing.now and now - known.failing_at < FAILURES_EVERY:
            return
        if failing != said:
            known.failing, known.failing_at = failing, now

    async def _write_status(self, namespace: str, name: str, known: _Known, seen: Seen) -> None:
        record = self._context.store.get(f"{namespace}/{name}")
        if record is None or record.uid != known.uid:
            return
        old: dict[str, Any] = record.load().get("status") or {}
        status = policy_status(old, seen, self._context.clock.now())
        if status != old:
            metadata = {"namespace": namespace, "name": name, "uid": known.uid}
            try:
                answer = await self._context.client.apply_status(
                    RATELIMITPOLICIES, {"metadata": metadata, "status": status}
                )
            except NotFound:
                return  # gone meanwhile; the watch tells
            except Forbidden as error:
                if error.namespace_terminating:
                    return
                raise
            self._context.store.wrote(answer)
            self._event(namespace, name, known, old, status)
        known.told, known.told_at = seen, self._context.clock.monotonic()
        self._census.status_written(f"{namespace}/{name}", old, status, known.told_at)

    def _event(
        self, namespace: str, name: str, known: _Known, old: dict[str, Any], new: dict[str, Any]
    ) -> None:
        """A warning when the policy stops being accepted, or for another reason."""
        before, after = (_condition(status, "Accepted") for status in (old, new))
        if after.get("status") == "False" and after.get("reason") != before.get("reason"):
            self._context.recorder.record(
                RATELIMITPOLICIES.ref(namespace, name, known.uid),
                "Warning",
                str(after["reason"]),
                str(after["message"])[:1024],
            )

    # -- whether all is there ---------------------------------------------------------------------

    async def _publish(self) -> float:
        """Have each Redis say that all documents are in it, once they are.

        A Redis that was flushed, restarted or failed over without its data says so no more, and who
        begins to follow there takes no document for no answer instead of for no policies.
        """
        installation, soon = self._context.installation(), False
        links = self._links.open()
        for closed in self._incomplete.keys() - {address for address, _ in links}:
            del self._incomplete[closed]
        for address, link in links:
            since = self._incomplete.get(address)
            behind = [] if since is None else self._behind(address, since)
            written = since is not None and not behind
            try:
                if await record_check(link.redis, installation, all_written=written) or written:
                    self._incomplete.pop(address, None)
                    continue
            except EngineroomError as error:
                log.debug("Redis was not told that its policies are complete", error=str(error))
                self._incomplete.pop(address, None)
                continue
            soon = True
            if since is None:
                since = self._incomplete[address] = self._context.clock.monotonic()
                behind = self._behind(address, since)
            for namespace in behind:
                self._context.queue.add(namespace)
        return LOOK_UNPUBLISHED if soon else LOOK_AT_REST

    def _behind(self, address: Address, since: float) -> list[str]:
        """Namespaces that were not looked at since then, or not with success at that address."""
        return [
            namespace
            for namespace, group in self._groups.items()
            if group.looked <= since
            or (address in group.lines and group.lines[address].looked <= since)
        ]

    # -- what nobody asks for any more -----------------------------------------------------------

    async def _sweep(self) -> float:
        """Documents of namespaces that have no policy left, such as from while nobody watched."""
        if self._redis_url:
            try:
                address = Address(self._redis_url)
                for namespace in await self._links.of(address).namespaces():
                    watched = self._context.namespaces
                    if namespace not in self._groups and (not watched or namespace in watched):
                        self._groups[namespace] = _Group(lines={address: _Line()})
                        self._context.queue.add(namespace)
            except EngineroomError as error:
                log.debug("orphaned documents not listed", error=str(error))
                return LOOK_BLIND
        return SWEEP

    async def _close_unused(self) -> None:
        used = {address for group in self._groups.values() for address in group.lines}
        if self._redis_url:
            used.add(Address(self._redis_url))
        await self._links.keep(used)


def _known(record: Record, before: _Known | None) -> _Known:
    """Parse a policy. One that slipped past admission is known as invalid, with its Redis as it
    was."""
    obj = record.load()
    created = str(obj["metadata"].get("creationTimestamp") or "")
    made = _Known(record.uid, record.generation, created, None, "", (), None)
    try:
        policy = validation.parse(RateLimitPolicy, obj)
        made.candidate = compile_policy(policy, created)
    except InvalidSpecError as error:
        made.invalid = invalid_text(error)
        if before is not None:
            made.targets, made.redis = before.targets, before.redis
        return made
    made.targets = made.candidate.targets
    redis = policy.spec.redis
    if redis is not None:
        tls = redis.tls
        ca = tls.ca_secret_ref if tls is not None else None
        made.redis = (
            (redis.url_secret_ref.name, redis.url_secret_ref.key),
            None if ca is None else (ca.name, ca.key),
            tls is not None and tls.insecure_skip_verify,
        )
    return made


def _same_verdict(seen: Seen, told: Seen) -> bool:
    """Whether nothing but the number of enforcers differs, and all of them have it now as then."""
    return (
        is_enforced(seen)
        and is_enforced(told)
        and dataclasses.replace(seen, count=told.count) == told
    )


def _counted(results: Iterable[_Result]) -> Callable[[_Result, str], EnforcerCount | None]:
    """Counts enforcers of a policy in one of the results, each number once."""
    # All policies of one Redis have the same result.
    every = {id(result): result for result in results}
    crews = {
        key: EnforcerAssignment(result.roll.enforcers, result.compiled.parts)
        for key, result in every.items()
        if result.roll is not None and result.compiled is not None
    }
    counts: dict[tuple[int, int], EnforcerCount] = {}

    def counted(result: _Result, name: str) -> EnforcerCount | None:
        if id(result) not in crews:
            return None
        crew = crews[id(result)].of(name)
        head = result.head
        since = head.policies[name][1] if head is not None and name in head.policies else 0
        # Thousands of policies have the same decision services.
        place = id(result), since
        if not crew.by_labels and place in counts:
            return counts[place]
        found = count_enforcers(
            crew, CurrentDocument("", 0, "") if head is None else CurrentDocument(*head[:3]), since
        )
        if not crew.by_labels:
            counts[place] = found
        return found

    return counted


def _again(results: Iterable[_Result]) -> float:
    """Seconds until to look again."""
    waits = [LOOK_AT_REST]
    for result in results:
        if result.trouble is not None:
            waits.append(LOOK_BLIND)
        elif result.roll is not None and result.head is not None:
            at = CurrentDocument(*result.head[:3])
            if any(
                each.live and (each.acknowledgement is None or each.acknowledgement.hash != at.hash)
                for each in result.roll.enforcers
            ):
                waits.append(LOOK_AWAITING)
    return min(waits)


def _condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    for each in status.get("conditions") or ():
        if each.get("type") == kind:
            return dict(each)
    return {}
