"""Log lines: JSON in pods, with the ids of the current job, and without credentials.

Engineroom stores the ids of request and trace in the job's meta. While the job runs, this module
adds them to each record of the standard library's logging, in the worker and in the work horse, for
all loggers and formatters.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any

from engineroom_worker.observability.redaction import redact_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: The key of the ids in a job's meta.
META_KEY = "engineroom_context"
IDS = ("request_id", "trace_id", "span_id", "object", "job_id")
FORMATS = ("auto", "json", "console")

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}", re.ASCII)
# A worker runs one job at a time, so the ids are global; a work horse inherits them.
_ids: dict[str, str] = {}


def ids_of(meta: Any) -> dict[str, str]:
    """Return the valid ids in a job's meta, which any program may have written."""
    ids = meta.get(META_KEY) if isinstance(meta, dict) else None
    if not isinstance(ids, dict):
        return {}
    return {
        name: value
        for name in IDS
        if isinstance(value := ids.get(name), str) and _PLAIN.fullmatch(value)
    }


@contextlib.contextmanager
def bound(**ids: str) -> Iterator[None]:
    """Add ids to each log record of the block."""
    before = dict(_ids)
    _ids.update(ids)
    try:
        yield
    finally:
        _ids.clear()
        _ids.update(before)


class WorkerLogRecord(logging.LogRecord):
    """A record that gets the ids when it is formatted.

    It cannot get them on creation: logging refuses an ``extra`` with a name that the record already
    has, and RQ itself logs with ``job_id``. Values of the log call take precedence.
    """

    def getMessage(self) -> str:  # noqa: N802 - the library's name
        """Return the message; formatters call this before they read other attributes."""
        for name, value in _ids.items():
            self.__dict__.setdefault(name, value)
        return super().getMessage()


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object, with the keys of Engineroom's other processes."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "event": redact_text(record.getMessage()),
            "level": record.levelname.lower(),
            "logger": record.name,
            "timestamp": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        line.update({name: getattr(record, name) for name in IDS if hasattr(record, name)})
        if record.exc_info:
            line["exception"] = redact_text(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """Formats a record as text, for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return redact_text(super().format(record))


def configure(environment: Mapping[str, str] | None = None, stream: IO[str] | None = None) -> None:
    """Configure the process' logging by ``ENGINEROOM_LOG_FORMAT``: auto, json or console.

    "auto" means text on a terminal and JSON otherwise.
    """
    out = sys.stderr if stream is None else stream
    variables = os.environ if environment is None else environment
    log_format = variables.get("ENGINEROOM_LOG_FORMAT", "")
    as_text = log_format == "console" or (log_format != "json" and out.isatty())
    handler = logging.StreamHandler(out)
    handler.setFormatter(TextFormatter("%(asctime)s %(message)s") if as_text else JsonFormatter())
    logging.setLogRecordFactory(WorkerLogRecord)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
