"""What the handlers work with, put together and taken apart at one place."""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from starlette.requests import HTTPConnection

from engineroom.auth.audit.hash_chain import derived
from engineroom.auth.audit.log import AuditLog
from engineroom.auth.kubernetes import KubernetesIdentity
from engineroom.auth.login.credential_throttle import Attempts
from engineroom.auth.login.lockout import RedisCounter, SignIn
from engineroom.auth.login.login_links import Links
from engineroom.auth.login.passwords import Passwords
from engineroom.auth.login.sessions import Sessions
from engineroom.auth.middleware import SESSION, Authenticator, asked_of, of_session, who
from engineroom.auth.tokens.access_tokens import Tokens
from engineroom.auth.tokens.api_keys import ApiKeys
from engineroom.auth.tokens.revocation import Revocations
from engineroom.auth.tokens.signing_keys import Keys, RedisKeyStore
from engineroom.console.background.completion_audit import Ends
from engineroom.console.background.housekeeping import Upkeep
from engineroom.console.background.operation_store import OperationStore
from engineroom.console.background.operations import OperationRunner
from engineroom.console.background.tampering import Forgeries
from engineroom.console.background.unauthenticated import Strangers
from engineroom.console.identity import account_config
from engineroom.console.identity.accounts import Accounts, Follower
from engineroom.console.identity.authorizer import Authority
from engineroom.console.identity.oidc import provider
from engineroom.console.identity.oidc_users import People
from engineroom.console.metrics import ApiMetrics
from engineroom.console.rest.idempotency import Idempotency
from engineroom.console.rest.pagination import Places
from engineroom.console.rest.stream import Hub
from engineroom.core.clock import Clock, SystemClock
from engineroom.core.errors import Category, EngineroomError
from engineroom.core.logging import get_logger
from engineroom.core.recovery import ONCE, POLICIES, Breaker, Policy, Recovery
from engineroom.core.sealing import Sealer
from engineroom.core.transactions.saga import Coordinator
from engineroom.core.transactions.sagalog import RedisSagaLog
from engineroom.kube.client.client import Client
from engineroom.kube.client.resources import SUBJECT_ACCESS_REVIEWS, TOKEN_REVIEWS
from engineroom.manifests.apply import LEASE, Applier, RedisBundles
from engineroom.ratelimit.limits.limiter import AsyncLimiter
from engineroom.ratelimit.limits.model import Failure, Limit, Rate
from engineroom.ratelimit.limits.model import Policy as RatePolicy
from engineroom.redis.breaker_client import GuardedRedis
from engineroom.tasks.client import AsyncTasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence

    from redis.asyncio import Redis

    from engineroom.auth.oidc.flow import Oidc
    from engineroom.auth.permissions import Principal
    from engineroom.console.settings import ApiSettings
    from engineroom.core.transactions.sagalog import SagaLog
    from engineroom.kube.client.config import ApiConfig

log = get_logger(__name__)

#: Seconds between two looks for transactions that a dead replica left.
RECOVERY = 2.0
#: Seconds that such work gets to end when the process does.
GRACE = 5.0
#: Failures in a row after which Redis or the API server is left alone, and for how many seconds.
BREAKER_FAILURES, BREAKER_PAUSE = 5, 1.0
#: Somebody waits for the answer: once or twice more, and soon.
READS = {
    **POLICIES,
    **dict.fromkeys((Category.DEPENDENCY, Category.TRANSIENT),
                    Policy(attempts=3, base=0.05, longest=0.5, total=3.0)),
    Category.CONFLICT: ONCE,
    Category.LIMIT: ONCE,
}  # fmt: skip
#: Requests that a caller may make at once, as seconds of his rate.
AT_ONCE = 10


@dataclass(slots=True, kw_only=True)
class Services:
    """Everything that a handler may need."""

    redis: Redis
    client: Client
    authenticator: Authenticator
    authority: Authority
    limiter: AsyncLimiter
    idempotency: Idempotency
    audit: AuditLog
    sessions: Sessions
    tokens: Tokens
    keys: Keys
    api_keys: ApiKeys
    accounts: Accounts
    follower: Follower
    sign_in: SignIn
    links: Links
    tasks: AsyncTasks
    hub: Hub
    sagas: SagaLog
    bundles: RedisBundles
    coordinator: Coordinator
    revocations: Revocations
    operations: OperationStore
    operation_runner: OperationRunner
    places: Places
    forgeries: Forgeries
    strangers: Strangers
    upkeep: Upkeep
    clock: Clock
    proxies: int = 0
    oidc: Oidc | None = None
    oidc_logout_url: str = ""
    #: Requests in a second that a caller has.
    rate: int = 50

    def address(self, request: HTTPConnection) -> str:
        """Where a request came from: the connection's end, or what our own proxies saw."""
        peer = request.client.host if request.client else ""
        if not self.proxies:
            return peer
        header = ",".join(request.headers.getlist("x-forwarded-for"))
        told = [part.strip() for part in header.split(",") if part.strip()]
        # Each trusted proxy appends whom it saw; what stands before that anybody may have written.
        return told[-self.proxies][:64] if len(told) >= self.proxies else peer

    def address_of(self, scope: MutableMapping[str, Any]) -> str:
        """The same of an ASGI scope."""
        return self.address(HTTPConnection(scope))

    def cost(self, caller: Principal, cost: int) -> int:
        """What a request counts of somebody with a rate of his own, so that he has no more."""
        if caller.rate is None or caller.rate >= self.rate:
            return cost
        # No more than there is at once: a request must stay possible.
        return min(math.ceil(cost * self.rate / caller.rate), self.rate * AT_ONCE)

    async def recognised(self, scope: MutableMapping[str, Any]) -> tuple[Principal | None, str]:
        """Who asks, looked at anew; see ``Authenticator.authenticate``.

        A session is not used by that: what looks by itself must not keep it from being idle.
        """
        before = who(scope)
        if before is not None and before.how == "session":
            for session in await self.sessions.of(before.subject):
                if session.handle == before.reference:
                    principal = of_session(session)
                    if not session.person:
                        principal = await self.accounts.current(principal)
                    return principal, scope[SESSION]
            return None, ""
        return await self.authenticator.authenticate(asked_of(scope, self.address_of(scope)))


class ClusterReviewer:
    """``Reviewer`` by the API server's client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def review_token(self, token: str, audiences: Sequence[str]) -> Mapping[str, Any]:
        """See Reviewer."""
        spec: dict[str, Any] = {"token": token}
        if audiences:
            spec["audiences"] = list(audiences)
        review = await self._client.create(TOKEN_REVIEWS, {"spec": spec}, timeout=5.0)
        return review.get("status") or {}

    async def review_access(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Reviewer."""
        review = await self._client.create(
            SUBJECT_ACCESS_REVIEWS, {"spec": dict(spec)}, timeout=5.0
        )
        return review.get("status") or {}


def guarding(name: str, metrics: ApiMetrics, clock: Clock) -> Recovery:
    """Recovery of calls to a dependency: what it fails with is counted where it is answered."""
    breaker = Breaker(
        name, failures=BREAKER_FAILURES, pause=BREAKER_PAUSE, clock=clock, metrics=metrics.recovery
    )
    return Recovery(name, policies=READS, breaker=breaker, clock=clock)


@asynccontextmanager
async def opened(
    settings: ApiSettings,
    config: ApiConfig,
    clock: Clock | None = None,
    metrics: ApiMetrics | None = None,
) -> AsyncIterator[Services]:
    """The services of a process; raises ValueError and OSError for settings that are wrong.

    Needs Redis for the first signing key. The cluster may be away: then what needs it is.
    """
    clock = clock or SystemClock()
    secret = settings.read_secret()
    url = settings.read_redis_url()
    if not url:
        raise ValueError("ENGINEROOM_REDIS_URL: is missing; the API keeps sessions and logs there")
    async with AsyncExitStack() as stack:
        metrics = metrics or ApiMetrics()
        redis = GuardedRedis.guarded(
            guarding("redis", metrics, clock), url, socket_timeout=5.0,
            socket_connect_timeout=2.0, max_connections=200, health_check_interval=15,
        )  # fmt: skip
        stack.push_async_callback(redis.aclose)
        client = await stack.enter_async_context(
            Client(
                config, timeout=settings.api_timeout, user_agent="engineroom-api",
                recovery=guarding("kubernetes", metrics, clock),
            )
        )  # fmt: skip
        services = await _made(settings, redis, client, secret, clock, metrics)
        metrics.observe(services)
        await stack.enter_async_context(services.limiter)
        await services.keys.ensure()
        await services.hub.pools.start()
        stack.push_async_callback(services.hub.pools.stop)
        stopping = asyncio.Event()
        recovery = asyncio.create_task(_recover(services.coordinator, stopping), name="recovery")
        following = asyncio.create_task(services.revocations.run(), name="revocations")
        stack.push_async_callback(_cancel, following)
        working = asyncio.create_task(services.operation_runner.run(stopping), name="operations")
        stack.push_async_callback(_finish, working, stopping)
        keeping = asyncio.create_task(services.upkeep.run(stopping), name="upkeep")
        stack.push_async_callback(_finish, keeping, stopping)
        telling = asyncio.create_task(services.forgeries.run(), name="forgeries")
        stack.push_async_callback(_cancel, telling)
        looking = asyncio.create_task(services.follower.run(), name="accounts")
        stack.push_async_callback(_cancel, looking)
        stack.push_async_callback(_finish, recovery, stopping)
        yield services


async def _made(
    settings: ApiSettings,
    redis: Redis,
    client: Client,
    secret: bytes,
    clock: Clock,
    metrics: ApiMetrics,
) -> Services:
    # By the secret's name: with a new one there are new keys, instead of some that nobody can read,
    # and replicas that still have the old one go on.
    name = f"engineroom:auth:keys:{derived(secret, 'signing-name').hex()[:16]}"
    keys = Keys(RedisKeyStore(redis, derived(secret, "signing"), name=name), clock)
    revocations = Revocations(redis, clock)
    tokens = Tokens(
        redis, keys, revocations, clock, issuer=settings.issuer, audience=settings.issuer
    )
    audit = AuditLog(redis, clock, derived(secret, "audit"))
    # Whoever may write this Redis must not thereby have the API's rights: what gives any is sealed.
    broken = Forgeries(audit, metrics)
    ends = Ends(audit)
    api_keys = ApiKeys(redis, clock, [derived(secret, "api-keys")], on_broken=broken)
    sessions = Sessions(redis, clock, derived(secret, "sessions"), on_broken=broken)
    kubernetes = None
    if settings.kubernetes_identities:
        kubernetes = KubernetesIdentity(
            ClusterReviewer(client), clock, audiences=settings.audiences
        )
    counter = RedisCounter(redis, clock)
    passwords = Passwords()
    source = account_config.read(settings.accounts_file, settings.passwords_directory)
    accounts = await Accounts.of(
        settings.read_admin_password(),
        passwords,
        People(
            redis,
            clock,
            derived(secret, "people"),
            remember=settings.oidc_remember,
            on_broken=broken,
        ),
        issuer=settings.oidc_issuer,
        directory=account_config.parse(source),
    )
    rate = settings.requests_per_second
    limits = (Limit("per-caller", Rate(rate, 1.0), burst=rate * AT_ONCE),)
    bundles = RedisBundles(redis, clock, derived(secret, "manifests"), on_broken=broken)
    operations = OperationStore(redis, derived(secret, "operations"), on_broken=broken)
    sagas = RedisSagaLog(redis, sealer=Sealer(derived(secret, "sagas"), "saga", broken))
    coordinator = Coordinator(
        sagas, Applier(client, bundles, clock).sagas(), lease=LEASE, on_end=metrics.saga,
        on_recovered=ends.transaction,
    )  # fmt: skip
    return Services(
        redis=redis,
        client=client,
        authenticator=Authenticator(
            tokens=tokens,
            api_keys=api_keys,
            sessions=sessions,
            external=kubernetes.authenticate if kubernetes else None,
            current=accounts.current,
            attempts=Attempts(counter),
        ),
        authority=Authority(lambda: accounts.policy, kubernetes),
        limiter=AsyncLimiter(RatePolicy("api", limits, Failure(timeout=0.1)), redis),
        idempotency=Idempotency(redis),
        audit=audit,
        sessions=sessions,
        tokens=tokens,
        keys=keys,
        api_keys=api_keys,
        accounts=accounts,
        follower=Follower(
            accounts, sessions, tokens, document=settings.accounts_file,
            hashes=settings.passwords_directory, source=source,
        ),
        sign_in=SignIn(counter, passwords, accounts.find),
        links=Links(redis, clock, derived(secret, "links"), on_broken=broken),
        tasks=AsyncTasks(redis),
        hub=Hub(client, settings.namespaces),
        sagas=sagas,
        bundles=bundles,
        coordinator=coordinator,
        revocations=revocations,
        places=Places(derived(secret, "cursors")),
        operations=operations,
        operation_runner=OperationRunner(operations, AsyncTasks(redis), on_end=ends.operation),
        forgeries=broken,
        strangers=Strangers(metrics, clock, derived(secret, "unknown-names")),
        upkeep=Upkeep(
            redis, audit, keys, clock, records=settings.audit_keep_records,
            days=settings.audit_keep_days, key_days=settings.signing_key_days,
            overlap=timedelta(seconds=tokens.longest_life),
        ),
        clock=clock,
        proxies=settings.trusted_proxy_hops,
        oidc=provider(settings, redis, clock),
        oidc_logout_url=settings.oidc_logout_url,
        rate=rate,
    )  # fmt: skip


async def _recover(coordinator: Coordinator, stopping: asyncio.Event) -> None:
    """Undo what replicas left behind that died; all replicas look, one gets each."""
    while not stopping.is_set():
        try:
            await coordinator.recover()
        except EngineroomError as error:
            log.warning("transactions not looked at", code=error.code, error=str(error))
        with suppress(TimeoutError):
            async with asyncio.timeout(RECOVERY):
                await stopping.wait()


async def _finish(task: asyncio.Task[None], stopping: asyncio.Event) -> None:
    """Let it end what it is at; cut short, that is another replica's to take over."""
    stopping.set()
    await asyncio.wait([task], timeout=GRACE)
    await _cancel(task)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task
