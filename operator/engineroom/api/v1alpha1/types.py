"""Types that the kinds share: durations, names, secret references, conditions."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"([0-9]+)(ms|s|m|h|d)")
DURATION_PATTERN = r"^([0-9]+(ms|s|m|h|d))+$"


class Duration(str):
    """A length of time written as in ``30s``, ``1h30m`` or ``250ms``; units ms, s, m, h, d."""

    __slots__ = ()

    @property
    def seconds(self) -> float:
        """The length in seconds."""
        return sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(self))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls,
            core_schema.str_schema(pattern=DURATION_PATTERN, max_length=32),
            serialization=core_schema.plain_serializer_function_ser_schema(str),
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "pattern": DURATION_PATTERN, "maxLength": 32}


def read_duration(value: object) -> float | None:
    """Read a duration from a document: its seconds, or None for anything else."""
    if not isinstance(value, str) or len(value) > 32 or not re.fullmatch(DURATION_PATTERN, value):
        return None
    return Duration(value).seconds


class Model(BaseModel):
    """Base of all API models: camelCase in YAML, unknown fields refused, immutable."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True
    )


ObjectName = Annotated[
    str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", min_length=1, max_length=253)
]


class SecretKeyRef(Model):
    """One key of a Secret in the same namespace."""

    name: ObjectName = Field(description="Name of the Secret, in the object's own namespace.")
    key: str = Field(
        pattern=r"^[-._a-zA-Z0-9]+$", min_length=1, max_length=253, description="Key in the Secret."
    )


class Condition(Model):
    """One condition, as in metav1.Condition."""

    type: str = Field(description="Type of the condition.")
    status: str = Field(description="True, False or Unknown.")
    reason: str = Field(default="", description="Reason as one word, for programs.")
    message: str = Field(default="", description="Details as text, for people.")
    last_transition_time: str = Field(
        description="Time of the last change of status (RFC 3339).",
        json_schema_extra={"format": "date-time"},
    )
    observed_generation: int = Field(
        default=0, description="Generation of the spec that the condition describes."
    )
