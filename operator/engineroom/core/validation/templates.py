"""Templates that others wrote, rendered where they can do no harm.

Jinja2's sandbox keeps a template away from Python, but not from time and memory, and it has had
holes. So rendering happens in a process of its own that has no file, no socket, no environment and
a bound on its memory, and that is killed when it takes too long. What goes in is JSON, what comes
out is text. Needs Jinja2 (extra ``templates``) and Linux; the process starts with the first use,
takes some 25 MiB and then half a millisecond a template.
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

#: Seconds that the process may take to start, on a machine that is busy.
_START = 30.0


class TemplateError(InvalidInputError):
    """A template cannot be compiled or rendered; ``problems`` says where and why."""

    code = "template"


class TemplateLimitError(EngineroomError):
    """A template took too long or too much memory; make it simpler."""

    code = "template_limit"
    category = Category.VALIDATION
    http_status = 422


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """Characters of a template and of what it makes, bytes of data, seconds, bytes of memory."""

    source: int = 16 * 1024
    output: int = 64 * 1024
    data: int = 256 * 1024
    seconds: float = 1.0
    memory: int = 64 * 1024 * 1024


class Templates:
    """Compiles and renders templates in a process of its own. For any number of threads.

    ``html``: values are escaped as in a page. A name that is not in the data is an error. There is
    no include, import or extends; loops go over at most 100,000 values.
    """

    def __init__(self, limits: TemplateLimits | None = None, *, html: bool = False) -> None:
        self._limits = limits or TemplateLimits()
        self._html = html
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def check(self, source: str, names: Collection[str] | None = None, *, path: str = "") -> None:
        """Raises TemplateError unless it compiles and uses no name but ``names`` (None: any)."""
        answer = self._ask({"do": "check", "source": self._bounded(source, path)}, path)
        unknown = sorted(set(answer["names"]) - set(names)) if names is not None else []
        if unknown:
            known = ", ".join(sorted(names or ())) or "none"
            told = Problem(path or "template", f"uses {unknown[0][:60]}", f"there is: {known}")
            raise TemplateError([told])

    def render(self, source: str, data: Mapping[str, Any], *, path: str = "") -> str:
        """The text that a template makes of ``data``, which must be JSON.

        Raises TemplateError, TemplateLimitError, and TooLargeError where source, data or output
        pass their limit.
        """
        try:
            said = json.dumps(data, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            told = Problem(path or "data", "is no JSON", "pass plain values")
            raise TemplateError([told]) from error
        if len(said) > self._limits.data:
            raise TooLargeError(f"the data has over {self._limits.data} bytes; pass less")
        question = {"do": "render", "source": self._bounded(source, path), "data": said}
        return str(self._ask(question, path)["text"])

    async def render_async(self, source: str, data: Mapping[str, Any], *, path: str = "") -> str:
        """``render`` without holding up the event loop."""
        return await asyncio.to_thread(self.render, source, data, path=path)

    def close(self) -> None:
        """End the process; the next use starts another one."""
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
            child = self._started()
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

    def _started(self) -> subprocess.Popen[bytes]:
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
    """The process died, or did not answer in time, or answered what nobody asked."""


#: -S leaves the site packages out; the parent's own path is told instead.
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
    """One answer within ``seconds``, of at most ``most`` bytes: who answers is not trusted."""
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
