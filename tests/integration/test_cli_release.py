"""A tenant copies the installation's objects, older and with the same labels, and gets nothing.

The tenant may do everything in its own namespace and nothing outside; the victim runs commands by
kubeconfig.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import redis

from engineroom.tasks import Tasks
from tests.integration import releases
from tests.integration.releases import Recorder, created, install, namespace, opened, registered
from tests.integration.test_cli import AUTO, Place, error_of, kubeconfig_of
from tests.limiter import limiter_process
from tests.support import redis_server
from tests.unit.cli import samples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cluster.api import Cluster

COMPONENTS = ("operator", "limiter", "redis")
TENANT_PASSWORD = "the-tenants-password"  # nosec B105


class Places(NamedTuple):
    """The namespaces of the tenant and of the installation, and the installation's pods."""

    tenant: Place
    system: Place
    pods: dict[str, str]


class World:
    """An installation, a tenant with a copy of it, and the program of a cluster administrator."""

    def __init__(self, places: Places, folder: Path) -> None:
        self.tenant, self.system, self.pods = places
        self.folder = folder
        self.attacker = Recorder()
        self.ports = {self.tenant.namespace: self.attacker.port}

    def run(
        self, *arguments: str, code: int = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*releases.PROGRAM, *arguments],
            env={
                **self.system.environment,
                **releases.environment(self.folder, self.ports),
                **environment,
            },
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, f"{arguments}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: str, **environment: str) -> Any:
        return json.loads(self.run(*arguments, "-o", "json", **environment).stdout)

    def opened_namespaces(self) -> set[str]:
        return {place for place, _, _ in opened(self.folder)}


@pytest.fixture(scope="module")
def places(control_plane: Cluster) -> Iterator[Places]:
    suffix = secrets.token_hex(4)
    # First in time and in the alphabet: both decided once.
    with (
        namespace(control_plane, f"a-tenant-{suffix}") as tenant,
        namespace(control_plane, f"system-{suffix}") as system,
    ):
        install(tenant, *COMPONENTS, password=TENANT_PASSWORD)
        yield Places(tenant, system, install(system, *COMPONENTS))


@pytest.fixture
def world(places: Places, tmp_path: Path) -> Iterator[World]:
    world = World(places, tmp_path)
    yield world
    world.attacker.close()


def pool(**more: Any) -> dict[str, Any]:
    return samples.pool("mail", autoscaling=AUTO, **more)


@pytest.fixture
def installed(world: World) -> Iterator[World]:
    with registered(world.system):
        yield world


def test_the_charts_redis_is_that_of_the_installation(installed: World) -> None:
    """In a namespace without pools, and for a pool without a Redis of its own."""
    with redis_server() as server, redis.Redis(port=server.port) as client:
        # Any password will do for the user that needs none, but it is seen at the attacker's.
        installed.ports[installed.system.namespace] = server.port
        Tasks(client).create_queue("ours")
        tenant = ["-n", installed.tenant.namespace]
        assert installed.run("queues", "list", "-n", "default", "-o", "name").stdout == "ours\n"
        forged = {
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "mail-redis-1", "labels": {"engineroom.dev/pool": "mail"}},
            "stringData": {"url": "redis://:x@engineroom-redis:6379/0"},
        }  # fmt: skip
        with created(installed.tenant, forged), created(installed.tenant, pool()):
            names = installed.run("queues", "list", *tenant, "-o", "name").stdout.split()
        assert names == ["default", "ours", "urgent"]
        installed.run("enqueue", "shop.jobs.report", "-q", "ours", "-n", "default")
        assert client.llen("rq:queue:ours") == 1
    assert installed.opened_namespaces() == {installed.system.namespace}
    assert {pod for _, pod, _ in opened(installed.folder)} == {installed.pods["redis"]}
    assert installed.attacker.received == []


def test_without_an_installation_a_tenants_redis_is_not_taken_for_it(world: World) -> None:
    done = world.run("queues", "list", "-n", "default", code=2)
    assert "--system-namespace" in done.stderr
    assert opened(world.folder) == []
    assert world.attacker.received == []


def test_a_pools_own_redis_gets_the_pools_own_password_only(installed: World) -> None:
    reference = {"urlSecretRef": {"name": "engineroom-redis", "key": "url"}}
    with created(installed.tenant, pool(redis=reference)):
        installed.run("queues", "list", "-n", installed.tenant.namespace, code=3)
    assert installed.opened_namespaces() == {installed.tenant.namespace}
    received = b"".join(installed.attacker.received)
    assert TENANT_PASSWORD.encode() in received
    assert releases.REDIS_PASSWORD.encode() not in received
    assert b"Bearer" not in received


def test_a_host_outside_the_cluster_is_not_a_tenants_service(installed: World) -> None:
    """The host's second label is the name of the tenant's namespace."""
    system, tenant = installed.system, installed.tenant
    host = f"engineroom-redis.{tenant.namespace}"
    read = ("get", "secret", "engineroom-redis", "-o", "jsonpath={.data}")
    before = system.kubectl(*read)
    for url, code in ((f"{host}:6379", 2), (f"{host}.svc.example.invalid:6379", 3)):
        patch = {"stringData": {"url": f"redis://:{releases.REDIS_PASSWORD}@{url}/0"}}
        system.kubectl("patch", "secret", "engineroom-redis", "-p", json.dumps(patch))
        done = installed.run("queues", "list", "-n", "default", code=code)
        assert releases.REDIS_PASSWORD not in done.stdout + done.stderr
    system.kubectl("patch", "secret", "engineroom-redis", "-p", f'{{"data": {before}}}')
    assert opened(installed.folder) == []
    assert installed.attacker.received == []


def test_ratelimit_top_asks_the_installations_pods_only(installed: World, tmp_path: Path) -> None:
    system = installed.system
    bare = {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a-bare-pod", "labels": releases.labels("limiter")},
        "spec": {"containers": [{"name": "limiter", "image": "example/app:1"}]},
    }  # fmt: skip
    with (
        created(system, bare),
        redis_server() as server,
        limiter_process(server.url, tmp_path) as process,
    ):
        system.status("pod/a-bare-pod", phase="Running")
        installed.ports[system.namespace] = process.admin_port
        top = installed.json("ratelimit", "top", "--seconds", "0.1")
    assert top["limiters"] == {"asked": 1, "failures": []}
    assert opened(installed.folder) == [[system.namespace, installed.pods["limiter"], "9090"]]
    assert installed.attacker.received == []


def test_status_and_version_show_the_installation_only(installed: World) -> None:
    place = installed.system.namespace
    versions = installed.json("version")
    assert versions["systemNamespaces"] == [place]
    assert [operator["namespace"] for operator in versions["operator"]] == [place]
    document = json.loads(installed.run("status", "-o", "json", code=0).stdout)
    assert {component["namespace"] for component in document["components"]} == {place}
    assert document["checks"][2]["summary"] == "not installed"


def test_of_a_tenants_copy_alone_nothing_is_shown(world: World) -> None:
    document = json.loads(world.run("status", "-o", "json", code=1).stdout)
    assert document["components"] == []
    operator = document["checks"][1]
    assert "no webhook configuration names the installation's namespace" in operator["summary"]
    assert "--system-namespace" in operator["fix"]
    named = world.json("version", ENGINEROOM_SYSTEM_NAMESPACE=world.system.namespace)
    assert [entry["namespace"] for entry in named["operator"]] == [world.system.namespace]


def test_of_two_installations_one_is_named(installed: World) -> None:
    tenant, system = installed.tenant, installed.system
    with registered(tenant):
        for arguments in (["ratelimit", "top"], ["ui", "--no-browser"]):
            what, why, fix = error_of(installed.run(*arguments, code=2))
            assert what == "there are 2 installations in this cluster"
            assert f"{tenant.namespace}/engineroom-webhooks" in why
            assert f"{system.namespace}/engineroom-webhooks" in why
            assert "--system-namespace" in fix
        assert opened(installed.folder) == []
        chosen = ["--system-namespace", system.namespace]
        document = installed.json("version", *chosen)
        assert [entry["namespace"] for entry in document["operator"]] == [system.namespace]
        assert {entry["namespace"] for entry in installed.json("version")["operator"]} == {
            tenant.namespace, system.namespace,
        }  # fmt: skip


def test_without_rights_in_the_cluster_the_namespace_is_named(
    installed: World, tmp_path: Path
) -> None:
    """A user of the installation's namespace alone, with the rights of docs/cli.md."""
    system = installed.system
    config = str(kubeconfig_of(system, "person", tmp_path))
    rights = ["--verb=get,list", "--resource=deployments.apps,replicasets.apps,pods"]
    system.kubectl("create", "role", "person", *rights)
    account = f"--serviceaccount={system.namespace}:person"
    system.kubectl("create", "rolebinding", "person", "--role=person", account)
    kubeconfig = {"KUBECONFIG": config}
    what, why, fix = error_of(installed.run("ratelimit", "top", code=5, **kubeconfig))
    assert what == "the namespace of the installation is unknown"
    assert "ValidatingWebhookConfigurations" in why
    assert fix == "name the namespace of the installation with --system-namespace"
    document = installed.json("version", **kubeconfig)
    assert document["notAllowedToRead"] == ["webhook configurations"]
    with redis_server() as server, limiter_process(server.url, tmp_path) as process:
        installed.ports[system.namespace] = process.admin_port
        command = ["ratelimit", "top", "--seconds", "0.1", "--system-namespace", system.namespace]
        assert installed.json(*command, **kubeconfig)["limiters"]["asked"] == 1
    assert installed.opened_namespaces() == {system.namespace}
