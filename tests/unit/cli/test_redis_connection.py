"""Which Redis the commands on tasks mean, and by which way they get there."""

from __future__ import annotations

import base64
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from engineroom.cli.connections.parsing import parse_pool
from engineroom.cli.connections.redis_address import (
    RedisAddress,
    displayed_url,
    namespace_target,
    pool_target,
)
from engineroom.cli.connections.release import find_release
from engineroom.cli.connections.service_ports import service_connector, service_of, target_port
from engineroom.cli.errors import (
    CliError,
    ForbiddenError,
    NotFoundError,
    UnreachableError,
    UsageError,
)
from engineroom.tasks import TasksUnavailableError
from tests.support import free_port, redis_server

from .memory import MemoryCluster, Trial
from .samples import pool

if TYPE_CHECKING:
    from pathlib import Path

    from engineroom.cli.connections.model import Document
    from engineroom.kube.client.resources import Resource

URL = "redis://:s3cret@redis.default.svc:6379/0"


def secret(name: str, namespace: str = "default", /, **data: str) -> Document:
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"metadata": {"name": name, "namespace": namespace}, "data": encoded}


def of_pool(name: str, url: str, made: str, owner: str | None = None) -> Document:
    """A Secret with the labels of the operator's; its owner is the pool or ``owner``."""
    found = secret(f"{name}-redis-{made}", url=url)
    uid = parse_pool(pool(name)).uid if owner is None else owner
    reference = {"kind": "WorkerPool", "name": name, "uid": uid, "controller": True}
    found["metadata"] |= {
        "labels": {"engineroom.dev/pool": name}, "creationTimestamp": made,
        "ownerReferences": [reference],
    }  # fmt: skip
    return found


def elsewhere(name: str, secret_name: str) -> Document:
    return pool(name, redis={"urlSecretRef": {"name": secret_name, "key": "url"}})


WEBHOOKS: Document = {
    "metadata": {"name": "system-engineroom-webhooks"},
    "webhooks": [{
        "name": "workerpools.engineroom.dev",
        "clientConfig": {"service": {"namespace": "system", "name": "engineroom-webhooks"}},
    }],
}  # fmt: skip
OPERATOR: Document = {
    "metadata": {
        "name": "engineroom-operator",
        "namespace": "system",
        "labels": {
            "app.kubernetes.io/part-of": "engineroom",
            "app.kubernetes.io/component": "operator",
        },
    },
    "spec": {"template": {"spec": {"containers": [{"name": "operator", "env": [
        {"name": "OTHER", "value": "x"},
        {"name": "ENGINEROOM_REDIS_URL",
         "valueFrom": {"secretKeyRef": {"name": "engineroom-redis", "key": "url"}}},
    ]}]}}},
}  # fmt: skip


class Objects(MemoryCluster):
    """A cluster with Secrets, Services and pods; kinds in ``denied`` may not be read."""

    def __init__(self, *pools: Document, **objects: list[Document]) -> None:
        super().__init__(*pools)
        self.objects = objects
        self.denied: set[str] = set()
        self.opened: list[tuple[str, str, int]] = []
        self.port = 0

    def read(self, resource: Resource, namespace: str | None, name: str) -> Document:
        for entry in self.read_all(resource, namespace):
            if entry["metadata"]["name"] == name:
                return entry
        raise NotFoundError(f"{resource.plural} {namespace}/{name} is not there")

    def read_all(
        self, resource: Resource, namespace: str | None, selector: str | None = None
    ) -> list[Document]:
        if resource.plural in self.denied:
            raise ForbiddenError(f"you may not do this with {resource.plural}")
        wanted = dict(part.split("=") for part in (selector or "").split(",") if part)
        return [
            entry
            for entry in self.objects.get(resource.plural, [])
            if namespace in (None, entry["metadata"].get("namespace", "default"))
            and wanted.items() <= (entry["metadata"].get("labels") or {}).items()
        ]

    def open_port(self, namespace: str, pod: str, port: int) -> socket.socket:
        self.opened.append((namespace, pod, port))
        return socket.create_connection(("127.0.0.1", self.port))


def chosen(cluster: Objects, pool: str | None = None) -> tuple[RedisAddress, str]:
    target = (
        pool_target(cluster, "default", pool, lambda: find_release(cluster, None))
        if pool
        else namespace_target(cluster, "default", lambda: find_release(cluster, None))
    )
    return target.address, target.title


def test_one_pool_needs_no_word() -> None:
    cluster = Objects(elsewhere("mail", "r"), secrets=[secret("r", url=f" {URL}\n")])
    address, title = chosen(cluster)
    assert (address.url, address.namespace, title) == (
        URL,
        "default",
        "the Redis of pool default/mail",
    )
    assert "s3cret" not in repr(address)


def test_pools_that_share_one_need_no_word_and_their_queues_are_known() -> None:
    cluster = Objects(
        elsewhere("a", "r"), elsewhere("b", "r"), secrets=[secret("r", url="redis://h")]
    )
    target = namespace_target(cluster, "default", lambda: find_release(cluster, None))
    assert [shared.name for shared in target.pools] == ["a", "b"]


def test_of_several_one_has_to_be_named() -> None:
    cluster = Objects(
        elsewhere("a", "r"), elsewhere("b", "r"), elsewhere("c", "s"), pool("d"),
        secrets=[secret("r", url="redis://r"), secret("s", url="redis://s")],
    )  # fmt: skip
    with pytest.raises(UsageError) as caught:
        chosen(cluster)
    assert caught.value.what == "the pools of namespace default use 3 Redis"
    assert caught.value.why == "a, b: Secret r; c: Secret s; d: none named"
    assert "--pool" in caught.value.fix
    assert chosen(cluster, "c")[0].url == "redis://s"


def test_tls_of_the_pool_is_kept() -> None:
    document = elsewhere("mail", "r")
    document["spec"]["redis"]["tls"] = {
        "caSecretRef": {"name": "ca", "key": "ca.crt"}, "insecureSkipVerify": True,
    }  # fmt: skip
    cluster = Objects(
        document, secrets=[secret("r", url="rediss://h"), secret("ca", **{"ca.crt": "PEM"})]
    )
    address, _ = chosen(cluster)
    assert (address.ca, address.insecure) == ("PEM", True)


def test_a_pool_on_the_charts_redis_has_a_secret_of_the_operators() -> None:
    old = of_pool("mail", "redis://old", "2026-01-01T00:00:00Z")
    new = of_pool("mail", "redis://new", "2026-01-02T00:00:00Z")
    stray = of_pool("mail", "redis://stray", "2027-01-01T00:00:00Z", owner="of-an-earlier-pool")
    cluster = Objects(
        pool("mail"), secrets=[stray, new, old, of_pool("other", "redis://x", "2027")]
    )
    # Authors of Secrets in the namespace choose it, so it is not called the chart's.
    assert chosen(cluster) == (
        RedisAddress("redis://new", "default"),
        "the Redis of pool default/mail",
    )


@pytest.mark.parametrize("pools", [(), (pool("mail"),)])
def test_else_the_operators_own_deployment_says_where_it_is(pools: tuple[Document, ...]) -> None:
    cluster = Objects(
        *pools,
        secrets=[
            secret("engineroom-redis", "tenant", url="redis://:x@tenant"),
            secret("engineroom-redis", "system", url="redis://chart"),
        ],
        # The look-alike of a tenant comes first.
        deployments=[elsewhere_operator("tenant"), OPERATOR],
        validatingwebhookconfigurations=[WEBHOOKS],
    )
    address = RedisAddress("redis://chart", "system", installation=True)
    assert chosen(cluster) == (address, "the chart's Redis")


def elsewhere_operator(namespace: str) -> Document:
    return {**OPERATOR, "metadata": {**OPERATOR["metadata"], "namespace": namespace}}


@pytest.mark.parametrize("pools", [(), (pool("mail"),)])
def test_the_redis_of_a_look_alike_is_never_the_charts(pools: tuple[Document, ...]) -> None:
    cluster = Objects(
        *pools,
        secrets=[secret("engineroom-redis", "tenant", url="redis://:x@tenant")],
        deployments=[elsewhere_operator("tenant")],
    )
    with pytest.raises(CliError) as caught:
        chosen(cluster)
    assert "--system-namespace" in caught.value.fix


@pytest.mark.parametrize(
    ("pools", "objects", "denied", "kind", "says"),
    [
        ([], {}, (), UsageError, "no pool in namespace default"),
        ([], {}, ("deployments",), UsageError, "no pool in namespace default"),
        ([pool("mail")], {}, ("secrets",), NotFoundError, "no Secret says where"),
        ([elsewhere("mail", "r")], {}, (), NotFoundError, "Secret default/r does not exist"),
        ([elsewhere("mail", "r")], {}, ("secrets",), ForbiddenError, "you may not read Secret"),
        ([elsewhere("mail", "r")], {"secrets": [secret("r", uri="x")]}, (), NotFoundError,
         "has no key url"),
    ],
)  # fmt: skip
def test_what_cannot_be_found_names_the_field_and_the_fix(
    pools: list[Document], objects: dict[str, Any], denied: tuple[str, ...], kind: type, says: str
) -> None:
    cluster = Objects(*pools, **objects)
    cluster.denied = set(denied)
    with pytest.raises(kind) as caught:
        chosen(cluster)
    assert isinstance(caught.value, CliError)
    assert says in caught.value.what
    assert "ENGINEROOM_REDIS_URL" in caught.value.fix


# -- the way ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "service"),
    [
        ("redis", ("ns", "redis")),
        ("redis.other", ("other", "redis")),
        ("redis.other.svc", ("other", "redis")),
        ("redis.other.svc.cluster.local.", ("other", "redis")),
        ("redis-0.redis.other.svc", ("other", "redis")),
        ("redis-0.redis.other.svc.cluster.local", ("other", "redis")),
        ("cache.eu.svc.example.com", None),
        ("cache-0.cache.eu.svc.example.com", None),
        ("cache.internal.", None),
        ("a..svc", None),
        ("svc", ("ns", "svc")),
        ("cache.example.com", None),
        ("10.0.0.7", None),
        ("localhost", None),
        ("::1", None),
    ],
)
def test_what_a_host_may_mean(host: str, service: tuple[str, str] | None) -> None:
    assert service_of(host, "ns") == service


SERVICE: Document = {
    "metadata": {"name": "redis", "namespace": "default"},
    "spec": {"selector": {"app": "redis"}, "ports": [{"port": 6379, "targetPort": "client"}]},
}


def redis_pod(name: str, *, ready: bool = True) -> Document:
    return {
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "redis", "x": "y"}},
        "spec": {"containers": [{"ports": [{"name": "client", "containerPort": 7000}]}]},
        "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }


def test_a_services_port_is_that_of_the_container() -> None:
    assert target_port(SERVICE, redis_pod("a"), 6379) == 7000
    number = {"spec": {"ports": [{"port": 6379, "targetPort": 1234}]}}
    assert target_port(number, redis_pod("a"), 6379) == 1234
    assert target_port({"spec": {}}, redis_pod("a"), 6380) == 6380


def test_a_service_is_reached_through_a_ready_pod_and_nothing_else_is() -> None:
    cluster = Objects(services=[SERVICE], pods=[redis_pod("a", ready=False), redis_pod("b")])
    assert service_connector(cluster, "cache.example.com", 6379, "default") is None
    # Some name that happens to have one label, and no such Service: as the machine resolves it.
    assert service_connector(cluster, "myhost", 6379, "default") is None
    with pytest.raises(NotFoundError, match="Service other/redis"):
        service_connector(cluster, "redis.other.svc", 6379, "default")
    with redis_server() as server:
        cluster.port = server.port
        connect = service_connector(cluster, "redis", 6379, "default")
        assert connect is not None
        connect().close()
    assert cluster.opened == [("default", "b", 7000)]
    cluster.objects["pods"].pop()
    with pytest.raises(UnreachableError, match="has no ready pod"):
        service_connector(cluster, "redis", 6379, "default")


def test_a_service_of_another_namespace_is_the_charts_redis_only_by_its_full_name() -> None:
    other = {**SERVICE, "metadata": {"name": "cache", "namespace": "internal"}}
    cluster = Objects(services=[other, SERVICE], pods=[redis_pod("b")])
    with pytest.raises(UsageError, match="ambiguous") as caught:
        service_connector(cluster, "cache.internal", 6379, "default", unambiguous=True)
    assert "cache.internal.svc" in caught.value.fix
    # Its own namespace, no such Service, and the complete name.
    assert service_connector(cluster, "redis.default", 6379, "default", unambiguous=True)
    assert service_connector(cluster, "c.internal", 6379, "default", unambiguous=True) is None
    assert service_connector(cluster, "cache.internal.", 6379, "default", unambiguous=True) is None
    with pytest.raises(UnreachableError, match="Service internal/cache has no ready pod"):
        service_connector(cluster, "cache.internal.svc", 6379, "default", unambiguous=True)
    assert cluster.opened == []


def test_commands_go_through_the_forwarded_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    cluster = Objects(
        elsewhere("mail", "r"), secrets=[secret("r", url=URL)],
        services=[SERVICE], pods=[redis_pod("b")],
    )  # fmt: skip
    context = Trial(cluster).context
    with redis_server() as server:
        cluster.port = server.port
        with context.tasks() as connection:
            assert connection.tasks.create_queue("mail")
            assert connection.tasks.queue_names() == ["mail"]
            assert connection.declared_queues == {"default", "urgent"}
    assert set(cluster.opened) == {("default", "b", 7000)}


def test_tls_is_kept_on_the_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The certificate is that of the Service, which the way must not change."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=redis",
            "-addext", "subjectAltName=DNS:redis.default.svc"]  # fmt: skip
    subprocess.run(make, cwd=tmp_path, check=True, capture_output=True)
    port = free_port()
    command = ["redis-server", "--port", "0", "--tls-port", str(port),
               "--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem",
               "--tls-ca-cert-file", "cert.pem", "--tls-auth-clients", "no",
               "--save", "", "--requirepass", "s3cret"]  # fmt: skip
    url = "rediss://:s3cret@{}.default.svc:6379/0"
    server = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        for host, works in (("redis", True), ("other", False)):
            document = elsewhere("mail", "r")
            document["spec"]["redis"]["tls"] = {"caSecretRef": {"name": "ca", "key": "ca.crt"}}
            other = {**SERVICE, "metadata": {"name": "other", "namespace": "default"}}
            ca = secret("ca", **{"ca.crt": (tmp_path / "cert.pem").read_text()})
            cluster = Objects(
                document, secrets=[secret("r", url=url.format(host)), ca],
                services=[SERVICE, other], pods=[redis_pod("b")],
            )  # fmt: skip
            cluster.port = port
            with Trial(cluster).context.tasks() as connection:
                if works:
                    assert connection.tasks.queue_names() == []
                else:
                    with pytest.raises(TasksUnavailableError, match="certificate"):
                        connection.tasks.queue_names()
    finally:
        server.terminate()
        server.wait(10)


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            return


def test_an_url_is_shown_without_what_is_secret_in_it() -> None:
    assert displayed_url(URL) == "redis://redis.default.svc:6379"
    assert "secret" not in displayed_url("redis://user:secret@host:port/0")
