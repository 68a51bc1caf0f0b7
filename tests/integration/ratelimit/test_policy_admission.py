"""What a person at kubectl meets: the CRD's own rules, and the admission server for the rest."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from engineroom.api import kinds
from engineroom.api.schema.ratelimitpolicy import SCHEMA
from engineroom.api.v1alpha1.ratelimitpolicy import RateLimitPolicy
from engineroom.api.validation import parse
from engineroom.kube.client.errors import ApiError
from engineroom.kube.client.resources import RATELIMITPOLICIES
from tests.integration.webhooks import Admission
from tests.unit.api.policies import FULL, WRONG, policy
from tests.unit.api.test_crd import served, with_defaults

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from engineroom.kube.client.client import Client
    from tests.cluster.api import Cluster


@pytest_asyncio.fixture
async def admission(
    control_plane: Cluster, client: Client, namespace: str, tmp_path: Path
) -> AsyncIterator[Admission]:
    built = Admission(client, control_plane.kubeconfig, namespace, tmp_path)
    yield built
    await built.close()


def here(namespace: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    built = policy(changes)
    built["metadata"]["namespace"] = namespace
    return built


async def rehearse(client: Client, namespace: str, obj: dict[str, Any]) -> dict[str, Any]:
    """Create as a dry run; unknown fields are refused, as kubectl has it."""
    return await client.request(
        "POST",
        RATELIMITPOLICIES.path(namespace),
        params={"dryRun": "All", "fieldValidation": "Strict"},
        body=obj,
    )


#: What the API server refuses without the admission server, by its own rules in our words.
BY_RULE = {
    "period-zero": "is zero; write 1ms or more, such as 1s",
    "burst-below-cost": "is below cost.request, so every request would be refused; raise it",
    "burst-of-a-window": "only a TokenBucket has a burst; remove it or use TokenBucket",
    "source-without-name": "is missing; write the name of the header, parameter, cookie or claim",
    "source-with-a-name-of-none": "is set, but this source has no name; remove it",
    "constant-without-value": "belongs to Constant, and Constant needs one; add or remove it",
    "target-group": "is not the group of that kind; leave it out",
    "attached-to-nothing": "a policy has either targetRefs or a selector; write one of the two",
    "attached-twice": "a policy has either targetRefs or a selector; write one of the two",
    "operator-without-values": "does not fit the operator; Exists and DoesNotExist take none",
    "operator-with-values": "does not fit the operator; Exists and DoesNotExist take none",
    "leased-window": "Leased needs limits of algorithm TokenBucket and mode Enforce; use Strict",
    "timeout-zero": "is zero; write 1ms or more, such as 1s",
    "name-with-dots": "metadata.name: has a dot; write a DNS label",
}


async def test_the_api_server_itself_refuses_what_cel_can_say(
    client: Client, namespace: str
) -> None:
    for name, words in BY_RULE.items():
        with pytest.raises(ApiError) as refused:
            await rehearse(client, namespace, here(namespace, WRONG[name][0]))
        assert words in str(refused.value), name
    texts = {rule.message for rules in SCHEMA.rules.values() for rule in rules}
    unseen = {text for text in texts if not any(text.startswith(w) for w in BY_RULE.values())}
    # Told by other tests of the rules' own words: prefixes, networks.
    assert len(unseen) == 2, unseen


@pytest.mark.parametrize("spec", [policy()["spec"], FULL])
async def test_a_valid_policy_is_stored_and_read_with_its_defaults(
    client: Client, namespace: str, spec: dict[str, Any]
) -> None:
    built = here(namespace, {"spec": copy.deepcopy(spec)})
    stored = await client.create(RATELIMITPOLICIES, built)
    schema = served(kinds.RATE_LIMIT_POLICY)["properties"]["spec"]
    assert stored["spec"] == with_defaults(schema, built["spec"])
    assert parse(RateLimitPolicy, stored).spec == parse(RateLimitPolicy, built).spec


async def test_with_the_admission_server_nothing_that_is_wrong_gets_in(
    client: Client, namespace: str, admission: Admission
) -> None:
    await admission.start()
    await rehearse(client, namespace, here(namespace))
    for name, (changes, expected) in WRONG.items():
        with pytest.raises(ApiError) as refused:
            await rehearse(client, namespace, here(namespace, changes))
        text = str(refused.value)
        if "denied the request" in text:
            assert expected[0] in text, name
        else:
            # By the schema or a rule of the CRD: at the place, if not in the same words.
            place = expected[0].partition(":")[0].split(".")[1].partition("[")[0]
            assert place in text, name
    # An old breach does not prevent other changes.
    stored = await client.create(RATELIMITPOLICIES, here(namespace))
    labelled = {**stored, "metadata": {**stored["metadata"], "labels": {"a": "b"}}}
    path = RATELIMITPOLICIES.path(namespace, "api")
    await client.request("PUT", path, body=labelled)
