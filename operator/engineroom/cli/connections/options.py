"""The options that select a connection: cluster, API process and Redis."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """Connection options as typed; None means not given."""

    kubeconfig: str | None = None
    kube_context: str | None = None
    namespace: str | None = None
    server: str | None = None
    ca_file: str | None = None
    redis_url: str | None = field(default=None, repr=False)
    pool: str | None = None
    #: The namespace of the installation.
    system_namespace: str | None = None

    def over(self, earlier: ConnectionOptions) -> ConnectionOptions:
        """Return these options, with each missing one taken from ``earlier``."""
        names = [option.name for option in fields(self)]
        return ConnectionOptions(
            **{name: getattr(self, name) or getattr(earlier, name) for name in names}
        )
