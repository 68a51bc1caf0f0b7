"""A saga log in a directory, for a command-line program on one machine.

Each saga is one file with one JSON entry a line, synced to disk before and after every step. The
process that runs a saga holds a lock on its file. The kernel releases the lock when the process
dies, so there is no lease to wait for. Recovery is not automatic: a saga that a dead process left
stays as it is until ``Coordinator.recover`` runs over the same directory, on the same machine.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from typing import TYPE_CHECKING, Any, TypeVar

from engineroom.core.errors import DependencyError, InvalidInputError, Problem
from engineroom.core.transactions.journal import (
    ENDS,
    MAX_PAGE,
    RETENTION,
    EntryKind,
    JournalEntry,
    SagaPage,
    SagaRecord,
    as_json,
    check_id,
    entry_detail,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

T = TypeVar("T")

_SUFFIX = ".saga"
_SAFE = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_")


class FileSagaLog:
    """A ``SagaLog`` in ``directory``, which it creates with mode 0700 when needed.

    Needs a local file system, where ``flock`` locks out all other users of the directory.
    """

    def __init__(
        self,
        directory: Path,
        *,
        retention: float = RETENTION,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._retention = retention
        self._now = now
        #: File descriptors and epochs of the sagas that this process runs.
        self._held: dict[str, tuple[int, int]] = {}

    async def begin(self, id_: str, name: str, input_: Any, by: str, lease: float) -> int | None:
        """See ``SagaLog``. Raises InvalidInputError, TooLargeError, DependencyError."""
        del lease
        _check_id(id_)
        header = {"id": id_, "name": name, "input": json.loads(as_json(input_)), "by": by[:200],
                  "started": self._now()}  # fmt: skip
        return self._do(lambda: self._begin(id_, header))

    def _begin(self, id_: str, header: dict[str, Any]) -> int | None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._sweep()
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
        try:
            descriptor = os.open(self._path(id_), flags, 0o600)
        except FileExistsError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._held[id_] = (descriptor, 1)
        self._write(descriptor, [header, self._entry(JournalEntry(EntryKind.BEGIN), 1)])
        # The file's name must survive a crash of the machine too.
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return 1

    async def append(
        self, id_: str, epoch: int, entries: Sequence[JournalEntry], lease: float
    ) -> bool:
        """See ``SagaLog``."""
        del lease
        descriptor, mine = self._held.get(id_, (-1, 0))
        if mine != epoch:
            return False
        rows = [self._entry(entry, epoch) for entry in entries]
        self._do(lambda: self._write(descriptor, rows))
        if entries[-1].kind in ENDS:
            self.release(id_)
        return True

    async def renew(self, id_: str, epoch: int, lease: float) -> bool:
        """See ``SagaLog``; the lock holds for as long as the process lives."""
        del lease
        return self._held.get(id_, (-1, 0))[1] == epoch

    async def claim(self, names: Sequence[str], lease: float, most: int) -> list[tuple[str, int]]:
        """See ``SagaLog``; claims sagas whose process has died."""
        del lease
        return self._do(lambda: self._claim(frozenset(names), most))

    def _claim(self, names: frozenset[str], most: int) -> list[tuple[str, int]]:
        claimed: list[tuple[str, int]] = []
        for id_ in self._ids():
            if len(claimed) == most:
                break
            record = self._read(id_)
            if record is None or record.name not in names or record.ended is not None:
                continue
            epoch = self._take(id_)
            if epoch is not None:
                claimed.append((id_, epoch))
        return claimed

    def left(self) -> list[SagaRecord]:
        """Return abandoned and stuck sagas, oldest first.

        A saga is abandoned if it has not ended and no process holds its lock.
        """
        return self._do(lambda: [record for record in self._all() if self._is_left(record)])

    def _is_left(self, record: SagaRecord) -> bool:
        if record.status == "stuck":
            return True
        if record.ended is not None or record.id in self._held:
            return False
        descriptor = self._lock(record.id)
        if descriptor is None:
            return False
        os.close(descriptor)
        return True

    async def resume(self, id_: str, lease: float) -> int | None:
        """See ``SagaLog``."""
        del lease

        def resumed() -> int | None:
            record = self._read(id_)
            if record is None or record.status != "stuck":
                return None
            epoch = self._take(id_)
            if epoch is not None:
                self._write(
                    self._held[id_][0], [self._entry(JournalEntry(EntryKind.RESUMED), epoch)]
                )
            return epoch

        return self._do(resumed)

    async def read(self, id_: str) -> SagaRecord | None:
        """See ``SagaLog``."""
        return self._do(lambda: self._read(id_))

    def exists(self, id_: str) -> bool:
        """Return whether a saga with that id has begun, with its first line written completely."""
        return self._do(lambda: self._read(id_)) is not None

    async def page(self, *, cursor: str | None = None, count: int = 50) -> SagaPage:
        """See ``SagaLog``; at most ``MAX_PAGE`` at once."""
        most = max(1, min(count, MAX_PAGE))
        records = self._do(lambda: sorted(self._all(), key=_position, reverse=True))
        if cursor is not None:
            records = [record for record in records if _position(record) < cursor]
        following = _position(records[most - 1]) if len(records) > most else None
        return SagaPage(tuple(records[:most]), following)

    def release(self, id_: str) -> None:
        """Release the lock on a saga, as the end of the process would."""
        descriptor, _ = self._held.pop(id_, (-1, 0))
        if descriptor >= 0:
            os.close(descriptor)

    def release_all(self) -> None:
        """Release all locks, so that any process may take the sagas over."""
        for id_ in tuple(self._held):
            self.release(id_)

    def _take(self, id_: str) -> int | None:
        """Lock a saga, drop an incomplete last line, and return the new epoch."""
        descriptor = self._lock(id_)
        if descriptor is None:
            return None
        try:
            size = os.fstat(descriptor).st_size
            whole = os.pread(descriptor, size, 0).rfind(b"\n") + 1
            if whole < size:
                os.ftruncate(descriptor, whole)
            record = self._read(id_)
        except BaseException:
            os.close(descriptor)
            raise
        if record is None:
            os.close(descriptor)
            return None
        epoch = record.epoch + 1
        self._held[id_] = (descriptor, epoch)
        return epoch

    def _lock(self, id_: str) -> int | None:
        """Open and lock the file; return its descriptor, or None if it is locked or missing."""
        try:
            descriptor = os.open(self._path(id_), os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def _all(self) -> Iterator[SagaRecord]:
        for id_ in self._ids():
            record = self._read(id_)
            if record is not None:
                yield record

    def _ids(self) -> list[str]:
        """Return the ids, oldest first."""
        if not self._directory.is_dir():
            return []
        paths = [path for path in self._directory.iterdir() if path.suffix == _SUFFIX]
        return [path.stem for path in sorted(paths, key=lambda path: (path.stat().st_mtime, path))]

    def _read(self, id_: str) -> SagaRecord | None:
        _check_id(id_)
        try:
            content = self._path(id_).read_bytes()
        except FileNotFoundError:
            return None
        # A last line without a newline was being written when the machine stopped.
        head, *entries = [json.loads(line) for line in content.split(b"\n")[:-1]] or [None]
        if head is None:
            return None
        return SagaRecord(
            id=id_,
            name=head["name"],
            by=head["by"],
            input=head["input"],
            epoch=max([line["epoch"] for line in entries], default=1),
            started=head["started"],
            entries=tuple(
                JournalEntry(
                    EntryKind(one["kind"]), one["step"], one["detail"], one["at"], one["epoch"]
                )
                for one in entries
            ),
        )

    def _entry(self, line: JournalEntry, epoch: int) -> dict[str, Any]:
        return {"kind": line.kind.value, "step": line.step,
                "detail": json.loads(entry_detail(line)), "at": self._now(),
                "epoch": epoch}  # fmt: skip

    def _write(self, descriptor: int, rows: Sequence[dict[str, Any]]) -> None:
        data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)

    def _sweep(self) -> None:
        """Remove sagas that ended before the retention."""
        oldest = self._now() - self._retention
        for record in self._all():
            if record.ended is not None and record.status != "stuck" and record.ended < oldest:
                self._path(record.id).unlink(missing_ok=True)

    def _path(self, id_: str) -> Path:
        return self._directory / f"{id_}{_SUFFIX}"

    def _do(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DependencyError(
                f"the log of transactions in {self._directory} cannot be used: "
                f"{type(error).__name__}: {error}"
            ) from error


def _position(record: SagaRecord) -> str:
    return f"{record.started:020.6f}:{record.id}"


def _check_id(id_: str) -> None:
    check_id(id_)
    if not _SAFE.issuperset(id_):
        problem = Problem("id", "cannot be the name of a file", "write letters, digits, - and _")
        raise InvalidInputError([problem])
