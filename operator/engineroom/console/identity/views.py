"""Views of grants and sessions that several handlers return."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from engineroom.console.rest.routing import Model

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engineroom.auth.login.sessions import NewSession, Session
    from engineroom.auth.permissions import Grant

_Namespace = Annotated[str, Field(pattern=r"^(\*|[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)$")]


class GrantView(Model):
    """A role in some namespaces; `*` stands for all of them and for the installation itself."""

    role: Annotated[str, Field(min_length=1, max_length=63)]
    namespaces: Annotated[list[_Namespace], Field(min_length=1, max_length=100)]


class SessionView(Model):
    """A session; `handle` names it and is not secret. Times are Unix seconds."""

    handle: str
    subject: str
    created: float
    seen: float
    ends: float
    address: str
    agent: str
    current: bool


class SignedIn(Model):
    """A new session. Its id is in the cookie; send `csrf` in the header X-CSRF-Token."""

    session: SessionView
    csrf: str


def grant_views(grants: Iterable[Grant]) -> list[GrantView]:
    """Convert grants for a response."""
    return [GrantView(role=g.role, namespaces=sorted(g.namespaces)) for g in grants]


def session_view(session: Session, current_handle: str) -> SessionView:
    """Convert a session for a response; ``current_handle`` is that of the caller's session."""
    return SessionView(
        handle=session.handle,
        subject=session.subject,
        created=session.created,
        seen=session.last_used,
        ends=session.ends,
        address=session.address,
        agent=session.agent,
        current=session.handle == current_handle,
    )


def signed_in(opened: NewSession) -> SignedIn:
    """Convert a session that was just opened for a response."""
    return SignedIn(session=session_view(opened.session, opened.session.handle), csrf=opened.csrf)
