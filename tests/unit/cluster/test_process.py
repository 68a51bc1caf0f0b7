from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.cluster.process import Component, Identity

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def component(tmp_path: Path) -> Iterator[Component]:
    component = Component(tmp_path, "sleeper")
    component.configure(["sleep", "1000"])
    yield component
    component.stop(grace=1.0)


def test_a_started_process_is_known_by_its_record(component: Component) -> None:
    component.start()
    identity = component.identity()
    assert identity is not None
    assert identity == Identity.of(identity.pid)
    assert component.running()


def test_starting_twice_keeps_the_first(component: Component) -> None:
    component.start()
    first = component.identity()
    component.start()
    assert component.identity() == first


def test_another_process_finds_and_stops_it(component: Component, tmp_path: Path) -> None:
    component.start()
    code = (
        "import sys, pathlib; from tests.cluster.process import Component;"
        "Component(pathlib.Path(sys.argv[1]), 'sleeper').stop()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert not component.running()


def test_a_process_that_ignores_the_request_is_made_to_end(tmp_path: Path) -> None:
    stubborn = Component(tmp_path, "stubborn")
    stubborn.configure(["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"])
    stubborn.start()
    identity = stubborn.identity()
    stubborn.stop(grace=0.3)
    assert identity is not None
    assert not identity.alive()


def test_a_recycled_process_id_is_left_alone(component: Component, tmp_path: Path) -> None:
    component.start()
    identity = component.identity()
    assert identity is not None
    # What was recorded had the same id and started at another time: this one is not it.
    replace(identity, started=identity.started - 1).end(grace=0.0)
    replace(identity, boot="an earlier boot").end(grace=0.0)
    assert identity.alive()


def test_a_missing_or_broken_record_is_no_process(component: Component, tmp_path: Path) -> None:
    assert component.identity() is None
    (tmp_path / "processes" / "sleeper.pid").write_text("half a rec")
    assert component.identity() is None
    assert not component.running()
    component.stop()


def test_a_command_with_parentheses_and_spaces_does_not_confuse_the_record() -> None:
    stat = "42 (a) b) (c) S " + " ".join(str(n) for n in range(4, 53))
    assert Identity.parse(f"{stat}\nboot\n") == Identity(42, 22, "boot")


def test_the_end_of_the_log_is_for_messages(component: Component, tmp_path: Path) -> None:
    component.configure(["sh", "-c", "seq 100; exec sleep 1000"])
    component.start()
    while "100" not in component.tail(1):
        os.sched_yield()
    assert component.tail(2) == "99\n100"
