"""The examples are what the documentation says and what the tests and the demonstration take them
for."""

from __future__ import annotations

import pytest
import yaml

from engineroom.api.v1alpha1.ratelimitpolicy import RateLimitPolicy
from engineroom.api.validation import parse
from tests.deployed import images
from tests.deployed.load import possible, worst
from tests.deployed.web import BURST, EXAMPLE, NAMESPACE, POLICY, RATE
from tests.integration.ratelimit.proxies import blocks


def test_nginx_is_configured_as_the_page_shows() -> None:
    assert (EXAMPLE / "shop.conf").read_text() == blocks("nginx")[0]


def test_the_policy_is_what_its_bound_is_computed_from() -> None:
    written = yaml.safe_load((EXAMPLE / "policy.yaml").read_text())
    policy = parse(RateLimitPolicy, written)
    assert policy.metadata["namespace"] == NAMESPACE
    assert policy.metadata["name"] == POLICY
    (limit,) = policy.spec.limits
    assert limit.burst == BURST
    assert written["spec"]["limits"][0]["rate"] == {"requests": RATE, "period": "1s"}
    (target,) = policy.spec.target_refs
    services = [
        each["metadata"]["name"]
        for each in yaml.safe_load_all((EXAMPLE / "application.yaml").read_text())
        if each["kind"] == "Service"
    ]
    assert [target.name] == services
    assert f"/v1/nginx/{NAMESPACE}/{target.kind}:{target.name};" in blocks("nginx")[0]


def test_pods_run_from_the_images_that_are_built() -> None:
    used = {
        container["image"]
        for name in ("application.yaml", "nginx.yaml")
        for each in yaml.safe_load_all((EXAMPLE / name).read_text())
        if each["kind"] == "Deployment"
        for container in each["spec"]["template"]["spec"]["containers"]
    }
    assert used == {images.SHOP.name, images.NGINX.name}


@pytest.mark.parametrize(
    ("admitted", "share"),
    [
        ([], 0.0),
        # Twenty at once, of which ten may be.
        ([(0.0, 0.0)] * 20, 2.0),
        ([(0.0, 0.0)] * 10, 1.0),
        # Ten at once, then one for each second that passed.
        ([(0.0, 0.0)] * 10 + [(second, second) for second in (1.0, 2.0, 3.0)], 1.0),
        # Slow answers: the request may have been decided on at either end.
        ([(0.0, 5.0)] * 15, 1.0),
        # Within the bound as a whole, but not in the last second.
        ([(0.0, 0.0), *[(99.0, 99.5)] * 21], 2.0),
    ],
)
def test_the_worst_window_is_found(admitted: list[tuple[float, float]], share: float) -> None:
    assert worst(admitted, burst=10, rate=1) == pytest.approx(share)


@pytest.mark.parametrize(
    ("decided", "admitted"),
    [
        ([], 0),
        ([0.0] * 20, 10),
        # The bucket gains a token per second.
        ([*[0.0] * 20, *[3.5] * 20], 13),
        # A pause fills it to its size and no further.
        ([*[0.0] * 20, *[100.0] * 20], 20),
        ([3.5, 0.0], 2),
    ],
)
def test_an_exact_bucket_is_replayed(decided: list[float], admitted: int) -> None:
    assert possible(decided, burst=10, rate=1) == admitted
