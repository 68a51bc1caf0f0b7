"""Sign-in with a name and a password, shared by sessions and tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from engineroom.console.rest.routing import Call, Model

if TYPE_CHECKING:
    from engineroom.auth.permissions import Grant


class Credentials(Model):
    """Name and password."""

    name: Annotated[str, Field(min_length=1, max_length=255)]
    password: Annotated[str, Field(min_length=1, max_length=1024)]


async def verify_credentials(call: Call) -> tuple[str, tuple[Grant, ...]]:
    """Return the subject and the grants of the account in the request body.

    Raises CredentialsError, LockedOutError, AuthStoreError.
    """
    credentials: Credentials = call.body
    services = call.services
    # An unknown name may be a password typed into the wrong field: log a pseudonym instead.
    call.attempted["account"] = (
        credentials.name
        if services.accounts.exists(credentials.name)
        else services.unauthenticated.pseudonym(credentials.name)
    )
    account = await services.password_login.attempt(
        credentials.name, credentials.password, call.address
    )
    return account.subject, services.accounts.grants(account.subject)
