"""Declared roles, accounts and groups: accepted as a whole, or refused with all problems."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from argon2 import PasswordHasher, Type
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engineroom.auth.permissions import Grant, Permission
from engineroom.console.accounts.account_config import (
    AccountConfig,
    ConfigFiles,
    changes_between,
    parse,
    read,
)
from engineroom.core.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

CHEAP = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
HASH = CHEAP.hash("right")
SHOP = [{"role": "viewer", "namespaces": ["shop"]}]


def made(document: Any = None, **hashes: str) -> AccountConfig:
    text = json.dumps(document if document is not None else {}).encode()
    return parse(
        ConfigFiles(text, tuple((name, hashed.encode()) for name, hashed in hashes.items()))
    )


def problems(document: Any, **hashes: str) -> dict[str, str]:
    with pytest.raises(InvalidInputError) as raised:
        made(document, **hashes)
    return {problem.field: f"{problem.problem}; {problem.fix}" for problem in raised.value.problems}


def test_an_empty_configuration_has_three_roles_and_no_accounts() -> None:
    for source in (ConfigFiles(), ConfigFiles(b"{}"), ConfigFiles(b"roles: []\naccounts:\n")):
        config = parse(source)
        assert sorted(config.policy.roles) == ["admin", "operator", "viewer"]
        assert (config.accounts, config.mapping) == ({}, ())


def test_roles_accounts_and_groups() -> None:
    config = made(
        {
            "roles": [
                {"name": "retrier", "permissions": ["namespace:jobs:retry", "self:identity:read"]},
                {"name": "reader", "include": ["viewer"], "permissions": ["cluster:audit:read"]},
            ],
            "accounts": [
                {"name": "ada", "grants": [{"role": "retrier", "namespaces": ["shop", "mail"]}]},
                {"name": "b.ob"},
            ],
            "roleMapping": [
                {"group": "ops", "grants": [{"role": "operator", "namespaces": ["*"]}]},
                {"group": "ops", "grants": SHOP},
            ],
        },
        ada=f"{HASH}\n",
    )
    assert config.policy.roles["retrier"].permissions == {
        Permission.NAMESPACE_JOBS_RETRY,
        Permission.SELF_IDENTITY_READ,
    }
    assert config.policy.roles["reader"].permissions > config.policy.roles["viewer"].permissions
    assert config.accounts["ada"].grants == (Grant("retrier", frozenset({"shop", "mail"})),)
    assert (config.accounts["ada"].hashed, config.accounts["b.ob"].hashed) == (HASH, "")
    assert [g.role for g in config.grants_of_groups(["ops", "x"])] == ["operator", "viewer"]
    assert config.grants_of_groups(["x"]) == ()


@pytest.mark.parametrize(
    ("document", "field", "told"),
    [
        ([], "directory", "is not a map"),
        ({"role": []}, "role", "did you mean roles?"),
        ({"roles": {}}, "roles", "is not a list"),
        ({"roles": "x"}, "roles", "is not a list"),
        ({"roles": [7]}, "roles[0]", "is not a map"),
        ({"roles": [{"name": "admin", "include": ["viewer"]}]}, "roles[0].name", "already exists"),
        ({"roles": [{"name": "X", "include": ["viewer"]}]}, "roles[0].name", "is not a name"),
        ({"roles": [{"name": "x"}]}, "roles[0]", "grants nothing"),
        ({"roles": [{"name": "x", "include": ["viewr"]}]}, "roles[0].include[0]", "viewer?"),
        (
            {"roles": [{"name": "x", "permissions": ["namespace:job:read"]}]},
            "roles[0].permissions[0]",
            "did you mean namespace:jobs:read?",
        ),
        (
            {"roles": [{"name": "x", "permissions": [True]}]},
            "roles[0].permissions[0]",
            "write it in quotes",
        ),
        ({"accounts": [{"name": "admin"}]}, "accounts[0].name", "bootstrap"),
        ({"accounts": [{"name": "ada"}, {"name": "ada"}]}, "accounts[1].name", "twice"),
        ({"accounts": [{"name": "../x"}]}, "accounts[0].name", "is not a name"),
        (
            {"accounts": [{"name": "ada", "password": "x"}]},
            "accounts[0].password",
            "is not a field",
        ),
        (
            {"accounts": [{"name": "ada", "grants": [{"role": "operatr", "namespaces": ["x"]}]}]},
            "accounts[0].grants[0].role",
            "did you mean operator?",
        ),
        (
            {"accounts": [{"name": "ada", "grants": [{"role": "viewer"}]}]},
            "accounts[0].grants[0].namespaces",
            "is empty",
        ),
        (
            {"accounts": [{"name": "a", "grants": [{"role": "viewer", "namespaces": ["a*"]}]}]},
            "accounts[0].grants[0].namespaces[0]",
            "is not a namespace",
        ),
        (
            {"roleMapping": [{"group": "", "grants": SHOP}]},
            "roleMapping[0].group",
            "is not a group name",
        ),
        ({"accounts": [{}] * 1001}, "accounts", "1001 entries"),
    ],
)
def test_a_problem_names_its_field(document: Any, field: str, told: str) -> None:
    assert told in problems(document)[field]


def test_all_problems_are_reported() -> None:
    problems_by_field = problems(
        {"roles": [{"name": "X"}], "accounts": [{"name": "ada", "grants": [{"role": "no"}]}]},
        ada="plain",
    )
    assert {"roles[0].name", "accounts[0].grants[0].role", "passwords.ada"} <= set(
        problems_by_field
    )


def test_a_hash_is_argon2id_within_cost_limits() -> None:
    ada = {"accounts": [{"name": "ada"}]}
    other = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1, type=Type.I).hash("x")
    dear = HASH.replace("m=64", "m=1048576")
    for hashed in ("plain", "$2b$12$" + "x" * 53, other, dear, "$argon2id$v=19$m=64"):
        reported = problems(ada, ada=hashed)
        assert "engineroom.auth.login.passwords" in reported["passwords.ada"]
        assert hashed not in str(reported)
    assert made(ada, ada=HASH).accounts["ada"].hashed == HASH
    assert HASH not in repr(made(ada, ada=HASH))
    # A hash without an account is valid: the Secret may come before the values, or stay after them.
    assert made({}, eve="plain").accounts == {}


def test_changes_between_configurations() -> None:
    other = CHEAP.hash("other")
    people = {"accounts": [{"name": n} for n in ("gone", "kept", "changed", "cleared", "set")]}
    before = made(people, gone=HASH, kept=HASH, changed=HASH, cleared=HASH)
    people["accounts"][0]["name"] = "back"
    after = made(people, back=HASH, kept=HASH, changed=other, set=HASH)
    changes = changes_between(before, after)
    assert changes.removed == {"user:gone"}
    assert changes.changed == {"user:changed", "user:cleared"}
    assert changes.added == {"user:back"}


def test_files_are_read_as_kubernetes_mounts_them(tmp_path: Path) -> None:
    data = tmp_path / "..2026" / "ada"
    data.parent.mkdir()
    data.write_text(HASH)
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "ada").symlink_to("..data/ada")
    document = tmp_path.parent / "accounts.yaml"
    document.write_text("accounts: [{name: ada}]")
    source = read(document, tmp_path)
    assert source.hashes == (("ada", HASH.encode()),)
    assert source == read(document, tmp_path)
    assert parse(source).accounts["ada"].hashed == HASH
    assert read(None, tmp_path / "absent") == ConfigFiles()
    with pytest.raises(OSError, match="absent"):
        read(tmp_path / "absent", None)
    document.write_bytes(b"x" * 2_000_000)
    with pytest.raises(InvalidInputError, match="larger"):
        read(document, None)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "grants", "role", "namespaces", "include", "permissions", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.sampled_from(["roles", "accounts", "roleMapping"]), _JSON))
def test_no_document_crashes_the_parser(document: Any) -> None:
    config = AccountConfig()
    with contextlib.suppress(InvalidInputError):
        config = made(document)
    for account in config.accounts.values():
        assert all(grant.role in config.policy.roles for grant in account.grants)


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"a: [", b"&a [*a]", b"--- {}\n--- {}", b"!x {}"])
def test_a_non_document_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidInputError):
        parse(ConfigFiles(raw))
