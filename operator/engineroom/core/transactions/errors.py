"""What goes wrong with transactions and sagas."""

from __future__ import annotations

from engineroom.core.errors import Category, ConflictError, EngineroomError


class TransactionStateError(EngineroomError):
    """A unit of work is used before it began, after it ended, or across plain and async."""

    code = "transaction_state"


class TransactionInDoubtError(EngineroomError):
    """Some participants committed and another may not have; ``context`` names them."""

    code = "transaction_in_doubt"
    category = Category.PERMANENT


class SagaFencedError(ConflictError):
    """Another coordinator took the saga over; this one must do nothing more for it."""

    code = "saga_fenced"
    retryable = False


class SagaStuckError(EngineroomError):
    """An undo failed for good; mend what the log names, then call ``resume``."""

    code = "saga_stuck"
    category = Category.PERMANENT


class SagaUndoneError(EngineroomError):
    """A step failed and every step before it was undone; ``__cause__`` is the step's error."""

    code = "saga_undone"
    category = Category.PERMANENT


class SagaUnknownError(EngineroomError):
    """The log has a saga whose definition is not registered here, or has other steps; deploy it."""

    code = "saga_unknown"
    category = Category.PERMANENT
