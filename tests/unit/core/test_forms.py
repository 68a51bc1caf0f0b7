"""Forms with files: in pieces of any size, within limits, or refused with nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.core.errors import EngineroomError, InvalidInputError, TooLargeError
from engineroom.core.validation.files import HEAD, FileTypeError
from engineroom.core.validation.forms import Form, FormLimits, FormTypeError, read_form

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TYPE = "multipart/form-data; boundary=XX"
PNG = b"\x89PNG\r\n\x1a\n"
LIMITS = FormLimits(
    parts=4, field=100, file=200_000, total=400_000, types=frozenset({"image/png", "text/plain"})
)


def part(name: str, data: bytes, filename: str | None = None, more: str = "") -> bytes:
    named = f'; filename="{filename}"' if filename is not None else ""
    head = f'Content-Disposition: form-data; name="{name}"{named}\r\n{more}\r\n'
    return b"--XX\r\n" + head.encode() + data + b"\r\n"


def whole(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--XX--\r\n"


class Source:
    """A body in pieces; tells how much of it was asked for."""

    def __init__(self, data: bytes, piece: int) -> None:
        self.data, self.piece, self.given = data, piece, 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self.data), self.piece):
            self.given += self.piece
            yield self.data[at : at + self.piece]


def read(data: bytes, piece: int = 4096, limits: FormLimits = LIMITS, kind: str = TYPE) -> Any:
    async def run() -> tuple[Form, dict[str, bytes]]:
        async with read_form(kind, Source(data, piece), limits) as form:
            return form, {name: file.content.read() for name, file in form.files.items()}

    return asyncio.run(run())


@pytest.mark.parametrize("piece", [1, 3, 7, 64, 100_000])
def test_fields_and_files_come_whole_in_pieces_of_any_size(piece: int) -> None:
    image = PNG + bytes(1000) + b"\r\n--X" * 20
    data = whole(part("title", "Füße".encode()), part("logo", image, "../../a b.exe"))
    form, contents = read(data, piece)
    assert form.fields == {"title": "Füße"}
    assert contents == {"logo": image}
    logo = form.files["logo"]
    assert (logo.name, logo.type, logo.size) == ("a b.exe", "image/png", len(image))
    assert logo.stored_name.endswith(".png")
    assert logo.content.closed


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (whole(part("a", b"x" * 101)), TooLargeError, "form.a: has over 100 bytes"),
        (whole(*(part(f"n{i}", b"") for i in range(5))), TooLargeError, "over 4 parts"),
        (whole(part("a", PNG + bytes(200_000), "a")), TooLargeError, "form.a"),
        (whole(part("a", b"1"), part("a", b"2")), InvalidInputError, "more than once"),
        (whole(part("a", b"MZ\x90\x00", "a.png")), FileTypeError, "unknown"),
        (whole(part("a", b"GIF89a", "a.png", "Content-Type: image/png\r\n")), FileTypeError, "gif"),
        (whole(part("a", b"", "empty.png")), FileTypeError, "unknown"),
        (whole(part("a", b"\xff\xfe")), InvalidInputError, "UTF-8"),
        (whole(part("", b"x")), InvalidInputError, "name"),
        (whole(part("a", b"x", None, "X: y\r\n" * 9)), TooLargeError, "headers"),
        (whole(part("a", b"x", None, "X: " + "y" * 2000 + "\r\n")), TooLargeError, "headers"),
        (whole(part("a", b"x"))[:-4], InvalidInputError, "too early"),
        (b"--YY\r\n\r\n", InvalidInputError, "well-formed"),
        (b"--XX\r\n" + b"no colon\r\n\r\nx\r\n--XX--\r\n", InvalidInputError, "well-formed"),
        (b"", InvalidInputError, "too early"),
        (b"\r\n" * 250_000, EngineroomError, ""),
    ],
)
def test_what_is_beyond_the_limits_or_the_standard_is_refused(
    data: bytes, error: type[EngineroomError], says: str
) -> None:
    with pytest.raises(error) as caught:
        read(data)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "kind",
    ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=XX",
     "multipart/form-data; boundary=" + "x" * 71, "multipart/form-data; boundary="],
)  # fmt: skip
def test_what_is_no_form_is_refused_unread(kind: str) -> None:
    source = Source(whole(part("a", b"1")), 100)

    async def run() -> None:
        async with read_form(kind, source, LIMITS):
            pass

    with pytest.raises(FormTypeError):
        asyncio.run(run())
    assert source.given == 0


def test_files_are_taken_only_where_types_are_named() -> None:
    with pytest.raises(InvalidInputError, match="is a file"):
        read(whole(part("a", PNG, "a")), limits=FormLimits())


def test_a_wrong_type_is_refused_with_its_first_bytes() -> None:
    source = Source(whole(part("a", b"MZ\x90\x00" + bytes(150_000), "a.png")), HEAD)

    async def run() -> None:
        async with read_form(TYPE, source, LIMITS):
            pass

    with pytest.raises(FileTypeError):
        asyncio.run(run())
    assert source.given <= 4 * HEAD


def test_a_large_file_is_on_disk_and_gone_after_a_refusal() -> None:
    limits = FormLimits(file=40_000_000, total=40_000_000, types=frozenset({"image/png"}))
    data = part("a", PNG + bytes(20_000_000), "a") + part("b", b"MZ\x00\x00", "b")
    gc.collect()
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    tracemalloc.start()
    with pytest.raises(FileTypeError):
        read(whole(data), 65536, limits)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 22_000_000  # one copy of what the test itself made, and little else
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


@given(st.binary(max_size=300), st.integers(1, 300), st.booleans())
def test_any_bytes_are_a_form_or_refused(data: bytes, piece: int, framed: bool) -> None:
    try:
        form, contents = read(whole(part("a", data, "f")) if framed else data, piece)
    except EngineroomError as error:
        assert 400 <= error.http_status < 500  # noqa: PT017
    else:
        if framed:
            assert contents == {"a": data}
            assert form.files["a"].type in LIMITS.types
