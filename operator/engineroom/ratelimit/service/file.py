"""Policies from a file of RateLimitPolicies, for use without a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom.api.v1alpha1.ratelimitpolicy import RateLimitPolicy
from engineroom.api.validation import parse
from engineroom.core.validation import documents
from engineroom.ratelimit.distribution.compile import compile_namespace, compile_policy
from engineroom.ratelimit.distribution.document import parse_document, render_document
from engineroom.ratelimit.distribution.policy_source import StaticPolicies
from engineroom.ratelimit.service.directory import Room

if TYPE_CHECKING:
    from pathlib import Path

    from redis.asyncio import Redis

    from engineroom.ratelimit.distribution.compile import Candidate

_KIND = "RateLimitPolicy"


def read_rooms(path: Path, redis: Redis, enforcers: int) -> dict[str, Room]:
    """The policies of the manifests in a file, by namespace; other kinds are passed over.

    ``enforcers`` processes share a rate when each has to decide alone: nobody counts them here.

    A policy without a namespace is in ``default``, an older one stands further up. Raises OSError,
    UnreadableError for what is no YAML, and InvalidSpecError.
    """
    found: dict[str, list[Candidate]] = {}
    for place, document in enumerate(documents.read(path.read_text())):
        value = document.value
        if not isinstance(value, dict) or value.get("kind") != _KIND:
            continue
        metadata = {"namespace": "default", **(value.get("metadata") or {})}
        policy = parse(RateLimitPolicy, {**value, "metadata": metadata})
        found.setdefault(policy.namespace, []).append(compile_policy(policy, f"{place:09}"))
    rooms = {}
    for namespace, candidates in found.items():
        parts = compile_namespace(candidates).parts
        text = render_document(namespace, parts, revision=1, lineage="file", before={}).text
        rooms[namespace] = Room(StaticPolicies(parse_document(text), enforcers), redis)
    return rooms
