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
from engineroom.auth.encryption import RecordCipher
from engineroom.auth.middleware import (
    SESSION,
    Authenticator,
    credentials_of,
    current_principal,
    principal_of_session,
)
from engineroom.console.background.audit_anchor import AuditAnchor
from engineroom.console.background.completion_audit import CompletionAudit
from engineroom.console.background.event_hub import EventHub, WatchedKind
from engineroom.console.background.housekeeping import Housekeeping
from engineroom.console.background.operation_store import OperationStore
from engineroom.console.background.operations import OperationRunner
from engineroom.console.background.periodic import repeat
from engineroom.console.background.signing_key_restoration import SigningKeyRestoration
from engineroom.console.background.tampering import TamperingReports
from engineroom.console.background.unauthenticated import UnauthenticatedFailures
from engineroom.console.cursors import SealedCursors
from engineroom.console.foundation import Foundation
from engineroom.console.idempotency import Idempotency
from engineroom.console.identity_services import create_credentials, create_identities
from engineroom.console.metrics import ApiMetrics
from engineroom.core.clock import Clock, SystemClock
from engineroom.core.errors import Category
from engineroom.core.logging import get_logger
from engineroom.core.recovery import ONCE, POLICIES, Breaker, Recovery, RetryPolicy
from engineroom.core.sealing import Sealer
from engineroom.core.transactions.saga import Coordinator
from engineroom.core.transactions.sagalog import RedisSagaLog
from engineroom.kube.client.client import Client
from engineroom.kube.client.resources import (
    resource_of,
)
from engineroom.manifests.apply import LEASE, Applier, RedisBundles
from engineroom.ratelimit.limits.limiter import AsyncLimiter
from engineroom.ratelimit.limits.model import Failure, Limit, Rate
from engineroom.ratelimit.limits.model import Policy as RatePolicy
from engineroom.redis.breaker_client import GuardedRedis
from engineroom.tasks.async_client import AsyncTasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, MutableMapping

    from redis.asyncio import Redis

    from engineroom.auth.login.lockout import SignIn
    from engineroom.auth.login.login_links import LoginLinks
    from engineroom.auth.login.sessions import Sessions
    from engineroom.auth.oidc.flow import Oidc
    from engineroom.auth.permissions import Principal
    from engineroom.auth.tokens.access_tokens import Tokens
    from engineroom.auth.tokens.api_keys import ApiKeys
    from engineroom.auth.tokens.revocation import Revocations
    from engineroom.auth.tokens.signing_keys import SigningKeyCache
    from engineroom.console.accounts.accounts import Accounts
    from engineroom.console.accounts.authorizer import Authorizer
    from engineroom.console.accounts.config_watcher import AccountConfigWatcher
    from engineroom.console.identity_services import Credentials
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
    audit_anchor: AuditAnchor
    sessions: Sessions
    tokens: Tokens
    signing_keys: SigningKeyCache
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
    #: Encrypts the ID tokens of signed-in users, which signing out at the provider needs.
    oidc_hints: RecordCipher
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
        audit = AuditLog(redis, clock, derive_secret(secret, "audit"))
        tampering = TamperingReports(audit, metrics)
        base = Foundation(settings, redis, client, clock, metrics, secret, audit, tampering)
        services = await _build(base)
        _add_gauges(metrics, services)
        await stack.enter_async_context(services.limiter)
        await services.signing_keys.ensure()
        await services.hub.start()
        stack.push_async_callback(services.hub.stop)
        _start_tasks(stack, services)
        yield services


@dataclass(frozen=True, slots=True)
class _Transactions:
    """The services that apply bundles and run bulk operations."""

    sagas: SagaLog
    bundles: RedisBundles
    coordinator: Coordinator
    operations: OperationStore
    operation_runner: OperationRunner


def _create_transactions(base: Foundation) -> _Transactions:
    redis, clock, tampering = base.redis, base.clock, base.tampering
    completion = CompletionAudit(base.audit)
    operations = OperationStore(redis, base.key("operations"), on_broken=tampering)
    bundles = RedisBundles(redis, clock, base.key("manifests"), on_broken=tampering)
    sagas = RedisSagaLog(redis, sealer=Sealer(base.key("sagas"), "saga", tampering))
    coordinator = Coordinator(
        sagas, Applier(base.client, bundles, clock).sagas(), lease=LEASE,
        on_end=base.metrics.record_saga, on_recovered=completion.transaction,
    )  # fmt: skip
    runner = OperationRunner(operations, AsyncTasks(redis), on_end=completion.operation)
    return _Transactions(sagas, bundles, coordinator, operations, runner)


def _start_tasks(stack: AsyncExitStack, services: Services) -> None:
    """Start the background tasks; the stack ends them, the last one first."""
    stopping = asyncio.Event()
    recovery = asyncio.create_task(_recover(services.coordinator, stopping), name="recovery")
    revocations = asyncio.create_task(services.revocations.run(), name="revocations")
    stack.push_async_callback(_cancel, revocations)
    operations = asyncio.create_task(services.operation_runner.run(stopping), name="operations")
    stack.push_async_callback(_finish, operations, stopping)
    housekeeping = asyncio.create_task(services.housekeeping.run(stopping), name="housekeeping")
    stack.push_async_callback(_finish, housekeeping, stopping)
    restoration = asyncio.create_task(
        SigningKeyRestoration(services.signing_keys).run(stopping), name="signing keys"
    )
    stack.push_async_callback(_finish, restoration, stopping)
    anchor = asyncio.create_task(services.audit_anchor.run(stopping), name="audit anchor")
    stack.push_async_callback(_finish, anchor, stopping)
    tampering = asyncio.create_task(services.tampering.run(), name="tampering")
    stack.push_async_callback(_cancel, tampering)
    accounts = asyncio.create_task(services.account_watcher.run(), name="accounts")
    stack.push_async_callback(_cancel, accounts)
    stack.push_async_callback(_finish, recovery, stopping)


async def _build(base: Foundation) -> Services:
    settings, redis, clock = base.settings, base.redis, base.clock
    credentials = create_credentials(base)
    identities = await create_identities(base, credentials)
    work = _create_transactions(base)
    return Services(
        redis=redis, client=base.client, clock=clock, audit=base.audit, tampering=base.tampering,
        audit_anchor=AuditAnchor(base.audit, base.metrics),
        tokens=credentials.tokens, signing_keys=credentials.signing_keys,
        api_keys=credentials.api_keys, sessions=credentials.sessions,
        login_links=credentials.login_links, revocations=credentials.revocations,
        accounts=identities.accounts, account_watcher=identities.account_watcher,
        password_login=identities.password_login, authenticator=identities.authenticator,
        authorizer=identities.authorizer,
        sagas=work.sagas, bundles=work.bundles, coordinator=work.coordinator,
        operations=work.operations, operation_runner=work.operation_runner,
        limiter=_rate_limiter(settings.requests_per_second, redis),
        idempotency=Idempotency(redis),
        tasks=AsyncTasks(redis),
        hub=EventHub(base.client, _watched_kinds(), settings.namespaces),
        cursors=SealedCursors(base.key("cursors")),
        unauthenticated=UnauthenticatedFailures(base.metrics, clock, base.key("unknown-names")),
        housekeeping=_housekeeping(base, credentials),
        proxies=settings.trusted_proxy_hops,
        oidc=settings.oidc_provider(redis, clock),
        oidc_logout_url=settings.oidc_logout_url,
        oidc_hints=RecordCipher(base.secret, b"er-oidc-hints"),
        rate=settings.requests_per_second,
    )  # fmt: skip


def _housekeeping(base: Foundation, credentials: Credentials) -> Housekeeping:
    settings = base.settings
    return Housekeeping(
        base.redis, base.audit, credentials.signing_keys, base.clock,
        records=settings.audit_keep_records, days=settings.audit_keep_days,
        key_days=settings.signing_key_days,
        overlap=timedelta(seconds=credentials.tokens.longest_life),
    )  # fmt: skip


def _rate_limiter(rate: int, redis: Redis) -> AsyncLimiter:
    limits = (Limit("per-caller", Rate(rate, 1.0), burst=rate * BURST_SECONDS),)
    return AsyncLimiter(RatePolicy("api", limits, Failure(timeout=0.1)), redis)


def _add_gauges(metrics: ApiMetrics, services: Services) -> None:
    for name, help_text, value in (
        ("engineroom_sse_streams", "Open event streams.", lambda: services.hub.streams),
        ("engineroom_operations_running", "Bulk operations that this replica executes.",
         lambda: services.operation_runner.working),
        ("engineroom_audit_log_records", "Number of the last audit record that was compared.",
         lambda: services.audit_anchor.head.sequence),
        ("engineroom_cache_objects", "Cached WorkerPools.", lambda: len(services.hub.pools)),
        ("engineroom_watch_age_seconds", "Seconds since the last sign of life of the watch.",
         services.hub.pools.age),
    ):  # fmt: skip
        metrics.gauge(name, help_text, value)


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
    await repeat(
        coordinator.recover, RECOVERY_INTERVAL, stopping, log, "recovery of transactions failed"
    )


async def _finish(task: asyncio.Task[None], stopping: asyncio.Event) -> None:
    """Stop a task after its current step; another replica takes over what it cannot finish."""
    stopping.set()
    await asyncio.wait([task], timeout=GRACE)
    await _cancel(task)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task
