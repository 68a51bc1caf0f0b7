"""Documents and requests from outside: within limits, or refused and nothing else."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.core.errors import EngineroomError
from engineroom.core.validation.documents import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_VALUES,
    UnreadableError,
    read,
    read_json,
)
from engineroom.core.validation.requests import Inflater, Limits, RequestLimits

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False,
    allow_infinity=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=30,
)  # fmt: skip


@given(VALUES)
def test_json_comes_back_as_it_was_written(value: Any) -> None:
    assert read_json(json.dumps(value)) == value
    assert read_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    "text",
    [
        "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
        '{"a":' * 100_000,
        "[" + "1," * MAX_VALUES + "1]",
        '"' + "x" * MAX_BYTES + '"',
        '{"a": 1, "a": 2}',
        '{"b": [{"a": 1, "\\u0061": 2}]}',
        "NaN",
        "[Infinity]",
        "1e999",
        "9" * 5000,
        "{",
        "",
        "'a'",
        '"\n"',
        b"\xff",
        '"\ud800"',
        r'"\ud800"',
        r'{"a": ["\uDC00\ud800"]}',
        "\ufeff{}",
    ],
    ids=lambda text: repr(text)[:20],
)
def test_json_beyond_the_limits_or_the_standard_is_refused(text: str | bytes) -> None:
    with pytest.raises(UnreadableError):
        read_json(text)


@pytest.mark.parametrize("text", ['"' + '\\"' * 400_000, '"\\' * 400_000, '""' * 400_000])
def test_no_json_text_takes_long(text: str) -> None:
    began = time.monotonic()
    with pytest.raises(UnreadableError):
        read_json(text)
    assert time.monotonic() - began < 2


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_rubbish_is_a_value_or_refused(data: bytes | str) -> None:
    for reader in (read_json, lambda text: list(read(text)) if isinstance(text, str) else None):
        try:
            reader(data)
        except UnreadableError:
            continue


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [1]\nb: [" + "*x," * 100 + "]",
        "a: !!python/object/apply:os.system [id]",
        "a: 1\na: 2",
        "[" * 100 + "]" * 100,
        "a: *nowhere",
    ],
)
def test_yaml_beyond_the_limits_is_refused(text: str) -> None:
    with pytest.raises(UnreadableError):
        list(read(text))


class Client:
    """Sends a request piece by piece and keeps the answer."""

    def __init__(self, pieces: list[bytes], headers: dict[str, str] | None = None) -> None:
        self.pieces = pieces
        self.headers = [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]
        self.taken = 0
        self.sent: list[Any] = []
        self.seen: bytes | None = None

    async def receive(self) -> Any:
        if self.taken >= len(self.pieces):
            await asyncio.sleep(60)
        self.taken += 1
        more = self.taken < len(self.pieces)
        return {"type": "http.request", "body": self.pieces[self.taken - 1], "more_body": more}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def app(self, _scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.seen = body
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def ask(self, limits: Limits) -> int:
        scope = {"type": "http", "headers": self.headers}
        asyncio.run(RequestLimits(self.app, limits)(scope, self.receive, self.send))
        assert [message["type"] for message in self.sent] == [
            "http.response.start", "http.response.body",
        ]  # fmt: skip
        status = int(self.sent[0]["status"])
        if status != 200:
            assert self.seen is None
            assert json.loads(self.sent[1]["body"])["status"] == status
        return status


LIMITS = Limits(body=100, headers=3, header_bytes=200, seconds=0.05)


def test_what_is_within_the_limits_passes_unchanged() -> None:
    client = Client([b"a" * 60, b"b" * 40])
    assert client.ask(LIMITS) == 200
    assert client.seen == b"a" * 60 + b"b" * 40


def test_a_body_is_refused_at_the_limit_and_not_after() -> None:
    client = Client([b"a" * 60] * 1000)
    assert client.ask(LIMITS) == 413
    assert client.taken == 2


def test_a_length_that_is_too_large_is_refused_before_the_body() -> None:
    for length in ("101", "9" * 30, "-1", "x", ""):
        client = Client([b"a"], {"Content-Length": length})
        assert client.ask(LIMITS) == 413
        assert client.taken == 0


def test_too_many_or_too_long_headers_are_refused() -> None:
    assert Client([b""], {f"h{number}": "x" for number in range(4)}).ask(LIMITS) == 431
    assert Client([b""], {"h": "x" * 200}).ask(LIMITS) == 431


def test_a_slow_body_times_out() -> None:
    class Stalled(Client):
        async def receive(self) -> Any:
            await asyncio.sleep(60)

    assert Stalled([b""]).ask(LIMITS) == 408


def test_gzip_is_inflated_within_the_limits() -> None:
    packed, headers = gzip.compress(b"a" * 100), {"Content-Encoding": "gzip"}
    client = Client([packed[:10], packed[10:]], headers)
    assert client.ask(LIMITS) == 200
    assert client.seen == b"a" * 100
    assert Client([gzip.compress(b"a" * 101)], headers).ask(LIMITS) == 413
    assert Client([packed[:-4]], headers).ask(LIMITS) == 415
    assert Client([packed + packed], headers).ask(LIMITS) == 415
    assert Client([b"no gzip"], headers).ask(LIMITS) == 415
    assert Client([b"x"], {"Content-Encoding": "br"}).ask(LIMITS) == 415
    bomb = gzip.compress(bytes(10_000_000))
    assert Client([bomb], headers).ask(Limits(body=20_000_000)) == 413


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 131072, 200_000])
@pytest.mark.parametrize("piece", [1, 100, 100_000])
def test_what_was_packed_comes_back_whole(size: int, piece: int) -> None:
    body = bytes(n * n % 251 for n in range(size))
    packed, inflater = gzip.compress(body), Inflater(1_000_000, 100_000)
    made = [inflater.feed(packed[at : at + piece]) for at in range(0, len(packed), piece)]
    inflater.close()
    assert b"".join(made) == body


def test_a_bomb_is_refused_by_its_first_piece() -> None:
    packed, inflater = gzip.compress(bytes(50_000_000)), Inflater(100_000_000, 100)
    tracemalloc.start()
    with pytest.raises(EngineroomError, match="times its size"):
        inflater.feed(packed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000


def test_what_was_refused_is_let_go_at_once() -> None:
    """An error holds the frames that raised it: nothing may wait for the collector with a body."""

    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(20):
            client = Client([bytes(n) for n in (99_999, 100_000, 900_000)])
            assert client.ask(Limits(body=1_000_000)) == 413
            del client
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert held < 1_000_000


def test_a_bomb_takes_no_memory() -> None:
    bomb = gzip.compress(bytes(200_000_000))
    client = Client([bomb], {"Content-Encoding": "gzip"})
    tracemalloc.start()
    try:
        assert client.ask(Limits(body=500_000)) == 413
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5), st.booleans())
def test_any_body_is_passed_or_refused(pieces: list[bytes], packed: bool) -> None:
    client = Client(pieces, {"Content-Encoding": "gzip"} if packed else {})
    status = client.ask(LIMITS)
    if not packed:
        assert status == (200 if sum(map(len, pieces)) <= 100 else 413)
    else:
        assert status in {200, 413, 415}
