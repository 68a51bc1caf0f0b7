"""The newest state of a pool's Deployment: the cache lags behind our own writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engineroom.workers.projections import DeploymentView


@dataclass(slots=True)
class LatestDeployment:
    """The memory of one pool's Deployment between two reconciles."""

    #: The result of the last write, until the cache has caught up.
    written: DeploymentView | None = None
    #: The state that the cache held last.
    cached: DeploymentView | None = None
    #: Generation after the last write; any other is an edit by another client.
    own_generation: int = 0
    #: Whether the size changed since the last status.
    scaled: bool = False

    def cache_changed(self, view: DeploymentView | None) -> bool:
        """Store what the cache holds now (None: deleted); return whether to reconcile."""
        before, self.cached = self.cached, view
        if view is None and self.written and (before is None or before.uid == self.written.uid):
            self.written = None  # deleted before the cache had our last write
        return view is None or before is None or not view.same_state(before)

    def newest(self, cached: DeploymentView | None) -> DeploymentView | None:
        """Return the newer of the cached Deployment and the one that our last write returned."""
        if self.written is None or cached is None:
            return self.written or cached
        if int(cached.resource_version) < int(self.written.resource_version):
            return self.written
        self.written = None
        return cached

    def wrote(self, view: DeploymentView) -> None:
        """Store the result of a write."""
        self.written, self.own_generation = view, view.generation

    def take_scaled(self) -> bool:
        """Return whether the size changed since the last call."""
        scaled, self.scaled = self.scaled, False
        return scaled
