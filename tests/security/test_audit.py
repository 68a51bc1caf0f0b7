"""The audit log: whatever is done to it in Redis, verification names it."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from engineroom.auth.audit.log import AuditEntry, AuditLog, AuditOutcome
from engineroom.auth.errors import AuditRecordError, AuthStoreError
from engineroom.console.background.audit_anchor import AuditAnchor
from engineroom.console.metrics import ApiMetrics
from engineroom.core.clock import FakeClock, SystemClock
from tests.support import RedisServer, redis_server

SECRET = b"a" * 32
STREAM = "engineroom:auth:audit"


def log(redis: Redis, clock: Any = None, out: io.StringIO | None = None) -> AuditLog:
    return AuditLog(redis, clock or FakeClock(), SECRET, out=out or io.StringIO())


def entry(number: int = 0, **changed: Any) -> AuditEntry:
    fields = {
        "who": "ada", "action": "namespace:pools:scale", "target": f"workerpool/shop/p{number}",
        "outcome": AuditOutcome.DONE, **changed,
    }  # fmt: skip
    return AuditEntry(**fields)


async def filled(redis: Redis, count: int) -> AuditLog:
    audit = log(redis)
    for number in range(count):
        await audit.write(entry(number))
    return audit


async def rows(redis: Redis) -> list[tuple[bytes, dict[bytes, bytes]]]:
    return list(await redis.xrange(STREAM))


async def put_back(redis: Redis, changed: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
    await redis.delete(STREAM)
    for number, fields in changed:
        await redis.xadd(STREAM, dict[Any, Any](fields), id=number)


async def test_an_untouched_log_is_intact_and_readable(redis: Redis) -> None:
    audit = await filled(redis, 12)
    found = await audit.verify()
    assert found.intact
    assert (found.records, found.head.sequence) == (12, 12)
    page = await audit.read(after=10)
    assert [record.body["target"] for record in page] == [
        "workerpool/shop/p10",
        "workerpool/shop/p11",
    ]
    assert (await log(redis).verify(found.head)).intact


async def test_an_empty_log_is_intact(redis: Redis) -> None:
    assert (await log(redis).verify()).intact


async def test_several_writers_make_one_chain(server: RedisServer, redis: Redis) -> None:
    clients = [Redis.from_url(server.url) for _ in range(4)]
    writers = [log(client, SystemClock()) for client in clients]
    await asyncio.gather(*(w.write(entry(n)) for n in range(25) for w in writers))
    found = await writers[0].verify()
    assert found.intact, found.problems
    assert found.records == 100
    for client in clients:
        await client.aclose()


async def test_an_edit_is_found_in_each_field(redis: Redis) -> None:
    audit = await filled(redis, 3)
    original = await rows(redis)
    body = json.loads(original[1][1][b"body"])
    for name in body:
        forged = json.dumps({**body, name: "forged"}, sort_keys=True, separators=(",", ":"))
        changed = list(original)
        changed[1] = (original[1][0], {**original[1][1], b"body": forged.encode()})
        await put_back(redis, changed)
        assert any(
            "record 2: it or an earlier record was edited" in p
            for p in (await audit.verify()).problems
        ), name
    await put_back(redis, original)
    assert (await audit.verify()).intact


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(5)), st.sets(st.integers(0, 4)))
def test_any_removal_and_any_new_order_is_found(
    server: RedisServer, order: list[int], removed: set[int]
) -> None:
    async def run() -> None:
        redis = Redis.from_url(server.url)
        await redis.flushall()
        audit = await filled(redis, 5)
        original = await rows(redis)
        changed = [
            (original[place][0], original[source][1])
            for place, source in enumerate(order)
            if place not in removed
        ]
        await put_back(redis, changed)
        found = await audit.verify()
        assert found.intact == (order == list(range(5)) and not removed), found.problems
        await redis.aclose()

    asyncio.run(run())


async def test_what_was_removed_is_named(redis: Redis) -> None:
    audit = await filled(redis, 9)
    await redis.xdel(STREAM, "1-0", "4-0", "6-0", "7-0")
    assert (await audit.verify()).problems == (
        "record 1: removed",
        "record 4: removed",
        "records 6 to 7: removed",
    )


async def test_a_tail_cut_off_is_found_by_the_head(redis: Redis) -> None:
    audit = await filled(redis, 5)
    await redis.xdel(STREAM, "4-0", "5-0")
    assert (await audit.verify()).problems == ("records 4 to 5: removed from the end",)


async def test_a_head_made_up_is_found(redis: Redis) -> None:
    audit = await filled(redis, 5)
    await redis.xdel(STREAM, "5-0")
    mac = (await rows(redis))[-1][1][b"mac"]
    await redis.hset(f"{STREAM}:head", mapping={"seq": "4", "mac": mac})
    assert "the head has no valid seal" in (await audit.verify()).problems


async def test_a_log_set_back_as_a_whole_is_found_by_its_anchor(redis: Redis) -> None:
    audit = await filled(redis, 3)
    before, head = await rows(redis), await redis.hgetall(f"{STREAM}:head")
    await audit.write(entry(3))
    anchor = await audit.head()
    await put_back(redis, before)
    await redis.hset(f"{STREAM}:head", mapping=dict[Any, Any](head))
    assert (await audit.verify()).intact
    assert (await audit.verify(anchor)).problems == ("the log ends at 3, the anchor at 4",)
    await audit.write(entry(9))
    assert (await audit.verify(anchor)).problems == ("record 4: differs from the anchor",)


async def test_a_record_slipped_in_is_found(redis: Redis) -> None:
    audit = await filled(redis, 2)
    await redis.xadd(STREAM, {"body": '{"seq":3}', "mac": "0" * 64}, id="3-0")
    problems = (await audit.verify()).problems
    assert any("record 3: it or an earlier record was edited" in problem for problem in problems)
    assert any("the head is at 2" in problem for problem in problems)


async def test_everything_deleted_is_found_by_the_anchor_and_writing_goes_on(
    redis: Redis,
) -> None:
    audit = await filled(redis, 3)
    anchor = await audit.head()
    await redis.delete(STREAM, f"{STREAM}:head")
    assert not (await audit.verify(anchor)).intact
    await audit.write(entry())


async def test_another_secret_cannot_write_what_verifies(redis: Redis) -> None:
    audit = await filled(redis, 2)
    forger = AuditLog(redis, FakeClock(), b"b" * 32, out=io.StringIO())
    await forger.write(entry(9))
    assert not (await audit.verify()).intact


async def test_a_trimmed_log_is_intact_and_a_forged_beginning_is_not(redis: Redis) -> None:
    audit = await filled(redis, 10)
    assert await audit.trim(4) == 6
    found = await audit.verify()
    assert found.intact, found.problems
    assert found.records == 4
    await audit.write(entry(11))
    assert (await audit.verify()).intact
    mac = (await rows(redis))[1][1][b"mac"]
    await redis.xdel(STREAM, "7-0", "8-0")
    await redis.hset(f"{STREAM}:head", mapping={"base_seq": "8", "base_mac": mac})
    assert not (await audit.verify()).intact


async def test_secrets_never_get_in(redis: Redis) -> None:
    from engineroom.auth.tokens.api_keys import ApiKeys

    key = await ApiKeys(redis, FakeClock(), [b"p" * 32]).create("ada", "k", ())
    jwt = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl"
    out = io.StringIO()
    audit = log(redis, out=out)
    await audit.write(
        entry(
            reason=f"with {key.secret} and Bearer {jwt}",
            details={
                "password": "hunter22", "note": f"redis://u:hunter22@host {key.secret}",
                "token": jwt, "x" * 1010 + key.secret: "name",
            },
        )
    )  # fmt: skip
    kept = b"".join((await rows(redis))[0][1].values()).decode() + out.getvalue()
    for secret in (key.secret, jwt, "hunter22", key.secret[:40]):
        assert secret not in kept


async def test_lines_on_the_output_are_single_and_carry_the_mac(redis: Redis) -> None:
    out = io.StringIO()
    audit = log(redis, out=out)
    record = await audit.write(entry(reason='a\nb\r\n{"audit":{}}\x1b[2J'))
    (line,) = out.getvalue().splitlines()
    assert json.loads(line)["audit"]["mac"] == record.mac
    assert line.isprintable()


async def test_without_redis_it_is_on_the_output_and_an_error() -> None:
    out = io.StringIO()
    with redis_server() as server:
        client = Redis.from_url(server.url)
        audit = log(client, out=out)
        await audit.write(entry())
        server.stop()
        with pytest.raises(AuthStoreError):
            await audit.write(entry(1))
        await client.aclose()
    assert json.loads(out.getvalue().splitlines()[1])["audit"]["chained"] is False


async def test_records_are_bounded(redis: Redis) -> None:
    audit = log(redis)
    record = await audit.write(entry(reason="x" * 100_000))
    assert len(record.body["reason"]) == 1024
    with pytest.raises(AuditRecordError):
        await audit.write(entry(details={f"k{n}": "v" * 900 for n in range(100)}))
    with pytest.raises(AuditRecordError):
        await audit.write(entry(who=""))


# -- the replica's own anchor ----------------------------------------------------------------------


async def anchored(redis: Redis, count: int) -> tuple[AuditLog, AuditAnchor, ApiMetrics]:
    audit, metrics = await filled(redis, count), ApiMetrics()
    anchor = AuditAnchor(audit, metrics)
    assert await anchor.check() == ""
    return audit, anchor, metrics


async def test_a_deleted_log_is_noticed_and_recorded_once(redis: Redis) -> None:
    audit, anchor, metrics = await anchored(redis, 5)
    await redis.delete(STREAM, f"{STREAM}:head")

    assert await anchor.check() == "the log ends at 0, and had record 5"
    assert await anchor.check() == ""
    (record,) = await audit.read()
    assert (record.body["action"], record.body["details"]["anchor"]) == ("audit-log.set-back", 5)
    assert b'engineroom_forged_records_total{kind="audit-log"} 1.0' in metrics.exposition()


async def test_a_log_that_is_set_back_and_written_to_is_noticed(redis: Redis) -> None:
    audit = await filled(redis, 3)
    older, head = await rows(redis), await redis.hgetall(f"{STREAM}:head")
    anchor = AuditAnchor(audit, ApiMetrics())
    for number in range(3, 6):
        await audit.write(entry(number))
    # Records that this replica wrote count before the first comparison.
    await put_back(redis, older)
    await redis.hset(f"{STREAM}:head", mapping=head)
    other = log(redis)
    for number in range(4):
        await other.write(entry(number, who="eve"))

    assert await anchor.check() == "record 6: is another one now"


async def test_a_record_cut_out_and_a_forged_head_are_noticed(redis: Redis) -> None:
    audit, anchor, _ = await anchored(redis, 4)
    await redis.xdel(STREAM, "4-0")
    assert await anchor.check() == "record 4: removed"

    await audit.write(entry(9))
    assert await anchor.check() == ""
    await redis.hset(f"{STREAM}:head", "seq", "900")
    assert await anchor.check() == "the head has no valid seal"


async def test_other_writers_and_trimming_are_no_change_of_the_past(redis: Redis) -> None:
    audit, anchor, _ = await anchored(redis, 4)
    other = log(redis)
    for number in range(20):
        await other.write(entry(number))
    assert await anchor.check() == ""
    for number in range(10):
        await other.write(entry(number))
    assert await audit.trim(3) == 31
    assert await anchor.check() == ""
    assert anchor.head.sequence == 34
