"""Checks of uploaded files: type by content, and archives before they are unpacked.

These functions write and unpack nothing. A file's original name is for display only; store the file
under a generated name.
"""

from __future__ import annotations

import gzip
import re
import secrets
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineroom.core.errors import Category, EngineroomError, TooLargeError
from engineroom.core.validation.paths import quoted

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import IO

#: Bytes at the beginning of a file that ``detect`` examines.
HEAD = 512
_READ = 64 * 1024
#: tarfile reads an extended header at once; real ones have some hundred bytes.
_LONGEST_READ = 1024 * 1024


class FileTypeError(EngineroomError):
    """The content has no accepted type, whatever the file's name."""

    code = "file_type"
    category = Category.VALIDATION
    http_status = 415


class ArchiveError(EngineroomError):
    """An archive has a member that is unsafe to unpack, or is not readable."""

    code = "archive"
    category = Category.VALIDATION
    http_status = 422


#: Type, offset, magic number, file extension; the first match counts.
_MAGIC: tuple[tuple[str, int, bytes, str], ...] = (
    ("image/png", 0, b"\x89PNG\r\n\x1a\n", ".png"),
    ("image/jpeg", 0, b"\xff\xd8\xff", ".jpg"),
    ("image/gif", 0, b"GIF87a", ".gif"),
    ("image/gif", 0, b"GIF89a", ".gif"),
    ("image/webp", 8, b"WEBP", ".webp"),
    ("application/pdf", 0, b"%PDF-", ".pdf"),
    ("application/zip", 0, b"PK\x03\x04", ".zip"),
    ("application/zip", 0, b"PK\x05\x06", ".zip"),
    ("application/gzip", 0, b"\x1f\x8b\x08", ".gz"),
    ("application/zstd", 0, b"\x28\xb5\x2f\xfd", ".zst"),
    ("application/x-xz", 0, b"\xfd7zXZ\x00", ".xz"),
    ("application/x-tar", 257, b"ustar", ".tar"),
)
_EXTENSIONS = {kind: extension for kind, _, _, extension in _MAGIC} | {"text/plain": ".txt"}


def detect(head: bytes) -> str | None:
    """Return the media type of a file by its first ``HEAD`` bytes, or None if unknown.

    UTF-8 without control characters and without a magic number is ``text/plain``. A browser may
    still interpret such a text as HTML: serve it with ``X-Content-Type-Options: nosniff``.
    """
    for kind, offset, mark, _ in _MAGIC:
        if head[offset : offset + len(mark)] == mark:
            if kind == "image/webp" and head[:4] != b"RIFF":
                continue
            return kind
    try:
        text = head[:HEAD].decode("utf-8")
    except UnicodeDecodeError as error:
        # The end of the head may split a character.
        if len(head) < HEAD or error.start < HEAD - 3 or error.reason != "unexpected end of data":
            return None
        text = head[: error.start].decode("utf-8")
    if not text or re.search(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]", text):
        return None
    return "text/plain"


def require_type(head: bytes, allowed: Collection[str]) -> str:
    """Return the media type if it is one of ``allowed``; raise FileTypeError otherwise."""
    kind = detect(head)
    if kind is None or kind not in allowed:
        raise FileTypeError(
            f"the file is {kind or 'of an unknown type'}; send one of {', '.join(sorted(allowed))}",
            context={"type": kind},
        )
    return kind


def stored_name(kind: str) -> str:
    """Return a random name to store a file of that media type under."""
    return secrets.token_hex(16) + _EXTENSIONS.get(kind, ".bin")


def display_name(name: str) -> str:
    """Return a name for display: one path segment in NFC without control or format characters."""
    text = unicodedata.normalize("NFC", name.replace("\\", "/").rsplit("/", 1)[-1])
    text = "".join(c for c in text if unicodedata.category(c)[0] != "C").strip(" .")
    return text[:100] or "file"


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """Limits of an archive; sizes are uncompressed bytes.

    ``ratio`` is uncompressed to compressed size and applies above 1 MiB.
    """

    members: int = 1_000
    member: int = 64 * 1024 * 1024
    total: int = 256 * 1024 * 1024
    ratio: int = 100


_FREE = 1024 * 1024


@dataclass(slots=True)
class _Count:
    """Running totals of an archive."""

    limits: ArchiveLimits
    packed: int
    members: int = 0
    total: int = 0

    def member(self, name: str, names: set[str]) -> None:
        """Count a member and check its name."""
        self.members += 1
        if self.members > self.limits.members:
            raise TooLargeError(f"the archive has over {self.limits.members} members; send fewer")
        safe_member(name)
        # A file system may treat two such names as one, and the files would overwrite each other.
        folded = unicodedata.normalize("NFC", name.rstrip("/")).casefold()
        if folded in names:
            raise ArchiveError(f"the member {quoted(name)} appears twice; keep one")
        names.add(folded)

    def size(self, name: str, size: int, so_far: int = 0) -> None:
        """Count ``size`` more bytes of a member that had ``so_far``."""
        if size + so_far > self.limits.member:
            raise TooLargeError(f"the member {quoted(name)} has over {self.limits.member} bytes")
        self.total += size
        if self.total > self.limits.total:
            raise TooLargeError(f"the archive inflates to over {self.limits.total} bytes")
        if self.total > _FREE and self.total > self.limits.ratio * max(self.packed, 1):
            raise TooLargeError(f"the archive inflates to over {self.limits.ratio} times its size")


def safe_member(name: str) -> None:
    """Raise ArchiveError for a name that could lead outside of the target folder."""
    parts = name.replace("\\", "/").split("/")
    if (
        not name.strip("/. ")
        or name.startswith(("/", "\\"))
        or ".." in parts
        or ":" in name
        or any(unicodedata.category(c) == "Cc" for c in name)
        or any(len(part.encode("utf-8", "replace")) > 255 for part in parts)
        or len(name) > 1024
    ):
        raise ArchiveError(f"the member name {quoted(name)} is not safe; use plain relative names")


def check_archive(file: IO[bytes], limits: ArchiveLimits | None = None) -> list[str]:
    """Read a zip, tar or tar.gz to its end within the limits; return the names of its files.

    ``file`` is seekable; its position afterwards is the beginning. Sizes are counted, whatever the
    headers say. Links, devices and encrypted members are refused. Raises ArchiveError,
    TooLargeError, FileTypeError.
    """
    limits = limits or ArchiveLimits()
    file.seek(0, 2)
    count = _Count(limits, file.tell())
    file.seek(0)
    kind = require_type(
        file.read(HEAD), {"application/zip", "application/gzip", "application/x-tar"}
    )
    file.seek(0)
    try:
        if kind == "application/zip":
            return _zip(file, count)
        opened = gzip.GzipFile(fileobj=file) if kind == "application/gzip" else file
        return _tar(_Capped(opened, limits), count)
    except (
        zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, NotImplementedError,
        ValueError, RuntimeError,
    ) as error:  # fmt: skip
        raise ArchiveError("the archive is damaged or of a kind not supported") from error
    finally:
        file.seek(0)


def _zip(file: IO[bytes], count: _Count) -> list[str]:
    files, names = [], set[str]()
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            count.member(member.filename, names)
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in {0, stat.S_IFREG, stat.S_IFDIR}:
                raise ArchiveError(f"the member {quoted(member.filename)} is a link or a device")
            if member.flag_bits & 0x1:
                raise ArchiveError(f"the member {quoted(member.filename)} is encrypted")
            if member.is_dir() and (member.file_size or member.compress_size):
                raise ArchiveError(f"the folder {quoted(member.filename)} has content")
            so_far = 0
            with archive.open(member) as content:
                while data := content.read(_READ):
                    count.size(member.filename, len(data), so_far)
                    so_far += len(data)
            if not member.is_dir():
                files.append(member.filename)
    return files


class _Capped:
    """A reader with limits on one read and on the total, because headers may declare any size."""

    def __init__(self, file: Any, limits: ArchiveLimits) -> None:
        self._file = file
        self._most = limits.total + limits.members * 4096

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LONGEST_READ:
            raise TooLargeError("the archive has a header of over 1 MiB")
        data: bytes = self._file.read(size)
        self._check()
        return data

    def seek(self, position: int, whence: int = 0) -> int:
        if position > self._most:
            raise TooLargeError(f"the archive inflates to over {self._most} bytes")
        moved: int = self._file.seek(position, whence)
        return moved

    def tell(self) -> int:
        at: int = self._file.tell()
        return at

    def _check(self) -> None:
        if self.tell() > self._most:
            raise TooLargeError(f"the archive inflates to over {self._most} bytes")


def _tar(file: Any, count: _Count) -> list[str]:
    files, names = [], set[str]()
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            count.member(member.name, names)
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise ArchiveError(f"the member {quoted(member.name)} is a link or a device")
            count.size(member.name, member.size)
            if member.isreg():
                files.append(member.name)
    return files
