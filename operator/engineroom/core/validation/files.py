"""Files that others sent: told apart by what is in them, and archives looked through first.

Nothing is unpacked and nothing written here. The name that came with a file is for showing; what is
stored gets a name of its own.
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
from engineroom.core.validation.paths import shown

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import IO

#: Bytes of a file's beginning that ``detect`` looks at.
HEAD = 512
_READ = 64 * 1024
#: A tar file's extended header is read at once by the library; real ones have some hundred bytes.
_LONGEST_READ = 1024 * 1024


class FileTypeError(EngineroomError):
    """The content is of no type that is accepted here, whatever the name says."""

    code = "file_type"
    category = Category.VALIDATION
    http_status = 415


class ArchiveError(EngineroomError):
    """An archive has a member that must not be unpacked, or cannot be read."""

    code = "archive"
    category = Category.VALIDATION
    http_status = 422


#: Type, offset, bytes, file extension; the first that fits counts.
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
    """The media type by the first ``HEAD`` bytes; None when it is not one that is known.

    What has no known mark, is UTF-8 and has no control characters is ``text/plain``; a browser may
    still take such a text for HTML, so serve it with ``X-Content-Type-Options: nosniff``.
    """
    for kind, offset, mark, _ in _MAGIC:
        if head[offset : offset + len(mark)] == mark:
            if kind == "image/webp" and head[:4] != b"RIFF":
                continue
            return kind
    try:
        text = head[:HEAD].decode("utf-8")
    except UnicodeDecodeError as error:
        # A character may be cut in two by the end of the head.
        if len(head) < HEAD or error.start < HEAD - 3 or error.reason != "unexpected end of data":
            return None
        text = head[: error.start].decode("utf-8")
    if not text or re.search(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]", text):
        return None
    return "text/plain"


def require_type(head: bytes, allowed: Collection[str]) -> str:
    """The media type, if it is one of ``allowed``; raises FileTypeError."""
    kind = detect(head)
    if kind is None or kind not in allowed:
        raise FileTypeError(
            f"the file is {kind or 'of an unknown type'}; send one of {', '.join(sorted(allowed))}",
            context={"type": kind},
        )
    return kind


def stored_name(kind: str) -> str:
    """A new name to store a file of that media type under; nobody can guess or choose it."""
    return secrets.token_hex(16) + _EXTENSIONS.get(kind, ".bin")


def shown_name(name: str) -> str:
    """A name as it may be shown: one path segment in NFC, no control or formatting characters."""
    text = unicodedata.normalize("NFC", name.replace("\\", "/").rsplit("/", 1)[-1])
    text = "".join(c for c in text if unicodedata.category(c)[0] != "C").strip(" .")
    return text[:100] or "file"


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """Sizes are bytes inflated; ``ratio`` is of inflated to packed, counted from 1 MiB on."""

    members: int = 1_000
    member: int = 64 * 1024 * 1024
    total: int = 256 * 1024 * 1024
    ratio: int = 100


_FREE = 1024 * 1024


@dataclass(slots=True)
class _Count:
    """What was seen of an archive so far."""

    limits: ArchiveLimits
    packed: int
    members: int = 0
    total: int = 0

    def member(self, name: str, names: set[str]) -> None:
        """One more, of that name."""
        self.members += 1
        if self.members > self.limits.members:
            raise TooLargeError(f"the archive has over {self.limits.members} members; send fewer")
        safe_member(name)
        # Two names that a file system takes for one would overwrite each other.
        folded = unicodedata.normalize("NFC", name.rstrip("/")).casefold()
        if folded in names:
            raise ArchiveError(f"the member {shown(name)} stands twice; keep one")
        names.add(folded)

    def size(self, name: str, size: int, so_far: int = 0) -> None:
        """``size`` more bytes of a member of which there were ``so_far``."""
        if size + so_far > self.limits.member:
            raise TooLargeError(f"the member {shown(name)} has over {self.limits.member} bytes")
        self.total += size
        if self.total > self.limits.total:
            raise TooLargeError(f"the archive inflates to over {self.limits.total} bytes")
        if self.total > _FREE and self.total > self.limits.ratio * max(self.packed, 1):
            raise TooLargeError(f"the archive inflates to over {self.limits.ratio} times its size")


def safe_member(name: str) -> None:
    """Raise ArchiveError for a name that leads out of the folder that it is unpacked into."""
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
        raise ArchiveError(f"the member name {shown(name)} is not safe; use plain relative names")


def check_archive(file: IO[bytes], limits: ArchiveLimits | None = None) -> list[str]:
    """The names of the files in a zip, tar or tar.gz, read to its end within the limits.

    ``file`` is seekable and is left at its beginning. Sizes are counted, not believed. Links,
    devices and encrypted members are refused. Raises ArchiveError, TooLargeError, FileTypeError.
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
    found, names = [], set[str]()
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            count.member(member.filename, names)
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in {0, stat.S_IFREG, stat.S_IFDIR}:
                raise ArchiveError(f"the member {shown(member.filename)} is a link or a device")
            if member.flag_bits & 0x1:
                raise ArchiveError(f"the member {shown(member.filename)} is encrypted")
            if member.is_dir() and (member.file_size or member.compress_size):
                raise ArchiveError(f"the folder {shown(member.filename)} has content")
            so_far = 0
            with archive.open(member) as content:
                while data := content.read(_READ):
                    count.size(member.filename, len(data), so_far)
                    so_far += len(data)
            if not member.is_dir():
                found.append(member.filename)
    return found


class _Capped:
    """A reader that refuses to read much at once or in all: headers declare any size."""

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
    found, names = [], set[str]()
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            count.member(member.name, names)
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise ArchiveError(f"the member {shown(member.name)} is a link or a device")
            count.size(member.name, member.size)
            if member.isreg():
                found.append(member.name)
    return found
