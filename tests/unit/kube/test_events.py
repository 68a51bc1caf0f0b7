"""Events: aggregated, bounded, never in the way."""

from __future__ import annotations

from typing import Any

from engineroom.core.clock import FakeClock
from engineroom.kube.client.errors import Forbidden, NotFound, Unreachable
from engineroom.kube.client.resources import WORKERPOOLS
from engineroom.kube.runtime.events import NOTE_BYTES, EventRecorder

POOL = WORKERPOOLS.ref("shop", "mail", "u1")


class Api:
    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.patched: list[dict[str, Any]] = []
        self.fails: Exception | None = None
        self.forgot = False

    async def create(self, _ref: Any, obj: dict[str, Any], **_: Any) -> None:
        if self.fails:
            raise self.fails
        self.created.append(obj)

    async def merge_patch(self, _ref: Any, _ns: str, _name: str, patch: Any) -> None:
        if self.forgot:
            raise NotFound("gone", status=404)
        self.patched.append(patch)


def recorder(**options: Any) -> tuple[EventRecorder, Api, FakeClock]:
    api, clock = Api(), FakeClock()
    made = EventRecorder(api, clock, instance="pod-1", **options)  # type: ignore[arg-type]
    return made, api, clock


async def test_an_event_says_what_happened_to_what() -> None:
    made, api, _ = recorder()
    made.record(POOL, "Warning", "RedisUnreachable", "redis://u:secret@host says no")
    await made.flush()
    (event,) = api.created
    assert event["regarding"] == {
        "apiVersion": "engineroom.dev/v1alpha1",
        "kind": "WorkerPool",
        "namespace": "shop",
        "name": "mail",
        "uid": "u1",
    }
    assert event["type"] == "Warning"
    assert event["reason"] == event["action"] == "RedisUnreachable"
    assert event["eventTime"] == "2026-01-01T00:00:00.000000Z"
    assert event["metadata"]["namespace"] == "shop"
    assert "secret" not in event["note"]


async def test_repeats_become_a_series_that_is_written_once_a_minute() -> None:
    made, api, clock = recorder()
    for _ in range(50):
        made.record(POOL, "Normal", "Scaling", "same")
        await made.flush()
    assert len(api.created) == 1
    assert api.patched == []
    clock.advance(61)
    made.record(POOL, "Normal", "Scaling", "same")
    await made.flush()
    assert api.patched[0]["series"]["count"] == 51
    assert len(api.created) == 1


async def test_a_series_whose_event_has_expired_begins_anew() -> None:
    made, api, clock = recorder()
    made.record(POOL, "Normal", "Scaling", "same")
    await made.flush()
    clock.advance(4000)
    api.forgot = True
    made.record(POOL, "Normal", "Scaling", "same")
    await made.flush()
    assert len(api.created) == 2


async def test_an_object_gets_a_few_events_a_minute_and_others_are_not_affected() -> None:
    made, api, clock = recorder(burst=5, interval=15)
    for number in range(100):
        made.record(POOL, "Normal", "Scaling", f"number {number}")
    made.record(WORKERPOOLS.ref("shop", "other", "u2"), "Normal", "Scaling", "mine")
    await made.flush()
    assert len(api.created) == 6
    assert made.dropped == 95
    clock.advance(60)
    for number in range(100):
        made.record(POOL, "Normal", "Scaling", f"later {number}")
    await made.flush()
    assert len(api.created) == 10


async def test_waiting_events_are_bounded_and_the_oldest_go_first() -> None:
    made, api, _ = recorder(capacity=3)
    for number in range(5):
        made.record(POOL, "Normal", "Scaling", f"number {number}")
    await made.flush()
    assert [event["note"] for event in api.created] == ["number 2", "number 3", "number 4"]
    assert made.dropped == 2


async def test_failures_are_swallowed() -> None:
    made, api, _ = recorder()
    for api.fails in (Unreachable("down"), Forbidden("namespace is terminating", status=403)):
        made.record(POOL, "Normal", "Scaling", str(api.fails))
        await made.flush()
    assert made.dropped == 2
    assert made.written == 0


async def test_long_notes_are_cut_at_the_limit_of_the_api_in_bytes() -> None:
    made, api, _ = recorder()
    made.record(POOL, "Normal", "Scaling", "ü" * 2000)
    await made.flush()
    note = api.created[0]["note"]
    assert len(note.encode()) <= NOTE_BYTES
    assert note.endswith("...")


async def test_memory_of_objects_is_bounded() -> None:
    made, _, _ = recorder(objects=10)
    for number in range(100):
        made.record(WORKERPOOLS.ref("shop", f"p{number}", f"u{number}"), "Normal", "Scaling", "m")
    await made.flush()
    assert len(made._series) == len(made._buckets) == 10
