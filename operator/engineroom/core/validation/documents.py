"""Readers of untrusted YAML and JSON, within limits.

Size, depth, aliases and number of values are limited. Custom tags and duplicate keys are refused.
Scalars are interpreted as by kubectl: ``yes`` and ``off`` are booleans, ``1:30`` is text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from engineroom.core.errors import Category, EngineroomError, Problem
from engineroom.core.validation.paths import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 40
MAX_ALIASES = 64
MAX_VALUES = 50_000
MAX_DOCUMENTS = 1_000
#: Characters of a number. Any longer one exceeds a double, and Python cannot write it in decimal.
MAX_NUMBER = 300
#: Different plain scalars of a text whose values are cached.
_PLAIN_VALUES = 1_000
_LONG_NUMBER = (f"has a number of over {MAX_NUMBER} characters", "write it as text")

_TAG = "tag:yaml.org,2002:"
_TAGS = frozenset(
    _TAG + kind
    for kind in ("null", "bool", "int", "float", "str", "map", "seq", "timestamp", "merge")
)
_TRUE = frozenset({"yes", "true", "on"})


class UnreadableError(EngineroomError):
    """A text is not valid YAML or JSON; ``line`` counts from 1, ``problem`` has the details."""

    code = "unreadable_document"
    category = Category.VALIDATION
    http_status = 422

    def __init__(self, line: int, problem: str, fix: str) -> None:
        self.line = line
        self.problem = Problem("(document)", problem, fix)
        super().__init__(f"line {line}: {problem}; {fix}")


class Lines:
    """The line of a map or a list, and those of its fields: a line, or Lines again.

    It has the shape of the value, so its size is that of the value; paths are never stored.
    """

    __slots__ = ("_by_quoted", "fields", "line")

    def __init__(self, line: int, fields: dict[str, int | Lines] | list[int | Lines]) -> None:
        self.line = line
        self.fields = fields
        self._by_quoted: dict[str, int | Lines] | None = None

    def field(self, segment: str) -> int | Lines | None:
        """Return the lines of one segment of a path: ``name``, ``[0]`` or ``["a b"]``; or None."""
        fields = self.fields
        if isinstance(fields, list):
            index = segment[1:-1]
            if not index.isdecimal() or len(index) > _DIGITS or int(index) >= len(fields):
                return None
            return fields[int(index)]
        if not segment.startswith("["):
            return fields.get(segment)
        if self._by_quoted is None:
            # A quoted key in a path can be cut, so it is looked up as a path would show it.
            self._by_quoted = {quoted(key): lines for key, lines in reversed(fields.items())}
        return self._by_quoted.get(segment[1:-1])


#: Digits of an index that is looked up.
_DIGITS = 10
#: One segment of a path: a name, an index, or a quoted key, which can be cut at its end.
_SEGMENT = re.compile(
    r'\.?(\w+|\[\d+\]|\["(?:[^"\\]|\\.)*"\]|\[".{56}\.\.\.\])', re.ASCII | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Document:
    """One document and the lines of its fields; paths are those of ``core.errors.Problem``."""

    value: Any
    line: int
    lines: int | Lines = field(default=0, repr=False)

    def line_of(self, path: str) -> int:
        """Return the line of a field, or of its nearest existing ancestor."""
        position, lines, line = 0, self.lines, self.line
        while isinstance(lines, Lines) and position < len(path):
            segment = _SEGMENT.match(path, position)
            inner = None if segment is None else lines.field(segment[1])
            if segment is None or inner is None:
                break
            position, lines = segment.end(), inner
            line = lines.line if isinstance(lines, Lines) else lines
        return line

    def items(self) -> Iterator[Document]:
        """Yield the items of the list under ``items``, as documents of their own."""
        values = self.value.get("items") if isinstance(self.value, dict) else None
        lines = self.lines.field("items") if isinstance(self.lines, Lines) else None
        fields = lines.fields if isinstance(lines, Lines) else []
        for index, item in enumerate(values if isinstance(values, list) else []):
            inner = fields[index] if isinstance(fields, list) and index < len(fields) else self.line
            yield Document(item, inner.line if isinstance(inner, Lines) else inner, inner)


class _Frame:
    """A map or list under construction; the unused one of ``items`` and ``fields`` is None."""

    __slots__ = (
        "anchor", "count", "fields", "items", "key", "key_line", "lines", "merged", "wants_key",
    )  # fmt: skip

    def __init__(self, line: int, anchor: str | None, *, is_map: bool) -> None:
        self.fields: dict[str, Any] | None = {} if is_map else None
        self.items: list[Any] | None = None if is_map else []
        self.lines = Lines(line, {} if is_map else [])
        self.anchor = anchor
        self.count = 1
        #: The key of the next value, and its line.
        self.key = ""
        self.key_line = 0
        #: Whether the next scalar of a map is a key.
        self.wants_key = is_map
        #: Keys that come from ``<<``, which the map itself may set again.
        self.merged: set[str] | None = None


def read(text: str) -> Iterator[Document]:
    """Yield the non-empty documents of a file; raise UnreadableError at the first error."""
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        raise UnreadableError(line, "has half of a surrogate pair", "encode it as UTF-8") from error
    if size > MAX_BYTES:
        raise UnreadableError(1, f"is larger than {MAX_BYTES} bytes", "split it")
    if text.lstrip()[:1] in {"{", "["}:
        # JSON permits tabs as indentation, YAML does not.
        text = re.sub(r"^\t+", lambda tabs: " " * len(tabs[0]), text, flags=re.MULTILINE)
    import yaml  # takes 20 ms; not needed for JSON

    count = 0
    plain: dict[str, Any] = {}
    parser = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    try:
        events: Any = yaml.parse(text, Loader=parser)
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                count += 1
                if count > MAX_DOCUMENTS:
                    line = _line(event)
                    raise UnreadableError(line, f"has over {MAX_DOCUMENTS} documents", "split it")
                document = _Builder(plain).build(events)
                if document.value is not None:
                    yield document
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        raise UnreadableError(
            line, f"is not YAML: {error.problem or error.context}", "correct it"
        ) from error
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise UnreadableError(1, f"is not YAML: {reason}", "correct it") from error


class _Builder:
    """A builder of one document from YAML events, without recursion."""

    def __init__(self, plain: dict[str, Any]) -> None:
        #: Values of plain scalars, most of which repeat in a text.
        self._plain = plain
        self._stack: list[_Frame] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._aliases = 0
        self._total = 0
        self._lines: int | Lines = 0
        self._root: Any = None

    def build(self, events: Iterable[Any]) -> Document:
        import yaml

        scalar, alias, end = yaml.ScalarEvent, yaml.AliasEvent, yaml.DocumentEndEvent
        first = 0
        for event in events:
            line = event.start_mark.line + 1
            first = first or line
            kind = type(event)
            if kind is scalar:
                self._scalar(event, line)
            elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
                self._open(event, line, is_map=kind is yaml.MappingStartEvent)
            elif kind is alias:
                self._alias(str(event.anchor), line)
            elif kind is end:
                break
            else:
                self._close(line)
        return Document(self._root, first, self._lines)

    def _open(self, event: Any, line: int, *, is_map: bool) -> None:
        _check_tag(event.tag, line)
        if len(self._stack) >= MAX_DEPTH:
            raise UnreadableError(line, f"is nested deeper than {MAX_DEPTH} levels", "flatten it")
        if self._stack and self._stack[-1].wants_key:
            raise UnreadableError(line, "has a map or a list as a key", "write a string as key")
        self._count(1, line)
        parent = self._stack[-1] if self._stack else None
        if parent is not None and parent.items is None:
            line = parent.key_line
        self._stack.append(_Frame(line, event.anchor, is_map=is_map))

    def _close(self, line: int) -> None:
        frame = self._stack.pop()
        value = frame.items if frame.fields is None else frame.fields
        if frame.anchor is not None:
            self._anchors[frame.anchor] = (value, frame.count)
        self._put(value, frame.count, line, frame.lines)

    def _alias(self, anchor: str, line: int) -> None:
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            raise UnreadableError(line, f"has more than {MAX_ALIASES} aliases", "write it out")
        if anchor not in self._anchors:
            raise UnreadableError(
                line, f"the alias *{anchor} has no anchor before it", "write it out"
            )
        value, count = self._anchors[anchor]
        self._count(count, line)
        if self._stack and self._stack[-1].wants_key:
            if isinstance(value, dict | list):
                raise UnreadableError(line, "has a map or a list as a key", "write a string as key")
            self._key(_key_text(value), line)
            return
        self._put(value, count, line, None)

    def _scalar(self, event: Any, line: int) -> None:
        value: Any = event.value
        if event.tag is not None or event.implicit[0]:
            if event.tag is None and value in self._plain:
                value = self._plain[value]
            else:
                _check_tag(event.tag, line)
                text, value = value, _value(event)
                if event.tag is None and len(self._plain) < _PLAIN_VALUES:
                    self._plain[text] = value
        self._count(1, line)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, 1)
        if self._stack and self._stack[-1].wants_key:
            self._key(value if isinstance(value, str) else _key_text(value), line)
        else:
            self._put(value, 1, line, None)

    def _key(self, key: str, line: int) -> None:
        frame = self._stack[-1]
        if frame.fields is not None and key in frame.fields:
            if frame.merged is None or key not in frame.merged:
                raise UnreadableError(
                    line, f"the key {quoted(key)} appears twice", "keep one of the two"
                )
            frame.merged.remove(key)
        frame.key, frame.key_line, frame.wants_key = key, line, False

    def _put(self, value: Any, count: int, line: int, lines: Lines | None) -> None:
        """Put a value into the open map or list, with its lines unless it is one line."""
        if not self._stack:
            self._root, self._lines = value, line if lines is None else lines
            return
        frame = self._stack[-1]
        frame.count += count
        places: Any = frame.lines.fields
        if frame.items is not None:
            frame.items.append(value)
            places.append(line if lines is None else lines)
            return
        key, frame.wants_key = frame.key, True
        if key == "<<":
            self._merge(frame, value, line)
            return
        if frame.fields is not None:
            frame.fields[key] = value
        places[key] = frame.key_line if lines is None else lines

    def _merge(self, frame: _Frame, value: Any, line: int) -> None:
        fields, places = frame.fields, frame.lines.fields
        merged = frame.merged = frame.merged or set()
        for source in value if isinstance(value, list) else [value]:
            if not isinstance(source, dict):
                raise UnreadableError(line, "<< merges something other than a map", "write it out")
            for key, inner in source.items():
                if fields is not None and isinstance(places, dict) and key not in fields:
                    fields[key] = inner
                    merged.add(key)
                    places.setdefault(key, line)

    def _count(self, number: int, line: int) -> None:
        self._total += number
        if self._total > MAX_VALUES:
            raise UnreadableError(line, f"has more than {MAX_VALUES} values", "make it smaller")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _check_tag(tag: str | None, line: int) -> None:
    if tag is None or tag == "!" or tag in _TAGS:
        return
    raise UnreadableError(line, f"the tag {quoted(tag)} is not allowed", "write a plain value")


@cache
def _resolver() -> tuple[Any, Any]:
    """Return the node class of scalars and the resolver of implicit tags."""
    import yaml

    return yaml.ScalarNode, yaml.resolver.Resolver()


def _value(event: Any) -> Any:
    """Return the value of a scalar as kubectl interprets it."""
    tag = event.tag
    if tag is None or tag == "!":
        node, resolver = _resolver()
        tag = resolver.resolve(node, event.value, event.implicit)
    kind, text = tag.removeprefix(_TAG), event.value
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in _TRUE
    try:
        if kind == "int":
            return _integer(text)
        if kind == "float":
            return _number(text)
    except OverflowError as error:
        raise UnreadableError(_line(event), *_LONG_NUMBER) from error
    except ValueError:
        return text
    return text


def _integer(text: str) -> int:
    if len(text) > MAX_NUMBER:
        raise OverflowError
    plain = text.replace("_", "")
    sign = -1 if plain.startswith("-") else 1
    digits = plain.lstrip("+-")
    if len(digits) > 1 and digits[0] == "0" and digits.isdigit():
        return sign * int(digits, 8)
    return sign * int(digits, 0)


def _number(text: str) -> float:
    plain = text.replace("_", "").lower()
    if plain.endswith((".inf", ".nan")):
        return float(plain.replace(".", "", 1))
    return float(plain)


def _key_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)


def read_json(data: bytes | str) -> Any:
    """Read one JSON value (RFC 8259) within the same limits; refuse ``NaN`` and infinities.

    Raises UnreadableError. Duplicate keys are refused because parsers differ in which one counts.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(raw) > MAX_BYTES:
        raise UnreadableError(1, f"is larger than {MAX_BYTES} bytes", "split it")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(1, f"is not UTF-8 at byte {error.start}", "encode it") from error
    _check_bounds(text)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_bounded_integer,
        )
    except json.JSONDecodeError as error:
        raise UnreadableError(error.lineno, f"is not JSON: {error.msg}", "correct it") from error
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            # It could not be encoded anywhere later.
            raise UnreadableError(1, "has half of a surrogate pair", "write both halves") from error
    return value


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# Possessive, with an optional closing quote: no text causes backtracking in quadratic time.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[][{},]', re.DOTALL)


def _check_bounds(text: str) -> None:
    """Check depth and number of values before anything is built."""
    depth, values = 0, 1
    for match in _TOKEN.finditer(text):
        mark = match[0]
        if mark in "[{":
            depth += 1
            values += 1
        elif mark in "]}":
            depth -= 1
        elif mark == ",":
            values += 1
        if depth > MAX_DEPTH:
            line = text.count("\n", 0, match.start()) + 1
            raise UnreadableError(line, f"is nested deeper than {MAX_DEPTH} levels", "flatten it")
        if values > MAX_VALUES:
            line = text.count("\n", 0, match.start()) + 1
            raise UnreadableError(line, f"has more than {MAX_VALUES} values", "make it smaller")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        earlier: set[str] = set()
        for key, _ in pairs:
            if key in earlier:
                raise UnreadableError(
                    1, f"the key {quoted(key)} appears twice", "keep one of the two"
                )
            earlier.add(key)
    return value


def _no_constant(text: str) -> Any:
    raise UnreadableError(1, f"{text} is no JSON number", "write a number or null")


def _bounded_integer(text: str) -> int:
    if len(text) > MAX_NUMBER:
        raise UnreadableError(1, *_LONG_NUMBER)
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if number in {float("inf"), float("-inf")}:
        raise UnreadableError(1, f"the number {quoted(text)} is too large", "write a smaller one")
    return number
