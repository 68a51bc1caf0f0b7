"""Queries, headers and bodies against models: what does not fit is named and never repeated."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from engineroom.core.errors import EngineroomError, InvalidInputError, TooLargeError
from engineroom.core.validation.documents import UnreadableError
from engineroom.core.validation.models import (
    MAX_PARAMETERS,
    accepts,
    read_body,
    read_headers,
    read_query,
)
from engineroom.core.validation.requests import Problems


class Page(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)

    page_size: int = Field(default=20, ge=1, le=100)
    state: list[str] = []
    after: str | None = None


class Told(BaseModel):
    idempotency_key: str = Field(min_length=8)
    if_match: str | None = None
    accept: list[str] = []


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")

    count: int
    note: str = ""


def fields(caught: pytest.ExceptionInfo[InvalidInputError]) -> list[str]:
    return [problem.field for problem in caught.value.problems]


def test_a_query_is_a_model() -> None:
    assert read_query(Page, b"pageSize=5&state=a&state=b") == Page(page_size=5, state=["a", "b"])
    assert read_query(Page, "") == Page()
    assert read_query(Page, b"after=a%20b+c").after == "a b c"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (b"pageSize=0", "query.pageSize"),
        (b"pageSize=x", "query.pageSize"),
        (b"page_size=5", "query.page_size"),
        (b"pageSize=5&pageSize=6", "query.pageSize"),
        (b"unknown=1", "query.unknown"),
        (b"after=%ff", "query"),
    ],
)
def test_a_wrong_parameter_is_named(query: bytes, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_query(Page, query)
    assert fields(caught) == [field]


def test_the_number_of_parameters_is_bounded() -> None:
    with pytest.raises(TooLargeError):
        read_query(Page, "&".join(f"state={n}" for n in range(MAX_PARAMETERS + 1)))


def test_headers_are_a_model_and_others_are_left() -> None:
    given_ = [
        (b"Idempotency-Key", b"12345678"),
        (b"host", b"x"),
        (b"accept", b"a"),
        (b"accept", b"b"),
    ]
    assert read_headers(Told, given_) == Told(idempotency_key="12345678", accept=["a", "b"])
    for wrong in ([], given_[:1] * 2, [(b"idempotency-key", b"short")]):
        with pytest.raises(InvalidInputError) as caught:
            read_headers(Told, wrong)
        assert fields(caught) == ["header.idempotency_key"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"count": "1"}, "body.count"),
        ({"count": 1, "other": 2}, "body.other"),
        ({"count": True}, "body.count"),
        ([], "body"),
        ({}, "body.count"),
    ],
)
def test_a_wrong_body_is_named_and_not_repeated(body: Any, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_body(Order, json.dumps(body))
    assert fields(caught) == [field]
    with pytest.raises(InvalidInputError) as secret:
        read_body(Order, '{"count": "hunter2"}')
    assert "hunter2" not in str(secret.value)


def test_a_body_is_read_within_the_limits_of_documents() -> None:
    assert read_body(Order, b'{"count": 2, "note": "x"}') == Order(count=2, note="x")
    with pytest.raises(UnreadableError, match="twice"):
        read_body(Order, '{"count": 1, "count": 2}')


def test_a_decorated_handler_is_given_models_and_errors_become_answers() -> None:
    @accepts(query=Page, headers=Told, body=Order)
    async def order(request: Any, *, query: Page, headers: Told, body: Order) -> tuple[Any, ...]:
        del request
        return query.page_size, headers.idempotency_key, body.count

    async def ask(query: bytes) -> Any:
        scope = {
            "type": "http", "query_string": query, "headers": [(b"idempotency-key", b"k" * 8)],
        }  # fmt: skip

        async def body() -> bytes:
            return b'{"count": 3}'

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            sent.append(await order(SimpleNamespace(scope=scope, body=body)))

        await Problems(app)(scope, None, send)  # type: ignore[arg-type]
        return sent

    assert asyncio.run(ask(b"pageSize=7")) == [(7, "k" * 8, 3)]
    start, answer = asyncio.run(ask(b"pageSize=x"))
    assert start["status"] == 422
    assert json.loads(answer["body"])["errors"][0]["field"] == "query.pageSize"


@given(st.binary(max_size=200))
def test_any_query_and_body_is_a_model_or_refused(data: bytes) -> None:
    for ask in (lambda: read_query(Page, data), lambda: read_body(Order, data)):
        try:
            ask()
        except EngineroomError as error:
            assert 400 <= error.http_status < 500  # noqa: PT017
