"""Seeded mutation of a corpus, into inputs that are almost valid or invalid."""

from __future__ import annotations

import io
import json
import stat
import tarfile
import warnings
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import yaml

from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

#: Pieces that parsers stumble over, put in anywhere.
TOKENS: tuple[bytes, ...] = (
    b"&a ", b"*a", b"<<: *a\n", b"!!python/object/apply:os.system ", b"!!binary ", b"!x ",
    b"? ", b"- ", b": ", b"---\n", b"...\n", b"%YAML 1.1\n", b"{", b"}", b"[", b"]", b",", b"\n",
    b"\t", b"!!set ",
    b"'", b'"', b"|\n ", b">-\n ", b"#", b"~", b"null", b"yes", b"0x1F", b"0o17", b"017", b"1_000",
    b".inf", b".nan", b"1e999", b"-0", b"12:30:45", b"2026-01-01", b"9" * 400, b"\x00", b"\xff\xfe",
    b"\xef\xbb\xbf", b"\xc3", b"\xe2\x80\xae", b"\\u0000", b"\\ud800", b"NaN", b"Infinity", b"true",
    b'"a":1,"a":2', b'"\\u0061":1,"a":2', b"\r", b"\r\n", b"\x85", b"\xe2\x80\xa8", b"=",
    b"../../etc/passwd", b"/abs", b"C:\\x", b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08", b"ustar",
    b"__class__", b"{{7*7}}", b"${x}", b"%s%n", b"'; drop", b"<script>", b"\x1b[31m", b"\x89PNG",
)  # fmt: skip

NAMES = (
    "a.txt", "b/c.txt", "../x", "a/../../x", "/etc/passwd", "..\\x", "C:\\x", "C:x", "a\x00b",
    "A.TXT", "a.txt/", "./a.txt", "x" * 300, "\u00e9t\u00e9", "e\u0301t\u00e9", "con", ".", "..",
    "", "a//b", "a:b", " ", "a/./b", "b\\c.txt", "\u202ex", "d/",
)  # fmt: skip


def documents() -> list[bytes]:
    """Return this repository's manifests, and documents that are hard to parse."""
    documents = [
        path.read_bytes()
        for folder in ("examples", "deploy")
        for path in sorted((ROOT / folder).rglob("*.yaml"))
        if path.stat().st_size < 20_000
    ]
    documents += [
        b"a: &x [1, 2]\nb: *x\nc: {<<: {d: 1}, e: 2}\n",
        b"a: 1\nb: [x, {y: z}]\n---\nk: |\n  text\n  more\n",
        b"&a [&b [&c [x, x], *c], *b]\n",
        b'{"a": [1, 2.5, null, true, "x\\n"], "b": {"c": {}}}',
        # Near the limits, so that one change passes them: values with aliases written out, aliases.
        b"a: &a 1\nb: [" + b"*a, " * 60 + b"]\n",
        b"[" * 30 + b"1" + b"]" * 30,
        b"- {a: b, c: [d, e]}\n" * 20,
    ]  # fmt: skip
    # Each anchor is two of the one before: 49,000 values and 98,000 with all written out.
    line = b"k%d: &l%d [*l%d, *l%d]\n"
    documents += [
        b"k0: &l0 [1]\n" + b"".join(line % (n, n, n - 1, n - 1) for n in range(1, most))
        for most in (14, 15)
    ]
    return documents


def mutated(random: Random, seed: bytes, others: Sequence[bytes], most: int = 20_000) -> bytes:
    """Return ``seed`` with up to six changes."""
    data = bytearray(seed)
    for _ in range(random.randint(0, 6)):
        at = random.randrange(len(data) + 1)
        end = min(len(data), at + random.randint(1, 40))
        match random.randrange(9):
            case 0:
                data[at:at] = random.choice(TOKENS)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = data[at:end] * random.choice((1, 2, 3, 50))
            case 3 if at < len(data):
                data[at] ^= 1 << random.randrange(8)
            case 4:
                other = random.choice(others)
                start = random.randrange(len(other) + 1)
                data[at:end] = other[start : start + random.randint(1, 200)]
            case 5:
                del data[at:]
            case 6:
                depth = random.choice((3, 30, 45, 500))
                data[at:at] = random.choice((b"[", b'{"a":', b"- ", b"a:\n ")) * depth
            case 7:
                data[at:end] = random.choice(TOKENS) * random.choice((1, 5, 100))
            case _:
                data[at:at] = b"\n" + random.choice(TOKENS) + b"\n"
    return bytes(data[:most])


def value(random: Random, depth: int = 0) -> Any:
    """Return a random JSON value."""
    kind = random.randrange(9 if depth < 4 else 6)
    if kind == 6 or kind == 7:
        return {word(random): value(random, depth + 1) for _ in range(random.randrange(5))}
    if kind == 8:
        return [value(random, depth + 1) for _ in range(random.randrange(5))]
    return (None, True, random.randint(-(2**40), 2**40), random.random(), word(random), -1)[kind]


def word(random: Random) -> str:
    """Return a short text, with or without a meaning for the kinds."""
    words = ("name", "spec", "queues", "mail", "30s", "0 8 * * *", "1", "x" * 300, "\u0000", "-5m",
             "Europe/Berlin", "100m", "1Gi", "\U0001f4a5", "a.b/c", "")  # fmt: skip
    return random.choice(words)


def changed(random: Random, root: Any) -> Any:
    """Return a JSON tree with some values replaced, removed or added."""
    copy = json.loads(json.dumps(root))
    for _ in range(random.randint(1, 4)):
        place = copy
        while isinstance(place, dict | list) and place:
            key = random.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if random.random() < 0.35 or not isinstance(place[key], dict | list):
                match random.randrange(4):
                    case 0:
                        del place[key]
                    case 1 if isinstance(place, dict):
                        place[word(random)] = value(random)
                    case _:
                        place[key] = value(random)
                break
            place = place[key]
    return copy


def archive(random: Random) -> bytes:
    """Return a zip, tar or tar.gz with valid or invalid names, types and sizes, then mutated."""
    out = io.BytesIO()
    members = [(random.choice(NAMES), random.randrange(4)) for _ in range(random.randint(1, 4))]
    if random.random() < 0.5:
        members = [(f"d{n}/{name.strip('./') or 'f'}", 0) for n, (name, _) in enumerate(members)]
    choice = random.randrange(3)
    if choice == 0:
        with warnings.catch_warnings(), zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
            warnings.simplefilter("ignore")  # of names that stand twice
            for name, kind in members:
                info = zipfile.ZipInfo(name or "x")
                info.filename = name
                mode = stat.S_IFLNK if kind == 3 else stat.S_IFREG
                info.external_attr = (mode | 0o644) << 16
                packed.writestr(info, b"x" * random.choice((0, 10, 5000)))
    else:
        with tarfile.open(fileobj=out, mode="w:") as taped:
            for name, kind in members:
                entry = tarfile.TarInfo(name)
                entry.type = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE)[
                    kind
                ]
                entry.linkname = "/etc/passwd" if kind > 1 else ""
                entry.size = random.choice((0, 10, 5000)) if kind == 0 else 0
                taped.addfile(entry, io.BytesIO(b"x" * entry.size))
    data = bytearray(out.getvalue())
    if random.random() < 0.4 and data:
        for _ in range(random.randint(1, 8)):
            data[random.randrange(len(data))] = random.randrange(256)
    if choice == 2:
        packer = zlib.compressobj(6, wbits=31)
        data = bytearray(packer.compress(bytes(data)) + packer.flush())
    return bytes(data[: random.choice((len(data), len(data), len(data) // 2))])


def objects() -> list[Any]:
    """Return valid objects of our kinds, from the examples."""
    return [
        manifest
        for path in sorted((ROOT / "examples").rglob("*.yaml"))
        for manifest in yaml.safe_load_all(path.read_text())
        if isinstance(manifest, dict)
        and str(manifest.get("apiVersion", "")).startswith("engineroom")
    ]
