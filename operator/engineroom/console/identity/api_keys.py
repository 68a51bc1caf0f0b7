"""API keys: create, rotate, revoke and list, for the caller and for other users."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from engineroom.auth.errors import ApiKeyError
from engineroom.auth.permissions import EVERYWHERE, Grant, Permission
from engineroom.console.identity.users import USER, subject_of
from engineroom.console.identity.views import GrantView, grant_views
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.errors import (
    InvalidInputError,
    MissingError,
    PermissionDeniedError,
    Problem,
)

if TYPE_CHECKING:
    from engineroom.auth.permissions import Principal
    from engineroom.auth.tokens.api_keys import ApiKey

_DAY = 86_400


class ApiKeyRequest(Model):
    """A key to create. It gets all rights of the caller unless `grants` or `scopes` limit it."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    grants: Annotated[list[GrantView], Field(max_length=20)] | None = None
    scopes: Annotated[list[Permission], Field(max_length=100)] | None = None
    days: Annotated[int, Field(ge=1, le=366, description="Lifetime in days.")] = 90
    rate: Annotated[
        int | None,
        Field(
            ge=1,
            le=100_000,
            description="Requests per second; null: the limit that applies to every caller.",
        ),
    ] = None


class ApiKeyRotation(Model):
    """Seconds for which the old key stays valid."""

    overlap: Annotated[int, Field(ge=0, le=7 * _DAY)] = _DAY


class ApiKeyView(Model):
    """A key without its secret. Times are Unix seconds."""

    id: str
    owner: str
    name: str
    created: float
    grants: list[GrantView]
    scopes: list[str] | None
    expires: float | None
    last_used: float | None
    revoked: float | None
    rate: int | None


class ApiKeyList(Model):
    """Keys, the newest first."""

    items: list[ApiKeyView]


class CreatedApiKey(Model):
    """A new key. `secret` is the whole key; no later response contains it."""

    key: ApiKeyView
    secret: str


async def list_own_keys(call: Call) -> Answer:
    """List the caller's keys."""
    return await _list(call, call.principal.subject)


async def create_key(call: Call) -> Answer:
    """Create a key for the caller, with no more rights than the caller has."""
    request: ApiKeyRequest = call.body
    caller = _require_no_key(call)
    try:
        created = await call.services.api_keys.create(
            caller.subject, request.name, _grants(request, caller), scopes=_scopes(request, caller),
            lifetime=timedelta(days=request.days), rate=request.rate,
        )  # fmt: skip
    except ValueError as error:
        raise _invalid("body.name", error) from error
    body = CreatedApiKey(key=_view(created.key), secret=created.secret)
    return Answer(body, details={"key": created.key.id, "name": request.name})


async def rotate_key(call: Call) -> Answer:
    """Create a key with the rights of an old one, which stays valid for `overlap` seconds."""
    key_id = call.path["key"]
    _require_no_key(call)
    await _require_own(call, key_id)
    overlap = timedelta(seconds=call.body.overlap)
    try:
        created = await call.services.api_keys.rotate(key_id, overlap)
    except ApiKeyError as error:
        raise MissingError("key: is expired or revoked; create a new one") from error
    except ValueError as error:
        raise _invalid("path.key", error) from error
    body = CreatedApiKey(key=_view(created.key), secret=created.secret)
    return Answer(body, details={"key": created.key.id})


async def revoke_own_key(call: Call) -> Answer:
    """Revoke one of the caller's keys."""
    await _require_own(call, call.path["key"])
    await call.services.api_keys.revoke(call.path["key"])
    return Answer()


async def list_user_keys(call: Call) -> Answer:
    """List a user's keys."""
    return await _list(call, await subject_of(call))


async def revoke_user_key(call: Call) -> Answer:
    """Revoke one of a user's keys."""
    key = await call.services.api_keys.get(call.path["key"])
    if key is None or key.owner != await subject_of(call):
        raise _missing()
    await call.services.api_keys.revoke(key.id)
    return Answer()


def _grants(request: ApiKeyRequest, caller: Principal) -> tuple[Grant, ...]:
    if request.grants is None:
        return caller.grants
    grants = tuple(Grant(view.role, frozenset(view.namespaces)) for view in request.grants)
    for grant in grants:
        _require_covered(caller, grant)
    return grants


def _scopes(request: ApiKeyRequest, caller: Principal) -> frozenset[str] | None:
    scopes = None if request.scopes is None else frozenset(map(str, request.scopes))
    if caller.scopes is None:
        return scopes
    scopes = caller.scopes if scopes is None else scopes
    if not scopes <= caller.scopes:
        raise PermissionDeniedError(
            "scopes: exceed those of the credential in this request; leave them out"
        )
    return scopes


def _require_no_key(call: Call) -> Principal:
    """Return the caller. Raises PermissionDeniedError if an API key authenticates the request.

    A leaked key could otherwise renew itself without end, and drop its rate limit.
    """
    if call.principal.how == "key":
        raise PermissionDeniedError(
            "key: an API key can neither create nor rotate keys; sign in (`engineroom login`, or "
            "POST /api/v1/tokens) and try again"
        )
    return call.principal


async def _require_own(call: Call, key_id: str) -> None:
    """Raise MissingError unless the key is the caller's, so that ids of others stay secret.

    Raises PermissionDeniedError when the key has more rights than the caller's credential.
    """
    key = await call.services.api_keys.get(key_id)
    if key is None or key.owner != call.principal.subject:
        raise _missing()
    # A credential with narrow scopes must not obtain wider ones by rotating another key.
    scopes = call.principal.scopes
    if scopes is not None and (key.scopes is None or not key.scopes <= scopes):
        raise PermissionDeniedError(
            "key: has more scopes than the credential in this request; use that key instead"
        )
    for grant in key.grants:
        _require_covered(call.principal, grant)


def _require_covered(caller: Principal, grant: Grant) -> None:
    for own in caller.grants:
        if own.role == grant.role and (
            EVERYWHERE in own.namespaces or grant.namespaces <= own.namespaces
        ):
            return
    raise PermissionDeniedError(
        f"grants: you do not have the role {grant.role[:63]} in all these namespaces; ask for less"
    )


async def _list(call: Call, owner: str) -> Answer:
    keys = await call.services.api_keys.of(owner)
    return Answer(ApiKeyList(items=[_view(key) for key in keys]))


def _view(key: ApiKey) -> ApiKeyView:
    return ApiKeyView(
        id=key.id,
        owner=key.owner,
        name=key.name,
        created=key.created,
        grants=grant_views(key.grants),
        scopes=None if key.scopes is None else sorted(key.scopes),
        expires=key.expires,
        last_used=key.last_used,
        revoked=key.revoked,
        rate=key.rate,
    )


def _missing() -> MissingError:
    return MissingError("key: there is none with that id; see the list of keys")


def _invalid(field: str, error: ValueError) -> InvalidInputError:
    return InvalidInputError([Problem(field, str(error), "revoke a key that is no longer used")])


_KEYS = f"{BASE}/keys"
ROUTES = (
    Route(
        method="GET", path=_KEYS, needs=Permission.SELF_KEYS_MANAGE, handler=list_own_keys,
        summary="List my API keys", tag="keys", answer=ApiKeyList,
    ),
    Route(
        method="POST", path=_KEYS, needs=Permission.SELF_KEYS_MANAGE, handler=create_key,
        summary="Create an API key", tag="keys", body=ApiKeyRequest, answer=CreatedApiKey,
        status=201, action="key.make", secret=True,
    ),
    Route(
        method="POST", path=f"{_KEYS}/{{key}}/rotate", needs=Permission.SELF_KEYS_MANAGE,
        handler=rotate_key, summary="Replace an API key by a new one", tag="keys",
        body=ApiKeyRotation, answer=CreatedApiKey, status=201, action="key.rotate", secret=True,
        errors=(404,),
    ),
    Route(
        method="DELETE", path=f"{_KEYS}/{{key}}", needs=Permission.SELF_KEYS_MANAGE,
        handler=revoke_own_key, summary="Revoke an API key", tag="keys", status=204,
        action="key.revoke", errors=(404,),
    ),
    Route(
        method="GET", path=f"{USER}/keys", needs=Permission.CLUSTER_KEYS_READ,
        handler=list_user_keys, summary="List a user's API keys", tag="users", answer=ApiKeyList,
    ),
    Route(
        method="DELETE", path=f"{USER}/keys/{{key}}", needs=Permission.CLUSTER_KEYS_MANAGE,
        handler=revoke_user_key, summary="Revoke a user's API key", tag="users", status=204,
        action="key.revoke", errors=(404,),
    ),
)  # fmt: skip
