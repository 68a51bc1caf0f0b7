"""Run one benchmark by its name."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

_HERE = Path(__file__).parent


def names() -> list[str]:
    """Modules beside this one that have a `main`."""
    return sorted(path.stem for path in _HERE.glob("[!_]*.py") if "\ndef main(" in path.read_text())


def main() -> int:
    """Run `NAME`'s `main` with the other arguments; its return value is the exit status."""
    known = names()
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        print(f"usage: python -m tests.performance NAME [OPTIONS]\nNAME: {', '.join(known)}")
        return 2
    name = sys.argv.pop(1)
    sys.argv[0] = f"python -m tests.performance {name}"
    result = importlib.import_module(f"tests.performance.{name}").main()
    return int(result or 0)


if __name__ == "__main__":
    sys.exit(main())
