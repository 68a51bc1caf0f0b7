"""The library is light: its modules load nothing but the standard library until they are used.

What is loaded and not how long it takes: that would be the machine's affair.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import ROOT

#: Nothing without the library that they are about; imported by who has it.
ABOUT_ONE = {"engineroom.core.prometheus", "engineroom.core.validation.template_process"}


def modules(room: str) -> list[str]:
    files = sorted((ROOT / "operator/engineroom" / room).rglob("*.py"))
    names = [".".join(file.relative_to(ROOT / "operator").with_suffix("").parts) for file in files]
    return [n.removesuffix(".__init__") for n in names if n not in ABOUT_ONE]


@pytest.mark.parametrize("room", ["core", "auth"])
def test_importing_every_module_loads_no_other_library(room: str) -> None:
    code = (
        "import sys, importlib\n"
        "before = set(sys.modules)\n"
        f"for name in {modules(room)!r}: importlib.import_module(name)\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - sys.stdlib_module_names - {'_sysconfigdata__linux_x86_64-linux-gnu'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['engineroom']"


def test_the_list_of_modules_is_not_empty() -> None:
    assert len(modules("core")) > 20
    assert len(modules("auth")) > 10
