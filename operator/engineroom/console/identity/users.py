"""Users: declared accounts and users of the OIDC provider."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from engineroom.auth.permissions import Permission
from engineroom.console.accounts.accounts import NAME
from engineroom.console.accounts.oidc_users import PATH_PREFIX, path_of
from engineroom.console.cursors import bad_cursor, decode_cursor, encode_cursor
from engineroom.console.identity.views import GrantView, grant_views
from engineroom.console.rest.errors import DeclaredError
from engineroom.console.rest.pagination import Cursor, Limit, PageQuery
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.errors import MissingError

if TYPE_CHECKING:
    from engineroom.console.accounts.oidc_users import OidcUser

#: The path of one user, on which the routes of keys and sessions build.
USER = f"{BASE}/users/{{subject}}"
_CURSOR = re.compile(
    r"account:[a-z0-9._-]{0,63}|person:([0-9]{1,15}(\.[0-9]{1,17})?(e[+-][0-9]{1,2})?:[0-9a-f]{40})?"
)


class UsersQuery(PageQuery):
    """The page to return."""

    limit: Limit = 100
    cursor: Cursor = ""


class UserView(Model):
    """A user. `path` names the user in URLs; `signedIn` is Unix seconds, null for accounts."""

    subject: str
    path: str
    name: str
    email: str
    groups: list[str]
    grants: list[GrantView]
    signed_in: float | None


class UserList(Model):
    """Accounts by name, then users of the provider, the most recent sign-in first."""

    items: list[UserView]
    next_cursor: str | None


async def list_users(call: Call) -> Answer:
    """List everyone who may sign in, with their current grants."""
    accounts, limit = call.services.accounts, call.query.limit
    position = decode_cursor(call.query.cursor) if call.query.cursor else "account:"
    if not _CURSOR.fullmatch(position):
        raise bad_cursor()
    kind, _, after = position.partition(":")
    views: list[UserView] = []
    if kind == "account":
        names = sorted(n for n in (NAME, *accounts.config.accounts) if n > after)
        views = [_account(call, n) for n in names if accounts.grants(f"user:{n}")]
        if len(views) > limit:
            views = views[:limit]
            cursor = encode_cursor(f"account:{views[-1].name}")
            return Answer(UserList(items=views, next_cursor=cursor))
        after = ""
        if len(views) == limit:
            return Answer(UserList(items=views, next_cursor=encode_cursor("person:")))
    users, following = await accounts.oidc_users.page(after, limit - len(views))
    views += [_oidc_user(call, user) for user in users]
    cursor = encode_cursor(f"person:{following}" if following else None)
    return Answer(UserList(items=views, next_cursor=cursor))


async def forget_user(call: Call) -> Answer:
    """Forget a user of the provider: end all sessions and tokens, and disable the API keys.

    The user may sign in again as long as the provider permits it.
    """
    path, services = call.path["subject"], call.services
    if not path.startswith(PATH_PREFIX):
        if services.accounts.grants(path):
            raise DeclaredError(
                "account: is declared in the installation's values; remove it there"
            )
        raise _missing()
    user = await services.accounts.oidc_users.find_by_path(path)
    if user is None:
        raise _missing()
    await services.accounts.oidc_users.forget(user.subject)
    await services.tokens.revoke_subject(user.subject)
    await services.sessions.end_all(user.subject)
    return Answer(details={"subject": user.subject})


async def subject_of(call: Call) -> str:
    """Return the subject of the user in the path. Raises MissingError and AuthStoreError."""
    path = call.path["subject"]
    if not path.startswith(PATH_PREFIX):
        return path
    user = await call.services.accounts.oidc_users.find_by_path(path)
    if user is None:
        raise _missing()
    return user.subject


def _missing() -> MissingError:
    return MissingError("user: there is none of that name; see the list of users")


def _account(call: Call, name: str) -> UserView:
    subject = f"user:{name}"
    grants = grant_views(call.services.accounts.grants(subject))
    return UserView(
        subject=subject, path=subject, name=name, email="", groups=[], grants=grants,
        signed_in=None,
    )  # fmt: skip


def _oidc_user(call: Call, user: OidcUser) -> UserView:
    grants = call.services.accounts.config.grants_of_groups(user.groups)
    return UserView(
        subject=user.subject,
        path=path_of(user.subject),
        name=user.name,
        email=user.email,
        groups=list(user.groups),
        grants=grant_views(grants),
        signed_in=user.signed_in,
    )


ROUTES = (
    Route(
        method="GET", path=f"{BASE}/users", needs=Permission.CLUSTER_USERS_READ,
        handler=list_users, summary="List users", tag="users", query=UsersQuery, answer=UserList,
    ),
    Route(
        method="DELETE", path=USER, needs=Permission.CLUSTER_USERS_MANAGE, handler=forget_user,
        summary="Forget a user of the OIDC provider and end all sessions and tokens", tag="users",
        status=204, action="user.forget", errors=(404, 409),
    ),
)  # fmt: skip
