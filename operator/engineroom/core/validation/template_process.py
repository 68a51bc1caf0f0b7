"""The main program of the process that ``templates`` starts.

It loads every module that a filter may import later, limits its own files and memory, and serves
templates from standard input until that ends.
"""

from __future__ import annotations

import json
import resource
import signal
import struct
import sys
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, meta
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Most characters of a message about a template.
_MAX_MESSAGE = 300
#: Seconds added to the time limit, which let the parent act first.
_GRACE = 1.0


def environment(*, html: bool) -> ImmutableSandboxedEnvironment:
    """Return the sandbox: without a loader, so without include, and without Python's globals."""
    sandbox = ImmutableSandboxedEnvironment(
        autoescape=html, undefined=StrictUndefined, keep_trailing_newline=True, cache_size=0
    )
    sandbox.globals = {name: sandbox.globals[name] for name in ("range", "namespace")}
    # Filters that would access attributes of values.
    for name in ("attr", "pprint"):
        sandbox.filters.pop(name, None)
    return sandbox


def serve(settings: dict[str, Any]) -> None:
    """Answer requests until standard input ends."""
    try:
        sandbox = environment(html=settings["html"])
        _warm(sandbox)
        _confine(settings["memory"])
    except Exception as error:  # noqa: BLE001 - reported to the parent, which raises
        _answer({"is": "broken", "problem": str(error)[:_MAX_MESSAGE]})
        return
    _answer({"is": "ready"})
    while len(head := sys.stdin.buffer.read(4)) == 4:
        question = json.loads(sys.stdin.buffer.read(struct.unpack(">I", head)[0]))
        # Ends an endless template even if the parent died.
        signal.setitimer(signal.ITIMER_REAL, settings["seconds"] + _GRACE)
        answer = _outcome(sandbox, question, settings["output"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        _answer(answer)


def _outcome(
    sandbox: ImmutableSandboxedEnvironment, question: dict[str, Any], most: int
) -> dict[str, Any]:
    try:
        if question["do"] == "check":
            tree = sandbox.parse(question["source"])
            sandbox.from_string(question["source"])
            return {"is": "well", "names": sorted(meta.find_undeclared_variables(tree))[:1000]}
        template = sandbox.from_string(question["source"])
        parts, length = [], 0
        for part in template.generate(json.loads(question["data"])):
            length += len(part)
            if length > most:
                return {"is": "long", "last": True}
            parts.append(part)
        return {"is": "well", "text": "".join(parts)}
    except MemoryError:
        return {"is": "memory", "last": True}
    except RecursionError:
        return {"is": "wrong", "line": 1, "problem": "is nested too deep", "last": True}
    except TemplateSyntaxError as error:
        return {
            "is": "wrong",
            "line": error.lineno,
            "problem": (error.message or "")[:_MAX_MESSAGE],
        }
    except SecurityError:
        return {"is": "wrong", "line": 1, "problem": "asks for what is not allowed"}
    except TemplateError as error:
        return {"is": "wrong", "line": _line(error), "problem": str(error)[:_MAX_MESSAGE]}
    except Exception as error:  # noqa: BLE001 - a filter may raise anything
        problem = f"{type(error).__name__}: {error}"[:_MAX_MESSAGE]
        return {"is": "wrong", "line": _line(error), "problem": problem}


def _line(error: BaseException) -> int:
    """Return the line of the template that raised the error."""
    line, trace = 1, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _warm(sandbox: ImmutableSandboxedEnvironment) -> None:
    """Load the modules that filters import on first use, while files can still be opened."""
    import urllib.parse  # noqa: F401

    sample = (
        "{{ ['b','a']|sort|join(',')|upper|urlencode|wordwrap(10)|indent }}{{ {'a':1}|tojson }}"
        "{{ [1]|random }}{{ [1,2]|batch(2)|list }}{{ 1.5|round|filesizeformat }}"
        "{{ 'x'|e|striptags }}"
        "{{ [{'a':1}]|groupby('a')|list }}{{ 'http://a.b'|urlize }}{{ '%s'|format(1) }}"
        "{{ [1]|sum }}{{ {'a':1}|xmlattr }}{{ 'a b'|title|truncate(9) }}{{ {'b':1}|dictsort }}"
    )
    sandbox.from_string(sample).render()
    for wrong in ("{{ x }}", "{{ 1 // 0 }}", "{% if %}"):
        _outcome(sandbox, {"do": "render", "source": wrong, "data": "{}"}, 100)
    _outcome(sandbox, {"do": "check", "source": "{% for a in b %}{% endfor %}"}, 100)


def _confine(memory: int) -> None:
    with open("/proc/self/statm") as file:  # noqa: PTH123 - pathlib would stay in memory
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The three standard streams stay open; no other file, socket or process can be opened.
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def _answer(message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    sys.stdout.buffer.write(struct.pack(">I", len(data)) + data)
    sys.stdout.buffer.flush()
