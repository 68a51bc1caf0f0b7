"""`engineroom ratelimit`: what would be answered is what is answered, and nothing is taken."""

from __future__ import annotations

import json
import secrets
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engineroom.cli.commands.get import get as get_command
from engineroom.cli.commands.ratelimit import explain, top, try_request
from engineroom.cli.commands.status import status
from engineroom.cli.connections.options import ConnectionOptions
from engineroom.cli.errors import NotFoundError, UnreachableError, UsageError
from engineroom.cli.views.output_formats import OutputFormat, ReportFormat
from engineroom.core.errors import DependencyError
from engineroom.ratelimit.distribution import redis_schema
from engineroom.ratelimit.distribution.document import Target, digest
from engineroom.ratelimit.limits.bound import bound_text, leased_ahead
from engineroom.ratelimit.limits.decision import DecisionSource
from engineroom.ratelimit.limits.dry_run import SimulatedRequest, dry_run
from engineroom.ratelimit.limits.limiter import Limiter
from engineroom.ratelimit.limits.matching import Condition
from engineroom.ratelimit.limits.model import (
    Algorithm,
    Distribution,
    DistributionMode,
    Failure,
    Limit,
    MissingKey,
    Mode,
    Policy,
    Rate,
    Tier,
)
from engineroom.ratelimit.limits.request import RequestView
from engineroom.ratelimit.limits.sources import ClientIP, Header, JWTClaim, subject_of
from tests.integration.test_cli import Place
from tests.limiter import compiled, get, limiter_process, publish
from tests.support import free_port
from tests.unit.cli.memory import MemoryCluster, Trial, run_command

if TYPE_CHECKING:
    from pathlib import Path

    import redis

    from engineroom.kube.client.resources import Resource
    from tests.cluster.api import Cluster
    from tests.support import RedisServer

ADDRESS = "192.0.2.7"


class World(MemoryCluster):
    """A cluster that has policies and nothing else."""

    def __init__(self, *policies: dict[str, Any]) -> None:
        super().__init__()
        self.namespace = "shop"
        self.policies = list(policies)

    def read(self, resource: Resource, namespace: str | None, name: str) -> dict[str, Any]:
        for first in self.read_all(resource, namespace):
            if first["metadata"]["name"] == name:
                return first
        raise NotFoundError(f"{resource.kind} {namespace}/{name} is not there")

    def read_all(
        self, resource: Resource, namespace: str | None, selector: str | None = None
    ) -> list[dict[str, Any]]:
        del selector
        if resource.kind != "RateLimitPolicy":
            return []
        return [
            policy
            for policy in self.policies
            if namespace in (None, policy["metadata"]["namespace"])
        ]


def trial(world: World, url: str = "") -> Trial:
    built = Trial(world, namespace="shop")
    options = ConnectionOptions(namespace="shop", redis_url=url or None)
    built.context.connections.options = options
    return built


def manifest(name: str = "api", **conditions: tuple[str, str, str]) -> dict[str, Any]:
    reported = [
        {
            "type": kind,
            "status": value,
            "reason": reason,
            "message": message,
            "observedGeneration": 2,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        for kind, (value, reason, message) in conditions.items()
    ]
    return {
        "apiVersion": "engineroom.dev/v1alpha1",
        "kind": "RateLimitPolicy",
        "metadata": {"namespace": "shop", "name": name, "generation": 2},
        "spec": {
            "selector": {"matchLabels": {"app": "shop"}},
            "limits": [{"name": "per-address", "rate": {"requests": 3, "period": "1h"}}],
        },
        "status": {"conditions": reported, "enforcers": {"ready": 1, "total": 1}},
    }


ENFORCED = ("True", "Enforced", "every live enforcer acknowledged it")
POLICY = Policy(
    "shop/api",
    (
        Limit(
            "per-address",
            Rate(3, 3600),
            key=(ClientIP(),),
            tiers=(Tier("gold", (Condition(JWTClaim("plan"), values=("gold",)),), Rate(30, 3600)),),
        ),
        Limit("per-key", Rate(2, 3600), key=(Header("X-Api-Key"),), missing_key=MissingKey.SKIP),
        Limit("tried", Rate(1, 3600), mode=Mode.SHADOW),
    ),
    Failure(timeout=1.0),
)


def ask(trial: Trial, *names: str, code: int = 0, **options: Any) -> dict[str, Any]:
    value: dict[str, Any] = {"client_ip": ADDRESS, **options}
    if code:
        with pytest.raises(typer.Exit) as end:
            run_command(
                try_request, trial.context, names=list(names), output=ReportFormat.JSON, **value
            )
        assert end.value.exit_code == code
    else:
        run_command(
            try_request, trial.context, names=list(names), output=ReportFormat.JSON, **value
        )
    actual: dict[str, Any] = json.loads(trial.out)
    return actual


def test_a_request_is_tried_without_being_counted(store: redis.Redis, server: RedisServer) -> None:
    publish(store, [compiled(POLICY)])
    before = sorted(store.keys())
    for _ in range(5):
        actual = ask(trial(World(), server.url), "api")
    assert sorted(store.keys()) == before, "nothing was taken"
    (first,) = actual["policies"]
    assert (first["allowed"], first["status"], first["limit"]) == (True, None, "per-address")
    limits = {limit["limit"]: limit for limit in first["limits"]}
    assert limits["per-address"]["left"] == 3
    assert limits["per-address"]["key"] == ["ClientIP=192.0.2.7"]
    assert limits["per-key"] == {
        "limit": "per-key", "applies": False, "why": "its key is missing, and missingKey is Skip",
    }  # fmt: skip


def test_with_consume_it_is_counted_and_then_refused_with_1(
    store: redis.Redis, server: RedisServer
) -> None:
    publish(store, [compiled(POLICY)])
    for left in (3, 2, 1):
        actual = ask(trial(World(), server.url), "api", consume=True)
        (first,) = actual["policies"]
        assert first["consumed"]
        assert first["limits"][0]["left"] == left
    actual = ask(trial(World(), server.url), "api", code=1)
    (first,) = actual["policies"]
    assert (first["status"], first["reason"], first["limit"]) == (429, "Limited", "per-address")
    assert 1190 < first["retryAfter"] <= 1200
    assert first["shadowed"] == ["tried"]
    output = trial(World(), server.url)
    with pytest.raises(typer.Exit):
        run_command(try_request, output.context, names=["rlp/api"], client_ip=ADDRESS)
    assert "would be refused (Limited, 429) by limit per-address: try again in" in output.out


def test_tiers_cost_and_secrets(store: redis.Redis, server: RedisServer) -> None:
    publish(store, [compiled(POLICY)])
    query = {"claims": ["plan=gold"], "headers": ["X-Api-Key: hunter2"], "cost": 2}
    actual = ask(trial(World(), server.url), "api", **query)
    assert "hunter2" not in json.dumps(actual)
    first, tier, per_key, _ = actual["policies"][0]["limits"]
    assert first["why"] == "tier gold counts in its place"
    assert (tier["limit"], tier["quota"], tier["needed"]) == ("per-address/gold", 30, 2)
    assert per_key["key"][0].startswith("Header X-Api-Key=#")
    actual = ask(trial(World(), server.url), "api", code=1, **{**query, "cost": 3})
    one = actual["policies"][0]
    assert (one["reason"], one["retryAfter"], one["limit"]) == ("CostAboveBurst", None, "per-key")


def test_by_target_by_labels_and_by_name(store: redis.Redis, server: RedisServer) -> None:
    publish(store, [compiled(POLICY, [Target("g", "HTTPRoute", "checkout")])])
    world = World()
    assert len(ask(trial(world, server.url), target="HTTPRoute/checkout")["policies"]) == 1
    assert ask(trial(world, server.url), target="HTTPRoute/other")["policies"] == []
    assert ask(trial(world, server.url), labels="app=other")["policies"] == []
    for wrong in ({"target": "checkout"}, {"labels": "app"}, {"client_ip": "x"},
                  {"headers": ["x"]}, {"claims": ["x"]},
                  {"target": "HTTPRoute/a", "labels": "a=b"}):  # fmt: skip
        with pytest.raises(UsageError):
            run_command(try_request, trial(world, server.url).context, names=None, **wrong)
    with pytest.raises(NotFoundError, match="missing"):
        run_command(try_request, trial(world, server.url).context, names=["missing"])
    store.flushall()
    with pytest.raises(NotFoundError, match="no policies"):
        run_command(try_request, trial(world, server.url).context, names=None)
    with pytest.raises(DependencyError):
        run_command(
            try_request, trial(world, f"redis://127.0.0.1:{free_port()}").context, names=None
        )


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_what_would_be_answered_is_what_is_answered(data: st.DataObject, store: Any) -> None:
    store.flushall()
    limits = tuple(
        Limit(
            f"l{place}",
            Rate(data.draw(st.integers(1, 5)), 3600),
            algorithm=data.draw(st.sampled_from(Algorithm)),
            cost=1,
            mode=data.draw(st.sampled_from(Mode)),
            key=(Header("k"),),
            missing_key=data.draw(st.sampled_from(MissingKey)),
        )
        for place in range(data.draw(st.integers(1, 4)))
    )
    policy = Policy("shop/drawn", limits, Failure(timeout=2.0))
    with Limiter(policy, store) as limiter:
        for _ in range(data.draw(st.integers(1, 8))):
            headers = data.draw(st.sampled_from([{}, {"k": "a"}, {"k": "b"}]))
            cost = data.draw(st.integers(1, 6))
            view = RequestView(headers=headers)
            keys = state(store)
            trial_run = dry_run(policy, store, SimulatedRequest(headers=headers, cost=cost))
            assert state(store) == keys
            done = limiter.hit(subject_of(policy, view), cost)
            predicted = trial_run.decision
            assert predicted[:2] == done[:2]
            assert predicted.limit == done.limit
            if done.source is DecisionSource.REDIS:
                # A refusal that is remembered asks no limit, so it names none in shadow mode.
                assert predicted.shadowed == done.shadowed
            enforced = [limit for limit in trial_run.limits if limit.limit.mode is Mode.ENFORCE]
            refusing = [limit for limit in enforced if not limit.not_applied and limit.wait != 0.0]
            assert bool(refusing) != done.allowed


def state(store: redis.Redis) -> dict[str, Any]:
    keys: Any = store.keys()
    return {key: store.get(key) for key in keys}


def test_explain_says_who_has_it_and_what_bound_holds(
    store: redis.Redis, server: RedisServer
) -> None:
    leased = Policy(
        "shop/api",
        (Limit("per-address", Rate(100, 1), burst=50, key=(ClientIP(),)),),
        distribution=Distribution(DistributionMode.LEASED, "0.5", lease_ttl=0.1),
    )
    publish(store, [compiled(leased)])
    document = json.loads(store.get(redis_schema.keys_of("shop").document) or "{}")
    beat(
        store,
        "new",
        redis_schema.Acknowledgement(document["hash"], document["revision"], "test", "limiter"),
    )
    beat(
        store,
        "web",
        redis_schema.Acknowledgement(document["hash"], document["revision"], "test", "middleware"),
    )
    beat(
        store,
        "old",
        redis_schema.Acknowledgement(digest("older"), 0, "test", "limiter", "cannot read it"),
    )
    built = manifest(Accepted=ENFORCED, Programmed=ENFORCED, Enforced=ENFORCED)
    del built["spec"]["selector"]
    built["spec"]["targetRefs"] = [{"kind": "Service", "name": "shop"}]
    world = World(built)
    output = trial(world, server.url)
    explain(output.context, "api", output=ReportFormat.JSON)
    actual = json.loads(output.out)
    assert [(enforcer["name"], enforcer["acknowledged"]) for enforcer in actual["enforcers"]] == [
        ("new", True), ("old", False), ("web", None),
    ]  # fmt: skip
    assert [enforcer["enforces"] for enforcer in actual["enforcers"]] == [True, True, False]
    assert actual["distribution"] == "Leased"
    assert actual["limits"][0]["bound"] == "50 + 100 every 1 s + 10 leased"
    output = trial(world, server.url)
    explain(output.context, "rlp/api")
    assert "cannot read it" in output.out
    assert "not yet" in output.out
    assert "each enforcer admits its share" in output.out
    assert "enforces others" in output.out
    # Without the decision services it says who is missing.
    keys = redis_schema.keys_of("shop")
    store.zrem(keys.alive, "new", "old")
    output = trial(world, server.url)
    explain(output.context, "api")
    assert "no decision service follows this namespace" in " ".join(output.out.split())


def beat(store: redis.Redis, identity: str, acknowledgement: redis_schema.Acknowledgement) -> None:
    keys = redis_schema.keys_of("shop")
    store.eval(
        redis_schema.HEARTBEAT.source, 6,
        keys.head, keys.alive, keys.entries, keys.acknowledgements,
        redis_schema.peers_key("shop", "test"), keys.fallbacks,
        identity, acknowledgement.text(), "10000000", "60000000", "10",
    )  # fmt: skip


def test_explain_says_conflicts_and_what_to_do_also_without_redis(store: redis.Redis) -> None:
    lost = "the selector belongs to the older policy first"
    world = World(
        manifest(
            Accepted=("False", "Conflicted", lost),
            Programmed=("False", "NotProgrammed", "see Accepted"),
            Ready=("False", "Conflicted", lost),
        )
    )
    output = trial(world, f"redis://127.0.0.1:{free_port()}")
    explain(output.context, "api")
    assert lost in output.out
    assert "fix: delete one of the two" in output.out
    assert "Redis was not asked" in output.out
    assert "Unknown" in output.out, "of Enforced nothing is known"
    # Without a Redis that can be found it says so and goes on.
    explain(trial(world).context, "api", output=ReportFormat.YAML)
    with pytest.raises(NotFoundError):
        explain(trial(world).context, "other")


def test_what_a_condition_said_of_an_older_spec_counts_for_nothing() -> None:
    policy = manifest(Ready=ENFORCED, Enforced=ENFORCED)
    policy["metadata"]["generation"] = 3
    world = World(policy)
    output = trial(world)
    get_command(output.context, ["policies"])
    assert "Outdated" in output.out
    assert "Ready" not in output.out


def test_get_and_status_show_policies() -> None:
    good = manifest("good", Ready=ENFORCED, Enforced=ENFORCED)
    bad = manifest("bad", Ready=("False", "InvalidSpec", "spec.limits: at least one"))
    for words in (["policies"], ["rlp"], ["ratelimitpolicies.engineroom.dev"]):
        output = trial(World(good, bad))
        get_command(output.context, words)
        assert [line.split()[:2] for line in output.out.splitlines()] == [
            ["NAME", "STATE"], ["bad", "InvalidSpec"], ["good", "Ready"],
        ]  # fmt: skip
    output = trial(World(good, bad))
    get_command(output.context, ["rlp/good"], output=OutputFormat.JSON)
    assert json.loads(output.out)["metadata"]["name"] == "good"
    output = trial(World(good, bad))
    get_command(output.context, ["policies"], output=OutputFormat.WIDE)
    assert "applications with app=shop" in output.out
    output = trial(World(good, bad))
    with pytest.raises(typer.Exit):
        status(output.context)
    assert "2 policies, 1 not enforced: shop/bad (InvalidSpec)" in output.out
    assert "ratelimit explain bad -n shop" in output.out


def test_top_shows_the_keys_of_all_namespaces_or_of_one_policy(
    store: redis.Redis, server: RedisServer, tmp_path: Path
) -> None:
    secret = Limit("per-key", Rate(1000, 1), key=(Header("X-Api-Key"),))
    publish(store, [compiled(POLICY), compiled(Policy("shop/other", (secret,)))])
    with limiter_process(server.url, tmp_path, namespaces="shop") as process:
        ended = threading.Event()

        def load() -> None:
            while not ended.is_set():
                for name in ("api", "other"):
                    headers = {"X-Forwarded-For": ADDRESS, "X-Api-Key": "hunter2"}
                    get(f"{process.url}/v1/forward/shop/{name}", headers)
                time.sleep(0.01)

        thread = threading.Thread(target=load)
        thread.start()
        try:
            door = f"127.0.0.1:{process.admin_port}"
            output = trial(World())
            top(output.context, "other", seconds=0.5, limiter=door, output=ReportFormat.JSON)
            actual = json.loads(output.out)
            plain = trial(World())
            top(plain.context, None, seconds=0.5, limiter=door)
        finally:
            ended.set()
            thread.join()
    assert {key["policy"] for key in actual["keys"]} == {"other"}
    assert "hunter2" not in output.out + plain.out
    assert "192.0.2.7" in plain.out
    with pytest.raises(NotFoundError, match="--system-namespace"):
        top(trial(World()).context, None, seconds=0.1)
    named = trial(World())
    named.context.connections.options = ConnectionOptions(system_namespace="system")
    with pytest.raises(NotFoundError, match="decision service runs in namespace system"):
        top(named.context, None, seconds=0.1)
    with pytest.raises(UnreachableError):
        top(trial(World()).context, None, seconds=0.1, limiter=f"127.0.0.1:{free_port()}")


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (Algorithm.TOKEN_BUCKET, "5 + 10 every 60 s"),
        (Algorithm.SLIDING_WINDOW, "10 in any 60 s"),
        (Algorithm.FIXED_WINDOW, "10 from tick to tick, 20 in any 60 s"),
    ],
)
def test_bounds(algorithm: Algorithm, expected: str) -> None:
    burst = 5 if algorithm is Algorithm.TOKEN_BUCKET else 0
    limit = Limit("all", Rate(10, timedelta(minutes=1)), burst=burst, algorithm=algorithm)
    policy = Policy("shop/api", (limit,))
    assert bound_text(policy, limit) == expected
    assert leased_ahead(policy, limit) == 0


def test_as_a_program_with_its_exit_codes(
    control_plane: Cluster, server: RedisServer, store: redis.Redis
) -> None:
    place = Place(control_plane, f"limits-{secrets.token_hex(4)}")
    place.kubectl("create", "namespace", place.namespace)
    try:
        built = manifest()
        built["metadata"] = {"name": "api", "namespace": place.namespace}
        del built["status"]
        place.kubectl("create", "-f", "-", document=built)
        assert place.run("get", "rlp").stdout.split()[6:8] == ["api", "Unseen"]
        reported = place.run("ratelimit", "explain", "api").stdout
        assert "no operator has looked at the policy yet" in reported
        place.run("ratelimit", "explain", "other", code=4)
        place.environment["ENGINEROOM_REDIS_URL"] = server.url
        place.run("ratelimit", "test", "api", code=4)
        policy = Policy(f"{place.namespace}/api", (Limit("all", Rate(1, 3600)),))
        publish(store, [compiled(policy)])
        place.run("ratelimit", "test", "api", "--consume")
        refused = place.run("ratelimit", "test", "api", "-p", "/a?b=c", code=1)
        assert "would be refused (Limited, 429)" in refused.stdout
        place.run("ratelimit", "test", "api", "--client-ip", "nowhere", code=2)
        place.run("ratelimit", "test", "api", "--cost", "0", code=2)
        place.run("ratelimit", "top", "--limiter", f"127.0.0.1:{free_port()}", code=3)
        place.environment["ENGINEROOM_REDIS_URL"] = f"redis://127.0.0.1:{free_port()}"
        place.run("ratelimit", "test", "api", code=3)
    finally:
        place.kubectl("delete", "namespace", place.namespace, "--wait=false")
