"""What the API server says, as types."""

from __future__ import annotations

import pytest

from engineroom.core.errors import ConflictError, DependencyError, EngineroomError
from engineroom.kube.client import errors


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (400, "BadRequest", errors.BadRequest),
        (401, "Unauthorized", errors.Unauthorized),
        (403, "Forbidden", errors.Forbidden),
        (404, "NotFound", errors.NotFound),
        (409, "Conflict", errors.Conflict),
        (409, "AlreadyExists", errors.AlreadyExists),
        (410, "Expired", errors.Gone),
        (410, "Gone", errors.Gone),
        (422, "Invalid", errors.Invalid),
        (429, "TooManyRequests", errors.Throttled),
        (500, "InternalError", errors.ServerFailure),
        (503, "ServiceUnavailable", errors.ServerFailure),
        (504, "Timeout", errors.ServerFailure),
        (418, "", errors.ApiError),
    ],
)
def test_a_status_becomes_its_type(status: int, reason: str, kind: type[errors.ApiError]) -> None:
    error = errors.from_status(status, {"reason": reason, "message": "why"})
    assert type(error) is kind
    assert (error.status, error.reason, str(error)) == (status, reason, "why")
    assert isinstance(error, EngineroomError)


def test_causes_name_the_fields() -> None:
    error = errors.from_status(
        422,
        {
            "details": {
                "causes": [
                    {"field": "spec.queues", "reason": "FieldValueRequired", "message": "needed"}
                ]
            }
        },
    )
    assert error.causes == (errors.StatusCause("spec.queues", "FieldValueRequired", "needed"),)


@pytest.mark.parametrize("body", [None, {}, {"details": "odd"}, {"details": {"causes": ["odd"]}}])
def test_a_body_that_is_no_status_still_gives_an_error(body: dict[str, object] | None) -> None:
    error = errors.from_status(502, body)
    assert "502" in str(error)
    assert error.causes == ()


def test_errors_say_by_type_whether_trying_again_helps() -> None:
    assert errors.from_status(409, {}).retryable
    assert errors.from_status(429, {}).retryable
    assert errors.from_status(500, {}).retryable
    assert not errors.from_status(403, {}).retryable
    assert not errors.from_status(422, {}).retryable
    assert isinstance(errors.from_status(409, {}), ConflictError)
    assert isinstance(errors.from_status(503, {}), DependencyError)
    assert isinstance(errors.Unreachable("gone"), DependencyError)


def test_forbidden_tells_quota_and_terminating_namespaces_apart() -> None:
    quota = errors.from_status(
        403, {"message": 'pods "x" is forbidden: exceeded quota: small, requested: pods=1'}
    )
    ending = errors.from_status(
        403, {"details": {"causes": [{"reason": "NamespaceTerminating", "message": "m"}]}}
    )
    assert isinstance(quota, errors.Forbidden)
    assert isinstance(ending, errors.Forbidden)
    assert (quota.quota, quota.namespace_terminating) == (True, False)
    assert (ending.quota, ending.namespace_terminating) == (False, True)
