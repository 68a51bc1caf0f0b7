"""Jobs, queues and schedules through the API: what is asked of it, and what answers mean."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import typer

from engineroom.cli.commands.tasks.bulk import BulkOperations
from engineroom.cli.connections.remote.api import Api
from engineroom.cli.connections.remote.credentials import ServerAccount
from engineroom.cli.connections.remote.tasks import ApiTasks
from engineroom.cli.errors import CliError, NotFoundError, RefusedError, UnreachableError
from engineroom.cli.views.output_formats import OutputFormat
from engineroom.core.clock import FakeClock
from engineroom.tasks import JobFilter, NothingMatchesError, Schedule, State, Task
from engineroom.tasks.triggers import Every

from .memory import MemoryCluster, Trial
from .samples import NOW

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engineroom.cli.connections.model import Document

ID = "4be0643f1d98573b97caa7c1b0e8f6a2"
LOST = UnreachableError("cannot reach the API")


def operation(status: str = "running", done: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "id": ID, "action": "retry", "status": status, "matched": 7, "complete": True,
        "done": done, "skipped": 0, "problem": "", **more,
    }  # fmt: skip


class ToldApi(Api):
    """Gives the answers that it is told to, and keeps what it was asked."""

    def __init__(self, *answers: dict[str, Any] | Exception) -> None:
        super().__init__(ServerAccount("https://x", "token"))
        self.answers = list(answers)
        self.asked: list[tuple[str, Any, Any]] = []

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: Document | None = None,
        headers: Mapping[str, str] | None = None,
        credentials: bool = True,
    ) -> Document:
        del query, credentials
        self.asked.append((f"{method} {path}", json.loads(json.dumps(body)), headers))
        # The last one is the answer from then on.
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def retried(trial: Trial, api: ToldApi, *, yes: bool = False) -> None:
    trial.context.connections.connect_api = lambda options: api
    BulkOperations(trial.context).change(
        "retry", State.FAILED, "mail", JobFilter(function="mail.*"), OutputFormat.TABLE, yes=yes
    )


COUNTED = operation("counted", id=None)


def test_it_is_counted_asked_begun_and_watched() -> None:
    api = ToldApi(COUNTED, operation(), operation(done=3), operation("done", 6, skipped=1))
    trial = Trial(MemoryCluster(), answer=True)
    retried(trial, api)
    assert trial.questions == ["Put 7 jobs back on mail?"]
    assert trial.out == "6 jobs put back; 1 left alone, which were not as they had been\n"
    asked = [(what, body) for what, body, _ in api.asked]
    wanted = {"queue": "mail", "function": "mail.*"}
    path = "POST /namespaces/default/operations/retry"
    assert asked[:2] == [(path, wanted | {"dryRun": True}), (path, wanted | {"atMost": 7})]
    assert {what for what, _ in asked[2:]} == {f"GET /namespaces/default/operations/{ID}"}


def test_a_no_and_nothing_to_do_change_nothing() -> None:
    api = ToldApi(COUNTED)
    with pytest.raises(typer.Abort):
        retried(Trial(MemoryCluster(), answer=False), api)
    assert len(api.asked) == 1
    with pytest.raises(NothingMatchesError, match="--state failed"):
        retried(Trial(MemoryCluster()), ToldApi(operation("counted", matched=0)))


def test_whoever_was_not_asked_or_not_told_all_sets_no_bound() -> None:
    part = operation("counted", complete=False)
    cases = ((None, True, COUNTED), (True, True, COUNTED), (True, False, part))
    for answer, yes, counted in cases:
        api = ToldApi(counted, operation(), operation("done", 7))
        retried(Trial(MemoryCluster(), answer=answer), api, yes=yes)
        assert "atMost" not in api.asked[1][1]


def test_a_lost_answer_is_asked_for_under_the_same_key() -> None:
    api = ToldApi(COUNTED, LOST, operation(), operation("done", 7))
    retried(Trial(MemoryCluster()), api, yes=True)
    keys = [headers["Idempotency-Key"] for _, _, headers in api.asked if headers]
    assert len(keys) == 2
    assert len(set(keys)) == 1
    with pytest.raises(UnreachableError):
        retried(Trial(MemoryCluster()), ToldApi(COUNTED, LOST), yes=True)


def test_the_api_may_be_away_for_a_while_and_not_for_ever() -> None:
    api = ToldApi(COUNTED, operation(), *[LOST] * 50, operation("done", 7))
    trial = Trial(MemoryCluster())
    retried(trial, api, yes=True)
    assert trial.out == "7 jobs put back\n"
    with pytest.raises(UnreachableError):
        retried(Trial(MemoryCluster()), ToldApi(COUNTED, operation(), LOST), yes=True)


def test_an_end_that_is_none_says_how_far_it_came() -> None:
    stopped = ToldApi(COUNTED, operation(), operation("stopped", 3))
    with pytest.raises(RefusedError, match="3 jobs of 7 put back"):
        retried(Trial(MemoryCluster()), stopped, yes=True)
    failed = ToldApi(COUNTED, operation(), operation("failed", 3, problem="task_invalid: x"))
    with pytest.raises(CliError, match="task_invalid: x; 3 jobs of 7"):
        retried(Trial(MemoryCluster()), failed, yes=True)


def test_a_schedule_that_somebody_changes_meanwhile_is_not_overwritten() -> None:
    schedule = Schedule("nightly", Every(60.0), Task("shop.jobs.send", queue="mail"))
    path = "PUT /namespaces/shop/schedules/nightly"
    for before, new, sent in (
        (NotFoundError("gone"), True, {}),
        ({"version": 4}, False, {"If-Match": '"4"'}),
    ):
        api = ToldApi(before, {})
        assert ApiTasks(api, "shop", FakeClock(NOW)).put_schedule(schedule) is new
        (what, body, headers) = api.asked[1]
        assert (what, headers, body["every"]) == (path, sent, 60.0)


def test_queues_are_of_all_pages() -> None:
    first = {"items": [{"name": "a"}], "nextCursor": "x"}
    last = {"items": [{"name": "b"}], "nextCursor": None}
    assert ApiTasks(ToldApi(first, last), "shop", FakeClock(NOW)).queue_names() == ["a", "b"]
