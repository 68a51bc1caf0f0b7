"""The arguments of a job, decoded for display without running anything.

A pickle is a program, and this module does not execute it. It follows only the opcodes that build
plain values; a class or a call becomes its name in angle brackets.
"""

from __future__ import annotations

import json
import pickletools  # nosec B403 - reads opcodes and loads nothing
import zlib
from dataclasses import dataclass
from typing import Any

from engineroom.core.redaction import redact
from engineroom.core.validation.json_values import as_utf8

#: Most decompressed bytes to read.
MAX_BYTES = 1 << 20
#: Most opcodes to follow.
_MAX_OPCODES = 20_000
#: Most values of a container, characters of a text, nested containers, and values in total.
_MAX_ITEMS, _MAX_TEXT, _MAX_DEPTH, _MAX_VALUES = 50, 500, 5, 500

_MARK = object()


@dataclass(frozen=True, slots=True)
class JobCall:
    """A job's function and arguments as JSON values, cut to size and without secrets.

    ``problem`` says why they are missing; it is empty if they are present.
    """

    function: str = ""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None
    problem: str = ""


class _Opaque:
    """A value that is not plain, with the name of its class."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def read_call(data: bytes) -> JobCall:
    """Return the call of a job's ``data`` field, pickled or JSON, compressed or not."""
    try:
        unpacker = zlib.decompressobj()
        plain = unpacker.decompress(data, MAX_BYTES)
        if unpacker.unconsumed_tail:
            return JobCall(problem=f"more than {MAX_BYTES} bytes")
    except zlib.error:
        plain = data
    try:
        value = _read_pickle(plain) if plain[:1] == b"\x80" else json.loads(plain)
        name, instance, args, kwargs = value
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, RecursionError):
        return JobCall(problem="written by a serializer that is not known here")
    if not isinstance(name, str):
        return JobCall(problem="written by a serializer that is not known here")
    budget = [_MAX_VALUES]
    keywords = kwargs if isinstance(kwargs, dict) else {}
    named: Any = redact(_display_value(dict(keywords), 0, budget))
    positional = tuple(redact(_display_value(arg, 0, budget)) for arg in list(args)[:_MAX_ITEMS])
    if len(args) > _MAX_ITEMS:
        positional += (f"... {len(args) - _MAX_ITEMS} more",)
    prefix = f"{instance.name}." if isinstance(instance, _Opaque) else ""
    return JobCall(as_utf8(f"{prefix}{name}"[:_MAX_TEXT]), positional, named)


def _display_value(value: Any, depth: int, budget: list[int]) -> Any:
    """Return the value as JSON, cut to size; a shared value counts each time it occurs."""
    budget[0] -= 1
    if budget[0] < 0:
        return "..."
    if isinstance(value, str):
        return as_utf8(value if len(value) <= _MAX_TEXT else f"{value[:_MAX_TEXT]}...")
    if isinstance(value, bytes | bytearray):
        return f"<{len(value)} bytes>"
    if isinstance(value, _Opaque):
        return f"<{value.name}>"
    if isinstance(value, int) and not isinstance(value, bool):
        return value if value.bit_length() <= 256 else f"<{value.bit_length()} bits>"
    if not isinstance(value, dict | list | tuple | set | frozenset):
        return value
    if depth >= _MAX_DEPTH:
        return "..."
    if isinstance(value, dict):
        entries: dict[str, Any] = {}
        for key, item in list(value.items())[:_MAX_ITEMS]:
            entries[str(_display_value(key, depth + 1, budget))] = _display_value(
                item, depth + 1, budget
            )
        if len(value) > _MAX_ITEMS:
            entries["..."] = f"{len(value) - _MAX_ITEMS} more"
        return entries
    items = [_display_value(item, depth + 1, budget) for item in list(value)[:_MAX_ITEMS]]
    if len(value) > _MAX_ITEMS:
        items.append(f"... {len(value) - _MAX_ITEMS} more")
    return items


_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = frozenset({"PROTO", "FRAME", "READONLY_BUFFER"})
_PUT = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GET = frozenset({"GET", "BINGET", "LONG_BINGET"})


def _read_pickle(data: bytes) -> Any:
    """Return the value of a pickle. Raises ValueError, IndexError and the like for invalid data."""
    machine = _PickleReader()
    for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
        if number > _MAX_OPCODES:
            raise ValueError("too long")
        if operation.name == "STOP":
            return machine.stack.pop()
        machine.follow(operation.name, argument)
    raise ValueError("no end")


class _PickleReader:
    """The stack and the memo of a pickle, with plain values only."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def follow(self, name: str, argument: Any) -> None:
        """Follow one opcode. Raises ValueError for an unknown one."""
        stack = self.stack
        if name in _IGNORED:
            return
        if name == "MARK":
            stack.append(_MARK)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in _PUT:
            self._memo[int(argument or 0)] = stack[-1]
        elif name in _GET:
            stack.append(self._memo[int(argument or 0)])
        elif name in ("POP", "POP_MARK"):
            stack.pop() if name == "POP" else self._pop_to_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif not (self._build_container(name) or self._skip_object(name, argument)):
            if not isinstance(argument, str | int | float | bytes | bytearray):
                raise ValueError(name)
            stack.append(argument)

    def _build_container(self, name: str) -> bool:
        """Follow an opcode that builds or fills a container; return whether it is one."""
        stack = self.stack
        if name in _TUPLES:
            size = _TUPLES[name]
            stack[-size:] = [tuple(stack[-size:])]
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name in ("LIST", "FROZENSET"):
            items = self._pop_to_mark()
            stack.append(items if name == "LIST" else _frozen(items))
        elif name in ("APPENDS", "ADDITEMS", "SETITEMS"):
            self._extend(name, self._pop_to_mark())
        elif name in ("APPEND", "SETITEM"):
            size = 1 if name == "APPEND" else 2
            items = stack[-size:]
            del stack[-size:]
            self._extend(f"{name}S", items)
        elif name == "DICT":
            items = self._pop_to_mark()
            stack.append({})
            self._extend("SETITEMS", items)
        else:
            return False
        return True

    def _skip_object(self, name: str, argument: Any) -> bool:
        """Follow an opcode that names a class or builds an object; return whether it is one."""
        stack = self.stack
        if name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Opaque(f"{module}.{attribute}"[:_MAX_TEXT]))
        elif name == "GLOBAL":
            stack.append(_Opaque(str(argument).replace(" ", ".")[:_MAX_TEXT]))
        elif name in ("REDUCE", "NEWOBJ", "BUILD"):
            stack.pop()  # arguments or state: the object is not built
        elif name == "NEWOBJ_EX":
            del stack[-2:]
        else:
            return False
        return True

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (top := self.stack.pop()) is not _MARK:
            items.append(top)
        return items[::-1]

    def _extend(self, name: str, items: list[Any]) -> None:
        target = self.stack[-1]
        if name == "SETITEMS" and isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                plain = isinstance(key, str | int | float | bytes)
                target[key if plain else f"<{type(key).__name__}>"] = value
        elif name == "APPENDS" and isinstance(target, list):
            target.extend(items)
        elif name == "ADDITEMS" and isinstance(target, set):
            target.update(_frozen(items))


def _frozen(items: list[Any]) -> frozenset[Any]:
    """Return a set of the items; an unhashable item becomes the name of its type."""
    plain = (str, int, float, bytes, bool, type(None), _Opaque)
    return frozenset(
        item if isinstance(item, plain) else f"<{type(item).__name__}>" for item in items
    )
