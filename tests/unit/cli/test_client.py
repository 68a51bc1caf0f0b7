"""The adapter's own: answers of an API server as errors with what, why and fix."""

from __future__ import annotations

import json

import pytest

from engineroom.cli.connections.api_server_errors import answer_error
from engineroom.cli.errors import (
    CliError,
    ExitCode,
    ForbiddenError,
    NotFoundError,
    RefusedError,
    UnreachableError,
)

SERVER = "https://192.0.2.10:6443"


def answer(message: str, **details: object) -> str:
    return json.dumps({"kind": "Status", "message": message, "details": details})


@pytest.mark.parametrize(
    ("status", "body", "kind", "code", "fix"),
    [
        (0, "SSLError", UnreachableError, 3, "check that the cluster runs"),
        (400, answer("bad"), RefusedError, 1, "change what the message names"),
        (401, answer("Unauthorized"), ForbiddenError, 5, "log in again"),
        (403, answer("User x cannot"), ForbiddenError, 5, "ask an administrator"),
        (403, answer('admission webhook "w" denied the request: no'), RefusedError, 1, "change"),
        (500, answer("Internal: failed calling webhook"), RefusedError, 1, "`engineroom status`"),
        (404, "404 page not found\n", NotFoundError, 4, "helm install engineroom"),
        (404, answer("not found", name="mail"), NotFoundError, 4, "`engineroom get pools -A`"),
        (409, answer("conflict"), RefusedError, 1, "read the present object"),
        (422, answer("spec.x: Invalid value"), RefusedError, 1, "nothing was written"),
        (503, "", UnreachableError, 3, "try again"),
    ],
)
def test_each_answer_has_its_exit_code_and_fix(
    status: int, body: str, kind: type[CliError], code: int, fix: str
) -> None:
    error = answer_error("WorkerPool default/mail", status, "Reason", body, SERVER)
    assert type(error) is kind
    assert error.exit_code == code
    assert fix in error.fix
    assert error.why


def test_an_answer_in_bytes_that_is_no_json_is_shown_as_it_is() -> None:
    error = answer_error("x", 500, "Internal", b"boom \xff", SERVER)
    assert error.why == "boom \ufffd"


def test_every_exit_code_is_explained() -> None:
    assert [code.value for code in ExitCode] == list(range(6))
    assert all(code.meaning for code in ExitCode)
