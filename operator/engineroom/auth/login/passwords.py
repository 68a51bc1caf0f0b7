"""Passwords by argon2id (RFC 9106); slow by design, so never on the event loop.

``python -m engineroom.auth.login.passwords`` reads a password from standard input
and writes its hash.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from dataclasses import dataclass

#: Longer ones are refused: nobody types them, and each byte costs us.
MAX_BYTES = 1_024
#: Hashes computed at one time in a process; each takes 64 MiB.
CONCURRENCY = 2
#: What a hash that somebody else made may cost us: KiB, passes, lanes.
MOST = (262_144, 10, 16)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the password is right; ``rehash`` is what to keep instead of the old hash, or ""."""

    right: bool
    rehash: str = ""


class Passwords:
    """Hashes and verifies. The defaults are RFC 9106's second choice: 64 MiB, 3 passes, 4 lanes."""

    def __init__(self, *, time_cost: int = 3, memory_kib: int = 65_536, lanes: int = 4) -> None:
        from argon2 import PasswordHasher

        self._hasher = PasswordHasher(
            time_cost=time_cost, memory_cost=memory_kib, parallelism=lanes
        )
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._dummy = ""
        self._dummy_lock = threading.Lock()

    async def hash(self, password: str) -> str:
        """The hash to keep. Raises ValueError when it is empty or longer than 1024 bytes."""
        if not 0 < len(password.encode()) <= MAX_BYTES:
            msg = f"password: needs 1 to {MAX_BYTES} bytes"
            raise ValueError(msg)
        async with self._slots:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def verify(self, kept: str | None, password: str) -> Verdict:
        """Whether it is right. ``kept`` is None for somebody unknown: that takes as long."""
        async with self._slots:
            return await asyncio.to_thread(self._verify, kept, password)

    def _verify(self, kept: str | None, password: str) -> Verdict:
        from argon2.exceptions import Argon2Error, InvalidHashError

        # Made for everybody: the first unknown name would take twice as long if it were not.
        stand_in = self._stand_in()
        if len(password.encode()) > MAX_BYTES:
            kept, password = None, ""
        try:
            self._hasher.verify(kept or stand_in, password)
        except (Argon2Error, InvalidHashError):
            return Verdict(False)
        if kept is None:
            return Verdict(False)
        stale = self._hasher.check_needs_rehash(kept)
        return Verdict(True, self._hasher.hash(password) if stale else "")

    def _stand_in(self) -> str:
        import secrets

        with self._dummy_lock:
            if not self._dummy:
                self._dummy = self._hasher.hash(secrets.token_hex(16))
            return self._dummy


def hash_problem(kept: str) -> str:
    """What is wrong with a hash that somebody else made, or ""."""
    from argon2 import Type, extract_parameters
    from argon2.exceptions import Argon2Error, InvalidHashError

    try:
        said = extract_parameters(kept)
    except (Argon2Error, InvalidHashError, ValueError):
        return "is no hash of argon2id"
    if said.type is not Type.ID:
        return "is no hash of argon2id but of another argon2"
    costs = (said.memory_cost, said.time_cost, said.parallelism)
    if any(cost > most for cost, most in zip(costs, MOST, strict=True)):
        return "costs more than is verified here (256 MiB, 10 passes, 16 lanes)"
    return ""


def main() -> int:
    """Hash the password on standard input; its last line end does not count."""
    password = sys.stdin.readline(MAX_BYTES + 2).removesuffix("\n")
    try:
        print(asyncio.run(Passwords().hash(password)))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
