"""Real Kubernetes for tests and demonstrations, on any Linux machine with root and Go.

The command line is `python -m tests.cluster`; tests use the fixtures of
`tests.cluster.pytest_plugin`.
"""

from .api import Cluster, ClusterError, Shape
from .choose import select

__all__ = ["Cluster", "ClusterError", "Shape", "select"]
