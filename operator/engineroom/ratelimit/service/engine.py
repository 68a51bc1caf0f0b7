"""From a question to a decision: finds the policy, asks its limiter, counts what came of it."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, TypeVarTuple

from engineroom.ratelimit.limits.middleware import policy_header
from engineroom.ratelimit.limits.sources import response_costs, subject_of, values_reader
from engineroom.ratelimit.service.explain import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engineroom.ratelimit.limits.decision import Decision
    from engineroom.ratelimit.limits.limiter import AsyncLimiter
    from engineroom.ratelimit.limits.model import Limit, Policy
    from engineroom.ratelimit.limits.request import RequestView
    from engineroom.ratelimit.limits.sources import SubjectValues
    from engineroom.ratelimit.service.metrics import Counts
    from engineroom.ratelimit.service.request_parsing import Question
    from engineroom.ratelimit.service.top import Recordings


#: Refusals of one policy that are remembered.
_MAX_REFUSALS = 4096
_Made = TypeVar("_Made")
_Context = TypeVarTuple("_Context")
#: Makes a named tuple in half the time, without looking at names and defaults.
_new = tuple.__new__


class Missing(StrEnum):
    """Why there is no policy to decide by."""

    #: The name is none of a policy. Refused: a misspelt name must not be a way around a limit.
    UNKNOWN = "unknown"
    #: Nothing is attached to the target: admitted.
    UNATTACHED = "unattached"
    #: The policies were never read yet: refused.
    UNREAD = "unread"


@dataclass(frozen=True, slots=True)
class Enforced:
    """A policy and what decides for it."""

    policy: Policy
    limiter: AsyncLimiter
    #: The value of RateLimit-Policy, made once.
    header: str
    #: All that is counted, by name.
    limits: Mapping[str, Limit]
    #: By what a request counts.
    identify: Callable[[RequestView], SubjectValues]
    #: What admissions by a limit begin with, by its name.
    admissions: dict[str, bytes] = field(default_factory=dict)
    _encoded: dict[tuple[object, str], tuple[bytes, bytes]] = field(default_factory=dict)
    #: Parts of refusals that were given, by what they depend on: a flood asks for the same ones.
    refusals: dict[tuple[object, ...], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, policy: Policy, limiter: AsyncLimiter) -> Enforced:
        """Ready to decide."""
        limits = {each.name: each for each in policy.effective_limits}
        return cls(policy, limiter, policy_header(policy), limits, values_reader(policy))

    def keep(self, key: tuple[object, ...], made: _Made) -> _Made:
        """Remember what was made of a refusal for a while; gives it back."""
        if len(self.refusals) >= _MAX_REFUSALS:
            self.refusals.clear()
        self.refusals[key] = made
        return made

    def encoded(
        self, name: str, make: Callable[[Enforced, str], tuple[bytes, bytes]]
    ) -> tuple[bytes, bytes]:
        """What ``make`` makes of a limit, made once."""
        key = make, name
        known = self._encoded.get(key)
        if known is None:
            known = self._encoded[key] = make(self, name)
        return known


class Verdict(NamedTuple):
    """What came of a question: a decision by a policy, or why there is none."""

    decision: Decision | None
    enforced: Enforced | None = None
    missing: Missing | None = None

    @property
    def allowed(self) -> bool:
        """Whether the request may pass."""
        if self.decision is not None:
            return self.decision.allowed
        return self.missing is Missing.UNATTACHED


class Directory(Protocol):
    """Where policies are found."""

    def find(self, namespace: str, name: str) -> Enforced | Missing | asyncio.Future[None]:
        """The policy of that name or target; a future while it is only being looked for."""
        ...


class Engine:
    """Answers questions on one event loop."""

    def __init__(self, directory: Directory, counts: Counts, recordings: Recordings) -> None:
        self._directory = directory
        self._counts = counts
        self._recordings = recordings

    def ask(
        self, question: Question, done: Callable[[Verdict, *_Context], None], *context: *_Context
    ) -> Verdict | None:
        """The verdict where it is known, else None, and ``done`` is called later with the verdict
        and ``context``. Raises nothing."""
        found = self._directory.find(question.namespace, question.name)
        if type(found) is Enforced:
            return self._decide(found, question, done, context)
        if isinstance(found, Missing):
            return self._missing(found)
        if isinstance(found, asyncio.Future):
            found.add_done_callback(functools.partial(self._ask_again, question, done, context))
        return None

    async def explain(self, question: Question) -> dict[str, object] | Missing:
        """Which limits the request meets and what is left of each; takes nothing."""
        found = await self._found(question)
        if isinstance(found, Missing):
            return found
        view = _seen_by(found.policy, question.view)
        return await explain(found.policy, found.limiter, view, question.cost)

    async def charge(
        self, question: Question, headers: Mapping[str, str]
    ) -> dict[str, int] | Missing | None:
        """Take what a response says that its request cost, by limit; None: Redis did not take it.

        It is never refused: what is over is not taken, and the limit is then empty.
        """
        found = await self._found(question)
        if isinstance(found, Missing):
            return found
        costs = response_costs(found.policy, headers)
        if not costs:
            return {}
        subject = subject_of(found.policy, _seen_by(found.policy, question.view))
        return costs if await found.limiter.charge(subject, costs) else None

    async def _found(self, question: Question) -> Enforced | Missing:
        """The policy that is asked about; waits while it is being looked for."""
        found = self._directory.find(question.namespace, question.name)
        if not isinstance(found, Enforced | Missing):
            await asyncio.wait([found])
            found = self._directory.find(question.namespace, question.name)
        return found if isinstance(found, Enforced | Missing) else Missing.UNREAD

    def _ask_again(
        self, question: Question, done: Callable[..., None], context: tuple[object, ...],
        _: asyncio.Future[None],
    ) -> None:  # fmt: skip
        """After looking: what is still being looked for counts as unread."""
        found = self._directory.find(question.namespace, question.name)
        if isinstance(found, Enforced):
            verdict = self._decide(found, question, done, context)
        else:
            verdict = self._missing(found if isinstance(found, Missing) else Missing.UNREAD)
        if verdict is not None:
            done(verdict, *context)

    def _missing(self, why: Missing) -> Verdict:
        self._counts.missed(why.value)
        return Verdict(None, missing=why)

    def _decide(
        self, enforced: Enforced, question: Question, done: Callable[..., None],
        context: tuple[object, ...],
    ) -> Verdict | None:  # fmt: skip
        policy, counts = enforced.policy, self._counts
        view = _seen_by(policy, question.view)
        if self._recordings.running:
            self._recordings.seen(policy, view)
        known = enforced.limiter.decide(
            enforced.identify(view), question.cost,
            self._decided, enforced, counts.clock(), done, context,
        )  # fmt: skip
        if known is None:
            return None
        counts.record_decision(known, 0.0)
        return _new(Verdict, (known, enforced, None))

    def _decided(
        self, decision: Decision, enforced: Enforced, began: float, done: Callable[..., None],
        context: tuple[object, ...],
    ) -> None:  # fmt: skip
        counts = self._counts
        counts.record_decision(decision, counts.clock() - began)
        done(_new(Verdict, (decision, enforced, None)), *context)


def _seen_by(policy: Policy, view: RequestView) -> RequestView:
    """The request as a policy sees it, with the proxies that it trusts."""
    hops = policy.trusted_proxy_hops
    return view._replace(trusted_proxy_hops=hops) if hops else view
