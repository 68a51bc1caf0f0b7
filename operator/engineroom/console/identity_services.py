"""The services that identify callers: tokens, API keys, sessions, accounts, the cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineroom.api import kinds
from engineroom.auth.kubernetes import KubernetesIdentity, ResourceAttributes
from engineroom.auth.login.credential_throttle import CredentialThrottle
from engineroom.auth.login.lockout import RedisAttemptCounter, SignIn
from engineroom.auth.login.login_links import LoginLinks
from engineroom.auth.login.passwords import Passwords
from engineroom.auth.login.sessions import Sessions
from engineroom.auth.middleware import Authenticator
from engineroom.auth.tokens.access_tokens import Tokens
from engineroom.auth.tokens.api_keys import ApiKeys
from engineroom.auth.tokens.revocation import Revocations
from engineroom.auth.tokens.signing_keys import RedisKeyStore, SigningKeyCache
from engineroom.console.accounts import account_config
from engineroom.console.accounts.accounts import Accounts
from engineroom.console.accounts.authorizer import Authorizer
from engineroom.console.accounts.config_watcher import AccountConfigWatcher
from engineroom.console.accounts.oidc_users import OidcUsers
from engineroom.core import key_prefixes
from engineroom.kube.client.resources import SUBJECT_ACCESS_REVIEWS, TOKEN_REVIEWS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engineroom.console.foundation import Foundation
    from engineroom.kube.client.client import Client


@dataclass(frozen=True, slots=True)
class Credentials:
    """The stores of credentials in Redis, and the keys that sign tokens."""

    signing_keys: SigningKeyCache
    revocations: Revocations
    tokens: Tokens
    api_keys: ApiKeys
    sessions: Sessions
    login_links: LoginLinks


@dataclass(frozen=True, slots=True)
class Identities:
    """The services that say who a caller is and what it may do."""

    accounts: Accounts
    account_watcher: AccountConfigWatcher
    password_login: SignIn
    authenticator: Authenticator
    authorizer: Authorizer


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


def create_credentials(base: Foundation) -> Credentials:
    """Create the stores of credentials.

    Records that grant rights are sealed: write access to Redis must not grant the API's rights.
    """
    settings, redis, clock, tampering = base.settings, base.redis, base.clock, base.tampering
    keys, revocations = _signing_keys(base), Revocations(redis, clock)
    return Credentials(
        signing_keys=keys,
        revocations=revocations,
        tokens=Tokens(
            redis, keys, revocations, clock, issuer=settings.issuer, audience=settings.issuer
        ),
        api_keys=ApiKeys(redis, clock, [base.key("api-keys")], on_broken=tampering),
        sessions=Sessions(redis, clock, base.key("sessions"), on_broken=tampering),
        login_links=LoginLinks(redis, clock, base.key("links"), on_broken=tampering),
    )


async def create_identities(base: Foundation, credentials: Credentials) -> Identities:
    """Create accounts, sign-in and authentication. Raises ValueError and OSError for bad files."""
    settings, passwords = base.settings, Passwords()
    counter = RedisAttemptCounter(base.redis, base.clock)
    files = account_config.read(settings.accounts_file, settings.passwords_directory)
    oidc_users = OidcUsers(
        base.redis, base.clock, base.key("people"), remember=settings.oidc_remember,
        on_broken=base.tampering,
    )  # fmt: skip
    accounts = await Accounts.create(
        settings.read_admin_password(), passwords, oidc_users, issuer=settings.oidc_issuer,
        config=account_config.parse(files),
    )  # fmt: skip
    kubernetes = _kubernetes_identity(base)
    return Identities(
        accounts=accounts,
        account_watcher=AccountConfigWatcher(
            accounts, credentials.sessions, credentials.tokens, document=settings.accounts_file,
            hashes=settings.passwords_directory, files=files,
        ),
        password_login=SignIn(counter, passwords, accounts.find),
        authenticator=Authenticator(
            tokens=credentials.tokens,
            api_keys=credentials.api_keys,
            sessions=credentials.sessions,
            external=kubernetes.authenticate if kubernetes else None,
            current=accounts.limit_to_current,
            throttle=CredentialThrottle(counter),
        ),
        authorizer=Authorizer(lambda: accounts.policy, kubernetes),
    )  # fmt: skip


def _kubernetes_identity(base: Foundation) -> KubernetesIdentity | None:
    if not base.settings.kubernetes_identities:
        return None
    return KubernetesIdentity(
        ClusterReviewer(base.client),
        base.clock,
        audiences=base.settings.audiences,
        objects=_kind_attributes(),
    )


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


def _signing_keys(base: Foundation) -> SigningKeyCache:
    # The name depends on the secret: a new secret starts with new keys instead of some that it
    # cannot unseal, and replicas that still have the old secret continue.
    name = f"{key_prefixes.SIGNING_KEYS}:{base.key('signing-name').hex()[:16]}"
    return SigningKeyCache(RedisKeyStore(base.redis, base.key("signing"), name=name), base.clock)
