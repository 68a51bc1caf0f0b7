"""What runs in the process that ``templates`` starts; nothing else imports it.

Everything that a filter may import later is loaded first; then the process gives up its files and
its memory beyond the bound, and reads templates from its standard input until that ends.
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

#: Of a message about a template.
_TOLD = 300
#: Seconds by which the process outlives its limit, so that the parent is the first to know.
_GRACE = 1.0


def environment(*, html: bool) -> ImmutableSandboxedEnvironment:
    """The sandbox: no loader, so no include; nothing of Python's among the globals."""
    made = ImmutableSandboxedEnvironment(
        autoescape=html, undefined=StrictUndefined, keep_trailing_newline=True, cache_size=0
    )
    made.globals = {name: made.globals[name] for name in ("range", "namespace")}
    # They would call what an attribute of a value is, or make a template of data.
    for name in ("attr", "pprint"):
        made.filters.pop(name, None)
    return made


def serve(settings: dict[str, Any]) -> None:
    """Answer until standard input ends."""
    try:
        made = environment(html=settings["html"])
        _warm(made)
        _confine(settings["memory"])
    except Exception as error:  # noqa: BLE001 - told to the parent, which raises
        _answer({"is": "broken", "problem": str(error)[:_TOLD]})
        return
    _answer({"is": "ready"})
    while len(head := sys.stdin.buffer.read(4)) == 4:
        question = json.loads(sys.stdin.buffer.read(struct.unpack(">I", head)[0]))
        # Should the parent be gone, nobody else ends a loop.
        signal.setitimer(signal.ITIMER_REAL, settings["seconds"] + _GRACE)
        answer = _outcome(made, question, settings["output"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        _answer(answer)


def _outcome(
    made: ImmutableSandboxedEnvironment, question: dict[str, Any], most: int
) -> dict[str, Any]:
    try:
        if question["do"] == "check":
            tree = made.parse(question["source"])
            made.from_string(question["source"])
            return {"is": "well", "names": sorted(meta.find_undeclared_variables(tree))[:1000]}
        template = made.from_string(question["source"])
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
        return {"is": "wrong", "line": error.lineno, "problem": (error.message or "")[:_TOLD]}
    except SecurityError:
        return {"is": "wrong", "line": 1, "problem": "asks for what is not allowed"}
    except TemplateError as error:
        return {"is": "wrong", "line": _line(error), "problem": str(error)[:_TOLD]}
    except Exception as error:  # noqa: BLE001 - a filter may raise anything
        problem = f"{type(error).__name__}: {error}"[:_TOLD]
        return {"is": "wrong", "line": _line(error), "problem": problem}


def _line(error: BaseException) -> int:
    """The line of the template in which it was raised."""
    found, trace = 1, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            found = trace.tb_lineno
        trace = trace.tb_next
    return found


def _warm(made: ImmutableSandboxedEnvironment) -> None:
    """Load what filters import when they are first used: later no file can be opened."""
    import urllib.parse  # noqa: F401

    sample = (
        "{{ ['b','a']|sort|join(',')|upper|urlencode|wordwrap(10)|indent }}{{ {'a':1}|tojson }}"
        "{{ [1]|random }}{{ [1,2]|batch(2)|list }}{{ 1.5|round|filesizeformat }}"
        "{{ 'x'|e|striptags }}"
        "{{ [{'a':1}]|groupby('a')|list }}{{ 'http://a.b'|urlize }}{{ '%s'|format(1) }}"
        "{{ [1]|sum }}{{ {'a':1}|xmlattr }}{{ 'a b'|title|truncate(9) }}{{ {'b':1}|dictsort }}"
    )
    made.from_string(sample).render()
    for wrong in ("{{ x }}", "{{ 1 // 0 }}", "{% if %}"):
        _outcome(made, {"do": "render", "source": wrong, "data": "{}"}, 100)
    _outcome(made, {"do": "check", "source": "{% for a in b %}{% endfor %}"}, 100)


def _confine(memory: int) -> None:
    with open("/proc/self/statm") as file:  # noqa: PTH123 - pathlib would stay in memory
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The three that are open stay open; there will be no other file, socket or process.
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def _answer(message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    sys.stdout.buffer.write(struct.pack(">I", len(data)) + data)
    sys.stdout.buffer.flush()
