"""Flows as data: who waits for whom, whatever they are made of; no cycles, no giants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineroom.tasks import Flow, InvalidTaskError, Task, chain, fan_in, graph, group
from engineroom.tasks.enqueueing.flows import MAX_EDGES, MAX_JOBS

if TYPE_CHECKING:
    from collections.abc import Callable

A, B, C, D, E = (Task(f"jobs.{name}") for name in "abcde")


def edges(flow: Flow) -> set[tuple[str, str]]:
    """Pairs of parent and child, by the last letter of their function."""
    name = [str(task.function)[-1] for task in flow.tasks]
    return {(name[each], name[at]) for at, waits in enumerate(flow.parents) for each in waits}


def pairs(said: str) -> set[tuple[str, str]]:
    return {(pair[0], pair[1]) for pair in said.split()}


@pytest.mark.parametrize(
    ("flow", "expected"),
    [
        (chain(A), ""),
        (chain(A, B, C), "ab bc"),
        (group(A, B), ""),
        (fan_in([A, B], C), "ac bc"),
        (fan_in(group(A, B), chain(C, D)), "ac bc cd"),
        (chain(A, group(B, C), D), "ab ac bd cd"),
        (chain(group(A, B), group(C, D)), "ac ad bc bd"),
        (chain(A, group(B, chain(C, D)), E), "ab ac cd be de"),
        (fan_in([chain(A, B), chain(C, D)], E), "ab cd be de"),
        (graph({"x": A, "y": B, "z": C}, {"x": ["z"], "y": ["x", "z"]}), "ca ab cb"),
    ],
)
def test_who_waits_for_whom(flow: Flow, expected: str) -> None:
    assert edges(flow) == pairs(expected)
    # Parents come first: whoever writes them in order never meets an unknown one.
    assert all(each < at for at, waits in enumerate(flow.parents) for each in waits)


def test_tasks_name_each_other_by_their_ids_too() -> None:
    child = Task("jobs.c", job_id="child", depends_on=["parent", "elsewhere"])
    flow = group(child, Task("jobs.p", job_id="parent"))
    assert edges(flow) == {("p", "c")}
    assert flow.tasks[1] is child


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: chain(), "flow: an empty chain; give it at least one task"),
        (lambda: fan_in([], A), "flow: an empty group; give it at least one task"),
        (lambda: chain(A, "b"), "flow: str in a chain; use a Task, or a flow"),
        (lambda: graph({"a": A}, {"a": ["b"]}), "after['a']: 'b' is no task; use the names"),
        (lambda: graph({"a": A, "b": B}, {"a": "b"}), "after['a']: is a string; use a list"),
        (lambda: graph({"a": A}, {"a": ["a"]}), "flow: a -> a is a cycle; let one of them not"),
        (
            lambda: graph({"a": A, "b": B, "c": C, "d": D}, {"a": "c", "b": "a", "c": ["b", "d"]}),
            "after['a']: is a string",
        ),
        (
            lambda: graph(
                {"a": A, "b": B, "c": C, "d": D}, {"a": ["c"], "b": ["a"], "c": ["b", "d"]}
            ),
            "flow: a -> b -> c -> a is a cycle",
        ),
        (
            lambda: group(
                Task("jobs.x", job_id="x", depends_on=["y"]),
                Task("jobs.y", job_id="y", depends_on=["x"]),
            ),
            "flow: x -> y -> x is a cycle",
        ),
        (
            lambda: chain(Task("jobs.x", job_id="x", depends_on=["y"]), Task("j.y", job_id="y")),
            "is a cycle",
        ),
        (lambda: group(Task("j.x", job_id="x"), Task("j.y", job_id="x")), "'x' is there twice"),
        (lambda: group(*[A] * (MAX_JOBS + 1)), f"use at most {MAX_JOBS}"),
        (lambda: chain(group(*[A] * 50), group(*[B] * 50)), f"2500 times for another; use at most {MAX_EDGES}"),  # noqa: E501
    ],
)  # fmt: skip
def test_what_is_no_flow_is_refused(make: Callable[[], Flow], said: str) -> None:
    with pytest.raises(InvalidTaskError) as refused:
        make()
    assert said in str(refused.value)


def test_a_long_cycle_is_cut_short() -> None:
    many = {str(at): A for at in range(100)}
    with pytest.raises(InvalidTaskError, match=r"\.\.\. -> ") as refused:
        graph(many, {str(at): [str((at + 1) % 100)] for at in range(100)})
    assert len(str(refused.value)) < 120


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=14))
def test_a_graph_is_taken_exactly_if_it_can_be_ordered(waits: list[tuple[int, int]]) -> None:
    names = [str(at) for at in range(7)]
    after = {name: [str(b) for a, b in waits if str(a) == name] for name in names}
    # By hand: take away what waits for nobody until nothing changes.
    left = {name: set(parents) for name, parents in after.items()}
    while free := [name for name, parents in left.items() if not parents]:
        left = {name: ps - set(free) for name, ps in left.items() if name not in free}
    tasks = {name: Task(f"jobs.{name}") for name in names}
    if left:
        with pytest.raises(InvalidTaskError, match="cycle"):
            graph(tasks, after)
        return
    flow = graph(tasks, after)
    assert edges(flow) == {(str(b), str(a)) for a, b in waits}
    assert all(each < at for at, waits in enumerate(flow.parents) for each in waits)
