"""The services that handlers use: created when the process starts, closed when it ends."""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from starlette.requests import HTTPConnection

from engineroom.api import kinds
from engineroom.auth.audit.hash_chain import derive_secret
from engineroom.auth.audit.log import AuditLog
from engineroom.auth.kubernetes import KubernetesIdentity, ResourceAttributes
from engineroom.auth.login.credential_throttle import CredentialThrottle
from engineroom.auth.login.lockout import RedisCounter, SignIn
from engineroom.auth.login.login_links import LoginLinks
from engineroom.auth.login.passwords import Passwords
from engineroom.auth.login.sessions import Sessions
from engineroom.auth.middleware import (
    SESSION,
    Authenticator,
    credentials_of,
    current_principal,
    principal_of_session,
)
from engineroom.auth.tokens.access_tokens import Tokens
from engineroom.auth.tokens.api_keys import ApiKeys
from engineroom.auth.tokens.revocation import Revocations
from engineroom.auth.tokens.signing_keys import Keys, RedisKeyStore
from engineroom.console.accounts import account_config
from engineroom.console.accounts.accounts import Accounts
from engineroom.console.accounts.authorizer import Authorizer
from engineroom.console.accounts.config_watcher import AccountConfigWatcher
from engineroom.console.accounts.oidc_users import OidcUsers
from engineroom.console.background.completion_audit import CompletionAudit
from engineroom.console.background.event_hub import EventHub, WatchedKind
from engineroom.console.background.housekeeping import Housekeeping
from engineroom.console.background.operation_store import OperationStore
from engineroom.console.background.operations import OperationRunner
from engineroom.console.background.tampering import TamperingReports
from engineroom.console.background.unauthenticated import UnauthenticatedFailures
from engineroom.console.cursors import SealedCursors
from engineroom.console.idempotency import Idempotency
from engineroom.console.metrics import ApiMetrics
from engineroom.core.clock import Clock, SystemClock
from engineroom.core.errors import Category, EngineroomError
from engineroom.core.logging import get_logger
from engineroom.core.recovery import ONCE, POLICIES, Breaker, Recovery, RetryPolicy
from engineroom.core.sealing import Sealer
from engineroom.core.transactions.saga import Coordinator
from engineroom.core.transactions.sagalog import RedisSagaLog
from engineroom.kube.client.client import Client
from engineroom.kube.client.resources import (
    SUBJECT_ACCESS_REVIEWS,
    TOKEN_REVIEWS,
    resource_of,
)
from engineroom.manifests.apply import LEASE, Applier, RedisBundles
from engineroom.ratelimit.limits.limiter import AsyncLimiter
from engineroom.ratelimit.limits.model import Failure, Limit, Rate
from engineroom.ratelimit.limits.model import Policy as RatePolicy
from engineroom.redis.breaker_client import GuardedRedis
from engineroom.tasks.async_client import AsyncTasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence

    from redis.asyncio import Redis

    from engineroom.auth.oidc.flow import Oidc
    from engineroom.auth.permissions import Principal
    from engineroom.console.settings import ApiSettings
    from engineroom.core.transactions.journal import SagaLog
    from engineroom.kube.client.config import ApiConfig

log = get_logger(__name__)

#: Seconds between two searches for transactions of dead replicas.
RECOVERY_INTERVAL = 2.0
#: Seconds for which background work may finish at shutdown.
GRACE = 5.0
#: Consecutive failures that open the circuit breaker of a dependency, and seconds until a retry.
BREAKER_FAILURES, BREAKER_PAUSE = 5, 1.0
#: Retries within a request: few and soon, because a client waits.
RETRY_POLICIES = {
    **POLICIES,
    **dict.fromkeys((Category.DEPENDENCY, Category.TRANSIENT),
                    RetryPolicy(attempts=3, base=0.05, longest=0.5, total=3.0)),
    Category.CONFLICT: ONCE,
    Category.LIMIT: ONCE,
}  # fmt: skip
#: Burst of a caller, in seconds of the rate.
BURST_SECONDS = 10


@dataclass(slots=True, kw_only=True)
class Services:
    """The services of one process."""

    redis: Redis
    client: Client
    authenticator: Authenticator
    authorizer: Authorizer
    limiter: AsyncLimiter
    idempotency: Idempotency
    audit: AuditLog
    sessions: Sessions
    tokens: Tokens
    signing_keys: Keys
    api_keys: ApiKeys
    accounts: Accounts
    account_watcher: AccountConfigWatcher
    password_login: SignIn
    login_links: LoginLinks
    tasks: AsyncTasks
    hub: EventHub
    sagas: SagaLog
    bundles: RedisBundles
    coordinator: Coordinator
    revocations: Revocations
    operations: OperationStore
    operation_runner: OperationRunner
    cursors: SealedCursors
    tampering: TamperingReports
    unauthenticated: UnauthenticatedFailures
    housekeeping: Housekeeping
    clock: Clock
    proxies: int = 0
    oidc: Oidc | None = None
    oidc_logout_url: str = ""
    #: Requests per second of one caller.
    rate: int = 50

    def address(self, request: HTTPConnection) -> str:
        """Return the client's IP address: the peer's, or the one that our proxies report."""
        peer = request.client.host if request.client else ""
        if not self.proxies:
            return peer
        header = ",".join(request.headers.getlist("x-forwarded-for"))
        hops = [part.strip() for part in header.split(",") if part.strip()]
        # Each trusted proxy appends its peer; a client can forge the entries before those.
        return hops[-self.proxies][:64] if len(hops) >= self.proxies else peer

    def address_of_scope(self, scope: MutableMapping[str, Any]) -> str:
        """Return the client's IP address of an ASGI scope."""
        return self.address(HTTPConnection(scope))

    def cost(self, caller: Principal, cost: int) -> int:
        """Scale the cost of a request for a caller whose own rate is lower."""
        if caller.rate is None or caller.rate >= self.rate:
            return cost
        # Not above the burst, which would make the request impossible.
        return min(math.ceil(cost * self.rate / caller.rate), self.rate * BURST_SECONDS)

    async def authenticate_again(
        self, scope: MutableMapping[str, Any]
    ) -> tuple[Principal | None, str]:
        """Authenticate the caller of a running request again; see ``Authenticator.authenticate``.

        Unlike a request, this does not reset the idle time of a session.
        """
        before = current_principal(scope)
        if before is not None and before.how == "session":
            for session in await self.sessions.of(before.subject):
                if session.handle == before.reference:
                    principal = principal_of_session(session)
                    if not session.person:
                        principal = await self.accounts.limit_to_current(principal)
                    return principal, scope[SESSION]
            return None, ""
        return await self.authenticator.authenticate(
            credentials_of(scope, self.address_of_scope(scope))
        )


class ClusterReviewer:
    """A ``Reviewer`` that asks the API server."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def review_token(self, token: str, audiences: Sequence[str]) -> Mapping[str, Any]:
        """Create a TokenReview and return its status."""
        spec: dict[str, Any] = {"token": token}
        if audiences:
            spec["audiences"] = list(audiences)
        review = await self._client.create(TOKEN_REVIEWS, {"spec": spec}, timeout=5.0)
        return review.get("status") or {}

    async def review_access(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """Create a SubjectAccessReview and return its status."""
        review = await self._client.create(
            SUBJECT_ACCESS_REVIEWS, {"spec": dict(spec)}, timeout=5.0
        )
        return review.get("status") or {}


def dependency_recovery(name: str, metrics: ApiMetrics, clock: Clock) -> Recovery:
    """Return retries and a circuit breaker for a dependency. Responses count the failures."""
    breaker = Breaker(
        name, failures=BREAKER_FAILURES, pause=BREAKER_PAUSE, clock=clock, metrics=metrics.recovery
    )
    return Recovery(name, policies=RETRY_POLICIES, breaker=breaker, clock=clock)


@asynccontextmanager
async def open_services(
    settings: ApiSettings,
    config: ApiConfig,
    clock: Clock | None = None,
    metrics: ApiMetrics | None = None,
) -> AsyncIterator[Services]:
    """Open the services of a process. Raises ValueError and OSError for invalid settings.

    Redis must be available, for the first signing key. The cluster may be unavailable: then only
    requests that need it fail.
    """
    clock = clock or SystemClock()
    secret = settings.read_secret()
    url = settings.read_redis_url()
    if not url:
        raise ValueError(
            "ENGINEROOM_REDIS_URL: is missing; the API stores sessions and the audit log there"
        )
    async with AsyncExitStack() as stack:
        metrics = metrics or ApiMetrics()
        redis = GuardedRedis.guarded(
            dependency_recovery("redis", metrics, clock), url, socket_timeout=5.0,
            socket_connect_timeout=2.0, max_connections=200, health_check_interval=15,
        )  # fmt: skip
        stack.push_async_callback(redis.aclose)
        client = await stack.enter_async_context(
            Client(
                config, timeout=settings.api_timeout, user_agent="engineroom-api",
                recovery=dependency_recovery("kubernetes", metrics, clock),
            )
        )  # fmt: skip
        services = await _build(settings, redis, client, secret, clock, metrics)
        _add_gauges(metrics, services)
        await stack.enter_async_context(services.limiter)
        await services.signing_keys.ensure()
        await services.hub.start()
        stack.push_async_callback(services.hub.stop)
        stopping = asyncio.Event()
        recovery = asyncio.create_task(_recover(services.coordinator, stopping), name="recovery")
        revocations = asyncio.create_task(services.revocations.run(), name="revocations")
        stack.push_async_callback(_cancel, revocations)
        operations = asyncio.create_task(services.operation_runner.run(stopping), name="operations")
        stack.push_async_callback(_finish, operations, stopping)
        housekeeping = asyncio.create_task(services.housekeeping.run(stopping), name="housekeeping")
        stack.push_async_callback(_finish, housekeeping, stopping)
        tampering = asyncio.create_task(services.tampering.run(), name="tampering")
        stack.push_async_callback(_cancel, tampering)
        accounts = asyncio.create_task(services.account_watcher.run(), name="accounts")
        stack.push_async_callback(_cancel, accounts)
        stack.push_async_callback(_finish, recovery, stopping)
        yield services


async def _build(
    settings: ApiSettings,
    redis: Redis,
    client: Client,
    secret: bytes,
    clock: Clock,
    metrics: ApiMetrics,
) -> Services:
    keys = _signing_keys(redis, clock, secret)
    revocations = Revocations(redis, clock)
    tokens = Tokens(
        redis, keys, revocations, clock, issuer=settings.issuer, audience=settings.issuer
    )
    audit = AuditLog(redis, clock, derive_secret(secret, "audit"))
    # Records that grant rights are sealed: write access to Redis must not grant the API's rights.
    tampering = TamperingReports(audit, metrics)
    completion = CompletionAudit(audit)
    api_keys = ApiKeys(redis, clock, [derive_secret(secret, "api-keys")], on_broken=tampering)
    sessions = Sessions(redis, clock, derive_secret(secret, "sessions"), on_broken=tampering)
    kubernetes = None
    if settings.kubernetes_identities:
        kubernetes = KubernetesIdentity(
            ClusterReviewer(client),
            clock,
            audiences=settings.audiences,
            objects=_kind_attributes(),
        )
    counter = RedisCounter(redis, clock)
    passwords = Passwords()
    files = account_config.read(settings.accounts_file, settings.passwords_directory)
    oidc_users = OidcUsers(
        redis, clock, derive_secret(secret, "people"), remember=settings.oidc_remember,
        on_broken=tampering,
    )  # fmt: skip
    accounts = await Accounts.create(
        settings.read_admin_password(), passwords, oidc_users, issuer=settings.oidc_issuer,
        config=account_config.parse(files),
    )  # fmt: skip
    operations = OperationStore(redis, derive_secret(secret, "operations"), on_broken=tampering)
    bundles = RedisBundles(redis, clock, derive_secret(secret, "manifests"), on_broken=tampering)
    sagas = RedisSagaLog(redis, sealer=Sealer(derive_secret(secret, "sagas"), "saga", tampering))
    coordinator = Coordinator(
        sagas, Applier(client, bundles, clock).sagas(), lease=LEASE, on_end=metrics.record_saga,
        on_recovered=completion.transaction,
    )  # fmt: skip
    return Services(
        redis=redis,
        client=client,
        authenticator=Authenticator(
            tokens=tokens,
            api_keys=api_keys,
            sessions=sessions,
            external=kubernetes.authenticate if kubernetes else None,
            current=accounts.limit_to_current,
            throttle=CredentialThrottle(counter),
        ),
        authorizer=Authorizer(lambda: accounts.policy, kubernetes),
        limiter=_rate_limiter(settings.requests_per_second, redis),
        idempotency=Idempotency(redis),
        audit=audit,
        sessions=sessions,
        tokens=tokens,
        signing_keys=keys,
        api_keys=api_keys,
        accounts=accounts,
        account_watcher=AccountConfigWatcher(
            accounts, sessions, tokens, document=settings.accounts_file,
            hashes=settings.passwords_directory, files=files,
        ),
        password_login=SignIn(counter, passwords, accounts.find),
        login_links=LoginLinks(redis, clock, derive_secret(secret, "links"), on_broken=tampering),
        tasks=AsyncTasks(redis),
        hub=EventHub(client, _watched_kinds(), settings.namespaces),
        sagas=sagas,
        bundles=bundles,
        coordinator=coordinator,
        revocations=revocations,
        cursors=SealedCursors(derive_secret(secret, "cursors")),
        operations=operations,
        operation_runner=OperationRunner(
            operations, AsyncTasks(redis), on_end=completion.operation
        ),
        tampering=tampering,
        unauthenticated=UnauthenticatedFailures(
            metrics, clock, derive_secret(secret, "unknown-names")
        ),
        housekeeping=Housekeeping(
            redis, audit, keys, clock, records=settings.audit_keep_records,
            days=settings.audit_keep_days, key_days=settings.signing_key_days,
            overlap=timedelta(seconds=tokens.longest_life),
        ),
        clock=clock,
        proxies=settings.trusted_proxy_hops,
        oidc=settings.oidc_provider(redis, clock),
        oidc_logout_url=settings.oidc_logout_url,
        rate=settings.requests_per_second,
    )  # fmt: skip


def _signing_keys(redis: Redis, clock: Clock, secret: bytes) -> Keys:
    # The name depends on the secret: a new secret starts with new keys instead of some that it
    # cannot unseal, and replicas that still have the old secret continue.
    name = f"engineroom:auth:keys:{derive_secret(secret, 'signing-name').hex()[:16]}"
    return Keys(RedisKeyStore(redis, derive_secret(secret, "signing"), name=name), clock)


def _rate_limiter(rate: int, redis: Redis) -> AsyncLimiter:
    limits = (Limit("per-caller", Rate(rate, 1.0), burst=rate * BURST_SECONDS),)
    return AsyncLimiter(RatePolicy("api", limits, Failure(timeout=0.1)), redis)


def _add_gauges(metrics: ApiMetrics, services: Services) -> None:
    for name, help_text, value in (
        ("engineroom_sse_streams", "Open event streams.", lambda: services.hub.streams),
        ("engineroom_operations_running", "Bulk operations that this replica executes.",
         lambda: services.operation_runner.working),
        ("engineroom_cache_objects", "Cached WorkerPools.", lambda: len(services.hub.pools)),
        ("engineroom_watch_age_seconds", "Seconds since the last sign of life of the watch.",
         services.hub.pools.age),
    ):  # fmt: skip
        metrics.gauge(name, help_text, value)


def _kind_attributes() -> dict[str, ResourceAttributes]:
    """Return the verb and resource of the cluster's RBAC for each permission to read a kind."""
    attributes: dict[str, ResourceAttributes] = {}
    for kind in kinds.registry():
        for verb in ("get", "list", "watch"):
            permission = getattr(kind.permissions, verb)
            attributes.setdefault(
                permission, ResourceAttributes(verb, kind.plural, group=kind.group)
            )
    return attributes


def _watched_kinds() -> tuple[WatchedKind, ...]:
    watched = []
    for kind in kinds.registry():
        rest = kind.rest_view.load()(kind)
        permission = kind.permissions.watch
        watched.append(
            WatchedKind(kind.noun, rest.deleted_event, resource_of(kind), rest.view, permission)
        )
    return tuple(watched)


async def _recover(coordinator: Coordinator, stopping: asyncio.Event) -> None:
    """Undo transactions of dead replicas; all replicas search, one handles each transaction."""
    while not stopping.is_set():
        try:
            await coordinator.recover()
        except EngineroomError as error:
            log.warning("recovery of transactions failed", code=error.code, error=str(error))
        with suppress(TimeoutError):
            async with asyncio.timeout(RECOVERY_INTERVAL):
                await stopping.wait()


async def _finish(task: asyncio.Task[None], stopping: asyncio.Event) -> None:
    """Stop a task after its current step; another replica takes over what it cannot finish."""
    stopping.set()
    await asyncio.wait([task], timeout=GRACE)
    await _cancel(task)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task
