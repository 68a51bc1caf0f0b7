"""Signing in to a browser by a one-time link, without a password.

Somebody who is known to the API has a code made and opens `/sign-in#CODE`. What stands behind `#`
no browser sends: no log of a server or proxy on the way has the code. The page's script takes it
out of the address and posts it; the answer is a session under an id that nobody knew before.

Whoever is signed in already stays who he is: a link that somebody sends him changes nothing.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.responses import Response

from engineroom.auth.errors import LinkError
from engineroom.auth.kubernetes import KubernetesPrincipal, packed
from engineroom.auth.login.login_links import Bound
from engineroom.auth.middleware import SESSION
from engineroom.auth.permissions import Access
from engineroom.console.identity.identity import SignedIn, session_view
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.errors import PermissionDeniedError

#: Seconds that a session of somebody whom the cluster knows lives, if his token does not end first.
CLUSTER_SESSION = 3600.0


class SignInLink(Model):
    """A code, good once; `path` is where a browser goes with it. `expires` is Unix seconds."""

    code: str
    path: str
    expires: float


class Code(Model):
    """The code of a link, which is used up by this."""

    code: Annotated[str, Field(min_length=1, max_length=100)]


async def make_link(call: Call) -> Answer:
    """A link by which the caller signs in to a browser."""
    caller = call.principal
    if caller.how not in ("token", "kubernetes") or caller.scopes is not None:
        raise PermissionDeniedError(
            f"link: is not made for a {caller.how}; come with a token of a sign-in or of the "
            "cluster"
        )
    now = call.services.clock.now().timestamp()
    if isinstance(caller, KubernetesPrincipal):
        ends = now + CLUSTER_SESSION
        if caller.expires is not None:
            ends = min(ends, caller.expires)
        bound = Bound(caller.subject, person=packed(caller), ends=ends)
    else:
        bound = Bound(caller.subject, caller.grants)
    code, expires = await call.services.links.make(bound)
    return Answer(SignInLink(code=code, path=f"/sign-in#{code}", expires=expires))


async def redeem_link(call: Call) -> Answer:
    """A session for a code."""
    services = call.services
    bound = await services.links.take(call.body.code)
    opened = await services.sessions.open(
        bound.subject,
        bound.grants,
        previous=call.request.scope.get(SESSION, ""),
        address=call.address,
        agent=call.request.headers.get("user-agent", ""),
        person=bound.person,
        ends=bound.ends,
    )
    # Looked at when the session is there: who is thrown out meanwhile finds it or is found here.
    if await services.tokens.ended(bound.subject, bound.made):
        await services.sessions.close(opened.id)
        raise LinkError
    body = SignedIn(session=session_view(opened.session, opened.session.handle), csrf=opened.csrf)
    return Answer(body, headers={"set-cookie": opened.cookie}, details={"subject": bound.subject})


async def page(call: Call) -> Response:
    """Where a link leads."""
    del call
    return Response(_PAGE, media_type="text/html; charset=utf-8")


async def script(call: Call) -> Response:
    """The page's script."""
    del call
    return Response(_SCRIPT, media_type="text/javascript; charset=utf-8")


_PAGE = f"""\
<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Engineroom: sign in</title><link rel="stylesheet" href="{BASE}/docs.css">
<script src="/sign-in.js" defer></script></head><body><main>
<h1>Sign in</h1>
<p id="state" role="status">Signing in</p>
<noscript><p>The link's code stands behind # in the address, which only a script can read: allow
scripts of this site, or use a token.</p></noscript>
<p><a href="{BASE}/docs">The API</a></p>
</main></body></html>
"""

_SCRIPT = f"""\
"use strict";
(async () => {{
  const state = document.getElementById("state");
  const code = location.hash.slice(1);
  // Out of the address, and out of the browser's history.
  history.replaceState(null, "", location.pathname);
  const who = await fetch("{BASE}/whoami");
  if (who.ok) {{
    state.textContent = "You are signed in as " + (await who.json()).subject + ".";
    return;
  }}
  if (!code) {{
    state.textContent = "There is no code in the address: run engineroom ui.";
    return;
  }}
  const answer = await fetch("{BASE}/sign-in-links/redeem", {{
    method: "POST",
    headers: {{"content-type": "application/json"}},
    body: JSON.stringify({{code}}),
  }});
  const body = await answer.json();
  if (!answer.ok) {{
    state.textContent = body.detail;
  }} else if (!(await fetch("{BASE}/whoami")).ok) {{
    state.textContent = "This browser keeps the cookie of a session over https only.";
  }} else {{
    state.textContent = "You are signed in as " + body.session.subject + ", until "
      + new Date(body.session.ends * 1000).toLocaleTimeString() + " at the latest.";
  }}
}})().catch((error) => {{
  document.getElementById("state").textContent = "That did not work: " + error;
}});
"""

_LINKS = f"{BASE}/sign-in-links"
ROUTES = (
    Route(
        method="POST", path=_LINKS, needs=Access.SIGNED_IN, handler=make_link,
        summary="Make a one-time link to sign in with", tag="sessions", answer=SignInLink,
        status=201, action="link.make", secret=True, cost=5,
    ),
    Route(
        method="POST", path=f"{_LINKS}/redeem", needs=Access.PUBLIC, handler=redeem_link,
        summary="Sign in with the code of a link", tag="sessions", body=Code, answer=SignedIn,
        status=201, action="session.open", secret=True, cost=5, errors=(401,),
    ),
    Route(
        method="GET", path="/sign-in", needs=Access.PUBLIC, handler=page,
        summary="Where a one-time link leads", tag="sessions", media="text/html",
    ),
    Route(
        method="GET", path="/sign-in.js", needs=Access.PUBLIC, handler=script,
        summary="Script of that page", tag="sessions", media="text/javascript",
    ),
)  # fmt: skip
