"""The API from outside: responses, permissions, paging, conditional and repeated requests."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from engineroom.auth.middleware import SECURITY_HEADERS
from engineroom.console.identity_services import ClusterReviewer
from engineroom.console.main import create_application
from engineroom.kube.client.resources import NAMESPACES, WORKERPOOLS
from engineroom.tasks import Cron, Schedule, Task
from tests.integration.console.api import (
    ADMIN_PASSWORD,
    BINDINGS,
    POOLS,
    SCALE,
    Api,
    code,
    pool,
    swept,
)
from tests.integration.pools import eventually, record_owned
from tests.support import shared_namespace

if TYPE_CHECKING:
    from engineroom.kube.client.client import Client

AUTOSCALED = {"autoscaling": {"minReplicas": 1, "maxReplicas": 5}}


async def made(client: Client, namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    body = pool(name, **spec)
    body["metadata"]["namespace"] = namespace
    stored = await client.create(WORKERPOOLS, body)
    await record_owned(client, stored)
    return stored


async def test_unauthenticated_requests_get_a_problem_document(api: Api) -> None:
    answer = await api.get("/whoami", x_request_id="abc-1")
    assert answer.status_code == 401
    assert code(answer) == "not_authenticated"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-request-id"] == "abc-1"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_missing_and_forbidden_resources_get_problem_documents(api: Api) -> None:
    assert code(await api.get("/nothing")) == "not_found"
    answer = await api.call("PUT", "/whoami")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


async def test_pools_are_paged_by_cursor(api: Api, client: Client, namespace: str) -> None:
    for name in ("a", "b", "c"):
        await made(client, namespace, name)
    viewer = await api.key("viewer", namespace)
    path = f"/namespaces/{namespace}/pools?limit=2"
    first = (await api.get(path, viewer)).json()
    assert [item["name"] for item in first["items"]] == ["a", "b"]
    second = (await api.get(f"{path}&cursor={first['nextCursor']}", viewer)).json()
    assert [item["name"] for item in second["items"]] == ["c"]
    assert second["nextCursor"] is None
    wrong = await api.get(f"{path}&cursor=nonsense", viewer)
    assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "query.cursor")


async def test_a_pool_never_shows_its_template(api: Api, client: Client, namespace: str) -> None:
    await made(client, namespace, "mail")
    answer = await api.get(f"/namespaces/{namespace}/pools/mail", await api.key("admin"))
    assert "example.com/app:1" not in answer.text
    assert answer.json()["queues"] == ["mail"]


async def test_scaling_requires_the_version_that_was_read(
    api: Api, client: Client, namespace: str
) -> None:
    await made(client, namespace, "mail", replicas=1)
    operator = await api.key("operator", namespace)
    path = f"/namespaces/{namespace}/pools/mail"
    tag = (await api.get(path, operator)).headers["etag"]
    assert (await api.get(path, operator, if_none_match=tag)).status_code == 304
    done = await api.post(f"{path}/scale", operator, {"replicas": 3}, if_match=tag)
    assert (done.status_code, done.json()["replicas"]) == (200, 3)
    late = await api.post(f"{path}/scale", operator, {"replicas": 4}, if_match=tag)
    assert (late.status_code, code(late)) == (412, "precondition_failed")
    assert (await client.get(WORKERPOOLS, namespace, "mail"))["spec"]["replicas"] == 3


async def test_an_autoscaled_pool_has_a_range_and_can_be_held(
    api: Api, client: Client, namespace: str
) -> None:
    await made(client, namespace, "mail", **AUTOSCALED)
    operator = await api.key("operator", namespace)
    path = f"/namespaces/{namespace}/pools/mail"
    assert code(await api.post(f"{path}/scale", operator, {"replicas": 3})) == "pool_sizing"
    done = await api.post(f"{path}/scale", operator, {"maxReplicas": 9})
    assert done.json()["autoscaling"] == {"minReplicas": 1, "maxReplicas": 9, "pause": "None"}
    over = await api.post(f"{path}/scale", operator, {"minReplicas": 10})
    assert code(over) == "pool_sizing"
    held = await api.post(f"{path}/pause", operator, {"direction": "in"})
    assert held.json()["autoscaling"]["pause"] == "ScaleIn"
    resumed = await api.post(f"{path}/resume", operator)
    assert resumed.json()["autoscaling"]["pause"] == "None"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"replicas": -1}, "body.replicas"),
        ({"replicas": "3"}, "body.replicas"),
        ({"replica": 3}, "body.replica"),
        ({}, "body"),
    ],
)
async def test_an_invalid_body_names_the_field(
    api: Api, client: Client, namespace: str, body: dict[str, Any], field: str
) -> None:
    await made(client, namespace, "mail")
    operator = await api.key("operator", namespace)
    answer = await api.post(f"/namespaces/{namespace}/pools/mail/scale", operator, body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


async def test_a_repeated_change_is_executed_once_with_the_same_response(
    api: Api, client: Client, namespace: str
) -> None:
    await made(client, namespace, "mail", replicas=1)
    operator = await api.key("operator", namespace)
    path = f"/namespaces/{namespace}/pools/mail/scale"
    first = await api.post(path, operator, {"replicas": 2}, idempotency_key="one")
    await api.post(path, operator, {"replicas": 5})
    again = await api.post(path, operator, {"replicas": 2}, idempotency_key="one")
    assert again.headers["idempotent-replayed"] == "true"
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert again.headers["etag"] == first.headers["etag"]
    assert (await client.get(WORKERPOOLS, namespace, "mail"))["spec"]["replicas"] == 5
    other = await api.post(path, operator, {"replicas": 3}, idempotency_key="one")
    assert (other.status_code, code(other)) == (422, "idempotency_key_reused")
    # Somebody else's key of the same name is another one.
    someone = await api.key("operator", namespace, owner="program:other")
    theirs = await api.post(path, someone, {"replicas": 3}, idempotency_key="one")
    assert "idempotent-replayed" not in theirs.headers


async def test_a_repeated_request_does_not_return_the_secret_again(api: Api) -> None:
    admin = await api.token("admin")
    first = await api.post("/keys", admin, {"name": "ci"}, idempotency_key="k")
    assert first.status_code == 201
    again = await api.post("/keys", admin, {"name": "ci"}, idempotency_key="k")
    assert (again.status_code, code(again)) == (409, "idempotency_secret_shown")
    dumps = [await api.services.redis.dump(k) async for k in api.services.redis.scan_iter("*once*")]
    assert not any(first.json()["secret"].encode() in item for item in dumps if item)


async def test_namespaces_are_separate(api: Api, client: Client, namespace: str) -> None:
    await made(client, namespace, "mail", replicas=1)
    elsewhere = await api.key("admin", "elsewhere")
    for method, path, body in (
        ("GET", "pools", None),
        ("GET", "pools/mail", None),
        ("POST", "pools/mail/scale", {"replicas": 2}),
        ("GET", "queues", None),
        ("GET", "transactions", None),
        ("GET", "events", None),
        ("POST", "manifests", {"manifest": "a: 1"}),
    ):
        answer = await api.call(method, f"/namespaces/{namespace}/{path}", elsewhere, body)
        assert (answer.status_code, path) == (403, path)
    assert (await client.get(WORKERPOOLS, namespace, "mail"))["spec"]["replicas"] == 1


# -- the cluster's own people -----------------------------------------------------------------


async def test_a_kubernetes_user_may_do_exactly_what_kubectl_allows(
    api: Api, client: Client, namespace: str, person: Any
) -> None:
    await made(client, namespace, "mail", replicas=1)
    reader = await person("reader", {**POOLS, "verbs": ["get", "list"]})
    scaler = await person(
        "scaler", {**POOLS, "verbs": ["get"]}, {**SCALE, "verbs": ["get", "patch"]}
    )
    path = f"/namespaces/{namespace}/pools/mail"
    who = (await api.get("/whoami", reader)).json()
    assert who["subject"] == f"kubernetes:system:serviceaccount:{namespace}:reader"
    assert who["how"] == "kubernetes"
    assert (await api.get(path, reader)).status_code == 200
    refused = await api.post(f"{path}/scale", reader, {"replicas": 2})
    assert (refused.status_code, code(refused)) == (403, "permission_denied")
    assert "patch workerpools/scale.engineroom.dev" in refused.json()["detail"]
    assert (await api.post(f"{path}/scale", scaler, {"replicas": 2})).status_code == 200
    assert (await api.get("/audit", scaler)).status_code == 403
    # A key would outlive the token and what the cluster says of it.
    assert (await api.post("/keys", scaler, {"name": "x"})).status_code == 403
    may = (await api.get(f"/access?namespace={namespace}", scaler)).json()["permissions"]
    assert "namespace:pools:scale" in may
    assert "namespace:manifests:apply" not in may


async def test_a_revoked_right_ends_within_a_second(
    api: Api, client: Client, namespace: str, person: Any
) -> None:
    token = await person("reader", {**POOLS, "verbs": ["get", "list"]})
    path = f"/namespaces/{namespace}/pools"
    assert (await api.get(path, token)).status_code == 200
    await client.delete(BINDINGS, namespace, "reader")

    async def refused() -> bool:
        return (await api.get(path, token)).status_code == 403

    await eventually("the right is gone", refused, 2.5)


async def test_forged_tokens_are_refused(api: Api) -> None:
    for token in ("x", "a.b.c", "erk_x", "x" * 9000):
        answer = await api.get("/whoami", token)
        assert answer.status_code == 401, token


# -- people with a password -------------------------------------------------------------------


async def test_changes_by_session_need_the_csrf_token(api: Api) -> None:
    wrong = await api.post("/sessions", body={"name": "admin", "password": "wrong"})
    assert (wrong.status_code, code(wrong)) == (401, "credentials_invalid")
    done = await api.post("/sessions", body={"name": "admin", "password": ADMIN_PASSWORD})
    assert done.status_code == 201
    assert done.headers["set-cookie"].startswith("__Host-engineroom=")
    handle = done.json()["session"]["handle"]
    assert (await api.get("/whoami")).json()["how"] == "session"
    listed = (await api.get("/sessions")).json()["items"]
    assert [(item["handle"], item["current"]) for item in listed] == [(handle, True)]
    path = f"/sessions/{handle}"
    assert code(await api.call("DELETE", path)) == "csrf_token_invalid"
    ended = await api.call("DELETE", path, x_csrf_token=done.json()["csrf"])
    assert ended.status_code == 204
    assert code(await api.get("/whoami")) == "session_invalid"


async def test_tokens_are_refreshed_once_and_revoked_by_an_administrator(api: Api) -> None:
    body = {"name": "admin", "password": ADMIN_PASSWORD}
    pair = (await api.post("/tokens", body=body)).json()
    assert (await api.get("/whoami", pair["access"])).json()["how"] == "token"
    new = await api.post("/tokens/refresh", body={"refresh": pair["refresh"]})
    assert new.status_code == 201
    admin = await api.key("admin")
    ended = await api.call("DELETE", "/users/user:admin/sessions", admin)
    assert ended.status_code == 204
    assert (await api.get("/whoami", new.json()["access"])).status_code == 401
    key_set = await api.get("/.well-known/jwks.json")
    assert key_set.json()["keys"][0]["kty"] == "OKP"


async def test_a_key_has_no_more_rights_than_its_creator(api: Api, namespace: str) -> None:
    operator = await api.token("operator", namespace)
    more = {"name": "x", "grants": [{"role": "admin", "namespaces": [namespace]}]}
    assert (await api.post("/keys", operator, more)).status_code == 403
    wider = {"name": "x", "grants": [{"role": "operator", "namespaces": ["*"]}]}
    assert (await api.post("/keys", operator, wider)).status_code == 403
    narrow = {"name": "x", "scopes": ["self:keys:manage", "namespace:pools:read"]}
    scoped = (await api.post("/keys", operator, narrow)).json()["secret"]
    assert (await api.get(f"/namespaces/{namespace}/queues", scoped)).status_code == 403
    assert (await api.get(f"/namespaces/{namespace}/pools", scoped)).status_code == 200
    # With a scoped token no unscoped one can be made, nor rotated.
    unscoped = (await api.post("/keys", operator, {"name": "z"})).json()["key"]["id"]
    scoped = await api.token("operator", namespace, scopes=narrow["scopes"])
    again = (await api.post("/keys", scoped, {"name": "y"})).json()["key"]
    assert again["scopes"] == ["namespace:pools:read", "self:keys:manage"]
    assert (await api.post(f"/keys/{unscoped}/rotate", scoped, {})).status_code == 403
    assert (await api.post(f"/keys/{again['id']}/rotate", scoped, {})).status_code == 201


async def test_a_key_neither_creates_nor_rotates_keys(api: Api) -> None:
    admin = await api.token("admin")
    created = (await api.post("/keys", admin, {"name": "x", "days": 1, "rate": 1})).json()
    strong = (await api.post("/keys", admin, {"name": "y"})).json()["key"]["id"]
    leaked = created["secret"]
    for path, body in (
        ("/keys", {"name": "z", "days": 366}),
        (f"/keys/{created['key']['id']}/rotate", {}),
        (f"/keys/{strong}/rotate", {}),
    ):
        answer = await api.post(path, leaked, body)
        assert (answer.status_code, code(answer)) == (403, "permission_denied"), path
        assert "sign in" in answer.json()["detail"]
    assert len((await api.get("/keys", admin)).json()["items"]) == 2
    # To be rid of it, it is enough.
    assert (await api.call("DELETE", f"/keys/{created['key']['id']}", leaked)).status_code == 204
    assert (await api.get("/whoami", leaked)).status_code == 401


async def test_a_key_of_another_user_is_reported_as_missing(api: Api) -> None:
    mine, theirs = await api.key("viewer", "a", owner="program:a"), await api.key("viewer", "a")
    identity = (await api.get("/keys", theirs)).json()["items"][0]["id"]
    for other in (identity, "0" * 16):
        answer = await api.call("DELETE", f"/keys/{other}", mine)
        assert (answer.status_code, code(answer)) == (404, "not_found")
    assert (await api.get("/whoami", theirs)).status_code == 200
    admin = await api.key("admin")
    assert (await api.call("DELETE", f"/users/program:viewer/keys/{identity}", admin)).is_success
    assert (await api.get("/whoami", theirs)).status_code == 401


# -- records ----------------------------------------------------------------------------------


async def test_changes_and_denied_changes_are_audited_and_reads_are_not(
    api: Api, client: Client, namespace: str
) -> None:
    await made(client, namespace, "mail", replicas=1)
    path = f"/namespaces/{namespace}/pools/mail"
    operator, viewer = await api.key("operator", namespace), await api.key("viewer", namespace)
    await api.get(path, viewer)
    await api.post(f"{path}/scale", viewer, {"replicas": 2})
    await api.post(f"{path}/scale", operator, {"replicas": 2}, x_request_id="req-7")
    await api.post(f"{path}/scale", operator, {"replicas": -2})
    admin = await api.key("admin")
    page = (await api.get("/audit", admin)).json()
    entries = [(r["body"]["who"], r["body"]["action"], r["body"]["outcome"]) for r in page["items"]]
    assert entries == [
        ("program:viewer", "pool.scale", "denied"),
        ("program:operator", "pool.scale", "done"),
        ("program:operator", "pool.scale", "failed"),
    ]
    done = page["items"][1]["body"]
    assert done["details"] == {"replicas": 2}
    assert (done["request"], done["target"]) == ("req-7", f"pools/{namespace}/mail")
    assert re.fullmatch(r"key \w+", done["how"])
    assert (await api.get("/audit/check", admin)).json()["intact"] is True


async def test_an_audit_record_names_the_token(api: Api) -> None:
    """The id of a token is not secret and must not be redacted: tokens are revoked by it."""
    body = {"name": "admin", "password": ADMIN_PASSWORD}
    pair = (await api.post("/tokens", body=body)).json()
    await api.post("/keys", pair["access"], {"name": "x"})
    page = (await api.get("/audit", await api.key("admin"))).json()
    [created] = [r["body"] for r in page["items"] if r["body"]["action"] == "key.make"]
    claims = json.loads(base64.urlsafe_b64decode(pair["access"].split(".")[1] + "=="))
    assert created["how"] == f"token {claims['jti']}"


async def test_passwords_and_keys_are_in_no_record(api: Api, capsys: Any) -> None:
    body = {"name": "admin", "password": ADMIN_PASSWORD}
    await api.post("/sessions", body=body)
    secret = (await api.post("/keys", await api.token("admin"), {"name": "x"})).json()["secret"]
    page = (await api.get("/audit", await api.key("admin"))).text
    output = page + capsys.readouterr().out
    assert '"session.open"' in output
    assert ADMIN_PASSWORD not in output
    assert secret not in output


# -- queues and schedules ---------------------------------------------------------------------


async def test_only_queues_of_the_namespaces_pools_are_listed(
    api: Api, client: Client, namespace: str
) -> None:
    other = f"{namespace}-b"
    await client.create(NAMESPACES, shared_namespace(other))
    await made(client, namespace, "mail")
    await made(client, other, "bills")
    tasks = api.services.tasks
    await tasks.enqueue(Task("tests.integration.tasks.work.add", (1,), queue="mail"))
    for queue in ("mail", "bills"):
        task = Task("tests.integration.tasks.work.add", (1,), queue=queue)
        await tasks.put_schedule(Schedule(f"tick-{queue}", Cron("0 0 * * *"), task))
    operator = await api.key("operator", namespace)

    async def seen() -> bool:
        return api.services.hub.queues(namespace) == {"mail"}

    await eventually("the pool is listed", seen, 5)
    here = f"/namespaces/{namespace}"
    listed = (await api.get(f"{here}/queues", operator)).json()["items"]
    assert [(item["name"], item["waiting"]) for item in listed] == [("mail", 1)]
    schedules = (await api.get(f"{here}/schedules", operator)).json()["items"]
    assert [schedule["name"] for schedule in schedules] == ["tick-mail"]
    missing = await api.call("DELETE", f"{here}/schedules/tick-bills", operator)
    assert missing.status_code == 404
    assert (await api.call("DELETE", f"{here}/schedules/tick-mail", operator)).status_code == 204
    assert [schedule.name for schedule in await tasks.schedules()] == ["tick-bills"]
    await client.delete(NAMESPACES, None, other)


async def test_only_jobs_of_the_namespaces_queues_are_listed(
    api: Api, client: Client, namespace: str
) -> None:
    await made(client, namespace, "mail")
    tasks, operator = api.services.tasks, await api.key("operator", namespace)
    ours = await tasks.enqueue(Task("tests.integration.tasks.work.add", (1, 2), queue="mail"))
    theirs = await tasks.enqueue(Task("tests.integration.tasks.work.add", (1,), queue="bills"))
    await eventually("listed", lambda: api.services.hub.queues(namespace) == {"mail"}, 5)
    here = f"/namespaces/{namespace}/jobs"
    listed = (await api.get(here, operator)).json()
    assert [(j["id"], j["state"]) for j in listed["items"]] == [(ours.job_id, "waiting")]
    assert (await api.get(f"{here}?queue=bills", operator)).json()["items"] == []
    job = (await api.get(f"{here}/{ours.job_id}", operator)).json()
    assert (job["args"], job["ahead"]) == ([1, 2], 0)
    assert (await api.get(f"{here}/{theirs.job_id}", operator)).status_code == 404
    assert (await api.post(f"{here}/{theirs.job_id}/retry", operator)).status_code == 404
    retried = await api.post(f"{here}/{ours.job_id}/retry", operator)
    assert (retried.status_code, code(retried)) == (409, "job_not_failed")
    redis = api.services.redis
    await redis.hset(f"rq:job:{ours.job_id}", "status", "failed")
    await redis.lrem("rq:queue:mail", 0, ours.job_id)
    await redis.zadd("rq:failed:mail", {ours.job_id: 1e12})
    done = await api.post(f"{here}/{ours.job_id}/retry", operator)
    assert done.json() == {"id": ours.job_id, "queue": "mail"}
    assert (await api.post(f"{here}/{theirs.job_id}/cancel", operator, {})).status_code == 404
    canceled = await api.post(f"{here}/{ours.job_id}/cancel", operator, {})
    assert canceled.json() == {"canceled": [ours.job_id], "running": [], "skipped": 0}
    assert (await api.get(f"{here}?state=canceled", operator)).json()["items"][0]["id"]


# -- limits, document, probes -----------------------------------------------------------------


async def test_too_many_requests_get_retry_after(api: Api, settings: Any, api_config: Any) -> None:
    app = create_application(settings.model_copy(update={"requests_per_second": 1}), api_config)
    async with app.router.lifespan_context(app):
        slow = Api(app)
        token = await api.key("viewer", "shop")
        answers = [await slow.get("/whoami", token) for _ in range(12)]
        await slow.aclose()
    assert [answer.status_code for answer in answers[:10]] == [200] * 10
    assert (answers[-1].status_code, code(answers[-1])) == (429, "limit_reached")
    assert int(answers[-1].headers["retry-after"]) >= 1


async def test_unauthenticated_requests_of_one_ipv6_subscriber_share_a_limit(
    settings: Any, api_config: Any
) -> None:
    changes = {"requests_per_second": 1, "trusted_proxy_hops": 1}
    app = create_application(settings.model_copy(update=changes), api_config)
    async with app.router.lifespan_context(app):
        api = Api(app)
        await api.services.redis.flushall()
        await api.services.signing_keys.ensure()

        async def ask(address: str) -> int:
            return (await api.get("/openapi.json", x_forwarded_for=address)).status_code

        statuses = [await ask(f"2001:db8:1:2::{n:x}") for n in range(15)]
        other = await ask("2001:db8:1:3::1")
        await api.aclose()
    assert statuses[:10] == [200] * 10
    assert set(statuses[11:]) == {429}
    assert other == 200


async def test_few_forged_tokens_reach_the_cluster(
    settings: Any, api_config: Any, person: Any, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reviewed: list[str] = []
    review = ClusterReviewer.review_token

    async def counted(self: Any, token: str, audiences: Any) -> Any:
        reviewed.append(token)
        return await review(self, token, audiences)

    monkeypatch.setattr(ClusterReviewer, "review_token", counted)
    token = await person("reader", {**POOLS, "verbs": ["get", "list"]})
    app = create_application(settings.model_copy(update={"trusted_proxy_hops": 1}), api_config)
    async with app.router.lifespan_context(app):
        api = Api(app)
        await api.services.redis.flushall()
        await api.services.signing_keys.ensure()
        await api.services.revocations.read()
        head, payload, _ = token.split(".")
        made_up = [f"{head}.{payload}.{'x' * 10}{n}" for n in range(90)]
        assert (await api.get("/whoami", token, x_forwarded_for="192.0.2.1")).status_code == 200
        answers = await asyncio.gather(
            *(api.get("/whoami", item, x_forwarded_for="192.0.2.1") for item in made_up)
        )
        refused = [answer for answer in answers if answer.status_code == 429]
        assert {answer.status_code for answer in answers} == {401, 429}
        assert {item.headers["retry-after"] for item in refused} <= {"1", "2"}
        assert len(reviewed) <= 66
        # Whom the cluster knew before from there, and who has a key of ours, is served.
        assert (await api.get("/whoami", token, x_forwarded_for="192.0.2.1")).status_code == 200
        key = await api.key("viewer", namespace)
        assert (await api.get("/whoami", key, x_forwarded_for="192.0.2.1")).status_code == 200
        await api.aclose()
    swept()


async def test_early_refusals_have_the_security_headers(api: Api) -> None:
    big = {"content-length": str(10**9)}
    wrong = {"content-encoding": "br"}
    many = {f"x-{n}": "1" for n in range(200)}
    for headers, status in ((big, 413), (wrong, 415), (many, 431)):
        answer = await api.http.post("/api/v1/tokens", headers=headers, content=b"{}")
        assert answer.status_code == status
        assert {k: answer.headers.get(k) for k in SECURITY_HEADERS} == SECURITY_HEADERS


async def test_the_openapi_page_has_no_script(api: Api) -> None:
    document = (await api.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    page = await api.get("/docs")
    assert "<script" not in page.text
    assert "http" not in page.text.replace("https://engineroom", "")
    assert (await api.get("/docs.css")).headers["content-type"].startswith("text/css")


async def test_readiness_needs_listed_pools_and_redis(api: Api) -> None:
    assert (await api.get("/healthz")).status_code == 200
    assert (await api.get("/readyz")).status_code == 200
    api.services.hub.pools.synced.clear()
    assert (await api.get("/readyz")).status_code == 503
