"""One hierarchy of errors, and none that is swallowed: the whole source is read for it."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from engineroom.core import errors, reference
from engineroom.core.error_responses import (
    command_outcome,
    job_outcome,
    problem_document,
)
from engineroom.core.errors import Category, EngineroomError
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PACKAGES = ("engineroom", "engineroom_webhooks", "engineroom_worker")
#: Exceptions of ours that are no EngineroomError, each with why.
OUTSIDE = {
    # The runtime lives in other people's images and imports RQ and the standard library only.
    "engineroom_worker.config.WorkerConfigError": "caught by the runtime's main: an exit status",
    "engineroom_worker.transactions.NotHeldError": "control flow: the job is another worker's now",
    "engineroom_worker.transactions.OutageError": "control flow: Redis is away, wait",
    "engineroom.console.background.operations._HaltedError": "control flow: an operation stopped",
    "engineroom.core.validation.templates._SilentError": "control flow: the process is made anew",
}
#: `except Exception` that neither logs nor raises, each with why.
SILENT = {
    ("engineroom/cli/commands/arguments.py", "complete_pods"): "a shell that completes",
    ("engineroom/cli/commands/arguments.py", "object_names"): "a shell that completes",
    ("engineroom/cli/commands/tasks/queue_names.py", "complete_queues"): "a shell that completes",
    ("engineroom/core/transactions/saga.py", "_do"): "written to the saga's log, and undone",
    ("engineroom/core/transactions/twophase.py", "_rollback"): "raised after the others' turn",
    ("engineroom/core/validation/template_process.py", "_outcome"): "told to the parent process",
    ("engineroom/core/validation/template_process.py", "serve"): "told to the parent process",
    ("engineroom/kube/runtime/queue.py", "_run_one"): "logged by _failed, with the key",
    (
        "engineroom/tasks/enqueueing/encode.py",
        "_unserialisable_field",
    ): "any error names the argument that cannot be serialised",
    (
        "engineroom/tasks/enqueueing/encode.py",
        "_describe_value",
    ): "a description for people is no reason to refuse a job",
}
_WORDS = frozenset({"debug", "info", "warning", "error", "exception", "critical", "log"})


def sources() -> Iterator[Path]:
    for folder in ("operator", "webhooks"):
        yield from sorted((ROOT / folder).rglob("*.py"))


@cache
def modules() -> tuple[Any, ...]:
    found = []
    for name in PACKAGES:
        package = importlib.import_module(name)
        found.append(package)
        found += [
            importlib.import_module(each.name)
            for each in pkgutil.walk_packages(package.__path__, f"{name}.")
            if not each.name.endswith("__main__")
        ]
    return tuple(found)


def ours() -> Iterator[tuple[str, type[BaseException]]]:
    """Every class of exception that is defined by us."""
    for module in modules():
        for name, value in vars(module).items():
            if (
                inspect.isclass(value)
                and issubclass(value, BaseException)
                and value.__module__ == module.__name__
            ):
                yield f"{module.__name__}.{name}", value


def test_every_exception_of_ours_is_of_the_hierarchy() -> None:
    found = dict(ours())
    strangers = {name for name, kind in found.items() if not issubclass(kind, EngineroomError)}
    assert strangers == set(OUTSIDE)
    assert len(found) > 80


def test_every_class_says_what_it_is_and_has_its_line_in_the_reference() -> None:
    page = (ROOT / reference.PAGE).read_text()
    codes: dict[str, str] = {}
    for name, kind in ours():
        if not issubclass(kind, EngineroomError):
            continue
        assert isinstance(kind.category, Category), name
        assert 400 <= kind.http_status <= 599, name
        assert isinstance(kind.retryable, bool), name
        assert kind.__doc__, name
        assert f"| `{kind.code}` |" in page, name
        if "code" in vars(kind):
            assert codes.setdefault(kind.code, name) == name, kind.code


def test_every_category_means_something_at_every_edge() -> None:
    for kind in {k for _, k in ours() if issubclass(k, EngineroomError)}:
        error = kind.__new__(kind)
        Exception.__init__(error, "said")
        if issubclass(kind, errors.InvalidInputError):
            error.problems = ()
        document = problem_document(error)
        assert document.status == kind.http_status
        assert document.body["code"] == kind.code
        assert command_outcome(error).exit_code in {1, 2, 3, 4, 5}
        assert kind.code in command_outcome(error).text
        assert (job_outcome(error, retries_left=1).fate == "retry") is kind.retryable


def _broad(handler: ast.ExceptHandler) -> bool:
    caught = handler.type
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return caught is None or any(
        isinstance(each, ast.Name) and each.id in {"Exception", "BaseException"} for each in names
    )


def _speaks(handler: ast.ExceptHandler) -> bool:
    for node in ast.walk(handler):
        if isinstance(node, ast.Raise):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = node.func.value
            named = called.id if isinstance(called, ast.Name) else ""
            if node.func.attr in _WORDS and named in {"log", "logger", "logging"}:
                return True
    return False


def silent(source: str) -> list[str]:
    """The functions in which something is caught that nobody hears of."""
    found: list[str] = []

    def walk(node: ast.AST, inside: str) -> None:
        for child in ast.iter_child_nodes(node):
            named = inside
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                named = child.name
            if isinstance(child, ast.ExceptHandler) and _broad(child) and not _speaks(child):
                found.append(named)
            walk(child, named)

    walk(ast.parse(source), "")
    return found


def test_nothing_is_caught_that_nobody_hears_of() -> None:
    unheard = {
        ("/".join(path.relative_to(ROOT).parts[1:]), function)
        for path in sources()
        for function in silent(path.read_text())
    }
    assert unheard == set(SILENT)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f():\n try: g()\n except Exception: pass", ["f"]),
        ("def f():\n try: g()\n except: return 1", ["f"]),
        ("def f():\n try: g()\n except (KeyError, BaseException) as e: h(e)", ["f"]),
        ("def f():\n try: g()\n except Exception: log.exception('x')", []),
        ("def f():\n try: g()\n except Exception as e: raise H from e", []),
        ("def f():\n try: g()\n except ValueError: pass", []),
    ],
)
def test_what_is_swallowed_is_found(source: str, found: list[str]) -> None:
    assert silent(source) == found


def test_no_built_in_error_is_a_class_of_ours_in_disguise() -> None:
    """A second class of one of our names would be caught by those who mean the other."""
    names = [name.rpartition(".")[2] for name, _ in ours()]
    assert not set(names) & set(vars(builtins))
