"""Roles, accounts and groups as they are declared: read, checked, and never half taken.

One document, YAML or JSON, beside it a directory with a password hash per account. Pure, but for
``read``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engineroom.auth.login.passwords import hash_problem
from engineroom.auth.permissions import EVERYWHERE, Grant, Permission, Policy, Role
from engineroom.core.errors import InvalidInputError, Problem
from engineroom.core.validation.documents import UnreadableError
from engineroom.core.validation.documents import read as read_documents
from engineroom.core.validation.paths import child, nearest, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

#: What the chart's own account is called; see ``accounts``.
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
class Declared:
    """One account. ``hashed`` is "" where its password is not there: then it cannot sign in."""

    name: str
    grants: tuple[Grant, ...]
    hashed: str = field(default="", repr=False)

    @property
    def subject(self) -> str:
        """As it stands in sessions, keys and logs."""
        return f"user:{self.name}"


@dataclass(frozen=True, slots=True)
class Directory:
    """All that is declared."""

    policy: Policy = field(default_factory=Policy)
    accounts: Mapping[str, Declared] = field(default_factory=dict)
    #: Groups of the OIDC provider, in the order in which they were written.
    mapping: tuple[tuple[str, tuple[Grant, ...]], ...] = ()

    def of_groups(self, groups: Iterable[str]) -> tuple[Grant, ...]:
        """What somebody in ``groups`` may do; nothing where no group is named."""
        his = frozenset(groups)
        found = (grant for group, grants in self.mapping if group in his for grant in grants)
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Departed:
    """Subjects whose sessions and tokens are over after a change; ``back`` may come in again."""

    gone: frozenset[str]
    changed: frozenset[str]
    back: frozenset[str]


def departed(before: Directory, after: Directory) -> Departed:
    """What a change of the directory ends: accounts that are gone, and those whose password is
    another one."""
    old = {each.subject: each for each in before.accounts.values()}
    new = {each.subject: each for each in after.accounts.values()}
    return Departed(
        gone=frozenset(old.keys() - new.keys()),
        changed=frozenset(
            s for s in old.keys() & new.keys() if old[s].hashed and old[s].hashed != new[s].hashed
        ),
        back=frozenset(new.keys() - old.keys()),
    )


@dataclass(frozen=True, slots=True)
class Source:
    """What stands in the files; two that are equal need not be read twice."""

    document: bytes = b""
    hashes: tuple[tuple[str, bytes], ...] = ()


def read(document: Path | None, hashes: Path | None) -> Source:
    """The files as they are now. Raises OSError, and InvalidInputError for what is too large.

    A directory that is not there holds no hash. What Kubernetes keeps beside a mounted Secret's
    keys (``..data``) is left out.
    """
    text = b"" if document is None else _bytes(document, MAX_FILE, "directory")
    found: list[tuple[str, bytes]] = []
    if hashes is not None and hashes.is_dir():
        paths = (path for path in hashes.iterdir() if not path.name.startswith("."))
        found = [
            (path.name, _bytes(path, _MAX_HASH, f"passwords.{path.name}"))
            for path in sorted(paths)[:MAX_ACCOUNTS]
            if path.is_file()
        ]
    return Source(text, tuple(found))


def _bytes(path: Path, most: int, name: str) -> bytes:
    with path.open("rb") as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise InvalidInputError([Problem(name, f"is larger than {most} bytes", "make it smaller")])
    return raw


def parse(source: Source) -> Directory:
    """The directory. Raises InvalidInputError with every problem found."""
    reader = _Reader({name: _line(raw) for name, raw in source.hashes})
    try:
        documents = list(read_documents(source.document.decode("utf-8", "replace")))
    except UnreadableError as error:
        raise InvalidInputError([Problem("directory", str(error), "correct it")]) from error
    if len(documents) > 1:
        reader.wrong("directory", "is more than one document", "write one")
    made = reader.directory(documents[0].value if documents else {})
    if reader.problems:
        raise InvalidInputError(reader.problems[:50])
    return made


def _line(raw: bytes) -> str:
    return raw.decode("utf-8", "replace").strip()


class _Reader:
    """Reads on after a problem, so that all of them are told."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self.problems: list[Problem] = []
        self._hashes = hashes

    def wrong(self, path: str, problem: str, fix: str) -> None:
        self.problems.append(Problem(path, problem, fix))

    def directory(self, value: Any) -> Directory:
        top = self._object(value, "", "")
        policy = self._roles(self._list(top, "roles", ""))
        accounts: dict[str, Declared] = {}
        for path, each in self._entries(self._list(top, "accounts", ""), "accounts"):
            name = self._name(each, path)
            if name in accounts or name == BOOTSTRAP:
                taken = "is the bootstrap account" if name == BOOTSTRAP else "stands there twice"
                self.wrong(f"{path}.name", f"{shown(name)} {taken}", "write another name")
                continue
            grants = self._grants(each, path, policy)
            accounts[name] = Declared(name, grants, self._hash(name))
        mapping = []
        for path, each in self._entries(self._list(top, "roleMapping", ""), "roleMapping"):
            group = each.get("group")
            if not isinstance(group, str) or not 0 < len(group) <= 256:
                self.wrong(f"{path}.group", "is no name of a group", "write it as the claim has it")
                continue
            mapping.append((group, self._grants(each, path, policy)))
        return Directory(policy, accounts, tuple(mapping))

    def _roles(self, value: list[Any]) -> Policy:
        roles: list[Role] = []
        known = Policy().roles
        for path, each in self._entries(value, "roles"):
            name = self._name(each, path)
            if name in known or any(role.name == name for role in roles):
                self.wrong(f"{path}.name", f"{shown(name)} is taken", "write another name")
                continue
            permissions: set[str] = set()
            for at, included in self._words(each, "include", path):
                if included in known:
                    permissions |= known[included].permissions
                else:
                    self._unknown(at, included, "role to include", known)
            for at, permission in self._words(each, "permissions", path):
                if permission in set(Permission):
                    permissions.add(permission)
                else:
                    self._unknown(at, permission, "permission", list(Permission))
            if not permissions:
                self.wrong(path, "gives nothing", "name permissions, or a role to include")
            roles.append(Role(name, frozenset(permissions)))
        return Policy.of(*roles) if not self.problems else Policy({**known, **{
            role.name: role for role in roles}})  # fmt: skip

    def _grants(self, entry: dict[str, Any], path: str, policy: Policy) -> tuple[Grant, ...]:
        found = []
        for at, each in self._entries(
            self._list(entry, "grants", path), child(path, "grants"), "grants"
        ):
            role = each.get("role")
            if not isinstance(role, str) or role not in policy.roles:
                self._unknown(f"{at}.role", role, "role", policy.roles)
                continue
            names = [name for _, name in self._words(each, "namespaces", at)]
            for index, name in enumerate(names):
                if not _NAMESPACE.fullmatch(name):
                    self.wrong(
                        f"{at}.namespaces[{index}]",
                        f"{shown(name)} is no namespace",
                        f"write one, or {EVERYWHERE} for all and the installation itself",
                    )
            if not names:
                self.wrong(f"{at}.namespaces", "is empty", f"name some, or {EVERYWHERE} for all")
            found.append(Grant(role, frozenset(names)))
        return tuple(found)

    def _hash(self, name: str) -> str:
        hashed = self._hashes.get(name, "")
        problem = hash_problem(hashed) if hashed else ""
        if problem:
            self.wrong(
                child("passwords", name),
                problem,
                "make it with python -m engineroom.auth.login.passwords",
            )
        return hashed

    def _name(self, entry: dict[str, Any], path: str) -> str:
        name = entry.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            self.wrong(
                f"{path}.name", f"{shown(name)} is no name", f"write {_NAME.pattern}, 63 at most"
            )
            return ""
        return name

    def _unknown(self, path: str, word: Any, what: str, known: Iterable[str]) -> None:
        choices = sorted(known)
        close = nearest(word, choices) if isinstance(word, str) else None
        fix = f"did you mean {close}?" if close else f"write one of {', '.join(choices[:40])}"
        self.wrong(path, f"{shown(word)} is no {what}", fix)

    def _entries(
        self, value: list[Any], path: str, kind: str = ""
    ) -> Iterable[tuple[str, dict[str, Any]]]:
        if len(value) > MAX_ENTRIES:
            self.wrong(path, f"has {len(value)} entries", f"at most {MAX_ENTRIES} are read")
            return
        for index, each in enumerate(value):
            at = f"{path}[{index}]"
            found = self._object(each, at, kind or path)
            if isinstance(each, dict):
                yield at, found

    def _object(self, value: Any, path: str, kind: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.wrong(path or "directory", "is no map of fields", "write fields and values")
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
            self.wrong(child(path, name), "is no list", "write a list")
            return []
        return value

    def _words(self, entry: dict[str, Any], name: str, path: str) -> list[tuple[str, str]]:
        found = []
        for index, word in enumerate(self._list(entry, name, path)):
            at = f"{child(path, name)}[{index}]"
            if isinstance(word, str):
                found.append((at, word))
            else:
                self.wrong(at, f"{shown(word)} is no text", "write it in quotes")
        return found
