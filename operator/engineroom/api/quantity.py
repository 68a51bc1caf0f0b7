"""Kubernetes quantities: ``500m``, ``2``, ``256Mi``, ``1e3``."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from engineroom.core.errors import Category, EngineroomError

_QUANTITY = re.compile(
    r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))((?:[KMGTPE]i)|[numkMGTPE]|[eE][+-]?[0-9]{1,3})?"
)
_MAX_LENGTH = 64
_SUFFIXES = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
    "Pi": Decimal(2) ** 50,
    "Ei": Decimal(2) ** 60,
}


class QuantityError(EngineroomError, ValueError):
    """The text is not a Kubernetes quantity; write one such as 500m, 2 or 1Gi."""

    code = "quantity"
    category = Category.VALIDATION
    http_status = 422


def parse_quantity(value: str | float) -> Decimal:
    """The number that a quantity stands for, in its base unit (cores, bytes).

    Raises QuantityError for what Kubernetes would not take.
    """
    text = value if isinstance(value, str) else repr(value)
    match = _QUANTITY.fullmatch(text) if len(text) <= _MAX_LENGTH else None
    if match is None:
        message = f"{text[:_MAX_LENGTH]!r} is not a quantity"
        raise QuantityError(message)
    number, suffix = match.group(1), match.group(2) or ""
    try:
        if suffix in _SUFFIXES:
            return Decimal(number) * _SUFFIXES[suffix]
        return Decimal(number + suffix)
    except InvalidOperation as error:
        message = f"{text!r} is not a quantity"
        raise QuantityError(message) from error
