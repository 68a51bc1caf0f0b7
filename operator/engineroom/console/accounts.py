"""Accounts with a password: the administrator whose password the chart made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.auth.lockout import Account
from engineroom.auth.permissions import ADMIN, Grant

if TYPE_CHECKING:
    from engineroom.auth.passwords import Passwords

NAME = "admin"
SUBJECT = "user:admin"


class Accounts:
    """The one account. Its hash is made at the start and kept in memory only.

    So a new password is a new Secret and a restart, and no hash can be stolen from Redis.
    """

    def __init__(self, hashed: str) -> None:
        self._hashed = hashed

    @classmethod
    async def of(cls, password: str, passwords: Passwords) -> Accounts:
        """With the administrator's password, or without him where it is empty."""
        return cls(await passwords.hash(password) if password else "")

    async def find(self, name: str) -> Account | None:
        """The account of that name."""
        if name != NAME or not self._hashed:
            return None
        return Account(SUBJECT, self._hashed)

    def grants(self, subject: str) -> tuple[Grant, ...]:
        """What the subject may do now; nothing where there is no such account any more."""
        if subject != SUBJECT or not self._hashed:
            return ()
        return (Grant.everywhere(ADMIN.name),)
