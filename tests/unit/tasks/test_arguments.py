"""Arguments are read off a pickle without running it, whoever wrote it."""

from __future__ import annotations

import collections
import datetime
import decimal
import json
import pickle
import pickletools
import uuid
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.core.redaction import is_secret_key, redact_text
from engineroom.tasks.inspection.arguments import MAX_BYTES, JobCall, read_call

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.text(max_size=30)
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5).filter(
        lambda key: key.isascii()), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
NAMES = st.sampled_from(["a", "b", "value", "x1"])


@given(
    st.lists(PLAIN, max_size=4), st.dictionaries(NAMES, PLAIN, max_size=3), st.integers(2, 5),
    st.booleans(),
)  # fmt: skip
def test_plain_arguments_are_told_as_they_are(
    args: list[Any], kwargs: dict[str, Any], protocol: int, packed: bool
) -> None:
    data = pickle.dumps(("m.f", None, tuple(args), kwargs), protocol)
    call = read_call(zlib.compress(data) if packed else data)
    assert (call.function, call.problem) == ("m.f", "")
    told = json.loads(json.dumps([list(call.args), call.kwargs]))
    # What may be a secret is told as such, which has tests of its own.
    plain = json.loads(json.dumps([args, kwargs]))
    if not _secretive(plain):
        assert _cut(told) == _cut(plain)


def _secretive(value: Any) -> bool:
    if isinstance(value, dict):
        return any(is_secret_key(key) or _secretive(item) for key, item in value.items())
    if isinstance(value, list):
        return any(map(_secretive, value))
    return isinstance(value, str) and redact_text(value) != value


def _cut(value: Any, depth: int = -1) -> Any:
    """As deep as is shown: an argument is at depth 0."""
    if isinstance(value, list | dict) and depth > 4:
        return "..."
    if isinstance(value, list):
        return [_cut(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {key: _cut(item, depth + 1) for key, item in value.items()}
    return value


@given(st.binary(max_size=300))
def test_any_bytes_are_survived(data: bytes) -> None:
    for given_ in (data, b"\x80\x05" + data, zlib.compress(b"\x80\x04" + data), b"[" + data):
        json.dumps([read_call(given_).args, read_call(given_).kwargs])


@given(st.data())
def test_a_damaged_pickle_is_survived(data: st.DataObject) -> None:
    whole = bytearray(pickle.dumps(("m.f", None, ([1, {"a": (2, 3)}], {4, 5}), {"b": b"c"})))
    at = data.draw(st.integers(2, len(whole) - 1))
    whole[at] = data.draw(st.integers(0, 255))
    json.dumps(read_call(bytes(whole)).args)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), "<datetime.datetime>"),
        (decimal.Decimal("1.5"), "<decimal.Decimal>"),
        (uuid.UUID(int=1), "<uuid.UUID>"),
        (b"\x00" * 9, "<9 bytes>"),
        ({1, 2}, [1, 2]),
        (frozenset({1}), [1]),
        ((1, (2,)), [1, [2]]),
        ({(1, 2): 3}, {"<tuple>": 3}),
        (collections.OrderedDict(a=1), "<collections.OrderedDict>"),
        (len, "<builtins.len>"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_is_not_plain_is_told_by_its_name(value: Any, told: Any, protocol: int) -> None:
    call = read_call(pickle.dumps(("m.f", None, (value,), {}), protocol))
    old = {"<9 bytes>": "<_codecs.encode>", "[1, 2]": "<__builtin__.set>",
           "[1]": "<__builtin__.frozenset>", "<builtins.len>": "<__builtin__.len>"}  # fmt: skip
    older = {2: [told, old.get(str(told))], 3: [told, "<builtins.set>", "<builtins.frozenset>"]}
    assert call.args[0] in older.get(protocol, [told])


def test_what_is_shared_many_times_over_does_not_grow() -> None:
    value: Any = ["x"]
    for _ in range(40):
        value = [value, value, value]
    assert len(json.dumps(read_call(pickle.dumps(("m.f", None, (value,), {}))).args)) < 5000
    wide = [["y"] * 50] * 50
    assert len(json.dumps(read_call(pickle.dumps(("m.f", None, (wide, wide), {}))).args)) < 10_000


def test_a_bomb_of_zeros_is_not_unpacked() -> None:
    assert "bytes" in read_call(zlib.compress(b"\0" * (MAX_BYTES + 1))).problem


def test_the_instance_of_a_method_is_told() -> None:
    data = pickle.dumps(("send", uuid.UUID(int=1), (), {}))
    assert read_call(data) == JobCall("uuid.UUID.send", (), {})


def test_every_opcode_that_plain_values_need_is_known() -> None:
    """Whatever Python writes for them, of any protocol that RQ has used."""
    value = [None, True, 1, 2**70, 1.5, "a", b"b", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [],
             {}, {"k": []}, set(), frozenset(), bytearray(b"x"), "a" * 300, b"b" * 300]  # fmt: skip
    for protocol in (2, 3, 4, 5):
        data = pickle.dumps(("m.f", None, (value, value), {}), protocol)
        assert read_call(data).problem == ""
        assert read_call(pickletools.optimize(data)).problem == ""


def test_arguments_with_halves_of_surrogate_pairs_are_displayed() -> None:
    call = read_call(pickle.dumps(("f\ud800", None, ("\ud800",), {"\udc00": ["\udfff"]})))

    assert (call.function, call.args) == ("f\ufffd", ("\ufffd",))
    assert call.kwargs == {"\ufffd": ["\ufffd"]}
