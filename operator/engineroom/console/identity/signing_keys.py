"""The keys that sign access tokens: list and rotate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from engineroom.auth.permissions import Permission
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route

if TYPE_CHECKING:
    from datetime import datetime

    from engineroom.auth.tokens.signing_keys import KeySet


class SigningKeyView(Model):
    """The public half of a key. Times are Unix seconds; null: no end is set."""

    kid: str
    state: Literal["next", "signing", "verifying"] = Field(
        description="next: signs soon; verifying: its tokens stay valid until the end."
    )
    signs_from: float
    verifies_until: float | None
    jwk: dict[str, str]


class SigningKeys(Model):
    """Keys, the newest first. A key is replaced after `renewedDays` days; 0: never."""

    items: list[SigningKeyView]
    renewed_days: int


async def list_signing_keys(call: Call) -> Answer:
    """List the public keys."""
    return Answer(_view(call, await call.services.signing_keys.latest()))


async def rotate_signing_keys(call: Call) -> Answer:
    """Publish a new key, which signs after a minute; old keys verify until their tokens expire."""
    services = call.services
    kid = await services.signing_keys.rotate(overlap=services.housekeeping.overlap)
    return Answer(_view(call, await services.signing_keys.latest()), details={"key": kid})


def _view(call: Call, keys: KeySet) -> SigningKeys:
    now = call.services.clock.now()
    signer = keys.signer(now).kid
    active = [k for k in keys.keys if k.verifies_until is None or now < k.verifies_until]
    return SigningKeys(
        items=[
            SigningKeyView(
                kid=key.kid,
                state=_state(key.kid == signer, key.signs_from, now),
                signs_from=key.signs_from.timestamp(),
                verifies_until=None
                if key.verifies_until is None
                else key.verifies_until.timestamp(),
                jwk=key.verifying.jwk(),
            )
            for key in sorted(active, key=lambda key: key.signs_from, reverse=True)
        ],
        renewed_days=call.services.housekeeping.key_days,
    )


def _state(
    signs: bool,
    signs_from: datetime,
    now: datetime,
) -> Literal["next", "signing", "verifying"]:
    if signs:
        return "signing"
    return "next" if signs_from > now else "verifying"


_KEYS = f"{BASE}/signing-keys"
ROUTES = (
    Route(
        method="GET", path=_KEYS, needs=Permission.CLUSTER_SIGNING_ROTATE,
        handler=list_signing_keys, summary="List the keys that sign tokens", tag="signing-keys",
        answer=SigningKeys,
    ),
    Route(
        method="POST", path=f"{_KEYS}/rotate", needs=Permission.CLUSTER_SIGNING_ROTATE,
        handler=rotate_signing_keys, summary="Publish a new signing key", tag="signing-keys",
        answer=SigningKeys, status=201, action="signing-key.rotate", cost=20, errors=(409,),
    ),
)  # fmt: skip
