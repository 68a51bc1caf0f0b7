"""Errors of transactions and sagas."""

from __future__ import annotations

from engineroom.core.errors import Category, ConflictError, EngineroomError


class TransactionStateError(EngineroomError):
    """A unit of work was used before it began, after it ended, or across sync and async code."""

    code = "transaction_state"


class TransactionInDoubtError(EngineroomError):
    """Some participants committed and another may have failed to; ``context`` names them."""

    code = "transaction_in_doubt"
    category = Category.PERMANENT


class SagaFencedError(ConflictError):
    """Another coordinator has taken over the saga; this one must stop."""

    code = "saga_fenced"
    retryable = False


class SagaStuckError(EngineroomError):
    """An undo failed permanently; repair what the log names, then call ``resume``."""

    code = "saga_stuck"
    category = Category.PERMANENT


class SagaUndoneError(EngineroomError):
    """A step failed and all earlier steps were undone; ``__cause__`` is the step's error."""

    code = "saga_undone"
    category = Category.PERMANENT


class SagaUnknownError(EngineroomError):
    """A logged saga has no matching definition in this process; deploy the definition."""

    code = "saga_unknown"
    category = Category.PERMANENT
