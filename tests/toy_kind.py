"""A kind declared in one file, outside the package. ``ENGINEROOM_KINDS`` names this module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from engineroom.api.kinds import DottedName, GuardedPaths, Kind, Permissions, RoleRule
from engineroom.api.schema.common import CelRule, KindSchema
from engineroom.api.v1alpha1.types import Condition, Duration, Model, SecretKeyRef
from engineroom.api.validation import KindRules
from engineroom.core.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator


class Bell(Model):
    """Where the toy rings."""

    url: str = Field(max_length=200, description="Address of the bell.")
    token_secret_ref: SecretKeyRef | None = Field(default=None, description="Token of the bell.")


class ToySpec(Model):
    """What the toy does."""

    every: Duration = Field(default=Duration("1m"), description="Interval of the bell.")
    count: int = Field(ge=1, le=100, description="Number of rings.")
    bells: list[Bell] = Field(default_factory=list, max_length=4, description="Bells to ring.")
    template: dict[str, Any] | None = Field(
        default=None,
        description="PodTemplateSpec of the toy.",
        json_schema_extra={"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    )
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="Free settings of the toy.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )


class ToyStatus(Model):
    """What the toy did."""

    observed_generation: int = Field(default=0, description="Generation that this status answers.")
    rings: int = Field(default=0, description="Rings so far.")
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Ready, Reconciling and Stalled.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class Toy(Model):
    """A toy that rings."""

    api_version: Annotated[str, Field(pattern=r"^engineroom\.dev/v1alpha1$")]
    kind: Annotated[str, Field(pattern=r"^Toy$")]
    metadata: dict[str, Any] = Field(json_schema_extra={"type": "object"})
    spec: ToySpec = Field(description="What the toy does.")
    status: dict[str, Any] | None = Field(default=None, description="What the toy did.")


def _problems(spec: dict[str, Any]) -> Iterator[Problem]:
    if spec.get("count") == 13:
        yield Problem("spec.count", "13 is unlucky", "write 12 or 14")


def _warnings(spec: dict[str, Any]) -> Iterator[str]:
    if spec.get("count") == 100:
        yield "spec.count: 100 rings are loud; write fewer"


RULES = KindRules(missing_spec="add it with count", problems=_problems, warnings=_warnings)
SCHEMA = KindSchema(
    spec=ToySpec,
    status=ToyStatus,
    rules={"spec": (CelRule("self.count != 7", "7 is taken; write another", field=".count"),)},
    columns=({"name": "Rings", "type": "integer", "jsonPath": ".status.rings"},),
)


TOY = Kind(
    kind="Toy",
    plural="toys",
    short_names=("ty",),
    rest_path="toys",
    noun="toy",
    plural_noun="toys",
    model=DottedName(f"{__name__}:Toy"),
    schema=DottedName(f"{__name__}:SCHEMA"),
    rules=DottedName(f"{__name__}:RULES"),
    controller=DottedName("tests.toy_controller:controller"),
    permissions=Permissions.to_read("namespace:pools:read"),
    guarded=GuardedPaths(pod_templates=("spec.template",), secrets=("spec.bells[]",)),
    children=(RoleRule(group="batch", resources=("jobs",), verbs=("create", "delete")),),
)
KINDS = (TOY,)
