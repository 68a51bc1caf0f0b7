"""The registry of kinds: one declaration for each kind of engineroom.dev.

A ``Kind`` is read by everything that works on kinds in general: CRDs, admission, lint, apply, the
author check, REST, live events, the command line, RBAC and the reference pages. Code of the layers
above is named by dotted names and imported where it is used, so this module stays light: it imports
neither the models nor pydantic.

Another package adds kinds by naming a module in ``ENGINEROOM_KINDS`` (several with commas between);
the module holds them in ``KINDS``. See docs/decisions/0023-one-declaration-per-kind.md.
"""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any

from engineroom.api import API_VERSION, GROUP, VERSION
from engineroom.core.errors import Category, EngineroomError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Environment variable: modules with further kinds, with commas between.
SETTING = "ENGINEROOM_KINDS"

_NAME = re.compile(r"[A-Z][A-Za-z0-9]{0,62}")
_WORD = re.compile(r"[a-z][a-z0-9-]{0,62}")
_PATH = re.compile(r"spec(\.[A-Za-z][A-Za-z0-9]*(\[\])?)*")


class KindError(EngineroomError):
    """A declaration that cannot be used, or a kind without one."""

    code = "invalid_kind"
    category = Category.BUG


class DottedName(str):
    """``package.module:attribute``, imported on demand."""

    __slots__ = ()

    def load(self) -> Any:
        """Import and return the attribute. Raises KindError when it does not exist."""
        module, _, attribute = self.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise KindError(f"{self}: cannot be imported: {error}") from error


class Process(StrEnum):
    """The process that runs a kind's controller."""

    OPERATOR = "operator"
    ALERTS = "alerts"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleRule:
    """A rule of a Kubernetes role: resources of one API group, and verbs."""

    group: str = ""
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    #: A comment for the chart.
    reason: str = ""
    #: A condition in the chart's template language; the rule is granted where it holds.
    condition: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedPaths:
    """Fields through which an author reaches for pods, Secrets and accounts of the namespace.

    Admission and the API ask the API server whether the author may create pods there before a new
    or changed value is accepted. A path starts with ``spec``; ``[]`` stands for each item of a
    list. A path covers everything below it.
    """

    #: PodTemplateSpecs: their Pod Security escalations are checked inside.
    pod_templates: tuple[str, ...] = ()
    #: Maps that name Secrets, together with the fields that decide where the Secret is sent. The
    #: author must have the right to get each Secret, too.
    secrets: tuple[str, ...] = ()
    #: Names of other objects that the controller reads or uses for the author, such as accounts.
    references: tuple[str, ...] = ()
    #: Images of pods that the controller builds itself, without a template.
    images: tuple[str, ...] = ()
    #: Commands and arguments of such pods.
    commands: tuple[str, ...] = ()
    #: Code that runs inside the pods.
    calls: tuple[str, ...] = ()
    #: Names of queues, whose jobs run inside the pods.
    queues: tuple[str, ...] = ()
    #: Free-form data that is never read as any of the above.
    data: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """Paths outside the pod templates that name Secrets, accounts, images and commands."""
        return (*self.secrets, *self.references, *self.images, *self.commands)

    @property
    def restricted(self) -> tuple[str, ...]:
        """Paths whose every change needs the right to create pods."""
        return (*self.pod_templates, *self.fields, *self.calls, *self.queues)

    @property
    def private(self) -> tuple[str, ...]:
        """Paths that readers without rights in the cluster must not see."""
        return (*self.pod_templates, *self.fields)

    @property
    def declared(self) -> tuple[str, ...]:
        """All paths."""
        return (*self.restricted, *self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """Permissions of Engineroom (``scope:resource:action``) by the verb that needs them."""

    get: str
    list: str
    watch: str

    @classmethod
    def to_read(cls, permission: str) -> Permissions:
        """One permission for all three verbs."""
        return cls(get=permission, list=permission, watch=permission)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Verbs on the kind in the ClusterRoles that Kubernetes' own roles aggregate."""

    view: tuple[str, ...] = ("get", "list", "watch")
    edit: tuple[str, ...] = ("create", "delete", "deletecollection", "patch", "update")
    admin: tuple[str, ...] = ()


#: Views of kinds that have none of their own.
_GENERAL_REST = DottedName("engineroom.console.resources.objects:general_view")
_GENERAL_TABLE = DottedName("engineroom.cli.views.kinds:general_table")
_GENERAL_EXPLAIN = DottedName("engineroom.cli.commands.explain:general_explanation")
_GENERAL_STATUS = DottedName("engineroom.cli.views.kinds:general_status")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind: its names, its code by dotted names, its rights and its guarded fields."""

    # In Kubernetes.
    kind: str
    plural: str
    short_names: tuple[str, ...]
    categories: tuple[str, ...] = ("engineroom",)
    #: Characters; names made from the object's name must fit their own limits.
    max_name_length: int = 63
    #: Whether the kind has the scale subresource, for ``kubectl scale``.
    scalable: bool = False

    # In the API (``/namespaces/NAMESPACE/<rest_path>``, events) and on the command line.
    rest_path: str
    #: What texts call one object and several; both are words of the command line, too.
    noun: str
    plural_noun: str
    #: Further words of the command line.
    aliases: tuple[str, ...] = ()

    # Code, imported on demand.
    #: The pydantic model of an object.
    model: DottedName
    #: A ``schema.common.KindSchema``: CEL rules, printer columns, scale paths.
    schema: DottedName
    #: A ``validation.common.Rules``: problems and warnings beyond the schema.
    rules: DottedName
    #: A function of the process's settings that returns the controller.
    controller: DottedName
    process: Process = Process.OPERATOR
    #: A function of the kind that returns its ``RestView``.
    rest_view: DottedName = _GENERAL_REST
    #: A ``TableView`` of the command line: a table of objects.
    table_view: DottedName = _GENERAL_TABLE
    #: An ``ExplainView`` of the command line: the state of one object and what to do about it.
    explain_view: DottedName = _GENERAL_EXPLAIN
    #: A ``StatusView`` of the command line: one line about all objects.
    status_view: DottedName = _GENERAL_STATUS

    # Rights.
    permissions: Permissions
    guarded: GuardedPaths = GuardedPaths()
    roles: Roles = Roles()
    #: Resources that objects of the kind own.
    children: tuple[RoleRule, ...] = ()
    #: Further resources that the controller reads or writes.
    access: tuple[RoleRule, ...] = ()

    group: str = GROUP
    version: str = VERSION

    def __post_init__(self) -> None:
        """Check the form of names and paths. Raises KindError."""
        if not _NAME.fullmatch(self.kind):
            raise KindError(f"{self.kind!r}: is not the name of a kind")
        for word in (self.plural, self.singular, self.rest_path, *self.words):
            if not _WORD.fullmatch(word):
                raise KindError(f"{self.kind}: {word!r} is not a lower-case name")
        for path in self.guarded.declared:
            if not _PATH.fullmatch(path) or path == "spec":
                raise KindError(f"{self.kind}: {path!r} is not a path below spec")

    @property
    def api_version(self) -> str:
        """``group/version``."""
        return f"{self.group}/{self.version}"

    @property
    def singular(self) -> str:
        """The kind in lower case."""
        return self.kind.lower()

    @property
    def resource(self) -> str:
        """``plural.group``: the name of the CRD."""
        return f"{self.plural}.{self.group}"

    @property
    def words(self) -> tuple[str, ...]:
        """Every name of the kind on the command line."""
        names = (self.plural_noun, self.noun, self.plural, self.singular)
        return tuple(dict.fromkeys((*names, *self.short_names, *self.aliases)))

    @property
    def names(self) -> tuple[DottedName, ...]:
        """Every dotted name of the declaration."""
        views = (self.rest_view, self.table_view, self.explain_view, self.status_view)
        return (self.model, self.schema, self.rules, self.controller, *views)


class Registry:
    """Kinds by their names; each name belongs to one kind."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        """Raises KindError when two kinds share a name."""
        self._kinds = tuple(kinds)
        self._by_kind = self._index(lambda kind: (kind.kind,))
        self._by_plural = self._index(lambda kind: (kind.plural,))
        self._by_rest_path = self._index(lambda kind: (kind.rest_path,))
        self._by_word = self._index(lambda kind: kind.words)

    def _index(self, names: Any) -> dict[str, Kind]:
        index: dict[str, Kind] = {}
        for kind in self._kinds:
            for name in names(kind):
                if name in index:
                    raise KindError(f"{name!r} is a name of {index[name].kind} and {kind.kind}")
                index[name] = kind
        return index

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def find(self, kind: object) -> Kind | None:
        """The entry of ``kind`` (``WorkerPool``), or None; accepts any value."""
        return self._by_kind.get(kind) if isinstance(kind, str) else None

    def find_object(self, obj: object) -> Kind | None:
        """The entry of a document's apiVersion and kind, or None; accepts any value."""
        if not isinstance(obj, dict) or obj.get("apiVersion") != API_VERSION:
            return None
        return self.find(obj.get("kind"))

    def by_kind(self, kind: str) -> Kind:
        """The entry of ``kind``. Raises KindError if there is none."""
        return self._of(self._by_kind, kind)

    def by_plural(self, plural: str) -> Kind:
        """The entry of ``plural`` (``workerpools``). Raises KindError if there is none."""
        return self._of(self._by_plural, plural)

    def by_rest_path(self, path: str) -> Kind:
        """The entry with this path in the API (``pools``). Raises KindError if there is none."""
        return self._of(self._by_rest_path, path)

    def by_word(self, word: str) -> Kind | None:
        """The entry that the command line calls ``word``, also ``word.group``, or None."""
        name, dot, group = word.partition(".")
        kind = self._by_word.get(name.lower())
        if kind is None or (dot and group not in {kind.group, f"{kind.version}.{kind.group}"}):
            return None
        return kind

    def of_process(self, process: Process) -> tuple[Kind, ...]:
        """The kinds whose controllers ``process`` runs, in the order of their declaration."""
        return tuple(kind for kind in self._kinds if kind.process is process)

    def _of(self, index: dict[str, Kind], name: str) -> Kind:
        try:
            return index[name]
        except KeyError:
            raise KindError(
                f"{name!r} has no entry in the registry of kinds ({', '.join(index)})"
            ) from None


WORKER_POOL = Kind(
    kind="WorkerPool",
    plural="workerpools",
    short_names=("wp",),
    # With the hash of a ReplicaSet behind it the name must still be a DNS label (63).
    max_name_length=52,
    scalable=True,
    rest_path="pools",
    noun="pool",
    plural_noun="pools",
    model=DottedName("engineroom.api.v1alpha1.workerpool:WorkerPool"),
    schema=DottedName("engineroom.api.schema.workerpool:SCHEMA"),
    rules=DottedName("engineroom.api.validation.workerpool:RULES"),
    controller=DottedName("engineroom.main:pools"),
    rest_view=DottedName("engineroom.console.resources.pools:rest_view"),
    table_view=DottedName("engineroom.cli.views.pools:pools_table"),
    explain_view=DottedName("engineroom.cli.commands.pools.explain:explain_pool"),
    status_view=DottedName("engineroom.cli.views.status:pools_status"),
    permissions=Permissions(
        get="namespace:pools:read", list="namespace:pools:read", watch="namespace:events:read"
    ),
    guarded=GuardedPaths(
        pod_templates=("spec.template",),
        secrets=("spec.redis",),
        calls=("spec.schedules",),
        queues=("spec.queues",),
        data=("spec.schedules[].args", "spec.schedules[].kwargs"),
    ),
    children=(
        RoleRule(
            group="apps",
            resources=("deployments",),
            verbs=("get", "list", "watch", "create", "patch"),
            reason="Nothing is deleted: Kubernetes' garbage collection deletes what a pool owns.",
        ),
        RoleRule(group="apps", resources=("deployments/scale",), verbs=("patch",)),
        RoleRule(
            group="policy",
            resources=("poddisruptionbudgets",),
            verbs=("get", "create"),
            reason="Get: whether one that exists belongs to the pool.",
        ),
        RoleRule(resources=("serviceaccounts",), verbs=("get", "create")),
    ),
    access=(
        RoleRule(
            resources=("pods",),
            verbs=("get", "list", "watch", "patch"),
            reason="Patch: the deletion cost, so that Kubernetes removes finished pods first.",
        ),
        RoleRule(
            group="metrics.k8s.io",
            resources=("pods",),
            verbs=("list",),
            reason="CPU and memory that the workers use, in one list.",
        ),
        RoleRule(
            resources=("pods/resize",),
            verbs=("patch",),
            reason="Requests and limits of running containers, and nothing else of a Pod.",
            condition=".Values.rightSizing.inPlace",
        ),
        RoleRule(
            resources=("namespaces",),
            verbs=("get", "list", "watch"),
            reason="The Pod Security level, and the label of the installation's Redis.",
        ),
        RoleRule(
            resources=("secrets",),
            verbs=("create",),
            reason="Copies of the chart's Redis address in the pools' namespaces; never read back.",
            condition='include "engineroom.redisSecret" .',
        ),
    ),
)

RATE_LIMIT_POLICY = Kind(
    kind="RateLimitPolicy",
    plural="ratelimitpolicies",
    short_names=("rlp",),
    rest_path="ratelimitpolicies",
    noun="policy",
    plural_noun="policies",
    aliases=("rlps",),
    model=DottedName("engineroom.api.v1alpha1.ratelimitpolicy:RateLimitPolicy"),
    schema=DottedName("engineroom.api.schema.ratelimitpolicy:SCHEMA"),
    rules=DottedName("engineroom.api.validation.ratelimitpolicy:RULES"),
    controller=DottedName("engineroom.main:policies"),
    table_view=DottedName("engineroom.cli.views.ratelimits:policies_table"),
    explain_view=DottedName("engineroom.cli.commands.ratelimit:explain_policy"),
    status_view=DottedName("engineroom.cli.views.ratelimits:policies_status"),
    permissions=Permissions.to_read("namespace:limits:read"),
    guarded=GuardedPaths(secrets=("spec.redis",)),
    access=(
        RoleRule(
            resources=("services",),
            verbs=("list", "watch"),
            reason="Targets of policies. Watched only while a policy names such an object.",
        ),
        RoleRule(group="networking.k8s.io", resources=("ingresses",), verbs=("list", "watch")),
        RoleRule(
            group="gateway.networking.k8s.io",
            resources=("gateways", "httproutes", "grpcroutes"),
            verbs=("list", "watch"),
        ),
    ),
)

#: The kinds of this package.
KINDS = (WORKER_POOL, RATE_LIMIT_POLICY)


@cache
def registry() -> Registry:
    """The kinds of this package and of the modules in ``ENGINEROOM_KINDS``. Raises KindError."""
    named = [name.strip() for name in os.environ.get(SETTING, "").split(",") if name.strip()]
    return Registry([*KINDS, *(kind for name in named for kind in _kinds_of(name))])


def _kinds_of(module: str) -> tuple[Kind, ...]:
    kinds = DottedName(f"{module}:KINDS").load()
    if not isinstance(kinds, tuple) or not all(isinstance(kind, Kind) for kind in kinds):
        raise KindError(f"{SETTING}: KINDS of {module} is not a tuple of Kind")
    return kinds
