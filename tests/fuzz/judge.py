"""A second parser for each kind of input, which decides what must be refused.

It uses other libraries, or the same ones in another way, and none of the code under test.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import unicodedata
import zipfile
from functools import cache
from typing import Any

import jsonschema_rs
import yaml

from tests.support import ROOT

_STANDARD = {"null", "bool", "int", "float", "str", "map", "seq", "timestamp", "merge"}
_TAG = "tag:yaml.org,2002:"
_DEPTH, _ALIASES, _VALUES, _BYTES, _DOCUMENTS = 40, 64, 50_000, 1024 * 1024, 1_000


def yaml_wrong(text: str) -> str:
    """Return why this text must be refused; "" if it is valid."""
    if len(text.encode("utf-8", "replace")) > _BYTES:
        return "size"
    # The parser in pure Python is another implementation than the C one that is judged. It knows
    # less of YAML 1.2 (a tab for a blank, say); there the C one, whose port kubectl has, tells what
    # is YAML, and limits and keys are counted anew all the same.
    for loader in (yaml.SafeLoader, yaml.CSafeLoader):
        try:
            wrong = _events_wrong(text, loader)
            return wrong or _nodes_wrong(text, loader)
        except yaml.YAMLError:
            continue
    # JSON may be indented by tabs, which neither takes.
    return "no YAML" if "\t" not in text else yaml_wrong(text.replace("\t", " "))


def _events_wrong(text: str, loader: Any) -> str:
    depth = aliases = documents = 0
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.DocumentStartEvent):
            aliases, documents = 0, documents + 1
        depth += isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent)
        depth -= isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        tag = getattr(event, "tag", None)
        if tag not in (None, "!") and str(tag).removeprefix(_TAG) not in _STANDARD:
            return f"tag {tag}"
        if depth > _DEPTH or aliases > _ALIASES or documents > _DOCUMENTS:
            return "depth, aliases or documents"
    return ""


def _nodes_wrong(text: str, loader: Any) -> str:
    try:
        for node in yaml.compose_all(text, Loader=loader):
            wrong = _node_wrong(node, {})
            if wrong:
                return wrong
    except yaml.composer.ComposerError as error:
        # YAML lets an anchor be set anew, PyYAML's composer does not.
        if "duplicate anchor" not in str(error):
            raise
    return ""


def _node_wrong(node: Any, sizes: dict[int, int]) -> str:
    """Check for duplicate keys, and count the values with all aliases expanded."""

    def size(node: Any) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        total = 1
        if isinstance(node, yaml.SequenceNode):
            total += sum(size(child) for child in node.value)
        elif isinstance(node, yaml.MappingNode):
            keys = [k.value for k, _ in node.value if isinstance(k, yaml.ScalarNode)]
            plain = [k for k in keys if k != "<<"]
            if len(set(plain)) != len(plain):
                raise LookupError("a key appears twice")
            total += sum(size(k) + size(v) for k, v in node.value)
        sizes[id(node)] = total
        return total

    try:
        if node is not None and size(node) > _VALUES * 1.1:
            return "values"
    except LookupError as error:
        return str(error)
    return ""


def json_wrong(data: bytes) -> tuple[str, Any]:
    """Return why these bytes must be refused, and their value otherwise."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("twice")
        return dict(pairs)

    def no(text: str) -> Any:
        raise ValueError(text)

    def finite(text: str) -> float:
        number = float(text)
        if number - number != 0:
            raise ValueError(text)
        return number

    if len(data) > _BYTES:
        return "size", None
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=once, parse_constant=no, parse_float=finite
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        return str(error) or "no JSON", None
    deep, total, level = 0, 0, [value]
    while level:
        total += len(level)
        inner = [v for node in level if isinstance(node, dict | list)
                 for v in (node.values() if isinstance(node, dict) else node)]  # fmt: skip
        deep += any(isinstance(node, dict | list) for node in level)
        level = inner
    return ("depth or values" if deep > _DEPTH or total > _VALUES else ""), value


@cache
def _schemas() -> dict[str, Any]:
    result = {}
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        crd = yaml.safe_load(path.read_text())
        schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        result[crd["spec"]["names"]["kind"]] = jsonschema_rs.validator_for(
            {"$schema": "http://json-schema.org/draft-07/schema#", **schema}
        )
    return result


def object_wrong(thing: Any) -> str:
    """Return why the API server's schema refuses this object; "" if it does not."""
    schema = _schemas().get(thing.get("kind")) if isinstance(thing, dict) else None
    if schema is None:
        return "no kind of ours"
    without = {k: v for k, v in thing.items() if k not in {"metadata", "status"}}
    error = next(iter(schema.iter_errors(_without_nulls(without))), None)
    return "" if error is None else f"{'/'.join(map(str, error.instance_path))}: {error.message}"


def _without_nulls(value: Any) -> Any:
    """Drop nulls as the API server does before defaulting and validation."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


_BEGINS = {
    "image/png": [b"\x89PNG\r\n\x1a\n"], "image/jpeg": [b"\xff\xd8\xff"],
    "image/gif": [b"GIF87a", b"GIF89a"], "application/pdf": [b"%PDF-"],
    "application/zip": [b"PK\x03\x04", b"PK\x05\x06"], "application/gzip": [b"\x1f\x8b\x08"],
    "application/zstd": [b"\x28\xb5\x2f\xfd"], "application/x-xz": [b"\xfd7zXZ\x00"],
}  # fmt: skip


def type_wrong(kind: str, head: bytes) -> str:
    """Return why a file with this beginning is not of that type; "" if it is."""
    if kind == "image/webp":
        return "" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else "no webp"
    if kind == "application/x-tar":
        return "" if head[257:262] == b"ustar" else "no tar"
    if kind == "text/plain":
        text = head.decode("utf-8", "ignore")
        bad = [c for c in text if unicodedata.category(c) == "Cc" and c not in "\t\n\r\v\f\x1b\x85"
               and not "\x80" <= c <= "\x9f"]  # fmt: skip
        begins = any(head.startswith(mark) for marks in _BEGINS.values() for mark in marks)
        return "binary" if bad or begins or len(text.encode()) < len(head) - 3 else ""
    return "" if any(head.startswith(mark) for mark in _BEGINS[kind]) else f"no {kind}"


def archive_wrong(data: bytes) -> str:
    """Return why this archive must not be unpacked; "" if it is safe."""
    names: list[str] = []
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            if packed.testzip() is not None:
                return "damaged"
            for info in packed.infolist():
                if (info.external_attr >> 28) not in (0, 8, 4):
                    return "link or device"
                names.append(info.filename)
    else:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as taped:
            for entry in taped:
                if not (entry.isfile() or entry.isdir()):
                    return "link or device"
                names.append(entry.name)
    folded = [unicodedata.normalize("NFC", name.rstrip("/")).casefold() for name in names]
    if len(set(folded)) != len(folded):
        return "a name twice"
    for name in names:
        for separator in ("/", "\\"):
            path = os.path.normpath("/base/in/" + name.replace(separator, "/"))
            if not path.startswith("/base/in/") or name.startswith(("/", "\\")) or "\0" in name:
                return f"leads out: {name!r}"
    return ""
