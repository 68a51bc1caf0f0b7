"""Templates that want out: of the sandbox, of their time, of their memory. None gets anything."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jinja2.exceptions import SecurityError
from jinja2.sandbox import SandboxedEnvironment

from engineroom.core.errors import EngineroomError, TooLargeError
from engineroom.core.validation import template_process
from engineroom.core.validation.templates import (
    TemplateError,
    TemplateLimitError,
    TemplateLimits,
    Templates,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA: dict[str, Any] = {
    "pool": {"name": "mail", "replicas": 3},
    "queues": ["a", "b"],
    "text": "<b>",
}

#: Ways out of a sandbox that were published: Jinja2's own advisories, collections of injections.
ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ [''|string]|map(attribute='__class__')|first|string }}",
    "{{ [text]|map('attr', '__class__')|list }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ ('{0.__class__}'.format)('') }}",
    "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "{{ ['{0.__class__}']|map('format', '')|list }}",
    "{{ self._TemplateReference__context }}",
    "{{ self.__init__.__globals__ }}",
    "{{ range.__init__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace.__class__ }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ url_for.__globals__ }}",
    "{{ config }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ request.application.__globals__ }}",
    "{{ pool.pop('name') }}",
    "{{ pool.update({'a': 1}) }}",
    "{{ queues.append(1) }}",
    "{{ queues.sort() }}",
    "{{ (1).__add__ }}",
    "{{ text.encode().__class__ }}",
    "{{ joined.__class__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% from 'os' import system %}",
    "{% extends 'base' %}",
    "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{{ m() }}",
    "{% macro m() %}{% endmacro %}{{ m.__globals__ }}{{ m._func.__globals__ }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{{ (x for x in []).gi_frame }}",
    "{% do 1 %}",
    "{{ __import__('os') }}",
    "{{ open('/etc/passwd') }}",
    "{% raw %}{% endraw %}{{ context.environment }}",
    "{{ queues|map('call')|list }}",
    "{{ text.__init_subclass__ }}",
    "{%- set ns = namespace() -%}{%- set ns.__init__ = 1 -%}{{ ns.__class__ }}",
)

#: Templates that take what they can, by what.
GREEDY = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**9 }}",
    "{{ [0] * 10**9 }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ 'a'|center(999999999) }}",
    "{{ (9**9**6)|string }}",
    "{{ 7 ** 7 ** 8 }}",
    "{% set x = namespace(a='aaaa') %}{% for i in range(40) %}{% set x.a=x.a~x.a %}{% endfor %}",
    "{{ queues|batch(99999999, 'x')|list }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ '" + "a" * 5000 + "'|wordwrap(1)|replace('a', 'b' * 90000) }}",
    "{{ ('x' * 60000)|urlize|urlize|urlize }}",
    "{{" + "(" * 4000 + "1" + ")" * 4000 + "}}",
    "{% if a %}" * 1500,
    "{{ " + "-" * 8000 + "1 }}",
    "{{ " + "not " * 3000 + "1 }}",
    "{{ 'a" + "~'a" * 3000 + "' }}",
)


@pytest.fixture(scope="module")
def templates() -> Iterator[Templates]:
    limits = TemplateLimits(seconds=0.5, memory=48 * 1024 * 1024, output=10_000)
    with Templates(limits) as opened:
        opened.render("", {})
        yield opened


def test_what_templates_are_for_works(templates: Templates) -> None:
    source = (
        "{% for q in queues|sort(reverse=true) %}{{ loop.index }}:{{ q|upper }} {% endfor %}"
        "{{ pool.name|title }} {{ '%.1f'|format(pool.replicas) }} {{ pool|tojson }} {{ text|e }}"
        "{% set n = namespace(t=0) %}{% for i in range(4) %}{% set n.t = n.t + i %}{% endfor %}"
        "{{ n.t }} {{ pool.owner|default('nobody') }}"
    )
    assert templates.render(source, DATA) == (
        '1:B 2:A Mail 3.0 {"name": "mail", "replicas": 3} &lt;b&gt;6 nobody'
    )


@pytest.mark.parametrize("source", ESCAPES)
def test_no_template_gets_out(templates: Templates, source: str) -> None:
    try:
        text = templates.render(source, DATA)
    except TemplateError:
        return
    # Undefined in a list, or nothing: but never an object of Python's.
    assert text in {"", "[Undefined]", "[Undefined, Undefined]"}, text


@pytest.mark.parametrize("source", GREEDY, ids=[source[:30] for source in GREEDY])
def test_time_memory_and_output_are_bounded(templates: Templates, source: str) -> None:
    began = time.monotonic()
    try:
        text = templates.render(source, DATA)
    except EngineroomError as error:
        assert 400 <= error.http_status < 500  # noqa: PT017
    else:
        assert len(text) <= 10_000
    assert time.monotonic() - began < 5
    assert templates.render("{{ pool.name }}", DATA) == "mail"


def test_output_and_source_and_data_have_limits(templates: Templates) -> None:
    with pytest.raises(TooLargeError):
        templates.render("{% for i in range(10001) %}x{% endfor %}", {})
    with pytest.raises(TemplateError, match="characters"):
        templates.render("x" * 20_000, {})
    with pytest.raises(TooLargeError):
        templates.render("", {"a": "x" * 300_000})
    with pytest.raises(TemplateError, match="JSON"):
        templates.render("", {"a": object()})
    with pytest.raises(TemplateError, match="JSON"):
        templates.render("", {"a": float("nan")})


def test_errors_name_the_field_and_the_line(templates: Templates) -> None:
    with pytest.raises(TemplateError, match=r"spec\.body: line 3: 'x' is undefined"):
        templates.render("\n\n{{ x }}", {}, path="spec.body")
    with pytest.raises(TemplateError, match="line 2"):
        templates.check("\n{% if %}")
    with pytest.raises(TemplateError, match="uses secret; there is: pool, text"):
        templates.check("{{ pool }}{{ secret }}", ["text", "pool"])
    templates.check("{% set a = 1 %}{{ a }}{{ pool }}", ["pool"])


def test_in_a_page_values_are_escaped() -> None:
    with Templates(html=True) as pages:
        assert pages.render("<p>{{ text }}", DATA) == "<p>&lt;b&gt;"


def test_the_process_has_no_file_no_socket_no_environment(templates: Templates) -> None:
    templates.render("", {})
    pid = templates._child.pid  # type: ignore[union-attr]
    of = Path(f"/proc/{pid}")
    assert sorted(file.name for file in (of / "fd").iterdir()) == ["0", "1", "2"]
    names = {line.partition(b"=")[0] for line in (of / "environ").read_bytes().split(b"\0")}
    assert names <= {b"LANG", b"LC_CTYPE", b""}
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (3, 3)
    assert resource.prlimit(pid, resource.RLIMIT_NPROC) == (0, 0)
    assert resource.prlimit(pid, resource.RLIMIT_FSIZE) == (0, 0)
    most = resource.prlimit(pid, resource.RLIMIT_AS)[1]
    used = int((of / "statm").read_text().split()[0]) * resource.getpagesize()
    assert used <= most <= used + 48 * 1024 * 1024


def test_a_process_that_dies_is_replaced(templates: Templates) -> None:
    templates.render("", {})
    child = templates._child
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert templates.render("{{ pool.name }}", DATA) == "mail"
    assert templates._child is not child


def test_the_parents_end_ends_it() -> None:
    opened = Templates()
    opened.render("", {})
    child = opened._child
    assert child is not None
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(10) == 0
    opened.close()


def test_a_fork_has_a_process_of_its_own() -> None:
    with Templates() as opened:
        opened.render("", {})
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writer, opened.render("{{ a }}", {"a": "child"}).encode())
            os._exit(0)
        assert opened.render("{{ a }}", {"a": "parent"}) == "parent"
        os.waitpid(pid, 0)
        assert os.read(reader, 100) == b"child"
        os.close(reader)
        os.close(writer)


async def test_threads_and_the_event_loop_share_it(templates: Templates) -> None:
    told = await asyncio.gather(*(templates.render_async("{{ n }}", {"n": n}) for n in range(50)))
    assert told == [str(n) for n in range(50)]
    began = time.monotonic()
    slow = asyncio.create_task(templates.render_async(GREEDY[0], {}))
    await asyncio.sleep(0.05)
    assert time.monotonic() - began < 0.4
    with pytest.raises(TemplateLimitError):
        await slow
    assert threading.active_count() < 50


def test_what_the_sandbox_alone_would_let_through_is_not_there() -> None:
    """The corpus is one: without what this environment takes away some of it goes through."""
    plain, ours = SandboxedEnvironment(), template_process.environment(html=False)
    assert plain.from_string("{{ q.append(1) }}").render(q=[]) == "None"
    with pytest.raises(SecurityError):
        ours.from_string("{{ q.append(1) }}").render(q=[])
    assert {"lipsum", "cycler", "joiner", "dict"}.isdisjoint(ours.globals)
    assert {"attr", "pprint"}.isdisjoint(ours.filters)
