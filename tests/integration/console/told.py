"""Jobs that log and jobs that fail, run by a worker of the runtime."""

from __future__ import annotations

import logging


def say(word: str) -> None:
    logging.getLogger("shop").warning("said %s", word)


def fail(word: str) -> None:
    say(word)
    raise RuntimeError(word)
