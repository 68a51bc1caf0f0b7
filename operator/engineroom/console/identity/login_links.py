"""One-time links that sign a browser in without a password.

A signed-in caller requests a code and opens `/sign-in#CODE`. Browsers do not send what follows `#`,
so no server or proxy logs the code. The page's script removes it from the address and posts it; the
response sets the cookie of a new session, whose id is new as well.

If the browser is already signed in, a link has no effect.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.responses import Response

from engineroom.auth.errors import LinkError
from engineroom.auth.kubernetes import KubernetesPrincipal, pack_identity
from engineroom.auth.login.login_links import LoginLink
from engineroom.auth.middleware import SESSION
from engineroom.auth.permissions import Access
from engineroom.console.identity.views import SignedIn, signed_in
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.errors import PermissionDeniedError

#: Lifetime in seconds of a session of a Kubernetes identity; it ends earlier if the token does.
CLUSTER_SESSION = 3600.0


class SignInLink(Model):
    """A code, valid once; `path` is the URL path to open with it. `expires` is Unix seconds."""

    code: str
    path: str
    expires: float


class SignInCode(Model):
    """The code of a link. It is valid once."""

    code: Annotated[str, Field(min_length=1, max_length=100)]


async def create_link(call: Call) -> Answer:
    """Create a link that signs the caller in to a browser."""
    caller = call.principal
    if caller.how not in ("token", "kubernetes") or caller.scopes is not None:
        raise PermissionDeniedError(
            f"link: cannot be created with a {caller.how}; use a token of a sign-in or of the "
            "cluster"
        )
    now = call.services.clock.now().timestamp()
    if isinstance(caller, KubernetesPrincipal):
        ends = now + CLUSTER_SESSION
        if caller.expires is not None:
            ends = min(ends, caller.expires)
        bound = LoginLink(caller.subject, person=pack_identity(caller), ends=ends)
    else:
        bound = LoginLink(caller.subject, caller.grants)
    code, expires = await call.services.login_links.make(bound)
    return Answer(SignInLink(code=code, path=f"/sign-in#{code}", expires=expires))


async def redeem_link(call: Call) -> Answer:
    """Open a session for the code of a link."""
    services = call.services
    bound = await services.login_links.take(call.body.code)
    opened = await services.sessions.open(
        bound.subject,
        bound.grants,
        previous=call.request.scope.get(SESSION, ""),
        address=call.address,
        agent=call.request.headers.get("user-agent", ""),
        person=bound.person,
        ends=bound.ends,
    )
    # Check after opening: either this check or a concurrent "end all sessions" ends the session.
    if await services.tokens.ended(bound.subject, bound.created):
        await services.sessions.close(opened.id)
        raise LinkError
    headers = {"set-cookie": opened.cookie}
    return Answer(signed_in(opened), headers=headers, details={"subject": bound.subject})


async def sign_in_page(call: Call) -> Response:
    """Return the page that a link opens."""
    del call
    return Response(_PAGE, media_type="text/html; charset=utf-8")


async def sign_in_script(call: Call) -> Response:
    """Return the script of the sign-in page."""
    del call
    return Response(_SCRIPT, media_type="text/javascript; charset=utf-8")


_PAGE = f"""\
<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Engineroom: sign in</title><link rel="stylesheet" href="{BASE}/docs.css">
<script src="/sign-in.js" defer></script></head><body><main>
<h1>Sign in</h1>
<p id="state" role="status">Signing in</p>
<noscript><p>The code follows # in the address, where only a script can read it. Allow scripts for
this site, or use a token.</p></noscript>
<p><a href="{BASE}/docs">The API</a></p>
</main></body></html>
"""

_SCRIPT = f"""\
"use strict";
(async () => {{
  const state = document.getElementById("state");
  const code = location.hash.slice(1);
  // Remove the code from the address and from the browser's history.
  history.replaceState(null, "", location.pathname);
  const current = await fetch("{BASE}/whoami");
  if (current.ok) {{
    state.textContent = "You are signed in as " + (await current.json()).subject + ".";
    return;
  }}
  if (!code) {{
    state.textContent = "The address contains no code. Run engineroom ui again.";
    return;
  }}
  const response = await fetch("{BASE}/sign-in-links/redeem", {{
    method: "POST",
    headers: {{"content-type": "application/json"}},
    body: JSON.stringify({{code}}),
  }});
  const body = await response.json();
  if (!response.ok) {{
    state.textContent = body.detail;
  }} else if (!(await fetch("{BASE}/whoami")).ok) {{
    state.textContent = "This browser stores the session cookie only over https.";
  }} else {{
    state.textContent = "You are signed in as " + body.session.subject + " until "
      + new Date(body.session.ends * 1000).toLocaleTimeString() + ".";
  }}
}})().catch((error) => {{
  document.getElementById("state").textContent = "Sign-in failed: " + error;
}});
"""

_LINKS = f"{BASE}/sign-in-links"
ROUTES = (
    Route(
        method="POST", path=_LINKS, needs=Access.SIGNED_IN, handler=create_link,
        summary="Create a one-time sign-in link", tag="sessions", answer=SignInLink,
        status=201, action="link.make", secret=True, cost=5,
    ),
    Route(
        method="POST", path=f"{_LINKS}/redeem", needs=Access.PUBLIC, handler=redeem_link,
        summary="Sign in with the code of a link", tag="sessions", body=SignInCode, answer=SignedIn,
        status=201, action="session.open", secret=True, cost=5, errors=(401,),
    ),
    Route(
        method="GET", path="/sign-in", needs=Access.PUBLIC, handler=sign_in_page,
        summary="Page that a one-time link opens", tag="sessions", media="text/html",
    ),
    Route(
        method="GET", path="/sign-in.js", needs=Access.PUBLIC, handler=sign_in_script,
        summary="Script of that page", tag="sessions", media="text/javascript",
    ),
)  # fmt: skip
