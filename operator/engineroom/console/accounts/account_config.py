"""Declared roles, accounts and groups: read and validate their files.

The files are one document, YAML or JSON, and a directory with one password hash per account. An
invalid document is refused as a whole. Only ``read`` accesses files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engineroom.auth.login.passwords import hash_problem
from engineroom.auth.permissions import EVERYWHERE, AccessPolicy, Grant, Permission, Role
from engineroom.core.errors import InvalidInputError, Problem
from engineroom.core.validation.documents import UnreadableError
from engineroom.core.validation.documents import read as read_documents
from engineroom.core.validation.paths import child, nearest, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

#: Name of the administrator's account; see ``accounts``.
BOOTSTRAP = "admin"
MAX_ACCOUNTS = 1_000
MAX_ENTRIES = MAX_ACCOUNTS
MAX_FILE = 1_048_576
_MAX_HASH = 512
_NAME = re.compile(r"[a-z0-9]([-a-z0-9._]{0,61}[a-z0-9])?")
_NAMESPACE = re.compile(r"\*|[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_FIELDS = {
    "": ("roles", "accounts", "roleMapping"),
    "roles": ("name", "include", "permissions"),
    "accounts": ("name", "grants"),
    "roleMapping": ("group", "grants"),
    "grants": ("role", "namespaces"),
}


@dataclass(frozen=True, slots=True)
class DeclaredAccount:
    """One account. ``hashed`` is "" if it has no password; then it cannot sign in."""

    name: str
    grants: tuple[Grant, ...]
    hashed: str = field(default="", repr=False)

    @property
    def subject(self) -> str:
        """The name in sessions, keys and logs."""
        return f"user:{self.name}"


@dataclass(frozen=True, slots=True)
class AccountConfig:
    """The declared roles, accounts and group mappings."""

    policy: AccessPolicy = field(default_factory=AccessPolicy)
    accounts: Mapping[str, DeclaredAccount] = field(default_factory=dict)
    #: Groups of the OIDC provider with their grants, in file order.
    mapping: tuple[tuple[str, tuple[Grant, ...]], ...] = ()

    def grants_of_groups(self, groups: Iterable[str]) -> tuple[Grant, ...]:
        """Return the grants of a member of ``groups``; groups without a mapping grant nothing."""
        member_of = frozenset(groups)
        mapped = (g for group, grants in self.mapping if group in member_of for g in grants)
        return tuple(dict.fromkeys(mapped))


@dataclass(frozen=True, slots=True)
class AccountChanges:
    """Subjects that a reload removes, adds, or whose password it changes."""

    removed: frozenset[str]
    changed: frozenset[str]
    added: frozenset[str]


def changes_between(before: AccountConfig, after: AccountConfig) -> AccountChanges:
    """Compare two configurations."""
    old = {account.subject: account for account in before.accounts.values()}
    new = {account.subject: account for account in after.accounts.values()}
    return AccountChanges(
        removed=frozenset(old.keys() - new.keys()),
        changed=frozenset(
            s for s in old.keys() & new.keys() if old[s].hashed and old[s].hashed != new[s].hashed
        ),
        added=frozenset(new.keys() - old.keys()),
    )


@dataclass(frozen=True, slots=True)
class ConfigFiles:
    """The content of the files; equal contents need not be parsed twice."""

    document: bytes = b""
    hashes: tuple[tuple[str, bytes], ...] = ()


def read(document: Path | None, hashes: Path | None) -> ConfigFiles:
    """Read the files. Raises OSError, and InvalidInputError for a file that is too large.

    A missing directory holds no hashes. Names that begin with a dot are skipped: Kubernetes adds
    ``..data`` to a mounted Secret.
    """
    text = b"" if document is None else _bytes(document, MAX_FILE, "directory")
    contents: list[tuple[str, bytes]] = []
    if hashes is not None and hashes.is_dir():
        paths = (path for path in hashes.iterdir() if not path.name.startswith("."))
        contents = [
            (path.name, _bytes(path, _MAX_HASH, f"passwords.{path.name}"))
            for path in sorted(paths)[:MAX_ACCOUNTS]
            if path.is_file()
        ]
    return ConfigFiles(text, tuple(contents))


def _bytes(path: Path, most: int, name: str) -> bytes:
    with path.open("rb") as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise InvalidInputError([Problem(name, f"is larger than {most} bytes", "make it smaller")])
    return raw


def parse(files: ConfigFiles) -> AccountConfig:
    """Parse the files. Raises InvalidInputError with all problems, 50 at most."""
    reader = _Reader({name: _line(raw) for name, raw in files.hashes})
    try:
        documents = list(read_documents(files.document.decode("utf-8", "replace")))
    except UnreadableError as error:
        raise InvalidInputError([Problem("directory", str(error), "correct it")]) from error
    if len(documents) > 1:
        reader.wrong("directory", "is more than one document", "write one")
    config = reader.config(documents[0].value if documents else {})
    if reader.problems:
        raise InvalidInputError(reader.problems[:50])
    return config


def _line(raw: bytes) -> str:
    return raw.decode("utf-8", "replace").strip()


class _Reader:
    """Parses the document and collects all problems instead of stopping at the first."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self.problems: list[Problem] = []
        self._hashes = hashes

    def wrong(self, path: str, problem: str, fix: str) -> None:
        self.problems.append(Problem(path, problem, fix))

    def config(self, value: Any) -> AccountConfig:
        top = self._object(value, "", "")
        policy = self._roles(self._list(top, "roles", ""))
        accounts: dict[str, DeclaredAccount] = {}
        for path, entry in self._entries(self._list(top, "accounts", ""), "accounts"):
            name = self._name(entry, path)
            if name in accounts or name == BOOTSTRAP:
                taken = "is the bootstrap account" if name == BOOTSTRAP else "is declared twice"
                self.wrong(f"{path}.name", f"{quoted(name)} {taken}", "write another name")
                continue
            grants = self._grants(entry, path, policy)
            accounts[name] = DeclaredAccount(name, grants, self._hash(name))
        mapping = []
        for path, entry in self._entries(self._list(top, "roleMapping", ""), "roleMapping"):
            group = entry.get("group")
            if not isinstance(group, str) or not 0 < len(group) <= 256:
                self.wrong(f"{path}.group", "is not a group name", "write it as in the claim")
                continue
            mapping.append((group, self._grants(entry, path, policy)))
        return AccountConfig(policy, accounts, tuple(mapping))

    def _roles(self, value: list[Any]) -> AccessPolicy:
        roles: list[Role] = []
        built_in = AccessPolicy().roles
        for path, entry in self._entries(value, "roles"):
            name = self._name(entry, path)
            if name in built_in or any(role.name == name for role in roles):
                self.wrong(f"{path}.name", f"{quoted(name)} already exists", "write another name")
                continue
            permissions: set[str] = set()
            for at, included in self._words(entry, "include", path):
                if included in built_in:
                    permissions |= built_in[included].permissions
                else:
                    self._unknown(at, included, "role to include", built_in)
            for at, permission in self._words(entry, "permissions", path):
                if permission in set(Permission):
                    permissions.add(permission)
                else:
                    self._unknown(at, permission, "permission", list(Permission))
            if not permissions:
                self.wrong(path, "grants nothing", "add permissions, or a role to include")
            roles.append(Role(name, frozenset(permissions)))
        return AccessPolicy.of(*roles) if not self.problems else AccessPolicy({**built_in, **{
            role.name: role for role in roles}})  # fmt: skip

    def _grants(self, entry: dict[str, Any], path: str, policy: AccessPolicy) -> tuple[Grant, ...]:
        grants = []
        for at, grant in self._entries(
            self._list(entry, "grants", path), child(path, "grants"), "grants"
        ):
            role = grant.get("role")
            if not isinstance(role, str) or role not in policy.roles:
                self._unknown(f"{at}.role", role, "role", policy.roles)
                continue
            names = [name for _, name in self._words(grant, "namespaces", at)]
            for index, name in enumerate(names):
                if not _NAMESPACE.fullmatch(name):
                    self.wrong(
                        f"{at}.namespaces[{index}]",
                        f"{quoted(name)} is not a namespace",
                        f"write one, or {EVERYWHERE} for all and the installation itself",
                    )
            if not names:
                self.wrong(f"{at}.namespaces", "is empty", f"name some, or {EVERYWHERE} for all")
            grants.append(Grant(role, frozenset(names)))
        return tuple(grants)

    def _hash(self, name: str) -> str:
        hashed = self._hashes.get(name, "")
        problem = hash_problem(hashed) if hashed else ""
        if problem:
            self.wrong(
                child("passwords", name),
                problem,
                "create it with python -m engineroom.auth.login.passwords",
            )
        return hashed

    def _name(self, entry: dict[str, Any], path: str) -> str:
        name = entry.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            self.wrong(
                f"{path}.name",
                f"{quoted(name)} is not a name",
                f"write {_NAME.pattern}, 63 characters at most",
            )
            return ""
        return name

    def _unknown(self, path: str, word: Any, what: str, allowed: Iterable[str]) -> None:
        choices = sorted(allowed)
        close = nearest(word, choices) if isinstance(word, str) else None
        fix = f"did you mean {close}?" if close else f"write one of {', '.join(choices[:40])}"
        self.wrong(path, f"{quoted(word)} is not a {what}", fix)

    def _entries(
        self, value: list[Any], path: str, kind: str = ""
    ) -> Iterable[tuple[str, dict[str, Any]]]:
        if len(value) > MAX_ENTRIES:
            self.wrong(path, f"has {len(value)} entries", f"write at most {MAX_ENTRIES}")
            return
        for index, entry in enumerate(value):
            at = f"{path}[{index}]"
            fields = self._object(entry, at, kind or path)
            if isinstance(entry, dict):
                yield at, fields

    def _object(self, value: Any, path: str, kind: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.wrong(path or "directory", "is not a map of fields", "write fields and values")
            return {}
        for name in value:
            if name not in _FIELDS[kind]:
                self._unknown(child(path, str(name)), name, "field here", _FIELDS[kind])
        return value

    def _list(self, entry: dict[str, Any], name: str, path: str) -> list[Any]:
        value = entry.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            self.wrong(child(path, name), "is not a list", "write a list")
            return []
        return value

    def _words(self, entry: dict[str, Any], name: str, path: str) -> list[tuple[str, str]]:
        words = []
        for index, word in enumerate(self._list(entry, name, path)):
            at = f"{child(path, name)}[{index}]"
            if isinstance(word, str):
                words.append((at, word))
            else:
                self.wrong(at, f"{quoted(word)} is not a string", "write it in quotes")
        return words
