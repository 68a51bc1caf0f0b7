"""Log lines: JSON in pods, with the ids of the job in hand, and without credentials.

Who enqueued a job through Engineroom left the ids of its request and trace in the job's meta. They
are put on every record of the standard library's logging while the job is in hand, in the worker
and in the work horse, whoever logs and however it is formatted.
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

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Where the ids stand in a job's meta.
META_KEY = "engineroom_context"
IDS = ("request_id", "trace_id", "span_id", "object", "job_id")
FORMATS = ("auto", "json", "console")

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}", re.ASCII)
_SECRETS = (
    (re.compile(r"\b([a-z][a-z0-9+.-]*://)[^\s/?#'\"]*@", re.IGNORECASE), r"\1[redacted]@"),
    (re.compile(r"\b(bearer|basic)\s+[a-z0-9._~+/=-]{8,}", re.IGNORECASE), r"\1 [redacted]"),
    (re.compile(r"\berk_[\w-]{8,}"), "[redacted]"),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), "[redacted]"),
    (
        re.compile(
            r"((?:password|passwd|pwd|secret|token|(?:api|access|secret)[_-]?key)['\"]?\s*[=:]\s*"
            r"['\"]?)[^\s'\",&;)}\]]+",
            re.IGNORECASE,
        ),
        r"\1[redacted]",
    ),
)

# One job at a time: the ids are the process', and a work horse has them from its worker.
_ids: dict[str, str] = {}


def ids_of(meta: Any) -> dict[str, str]:
    """The ids in a job's meta; what is no plain id is left out, for anybody may have written it."""
    found = meta.get(META_KEY) if isinstance(meta, dict) else None
    if not isinstance(found, dict):
        return {}
    return {
        name: value
        for name in IDS
        if isinstance(value := found.get(name), str) and _PLAIN.fullmatch(value)
    }


@contextlib.contextmanager
def bound(**ids: str) -> Iterator[None]:
    """Put ids on every log record of the block."""
    before = dict(_ids)
    _ids.update(ids)
    try:
        yield
    finally:
        _ids.clear()
        _ids.update(before)


class Record(logging.LogRecord):
    """A record that takes the ids over when it is formatted.

    Not when it is made: logging refuses an ``extra`` of a name that a record has already, and RQ
    itself logs with ``job_id``. What is said with a line wins.
    """

    def getMessage(self) -> str:  # noqa: N802 - its name there
        """The message; every formatter asks for it before it looks at the rest."""
        for name, value in _ids.items():
            self.__dict__.setdefault(name, value)
        return super().getMessage()


class JsonFormatter(logging.Formatter):
    """One object a line, with the keys that the other processes of Engineroom use."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = datetime.fromtimestamp(record.created, UTC)
        said: dict[str, Any] = {
            "event": redacted(record.getMessage()),
            "level": record.levelname.lower(),
            "logger": record.name,
            "timestamp": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        said.update({name: getattr(record, name) for name in IDS if hasattr(record, name)})
        if record.exc_info:
            said["exception"] = redacted(self.formatException(record.exc_info))
        return json.dumps(said, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """For people, at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return redacted(super().format(record))


def redacted(text: str) -> str:
    """``text`` without credentials; the same patterns as in ``engineroom.core.redaction``."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def configure(environment: Mapping[str, str] | None = None, stream: IO[str] | None = None) -> None:
    """Set up logging for the process: ``ENGINEROOM_LOG_FORMAT`` auto, json or console.

    "auto" is text at a terminal and JSON anywhere else.
    """
    out = sys.stderr if stream is None else stream
    said = (os.environ if environment is None else environment).get("ENGINEROOM_LOG_FORMAT", "")
    as_text = said == "console" or (said != "json" and out.isatty())
    handler = logging.StreamHandler(out)
    handler.setFormatter(TextFormatter("%(asctime)s %(message)s") if as_text else JsonFormatter())
    logging.setLogRecordFactory(Record)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
