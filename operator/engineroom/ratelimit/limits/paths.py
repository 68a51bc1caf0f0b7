"""One form of a request's path, however it was spelt.

A path can be written in many ways that an application takes for one: ``/v1/%63omplete``,
``//v1/complete``, ``/v1/./complete``. Conditions and keys would see as many paths, and each
spelling would be a way around a limit. What is made alike is what servers and proxies make alike:

- Escapes are decoded, once (RFC 3986, 6.2.2.2; an application decodes once, and twice would make
  two paths one). The RFC keeps ``%2F`` apart from ``/``; WSGI, ASGI and nginx do not, and so it is
  a slash here: whoever does keep it apart is limited together with its neighbour and never less.
- The bytes are UTF-8; what is not becomes U+FFFD, which such paths then share. An overlong form of
  a slash or dot is no slash or dot.
- A fragment, from ``#`` on, is no part of a request (RFC 9112, 3.2), but a client can send one,
  nginx passes it on, and servers cut it off.
- Repeated slashes are one, which the RFC does not say and nginx, Go and Werkzeug do.
- ``.`` and ``..`` are resolved (RFC 3986, 5.2.4).

All else stays: upper and lower case, a slash at the end, ``;parameters`` (which mean nothing by
themselves, 3.3), ``%00``.

Not every application merges and resolves, nor in one order: to Starlette ``/a/../b`` is below
``/a``, and ``/a//../b`` is ``/b`` or ``/a/b``. Where the ways differ a request has several
readings, and ``sources.subject_of`` counts it as each of them. All of it is linear in the path's
length.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from engineroom.ratelimit.limits.sources import RequestView

_SLASHES = re.compile("/{2,}")
#: What stands before the path where a whole address was sent.
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]*")


def settled(view: RequestView, *, decoded: bool = False) -> RequestView:
    """The request with its path in one form, and with the other readings of it.

    The path is text as it stands on the wire, bytes as Latin-1 (see ``on_the_wire``); with
    ``decoded`` a server has decoded its escapes, and cut off its fragment, already.
    """
    path = view.path
    if path[:1] == "/" and "//" not in path and "/." not in path:
        if decoded:
            return view
        if "%" not in path and "#" not in path and path.isascii() and "#" not in view.query:
            return view
    if decoded:
        texts = [path]
        query = view.query
    else:
        cut, found, _ = path.partition("#")
        query = "" if found else view.query.partition("#")[0]
        texts = [_decoded(cut), _decoded(path)] if found else [_decoded(cut)]
    readings: dict[str, None] = {}
    for text in texts:
        rooted = text if text.startswith("/") or text == "*" else f"/{text}"
        merged = _SLASHES.sub("/", rooted)
        readings |= dict.fromkeys((_resolved(merged), merged))
        if merged != rooted:
            unmerged = _resolved(rooted)
            readings |= dict.fromkeys((_SLASHES.sub("/", unmerged), unmerged, rooted))
    first, *others = readings
    return view._replace(path=first, query=query, other_paths=tuple(others))


def on_the_wire(text: str) -> str:
    """Text of a document or a command as ``settled`` wants it."""
    return text if text.isascii() else text.encode("utf-8", "surrogatepass").decode("latin-1")


def _decoded(path: str) -> str:
    if not path.startswith("/"):
        path = _ORIGIN.sub("", path, count=1)
    raw = path.encode("latin-1", "replace")
    return (unquote_to_bytes(raw) if b"%" in raw else raw).decode("utf-8", "replace")


def _resolved(path: str) -> str:
    """Without ``.`` and ``..``."""
    if "/." not in path:
        return path
    kept: list[str] = []
    parts = path.split("/")[1:]
    for part in parts:
        if part == "..":
            if kept:
                kept.pop()
        elif part != ".":
            kept.append(part)
    if parts[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)
