"""Cursors that clients store, change or forge lead to the next page or to 422."""

from __future__ import annotations

import base64
import random
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from engineroom.auth.oidc.id_token import OidcIdentity
from engineroom.console.resources import schedules
from engineroom.tasks import Every, Schedule, Task
from engineroom.tasks.errors import InvalidTaskError
from engineroom.tasks.inspection import scan
from tests.integration.console.api import Api, code
from tests.integration.console.test_work import ADD, fail, stage

if TYPE_CHECKING:
    import pytest

    from engineroom.kube.client.client import Client
    from tests.support import RedisServer


def packed(place: str | bytes) -> str:
    raw = place.encode() if isinstance(place, str) else place
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def mutated(cursor: str, chance: random.Random) -> list[str]:
    """Yield changed texts and changed positions."""
    raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    variants = [cursor[:-1], cursor * 2, "=", "x", packed(""), packed("\0"), packed(b"\xff")]
    for _ in range(25):
        changed = bytearray(raw)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(changed) + 1)
            changed[at : at + chance.randint(0, 1)] = chance.choice(
                [
                    b"",
                    b".",
                    b"e",
                    b"-",
                    b":",
                    b"9",
                    b"9" * 400,
                    b"nan",
                    b"inf",
                    "²".encode(),
                    b"(",
                    b"\n",
                ]
            )
        variants.append(packed(bytes(changed)))
    return variants


async def test_a_changed_cursor_is_refused_or_valid(
    api: Api, client: Client, namespace: str
) -> None:
    operator = await stage(api, client, namespace, "mail", "bills", "news")
    admin = await api.key("admin")
    tasks = api.services.tasks
    await fail(api, 4, "mail")
    await tasks.enqueue_many([Task(ADD, (1,), queue="mail")] * 4)
    for n in range(4):
        await tasks.put_schedule(Schedule(f"s{n}", Every(60), Task(ADD, (1,), queue="mail")))
        await api.services.accounts.oidc_users.remember(OidcIdentity("https://idp.test", f"p{n}"))
        await api.services.operation_runner.start(_operation(namespace, n))
    chance, here = random.Random(11), f"/namespaces/{namespace}"
    lists = [
        (f"{here}/jobs?state=failed", operator), (f"{here}/jobs?state=waiting", operator),
        (f"{here}/schedules?", operator), (f"{here}/queues?", operator), ("/users?", admin),
        (f"{here}/operations?", operator),
    ]  # fmt: skip
    for path, who in lists:
        first = await api.get(f"{path}&limit=1", who)
        assert first.status_code == 200, first.text
        cursor = first.json()["nextCursor"]
        if path == "/users?":
            # After the accounts come people, whose places are by score.
            cursor = (await api.get(f"/users?limit=1&cursor={cursor}", who)).json()["nextCursor"]
        assert cursor is not None, path
        for item in [cursor, *mutated(cursor, chance)]:
            answer = await api.http.get(
                f"/api/v1{path}", params={"limit": 1, "cursor": item},
                headers={"authorization": f"Bearer {who}"},
            )  # fmt: skip
            assert answer.status_code in (200, 422), (path, item, answer.text)
    # As many numbers as there are lists with places by score.
    for place in ("1.2.3", ".", "1e999", "9" * 400, "nan", "1_0"):
        by_score = packed(f"person:{place}:{'0' * 40}")
        refused = await api.get(f"/users?cursor={by_score}", admin)
        assert (refused.status_code, code(refused)) == (422, "invalid_input"), place


def _operation(namespace: str, number: int) -> Any:
    from engineroom.console.background.operation_store import Operation, OperationAction
    from engineroom.tasks import JobFilter, State

    return Operation(
        f"{number:032x}", namespace, OperationAction.CANCEL, State.WAITING, ("none",), JobFilter(),
        "test", 1.7e9 + number, 0,
    )  # fmt: skip


_NUMBERS = r"-?[0-9]{0,3}([._ ][0-9]{0,3}){0,2}(e[+-]?[0-9]{1,4})?:x"


@given(st.one_of(st.text(), st.from_regex(_NUMBERS, fullmatch=True)))
def test_a_position_by_score_is_a_number_or_refused(cursor: str) -> None:
    try:
        command = scan.walk("k", cursor, 1, oldest_first=True, failed=False)
    except InvalidTaskError:
        return
    place = command.arguments[0]
    assert not cursor or float(place) == float(place)
    assert "_" not in place
    assert not any(letter.isspace() for letter in place)


async def test_redis_accepts_every_accepted_position(redis: RedisServer, make_redis: Any) -> None:
    client = make_redis()
    await client.zadd("k", {"a": 1})
    for place in ("0", "-1.5", "1e+16", "1.5e-07", "1795445088.6016801", "inf", "-inf", "9" * 300):
        command = scan.walk("k", f"{place}:x", 1, oldest_first=True, failed=False)
        await client.eval(command.script.source, 1, "k", *command.arguments)


async def test_a_list_of_schedules_reveals_no_other_namespaces(
    api: Api, client: Client, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "MAX_SCANNED", 4)
    monkeypatch.setattr(schedules, "CHUNK", 2)
    operator = await stage(api, client, namespace, "mail")
    for n in range(10):
        await api.services.tasks.put_schedule(
            Schedule(f"their-payroll-{n}", Every(60), Task(ADD, (1,), queue="theirs"))
        )
    ours = Schedule("ours", Every(3600), Task(ADD, (1,), queue="mail"))
    await api.services.tasks.put_schedule(ours)
    where, cursor, names, pages = f"/namespaces/{namespace}/schedules", "", [], 0
    while True:
        page = (await api.get(f"{where}?cursor={cursor}", operator)).json()
        names += [item["name"] for item in page["items"]]
        cursor, pages = page["nextCursor"], pages + 1
        if cursor is None:
            break
        assert b"their" not in base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    assert (names, pages) == (["ours"], 3)
    # Nor can one be made up, to see what begins behind a name.
    refused = await api.get(f"{where}?cursor={packed('their-payroll-3')}", operator)
    assert (refused.status_code, code(refused)) == (422, "invalid_input")
