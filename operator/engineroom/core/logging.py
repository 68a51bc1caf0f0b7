"""Logging: a constant message plus keys, as JSON in pods and as text on a terminal.

Secrets are redacted. Libraries that log through the standard library (Kopf, aiohttp, redis) use the
same handler.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import OrderedDict
from typing import IO, TYPE_CHECKING, Any, Literal, cast

from engineroom.core.clock import SystemClock
from engineroom.core.redaction import REDACTED, hides, is_secret_key, redact, redact_text

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    import structlog

    from engineroom.core.clock import Clock

__all__ = [
    "REDACTED",
    "LogFormat",
    "configure",
    "get_logger",
    "is_secret_key",
    "redact",
    "redact_text",
]

LogFormat = Literal["auto", "json", "console"]


def _redact_event(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Redact an event; a structlog processor that runs after tracebacks are formatted."""
    for key, value in event.items():
        if key.startswith("_"):
            continue  # keys that structlog uses internally
        event[key] = REDACTED if hides(key, value) else redact(value)
    return event


def _ids_of_record(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Add the current job's ids, which Engineroom's worker put on the record (a processor)."""
    record = event.get("_record")
    for name in ("request_id", "trace_id", "span_id", "object", "job_id"):
        value = getattr(record, name, None)
        if isinstance(value, str):
            event.setdefault(name, value)
    return event


#: Default limit on repeated messages: lines, and seconds.
REPEATED = 100
REPEAT_SECONDS = 10.0


class _Repetition(logging.Filter):
    """Passes ``burst`` lines of the same logger, level and message in ``seconds``.

    The first line after a pause has the number of dropped lines in ``repeated``.
    """

    #: Most messages remembered. Messages are constants, so there are few.
    CAPACITY = 1_000

    def __init__(self, burst: int, seconds: float, clock: Clock) -> None:
        super().__init__()
        self._burst = burst
        self._seconds = seconds
        self._clock = clock
        self._counts: OrderedDict[tuple[str, int, str], tuple[float, int]] = OrderedDict()
        self._counts_lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write the line."""
        message = record.msg.get("event") if isinstance(record.msg, dict) else record.msg
        key = (record.name, record.levelno, str(message))
        now = self._clock.monotonic()
        with self._counts_lock:
            began, count = self._counts.pop(key, (now, 0))
            left_out = 0
            if now - began >= self._seconds:
                left_out = max(0, count - self._burst)
                began, count = now, 0
            self._counts[key] = (began, count + 1)
            if len(self._counts) > self.CAPACITY:
                self._counts.popitem(last=False)
        if left_out:
            if isinstance(record.msg, dict):
                record.msg = {**record.msg, "repeated": left_out}
            else:
                record.repeated = left_out
        return count < self._burst


def configure(
    level: str = "INFO",
    style: LogFormat = "auto",
    stream: IO[str] | None = None,
    *,
    repeat: tuple[int, float] | None = None,
    clock: Clock | None = None,
) -> None:
    """Set up logging for the process; may be called again.

    ``repeat`` is (lines, seconds): at most that many lines of one message are written in that time,
    and the next line has the number of dropped ones in ``repeated``. None or 0 lines: no limit.

    ``style`` "auto" is text on a terminal and JSON anywhere else. ``stream`` defaults to standard
    error.
    """
    import structlog

    out = stream if stream is not None else sys.stderr
    shared = _shared_processors()
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    console = style == "console" or (style == "auto" and out.isatty())
    handler.setFormatter(_formatter(shared, console=console, colors=out.isatty()))
    if repeat is not None and repeat[0]:
        handler.addFilter(_Repetition(*repeat, clock or SystemClock()))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


def _shared_processors() -> list[structlog.typing.Processor]:
    """Return the processors of lines by structlog and by the standard library alike."""
    import structlog

    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
    ]


def _formatter(
    shared: list[structlog.typing.Processor], *, console: bool, colors: bool
) -> logging.Formatter:
    import structlog

    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=colors)
        if console
        else structlog.processors.JSONRenderer()
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            _ids_of_record,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _redact_event,
            renderer,
        ],
    )


class _LazyLogger:
    """A logger that imports structlog on first use, which keeps the import of modules fast."""

    __slots__ = ("_logger", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._logger: Any = None

    def __getattr__(self, attribute: str) -> Any:
        if self._logger is None:
            import structlog

            self._logger = structlog.stdlib.get_logger(self._name)
        return getattr(self._logger, attribute)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module; ``name`` is its ``__name__``."""
    return cast("structlog.stdlib.BoundLogger", _LazyLogger(name))
