"""The label of Namespaces whose pools may use the installation's Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engineroom.api import LABEL_SHARED_REDIS, SHARED_REDIS_ENABLED

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The label as a selector, and as ``kubectl label`` takes it.
SELECTOR = f"{LABEL_SHARED_REDIS}={SHARED_REDIS_ENABLED}"


def is_shared(namespace: Mapping[str, Any]) -> bool:
    """Return whether a Namespace object has the label."""
    labels = namespace["metadata"].get("labels") or {}
    return bool(labels.get(LABEL_SHARED_REDIS) == SHARED_REDIS_ENABLED)
