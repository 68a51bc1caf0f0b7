"""The walk: writes by random authors, and what must hold after them."""

from __future__ import annotations

import asyncio
import base64
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engineroom.api import kinds
from engineroom.kube.client.resources import (
    DEPLOYMENTS,
    NAMESPACES,
    SECRETS,
    WORKERPOOLS,
    Resource,
    resource_of,
)
from tests.attacks.authors import AUTHORS, RBAC, Author, Requests, roles
from tests.attacks.mutations import SECRETS as SECRET_NAMES
from tests.attacks.mutations import mutated, needs_pods, secrets_named
from tests.support import shared_namespace

if TYPE_CHECKING:
    from redis import Redis

#: Namespaces of the walk; the last one lacks the label of the installation's Redis.
TENANTS = ("attack-a", "attack-b", "attack-c")
UNLABELLED = TENANTS[-1]
NAMES = ("one", "two")
#: Seconds that the operator has to catch up before the state is judged.
SETTLE_SECONDS = 90

Key = tuple[str, str, str]


@dataclass
class Report:
    """The counts of a walk, and what broke a promise."""

    accepted: int = 0
    refused: int = 0
    gained: list[str] = field(default_factory=list)
    refused_wrongly: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


class Walk:
    """A walk over random writes; the same ``seed`` gives the same writes."""

    def __init__(self, api: Requests, redis: Redis, url: str, seed: int) -> None:
        self._api = api
        self._redis = redis
        self._url = url
        self._draw = random.Random(seed)
        #: The specs that were accepted last, as they were sent.
        self._specs: dict[Key, dict[str, Any]] = {}
        self.report = Report()

    def prepare(self) -> None:
        """Create namespaces, authors and Secrets."""
        for author in AUTHORS:
            for document in roles(author):
                plural = f"{document['kind'].lower()}s"
                resource = Resource(RBAC, "v1", plural, document["kind"], namespaced=False)
                self._create(resource, None, document)
        other_spelling = self._url.replace("127.0.0.1", "localhost")
        for tenant in TENANTS:
            namespace = shared_namespace(tenant)
            if tenant == UNLABELLED:
                del namespace["metadata"]["labels"]
            self._create(NAMESPACES, None, namespace)
            for name, url in zip(SECRET_NAMES, (self._url, other_spelling), strict=True):
                data = {"url": base64.b64encode(url.encode()).decode()}
                secret = {"metadata": {"name": name}, "data": data}
                self._create(SECRETS, tenant, {"apiVersion": "v1", "kind": "Secret", **secret})

    def clean(self) -> None:
        """Delete the namespaces, with all that is in them."""
        for tenant in TENANTS:
            self._api.send("DELETE", NAMESPACES, None, tenant)

    def _create(self, resource: Resource, namespace: str | None, body: dict[str, Any]) -> None:
        status, answer = self._api.send("POST", resource, namespace, body=body)
        assert status == 201, answer

    def step(self) -> None:
        """Have one author write one object, and judge the answer."""
        draw = self._draw
        kind, author = draw.choice(tuple(kinds.registry())), draw.choice(AUTHORS)
        key = (kind.kind, draw.choice(TENANTS), draw.choice(NAMES))
        _, namespace, name = key
        resource, old = resource_of(kind), self._specs.get(key)
        if old is not None and draw.random() < 0.1:
            status, _ = self._api.send("DELETE", resource, namespace, name, author=author)
            assert status == 200
            del self._specs[key]
            return
        new = mutated(kind.kind, draw, old)
        metadata: dict[str, Any] = {"name": name, "namespace": namespace}
        body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}
        method, place = "POST", None
        if old is not None:
            status, stored = self._api.send("GET", resource, namespace, name)
            assert status == 200, stored
            metadata["resourceVersion"] = stored["metadata"]["resourceVersion"]
            method, place = "PUT", name
        status, answer = self._api.send(
            method, resource, namespace, place, {**body, "spec": new}, author
        )
        if status == 409 and old is not None:
            return  # The operator wrote the status in between.
        self._judge(key, author, old, new, status, answer)

    def _judge(
        self,
        key: Key,
        author: Author,
        old: dict[str, Any] | None,
        new: dict[str, Any],
        status: int,
        answer: dict[str, Any],
    ) -> None:
        decides = needs_pods(key[0], old or {}, new)
        lacks = decides and not author.creates_pods
        lacks = lacks or (decides and bool(secrets_named(new)) and not author.gets_secrets)
        line = f"{author.name} {key}: {old} -> {new}"
        if status in (200, 201):
            self.report.accepted += 1
            self._specs[key] = new
            if lacks:
                self.report.gained.append(line)
        else:
            self.report.refused += 1
            if not lacks:
                self.report.refused_wrongly.append(f"{line}: {status} {answer.get('message')}")

    async def judge_state(self) -> None:
        """Wait for the operator, then check who uses which Redis and which queue."""
        deadline = asyncio.get_running_loop().time() + SETTLE_SECONDS
        while late := await asyncio.to_thread(self._unobserved):
            assert asyncio.get_running_loop().time() < deadline, f"not observed: {late}"
            await asyncio.sleep(0.2)
        await asyncio.to_thread(self._check_state)

    def _pools(self) -> list[dict[str, Any]]:
        pools = []
        for tenant in TENANTS:
            _, answer = self._api.send("GET", WORKERPOOLS, tenant)
            pools += answer["items"]
        return pools

    def _unobserved(self) -> list[dict[str, Any]]:
        """Return the pools whose status is not of their latest spec."""
        return [
            pool
            for pool in self._pools()
            if (pool.get("status") or {}).get("observedGeneration")
            != pool["metadata"]["generation"]
        ]

    def _check_state(self) -> None:
        owners: dict[str, str] = {}
        records = {
            name.decode(): record.split()[0].decode()
            for name, record in self._redis.hgetall("engineroom:owners").items()
        }
        sizes = {}
        for tenant in TENANTS:
            _, answer = self._api.send("GET", DEPLOYMENTS, tenant)
            for deployment in answer["items"]:
                metadata = deployment["metadata"]
                sizes[(tenant, metadata["name"])] = deployment["spec"]["replicas"]
        for pool in self._pools():
            tenant, name = pool["metadata"]["namespace"], pool["metadata"]["name"]
            queues = [queue["name"] for queue in pool["spec"]["queues"]]
            served = bool(pool["status"].get("ownedQueues"))
            working = served or bool(sizes.get((tenant, name)))
            if not working:
                continue
            if tenant == UNLABELLED and "redis" not in pool["spec"]:
                self.report.foreign.append(f"{tenant}/{name} uses the installation's Redis")
            for queue in queues:
                if owners.setdefault(queue, tenant) != tenant or records.get(queue) != tenant:
                    self.report.foreign.append(
                        f"{tenant}/{name} works on queue {queue} of {records.get(queue)}"
                    )
        self._check_schedules(records)

    def _check_schedules(self, records: dict[str, str]) -> None:
        for member in self._redis.zrange("engineroom:schedules", 0, -1):
            name = member.decode()
            queue = self._redis.hget(f"engineroom:schedule:{name}", "queue")
            tenant = name.partition("/")[0]
            if queue is not None and records.get(queue.decode()) != tenant:
                self.report.foreign.append(f"schedule {name} is on queue {queue.decode()}")
