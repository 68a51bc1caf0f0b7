"""Ids on the log lines of a job, without getting into the way of whoever logs."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING

import pytest

from engineroom_worker.observability import logs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root, factory = logging.getLogger(), logging.getLogRecordFactory()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    root.handlers.clear()
    logs.configure({"ENGINEROOM_LOG_FORMAT": "json"}, stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    logging.setLogRecordFactory(factory)


def test_a_line_of_a_job_has_its_ids_and_the_next_one_none(out: io.StringIO) -> None:
    with logs.bound(job_id="one", request_id="r"):
        logging.getLogger("shop").info("charged %s", 7)
    logging.getLogger("shop").info("idle")
    first, second = map(json.loads, out.getvalue().splitlines())
    assert (first["event"], first["job_id"], first["request_id"]) == ("charged 7", "one", "r")
    assert "job_id" not in second


def test_who_logs_an_id_himself_is_not_refused_and_is_right(out: io.StringIO) -> None:
    # RQ does when a job fails, and applications have a request_id of their own.
    with logs.bound(job_id="one", request_id="r"):
        logging.getLogger("rq.worker").error("failed", extra={"job_id": "two", "queue": "default"})
    said = json.loads(out.getvalue())
    assert (said["job_id"], said["request_id"]) == ("two", "r")


def test_other_formatters_have_them_too(out: io.StringIO) -> None:
    other = io.StringIO()
    handler = logging.StreamHandler(other)
    handler.setFormatter(logging.Formatter("%(request_id)s %(message)s"))
    logger = logging.getLogger("shop")
    logger.addHandler(handler)
    try:
        with logs.bound(request_id="r"):
            logger.info("charged")
    finally:
        logger.removeHandler(handler)
    assert other.getvalue() == "r charged\n"
