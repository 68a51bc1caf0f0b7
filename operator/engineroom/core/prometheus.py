"""Recovery metrics for Prometheus; needs ``engineroom[metrics]``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, Counter, Gauge

from engineroom.core.recovery import BreakerState

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class PrometheusRecovery:
    """The metrics ``engineroom_errors_total`` and ``engineroom_breaker_state{name,state}``.

    A breaker's current state has the value 1, its other states 0. Use one instance a registry.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._errors = Counter(
            "engineroom_errors", "Failed attempts.", ["code", "category"], registry=registry
        )
        self._states = Gauge(
            "engineroom_breaker_state", "1 for the state.", ["name", "state"], registry=registry
        )

    def failed(self, code: str, category: str) -> None:
        """Count a failed attempt."""
        self._errors.labels(code, category).inc()

    def breaker(self, name: str, state: BreakerState) -> None:
        """Set the state of a breaker."""
        for other in BreakerState:
            self._states.labels(name, other.value).set(other is state)
