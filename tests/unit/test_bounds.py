"""The memory of parsers, redactors and renderers grows linearly with hostile input, within a bound.

``make bench NAME=bounds`` measures their time with the same inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.bounds.cost import DOUBLED, MEMORY_PER_KIB, kib, peak_kib
from tests.bounds.subjects import SUBJECTS

if TYPE_CHECKING:
    from tests.bounds.subjects import Subject

#: Length of the shorter input, and memory that any run may use whatever its input (KiB).
SIZE, FIXED = 4 * 1024, 64.0


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        pytest.param(subject, name, id=f"{subject.name}: {name}")
        for subject in SUBJECTS
        for name in subject.inputs
    ],
)
def test_memory_is_in_proportion_to_the_input(subject: Subject, name: str) -> None:
    build = subject.inputs[name]
    subject.run(build(256))  # imports and caches
    short, long = build(SIZE), build(2 * SIZE)

    small, large = peak_kib(subject, short), peak_kib(subject, long)

    assert large <= MEMORY_PER_KIB * kib(long) + FIXED
    assert large <= DOUBLED * small + FIXED
