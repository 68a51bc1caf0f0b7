"""Every command as a process of its own, against a real API server: output and exit codes."""

from __future__ import annotations

import copy
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import pytest
import redis
import yaml

from engineroom.tasks import Tasks
from tests.cluster.api import Shape
from tests.cluster.local import Local
from tests.cluster.process import Identity
from tests.support import ROOT, redis_server
from tests.unit.cli import samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tests.cluster.api import Cluster

AUTO = {"minReplicas": 0, "maxReplicas": 10}
CODE = "import sys; sys.argv[0] = 'engineroom'; from engineroom.cli.app.main import main; main()"
MAIN = [sys.executable, "-c", CODE]


class Place:
    """A namespace of an API server, seen through kubectl and through the program under test."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.namespace = namespace
        python = {"PYTHONPATH": os.pathsep.join(sys.path)}
        self.environment = {**cluster.env(), **python}
        self.environment.pop("COLUMNS", None)

    def kubectl(self, *arguments: str, document: Any = None) -> str:
        done = subprocess.run(
            ["kubectl", "-n", self.namespace, *arguments],
            input=None if document is None else json.dumps(document),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def create(self, document: Mapping[str, Any]) -> None:
        """Make an object, and give it its status through the subresource."""
        made = copy.deepcopy(dict(document))
        kept = ("name", "labels", "annotations")
        made["metadata"] = {k: v for k, v in made["metadata"].items() if k in kept}
        status = made.pop("status", None)
        self.kubectl("create", "-f", "-", document=made)
        if status is not None:
            self.status(f"{made['kind'].lower()}/{made['metadata']['name']}", **status)

    def pool(self, name: str = "mail", **more: Any) -> None:
        document = samples.pool(name, **more)
        if "status" in document:
            document["status"]["observedGeneration"] = 1
        self.create(document)

    def pod(self, name: str, **more: Any) -> None:
        document = samples.pod(name, **more)
        document |= {"apiVersion": "v1", "kind": "Pod"}
        document["spec"] = {"containers": [{"name": "worker", "image": "example/app:1.2"}]}
        for one in document["status"]["containerStatuses"]:
            one |= {"image": "example/app:1.2", "imageID": "", "ready": True}
        self.create(document)

    def status(self, what: str, **status: Any) -> None:
        patch = json.dumps({"status": status})
        self.kubectl("patch", what, "--subresource=status", "--type=merge", "-p", patch)

    def get(self, what: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.kubectl("get", what, "-o", "json", "--show-managed-fields")
        )
        return found

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*MAIN, "-n", self.namespace, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == code, (
            f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        )
        assert "Traceback" not in done.stderr
        return done

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*MAIN, "-n", self.namespace, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def until(what: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.1)


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def error_of(done: subprocess.CompletedProcess[str]) -> tuple[str, str, str]:
    """What, why and fix: exactly these three lines."""
    what, why, fix = done.stderr.splitlines()
    assert what.startswith("error: ")
    assert why.startswith("  why: ")
    assert fix.startswith("  fix: ")
    return what[7:], why[7:], fix[7:]


@pytest.fixture
def place(control_plane: Cluster) -> Iterator[Place]:
    place = Place(control_plane, f"cli-{secrets.token_hex(4)}")
    place.kubectl("create", "namespace", place.namespace)
    # Pods are refused until the namespace's account is there.
    until(lambda: "default" in place.kubectl("get", "serviceaccounts", "-o", "name"))
    environment = place.environment
    yield place
    place.environment = environment
    place.kubectl("delete", "namespace", place.namespace, "--wait=false")


def test_get_in_every_shape(place: Place) -> None:
    assert place.run("get").stderr == f"no pools in namespace {place.namespace}\n"
    place.pool("mail", autoscaling=AUTO, status={})
    place.pool("web", metadata={"labels": {"team": "x"}}, replicas=2)
    header, mail, web = lines(place.run("get", "pools").stdout)
    assert header[:4] == ["NAME", "STATE", "PODS", "BUSY"]
    assert mail[:9] == ["mail", "Ready", "7/7", "3/7", "840", "12s", "120", "0-10", mail[8]]
    assert web[:8] == ["web", "Unseen", "-", "-", "-", "-", "-", "=2"]
    assert "DECISION" in place.run("get", "-o", "wide").stdout
    assert place.run("get", "-l", "team=x", "-o", "name").stdout == (
        "workerpools.engineroom.dev/web\n"
    )
    document = json.loads(place.run("get", "mail", "-o", "json").stdout)
    assert document["status"]["desiredReplicas"] == 7
    assert "managedFields" not in document["metadata"]
    items = yaml.safe_load(place.run("get", "-o", "yaml").stdout)["items"]
    assert [one["metadata"]["name"] for one in items] == ["mail", "web"]
    everywhere = subprocess.run(
        [*MAIN, "get", "-A"], env=place.environment, capture_output=True, text=True, check=True
    )
    assert [place.namespace, "mail"] in [line[:2] for line in lines(everywhere.stdout)]


def test_get_pages_through_more_pools_than_fit_one_answer(place: Place) -> None:
    documents = []
    for number in range(520):
        document = samples.pool(f"pool-{number:03}")
        document["metadata"] = {"name": f"pool-{number:03}"}
        documents.append(document)
    listing = {"apiVersion": "v1", "kind": "List", "items": documents}
    place.kubectl("create", "-f", "-", document=listing)
    names = place.run("get", "-o", "name").stdout.split()
    assert len(names) == len(set(names)) == 520


def test_explain_shows_status_pods_and_events(place: Place) -> None:
    place.pool("mail", autoscaling=AUTO, status={})
    place.pod("mail-1", annotations=samples.BUSY)
    place.pod("mail-2", ready=False, container={"state": {"waiting": {
        "reason": "ImagePullBackOff", "message": "no such image"}}})  # fmt: skip
    place.pod("other-1", pool="other")
    uid = place.get("workerpool/mail")["metadata"]["uid"]
    event = samples.event("ScaledUp", "from 0 to 7 pods", 4) | {
        "apiVersion": "v1",
        "kind": "Event",
        "involvedObject": {
            "apiVersion": "engineroom.dev/v1alpha1",
            "kind": "WorkerPool",
            "name": "mail",
            "namespace": place.namespace,
            "uid": uid,
        },
    }
    place.create(event)
    event["involvedObject"] |= {"uid": "of-an-older-pool"}
    place.create(event | {"metadata": {"name": "old"}, "message": "of another life"})
    text = place.run("explain", "mail").stdout
    assert text.startswith(
        f"{place.namespace}/mail: 7 pods, 7 ready, 7 wanted; 3 of 7 workers busy"
    )
    assert "  7 pods: 840 waiting x 0.25 s each within 30 s, 3 running\n" in text
    assert "problem: 1 pod of 2: ImagePullBackOff" in text
    assert "from 0 to 7 pods" in text
    assert "another life" not in text
    document = json.loads(place.run("explain", "wp/mail", "-o", "json").stdout)
    assert [(one["name"], one["state"]) for one in document["pods"]] == [
        ("mail-1", "busy"),
        ("mail-2", "ImagePullBackOff"),
    ]
    assert document["pods"][0]["usage"] is None


def test_top_once_and_live(place: Place) -> None:
    place.pool("mail", autoscaling=AUTO, status={})
    place.pod("mail-1", annotations=samples.BUSY)
    assert ["mail", "Ready", "7/7", "3/7", "120", "840"] in [
        line[:6] for line in lines(place.run("top").stdout)
    ]
    workers = json.loads(place.run("top", "workers", "mail", "-o", "json").stdout)["workers"]
    assert [(one["name"], one["busy"]) for one in workers] == [("mail-1", True)]
    process = place.start("top", "--watch", "--interval", "0.5")
    assert process.stdout is not None
    seen = 0
    while seen < 2:
        line = process.stdout.readline()
        assert line, process.communicate()
        seen += line.startswith("mail ")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")


def test_scale_by_hand_writes_the_size_and_nothing_else(place: Place) -> None:
    place.pool("web", replicas=2)
    before = place.get("workerpool/web")
    rehearsed = place.run("scale", "web", "5", "--dry-run=server")
    assert "-  replicas: 2\n+  replicas: 5\n" in rehearsed.stdout
    assert place.get("workerpool/web")["spec"]["replicas"] == 2
    done = place.run("scale", "web", "5")
    assert done.stdout == f"workerpool {place.namespace}/web scaled to 5 pods (was 2)\n"
    after = place.get("workerpool/web")
    assert after["spec"] == before["spec"] | {"replicas": 5}
    written = next(
        one for one in after["metadata"]["managedFields"] if one["manager"] == "engineroom-cli"
    )
    assert written["fieldsV1"] == {"f:spec": {"f:replicas": {}}}
    assert written["subresource"] == "scale"
    # Not a terminal: nobody to ask.
    place.run("scale", "web", "0", "--yes")
    assert place.get("workerpool/web")["spec"]["replicas"] == 0


def test_scale_pause_and_resume_of_an_autoscaled_pool(place: Place) -> None:
    place.pool("mail", autoscaling=AUTO, status={})
    what, why, fix = error_of(place.run("scale", "mail", "5", code=2))
    assert what == f"{place.namespace}/mail is autoscaled between 0 and 10 pods"
    assert "follows the load" in why
    assert "--min 5" in fix
    place.run("scale", "mail", "--min", "1", "--max", "20")
    place.run("pause", "mail", "--direction", "in", "-o", "name")
    spec = place.get("workerpool/mail")["spec"]
    auto = spec["autoscaling"]
    assert (auto["minReplicas"], auto["maxReplicas"], auto["pause"]) == (1, 20, "ScaleIn")
    rehearsed = place.run("resume", "mail", "--dry-run=server")
    assert "-    pause: ScaleIn\n" in rehearsed.stdout
    assert place.get("workerpool/mail")["spec"] == spec
    assert place.run("resume", "mail").stdout.endswith("resumed: it scales again\n")
    assert place.get("workerpool/mail")["spec"]["autoscaling"]["pause"] == "None"
    generation = place.get("workerpool/mail")["metadata"]["generation"]
    assert "neither paused nor suspended" in place.run("resume", "mail").stdout
    assert place.get("workerpool/mail")["metadata"]["generation"] == generation


def test_drain_of_a_pool_waits_for_the_operators_word(place: Place) -> None:
    place.pool("mail", autoscaling=AUTO, status={})
    process = place.start("drain", "mail", "--yes")
    until(lambda: bool(place.get("workerpool/mail")["spec"]["suspend"]))
    assert process.stderr is not None
    assert "waiting for the operator to see it" in process.stderr.readline()
    place.status("workerpool/mail", observedGeneration=2)
    assert "3 of 7 workers hold a job" in process.stderr.readline()
    assert process.poll() is None
    place.status("workerpool/mail", busyWorkers=0, queues=[{"name": "default", "depth": 9}])
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.splitlines()[-1].startswith(f"workerpool {place.namespace}/mail is drained")


def test_drain_that_takes_too_long_ends_with_one(place: Place) -> None:
    place.pool("mail", autoscaling=AUTO, status={}, suspend=True)
    what, why, fix = error_of_last(place.run("drain", "mail", "--timeout", "1s", "--yes", code=1))
    assert what == f"draining {place.namespace}/mail has not come to its end within 1s"
    assert why == "3 of 7 workers hold a job"
    assert f"engineroom resume mail -n {place.namespace}" in fix


def error_of_last(done: subprocess.CompletedProcess[str]) -> tuple[str, str, str]:
    """The error after lines of progress."""
    done.stderr = "\n".join(done.stderr.splitlines()[-3:])
    return error_of(done)


def test_drain_of_a_pod_marks_it_and_waits_until_it_is_gone(place: Place) -> None:
    place.pool("mail", autoscaling=AUTO, status={})
    place.pod("mail-1", annotations=samples.BUSY)
    place.pod("other-1", pool="other")
    _, why, _ = error_of(place.run("drain", "mail", "other-1", code=2))
    assert why == "it belongs to other"
    rehearsed = place.run("drain", "mail", "mail-1", "--dry-run=server")
    assert "+  engineroom.dev/drain: 'true'" in rehearsed.stdout
    assert "engineroom.dev/drain" not in place.get("pod/mail-1")["metadata"]["annotations"]
    process = place.start("drain", "mail", "mail-1", "--yes")
    until(
        lambda: (
            place.get("pod/mail-1")["metadata"]["annotations"].get("engineroom.dev/drain") == "true"
        )
    )
    assert process.poll() is None
    place.kubectl("delete", "pod", "mail-1", "--grace-period=0", "--force")
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.splitlines()[-1] == f"pod {place.namespace}/mail-1 is gone: it holds no job"


def test_what_is_not_there_ends_with_four(place: Place) -> None:
    for arguments in (
        ["get", "nobody"],
        ["scale", "nobody", "1"],
        ["top", "workers", "nobody"],
    ):
        what, why, fix = error_of(place.run(*arguments, code=4))
        assert what == f"WorkerPool {place.namespace}/nobody is not there"
        assert '"nobody" not found' in why
        assert "get pools -A" in fix
    place.pool("mail")
    what, _, _ = error_of(place.run("drain", "mail", "gone", code=4))
    assert what == f"pod {place.namespace}/gone is not there"


def test_a_change_that_admission_refuses_or_cannot_check_ends_with_one(place: Place) -> None:
    place.pool("mail", autoscaling=AUTO)
    name = f"refuse-{place.namespace}"
    selector = {"matchLabels": {"kubernetes.io/metadata.name": place.namespace}}
    rules = [{"apiGroups": ["engineroom.dev"], "apiVersions": ["*"], "operations": ["UPDATE"],
              "resources": ["workerpools"]}]  # fmt: skip
    hook = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [
            {
                "name": "away.engineroom.dev",
                "clientConfig": {"url": "https://127.0.0.1:1/"},
                "rules": rules,
                "namespaceSelector": selector,
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "timeoutSeconds": 1,
            }
        ],
    }
    place.create(hook)
    try:

        def refused() -> bool:
            done = subprocess.run(
                [*MAIN, "-n", place.namespace, "pause", "mail", "--dry-run=server"],
                env=place.environment,
                capture_output=True,
                text=True,
                check=False,
            )
            return done.returncode == 1 and "could not be checked" in done.stderr

        # The API server notices a new configuration after a moment.
        until(refused)
        _, why, fix = error_of(place.run("pause", "mail", code=1))
        assert "failed calling webhook" in why
        assert "`engineroom status`" in fix
    finally:
        place.kubectl("delete", "validatingwebhookconfiguration", name)
    assert place.get("workerpool/mail")["spec"]["autoscaling"]["pause"] == "None"


def kubeconfig_of(place: Place, account: str, folder: Path) -> Path:
    """A kubeconfig of a service account: somebody with the rights it is given and no others."""
    place.kubectl("create", "serviceaccount", account)
    token = place.kubectl("create", "token", account).strip()
    config = yaml.safe_load(place.kubectl("config", "view", "--raw", "-o", "yaml"))
    config["users"] = [{"name": account, "user": {"token": token}}]
    for context in config["contexts"]:
        context["context"] |= {"user": account, "namespace": place.namespace}
    path = folder / f"{account}.kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


def test_who_may_not_look_is_told_so_with_five(place: Place, tmp_path: Path) -> None:
    place.pool("mail", autoscaling=AUTO, status={})
    config = str(kubeconfig_of(place, "nobody", tmp_path))
    for arguments in (["get"], ["pause", "mail"], ["status"]):
        what, why, fix = error_of(place.run(*arguments, "--kubeconfig", config, code=5))
        assert what.startswith("you may not do this with ")
        assert f"system:serviceaccount:{place.namespace}:nobody" in why
        assert "RoleBinding" in fix


def test_who_may_only_look_at_a_namespace_gets_an_overview_of_it(
    place: Place, tmp_path: Path
) -> None:
    place.pool("mail", autoscaling=AUTO, status={})
    config = str(kubeconfig_of(place, "viewer", tmp_path))
    rights = ["--verb=get,list", "--resource=workerpools.engineroom.dev,pods"]
    place.kubectl("create", "role", "viewer", *rights)
    account = f"--serviceaccount={place.namespace}:viewer"
    place.kubectl("create", "rolebinding", "viewer", "--role=viewer", account)
    place.environment = place.environment | {"KUBECONFIG": config}
    done = subprocess.run(
        [*MAIN, "status", "-o", "json"],
        env=place.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["namespace"] == place.namespace
    assert document["notAllowedToRead"] == ["webhook configurations"]
    operator = document["checks"][1]
    assert operator["summary"].startswith("unknown: you may not list the webhook configurations")
    assert "--system-namespace" in operator["fix"]
    assert place.run("explain", "mail").returncode == 0
    assert "--system-namespace" in place.run("version").stdout
    place.environment |= {"ENGINEROOM_SYSTEM_NAMESPACE": place.namespace}
    assert "you may not list Deployments" in place.run("version").stdout
    denied = json.loads(place.run("status", "-o", "json").stdout)
    assert denied["checks"][1]["summary"] == "unknown: you may not list Deployments"
    del place.environment["ENGINEROOM_SYSTEM_NAMESPACE"]
    place.run("pause", "mail", code=5)


def test_a_token_that_is_worth_nothing_ends_with_five(place: Place, tmp_path: Path) -> None:
    path = kubeconfig_of(place, "stranger", tmp_path)
    config = yaml.safe_load(path.read_text())
    config["users"][0]["user"]["token"] = "worthless"
    path.write_text(yaml.safe_dump(config))
    what, _, fix = error_of(place.run("get", "--kubeconfig", str(path), code=5))
    assert "does not know who you are" in what
    assert "log in again" in fix


def test_no_cluster_no_context_and_a_stranger_behind_the_address(
    place: Place, tmp_path: Path
) -> None:
    config = yaml.safe_load(place.kubectl("config", "view", "--raw", "-o", "yaml"))
    cluster = config["clusters"][0]["cluster"]
    path = tmp_path / "kubeconfig"

    def run(code: int, *arguments: str) -> tuple[str, str, str]:
        path.write_text(yaml.safe_dump(config))
        return error_of(place.run("get", "--kubeconfig", str(path), *arguments, code=code))

    server = cluster["server"]
    cluster["server"] = "https://127.0.0.1:1"
    what, why, fix = run(3)
    assert what == "cannot reach the cluster at https://127.0.0.1:1"
    assert "refused" in why
    assert "--kubeconfig and --context" in fix
    cluster["server"] = server
    del cluster["certificate-authority-data"]
    what, why, _ = run(3)
    assert what == f"cannot reach the cluster at {server}"
    assert "CERTIFICATE_VERIFY_FAILED" in why
    what, why, _ = run(2, "--context", "nowhere")
    assert what == "there is no context nowhere"
    assert config["contexts"][0]["name"] in why


def test_version_with_a_cluster(place: Place) -> None:
    document = json.loads(place.run("version", "-o", "json").stdout)
    assert document["kubernetes"]["version"].startswith("v1.")
    assert document["api"] == ["v1alpha1"]
    assert list(json.loads(place.run("version", "--client", "-o", "json").stdout)) == ["client"]


def test_completion_names_the_pools_of_the_namespace(place: Place) -> None:
    place.pool("mail")
    place.pool("web")
    done = subprocess.run(
        MAIN,
        env=place.environment
        | {
            "_ENGINEROOM_COMPLETE": "complete_bash",
            "COMP_WORDS": f"engineroom explain -n {place.namespace} ma",
            "COMP_CWORD": "4",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["mail"]


@pytest.fixture(scope="module")
def bare() -> Iterator[Local]:
    """An API server that has never heard of Engineroom."""
    owner = Identity.of(os.getpid())
    assert owner is not None
    cluster = Local(f"cli-bare-{os.getpid()}", owner=astuple(owner))
    cluster.up(Shape.CONTROL_PLANE)
    try:
        yield cluster
    finally:
        cluster.down()


def test_without_the_kind_every_command_says_how_to_install_it(bare: Local) -> None:
    place = Place(bare, "default")
    for arguments in (["get"], ["explain", "mail"]):
        what, _, fix = error_of(place.run(*arguments, code=4))
        assert what == "Engineroom is not installed in this cluster"
        assert fix.startswith("helm install engineroom")
    done = place.run("status", code=1)
    assert "problem   CRD        the kind WorkerPool is not installed" in done.stdout
    assert "fix CRD: helm install engineroom" in done.stdout
    assert "API          not installed" in place.run("version").stdout


def test_status_of_an_installation_that_is_well_and_then_is_not(bare: Local) -> None:
    place = Place(bare, "engineroom-system")
    place.kubectl("create", "namespace", place.namespace)
    place.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
    place.kubectl("wait", "--for=condition=Established", "crd/workerpools.engineroom.dev")
    for role in ("operator", "webhooks", "redis"):
        deployment = samples.deployment(role, wanted=1, lease="engineroom-operator")
        deployment["spec"]["selector"] = {"matchLabels": {"app": role}}
        deployment["spec"]["template"]["metadata"] = {"labels": {"app": role}}
        del deployment["status"]
        place.create(deployment | {"apiVersion": "apps/v1", "kind": "Deployment"})
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "engineroom-operator"},
        "spec": {"holderIdentity": "engineroom-operator-abc"},
    }
    place.create(lease)
    place.pool("mail", autoscaling=AUTO, status={})
    # No webhook configuration names it here.
    place.environment |= {"ENGINEROOM_SYSTEM_NAMESPACE": place.namespace}
    place.run("status", code=1)  # Nobody runs the pods here, so none is ready.
    for role in ("operator", "webhooks", "redis"):
        pods = f"app={role}"
        until(lambda pods=pods: bool(place.kubectl("get", "pods", "-l", pods, "-o", "name")))  # type: ignore[misc]
        name = place.kubectl("get", "pods", "-l", pods, "-o", "name").strip()
        place.status(name, phase="Running", conditions=[{"type": "Ready", "status": "True"}])

    def ready() -> bool:
        found = json.loads(place.kubectl("get", "deployments", "-o", "json"))["items"]
        return all(one["status"].get("readyReplicas") == 1 for one in found)

    until(ready)
    text = place.run("status").stdout
    operator = next(line for line in text.splitlines() if "operator" in line)
    assert operator.split(maxsplit=2)[::2] == [
        "ok",
        "engineroom-system/engineroom-operator 1/1 ready, 0.1.0, leader engineroom-operator-abc",
    ]
    assert "not registered with the API server" in text
    versions = json.loads(place.run("version", "-o", "json").stdout)
    assert versions["operator"][0]["image"] == "engineroom:0.1.0"
    stalled = samples.condition("Stalled", "True", "SecretNotFound", "Secret redis is not there")
    place.status("workerpool/mail", conditions=[stalled])
    text = place.run("status", code=1).stdout
    assert "engineroom-system/mail  Stalled" in text
    assert "why: Secret redis is not there" in text
    assert "fix: create the Secret" in text


def test_the_redis_of_a_pool_is_found_by_its_secret(place: Place) -> None:
    refs = [{"urlSecretRef": {"name": name, "key": "url"}} for name in ("queues", "other")]
    place.pool("mail", redis=refs[0])
    _, why, _ = error_of(place.run("queues", "list", code=4))
    assert why == "spec.redis.urlSecretRef names it"
    with redis_server() as server, redis.Redis(port=server.port) as client:
        url = f"redis://:hunter2@127.0.0.1:{server.port}/0"
        place.kubectl("create", "secret", "generic", "queues", f"--from-literal=url={url}")
        Tasks(client).create_queue("mail")
        assert lines(place.run("queues", "list", "-o", "name").stdout) == [
            ["default"], ["mail"], ["urgent"],
        ]  # fmt: skip
        place.run("enqueue", "shop.jobs.report", "-q", "urgent")
        place.pool("web", redis=refs[1])
        what, why, fix = error_of(place.run("queues", "list", code=2))
        assert what == f"the pools of namespace {place.namespace} use 2 Redis"
        assert why == "mail: Secret queues; web: Secret other"
        assert fix == "name one of its pools with --pool"
        done = place.run("jobs", "list", "--pool", "mail", "-o", "json")
        assert [one["queue"] for one in json.loads(done.stdout)["items"]] == ["urgent"]
        assert "hunter2" not in done.stdout + done.stderr
    error = place.run("queues", "list", "--pool", "mail", code=3).stderr
    assert error.startswith("error: Redis: ConnectionError")
    assert "hunter2" not in error


def test_who_may_not_read_the_secret_is_told_which_right_is_missing(
    place: Place, tmp_path: Path
) -> None:
    place.pool("mail", redis={"urlSecretRef": {"name": "queues", "key": "url"}})
    place.kubectl("create", "secret", "generic", "queues", "--from-literal=url=redis://127.0.0.1:1")
    config = str(kubeconfig_of(place, "viewer", tmp_path))
    rights = ["--verb=get,list", "--resource=workerpools.engineroom.dev"]
    place.kubectl("create", "role", "viewer", *rights)
    account = f"--serviceaccount={place.namespace}:viewer"
    place.kubectl("create", "rolebinding", "viewer", "--role=viewer", account)
    place.environment = place.environment | {"KUBECONFIG": config}
    what, why, fix = error_of(place.run("jobs", "list", code=5))
    assert what == f"you may not read Secret {place.namespace}/queues"
    assert "password of Redis" in why
    assert "`get` Secrets" in fix
