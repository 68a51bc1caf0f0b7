"""The recovery metrics in Prometheus; needs ``engineroom[metrics]``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, Counter, Gauge

from engineroom.core.recovery import BreakerState

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class PrometheusRecovery:
    """``engineroom_errors_total{code,category}`` and ``engineroom_breaker_state{name,state}``.

    The state that a breaker is in has 1, the others 0. One instance a registry.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._errors = Counter(
            "engineroom_errors", "Failed attempts.", ["code", "category"], registry=registry
        )
        self._states = Gauge(
            "engineroom_breaker_state", "1 for the state.", ["name", "state"], registry=registry
        )

    def failed(self, code: str, category: str) -> None:
        """One attempt failed."""
        self._errors.labels(code, category).inc()

    def breaker(self, name: str, state: BreakerState) -> None:
        """A breaker moved."""
        for each in BreakerState:
            self._states.labels(name, each.value).set(each is state)
