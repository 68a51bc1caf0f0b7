"""The decision service and the API as the chart runs them: real pods, real nginx, real tokens."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import re
import secrets
import shutil
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from engineroom.auth.login.passwords import Passwords
from engineroom.cli.connections.kubernetes_cluster import KubernetesCluster
from engineroom.cli.connections.port_forward import PortForward
from tests.deployed import images
from tests.deployed.installation import NAMESPACE as SYSTEM
from tests.deployed.kube import condition, wait_for
from tests.deployed.web import EXAMPLE, LIMITER, POLICY, Web, wait_enforced
from tests.deployed.web import NAMESPACE as SHOP
from tests.e2e.person import cookie, person, ui
from tests.e2e.pool import NAMESPACE, VALUES, template
from tests.integration.console.command import Command
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.deployed.installation import Installation
    from tests.deployed.kube import Object

pytestmark = pytest.mark.timeout(300)

SERVICES = ("api", "limiter")
PEOPLE = "people-passwords"
PASSWORD = "a password for three"  # nosec B105


def accounts(**roles: str) -> dict[str, Any]:
    """Return the chart's values of the API with these accounts."""
    people = [
        {"name": name, "grants": [{"role": role, "namespaces": [NAMESPACE]}]}
        for name, role in roles.items()
    ]
    return {"api": {"enabled": True, "accountsSecret": PEOPLE, "accounts": people}}


VALUES_WITH_SERVICES = {
    **VALUES,
    **accounts(ada="operator", bob="viewer"),
    "limiter": {"enabled": True},
    "networkPolicy": {"limiterClients": [SHOP]},
    "metrics": {"serviceMonitor": {"enabled": True}, "dashboards": {"enabled": True}},
}
#: The kind that the Prometheus operator brings, as far as the chart needs it to be there.
SERVICE_MONITORS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "servicemonitors.monitoring.coreos.com"},
    "spec": {
        "group": "monitoring.coreos.com",
        "scope": "Namespaced",
        "names": {
            "kind": "ServiceMonitor",
            "listKind": "ServiceMonitorList",
            "plural": "servicemonitors",
            "singular": "servicemonitor",
        },
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}


@pytest.fixture(scope="module", autouse=True)
def services(installation: Installation) -> Iterator[None]:
    """Both services, added to the installation and removed again before the tests of pools."""
    installation.kubectl("apply", "-f", "-", stdin=json.dumps(SERVICE_MONITORS))
    hashed = asyncio.run(Passwords().hash(PASSWORD))
    passwords = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": PEOPLE, "namespace": SYSTEM},
        "stringData": dict.fromkeys(("ada", "bob", "eve"), hashed),
    }
    installation.kubectl("apply", "-f", "-", stdin=json.dumps(passwords))
    installation.upgrade(VALUES_WITH_SERVICES)
    secret = installation.kube.get("secrets", SYSTEM, "engineroom-api")["data"]
    yield
    installation.upgrade(VALUES)
    # What the API left in Redis is sealed with it: without, it could not be switched on again.
    assert installation.kube.get("secrets", SYSTEM, "engineroom-api")["data"] == secret


@pytest.fixture(scope="module")
def web(
    installation: Installation, services: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Web]:
    """The example's web application, limited by its policy.

    nginx and limiters have longer timeouts than in the example: on a machine that runs other tests
    too, a process may wait half a second for the CPU, which is not under test.
    """
    example = tmp_path_factory.mktemp("example") / "web"
    shutil.copytree(EXAMPLE, example)
    text = (example / "shop.conf").read_text()
    for short, long in (("connect_timeout 100ms", "connect_timeout 2s"), ("500ms", "5s")):
        assert short in text
        text = text.replace(short, long)
    (example / "shop.conf").write_text(text)
    web = Web(installation)
    web.deploy(example)
    for name in ("shop", "nginx"):
        web.rolled_out(SHOP, name)
    policy = yaml.safe_load((EXAMPLE / "policy.yaml").read_text())
    policy["spec"]["failure"]["timeout"] = "3s"
    web.kube.apply("ratelimitpolicies", SHOP, policy)
    yield web
    installation.kubectl("delete", "namespace", SHOP, "--wait=false")


def pods(installation: Installation, component: str) -> list[Object]:
    selector = f"app.kubernetes.io/component={component}"
    return installation.kube.all("pods", SYSTEM, selector=selector)


@pytest.mark.parametrize("component", SERVICES)
def test_two_pods_run_in_a_restricted_namespace(installation: Installation, component: str) -> None:
    namespace = installation.kube.get("namespaces", None, SYSTEM)
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    running = pods(installation, component)
    assert [condition(pod, "Ready")["status"] for pod in running] == ["True", "True"]
    for pod in running:
        (container,) = pod["spec"]["containers"]
        assert container["image"] == images.ENGINEROOM.name
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()
        (status,) = pod["status"]["containerStatuses"]
        assert status["restartCount"] == 0
    name = f"engineroom-{component}"
    installation.kube.get("poddisruptionbudgets", SYSTEM, name)
    kubectl = installation.kubectl
    policy = json.loads(kubectl("get", "networkpolicy", name, "-n", SYSTEM, "-o", "json"))
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_prometheus_selects_the_limiters_and_grafana_their_dashboard(
    installation: Installation,
) -> None:
    monitor = json.loads(
        installation.kubectl("get", "servicemonitor", "engineroom", "-n", SYSTEM, "-o", "json")
    )
    wanted = ",".join(f"{k}={v}" for k, v in monitor["spec"]["selector"]["matchLabels"].items())
    services = {
        s["metadata"]["name"] for s in installation.kube.all("services", SYSTEM, selector=wanted)
    }
    assert f"{LIMITER}-metrics" in services
    (endpoint,) = monitor["spec"]["endpoints"]
    metrics = "".join(
        installation.kube.raw(
            f"/api/v1/namespaces/{SYSTEM}/services/{name}:{endpoint['port']}/proxy/metrics"
        )
        for name in (f"{LIMITER}-metrics", "engineroom-operator-metrics")
    )
    dashboards = installation.kube.get("configmaps", SYSTEM, "engineroom-dashboards")
    assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"
    charted = set(re.findall(r"engineroom_\w+", dashboards["data"]["engineroom-limiter.json"]))
    charted.discard("engineroom_limiter")
    assert charted
    assert {re.sub("_bucket$", "", name) for name in charted} <= set(
        re.findall(r"^# TYPE (engineroom_\w+)", metrics, re.MULTILINE)
    )


def test_a_policy_holds_behind_nginx_with_any_limiter(web: Web) -> None:
    with web.load(300, 4) as running:
        load = running.result()
    assert load.failed == {}
    assert load.refused > 0
    assert load.worst <= 1, f"more than the bound was admitted: {load}"
    assert load.admitted > 0.9 * load.possible, f"more was refused than had to be: {load}"
    wait_enforced(web)
    policy = web.kube.get("ratelimitpolicies", SHOP, POLICY)
    enforcers = policy["status"]["enforcers"]
    assert (enforcers["ready"], enforcers["total"]) == (2, 2)
    assert sorted(map(bool, web.decisions().values())) == [True, True]


def test_the_command_line_shows_the_limiters_decisions(
    web: Web, tmp_path: Path, installation: Installation
) -> None:
    command = Command(tmp_path / "home", installation.cluster.kubeconfig, SHOP)
    with web.load(300, 120) as running:
        next(running.seconds())
        # A limiter follows a namespace once it was asked about it.
        wait_enforced(web)
        explained = command.json("ratelimit", "explain", POLICY)
        assert (explained["state"], explained["redis"]) == ("Ready", "asked")
        limiters = {pod["metadata"]["name"] for pod in pods(installation, "limiter")}
        # The name of a process is its pod's with a number.
        acknowledged = {
            enforcer["name"].rpartition("-")[0]
            for enforcer in explained["enforcers"]
            if enforcer["acknowledged"]
        }
        assert acknowledged >= limiters
        top = command.json("ratelimit", "top", POLICY, "--seconds", "1")
        assert top["limiters"] == {"asked": 2, "failures": []}
        (top_key,) = top["keys"]
        # Half a bucket: a client that requests three times its limit never has that much left.
        busy = ["--client-ip", top_key["key"], "--cost", "100"]
        refused = command.json("ratelimit", "test", POLICY, *busy, code=1)
        running.stop()
    assert (top_key["namespace"], top_key["policy"], top_key["limit"]) == (
        SHOP,
        POLICY,
        "per-address",
    )
    assert top_key["times"] > 100
    (refused,) = refused["policies"]
    assert (refused["allowed"], refused["status"], refused["consumed"]) == (False, 429, False)
    (limit,) = refused["limits"]
    assert (limit["quota"], limit["key"]) == (200, [f"ClientIP={top_key['key']}"])
    assert limit["left"] < 100
    at_rest = ["--client-ip", "192.0.2.7", "--cost", "200"]
    for _ in range(2):
        assert command.json("ratelimit", "test", POLICY, *at_rest)["allowed"]


def test_a_rolling_update_of_the_limiter_neither_refuses_nor_skips_requests(
    web: Web, installation: Installation
) -> None:
    before = {pod["metadata"]["name"] for pod in pods(installation, "limiter")}
    with web.load(300, 120) as running:
        for _, second in zip(range(2), running.seconds(), strict=False):
            assert second["counted"] == second["sent"]
        installation.kubectl("rollout", "restart", f"deployment/{LIMITER}", "-n", SYSTEM)
        web.rolled_out(SYSTEM, LIMITER)

        def only_new_ones() -> bool:
            return not before & {pod["metadata"]["name"] for pod in pods(installation, "limiter")}

        wait_for(only_new_ones, 60, "the old limiters are gone")
        for _, second in zip(range(2), running.seconds(), strict=False):
            assert second["counted"] == second["sent"]
        running.stop()
        load = running.result()
    assert load.failed == {}
    assert load.statuses.keys() == {"200", "429"}
    assert load.admitted + load.refused == sum(load.statuses.values()), "a pass without a decision"
    assert load.worst <= 1, f"more than the bound was admitted: {load}"
    assert load.admitted > 0.9 * load.possible, f"more was refused than had to be: {load}"


#: What an application in the cluster does with the token of its pod.
_ASK = """
import json, sys, urllib.error, urllib.request
token = open("/var/run/secrets/kubernetes.io/serviceaccount/token").read()
for url in sys.argv[1:]:
    for headers in ({}, {"Authorization": "Bearer " + token}):
        asked = urllib.request.Request(url, headers=headers)
        try:
            answer = urllib.request.urlopen(asked, timeout=20)
        except urllib.error.HTTPError as error:
            answer = error
        print(json.dumps([answer.status, json.load(answer)]))
"""


def test_the_api_allows_what_rbac_allows(installation: Installation) -> None:
    kube = installation.kube
    name = f"reader-{secrets.token_hex(3)}"
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
    kube.create("serviceaccounts", NAMESPACE, account)
    installation.kubectl(
        "create", "rolebinding", name, "-n", NAMESPACE, "--clusterrole=view",
        f"--serviceaccount={NAMESPACE}:{name}",
    )  # fmt: skip
    worker = {"name": "worker", "image": images.SHOP.name}
    pool = {
        "apiVersion": "engineroom.dev/v1alpha1",
        "kind": "WorkerPool",
        "metadata": {"name": name},
        "spec": {
            "queues": [{"name": name}],
            "autoscaling": {"minReplicas": 0},
            "template": {"spec": {"containers": [worker]}},
        },
    }
    kube.create("workerpools", NAMESPACE, pool)
    hosts = ["engineroom-api.engineroom-system"]
    hosts += [f"{pod['status']['podIP']}:8000" for pod in pods(installation, "api")]
    urls = [f"http://{host}/api/v1/whoami" for host in hosts]
    urls += [
        f"http://{hosts[0]}/api/v1/namespaces/{namespace}/pools" for namespace in (NAMESPACE, SHOP)
    ]
    asking = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": name,
            "containers": [
                {
                    "name": "ask",
                    "image": images.SHOP.name,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python", "-c", _ASK, *urls],
                }
            ],
        },
    }
    try:
        kube.create("pods", NAMESPACE, asking)
        wait_for(
            lambda: kube.get("pods", NAMESPACE, name)["status"]["phase"] in ("Succeeded", "Failed"),
            60,
            lambda: f"the asking pod ends: {kube.logs(NAMESPACE, name, 'ask')}",
        )
        answers = [json.loads(line) for line in kube.logs(NAMESPACE, name, "ask").splitlines()]
    finally:
        kube.delete("pods", NAMESPACE, name, grace=0)
        kube.delete("workerpools", NAMESPACE, name)
    assert [status for status, _ in answers] == [401, 200] * 4 + [401, 403]
    subject = f"kubernetes:system:serviceaccount:{NAMESPACE}:{name}"
    assert [body["subject"] for _, body in answers[1:6:2]] == [subject] * 3
    assert name in [item["name"] for item in answers[7][1]["items"]]


def test_the_image_has_labels_of_its_content(installation: Installation) -> None:
    output = installation.kubectl(
        "exec", "--namespace", SYSTEM, "deployment/engineroom-operator",
        "--", "cat", "/opt/engineroom/sbom.cdx.json",
    )  # fmt: skip
    packages = {
        (re.sub(r"[-_.]+", "-", component["name"]).lower(), component["version"])
        for component in json.loads(output)["components"]
    }
    locked = (ROOT / "requirements/image.txt").read_text()
    pinned = set(re.findall(r"^([\w.-]+)==([^\s;]+)", locked, re.MULTILINE))
    ours = {package for package in packages if package[0] == "engineroom"}
    assert len(ours) == 1
    assert packages - ours <= pinned
    assert {"redis", "kopf", "cryptography"} <= {name for name, _ in packages}


@pytest.fixture(scope="module")
def user(
    installation: Installation, services: None, tmp_path_factory: pytest.TempPathFactory
) -> Command:
    """A user with a token in a kubeconfig and the rights of `edit` in one namespace."""
    return person(
        installation, f"person-{secrets.token_hex(3)}", tmp_path_factory.mktemp("person") / "home"
    )


def test_sign_in_with_a_kubeconfig_only(user: Command) -> None:
    with ui(user) as link, link.browser() as browser:
        assert browser.get("/api/v1/whoami").status_code == 401
        opened = link.redeem(browser)
        response = browser.get("/api/v1/whoami", headers=cookie(opened))
        seconds = time.monotonic() - link.begun
        assert (response.status_code, response.json()["how"]) == (200, "session")
        subject = response.json()["subject"]
        assert subject.startswith(f"kubernetes:system:serviceaccount:{NAMESPACE}:person-")
        again = link.redeem(browser)
        assert (again.status_code, again.headers.get("set-cookie")) == (401, None)
    print(f"from the command to signed in: {seconds:.2f} s")
    # The design says 5 s; this is for a machine that is busy with other things.
    assert seconds < 30


def test_a_transaction_of_a_user_logged_in_by_kubeconfig(
    user: Command, installation: Installation, tmp_path: Path
) -> None:
    name = f"both-{secrets.token_hex(3)}"
    kube = installation.kube
    pool = {
        "apiVersion": "engineroom.dev/v1alpha1",
        "kind": "WorkerPool",
        "metadata": {"name": name},
        "spec": {
            "queues": [{"name": name}],
            "autoscaling": {"minReplicas": 0},
            "template": template(),
        },
    }
    policy = yaml.safe_load((EXAMPLE / "policy.yaml").read_text())
    policy["metadata"] = {"name": name}
    policy["spec"]["targetRefs"][0]["name"] = name
    right = tmp_path / "right.yaml"
    right.write_text(yaml.safe_dump_all([pool, policy]))
    policy["spec"]["limits"] *= 2
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump_all([pool, policy]))

    def there() -> list[bool]:
        objects = [
            kube.find(kind, NAMESPACE, name) for kind in ("workerpools", "ratelimitpolicies")
        ]
        return [obj is not None for obj in objects]

    secret = kube.get("secrets", SYSTEM, "engineroom-api")["data"]
    password, key = (
        base64.b64decode(secret[name]).decode() for name in ("admin-password", "secret")
    )
    with ui(user) as link:
        user.run("login", "--server", link.base)
        try:
            who = user.json("whoami")
            assert (who["how"], who["server"]) == ("kubernetes", link.base)
            assert "namespace:manifests:apply" in who["access"][NAMESPACE]
            refused = user.run("apply", "-f", str(wrong), code=2)
            assert "spec.limits[1]" in refused.stderr
            assert there() == [False, False]
            done = user.json("apply", "-f", str(right))
            assert there() == [True, True]
            assert [obj["action"] for obj in done["objects"]] == ["create", "create"]
            assert name in user.run("get", name).stdout
            (latest, *_) = user.json("transactions", "list")["items"]
            assert (latest["id"], latest["status"]) == (done["transaction"], "committed")
            assert latest["by"] == who["subject"]
            # The log is the installation's: the rights of a namespace do not reach so far.
            assert "permission_denied" in user.run("audit", "verify", code=5).stderr
        finally:
            user.run("logout")
            for kind in ("workerpools", "ratelimitpolicies"):
                kube.delete(kind, NAMESPACE, name)
        administrator = Command(tmp_path / "admin", installation.cluster.kubeconfig)
        administrator.run(
            "login", "--server", link.base, "--user", "admin", "--password-stdin", said=password
        )
        checked = administrator.run("audit", "verify").stdout
        assert " intact; ends at " in checked
        administrator.run("logout")
    # What the pods wrote, each a part of it, says the same to who asks none of them.
    logs = tmp_path / "log"
    logs.write_text(
        "".join(
            kube.logs(SYSTEM, pod["metadata"]["name"], "api") for pod in pods(installation, "api")
        )
    )
    offline = ["audit", "verify", "--file", str(logs)]
    anchor = checked.strip().rpartition(" ")[2]
    output = administrator.run(*offline, "--anchor", anchor, ENGINEROOM_API_SECRET=key).stdout
    assert " intact; ends at " in output


def test_changed_accounts_reach_running_pods(installation: Installation) -> None:
    before = {pod["metadata"]["uid"] for pod in pods(installation, "api")}
    cluster = KubernetesCluster(str(installation.cluster.kubeconfig))
    with contextlib.ExitStack() as stack:
        doors = []
        for pod in pods(installation, "api"):
            name = pod["metadata"]["name"]
            way = stack.enter_context(
                PortForward(functools.partial(cluster.open_port, SYSTEM, name, 8000))
            )
            doors.append(stack.enter_context(httpx.Client(base_url=way.url, timeout=30)))

        def signed_in(door: httpx.Client, name: str) -> dict[str, str] | None:
            answer = door.post("/api/v1/tokens", json={"name": name, "password": PASSWORD})
            if answer.status_code == 401:
                return None
            return {"authorization": f"Bearer {answer.json()['access']}"}

        def roles(door: httpx.Client, who: dict[str, str] | None) -> list[str]:
            answer = door.get("/api/v1/whoami", headers=who)
            assert answer.status_code == 200, answer.text
            return [grant["role"] for grant in answer.json()["grants"]]

        ada, bob = signed_in(doors[0], "ada"), signed_in(doors[0], "bob")
        assert [roles(door, ada) for door in doors] == [["operator"]] * 2
        assert [roles(door, bob) for door in doors] == [["viewer"]] * 2
        assert signed_in(doors[0], "eve") is None
        begun = time.monotonic()
        installation.upgrade({**VALUES_WITH_SERVICES, **accounts(ada="viewer", eve="operator")})
        wait_for(
            lambda: [roles(door, ada) for door in doors] == [["viewer"]] * 2,
            75,
            "both pods have taken the change over",
        )
        print(f"from the values to the pods: {time.monotonic() - begun:.1f} s")
        for door in doors:
            assert door.get("/api/v1/whoami", headers=bob).status_code == 401
            assert signed_in(door, "bob") is None
            assert roles(door, signed_in(door, "eve")) == ["operator"]
    after = pods(installation, "api")
    assert {pod["metadata"]["uid"] for pod in after} == before
    assert [pod["status"]["containerStatuses"][0]["restartCount"] for pod in after] == [0, 0]
