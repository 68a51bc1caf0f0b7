"""The measured cost of a subject: memory, and time of the processor."""

from __future__ import annotations

import time
import tracemalloc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bounds.subjects import Subject

#: KiB of memory at the peak, and milliseconds of the processor, for a KiB of input.
MEMORY_PER_KIB, MILLISECONDS_PER_KIB = 100.0, 2.0
#: The cost of an input of twice the length, in costs of the single one.
DOUBLED = 2.5


def kib(text: str | bytes) -> float:
    """Return the length of an input in KiB."""
    return len(text) / 1024


def peak_kib(subject: Subject, text: str | bytes) -> float:
    """Return the most memory that a run holds at one time, in KiB."""
    tracemalloc.start()
    try:
        subject.run(text)
        return tracemalloc.get_traced_memory()[1] / 1024
    finally:
        tracemalloc.stop()


def milliseconds(subject: Subject, text: str | bytes) -> float:
    """Return the processor's time of a run in milliseconds."""
    began = time.process_time()
    subject.run(text)
    return (time.process_time() - began) * 1000
