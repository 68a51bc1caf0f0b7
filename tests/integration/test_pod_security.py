"""Our verdict on pod templates, and that of a real API server on the pods made from them."""

from __future__ import annotations

import asyncio
import secrets
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from engineroom.api.v1alpha1.workerpool import WorkerPool
from engineroom.api.validation import ValidationContext, parse, problems
from engineroom.api.validation.pod_security import (
    LABEL,
    VERSION_LABEL,
    PodSecurityLevel,
    template_escalations,
)
from engineroom.core.errors import InvalidSpecError
from engineroom.kube.client.errors import BadRequest, Forbidden, Invalid
from engineroom.kube.client.resources import NAMESPACES, PODS, SERVICE_ACCOUNTS
from engineroom.workers.objects import RuntimeImage, deployment
from tests.integration.pod_corpus import by_version, corpus, windows
from tests.support import pool_document

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from engineroom.kube.client.client import Client
    from tests.integration.pod_corpus import Template

#: Requests at a time, and how long the busiest machine may take for one (seconds).
PARALLEL, TIMEOUT = 8, 120.0
PRIVILEGED = ValidationContext(PodSecurityLevel.PRIVILEGED)

#: (our verdict per level, pod): True where a namespace of that level refuses it.
Case = tuple[str, "Callable[[PodSecurityLevel], bool]", dict[str, Any]]


@pytest_asyncio.fixture
async def namespaces(
    client: Client,
) -> AsyncIterator[Callable[[dict[str, str]], Awaitable[str]]]:
    """A function that makes a namespace with labels, and the accounts that its pods name."""
    made: list[str] = []

    async def make(labels: dict[str, str]) -> str:
        name = f"test-{secrets.token_hex(4)}"
        await client.create(NAMESPACES, {"metadata": {"name": name, "labels": labels}})
        made.append(name)
        account = {"metadata": {"namespace": name, "name": "mail-worker"}}
        await client.create(SERVICE_ACCOUNTS, account)
        return name

    yield make
    await asyncio.gather(*(client.delete(NAMESPACES, None, name) for name in made))


def case(name: str, template: Template) -> Case | None:
    """Return the pool of a template as a case; None if another rule refuses it at every level."""
    document = pool_document(template=template)
    try:
        model = parse(WorkerPool, document, PRIVILEGED)
    except InvalidSpecError:
        return None
    made = deployment(
        model,
        "uid",
        replicas=1,
        runtime=RuntimeImage("r:1"),
        redis_secret=("redis", "url"),
        inputs="",
    )
    return (
        name,
        lambda level: bool(problems(document, ValidationContext(level))),
        made["spec"]["template"],
    )


def bare(name: str, template: Template) -> Case:
    """Return a template as a case of its own, without what the operator adds."""
    spec = {"automountServiceAccountToken": False, "serviceAccountName": "mail-worker"}
    return (
        name,
        lambda level: any(e.exceeds(level) for e in template_escalations(template, "template")),
        {**template, "spec": {**spec, **template["spec"]}},
    )


@cache
def cases(templates: Callable[[], Iterable[tuple[str, Template]]]) -> list[Case]:
    return [made for made in (case(*named) for named in templates()) if made is not None]


async def refuses(client: Client, namespace: str, pod: dict[str, Any]) -> bool | None:
    """Return whether Pod Security refuses the pod; None if it is no valid pod."""
    body = {**pod, "apiVersion": "v1", "kind": "Pod"}
    body["metadata"] = {**(pod.get("metadata") or {}), "name": "mail", "namespace": namespace}
    try:
        await client.request(
            "POST", PODS.path(namespace), params={"dryRun": "All"}, body=body, timeout=TIMEOUT
        )
    except (Invalid, BadRequest):
        return None
    except Forbidden as error:
        if "violates PodSecurity" not in str(error):
            raise
        return True
    return False


async def compare(
    client: Client, namespace: str, level: PodSecurityLevel, judged: list[Case]
) -> tuple[int, int, list[str]]:
    """Return how many pods were accepted and refused, and the differences."""
    slots = asyncio.Semaphore(PARALLEL)

    async def one(entry: Case) -> tuple[bool | None, str]:
        name, ours, pod = entry
        async with slots:
            theirs = await refuses(client, namespace, pod)
        different = theirs is not None and theirs != ours(level)
        return theirs, f"{level}: {name}: refused={theirs}" if different else ""

    found = await asyncio.gather(*(one(entry) for entry in judged))
    verdicts = [verdict for verdict, _ in found]
    return (
        verdicts.count(False),
        verdicts.count(True),
        [difference for _, difference in found if difference],
    )


@pytest.mark.parametrize("word", ["restricted", "baseline"])
async def test_verdict_on_every_template_is_the_admission_s(client, namespaces, word):
    labels = {LABEL: word}
    judged = [*cases(corpus), *(bare(*named) for named in windows())]

    accepted, refused, differences = await compare(
        client, await namespaces(labels), PodSecurityLevel.of(labels), judged
    )

    assert differences == []
    assert accepted > 150
    assert refused > 100
    assert accepted + refused > 300


@pytest.mark.parametrize(
    "version",
    ["v1.7", "v1.18", "v1.21", "v1.22", "v1.26", "v1.28", "v1.30", "v1.31", "v1.34", "v1.36"],
)
async def test_verdict_of_a_pinned_version_is_the_admission_s(client, namespaces, version):
    pinned = [{LABEL: word, VERSION_LABEL: version} for word in ("restricted", "baseline")]
    places = [await namespaces(labels) for labels in pinned]
    judged = cases(by_version)

    found = [
        await compare(client, place, PodSecurityLevel.of(labels), judged)
        for place, labels in zip(places, pinned, strict=True)
    ]

    assert list(chain.from_iterable(differences for _, _, differences in found)) == []
    assert sum(accepted for accepted, _, _ in found) > 60
    assert sum(refused for _, refused, _ in found) > 50
