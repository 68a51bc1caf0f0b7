"""Files: by content, and no archive that would harm whoever unpacks it."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.core.errors import EngineroomError, TooLargeError
from engineroom.core.validation.files import (
    HEAD,
    ArchiveError,
    ArchiveLimits,
    FileTypeError,
    check_archive,
    detect,
    display_name,
    require_type,
    safe_member,
    stored_name,
)

SMALL = ArchiveLimits(members=5, member=2_000_000, total=3_000_000, ratio=100)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x89PNG\r\n\x1a\nrest", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"RIFF0000WEBPVP8 ", "image/webp"),
        (b"xxxx0000WEBP\x00", None),
        (b"%PDF-1.7", "application/pdf"),
        (b"MZ\x90\x00", None),
        (b"\x7fELF\x01", None),
        (b"plain text\r\n\tand more", "text/plain"),
        (("x" * (HEAD - 1) + "\N{EURO SIGN}").encode(), "text/plain"),
        (("x" * (HEAD - 1) + "\N{EURO SIGN}").encode()[:HEAD], "text/plain"),
        (b"\xffx" * 10, None),
        (b"", None),
    ],
)
def test_the_type_is_what_the_content_says(head: bytes, kind: str | None) -> None:
    assert detect(head) == kind


def test_only_what_is_allowed_passes() -> None:
    assert require_type(b"GIF89a", {"image/gif"}) == "image/gif"
    with pytest.raises(FileTypeError, match="image/png"):
        require_type(b"GIF89a", {"image/png"})
    with pytest.raises(FileTypeError, match="unknown"):
        require_type(b"MZ\x00", {"image/png"})


def test_names() -> None:
    assert display_name("..\\..\\etc/pass\u202ewd\x00.txt") == "passwd.txt"
    assert display_name("../..") == "file"
    assert stored_name("image/png").endswith(".png")
    assert stored_name("image/png") != stored_name("image/png")


@given(st.text(max_size=50))
def test_any_name_is_shown_as_one_segment(name: str) -> None:
    shown = display_name(name)
    assert shown
    assert "/" not in shown
    assert "\\" not in shown
    assert shown not in {".", ".."}


def zipped(members: dict[str, bytes], *, mode: int = 0) -> io.BytesIO:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = mode << 16
            archive.writestr(info, data)
    return out


def tarred(*members: tuple[tarfile.TarInfo, bytes], packed: bool = False) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz" if packed else "w") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out


def member(name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = ""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, data


def test_a_sound_archive_tells_its_files() -> None:
    assert check_archive(zipped({"a/b.txt": b"x", "c": b"y"}), SMALL) == ["a/b.txt", "c"]
    for packed in (False, True):
        archive = tarred(member("a/b"), member("c"), packed=packed)
        assert check_archive(archive, SMALL) == ["a/b", "c"]
        assert archive.tell() == 0


BAD = ["../x", "a/../../x", "/etc/passwd", "C:\\x", "\\\\host\\x", "..\\x", "a\nb", ".", "x" * 300]


@pytest.mark.parametrize("name", BAD)
def test_names_that_lead_out_are_refused(name: str) -> None:
    with pytest.raises(ArchiveError):
        safe_member(name)
    for archive in (zipped({name: b"x"}), tarred(member(name))):
        with pytest.raises(ArchiveError):
            check_archive(archive, SMALL)


def test_links_and_devices_are_refused() -> None:
    with pytest.raises(ArchiveError, match="link"):
        check_archive(zipped({"a": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777), SMALL)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        with pytest.raises(ArchiveError, match="link"):
            check_archive(tarred(member("a", b"", kind, "/etc/passwd")), SMALL)


def test_names_that_would_overwrite_each_other_are_refused() -> None:
    with pytest.raises(ArchiveError, match="twice"):
        check_archive(zipped({"a.txt": b"x", "A.TXT": b"y"}), SMALL)


@pytest.mark.parametrize("make", ["zip", "tar", "gz"])
def test_bombs_and_crowds_are_refused(make: str) -> None:
    def archive(members: dict[str, bytes]) -> io.BytesIO:
        if make == "zip":
            return zipped(members)
        return tarred(*(member(*item) for item in members.items()), packed=make == "gz")

    for members in (
        {str(number): b"" for number in range(6)},
        {"a": bytes(2_000_001)},
        {"a": bytes(1_600_000), "b": bytes(1_600_000)},
    ):
        with pytest.raises(TooLargeError):
            check_archive(archive(members), SMALL)
    if make != "tar":
        with pytest.raises(TooLargeError, match="times"):
            check_archive(archive({"a": bytes(1_900_000)}), SMALL)


def test_a_huge_extended_header_is_refused_unread() -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2_500_000
    data = info.tobuf(tarfile.USTAR_FORMAT) + bytes(2_500_000)
    for file in (io.BytesIO(data), io.BytesIO(gzip.compress(data))):
        with pytest.raises(TooLargeError):
            check_archive(file, SMALL)


SEEDS = [
    zipped({"a": b"x" * 50, "b/c": b"y"}).getvalue(),
    tarred(member("a"), member("b")).getvalue()[:2048],
    tarred(member("a"), member("b"), packed=True).getvalue(),
]


@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 2047), st.binary(max_size=4))))
def test_damaged_archives_are_read_or_refused(
    seed: bytes, changes: list[tuple[int, bytes]]
) -> None:
    data = bytearray(seed)
    for place, new in changes:
        data[place % len(data) : place % len(data) + len(new)] = new
    try:
        names = check_archive(io.BytesIO(bytes(data)), SMALL)
    except EngineroomError:
        return
    for name in names:
        safe_member(name)
