"""A kind declared in one file, through everything that works on kinds in general."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import yaml

from engineroom.api import generate, kinds, rbac
from engineroom.api.manifests import check
from engineroom.api.validation.pod_security import PodSecurityLevel
from engineroom.core.errors import InvalidSpecError
from engineroom.kube.client.errors import ApiError
from engineroom.manifests import plan
from tests import toy_kind
from tests.integration.test_admission import allow_ann, kubectl
from tests.integration.toys import TOYS, a_toy, toys_served
from tests.integration.webhooks import Admission, secret_env
from tests.support import ROOT, extra_kinds
from tests.unit.chart.rendering import render_chart

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from engineroom.api.kinds import Registry
    from engineroom.kube.client.client import Client
    from tests.cluster.api import Cluster

SECRET = {"name": "bell", "key": "token"}


@pytest.fixture
def registry() -> Iterator[Registry]:
    """The registry with the toy, in this process and in those that it starts."""
    with extra_kinds(toy_kind.__name__) as extended:
        yield extended


@pytest_asyncio.fixture
async def served(registry: Registry, client: Client) -> AsyncIterator[Client]:
    """An API server that serves toys."""
    del registry
    async with toys_served(client) as serving:
        yield serving


@pytest_asyncio.fixture
async def admission(
    control_plane: Cluster, served: Client, namespace: str, tmp_path: Path
) -> AsyncIterator[Admission]:
    """The admission server, which knows toys too."""
    server = Admission(served, control_plane.kubeconfig, namespace, tmp_path)
    await server.start()
    yield server
    await server.close()


async def test_the_api_server_serves_it_with_columns_rules_and_status(
    control_plane: Cluster, served: Client, namespace: str
) -> None:
    stored = await served.create(TOYS, a_toy(namespace, bells=[{"url": "http://bell"}]))

    assert stored["spec"]["every"] == "1m"
    assert (await served.get(TOYS, namespace, "car"))["status"] == {"observedGeneration": -1}
    status, text = await kubectl(control_plane, "get", "ty", "-n", namespace)
    assert status == 0
    assert text.splitlines()[0].split() == ["NAME", "RINGS"]
    taken = a_toy(namespace, count=7)
    with pytest.raises(ApiError, match="7 is taken; write another"):
        await served.create(TOYS, taken)


async def test_admission_refuses_a_wrong_spec(
    control_plane: Cluster, admission: Admission, namespace: str
) -> None:
    create = ("create", "-f", "-")

    status, text = await kubectl(control_plane, *create, stdin=a_toy(namespace, count=13))

    assert status == 1
    assert 'The Toy "car" is invalid: spec.count: 13 is unlucky; write 12 or 14' in text
    _, text = await kubectl(control_plane, *create, stdin=a_toy(namespace, count=100))
    assert "Warning: spec.count: 100 rings are loud; write fewer" in text


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"bells": [{"url": "http://bell", "tokenSecretRef": SECRET}]}, "spec.bells[0]"),
        (
            {
                "template": {
                    "spec": {"containers": [{"name": "a", "image": "a:1", "env": [secret_env()]}]}
                }
            },
            "spec.template",
        ),
    ],
)
async def test_a_guarded_field_needs_an_author_who_may_create_pods(
    control_plane: Cluster,
    admission: Admission,
    namespace: str,
    spec: dict[str, Any],
    field: str,
) -> None:
    await allow_ann(control_plane, namespace, "toys.engineroom.dev")
    create = ("create", "--as=ann", "-f", "-")

    status, text = await kubectl(control_plane, *create, stdin=a_toy(namespace, **spec))

    assert status == 1
    assert (
        f"{field}: only authors who may create pods in namespace {namespace} may set this" in text
    )
    assert (await kubectl(control_plane, *create, stdin=a_toy(namespace)))[0] == 0


async def test_a_reference_that_no_entry_declares_is_denied_to_everybody(
    control_plane: Cluster, admission: Admission, namespace: str
) -> None:
    hidden = a_toy(namespace, settings={"deep": [{"secretKeyRef": SECRET}]})

    status, text = await kubectl(control_plane, "create", "-f", "-", stdin=hidden)

    assert status == 1
    assert "spec.settings.deep[0].secretKeyRef: looks like a reference to pods, Secrets" in text


async def test_apply_plans_it_and_refuses_what_admission_refuses(
    served: Client, namespace: str
) -> None:
    objects = plan.read_objects(namespace, yaml.safe_dump(a_toy(namespace)))
    plan.check(objects, PodSecurityLevel.RESTRICTED)

    (planned,) = await plan.rehearse(served, namespace, objects, force=False)

    assert (planned.kind, planned.action, planned.resource) == ("Toy", "create", TOYS)
    unlucky = plan.read_objects(namespace, yaml.safe_dump(a_toy(namespace, count=13)))
    with pytest.raises(InvalidSpecError, match="13 is unlucky"):
        plan.check(unlucky, PodSecurityLevel.RESTRICTED)


def test_lint_checks_it(registry: Registry) -> None:
    del registry
    report = check([("toy.yaml", yaml.safe_dump(a_toy("shop", count=13)))])

    assert [finding.text for finding in report.findings] == [
        "spec.count: 13 is unlucky; write 12 or 14"
    ]


def test_the_chart_grants_rights_to_it(registry: Registry, tmp_path: Path) -> None:
    chart = tmp_path / "engineroom"
    shutil.copytree(ROOT / "charts" / "engineroom", chart)
    (chart / "templates" / "_kinds.tpl").write_text(rbac.chart_helpers(registry))

    objects = render_chart(chart, {})

    roles = {
        thing["metadata"]["name"]: thing for thing in objects if thing["kind"] == "ClusterRole"
    }

    def verbs(role: str, resource: str) -> set[str]:
        return {
            verb
            for rule in roles[role]["rules"]
            if resource in rule["resources"]
            for verb in rule["verbs"]
        }

    assert verbs("engineroom-operator", "toys") == {"get", "list", "watch"}
    assert verbs("engineroom-operator", "toys/status") == {"patch"}
    assert verbs("engineroom-operator", "toys/finalizers") == {"update"}
    assert verbs("engineroom-operator", "jobs") == {"create", "delete"}
    assert {"create", "patch", "delete"} <= verbs("engineroom-api", "toys")
    assert {"create", "update"} <= verbs("engineroom-edit", "toys")
    assert verbs("engineroom-view", "toys") == {"get", "list", "watch"}
    (webhooks,) = [o for o in objects if o["kind"] == "ValidatingWebhookConfiguration"]
    assert "toys" in webhooks["webhooks"][0]["rules"][0]["resources"]


def test_it_has_generated_files_and_a_reference_page(registry: Registry, tmp_path: Path) -> None:
    files = {
        str(path.relative_to(tmp_path)): text for path, text in generate.files(tmp_path).items()
    }

    assert "crds/toys.engineroom.dev.yaml" in files
    assert "charts/engineroom/files/crds/toys.engineroom.dev.yaml" in files
    page = files["docs/reference/toy.md"]
    assert page.startswith("# Toy: every field")
    assert "| `spec.bells[].url` | string | required | Address of the bell. |" in page
    assert len(registry) == len(kinds.KINDS) + 1
