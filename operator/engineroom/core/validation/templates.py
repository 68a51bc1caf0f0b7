"""Sandboxed rendering of untrusted Jinja2 templates.

Jinja2's sandbox blocks access to Python, but does not limit time and memory, and has had
vulnerabilities. So a separate process renders the templates, without files, sockets and
environment, with limited memory; it is killed after a time limit. Input is JSON, output is text.
Needs Jinja2 (extra ``templates``) and Linux. The process starts at first use, takes about 25 MiB
and half a millisecond for each template.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import struct
import subprocess  # nosec B404 - of this interpreter only
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineroom.core.errors import (
    BugError,
    Category,
    EngineroomError,
    InvalidInputError,
    Problem,
    TooLargeError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

#: Most seconds for the start of the process on a busy machine.
_START = 30.0


class TemplateError(InvalidInputError):
    """A template cannot be compiled or rendered; ``problems`` has line and cause."""

    code = "template"


class TemplateLimitError(EngineroomError):
    """A template exceeded its time or memory limit; make it simpler."""

    code = "template_limit"
    category = Category.VALIDATION
    http_status = 422


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """Limits: characters of source and output, bytes of data, seconds, bytes of memory."""

    source: int = 16 * 1024
    output: int = 64 * 1024
    data: int = 256 * 1024
    seconds: float = 1.0
    memory: int = 64 * 1024 * 1024


class Templates:
    """Compiles and renders templates in a separate process. Thread-safe.

    ``html`` escapes values for HTML. An undefined name is an error. Templates have no include,
    import or extends; loops run over at most 100,000 values.
    """

    def __init__(self, limits: TemplateLimits | None = None, *, html: bool = False) -> None:
        self._limits = limits or TemplateLimits()
        self._html = html
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def check(self, source: str, names: Collection[str] | None = None, *, path: str = "") -> None:
        """Raise TemplateError unless it compiles and uses only ``names`` (None permits all)."""
        answer = self._ask({"do": "check", "source": self._bounded(source, path)}, path)
        unknown = sorted(set(answer["names"]) - set(names)) if names is not None else []
        if unknown:
            defined = ", ".join(sorted(names or ())) or "none"
            problem = f"uses {unknown[0][:60]}"
            raise TemplateError([Problem(path or "template", problem, f"there is: {defined}")])

    def render(self, source: str, data: Mapping[str, Any], *, path: str = "") -> str:
        """Render a template with ``data``, which must be JSON values; return the text.

        Raises TemplateError, TemplateLimitError, and TooLargeError if source, data or output exceed
        their limits.
        """
        try:
            text = json.dumps(data, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            problem = Problem(path or "data", "is not JSON", "pass plain values")
            raise TemplateError([problem]) from error
        if len(text) > self._limits.data:
            raise TooLargeError(f"the data has over {self._limits.data} bytes; pass less")
        question = {"do": "render", "source": self._bounded(source, path), "data": text}
        return str(self._ask(question, path)["text"])

    async def render_async(self, source: str, data: Mapping[str, Any], *, path: str = "") -> str:
        """Render without blocking the event loop; see ``render``."""
        return await asyncio.to_thread(self.render, source, data, path=path)

    def close(self) -> None:
        """Stop the process; the next use starts a new one."""
        with self._lock:
            self._end()

    def __enter__(self) -> Templates:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _bounded(self, source: str, path: str) -> str:
        if len(source) > self._limits.source:
            problem = f"has {len(source)} characters"
            fix = f"write at most {self._limits.source}"
            raise TemplateError([Problem(path or "template", problem, fix)])
        return source

    def _ask(self, question: dict[str, Any], path: str) -> dict[str, Any]:
        limits = self._limits
        with self._lock:
            child = self._start_process()
            try:
                _write(child, json.dumps(question).encode())
                answer = _read(child, limits.seconds, most=limits.output * 8 + 65536)
            except _SilentError as error:
                self._end()
                raise TemplateLimitError(
                    f"the template took over {limits.seconds:g} s or all of its memory; "
                    "make it simpler"
                ) from error
            if answer.pop("last", False):
                self._end()
        match answer.pop("is"):
            case "well":
                return answer
            case "memory":
                raise TemplateLimitError("the template took all of its memory; make it simpler")
            case "long":
                raise TooLargeError(f"the template makes over {limits.output} characters")
            case _:
                problem = f"line {answer['line']}: {answer['problem']}"
                raise TemplateError([Problem(path or "template", problem, "correct the template")])

    def _start_process(self) -> subprocess.Popen[bytes]:
        child = self._child
        if child is not None and self._owner == os.getpid() and child.poll() is None:
            return child
        if self._owner == os.getpid():
            self._end()
        settings = {
            "output": self._limits.output,
            "memory": self._limits.memory,
            "seconds": self._limits.seconds,
            "html": self._html,
            "path": sys.path,
        }
        child = subprocess.Popen(  # nosec B603 - a list without a word from outside
            [sys.executable, "-I", "-S", "-c", _BOOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LANG": "C.UTF-8"},
            cwd="/",
            close_fds=True,
        )
        self._child, self._owner = child, os.getpid()
        try:
            _write(child, json.dumps(settings).encode())
            ready = _read(child, _START, most=65536)
        except _SilentError as error:
            self._end()
            raise BugError("the process for templates does not start") from error
        if ready.get("is") != "ready":
            self._end()
            raise BugError(f"the process for templates does not start: {ready.get('problem')}")
        return child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None or self._owner != os.getpid():
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


class _SilentError(Exception):
    """The process died, timed out, or sent an invalid answer."""


#: -S leaves out the site packages; the settings carry the parent's path instead.
_BOOT = (
    "import json, struct, sys\n"
    "size, = struct.unpack('>I', sys.stdin.buffer.read(4))\n"
    "settings = json.loads(sys.stdin.buffer.read(size))\n"
    "sys.path[:] = settings['path']\n"
    "from engineroom.core.validation.template_process import serve\n"
    "serve(settings)\n"
)


def _write(child: subprocess.Popen[bytes], message: bytes) -> None:
    assert child.stdin is not None  # noqa: S101 - opened with a pipe
    try:
        child.stdin.write(struct.pack(">I", len(message)) + message)
        child.stdin.flush()
    except OSError as error:
        raise _SilentError from error


def _read(child: subprocess.Popen[bytes], seconds: float, *, most: int) -> dict[str, Any]:
    """Read one answer within ``seconds``, of at most ``most`` bytes: the process is untrusted."""
    assert child.stdout is not None  # noqa: S101 - opened with a pipe
    descriptor, until, data = child.stdout.fileno(), time.monotonic() + seconds, b""
    wanted = 4
    while len(data) < wanted:
        readable, _, _ = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
        part = os.read(descriptor, min(65536, wanted - len(data))) if readable else b""
        if not part:
            raise _SilentError
        data += part
        if len(data) == 4 == wanted:
            wanted += struct.unpack(">I", data)[0]
            if wanted > most:
                raise _SilentError
    try:
        answer = json.loads(data[4:])
    except ValueError as error:
        raise _SilentError from error
    if not isinstance(answer, dict):
        raise _SilentError
    return answer
