"""Password hashing by argon2id (RFC 9106), in threads, because it is slow by design.

``python -m engineroom.auth.login.passwords`` reads a password from standard input and writes its
hash.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from dataclasses import dataclass

#: Most bytes of a password; hashing time grows with its length.
MAX_BYTES = 1_024
#: Concurrent hashes in a process; each one takes 64 MiB.
CONCURRENCY = 2
#: Highest accepted costs of an imported hash: KiB, passes, lanes.
MAX_COSTS = (262_144, 10, 16)


@dataclass(frozen=True, slots=True)
class PasswordCheck:
    """The result of a check; ``rehash`` is a hash to store instead of an outdated one, or ""."""

    is_valid: bool
    rehash: str = ""


class Passwords:
    """Hashes and verifies passwords.

    The defaults are the second recommendation of RFC 9106: 64 MiB, 3 passes, 4 lanes.
    """

    def __init__(self, *, time_cost: int = 3, memory_kib: int = 65_536, lanes: int = 4) -> None:
        from argon2 import PasswordHasher

        self._hasher = PasswordHasher(
            time_cost=time_cost, memory_cost=memory_kib, parallelism=lanes
        )
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._dummy = ""
        self._dummy_lock = threading.Lock()

    async def hash(self, password: str) -> str:
        """Return the hash of a password; raise ValueError if it is empty or over 1024 bytes."""
        if not 0 < len(password.encode()) <= MAX_BYTES:
            msg = f"password: needs 1 to {MAX_BYTES} bytes"
            raise ValueError(msg)
        async with self._slots:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def verify(self, stored: str | None, password: str) -> PasswordCheck:
        """Check a password; ``stored`` is None for an unknown account, which takes as long."""
        async with self._slots:
            return await asyncio.to_thread(self._verify, stored, password)

    def _verify(self, stored: str | None, password: str) -> PasswordCheck:
        from argon2.exceptions import Argon2Error, InvalidHashError

        # Made in every case: otherwise the first unknown name would take twice as long.
        stand_in = self._stand_in()
        if len(password.encode()) > MAX_BYTES:
            stored, password = None, ""
        try:
            self._hasher.verify(stored or stand_in, password)
        except (Argon2Error, InvalidHashError):
            return PasswordCheck(False)
        if stored is None:
            return PasswordCheck(False)
        stale = self._hasher.check_needs_rehash(stored)
        return PasswordCheck(True, self._hasher.hash(password) if stale else "")

    def _stand_in(self) -> str:
        import secrets

        with self._dummy_lock:
            if not self._dummy:
                self._dummy = self._hasher.hash(secrets.token_hex(16))
            return self._dummy


def hash_problem(stored: str) -> str:
    """Return the problem of an imported hash, or ""."""
    from argon2 import Type, extract_parameters
    from argon2.exceptions import Argon2Error, InvalidHashError

    try:
        parameters = extract_parameters(stored)
    except (Argon2Error, InvalidHashError, ValueError):
        return "is not a hash of argon2id"
    if parameters.type is not Type.ID:
        return "is not a hash of argon2id but of another argon2"
    costs = (parameters.memory_cost, parameters.time_cost, parameters.parallelism)
    if any(cost > most for cost, most in zip(costs, MAX_COSTS, strict=True)):
        return "costs more than the limit (256 MiB, 10 passes, 16 lanes)"
    return ""


def main() -> int:
    """Hash the password on standard input, without its line end."""
    password = sys.stdin.readline(MAX_BYTES + 2).removesuffix("\n")
    try:
        print(asyncio.run(Passwords().hash(password)))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
