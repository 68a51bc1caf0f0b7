"""What the Helm chart promises, whatever the values."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from engineroom.auth.permissions import Grant
from engineroom.console.accounts.account_config import AccountConfig, ConfigFiles, parse
from engineroom.console.settings import ApiSettings
from tests.unit.chart.rendering import (
    CHART,
    NAMESPACE,
    ROOT,
    VARIANTS,
    Object,
    containers,
    environment,
    hook,
    matches,
    named,
    of,
    pods,
    refusal,
    render,
    run,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

every_variant = pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS.keys())


def rules(thing: Object) -> list[Object]:
    return list(thing.get("rules") or [])


def about(things: list[Object], resource: str) -> Iterator[tuple[Object, Object]]:
    for thing in things:
        for rule in rules(thing):
            if resource in rule["resources"]:
                yield thing, rule


@every_variant
def test_lint_finds_nothing(values: Object) -> None:
    done = run("lint", "--strict", str(CHART), values=values)
    assert done.returncode == 0, done.stdout


# ---- the pods ---------------------------------------------------------------------------------


@every_variant
def test_every_pod_fits_restricted_pod_security(values: Object) -> None:
    for name, pod in pods(render(values)):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        allowed = {"configMap", "emptyDir", "secret", "persistentVolumeClaim", "projected"}
        for volume in spec.get("volumes", []):
            assert volume.keys() - {"name"} <= allowed, name
        for container in containers(pod):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "hostPort" not in json.dumps(container.get("ports", []))


@every_variant
def test_every_container_says_what_it_needs(values: Object) -> None:
    for name, pod in pods(render(values)):
        for container in containers(pod):
            resources = container["resources"]
            assert {"cpu", "memory"} <= resources["requests"].keys(), name
            assert "memory" in resources["limits"], name
            # A limit of processor time makes a leader miss its lease for nothing.
            assert "cpu" not in resources["limits"], name


@every_variant
def test_servers_are_probed_and_use_accounts_of_their_own(values: Object) -> None:
    accounts: set[str] = set()
    for workload in of(render(values), "Deployment", "StatefulSet"):
        pod = workload["spec"]["template"]["spec"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert probe in pod["containers"][0], workload["metadata"]["name"]
        if pod["automountServiceAccountToken"]:
            assert pod["serviceAccountName"] not in accounts | {"default"}
            accounts.add(pod["serviceAccountName"])


@every_variant
def test_selectors_find_their_own_pods_only(values: Object) -> None:
    objects = render(values)
    every_pod = dict(pods(objects))
    for workload in of(objects, "Deployment", "StatefulSet"):
        selector = workload["spec"]["selector"]
        found = {n for n, p in every_pod.items() if matches(selector, p["metadata"]["labels"])}
        assert found == {workload["metadata"]["name"]}
    for service in of(objects, "Service"):
        selector = {"matchLabels": service["spec"]["selector"]}
        found = {n for n, p in every_pod.items() if matches(selector, p["metadata"]["labels"])}
        assert len(found) == 1, service["metadata"]["name"]
        (pod,) = (every_pod[name] for name in found)
        ports = {p["name"] for c in containers(pod) for p in c.get("ports", [])}
        assert {p["targetPort"] for p in service["spec"]["ports"]} <= ports


@every_variant
def test_budgets_let_nodes_be_drained(values: Object) -> None:
    objects = render(values)
    replicas = {d["metadata"]["name"]: d["spec"]["replicas"] for d in of(objects, "Deployment")}
    for budget in of(objects, "PodDisruptionBudget"):
        assert replicas[budget["metadata"]["name"]] > budget["spec"]["maxUnavailable"] > 0


def test_a_single_replica_has_no_budget() -> None:
    one = {"replicas": 1}
    objects = render({"operator": one, "webhooks": one, "api": one})
    assert of(objects, "PodDisruptionBudget") == []


# ---- rights -----------------------------------------------------------------------------------


@every_variant
def test_no_right_is_a_wildcard(values: Object) -> None:
    for role in of(render(values), "Role", "ClusterRole"):
        for rule in rules(role):
            for part in ("apiGroups", "resources", "verbs"):
                assert rule[part], role["metadata"]["name"]
                assert not [word for word in rule[part] if "*" in word], role["metadata"]["name"]


@every_variant
def test_secrets_are_never_listed_and_never_read_across_the_cluster(values: Object) -> None:
    objects = render(values)
    for _, rule in about(of(objects, "ClusterRole"), "secrets"):
        assert rule["verbs"] == ["create"]
    allowed = set(values.get("redis", {}).get("secretNamespaces", []))
    for role, rule in about(of(objects, "Role"), "secrets"):
        assert not {"list", "watch", "delete"} & set(rule["verbs"])
        if "get" in rule["verbs"] and "resourceNames" not in rule:
            assert role["metadata"]["namespace"] in allowed


def test_the_operator_has_the_rights_that_it_uses_and_no_other() -> None:
    objects = render()
    role = named(objects, "ClusterRole", "engineroom-operator")
    found = {
        "metrics" if rule["apiGroups"] == ["metrics.k8s.io"] else resource: set(rule["verbs"])
        for rule in rules(role)
        for resource in rule["resources"]
    }
    assert found == {
        "metrics": {"list"},
        "pods/resize": {"patch"},
        "workerpools": {"get", "list", "watch"},
        "workerpools/status": {"patch"},
        "ratelimitpolicies": {"get", "list", "watch"},
        "ratelimitpolicies/status": {"patch"},
        "services": {"list", "watch"},
        "ingresses": {"list", "watch"},
        "gateways": {"list", "watch"},
        "httproutes": {"list", "watch"},
        "grpcroutes": {"list", "watch"},
        "workerpools/finalizers": {"update"},
        "deployments": {"get", "list", "watch", "create", "patch"},
        "deployments/scale": {"patch"},
        "poddisruptionbudgets": {"get", "create"},
        "serviceaccounts": {"get", "create"},
        "pods": {"get", "list", "watch", "patch"},
        "namespaces": {"get", "list", "watch"},
        "events": {"create", "patch"},
        "secrets": {"create"},
    }
    same = named(render({"watchNamespaces": ["shop"]}), "Role", "engineroom-operator")
    assert same["metadata"]["namespace"] == "shop"
    assert rules(same) == rules(role)


def test_resizing_pods_is_a_right_of_its_own() -> None:
    role = named(render({"rightSizing": {"inPlace": False}}), "ClusterRole", "engineroom-operator")
    assert not list(about([role], "pods/resize"))


@every_variant
def test_nobody_may_raise_rights_or_enter_pods(values: Object) -> None:
    dangerous = {
        "pods/exec", "pods/attach", "pods/portforward", "pods/eviction", "serviceaccounts/token",
        "roles", "rolebindings", "clusterroles", "clusterrolebindings", "nodes",
    }  # fmt: skip
    for role in of(render(values), "Role", "ClusterRole"):
        for rule in rules(role):
            assert not dangerous & set(rule["resources"])
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])


def test_a_namespaced_installation_has_no_cluster_role_but_for_reviews() -> None:
    objects = render(VARIANTS["namespaced"])
    roles = of(objects, "ClusterRole")
    found = {
        role["metadata"]["name"].rpartition("-")[2]: {
            resource for rule in rules(role) for resource in rule["resources"]
        }
        for role in roles
    }
    assert found == {
        "webhooks": {"validatingwebhookconfigurations", "subjectaccessreviews", "namespaces"},
        "api": {"tokenreviews", "subjectaccessreviews", "namespaces"},
    }
    for _, rule in about(roles, "namespaces"):
        assert rule["resourceNames"] == ["shop", "blog"]
    namespaces = {r["metadata"]["namespace"] for r, _ in about(of(objects, "Role"), "deployments")}
    assert namespaces == {"shop", "blog"}


def test_a_namespaced_installation_without_webhooks_and_api_has_none_at_all() -> None:
    off = {"enabled": False}
    objects = render({"watchNamespaces": ["shop"], "webhooks": off, "api": off})
    assert of(objects, "ClusterRole", "ClusterRoleBinding", "ValidatingWebhookConfiguration") == []


@every_variant
def test_every_binding_binds_what_there_is(values: Object) -> None:
    objects = render(values)
    known = {
        (o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"])
        for o in of(objects, "Role", "ClusterRole", "ServiceAccount")
    }
    for binding in of(objects, "RoleBinding", "ClusterRoleBinding"):
        reference, namespace = binding["roleRef"], binding["metadata"].get("namespace")
        assert (reference["kind"], namespace, reference["name"]) in known
        for subject in binding["subjects"]:
            assert ("ServiceAccount", subject["namespace"], subject["name"]) in known


@every_variant
def test_the_test_pod_has_its_rights_only_while_it_runs(values: Object) -> None:
    for thing in render(values):
        if "-test" in thing["metadata"]["name"] and thing["kind"] != "NetworkPolicy":
            assert hook(thing) == "test"
            policy = thing["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
            assert "before-hook-creation" in policy
            assert thing["kind"] == "Pod" or "hook-succeeded" in policy


# ---- the network ------------------------------------------------------------------------------


@every_variant
def test_every_pod_is_closed_and_has_its_own_openings(values: Object) -> None:
    objects = render(values)
    policies = of(objects, "NetworkPolicy")
    deny = [p for p in policies if not {"ingress", "egress"} & p["spec"].keys()]
    assert len(deny) == 1
    assert deny[0]["spec"]["policyTypes"] == ["Ingress", "Egress"]
    for name, pod in pods(objects):
        labels = pod["metadata"]["labels"]
        applying = [p for p in policies if matches(p["spec"]["podSelector"], labels)]
        assert len(applying) == 2, name
        assert deny[0] in applying


def test_redis_is_reached_by_operator_and_api_by_workers_and_by_who_says_so() -> None:
    policy = named(render(), "NetworkPolicy", "engineroom-redis")["spec"]
    assert "egress" not in policy
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"port": "redis", "protocol": "TCP"}]
    *ours, pools, sharing = rule["from"]
    assert [each["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for each in ours] == [
        "operator",
        "api",
        "test",
    ]
    pool = {"key": "engineroom.dev/pool", "operator": "Exists"}
    assert pools == {"podSelector": {"matchExpressions": [pool]}}
    # By the namespace's label, which tenants cannot set, and by no label of a pod.
    label = {"matchLabels": {"engineroom.dev/shared-redis": "enabled"}}
    assert sharing == {"namespaceSelector": label}


def test_network_policies_can_be_left_out() -> None:
    assert of(render({"networkPolicy": {"enabled": False}}), "NetworkPolicy") == []


# ---- kinds and admission ----------------------------------------------------------------------


def test_the_kinds_are_those_that_the_models_say_and_stay_when_the_release_goes() -> None:
    rendered = of(render(), "CustomResourceDefinition")
    sources = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / "crds").iterdir()}
    assert len(rendered) == len(sources)
    assert rendered
    for definition in rendered:
        source = sources[definition["metadata"]["name"] + ".yaml"]
        assert definition["spec"] == source["spec"]
        annotations = definition["metadata"]["annotations"]
        assert annotations["helm.sh/resource-policy"] == "keep"
        assert annotations["argocd.argoproj.io/sync-options"] == "Prune=false"
        assert source["metadata"].get("annotations", {}).items() <= annotations.items()


def test_the_kinds_can_be_somebody_elses_business() -> None:
    assert of(render({"crds": {"install": False}}), "CustomResourceDefinition") == []
    (definition, *_) = of(render({"crds": {"keep": False}}), "CustomResourceDefinition")
    assert "helm.sh/resource-policy" not in definition["metadata"].get("annotations", {})


def test_numbers_of_the_schema_survive_helm() -> None:
    text = run("template", "x", str(CHART)).stdout
    assert not re.search(r"[0-9]e\+[0-9]", text)


@every_variant
def test_the_webhook_sees_own_kinds_only_and_fails_closed(values: Object) -> None:
    for configuration in of(render(values), "ValidatingWebhookConfiguration"):
        for webhook in configuration["webhooks"]:
            assert webhook["failurePolicy"] == "Fail"
            assert webhook["timeoutSeconds"] == 3
            assert webhook["sideEffects"] == "None"
            assert {group for r in webhook["rules"] for group in r["apiGroups"]} == {
                "engineroom.dev"
            }
            assert not [r for rule in webhook["rules"] for r in rule["resources"] if "*" in r]


@every_variant
def test_what_the_webhooks_write_themselves_is_not_helms(values: Object) -> None:
    objects = render(values)
    for configuration in of(objects, "ValidatingWebhookConfiguration"):
        assert "caBundle" not in json.dumps(configuration)
    for secret in of(objects, "Secret"):
        if secret["metadata"]["name"].endswith("-tls"):
            assert not {"data", "stringData"} & secret.keys()


def test_a_namespaced_installation_leaves_other_namespaces_alone() -> None:
    (configuration,) = of(render(VARIANTS["namespaced"]), "ValidatingWebhookConfiguration")
    (expression,) = configuration["webhooks"][0]["namespaceSelector"]["matchExpressions"]
    assert expression == {
        "key": "kubernetes.io/metadata.name",
        "operator": "In",
        "values": ["shop", "blog"],
    }


def test_two_releases_share_no_object() -> None:
    def keys(objects: list[Object]) -> set[tuple[str, str | None, str]]:
        return {
            (o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"])
            for o in objects
            if o["kind"] != "CustomResourceDefinition"
        }

    first = keys(render(release="engineroom", namespace="a"))
    second = keys(render(release="engineroom", namespace="b"))
    third = keys(render(release="other", namespace="a"))
    assert not first & second
    assert not first & third


def test_names_stay_short_under_the_longest_release_name() -> None:
    for thing in render(release="r" * 53, namespace="n" * 63):
        # Pods' names and labels are made from these, and must fit into 63.
        if thing["kind"] in ("Deployment", "StatefulSet", "Service", "Pod"):
            assert len(thing["metadata"]["name"]) <= (52 if thing["kind"] != "Service" else 63)


# ---- Redis ------------------------------------------------------------------------------------


def operator_environment(values: Object) -> dict[str, Object]:
    deployment = named(render(values), "Deployment", "engineroom-operator")
    return environment(deployment["spec"]["template"]["spec"]["containers"][0])


def test_the_charts_redis_never_throws_a_job_away() -> None:
    text = named(render(), "ConfigMap", "engineroom-redis")["data"]["redis.conf"]
    settings = dict(line.split(" ", 1) for line in text.splitlines() if line[:1].isalpha())
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["appendonly"] == "yes"
    assert settings["maxmemory"] == "320mb"


def test_the_password_is_on_no_command_line_and_in_no_configmap() -> None:
    objects = render()
    secret = named(objects, "Secret", "engineroom-redis")
    pod = named(objects, "StatefulSet", "engineroom-redis")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    reference = environment(container)["REDISCLI_AUTH"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": "engineroom-redis", "key": "password"}
    others = [thing for thing in objects if thing is not secret]
    assert secret["data"]["password"] not in json.dumps(others)
    assert "requirepass" not in json.dumps(of(objects, "ConfigMap"))


@pytest.mark.parametrize(
    ("values", "secret"),
    [
        ({}, "engineroom-redis"),
        ({"redis": {"existingSecret": "mine"}}, "mine"),
        ({"redis": {"enabled": False, "existingSecret": "mine"}}, "mine"),
        ({"redis": {"enabled": False, "url": "redis://r:6379"}}, "engineroom-redis"),
        (VARIANTS["no redis"], None),
    ],
)
def test_the_operator_is_told_of_redis_by_a_secret(values: Object, secret: str | None) -> None:
    found = operator_environment(values)
    if secret is None:
        assert "ENGINEROOM_REDIS_URL" not in found
        return
    reference = found["ENGINEROOM_REDIS_URL"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": secret, "key": "url"}
    made = {s["metadata"]["name"] for s in of(render(values), "Secret")}
    assert (secret in made) == (secret != "mine")


def test_another_redis_restarts_the_operator() -> None:
    def checksum(values: Object) -> Any:
        deployment = named(render(values), "Deployment", "engineroom-operator")
        annotations = deployment["spec"]["template"]["metadata"]["annotations"]
        return annotations["engineroom.dev/redis-checksum"]

    assert checksum({}) != checksum({"redis": {"enabled": False, "url": "redis://r:6379"}})
    assert checksum({}) == checksum({"operator": {"logLevel": "debug"}})


def test_persistence_puts_the_data_on_a_volume() -> None:
    spec = named(render(VARIANTS["persistent"]), "StatefulSet", "engineroom-redis")["spec"]
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "data"
    assert claim["spec"]["storageClassName"] == "fast"
    assert "data" not in {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


# ---- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"operator": {"replica": 3}}, "additional properties 'replica' not allowed"),
        ({"operators": {}}, "additional properties 'operators' not allowed"),
        ({"operator": {"replicas": 0}}, "minimum: got 0, want 1"),
        ({"operator": {"replicas": "2"}}, "got string, want integer"),
        ({"operator": {"logLevel": "verbose"}}, "must be one of"),
        ({"image": {"digest": "latest"}}, "does not match pattern"),
        ({"watchNamespaces": ["Shop"]}, "does not match pattern"),
        ({"watchNamespaces": ["a", "a"]}, "items at 0 and 1 are equal"),
        ({"webhooks": {"timeoutSeconds": 31}}, "maximum: got 31, want 30"),
        ({"redis": {"runAsUser": 0}}, "minimum: got 0, want 1"),
        ({"redis": {"maxMemory": "lots"}}, "does not match pattern"),
        ({"redis": {"url": "redis.example"}}, "does not match pattern"),
        ({"redis": {"url": "redis://r"}}, "set redis.enabled=false to use redis.url"),
        (
            {"redis": {"enabled": False, "url": "redis://r", "existingSecret": "s"}},
            "redis.url is set too; keep one of them",
        ),
        (
            {"watchNamespaces": ["a"], "redis": {"secretNamespaces": ["b"]}},
            "b is not among watchNamespaces",
        ),
    ],
)
def test_wrong_values_are_refused_with_the_reason(values: Object, why: str) -> None:
    assert why in refusal(values)


def leaves(schema: Object, path: str = "") -> Iterator[tuple[str, Object]]:
    for name, child in schema.get("properties", {}).items():
        yield f"{path}{name}", child
        yield from leaves(child, f"{path}{name}.")


def test_every_value_is_described_and_has_its_default_in_values_yaml() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    for path, child in leaves(schema):
        assert child.get("description", "").endswith("."), path
        if child.get("type") == "object" and "properties" in child:
            assert child["additionalProperties"] is False, path
        if path == "global" or ".resources." in path:
            continue
        value: Any = defaults
        for part in path.split("."):
            assert part in value, f"{path} has no default"
            value = value[part]


def test_the_operator_is_told_what_the_values_say() -> None:
    found = operator_environment(VARIANTS["namespaced"])
    assert found["ENGINEROOM_NAMESPACES"]["value"] == "shop,blog"
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    image = found["ENGINEROOM_RUNTIME_IMAGE"]["value"]
    assert image == f"ghcr.io/engineroom-dev/engineroom-worker-runtime:{version}"
    assert "value" not in operator_environment({})["ENGINEROOM_NAMESPACES"]


def test_everything_stays_in_the_releases_namespace_unless_it_is_asked_elsewhere() -> None:
    cluster = {
        "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition",
        "ValidatingWebhookConfiguration",
    }  # fmt: skip
    for thing in render():
        if thing["kind"] not in cluster:
            assert thing["metadata"]["namespace"] == NAMESPACE, thing["kind"]


def test_the_documentation_has_the_table_of_these_values() -> None:
    command = [sys.executable, str(ROOT / "charts/values_table.py"), "--check"]
    done = subprocess.run(command, check=False)
    assert done.returncode == 0, "run charts/values_table.py"


# ---- the API ----------------------------------------------------------------------------------


def test_the_api_may_write_its_kinds_and_ask_and_nothing_else() -> None:
    objects = render(VARIANTS["api"])
    role = named(objects, "ClusterRole", "engineroom-api")
    found = {resource: set(rule["verbs"]) for rule in rules(role) for resource in rule["resources"]}
    assert found == {
        "tokenreviews": {"create"},
        "subjectaccessreviews": {"create"},
        "namespaces": {"get"},
        "workerpools": {"get", "list", "watch", "create", "patch", "delete"},
        "ratelimitpolicies": {"get", "list", "watch", "create", "patch", "delete"},
        "workerpools/scale": {"patch"},
    }
    objects = render(VARIANTS["api, namespaced"])
    asks = named(objects, "ClusterRole", "engineroom-api")
    assert {r for rule in rules(asks) for r in rule["resources"]} == {
        "tokenreviews", "subjectaccessreviews", "namespaces",
    }  # fmt: skip
    where = {
        r["metadata"]["namespace"] for r in of(objects, "Role") if "api" in r["metadata"]["name"]
    }
    assert where == {"shop", "blog"}


def test_the_api_has_two_replicas_and_its_secrets_in_files() -> None:
    objects = render(VARIANTS["api"])
    deployment = named(objects, "Deployment", "engineroom-api")
    assert deployment["spec"]["replicas"] == 2
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    secret = named(objects, "Secret", "engineroom-api")
    values = [base64.b64decode(value).decode() for value in secret["data"].values()]
    assert sorted(map(len, values)) == [32, 64]
    assert not any(value in json.dumps(container) for value in values)
    assert named(objects, "PodDisruptionBudget", "engineroom-api")
    assert "scheme" not in container["readinessProbe"]["httpGet"], "its port has no TLS"
    kept = render(VARIANTS["api, namespaced"])
    assert "engineroom-api" not in {o["metadata"]["name"] for o in of(kept, "Secret")}


def test_the_api_is_scraped_at_a_port_of_its_own() -> None:
    objects = render({**VARIANTS["api"], "metrics": {"serviceMonitor": {"enabled": True}}})
    (container,) = named(objects, "Deployment", "engineroom-api")["spec"]["template"]["spec"][
        "containers"
    ]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    told = {each["name"]: each.get("value") for each in container["env"]}
    assert ports == {"api": 8000, "metrics": 8080, "probes": 8081}
    assert told["ENGINEROOM_PROBE_PORT"] == "8081"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == "probes", "clients cannot exhaust it"
    assert told["ENGINEROOM_METRICS_PORT"] == "8080"
    service = named(objects, "Service", "engineroom-api-metrics")
    assert service["spec"]["ports"][0]["targetPort"] == "metrics"
    assert [port["targetPort"] for port in named(objects, "Service", "engineroom-api")["spec"][
        "ports"
    ]] == ["api"]  # fmt: skip
    rules = named(objects, "NetworkPolicy", "engineroom-api")["spec"]["ingress"]
    assert [each["ports"][0]["port"] for each in rules] == ["api", "metrics"]


def test_the_api_is_told_of_accounts_and_of_the_provider_as_the_process_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = render(VARIANTS["api, oidc"])
    text = named(objects, "ConfigMap", "engineroom-api-accounts")["data"]["accounts.json"]
    found = parse(ConfigFiles(text.encode()))
    assert found.accounts["ada"].grants == (Grant("retrier", frozenset({"shop"})),)
    assert [g.role for g in found.grants_of_groups(["ops"])] == ["operator"]
    pod = named(objects, "Deployment", "engineroom-api")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    for each in container["env"]:
        if "value" in each:
            monkeypatch.setenv(each["name"], each["value"])
    (tmp_path / "secret").write_text("hush")
    monkeypatch.setenv("ENGINEROOM_OIDC_CLIENT_SECRET_FILE", str(tmp_path / "secret"))
    (tmp_path / "ca.crt").write_text("of a private authority")
    settings = ApiSettings()
    here = settings.model_copy(update={"oidc_ca_file": tmp_path / "ca.crt"})
    client = here.oidc_client()
    assert client is not None
    assert client.redirect_url == "https://engineroom.example/api/v1/oidc/callback"
    assert (client.client_secret, client.scopes) == ("hush", ("openid", "profile", "email"))
    assert settings.oidc_allowed_networks == ("10.1.0.0/16",)
    # Every file that it is told of is mounted, as a directory: a single file is never updated.
    mounts = {each["mountPath"] for each in container["volumeMounts"]}
    assert all("subPath" not in each for each in container["volumeMounts"])
    assert {"/accounts", "/passwords", "/oidc", "/oidc-ca"} <= mounts
    for path in (settings.accounts_file, settings.passwords_directory, settings.oidc_ca_file):
        assert path is not None
        assert f"/{path.parts[1]}" in mounts
    policy = named(objects, "NetworkPolicy", "engineroom-api")["spec"]
    assert {
        "ports": [{"port": 8443, "protocol": "TCP"}],
        "to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}],
    } in policy["egress"]
    bare = render(VARIANTS["api"])
    assert (
        parse(
            ConfigFiles(
                named(bare, "ConfigMap", "engineroom-api-accounts")["data"][
                    "accounts.json"
                ].encode()
            )
        )
        == AccountConfig()
    )
    assert "OIDC" not in json.dumps(named(bare, "Deployment", "engineroom-api"))
    without = named(bare, "NetworkPolicy", "engineroom-api")["spec"]["egress"]
    assert without == policy["egress"][:-1]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"clientId": ""}, "api.oidc.clientId"),
        ({"url": ""}, "api.oidc.url"),
        ({"existingSecret": ""}, "api.oidc.existingSecret"),
        ({"authentication": "none"}, "api.oidc.existingSecret"),
        ({"issuer": "http://idp.example"}, "issuer"),
        ({"url": "https://engineroom.example/path"}, "url"),
        ({"algorithms": ["HS256"]}, "algorithms"),
        ({"roleMapping": [{"group": "ops"}]}, "grants"),
        ({"secret": "x"}, "secret"),
    ],
)
def test_a_provider_that_is_half_described_is_refused(changes: Object, told: str) -> None:
    api = VARIANTS["api, oidc"]["api"]
    assert told in refusal({"api": {**api, "oidc": {**api["oidc"], **changes}}})


def test_the_webhooks_leave_the_question_of_the_author_to_the_api() -> None:
    def trusted(values: Object) -> list[str]:
        deployment = named(render(values), "Deployment", "engineroom-webhooks")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        name = "ENGINEROOM_WEBHOOKS_TRUSTED_AUTHORS"
        return [each["value"] for each in container["env"] if each["name"] == name]

    assert trusted(VARIANTS["api"]) == ["system:serviceaccount:engineroom:engineroom-api"]
    assert trusted(VARIANTS["no api"]) == []


def test_the_api_needs_a_redis_and_says_how_to_do_without_both() -> None:
    assert "or do without it by api.enabled=false" in refusal({"redis": {"enabled": False}})
    kinds = {thing["kind"] for thing in render(VARIANTS["no redis"])}
    assert "Deployment" in kinds
    assert "StatefulSet" not in kinds


def test_without_the_api_nothing_of_it_is_left() -> None:
    assert "engineroom-api" not in json.dumps(render(VARIANTS["no api"]))


def test_helm_test_reaches_the_api_even_where_only_some_peers_may() -> None:
    objects = render(VARIANTS["api, namespaced"])
    pod = named(objects, "Pod", "engineroom-test")
    url = environment(pod["spec"]["containers"][0])["ENGINEROOM_TEST_API"]["value"]
    assert url == "http://engineroom-api.engineroom/readyz"
    labels = pod["metadata"]["labels"]
    rules = named(objects, "NetworkPolicy", "engineroom-api")["spec"]["ingress"]
    (rule,) = [each for each in rules if each["ports"] == [{"port": "api", "protocol": "TCP"}]]
    selectors = [peer["podSelector"] for peer in rule["from"]]
    assert any("matchLabels" in each and matches(each, labels) for each in selectors)
    api = named(objects, "Deployment", "engineroom-api")["spec"]["template"]["metadata"]["labels"]
    egress = named(objects, "NetworkPolicy", "engineroom-test")["spec"]["egress"]
    (to,) = [each for each in egress if each["ports"] == [{"port": "api", "protocol": "TCP"}]]
    assert matches(to["to"][0]["podSelector"], api)
    tls = named(render(VARIANTS["api"]), "Pod", "engineroom-test")["spec"]["containers"][0]
    url = environment(tls)["ENGINEROOM_TEST_API"]["value"]
    assert url == "https://engineroom-api.engineroom/readyz"
