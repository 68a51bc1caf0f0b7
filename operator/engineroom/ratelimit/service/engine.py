"""The engine: finds the policy of a request, decides by its limiter, and counts the result."""

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
    from engineroom.ratelimit.service.metrics import ServiceCounts
    from engineroom.ratelimit.service.request_parsing import DecisionRequest
    from engineroom.ratelimit.service.top import Recordings


#: Most cached refusals of one policy.
_MAX_REFUSALS = 4096
_T = TypeVar("_T")
_Context = TypeVarTuple("_Context")
#: Creates a named tuple in half the time, without checks of names and defaults.
_new = tuple.__new__


class MissingPolicy(StrEnum):
    """The reason why a request has no policy."""

    #: No policy has the name. Refused: a misspelt name must not avoid a limit.
    UNKNOWN = "unknown"
    #: No policy is attached to the target. Admitted.
    UNATTACHED = "unattached"
    #: The policies were never read. Refused.
    UNREAD = "unread"


@dataclass(frozen=True, slots=True)
class EnforcedPolicy:
    """A policy with its limiter, and parts of responses that are rendered once."""

    policy: Policy
    limiter: AsyncLimiter
    #: The value of the header RateLimit-Policy.
    header: str
    #: The effective limits by name.
    limits: Mapping[str, Limit]
    #: Returns the values by which a request counts.
    read_values: Callable[[RequestView], SubjectValues]
    #: The beginning of admissions, by limit.
    admissions: dict[str, bytes] = field(default_factory=dict)
    _encoded: dict[tuple[object, str], tuple[bytes, bytes]] = field(default_factory=dict)
    #: Parts of refusals by what they depend on: a flood repeats the same ones.
    refusals: dict[tuple[object, ...], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, policy: Policy, limiter: AsyncLimiter) -> EnforcedPolicy:
        """Return the policy ready to decide."""
        limits = {limit.name: limit for limit in policy.effective_limits}
        return cls(policy, limiter, policy_header(policy), limits, values_reader(policy))

    def cache_refusal(self, key: tuple[object, ...], parts: _T) -> _T:
        """Cache the parts of a refusal, and return them."""
        if len(self.refusals) >= _MAX_REFUSALS:
            self.refusals.clear()
        self.refusals[key] = parts
        return parts

    def encoded(
        self, name: str, make: Callable[[EnforcedPolicy, str], tuple[bytes, bytes]]
    ) -> tuple[bytes, bytes]:
        """Return ``make(self, name)`` for a limit, cached."""
        key = make, name
        encoded = self._encoded.get(key)
        if encoded is None:
            encoded = self._encoded[key] = make(self, name)
        return encoded


class DecisionResult(NamedTuple):
    """The result for a request: a decision by a policy, or the reason why there is none."""

    decision: Decision | None
    enforced: EnforcedPolicy | None = None
    missing: MissingPolicy | None = None

    @property
    def allowed(self) -> bool:
        """True if the request is admitted."""
        if self.decision is not None:
            return self.decision.allowed
        return self.missing is MissingPolicy.UNATTACHED


class PolicyDirectory(Protocol):
    """A directory of policies."""

    def find(
        self, namespace: str, name: str
    ) -> EnforcedPolicy | MissingPolicy | asyncio.Future[None]:
        """Find a policy by name or target; return a future while its namespace is being opened."""
        ...


class DecisionEngine:
    """Decides on requests on one event loop."""

    def __init__(
        self, directory: PolicyDirectory, counts: ServiceCounts, recordings: Recordings
    ) -> None:
        self._directory = directory
        self._counts = counts
        self._recordings = recordings

    def decide(
        self,
        request: DecisionRequest,
        done: Callable[[DecisionResult, *_Context], None],
        *context: *_Context,
    ) -> DecisionResult | None:
        """Return the result or None; then ``done`` is called later with the result and ``context``.

        Raises nothing.
        """
        match = self._directory.find(request.namespace, request.name)
        if type(match) is EnforcedPolicy:
            return self._decide(match, request, done, context)
        if isinstance(match, MissingPolicy):
            return self._missing(match)
        if isinstance(match, asyncio.Future):
            match.add_done_callback(functools.partial(self._decide_opened, request, done, context))
        return None

    async def explain(self, request: DecisionRequest) -> dict[str, object] | MissingPolicy:
        """Return the limits that apply to a request and what is left of each; consume nothing."""
        match = await self._find(request)
        if isinstance(match, MissingPolicy):
            return match
        view = _with_hops(match.policy, request.view)
        return await explain(match.policy, match.limiter, view, request.cost)

    async def charge(
        self, request: DecisionRequest, headers: Mapping[str, str]
    ) -> dict[str, int] | MissingPolicy | None:
        """Take the tokens that a response reports; return them by limit, None if Redis failed.

        A charge is never refused: it takes what is left at most.
        """
        match = await self._find(request)
        if isinstance(match, MissingPolicy):
            return match
        costs = response_costs(match.policy, headers)
        if not costs:
            return {}
        subject = subject_of(match.policy, _with_hops(match.policy, request.view))
        return costs if await match.limiter.charge(subject, costs) else None

    async def _find(self, request: DecisionRequest) -> EnforcedPolicy | MissingPolicy:
        """Find the policy of a request; wait while its namespace is being opened."""
        match = self._directory.find(request.namespace, request.name)
        if not isinstance(match, EnforcedPolicy | MissingPolicy):
            await asyncio.wait([match])
            match = self._directory.find(request.namespace, request.name)
        return match if isinstance(match, EnforcedPolicy | MissingPolicy) else MissingPolicy.UNREAD

    def _decide_opened(
        self, request: DecisionRequest, done: Callable[..., None], context: tuple[object, ...],
        _: asyncio.Future[None],
    ) -> None:  # fmt: skip
        """Decide after a namespace was opened; a policy that is not available counts as unread."""
        match = self._directory.find(request.namespace, request.name)
        if isinstance(match, EnforcedPolicy):
            result = self._decide(match, request, done, context)
        else:
            result = self._missing(
                match if isinstance(match, MissingPolicy) else MissingPolicy.UNREAD
            )
        if result is not None:
            done(result, *context)

    def _missing(self, why: MissingPolicy) -> DecisionResult:
        self._counts.record_missing(why.value)
        return DecisionResult(None, missing=why)

    def _decide(
        self, enforced: EnforcedPolicy, request: DecisionRequest, done: Callable[..., None],
        context: tuple[object, ...],
    ) -> DecisionResult | None:  # fmt: skip
        policy, counts = enforced.policy, self._counts
        view = _with_hops(policy, request.view)
        if self._recordings.running:
            self._recordings.record(policy, view)
        decision = enforced.limiter.decide(
            enforced.read_values(view), request.cost,
            self._record_decision, enforced, counts.clock(), done, context,
        )  # fmt: skip
        if decision is None:
            return None
        counts.record_decision(decision, 0.0)
        return _new(DecisionResult, (decision, enforced, None))

    def _record_decision(
        self, decision: Decision, enforced: EnforcedPolicy, start: float, done: Callable[..., None],
        context: tuple[object, ...],
    ) -> None:  # fmt: skip
        counts = self._counts
        counts.record_decision(decision, counts.clock() - start)
        done(_new(DecisionResult, (decision, enforced, None)), *context)


def _with_hops(policy: Policy, view: RequestView) -> RequestView:
    """Return the request with the trusted proxies of a policy."""
    hops = policy.trusted_proxy_hops
    return view._replace(trusted_proxy_hops=hops) if hops else view
