"""Who has an account, and what he may do now: the chart's administrator, those that are declared,
and people of the OIDC provider by their groups.

A session, a token or a key gives what it was made with and what its owner has now, whichever is
less; see ``permissions.meet``.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from engineroom.auth.errors import AccountGoneError
from engineroom.auth.login.lockout import Account
from engineroom.auth.permissions import ADMIN, Grant, meet
from engineroom.console.identity.account_config import (
    BOOTSTRAP,
    Declared,
    Departed,
    Directory,
    Source,
    departed,
    parse,
    read,
)
from engineroom.core.errors import EngineroomError, InvalidInputError
from engineroom.core.logging import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from engineroom.auth.login.passwords import Passwords
    from engineroom.auth.login.sessions import Sessions
    from engineroom.auth.permissions import Policy, Principal
    from engineroom.auth.tokens.access_tokens import Tokens
    from engineroom.console.identity.oidc_users import People

log = get_logger(__name__)

NAME = BOOTSTRAP
SUBJECT = f"user:{NAME}"
#: Seconds between two looks at the files.
LOOK_EVERY = 0.5


class Accounts:
    """All accounts. The administrator's hash is made at the start and kept in memory only.

    So a new password of his is a new Secret and a restart, and no hash can be stolen from Redis.
    """

    def __init__(
        self, hashed: str, people: People, *, issuer: str = "", directory: Directory | None = None
    ) -> None:
        """``issuer`` is of the OIDC provider; "" where there is none."""
        self._hashed = hashed
        self._issuer = issuer
        self.people = people
        self.directory = directory or Directory()

    @classmethod
    async def of(
        cls,
        password: str,
        passwords: Passwords,
        people: People,
        *,
        issuer: str = "",
        directory: Directory | None = None,
    ) -> Accounts:
        """With the administrator's password, or without him where it is empty."""
        hashed = await passwords.hash(password) if password else ""
        return cls(hashed, people, issuer=issuer, directory=directory)

    @property
    def policy(self) -> Policy:
        """The roles that there are now."""
        return self.directory.policy

    async def find(self, name: str) -> Account | None:
        """The account of that name, if it has a password. Raises AuthStoreError."""
        if name == NAME:
            return Account(SUBJECT, self._hashed) if self._hashed else None
        declared = self.directory.accounts.get(name)
        if declared is None or not declared.hashed or await self.people.barred(declared.subject):
            return None
        return Account(declared.subject, declared.hashed)

    def known(self, name: str) -> bool:
        """Whether an account of that name is there, with a password or without."""
        return (name == NAME and bool(self._hashed)) or name in self.directory.accounts

    def grants(self, subject: str) -> tuple[Grant, ...]:
        """What an account may do now; nothing where there is no such account any more."""
        if subject == SUBJECT:
            return (Grant.everywhere(ADMIN.name),) if self._hashed else ()
        declared = self._declared(subject)
        return () if declared is None else declared.grants

    async def rights(self, subject: str) -> tuple[Grant, ...] | None:
        """What somebody may do now, or None for a subject whose rights are not ours to say.

        Raises AccountGoneError where he has no account any more; AuthStoreError.
        """
        if subject.startswith("user:"):
            if subject == SUBJECT and self._hashed:
                return self.grants(subject)
            if self._declared(subject) is None or await self.people.barred(subject):
                raise _gone(subject)
            return self.grants(subject)
        if subject.startswith(("https://", "http://")):
            person = await self.people.find(subject) if self._ours(subject) else None
            if person is None:
                raise _gone(subject)
            return self.directory.of_groups(person.groups)
        return None

    async def current(self, principal: Principal) -> Principal:
        """Somebody with no more rights than he has now. Raises as ``rights``."""
        now = await self.rights(principal.subject)
        if now is None or now == principal.grants:
            return principal
        return replace(principal, grants=meet(principal.grants, now, self.policy))

    def _declared(self, subject: str) -> Declared | None:
        return self.directory.accounts.get(subject.removeprefix("user:"))

    def _ours(self, subject: str) -> bool:
        return bool(self._issuer) and subject.startswith(f"{self._issuer}#")


def _gone(subject: str) -> AccountGoneError:
    return AccountGoneError(f"account: {subject[:255]} has none any more; ask an administrator")


class Follower:
    """Takes changes of the files over while the process runs, and ends what they end."""

    def __init__(
        self,
        accounts: Accounts,
        sessions: Sessions,
        tokens: Tokens,
        *,
        document: Path | None,
        hashes: Path | None,
        source: Source,
    ) -> None:
        """``source`` is what the accounts' directory was made of."""
        self._accounts = accounts
        self._sessions = sessions
        self._tokens = tokens
        self._document = document
        self._hashes = hashes
        self._source = source
        self._owed: list[Departed] = []

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self.look()
            except EngineroomError as error:
                log.warning("sessions of accounts not ended", code=error.code, error=str(error))
            except OSError as error:
                log.warning("accounts cannot be read", error=type(error).__name__)

    async def look(self) -> None:
        """Take a change over, if there is one. What cannot be read leaves all as it was.

        Raises OSError, and AuthStoreError when the change holds here and not yet in Redis; the
        next look goes on.
        """
        if self._document is not None or self._hashes is not None:
            try:
                source = await asyncio.to_thread(read, self._document, self._hashes)
                self._take(source)
            except InvalidInputError as error:
                log.error("accounts are wrong, the old ones stay", problem=str(error))  # noqa: TRY400
        while self._owed:
            await self._settle(self._owed[0])
            self._owed.pop(0)

    def _take(self, source: Source) -> None:
        if source == self._source:
            return
        # Also where it is wrong: said once, and not again before it changes.
        self._source = source
        after = parse(source)
        before, self._accounts.directory = self._accounts.directory, after
        self._owed.append(departed(before, after))
        log.info("accounts taken over", accounts=len(after.accounts), groups=len(after.mapping))

    async def _settle(self, what: Departed) -> None:
        for subject in sorted(what.back):
            await self._accounts.people.admit(subject)
        for subject in sorted(what.gone):
            await self._accounts.people.bar(subject)
            await self._end(subject)
        for subject in sorted(what.changed):
            # By the first replica that sees it: a later one would end what was signed in since.
            declared = self._accounts.directory.accounts.get(subject.removeprefix("user:"))
            change = "" if declared is None else declared.hashed
            if await self._accounts.people.first(subject, change):
                await self._end(subject)

    async def _end(self, subject: str) -> None:
        await self._tokens.revoke_subject(subject)
        await self._sessions.end_all(subject)
        log.info("sign-ins of an account ended", subject=subject)
