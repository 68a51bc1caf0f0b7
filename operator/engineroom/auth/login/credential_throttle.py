"""Wrong credentials counted by address, so that making them up is slow and asks little of others.

Right ones are not counted and not refused: behind one address may be an office, and a stranger
there must not lock it out. So what is recognised without asking anybody else (tokens of ours, API
keys, sessions) is looked at first and counted when it is wrong. A token that somebody else has to
judge is counted before he is asked, unless it was right here before, and given back when it is.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeVar

from engineroom.auth.errors import AccountGoneError, ApiKeyError, TokenError
from engineroom.auth.login.lockout import Rate, address_key
from engineroom.core.errors import AuthenticationError, LimitError
from engineroom.core.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engineroom.auth.login.lockout import Counter

T = TypeVar("T")
log = get_logger(__name__)

#: Sixty wrong ones, then one a second.
WRONG = Rate(burst=60, every=1.0)
#: Tokens remembered as right, by their digest.
MOST_KNOWN = 10_000
#: They were right once: programs show them until they see that they are over.
_OVER = ("expired", "not_before", "issued_later", "revoked")


class Attempts:
    """What an address may still show of wrong credentials. Raises AuthStoreError as its counter."""

    def __init__(self, counter: Counter, rate: Rate = WRONG) -> None:
        self._counter = counter
        self._rate = rate
        self._known: OrderedDict[bytes, None] = OrderedDict()

    async def failed(self, address: str, error: AuthenticationError) -> None:
        """Count one that was wrong. Raises LimitError when there were too many."""
        over = isinstance(error, TokenError | ApiKeyError) and error.reason.startswith(_OVER)
        if over or isinstance(error, AccountGoneError):
            return
        await self._take(address)
        _noted(address, error)

    async def judged(
        self, address: str, credential: str, judge: Callable[[str], Awaitable[T]]
    ) -> T:
        """What ``judge`` says of it, who is asked for no more wrong ones than there may be.

        Raises LimitError instead of asking, and what ``judge`` raises.
        """
        digest = hashlib.sha256(credential.encode("utf-8", "surrogatepass")).digest()
        if digest in self._known:
            self._known.move_to_end(digest)
            try:
                return await judge(credential)
            except AuthenticationError:
                del self._known[digest]
                raise
        await self._take(address)
        try:
            found = await judge(credential)
        except AuthenticationError as error:
            _noted(address, error)
            raise
        except BaseException:
            # Nobody said that it is wrong.
            await self._give_back(address)
            raise
        await self._give_back(address)
        self._known[digest] = None
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        return found

    async def _take(self, address: str) -> None:
        wait = await self._counter.take(self._key(address), self._rate)
        if wait > 0:
            log.warning("too many wrong credentials", address=address)
            raise LimitError(
                "credentials: too many wrong ones came from this address; wait", retry_after=wait
            )

    async def _give_back(self, address: str) -> None:
        await self._counter.give_back(self._key(address), self._rate)

    def _key(self, address: str) -> str:
        return f"credentials:{address_key(address)}"


def _noted(address: str, error: AuthenticationError) -> None:
    reason = getattr(error, "reason", "")
    log.warning("credentials refused", address=address, code=error.code, reason=reason)
