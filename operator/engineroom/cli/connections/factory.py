"""Opens the connections that a command's options select, each at first use."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engineroom.cli.connections.options import ConnectionOptions
from engineroom.cli.errors import UsageError
from engineroom.core.clock import Clock, SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis

    from engineroom.cli.connections.cluster import Cluster
    from engineroom.cli.connections.model import Document
    from engineroom.cli.connections.redis_address import RedisTarget
    from engineroom.cli.connections.release import Release
    from engineroom.cli.connections.remote.api import Api
    from engineroom.cli.connections.tasks_connection import TasksConnection


def connect_cluster(options: ConnectionOptions) -> Cluster:
    """Return the cluster behind the API process if one is selected, else the kubeconfig's."""
    from engineroom.cli.connections.remote.credentials import selected_server

    if selected_server(options) is not None:
        from engineroom.cli.connections.remote.cluster import ApiCluster

        return ApiCluster(connect_api(options))
    from engineroom.cli.connections.kubernetes_cluster import KubernetesCluster

    return KubernetesCluster(options.kubeconfig, options.kube_context, options.system_namespace)


def connect_api(options: ConnectionOptions) -> Api:
    """Return the API process that the options select. Raises UsageError if they select none."""
    from engineroom.cli.connections.remote.api import open_api

    return open_api(options)


@dataclass(slots=True)
class Connections:
    """The cluster, API process and Redis of one command. All methods raise CliError."""

    options: ConnectionOptions = field(default_factory=ConnectionOptions)
    connect_cluster: Callable[[ConnectionOptions], Cluster] = connect_cluster
    connect_api: Callable[[ConnectionOptions], Api] = connect_api
    clock: Clock = field(default_factory=SystemClock)
    _cluster: Cluster | None = None
    _api: Api | None = None

    @property
    def through_api(self) -> bool:
        """True if commands go through the API process instead of the kubeconfig."""
        from engineroom.cli.connections.remote.credentials import selected_server

        return selected_server(self.options) is not None

    @property
    def cluster(self) -> Cluster:
        """The cluster, connected at first use."""
        if self._cluster is None:
            self._cluster = self.connect_cluster(self.options)
        return self._cluster

    @property
    def api(self) -> Api:
        """The API process, connected at first use. Raises UsageError if none is selected."""
        if self._api is None:
            self._api = self.connect_api(self.options)
        return self._api

    @property
    def namespace(self) -> str:
        """The namespace of --namespace, else the one of the kubeconfig's context or the login."""
        return self.options.namespace or self.cluster.namespace

    def release(self) -> Release:
        """Return the installation of the cluster.

        Raises NotFoundError, ForbiddenError or UsageError if its namespace is not clear.
        """
        from engineroom.cli.connections.release import find_release

        return find_release(self.cluster, self.options.system_namespace)

    @contextmanager
    def tasks(self) -> Iterator[TasksConnection]:
        """Open the queues and jobs that the options select, until the block ends."""
        from engineroom.cli.connections.tasks_connection import redis_tasks

        if not self.options.redis_url and self.through_api:
            from engineroom.cli.connections.remote.tasks import api_tasks

            if self.options.pool:
                raise UsageError(
                    "--pool selects a Redis, but the API process has only one",
                    fix="leave out --pool; use the kubeconfig for pools with a Redis of their own",
                )
            yield api_tasks(self.api, self.namespace, self.clock)
            return
        from engineroom.cli.connections.redis_address import namespace_target

        target = self._chosen_target() or namespace_target(
            self.cluster, self.namespace, self.release
        )
        with self._redis(target) as redis:
            yield redis_tasks(redis, target, self.clock)

    @contextmanager
    def redis(self, namespace: str, spec: Document | None) -> Iterator[Redis]:
        """Open the Redis of the options, else of a ``spec.redis``, else the chart's.

        ``namespace`` is the one of the object that ``spec`` belongs to.
        """
        from engineroom.cli.connections.redis_address import chart_target, spec_target

        target = self._chosen_target()
        if target is None:
            target = (
                spec_target(self.cluster, namespace, spec)
                if spec
                else chart_target(self.cluster, self.release)
            )
        with self._redis(target) as client:
            yield client

    def _chosen_target(self) -> RedisTarget | None:
        """Return the Redis of --redis-url or --pool; None if neither is given."""
        from engineroom.cli.connections.redis_address import VARIABLE, pool_target, url_target

        url, pool = self.options.redis_url, self.options.pool
        if url and pool:
            raise UsageError(
                "--redis-url and --pool exclude each other",
                why=f"the URL may come from {VARIABLE}",
                fix="leave out one of them",
            )
        if url:
            return url_target(url)
        return pool_target(self.cluster, self.namespace, pool, self.release) if pool else None

    @contextmanager
    def _redis(self, target: RedisTarget) -> Iterator[Redis]:
        from engineroom.cli.connections.redis_connection import open_redis

        # A URL that the user gave is reached from this machine; one from a Secret may name a
        # Service that only the cluster can resolve.
        cluster: Any = None if target.address.namespace is None else self.cluster
        redis = open_redis(target.address, cluster)
        try:
            yield redis
        finally:
            redis.close()
