"""Who has an account here: those that are declared, and people of the provider."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from engineroom.auth.permissions import Permission
from engineroom.console.accounts import SUBJECT
from engineroom.console.errors import DeclaredError
from engineroom.console.identity import GrantView, grant_views
from engineroom.console.people import PATH_PREFIX, path_of
from engineroom.console.routes import BASE, Answer, Call, Model, Route
from engineroom.core.errors import MissingError

if TYPE_CHECKING:
    from engineroom.console.people import Person


class UsersQuery(Model):
    """Which part of the list."""

    start: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    limit: Annotated[int, Field(ge=1, le=500)] = 100


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
    """Accounts, on the first page, and people, who signed in last first."""

    items: list[UserView]
    more: bool


async def users(call: Call) -> Answer:
    """Everybody who may come in, with what he may do now."""
    accounts, query = call.services.accounts, call.query
    found: list[UserView] = []
    if query.start == 0:
        declared = accounts.directory.accounts.values()
        subjects = [SUBJECT, *(each.subject for each in declared)]
        found = [
            UserView(
                subject=subject, path=subject, name=subject.removeprefix("user:"), email="",
                groups=[], grants=grant_views(accounts.grants(subject)), signed_in=None,
            )
            for subject in subjects
            if accounts.grants(subject)
        ]  # fmt: skip
    people, more = await accounts.people.page(query.start, query.limit)
    for person in people:
        found.append(_person(call, person))
    return Answer(UserList(items=found, more=more))


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
