"""Validation of objects: the same answer for webhook, controller, command line and API.

One module a kind (``workerpool``, ``ratelimitpolicy``) adds the kind's rules to those of every kind
(``common``); ``guarded_fields`` finds the fields that need a right of the author.
"""

from engineroom.api.validation.common import (
    MAX_VALUES,
    RESTRICTED,
    KindRules,
    ValidationContext,
    check_registry,
    escalations,
    parse,
    problems,
    warnings,
)

__all__ = [
    "MAX_VALUES",
    "RESTRICTED",
    "KindRules",
    "ValidationContext",
    "check_registry",
    "escalations",
    "parse",
    "problems",
    "warnings",
]
