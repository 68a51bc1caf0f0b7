"""A limit on wrong credentials for each address, which slows down guessing.

Valid credentials are neither counted nor refused: many users may share an address, and one of them
must not lock out the others. Credentials that this process can check (our tokens, API keys,
sessions) are checked first and counted if wrong. A token that an external system checks is counted
before, and the count is returned if it is valid. A token that was valid earlier in this process is
not counted.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeVar

from engineroom.auth.errors import AccountGoneError, ApiKeyError, TokenError
from engineroom.auth.login.lockout import AttemptRate, address_key
from engineroom.core.errors import AuthenticationError, LimitError
from engineroom.core.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engineroom.auth.login.lockout import AttemptCounter

T = TypeVar("T")
log = get_logger(__name__)

#: 60 wrong credentials at once, then one a second.
WRONG = AttemptRate(burst=60, every=1.0)
#: Most digests of valid tokens that are remembered.
MAX_VALID = 10_000
#: Reasons that are not guesses: the credential was valid at another time.
_NOT_GUESSED = ("expired", "not_before", "issued_later", "revoked")


class CredentialThrottle:
    """Counts wrong credentials by address. Raises AuthStoreError if its counter does."""

    def __init__(self, counter: AttemptCounter, rate: AttemptRate = WRONG) -> None:
        self._counter = counter
        self._rate = rate
        self._valid: OrderedDict[bytes, None] = OrderedDict()

    async def count_failure(self, address: str, error: AuthenticationError) -> None:
        """Count a wrong credential; raise LimitError if there were too many."""
        is_stale = isinstance(error, TokenError | ApiKeyError) and error.reason.startswith(
            _NOT_GUESSED
        )
        if is_stale or isinstance(error, AccountGoneError):
            return
        await self._take(address)
        _log_refusal(address, error)

    async def check(
        self, address: str, credential: str, verify: Callable[[str], Awaitable[T]]
    ) -> T:
        """Return what ``verify`` returns for the credential, within the limit of the address.

        Raises LimitError instead of calling ``verify``, and the errors of ``verify``.
        """
        digest = hashlib.sha256(credential.encode("utf-8", "surrogatepass")).digest()
        if digest in self._valid:
            self._valid.move_to_end(digest)
            try:
                return await verify(credential)
            except AuthenticationError:
                del self._valid[digest]
                raise
        await self._take(address)
        try:
            result = await verify(credential)
        except AuthenticationError as error:
            _log_refusal(address, error)
            raise
        except BaseException:
            # Not a verdict on the credential.
            await self._give_back(address)
            raise
        await self._give_back(address)
        self._valid[digest] = None
        if len(self._valid) > MAX_VALID:
            self._valid.popitem(last=False)
        return result

    async def _take(self, address: str) -> None:
        wait = await self._counter.take(self._key(address), self._rate)
        if wait > 0:
            log.warning("too many wrong credentials", address=address)
            raise LimitError(
                "credentials: too many wrong ones from this address; wait", retry_after=wait
            )

    async def _give_back(self, address: str) -> None:
        await self._counter.give_back(self._key(address), self._rate)

    def _key(self, address: str) -> str:
        return f"credentials:{address_key(address)}"


def _log_refusal(address: str, error: AuthenticationError) -> None:
    reason = getattr(error, "reason", "")
    log.warning("credentials refused", address=address, code=error.code, reason=reason)
