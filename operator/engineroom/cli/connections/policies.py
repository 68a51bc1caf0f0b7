"""RateLimitPolicies as the command line reads them: objects, what enforcers follow, top keys."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from engineroom.api.kinds import RATE_LIMIT_POLICY
from engineroom.cli.connections.objects import list_objects, object_name, read_object
from engineroom.cli.connections.release import deployment_pods, release_deployment
from engineroom.cli.errors import CliError, NotFoundError, UnreachableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from socket import socket

    from redis import Redis

    from engineroom.cli.connections.cluster import Cluster
    from engineroom.cli.connections.factory import Connections
    from engineroom.cli.connections.model import Document
    from engineroom.cli.connections.release import Release
    from engineroom.ratelimit.distribution.document import CompiledPolicy, PolicySnapshot
    from engineroom.ratelimit.limits.dry_run import SimulatedRequest
    from engineroom.ratelimit.reconcile.observe import EnforcerRoster

_ADMIN_PORT = 9090
#: Largest answer of the decision service, bytes; seconds beyond the recording that it may take.
_MAX_ANSWER, _MORE = 4_000_000, 10.0


def policy_name(text: str) -> str:
    """Return the name of a RateLimitPolicy, see ``object_name``. Raises UsageError."""
    return object_name(RATE_LIMIT_POLICY, text)


def list_policies(
    cluster: Cluster, namespace: str | None, selector: str | None = None
) -> list[Document]:
    """Return the policies of a namespace, of all if it is None."""
    return list_objects(cluster, RATE_LIMIT_POLICY, namespace, selector)


def get_policy(cluster: Cluster, namespace: str, name: str) -> Document:
    """Return one policy. Raises NotFoundError."""
    return read_object(cluster, RATE_LIMIT_POLICY, namespace, policy_name(name))


def redis_of(connections: Connections, name: str | None) -> Document | None:
    """``spec.redis`` of a policy, or the one that all policies of the namespace have in common.

    Raises UsageError where they have none in common.
    """
    options = connections.options
    if options.redis_url or options.pool:
        return None
    if name is not None:
        redis: Document | None = get_policy(connections.cluster, connections.namespace, name)[
            "spec"
        ].get("redis")
        return redis
    named = {
        json.dumps(policy["spec"].get("redis"), sort_keys=True)
        for policy in list_policies(connections.cluster, connections.namespace)
    }
    if len(named) > 1:
        raise UsageError(
            f"the policies of namespace {connections.namespace} use {len(named)} Redis",
            fix="name one policy",
        )
    loaded: Document | None = json.loads(named.pop()) if named else None
    return loaded


def read_policies(redis: Redis, namespace: str) -> PolicySnapshot:
    """The document that enforcers follow. Raises DependencyError, NotFoundError."""
    from redis.exceptions import RedisError

    from engineroom.core.errors import DependencyError
    from engineroom.ratelimit.distribution.document import parse_document
    from engineroom.ratelimit.distribution.redis_schema import keys_of

    try:
        text: Any = redis.get(keys_of(namespace).document)
    except (RedisError, OSError, TimeoutError) as error:
        raise DependencyError(f"Redis did not give the policies: {type(error).__name__}") from error
    if text is None:
        raise NotFoundError(
            f"Redis has no policies of namespace {namespace}",
            why="there are none, or the operator has not written them yet",
            fix="`engineroom get policies` shows which there are and what keeps them",
        )
    return parse_document(text)


def read_roster(redis: Redis, namespace: str) -> EnforcerRoster:
    """Return the enforcers that follow the namespace's policies. Raises DependencyError."""
    from redis.exceptions import RedisError

    from engineroom.core.errors import MeasurementError
    from engineroom.ratelimit.distribution import redis_schema
    from engineroom.ratelimit.reconcile.observe import parse_roster, roster_arguments
    from engineroom.redis.scripts import run

    try:
        reply: Any = run(redis, redis_schema.ROSTER, *roster_arguments(namespace))
    except (RedisError, OSError, TimeoutError) as error:
        raise MeasurementError(f"Redis did not say who enforces: {type(error).__name__}") from error
    return parse_roster(reply)


def enforcers_of(roster: EnforcerRoster, policies: PolicySnapshot, name: str) -> frozenset[str]:
    """Names of those who can enforce a policy, of all who follow the namespace."""
    from engineroom.ratelimit.reconcile.decide import EnforcerAssignment

    rows = [
        ({"name": entry.name, "selector": entry.selector}, entry.hash) for entry in policies.entries
    ]
    return frozenset(
        member.identity for member in EnforcerAssignment(roster.enforcers, rows).of(name).members
    )


def chosen(
    policies: PolicySnapshot, names: Sequence[str], target: str | None, labels: str | None
) -> list[CompiledPolicy]:
    """The policies that names, a target (``Kind/name[/section]``) or labels mean; else all."""
    if sum(bool(entry) for entry in (names, target, labels)) > 1:
        raise UsageError("names, --target and --labels exclude each other", fix="give one of them")
    if target:
        kind, slash, rest = target.partition("/")
        name, _, section = rest.partition("/")
        if not slash or not name:
            raise UsageError(f"--target={target} is no target", fix="write HTTPRoute/checkout")
        attached = policies.for_target(kind, name, section)
        return [attached] if attached is not None else []
    if labels:
        pairs = [entry.partition("=") for entry in labels.split(",")]
        if any(not key or not equals for key, equals, _ in pairs):
            raise UsageError(f"--labels={labels} is no list of labels", fix="write app=shop,tier=a")
        attached_policy = policies.for_labels({key: value for key, _, value in pairs})
        return [attached_policy] if attached_policy is not None else []
    if not names:
        return list(policies.entries)
    entries = []
    for name in map(policy_name, names):
        entry = policies.get(name)
        if entry is None:
            raise NotFoundError(
                f"policy {name} is not among those that enforcers follow",
                why="it is misspelt, not accepted, or not programmed yet",
                fix=f"`engineroom ratelimit explain {name}` says which",
            )
        entries.append(entry)
    return entries


def simulated_request(
    path: str,
    method: str,
    headers: Sequence[str] | None,
    host: str | None,
    client_ip: str,
    tenant: str | None,
    route: str | None,
    claims: Sequence[str] | None,
    cost: int,
    *,
    consume: bool,
) -> SimulatedRequest:
    """Return the request that the options describe. Raises UsageError."""
    from engineroom.ratelimit.limits.dry_run import SimulatedRequest

    if client_ip:
        try:
            ipaddress.ip_address(client_ip)
        except ValueError:
            raise UsageError(
                f"--client-ip={client_ip} is no address", fix="write 192.0.2.7 or 2001:db8::7"
            ) from None
    parsed_headers: dict[str, str] = {} if host is None else {"host": host}
    for header in headers or ():
        name, colon, value = header.partition(":")
        key = name.strip().lower()
        if not colon or not key:
            raise UsageError(
                # Not the text itself: it may be a secret.
                "a --header is no header",
                fix="write -H 'X-Api-Key: k'",
            )
        joint = "; " if key == "cookie" else ","
        parsed_headers[key] = (
            f"{parsed_headers[key]}{joint}{value.strip()}"
            if key in parsed_headers
            else value.strip()
        )
    parsed_claims: dict[str, str] = {}
    for header in claims or ():
        name, equals, value = header.partition("=")
        if not equals or not name:
            raise UsageError("a --claim is no claim", fix="write --claim plan=gold")
        parsed_claims[name] = value
    return SimulatedRequest(
        path, method, parsed_headers, client_ip, tenant, route, parsed_claims, cost, consume
    )


# -- top keys -----------------------------------------------------------------------------------


class TopKey(NamedTuple):
    """A key and how often it was asked for, which is too high by at most ``error``."""

    namespace: str
    policy: str
    limit: str
    key: str
    times: int
    error: int


@dataclass(frozen=True, slots=True)
class TopKeys:
    """The keys that were asked for most while ``seconds`` were recorded."""

    seconds: float
    total: int
    keys: tuple[TopKey, ...]
    #: The number of recording processes, and the errors of those that failed.
    asked: int
    failures: tuple[str, ...] = ()


def top_keys(connections: Connections, limiter: str | None, seconds: float, many: int) -> TopKeys:
    """Record in all pods of the decision service at once, or in the one at an address.

    Raises NotFoundError where none runs, UnreachableError where none answers, and what
    ``Connections.release`` raises.
    """
    from engineroom.ratelimit.service.admin import merge_top

    target = f"/top?seconds={seconds:g}&keys={many}"
    doors = [_at(limiter)] if limiter else _pods(connections.cluster, connections.release())
    with ThreadPoolExecutor(max_workers=min(32, len(doors))) as threads:
        answers = list(threads.map(lambda door: _ask(door, target, seconds + _MORE), doors))
    bodies = [entry for entry in answers if isinstance(entry, bytes)]
    failures = [entry for entry in answers if isinstance(entry, str)]
    if not bodies:
        raise UnreachableError(
            "no decision service answers", why=failures[0],
            fix="check its pods; a NetworkPolicy or a missing right may be in between",
        )  # fmt: skip
    merged = json.loads(merge_top(bodies, many))
    keys = tuple(_key(key) for key in merged["keys"])
    return TopKeys(seconds, int(merged["total"]), keys, len(doors), tuple(failures))


def _key(row: Document) -> TopKey:
    place, _, key = str(row["key"]).partition(" ")
    namespace, _, rest = place.partition("/")
    policy, _, limit = rest.partition("/")
    return TopKey(namespace, policy, limit, key, int(row["count"]), int(row["error"]))


def _at(address: str) -> Callable[[], socket]:
    import socket

    parts = urlsplit(address if "//" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port or _ADMIN_PORT
    except ValueError:
        host, port = None, 0
    if host is None:
        raise UsageError(f"--limiter={address} is no address", fix="write HOST:PORT")
    return lambda: socket.create_connection((host, port), timeout=5.0)


def _pods(cluster: Cluster, release: Release) -> list[Callable[[], socket]]:
    """Return the ways to the pods of the installation's decision service."""
    deployment = release_deployment(cluster, release, "limiter")
    pods = [
        entry["metadata"]
        for entry in (deployment_pods(cluster, deployment) if deployment else ())
        if entry.get("status", {}).get("phase") == "Running"
    ]
    if not pods:
        raise NotFoundError(
            f"no pod of the decision service runs in namespace {release.namespace}",
            why="applications with the middleware alone record no keys",
            fix="install it with limiter.enabled=true, or name one with --limiter HOST:PORT",
        )
    return [
        functools.partial(cluster.open_port, pod["namespace"], pod["name"], _ADMIN_PORT)
        for pod in pods
    ]


def _ask(door: Callable[[], socket], target: str, seconds: float) -> bytes | str:
    """The body of an answer of 200, or what went wrong."""
    try:
        # What forwards to a pod is no context manager by itself.
        with contextlib.closing(door()) as connection:
            connection.settimeout(seconds)
            connection.sendall(f"GET {target} HTTP/1.1\r\nHost: limiter\r\n\r\n".encode())
            answer = b""
            while part := connection.recv(65_536):
                answer += part
                if len(answer) > _MAX_ANSWER:
                    return "the answer is too long"
    except CliError as error:
        return error.what
    except OSError as error:
        return str(error) or type(error).__name__
    head, _, body = answer.partition(b"\r\n\r\n")
    if head.split(b" ", 2)[1:2] != [b"200"]:
        return f"it answered {head.splitlines()[0].decode('latin-1') if head else 'nothing'}"
    return body
