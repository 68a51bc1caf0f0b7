"""Ids follow a request into the worker's log lines; repetition is told once."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from engineroom.core.clock import FakeClock
from engineroom.core.context import RequestContext, bound, carried, from_headers, plain, taken
from engineroom.core.logging import configure, get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    out = io.StringIO()
    configure("INFO", "json", out)
    yield out
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_ids_go_from_the_request_through_meta_to_the_worker(stream: io.StringIO) -> None:
    with bound(request_id="r-1", trace_id="a" * 32):
        get_logger("web").info("enqueued")
        meta = json.loads(json.dumps(carried()))
    get_logger("web").info("outside")
    with taken(meta, job_id="j-1"):
        logging.getLogger("worker").warning("at work")
    web, outside, worker = lines(stream)
    assert web["request_id"] == worker["request_id"] == "r-1"
    assert worker["job_id"] == "j-1"
    assert "request_id" not in outside


def test_tasks_do_not_see_each_others_ids() -> None:
    async def one(name: str) -> dict[str, Any]:
        with bound(request_id=name):
            await asyncio.sleep(0)
            return carried()

    async def main() -> list[dict[str, Any]]:
        return await asyncio.gather(one("a"), one("b"))

    first, second = asyncio.run(main())
    assert first != second


def test_what_is_no_id_is_not_taken_over() -> None:
    for odd in ("a b", "a\nb", "", "x" * 129, "é", "{}"):
        assert plain({"request_id": odd}) == {}
        assert from_headers(odd, None)["request_id"] != odd
    with taken({"engineroom_context": {"request_id": "x\ny", "other": "z"}}):
        assert carried() == {}
    with taken({"engineroom_context": "text"}), taken(None):
        assert carried() == {}
    with pytest.raises(ValueError, match="password"), bound(password="x"):
        pass


def test_a_trace_is_read_as_the_standard_says() -> None:
    good = f"00-{'a' * 32}-{'b' * 16}-01"
    assert from_headers("r", good) == {
        "request_id": "r", "trace_id": "a" * 32, "span_id": "b" * 16,
    }  # fmt: skip
    for bad in (f"00-{'0' * 32}-{'b' * 16}-01", f"ff-{'a' * 32}-{'b' * 16}-01", good[:-1], "x"):
        assert from_headers("r", bad) == {"request_id": "r"}


@given(st.text(max_size=200), st.text(max_size=80))
def test_any_header_gives_a_plain_id(request_id: str, trace: str) -> None:
    ids = from_headers(request_id, trace)
    assert plain(ids) == ids
    assert ids["request_id"]


def test_the_middleware_answers_with_the_id_and_logs_under_it(stream: io.StringIO) -> None:
    sent: list[Any] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        get_logger("app").info("served")
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "headers": [(b"X-Request-Id", b"r-7")]}
    asyncio.run(RequestContext(app)(scope, None, send))  # type: ignore[arg-type]
    assert (b"x-request-id", b"r-7") in sent[0]["headers"]
    assert lines(stream)[0]["request_id"] == "r-7"


def test_repetition_is_left_out_and_counted() -> None:
    out, clock = io.StringIO(), FakeClock()
    configure("INFO", "json", out, repeat=(2, 10.0), clock=clock)
    for number in range(7):
        get_logger("x").info("redis away", attempt=number)
        logging.getLogger("y").warning("%s away", number)
    get_logger("x").info("other")
    clock.advance(10)
    get_logger("x").info("redis away", attempt=8)
    logging.getLogger("y").warning("%s away", 8)
    written = lines(out)
    assert [line["event"] for line in written] == [
        "redis away", "0 away", "redis away", "1 away", "other", "redis away", "8 away",
    ]  # fmt: skip
    assert [line.get("repeated") for line in written[-2:]] == [5, 5]
