"""The keys that sign our tokens: which there are, and a new one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from engineroom.auth.permissions import Permission
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route

if TYPE_CHECKING:
    from datetime import datetime

    from engineroom.auth.tokens.signing_keys import KeySet


class SigningKeyView(Model):
    """A key, its public half only. Times are Unix seconds; null: no end yet."""

    kid: str
    state: Literal["next", "signing", "verifying"] = Field(
        description="next: signs soon; verifying: signs no more, what it signed is good until then."
    )
    signs_from: float
    verifies_until: float | None
    jwk: dict[str, str]


class SigningKeys(Model):
    """Keys, the youngest first. One that is `renewedDays` old is followed by another; 0: never."""

    items: list[SigningKeyView]
    renewed_days: int


async def list_keys(call: Call) -> Answer:
    """The keys, their private halves aside."""
    return Answer(_view(call, await call.services.keys.latest()))


async def rotate_keys(call: Call) -> Answer:
    """Publish a new key, which signs a minute later; old ones verify while their tokens live."""
    services = call.services
    kid = await services.keys.rotate(overlap=services.upkeep.overlap)
    return Answer(_view(call, await services.keys.latest()), details={"key": kid})


def _view(call: Call, keys: KeySet) -> SigningKeys:
    now = call.services.clock.now()
    signer = keys.signer(now).kid
    alive = [k for k in keys.keys if k.verifies_until is None or now < k.verifies_until]
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
            for key in sorted(alive, key=lambda key: key.signs_from, reverse=True)
        ],
        renewed_days=call.services.upkeep.key_days,
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
        method="GET", path=_KEYS, needs=Permission.CLUSTER_SIGNING_ROTATE, handler=list_keys,
        summary="Keys that sign tokens", tag="signing-keys", answer=SigningKeys,
    ),
    Route(
        method="POST", path=f"{_KEYS}/rotate", needs=Permission.CLUSTER_SIGNING_ROTATE,
        handler=rotate_keys, summary="Sign tokens with a new key", tag="signing-keys",
        answer=SigningKeys, status=201, action="signing-key.rotate", cost=20, errors=(409,),
    ),
)  # fmt: skip
