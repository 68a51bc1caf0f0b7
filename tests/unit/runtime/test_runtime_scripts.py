"""What operator and runtime both say, each in its own words because the runtime imports nothing."""

from __future__ import annotations

import ast
import inspect
from typing import TYPE_CHECKING

from engineroom.core import text_redaction
from engineroom.queue import keys, priority
from engineroom_worker.dequeue import limits
from engineroom_worker.dequeue import priority as runtime
from engineroom_worker.observability import redaction

if TYPE_CHECKING:
    from types import ModuleType


def test_operator_and_runtime_place_jobs_by_the_same_script():
    assert runtime.PUT == priority.PUT


def test_operator_and_runtime_mean_the_same_keys():
    assert limits.limit_key("mail") == keys.limit("mail")
    assert limits.limited_key("mail") == keys.limited("mail")
    assert limits.slots_key("customer") == keys.slots("customer")


def statements(module: ModuleType) -> str:
    """Return the code of a module without its docstring, as a syntax tree."""
    tree = ast.parse(inspect.getsource(module))
    return ast.dump(ast.Module(tree.body[1:], []))


def test_runtime_and_library_redact_text_by_the_same_code() -> None:
    assert statements(redaction) == statements(text_redaction)
