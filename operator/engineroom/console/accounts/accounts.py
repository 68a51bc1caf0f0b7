"""Accounts of the administrator, the declared ones, and users of the OIDC provider.

A session, token or key grants what both its creation and its owner's current grants allow; see
``permissions.intersect_grants``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from engineroom.auth.errors import AccountGoneError
from engineroom.auth.login.lockout import PasswordAccount
from engineroom.auth.permissions import ADMIN, Grant, intersect_grants
from engineroom.console.accounts.account_config import BOOTSTRAP, AccountConfig

if TYPE_CHECKING:
    from engineroom.auth.login.passwords import Passwords
    from engineroom.auth.permissions import AccessPolicy, Principal
    from engineroom.console.accounts.account_config import DeclaredAccount
    from engineroom.console.accounts.oidc_users import OidcUsers

NAME = BOOTSTRAP
SUBJECT = f"user:{NAME}"


class Accounts:
    """All accounts. The administrator's password hash stays in memory.

    A new administrator password therefore takes a new Secret and a restart, and Redis holds no
    password hash.
    """

    def __init__(
        self,
        hashed: str,
        oidc_users: OidcUsers,
        *,
        issuer: str = "",
        config: AccountConfig | None = None,
    ) -> None:
        """``hashed`` is "" without an administrator, ``issuer`` is "" without an OIDC provider."""
        self._hashed = hashed
        self._issuer = issuer
        self.oidc_users = oidc_users
        self.config = config or AccountConfig()

    @classmethod
    async def create(
        cls,
        password: str,
        passwords: Passwords,
        oidc_users: OidcUsers,
        *,
        issuer: str = "",
        config: AccountConfig | None = None,
    ) -> Accounts:
        """Hash the administrator's password; an empty one means that there is no administrator."""
        hashed = await passwords.hash(password) if password else ""
        return cls(hashed, oidc_users, issuer=issuer, config=config)

    @property
    def policy(self) -> AccessPolicy:
        """The current roles."""
        return self.config.policy

    async def find(self, name: str) -> PasswordAccount | None:
        """Return the account of that name if it has a password. Raises AuthStoreError."""
        if name == NAME:
            return PasswordAccount(SUBJECT, self._hashed) if self._hashed else None
        declared = self.config.accounts.get(name)
        if declared is None or not declared.hashed:
            return None
        if await self.oidc_users.blocked(declared.subject):
            return None
        return PasswordAccount(declared.subject, declared.hashed)

    def exists(self, name: str) -> bool:
        """Return True if there is an account of that name, with a password or without."""
        return (name == NAME and bool(self._hashed)) or name in self.config.accounts

    def grants(self, subject: str) -> tuple[Grant, ...]:
        """Return the current grants of an account; none if the account does not exist."""
        if subject == SUBJECT:
            return (Grant.everywhere(ADMIN.name),) if self._hashed else ()
        declared = self._find_account(subject)
        return () if declared is None else declared.grants

    async def current_grants(self, subject: str) -> tuple[Grant, ...] | None:
        """Return the current grants of an account or provider user; None for other subjects.

        Raises AccountGoneError if the account was removed, or if the user did not sign in for too
        long; AuthStoreError.
        """
        if subject.startswith("user:"):
            if subject == SUBJECT and self._hashed:
                return self.grants(subject)
            if self._find_account(subject) is None or await self.oidc_users.blocked(subject):
                raise _account_gone(subject)
            return self.grants(subject)
        if subject.startswith(("https://", "http://")):
            user = await self.oidc_users.find(subject) if self._of_our_issuer(subject) else None
            if user is None:
                raise _account_gone(subject)
            return self.config.grants_of_groups(user.groups)
        return None

    async def limit_to_current(self, principal: Principal) -> Principal:
        """Return the principal without grants that its owner has lost. Raises as above."""
        current = await self.current_grants(principal.subject)
        if current is None or current == principal.grants:
            return principal
        return replace(principal, grants=intersect_grants(principal.grants, current, self.policy))

    def _find_account(self, subject: str) -> DeclaredAccount | None:
        return self.config.accounts.get(subject.removeprefix("user:"))

    def _of_our_issuer(self, subject: str) -> bool:
        return bool(self._issuer) and subject.startswith(f"{self._issuer}#")


def _account_gone(subject: str) -> AccountGoneError:
    return AccountGoneError(f"account: {subject[:255]} no longer exists; ask an administrator")
