"""What a job was called with, read off its bytes: shown to people, never run.

A pickle is a program. Here it is read, not executed: of the opcodes only those that build plain
values are followed, and whatever names a class or calls something becomes a word in angle brackets.
"""

from __future__ import annotations

import json
import pickletools  # nosec B403 - reads opcodes and loads nothing
import zlib
from dataclasses import dataclass
from typing import Any

from engineroom.core.redaction import redact

#: Unpacked bytes that are read at most.
MAX_BYTES = 1 << 20
#: Opcodes that are followed at most.
_MAX_OPCODES = 20_000
#: Values of a container, characters of a text, containers in one another, and values in all.
_MAX_ITEMS, _MAX_TEXT, _MAX_DEPTH, _MAX_VALUES = 50, 500, 5, 500

_MARK = object()


@dataclass(frozen=True, slots=True)
class Call:
    """A job's function and arguments, JSON-ready, cut to size and without secrets.

    ``problem`` says why there are none; empty where there are.
    """

    function: str = ""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None
    problem: str = ""


class _Opaque:
    """A value that is not plain: what it would have been made by."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def call_of(data: bytes) -> Call:
    """The call in a job's ``data``, pickled or JSON, compressed or not."""
    try:
        unpacker = zlib.decompressobj()
        plain = unpacker.decompress(data, MAX_BYTES)
        if unpacker.unconsumed_tail:
            return Call(problem=f"more than {MAX_BYTES} bytes")
    except zlib.error:
        plain = data
    try:
        value = _read_pickle(plain) if plain[:1] == b"\x80" else json.loads(plain)
        name, instance, args, kwargs = value
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, RecursionError):
        return Call(problem="written by a serializer that is not known here")
    if not isinstance(name, str):
        return Call(problem="written by a serializer that is not known here")
    budget = [_MAX_VALUES]
    given = kwargs if isinstance(kwargs, dict) else {}
    named: Any = redact(_shown(dict(given), 0, budget))
    positional = tuple(redact(_shown(each, 0, budget)) for each in list(args)[:_MAX_ITEMS])
    if len(args) > _MAX_ITEMS:
        positional += (f"... {len(args) - _MAX_ITEMS} more",)
    whose = f"{instance.name}." if isinstance(instance, _Opaque) else ""
    return Call(f"{whose}{name}"[:_MAX_TEXT], positional, named)


def _shown(value: Any, depth: int, budget: list[int]) -> Any:
    """A value cut to size; what is shared is written again each time, up to the budget."""
    budget[0] -= 1
    if budget[0] < 0:
        return "..."
    if isinstance(value, str):
        return value if len(value) <= _MAX_TEXT else f"{value[:_MAX_TEXT]}..."
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
        shown: dict[str, Any] = {}
        for key, item in list(value.items())[:_MAX_ITEMS]:
            shown[str(_shown(key, depth + 1, budget))] = _shown(item, depth + 1, budget)
        if len(value) > _MAX_ITEMS:
            shown["..."] = f"{len(value) - _MAX_ITEMS} more"
        return shown
    items = [_shown(item, depth + 1, budget) for item in list(value)[:_MAX_ITEMS]]
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
    """The value of a pickle; raises ValueError and its like for what is none."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        items: list[Any] = []
        while (top := stack.pop()) is not _MARK:
            items.append(top)
        return items[::-1]

    for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
        name = operation.name
        if number > _MAX_OPCODES:
            raise ValueError("too long")
        if name in _IGNORED:
            continue
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            stack.append(_MARK)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _PUT:
            memo[int(argument or 0)] = stack[-1]
        elif name in _GET:
            stack.append(memo[int(argument or 0)])
        elif name in _TUPLES:
            size = _TUPLES[name]
            stack[-size:] = [tuple(stack[-size:])]
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("LIST", "FROZENSET"):
            items = since_mark()
            stack.append(items if name == "LIST" else _frozen(items))
        elif name in ("APPENDS", "ADDITEMS", "SETITEMS"):
            _extend(name, since_mark(), stack)
        elif name in ("APPEND", "SETITEM"):
            size = 1 if name == "APPEND" else 2
            items = stack[-size:]
            del stack[-size:]
            _extend(f"{name}S", items, stack)
        elif name == "DICT":
            items = since_mark()
            stack.append({})
            _extend("SETITEMS", items, stack)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(_Opaque(f"{module}.{attribute}"[:_MAX_TEXT]))
            else:
                stack.append(_Opaque(str(argument).replace(" ", ".")[:_MAX_TEXT]))
        elif name in ("REDUCE", "NEWOBJ", "BUILD"):
            stack.pop()  # the arguments, or the state: what they would make is not made
        elif name == "NEWOBJ_EX":
            del stack[-2:]
        elif name in ("POP", "POP_MARK"):
            stack.pop() if name == "POP" else since_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif isinstance(argument, str | int | float | bytes | bytearray):
            stack.append(argument)
        else:
            raise ValueError(name)
    raise ValueError("no end")


def _extend(name: str, items: list[Any], stack: list[Any]) -> None:
    target = stack[-1]
    if name == "SETITEMS" and isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            plain = isinstance(key, str | int | float | bytes)
            target[key if plain else f"<{type(key).__name__}>"] = value
    elif name == "APPENDS" and isinstance(target, list):
        target.extend(items)
    elif name == "ADDITEMS" and isinstance(target, set):
        target.update(_frozen(items))


def _frozen(items: list[Any]) -> frozenset[Any]:
    """A set of what can be in one; the rest by its type's name."""
    plain = (str, int, float, bytes, bool, type(None), _Opaque)
    return frozenset(
        each if isinstance(each, plain) else f"<{type(each).__name__}>" for each in items
    )
