"""The registry of kinds: one entry for each kind, complete, and refused when it is not."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from engineroom.api import kinds, validation
from engineroom.api.kinds import DottedName, GuardedPaths, KindError, Permissions, Registry
from engineroom.auth.permissions import Permission
from tests import toy_kind
from tests.support import extra_kinds


@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.kind)
def test_every_dotted_name_of_an_entry_exists(kind: kinds.Kind) -> None:
    for name in kind.names:
        assert name.load() is not None


@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.kind)
def test_every_permission_of_an_entry_exists(kind: kinds.Kind) -> None:
    for permission in dataclasses.astuple(kind.permissions):
        assert Permission(permission)


def test_every_kind_declares_its_guarded_fields() -> None:
    validation.check_registry(kinds.registry())


def test_a_kind_is_found_by_each_of_its_names() -> None:
    registry = kinds.registry()

    for word in ("pool", "pools", "workerpools", "WorkerPool", "wp", "wp.engineroom.dev"):
        assert registry.by_word(word) is kinds.WORKER_POOL
    for word in ("policies", "policy", "ratelimitpolicies", "rlp", "rlps"):
        assert registry.by_word(word) is kinds.RATE_LIMIT_POLICY
    assert registry.by_word("pods") is None
    assert registry.by_word("wp.apps") is None
    assert registry.by_plural("workerpools") is registry.by_rest_path("pools")
    assert registry.find_object({"apiVersion": "engineroom.dev/v1alpha1", "kind": "Pod"}) is None
    assert registry.find_object([]) is None


def test_a_kind_without_an_entry_fails_loudly() -> None:
    with pytest.raises(KindError, match="'Nothing' has no entry in the registry of kinds"):
        kinds.registry().by_kind("Nothing")


def test_two_kinds_cannot_share_a_name() -> None:
    twin = dataclasses.replace(toy_kind.TOY, noun="pool")

    with pytest.raises(KindError, match="'pool' is a name of WorkerPool and Toy"):
        Registry([*kinds.KINDS, twin])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kind": "toy"}, "is not the name of a kind"),
        ({"plural": "Toys"}, "is not a lower-case name"),
        ({"guarded": GuardedPaths(secrets=("template",))}, "is not a path below spec"),
        ({"guarded": GuardedPaths(data=("spec",))}, "is not a path below spec"),
    ],
)
def test_a_malformed_entry_is_refused(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(KindError, match=problem):
        dataclasses.replace(toy_kind.TOY, **changes)  # type: ignore[arg-type]


def test_a_missing_dotted_name_is_refused_at_start() -> None:
    broken = dataclasses.replace(toy_kind.TOY, rules=DottedName("tests.toy_kind:NOTHING"))

    with pytest.raises(KindError, match="toy_kind:NOTHING: cannot be imported"):
        validation.check_registry(Registry([broken]))


@pytest.mark.parametrize(
    ("guarded", "undeclared"),
    [
        (GuardedPaths(pod_templates=("spec.template",)), "spec.bells[].tokenSecretRef"),
        (GuardedPaths(secrets=("spec.bells[]",)), "spec.template"),
    ],
)
def test_a_kind_with_an_undeclared_reference_is_refused_at_start(
    guarded: GuardedPaths, undeclared: str
) -> None:
    careless = dataclasses.replace(toy_kind.TOY, guarded=guarded)

    with pytest.raises(KindError) as raised:
        validation.check_registry(Registry([careless]))

    assert str(raised.value) == f"Toy: guarded does not declare {undeclared}"


def test_a_module_named_in_the_environment_adds_kinds() -> None:
    with extra_kinds(toy_kind.__name__) as registry:
        assert registry.by_kind("Toy") is toy_kind.TOY
        assert [kind.kind for kind in registry] == ["WorkerPool", "RateLimitPolicy", "Toy"]
    assert kinds.registry().find("Toy") is None


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ("no.such.module", "no.such.module:KINDS: cannot be imported"),
        ("tests.unit.api.specs", "tests.unit.api.specs:KINDS: cannot be imported"),
        ("engineroom.api.kinds", "is a name of WorkerPool and WorkerPool"),
    ],
)
def test_a_module_without_kinds_of_its_own_is_refused(module: str, problem: str) -> None:
    with pytest.raises(KindError, match=problem), extra_kinds(module):
        pass


def test_the_registry_imports_no_model() -> None:
    code = "import sys, engineroom.api.kinds as k; k.registry(); print('pydantic' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


def test_reading_needs_one_permission() -> None:
    assert Permissions.to_read("a") == Permissions(get="a", list="a", watch="a")
