"""Who has an account here: those that are declared, and people of the provider."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from engineroom.auth.permissions import Permission
from engineroom.console.identity.accounts import NAME
from engineroom.console.identity.identity import GrantView, grant_views
from engineroom.console.identity.oidc_users import PATH_PREFIX, path_of
from engineroom.console.rest.errors import DeclaredError
from engineroom.console.rest.pagination import Cursor, Limit, Paged, bad_cursor, packed, unpacked
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.errors import MissingError

if TYPE_CHECKING:
    from engineroom.console.identity.oidc_users import Person


_PLACE = re.compile(
    r"account:[a-z0-9._-]{0,63}|person:([0-9]{1,15}(\.[0-9]{1,17})?(e[+-][0-9]{1,2})?:[0-9a-f]{40})?"
)


class UsersQuery(Paged):
    """Which page."""

    limit: Limit = 100
    cursor: Cursor = ""


class UserView(Model):
    """Somebody; `path` is how he is named in paths. `signedIn` is Unix seconds, of people only."""

    subject: str
    path: str
    name: str
    email: str
    groups: list[str]
    grants: list[GrantView]
    signed_in: float | None


class UserList(Model):
    """First accounts by name, then people of the provider, who signed in last first."""

    items: list[UserView]
    next_cursor: str | None


async def users(call: Call) -> Answer:
    """Everybody who may come in, with what he may do now."""
    accounts, limit = call.services.accounts, call.query.limit
    place = unpacked(call.query.cursor) if call.query.cursor else "account:"
    if not _PLACE.fullmatch(place):
        raise bad_cursor()
    kind, _, after = place.partition(":")
    found: list[UserView] = []
    if kind == "account":
        names = sorted(n for n in (NAME, *accounts.directory.accounts) if n > after)
        found = [_account(call, n) for n in names if accounts.grants(f"user:{n}")]
        if len(found) > limit:
            found = found[:limit]
            return Answer(UserList(items=found, next_cursor=packed(f"account:{found[-1].name}")))
        after = ""
        if len(found) == limit:
            return Answer(UserList(items=found, next_cursor=packed("person:")))
    people, following = await accounts.people.page(after, limit - len(found))
    found += [_person(call, person) for person in people]
    more = f"person:{following}" if following else None
    return Answer(UserList(items=found, next_cursor=packed(more)))


async def forget_user(call: Call) -> Answer:
    """End all that somebody of the provider has here: sessions, tokens, and what his keys may.

    He may sign in again as long as the provider lets him.
    """
    path, services = call.path["subject"], call.services
    if not path.startswith(PATH_PREFIX):
        if services.accounts.grants(path):
            raise DeclaredError(
                "account: is declared in the installation's values; take it out there"
            )
        raise MissingError("user: there is none of that name; look at the list")
    person = await services.accounts.people.at(path)
    if person is None:
        raise MissingError("user: there is none of that name; look at the list")
    await services.accounts.people.forget(person.subject)
    await services.tokens.revoke_subject(person.subject)
    await services.sessions.end_all(person.subject)
    return Answer(details={"subject": person.subject})


def _account(call: Call, name: str) -> UserView:
    subject = f"user:{name}"
    grants = grant_views(call.services.accounts.grants(subject))
    return UserView(
        subject=subject, path=subject, name=name, email="", groups=[], grants=grants,
        signed_in=None,
    )  # fmt: skip


def _person(call: Call, person: Person) -> UserView:
    grants = call.services.accounts.directory.of_groups(person.groups)
    return UserView(
        subject=person.subject,
        path=path_of(person.subject),
        name=person.name,
        email=person.email,
        groups=list(person.groups),
        grants=grant_views(grants),
        signed_in=person.signed_in,
    )


ROUTES = (
    Route(
        method="GET", path=f"{BASE}/users", needs=Permission.CLUSTER_USERS_READ, handler=users,
        summary="Who may come in", tag="users", query=UsersQuery, answer=UserList,
    ),
    Route(
        method="DELETE", path=f"{BASE}/users/{{subject}}", needs=Permission.CLUSTER_USERS_MANAGE,
        handler=forget_user, summary="End all that somebody of the provider has here", tag="users",
        status=204, action="user.forget", errors=(404, 409),
    ),
)  # fmt: skip
