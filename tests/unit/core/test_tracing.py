"""Without an endpoint there is no OpenTelemetry, and a span is next to nothing."""

from __future__ import annotations

import subprocess
import sys
import timeit

import pytest

from engineroom.core import tracing
from engineroom.core.context import META_KEY, bound, carried, taken

#: redis-py imports what of it is installed by itself, so it is asked who imports.
_QUIET = """
import sys
guilty = []
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "opentelemetry":
            frame = sys._getframe(1)
            while "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            guilty.append(frame.f_globals.get("__name__", ""))
sys.meta_path.insert(0, Watch())
import {module}
from engineroom.core import tracing
assert not tracing.start("test")
with tracing.span("a", kind="server", key="b") as span:
    span.note(name="c", d=1)
ours = [name for name in guilty if name.startswith(("engineroom", "__main__"))]
assert not ours, ours
"""


@pytest.mark.parametrize(
    "module",
    ["engineroom.main", "engineroom.console.main", "engineroom.relay", "engineroom_worker.worker"],
)
def test_no_process_imports_opentelemetry_where_it_is_not_asked_for(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _QUIET.format(module=module)],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("said", "on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_it_is_configured_by_opentelemetrys_own_variables(said: dict[str, str], on: bool) -> None:
    from engineroom_worker.observability import tracing as of_worker

    assert tracing.configured(said) is on
    assert of_worker.configured(said) is on


def test_a_span_that_nobody_wants_is_one_object_and_costs_next_to_nothing() -> None:
    assert tracing.span("a") is tracing.span("b", key="c")

    def one() -> None:
        with tracing.span("reconcile", queue="q", key="k"):
            pass

    rounds = 20_000
    assert min(timeit.repeat(one, number=rounds, repeat=3)) / rounds < 5e-6


def test_the_ids_of_a_trace_are_carried_as_a_traceparent_too() -> None:
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    with bound(request_id="r", trace_id=trace, span_id=span):
        meta = carried()
    assert meta[META_KEY]["traceparent"] == f"00-{trace}-{span}-01"
    with taken(meta, job_id="j"):
        assert carried()[META_KEY] == {**meta[META_KEY], "job_id": "j"}
    with bound(request_id="r"):
        assert carried() == {META_KEY: {"request_id": "r"}}
    assert carried() == {}
