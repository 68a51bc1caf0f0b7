"""The decision service and the API as the chart runs them: real pods, real nginx, real tokens."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.deployed import images
from tests.deployed.installation import NAMESPACE as SYSTEM
from tests.deployed.kube import condition, wait_for
from tests.deployed.web import EXAMPLE, LIMITER, POLICY, Web, wait_enforced
from tests.deployed.web import NAMESPACE as SHOP
from tests.e2e.pool import NAMESPACE, VALUES
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.deployed.installation import Installation
    from tests.deployed.kube import Object

pytestmark = pytest.mark.timeout(300)

SERVICES = ("api", "limiter")
VALUES_WITH_SERVICES = {
    **VALUES,
    "api": {"enabled": True},
    "limiter": {"enabled": True},
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
    """Both of them, added to what is there; gone again for the tests of pools."""
    installation.kubectl("apply", "-f", "-", stdin=json.dumps(SERVICE_MONITORS))
    installation.upgrade(VALUES_WITH_SERVICES)
    yield
    installation.upgrade(VALUES)


@pytest.fixture(scope="module")
def web(
    installation: Installation, services: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Web]:
    """The example's web application, limited by its policy.

    nginx and limiters are more patient than in the example: on a machine that runs other tests,
    too, somebody may not get the processor for half a second, and that is not what is looked for.
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
def test_two_pods_of_it_run_where_pods_must_be_restricted(
    installation: Installation, component: str
) -> None:
    namespace = installation.kube.get("namespaces", None, SYSTEM)
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    found = pods(installation, component)
    assert [condition(pod, "Ready")["status"] for pod in found] == ["True", "True"]
    for pod in found:
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


def test_prometheus_finds_the_limiters_and_grafana_their_dashboard(
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
    told = "".join(
        installation.kube.raw(
            f"/api/v1/namespaces/{SYSTEM}/services/{name}:{endpoint['port']}/proxy/metrics"
        )
        for name in (f"{LIMITER}-metrics", "engineroom-operator-metrics")
    )
    dashboards = installation.kube.get("configmaps", SYSTEM, "engineroom-dashboards")
    assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"
    shown = set(re.findall(r"engineroom_\w+", dashboards["data"]["engineroom-limiter.json"]))
    shown.discard("engineroom_limiter")
    assert shown
    assert {re.sub("_bucket$", "", name) for name in shown} <= set(
        re.findall(r"^# TYPE (engineroom_\w+)", told, re.MULTILINE)
    )


def test_a_policy_holds_behind_nginx_whichever_limiter_is_asked(web: Web) -> None:
    with web.load(300, 4) as running:
        load = running.result()
    assert load.failed == {}
    assert load.refused > 0
    assert load.worst <= 1, f"more than the bound was admitted: {load}"
    assert load.admitted > 0.9 * load.bound, f"more was refused than had to be: {load}"
    wait_enforced(web)
    policy = web.kube.get("ratelimitpolicies", SHOP, POLICY)
    told = policy["status"]["enforcers"]
    assert (told["ready"], told["total"]) == (2, 2)
    assert sorted(map(bool, web.decisions().values())) == [True, True]


def test_a_rolling_update_of_the_limiter_refuses_nobody_and_admits_nobody_unasked(
    web: Web, installation: Installation
) -> None:
    before = {pod["metadata"]["name"] for pod in pods(installation, "limiter")}
    with web.load(300, 120) as running:
        for _, told in zip(range(2), running.seconds(), strict=False):
            assert told["counted"] == told["sent"]
        installation.kubectl("rollout", "restart", f"deployment/{LIMITER}", "-n", SYSTEM)
        web.rolled_out(SYSTEM, LIMITER)

        def only_new_ones() -> bool:
            return not before & {pod["metadata"]["name"] for pod in pods(installation, "limiter")}

        wait_for(only_new_ones, 60, "the old limiters are gone")
        for _, told in zip(range(2), running.seconds(), strict=False):
            assert told["counted"] == told["sent"]
        running.stop()
        load = running.result()
    assert load.failed == {}
    assert load.statuses.keys() == {"200", "429"}
    assert load.admitted + load.refused == sum(load.statuses.values()), "a pass without a decision"
    assert load.worst <= 1, f"more than the bound was admitted: {load}"
    assert load.admitted > 0.9 * load.bound, f"more was refused than had to be: {load}"


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


def test_the_api_answers_what_the_clusters_own_rights_allow(installation: Installation) -> None:
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
    urls += [f"http://{hosts[0]}/api/v1/namespaces/{each}/pools" for each in (NAMESPACE, SHOP)]
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
    assert name in [each["name"] for each in answers[7][1]["items"]]


def test_the_image_says_what_is_in_it(installation: Installation) -> None:
    told = installation.kubectl(
        "exec", "--namespace", SYSTEM, "deployment/engineroom-operator",
        "--", "cat", "/opt/engineroom/sbom.cdx.json",
    )  # fmt: skip
    found = {
        (re.sub(r"[-_.]+", "-", each["name"]).lower(), each["version"])
        for each in json.loads(told)["components"]
    }
    locked = (ROOT / "requirements/image.txt").read_text()
    pinned = set(re.findall(r"^([\w.-]+)==([^\s;]+)", locked, re.MULTILINE))
    ours = {each for each in found if each[0] == "engineroom"}
    assert len(ours) == 1
    assert found - ours <= pinned
    assert {"redis", "kopf", "cryptography"} <= {name for name, _ in found}
