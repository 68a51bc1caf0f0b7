"""Policies from a file of RateLimitPolicies, for a service without a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.api.v1alpha1.ratelimitpolicy import RateLimitPolicy
from engineroom.api.validation import parse
from engineroom.core.validation import documents
from engineroom.ratelimit.distribution.compile import compile_namespace, compile_policy
from engineroom.ratelimit.distribution.document import parse_document, render_document
from engineroom.ratelimit.distribution.policy_source import StaticPolicies
from engineroom.ratelimit.service.directory import NamespacePolicies

if TYPE_CHECKING:
    from pathlib import Path

    from redis.asyncio import Redis

    from engineroom.ratelimit.distribution.compile import Candidate

_KIND = "RateLimitPolicy"


def read_namespaces(path: Path, redis: Redis, enforcers: int) -> dict[str, NamespacePolicies]:
    """Read the policies of the manifests in a file, by namespace; ignore other kinds.

    ``enforcers`` is the number of processes that share a rate while Redis is unavailable. A policy
    without a namespace is in ``default``; earlier policies count as older. Raises OSError,
    UnreadableError for invalid YAML, and InvalidSpecError.
    """
    by_namespace: dict[str, list[Candidate]] = {}
    for place, document in enumerate(documents.read(path.read_text())):
        value = document.value
        if not isinstance(value, dict) or value.get("kind") != _KIND:
            continue
        metadata = {"namespace": "default", **(value.get("metadata") or {})}
        policy = parse(RateLimitPolicy, {**value, "metadata": metadata})
        by_namespace.setdefault(policy.namespace, []).append(compile_policy(policy, f"{place:09}"))
    policies = {}
    for namespace, candidates in by_namespace.items():
        parts = compile_namespace(candidates).parts
        text = render_document(namespace, parts, revision=1, lineage="file", before={}).text
        policies[namespace] = NamespacePolicies(
            StaticPolicies(parse_document(text), enforcers), redis
        )
    return policies
