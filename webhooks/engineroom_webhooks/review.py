"""Answers to AdmissionReviews. Any JSON is accepted as a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineroom.api import GROUP, kinds, validation
from engineroom.api.shared_redis import SELECTOR
from engineroom.api.validation import ValidationContext, guarded_fields
from engineroom.api.validation.pod_security import PodSecurityLevel
from engineroom.core.errors import Category, EngineroomError, Problem
from engineroom.core.logging import get_logger
from engineroom.core.validation.json_values import as_map, is_same
from engineroom_webhooks import metrics
from engineroom_webhooks.authorization import RequestUser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engineroom.api.kinds import Kind
    from engineroom_webhooks.authorization import Authorizer

API_VERSION = "admission.k8s.io/v1"
#: The API server cuts warnings at 256 bytes when there are many.
_MOST_WARNINGS, _WARNING_LENGTH = 16, 250
_MESSAGE_LENGTH = 8000

logger = get_logger(__name__)


class UnreadableReviewError(EngineroomError):
    """The request is not an AdmissionReview that can be answered."""

    code = "unreadable_review"
    category = Category.VALIDATION
    http_status = 400


@dataclass(frozen=True, slots=True)
class AdmissionAnswer:
    """The answer to one request."""

    uid: str
    operation: str
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
    #: The reason why no decision was possible. The request is refused, and may be repeated.
    trouble: str = ""
    #: The message for an author who lacks a right.
    forbidden: str = ""
    name: str = ""
    kind: str = ""

    @property
    def allowed(self) -> bool:
        """Return whether the request is accepted."""
        return not (self.problems or self.trouble or self.forbidden)

    @property
    def outcome(self) -> str:
        """The value of the metric's label."""
        if self.trouble:
            return "failed"
        return "allowed" if self.allowed else "refused"

    def document(self) -> dict[str, Any]:
        """Return the AdmissionReview to send back."""
        response: dict[str, Any] = {"uid": self.uid, "allowed": self.allowed}
        if self.warnings:
            response["warnings"] = [
                text[:_WARNING_LENGTH] for text in self.warnings[:_MOST_WARNINGS]
            ]
        if not self.allowed:
            response["status"] = self._status()
        return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}

    def _status(self) -> dict[str, Any]:
        if self.trouble:
            return {"code": 503, "reason": "ServiceUnavailable", "message": self.trouble}
        if self.forbidden:
            return {"code": 403, "reason": "Forbidden", "message": self.forbidden}
        return {
            "code": 422,
            "reason": "Invalid",
            "message": _message(f"{self.kind} {self.name}", self.problems),
            "details": {
                "group": GROUP,
                "kind": self.kind,
                "name": self.name,
                "causes": [
                    {
                        "reason": "FieldValueInvalid",
                        "field": problem.field,
                        "message": f"{problem.problem}; {problem.fix}",
                    }
                    for problem in self.problems
                ],
            },
        }


def _message(what: str, problems: Sequence[Problem]) -> str:
    if len(problems) == 1:
        text = f"{what} is invalid: {problems[0]}"
    else:
        lines = "".join(f"\n* {problem}" for problem in problems)
        text = f"{what} is invalid:{lines}"
    if len(text) <= _MESSAGE_LENGTH:
        return text
    return text[: _MESSAGE_LENGTH - 40].rsplit("\n", 1)[0] + "\n* and more"


async def answer(review: Any, authorizer: Authorizer) -> AdmissionAnswer:
    """AdmissionAnswer an AdmissionReview. Raises UnreadableReviewError for anything else."""
    request = review.get("request") if isinstance(review, dict) else None
    if not isinstance(request, dict) or not isinstance(request.get("uid"), str):
        raise UnreadableReviewError("the body is not an AdmissionReview with request.uid")
    uid, operation = request["uid"][:128], str(request.get("operation") or "")
    new, old = request.get("object"), request.get("oldObject")
    if operation not in {"CREATE", "UPDATE"} or request.get("subResource"):
        return AdmissionAnswer(uid, operation)
    if not isinstance(new, dict):
        raise UnreadableReviewError("request.object is missing")
    if operation == "UPDATE" and isinstance(old, dict) and _is_spec_unchanged(new, old):
        return AdmissionAnswer(uid, operation)
    namespace = str(request.get("namespace") or "")
    name = str(request.get("name") or as_map(new.get("metadata")).get("name") or "")
    author = RequestUser.of(request.get("userInfo"))
    kind = kinds.registry().find_object(new)
    try:
        level = PodSecurityLevel.RESTRICTED
        if namespace and validation.escalations(new):
            level = await authorizer.level(namespace)
        problems = validation.problems(new, ValidationContext(pod_security=level))
        if problems or kind is None:
            title = str(as_map(request.get("kind")).get("kind") or new.get("kind") or "")[:63]
            return AdmissionAnswer(uid, operation, tuple(problems), name=name, kind=title)
        forbidden = await _missing_right(authorizer, author, namespace, kind, new, old)
        if forbidden:
            return AdmissionAnswer(uid, operation, forbidden=forbidden, name=name)
    except EngineroomError as error:
        metrics.ERRORS.failed(error.code, error.category.value)
        logger.warning("an author could not be checked", code=error.code, error=str(error))
        trouble = (
            "the API server did not answer whether the author has the rights; try again in a moment"
        )
        return AdmissionAnswer(uid, operation, trouble=trouble, name=name)
    warnings = [*validation.warnings(new), *await _redis_warnings(authorizer, namespace, kind, new)]
    return AdmissionAnswer(uid, operation, warnings=tuple(warnings), name=name)


async def _redis_warnings(
    authorizer: Authorizer, namespace: str, kind: Kind, new: dict[str, Any]
) -> list[str]:
    """Warn of a pool that may not use the installation's Redis; the Namespace may come later."""
    if kind is not kinds.WORKER_POOL or new["spec"].get("redis") is not None:
        return []
    try:
        if await authorizer.may_use_shared_redis(namespace):
            return []
    except EngineroomError as error:
        logger.warning("the namespace could not be read", code=error.code, error=str(error))
        return []
    warning = (
        f"namespace {namespace} may not use the installation's Redis, so the pool gets no pods; "
        f"label the Namespace {SELECTOR}, or set spec.redis"
    )
    return [warning]


async def _missing_right(
    authorizer: Authorizer,
    author: RequestUser,
    namespace: str,
    kind: Kind,
    new: dict[str, Any],
    old: Any,
) -> str:
    """Return the message for an author who lacks a right that the change needs, or ""."""
    fields = guarded_fields.guarded_fields(kind, new, old)
    if not fields:
        return ""
    who = author.username or "the author"
    if not await authorizer.may_create_pods(author, namespace):
        listed = ", ".join(fields[:5]) + (" and more" if len(fields) > 5 else "")
        return (
            f"{listed}: only authors who may create pods in namespace {namespace} may set this, "
            f"and {who} may not; remove it or get that right"
        )
    for field, name in guarded_fields.secret_names(kind, new).items():
        if not await authorizer.may_get_secret(author, namespace, name):
            return (
                f"{field}: only authors who may get Secret {namespace}/{name} may name it, and "
                f"{who} may not; name another Secret or get that right"
            )
    return ""


def _is_spec_unchanged(new: dict[str, Any], old: dict[str, Any]) -> bool:
    """Return whether the spec is unchanged: labels and finalizers are then always accepted."""
    return is_same(new.get("spec"), old.get("spec"))
