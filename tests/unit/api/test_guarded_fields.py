"""Guarded fields: the names of Secrets in an object, and their bound."""

from __future__ import annotations

from engineroom.api import kinds
from engineroom.api.validation.guarded_fields import MAX_SECRETS, secret_names, secret_problems
from tests import toy_kind
from tests.unit.api.specs import pool

URL = {"name": "redis", "key": "url"}
CA = {"name": "redis-ca", "key": "ca.crt"}


def test_every_secret_is_listed_by_its_field() -> None:
    both = pool({"spec.redis": {"urlSecretRef": URL, "tls": {"caSecretRef": CA}}})

    assert secret_names(kinds.WORKER_POOL, both) == {
        "spec.redis.urlSecretRef": "redis",
        "spec.redis.tls.caSecretRef": "redis-ca",
    }
    assert secret_names(kinds.WORKER_POOL, pool()) == {}


def test_the_number_of_secrets_is_bounded() -> None:
    bells = [{"tokenSecretRef": {"name": f"s{at}", "key": "k"}} for at in range(MAX_SECRETS)]

    assert len(secret_names(toy_kind.TOY, {"spec": {"bells": bells}})) == MAX_SECRETS
    assert list(secret_problems(toy_kind.TOY, {"spec": {"bells": bells}})) == []
    (problem,) = secret_problems(toy_kind.TOY, {"spec": {"bells": bells * 3}})
    assert str(problem) == (
        f"spec.bells[{MAX_SECRETS}].tokenSecretRef: is the Secret after the {MAX_SECRETS}th; "
        "name fewer Secrets"
    )
