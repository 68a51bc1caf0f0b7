"""Reloads the declared accounts when their files change."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engineroom.console.accounts.account_config import changes_between, parse, read
from engineroom.core.errors import EngineroomError, InvalidInputError
from engineroom.core.logging import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from engineroom.auth.login.sessions import Sessions
    from engineroom.auth.tokens.access_tokens import Tokens
    from engineroom.console.accounts.account_config import AccountChanges, ConfigFiles
    from engineroom.console.accounts.accounts import Accounts

log = get_logger(__name__)

#: Seconds between two reads of the files.
POLL_INTERVAL = 0.5


class AccountConfigWatcher:
    """Applies changes of the files, and ends sessions and tokens of accounts that they remove."""

    def __init__(
        self,
        accounts: Accounts,
        sessions: Sessions,
        tokens: Tokens,
        *,
        document: Path | None,
        hashes: Path | None,
        files: ConfigFiles,
    ) -> None:
        """``files`` is the content from which ``accounts`` was created."""
        self._accounts = accounts
        self._sessions = sessions
        self._tokens = tokens
        self._document = document
        self._hashes = hashes
        self._files = files
        self._pending: list[AccountChanges] = []

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            try:
                await self.poll()
            except EngineroomError as error:
                log.warning("sessions of accounts not ended", code=error.code, error=str(error))
            except OSError as error:
                log.warning("accounts cannot be read", error=type(error).__name__)

    async def poll(self) -> None:
        """Read the files once and apply a change. Invalid files change nothing.

        Raises OSError, and AuthStoreError if Redis is unavailable: then the new accounts are in
        effect, and the next poll ends the sessions.
        """
        if self._document is not None or self._hashes is not None:
            try:
                files = await asyncio.to_thread(read, self._document, self._hashes)
                self._apply(files)
            except InvalidInputError as error:
                log.error("accounts invalid, unchanged", problem=str(error))  # noqa: TRY400
        while self._pending:
            await self._end_sign_ins(self._pending[0])
            self._pending.pop(0)

    def _apply(self, files: ConfigFiles) -> None:
        if files == self._files:
            return
        # Store invalid files too, so that their problems are logged once.
        self._files = files
        after = parse(files)
        before, self._accounts.config = self._accounts.config, after
        self._pending.append(changes_between(before, after))
        log.info("accounts loaded", accounts=len(after.accounts), groups=len(after.mapping))

    async def _end_sign_ins(self, changes: AccountChanges) -> None:
        users = self._accounts.oidc_users
        for subject in sorted(changes.added):
            await users.unblock(subject)
        for subject in sorted(changes.removed):
            await users.block(subject)
            await self._end(subject)
        for subject in sorted(changes.changed):
            # Only the first replica acts: a later one would end sessions opened since the change.
            declared = self._accounts.config.accounts.get(subject.removeprefix("user:"))
            change = "" if declared is None else declared.hashed
            if await users.claim_change(subject, change):
                await self._end(subject)

    async def _end(self, subject: str) -> None:
        await self._tokens.revoke_subject(subject)
        await self._sessions.end_all(subject)
        log.info("sign-ins of an account ended", subject=subject)
