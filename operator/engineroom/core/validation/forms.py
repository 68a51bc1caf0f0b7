"""A streaming reader of forms (``multipart/form-data``, RFC 7578) within limits.

Needs multipart (extra ``forms``). A file's type comes from its content (``files.detect``), not from
its name or header. Files are stored in anonymous temporary files, which a refusal removes.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engineroom.core.errors import (
    Category,
    EngineroomError,
    InvalidInputError,
    Problem,
    TooLargeError,
)
from engineroom.core.validation.files import HEAD, display_name, require_type, stored_name
from engineroom.core.validation.paths import child

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator
    from typing import IO

#: Largest file in bytes that is held in memory; larger ones go to disk.
IN_MEMORY = 64 * 1024
_MAX_BOUNDARY = 70  # RFC 2046, 5.1.1
_HEADER_BYTES = 1024
_HEADERS = 4


class FormTypeError(EngineroomError):
    """The body is not a form; send multipart/form-data with a boundary."""

    code = "form_type"
    category = Category.VALIDATION
    http_status = 415


@dataclass(frozen=True, slots=True)
class FormLimits:
    """Limits of a form: the number of parts, and bytes of a field, of a file and in total.

    ``types`` are the accepted media types of files; an empty set refuses all files.
    """

    parts: int = 50
    field: int = 64 * 1024
    file: int = 10 * 1024 * 1024
    total: int = 20 * 1024 * 1024
    types: frozenset[str] = frozenset()


@dataclass(slots=True)
class Upload:
    """An uploaded file. ``content`` is positioned at its beginning and closed with the form."""

    #: The original name, for display only; never a path to store the file under.
    name: str
    #: The media type of the content.
    type: str
    size: int
    content: IO[bytes] = field(repr=False)

    @property
    def stored_name(self) -> str:
        """A random name to store the file under."""
        return stored_name(self.type)


@dataclass(slots=True)
class Form:
    """The fields and files of a form by name; names are unique."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, Upload] = field(default_factory=dict)


@asynccontextmanager
async def read_form(
    content_type: str, body: AsyncIterable[bytes], limits: FormLimits | None = None
) -> AsyncIterator[Form]:
    """Read the form in ``body``; the end of the block removes its files.

    Raises FormTypeError, TooLargeError, FileTypeError and InvalidInputError at the first problem,
    without reading the rest of the body.
    """
    reader = _Reader(_boundary(content_type), limits or FormLimits())
    try:
        async for data in body:
            reader.feed(data)
        yield reader.end()
    finally:
        reader.close()


def _boundary(content_type: str) -> str:
    from email.message import Message

    message = Message()
    message["content-type"] = content_type[:1024]
    boundary = message.get_param("boundary")
    if message.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise FormTypeError("content-type: send multipart/form-data with a boundary")
    if not 0 < len(boundary) <= _MAX_BOUNDARY or not boundary.isascii():
        raise FormTypeError(f"content-type: the boundary needs 1 to {_MAX_BOUNDARY} characters")
    return boundary


class _Reader:
    """An incremental parser of a form."""

    def __init__(self, boundary: str, limits: FormLimits) -> None:
        from multipart import PushMultipartParser

        self._parser: Any = PushMultipartParser(
            boundary,
            max_header_size=_HEADER_BYTES,
            max_header_count=_HEADERS,
            max_segment_count=limits.parts,
            strict=True,
        )
        self._limits = limits
        self._form = Form()
        self._opened: list[Any] = []
        self._total = 0
        self._held = b""
        self._part: Any = None
        self._data = b""
        self._file: Any = None
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Parse one chunk of the body."""
        self._total += len(data)
        if self._total > self._limits.total:
            raise TooLargeError(f"the form has over {self._limits.total} bytes; send less")
        data = self._held + data
        text = data.rstrip(b"\r\n")
        # The line break after the last boundary may arrive in a separate chunk, which the parser
        # would treat as data after the form. So a trailing line break waits for the next chunk.
        text = data[: max(len(text), len(data) - 2)]
        self._held = data[len(text) :]
        self._parse(text)

    def _parse(self, data: bytes) -> None:
        from multipart import MultipartError, ParserLimitReached

        if not data:
            return
        try:
            for event in self._parser.parse(data):
                if event is None:
                    self._end_part()
                elif isinstance(event, bytes | bytearray):
                    self._more(bytes(event))
                else:
                    self._begin_part(event)
        except ParserLimitReached as error:
            raise TooLargeError(
                f"the form has over {self._limits.parts} parts or long headers; send less"
            ) from error
        except MultipartError as error:
            raise _invalid("body", "is not a well-formed form", "encode it by RFC 7578") from error

    def end(self) -> Form:
        """Finish parsing and return the form."""
        from multipart import MultipartError

        self._parse(b"" if self._held == b"\r\n" else self._held)
        try:
            self._parser.close()
        except MultipartError as error:
            raise _invalid("body", "ends too early", "send all of the form") from error
        for upload in self._form.files.values():
            upload.content.seek(0)
        return self._form

    def close(self) -> None:
        """Close all files."""
        for file in self._opened:
            file.close()

    def _begin_part(self, part: Any) -> None:
        name = part.name
        where = child("form", name[:80])
        if not name or len(name) > 100 or not name.isprintable():
            raise _invalid(where, "has no usable name", "use 1 to 100 printable characters")
        if name in self._form.fields or name in self._form.files:
            raise _invalid(where, "comes more than once", "send it once")
        if part.filename is not None and not self._limits.types:
            raise _invalid(where, "is a file", "send no files here")
        self._part, self._data, self._size, self._file = part, b"", 0, None

    def _more(self, data: bytes) -> None:
        self._size += len(data)
        is_file = self._part.filename is not None
        most = self._limits.file if is_file else self._limits.field
        if self._size > most:
            where = child("form", self._part.name)
            raise TooLargeError(f"{where}: has over {most} bytes; send less")
        if not is_file:
            self._data += data
            return
        if len(self._data) < HEAD:
            # Check the type as soon as the head is complete, before anything is stored.
            self._data += data[: HEAD - len(self._data)]
            if len(self._data) == HEAD:
                require_type(self._data, self._limits.types)
        if self._file is None:
            from tempfile import SpooledTemporaryFile

            self._file = SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - see close
            self._opened.append(self._file)
        self._file.write(data)

    def _end_part(self) -> None:
        name = self._part.name
        if self._part.filename is None:
            try:
                self._form.fields[name] = self._data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _invalid(child("form", name), "is not UTF-8", "encode it") from error
            return
        kind = require_type(self._data, self._limits.types)
        label = display_name(self._part.filename)
        self._form.files[name] = Upload(label, kind, self._size, self._file)


def _invalid(field_: str, problem: str, fix: str) -> InvalidInputError:
    return InvalidInputError([Problem(field_, problem, fix)])
