"""Responses of the API."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from engineroom.console.rest.pipeline import response_body


class Progress(BaseModel):
    """What an application stored with its job."""

    meta: dict[str, Any]


def test_text_that_utf8_cannot_encode_is_no_error_of_the_server() -> None:
    body = response_body(Progress(meta={"note\ud800": ["\udc00", 1]}))

    assert json.loads(body) == {"meta": {"note\ufffd": ["\ufffd", 1]}}
