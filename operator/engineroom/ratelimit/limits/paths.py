"""Normalization of request paths, so that all spellings of a path are limited together.

Applications treat many spellings as one path: ``/v1/%63omplete``, ``//v1/complete``,
``/v1/./complete``. If conditions and keys saw them as different paths, each spelling would be a way
around a limit. The normalization follows what servers and proxies do:

- Escapes are decoded, once (RFC 3986, 6.2.2.2). Applications decode once, and decoding twice would
  make two paths equal. The RFC distinguishes ``%2F`` from ``/``; WSGI, ASGI and nginx do not, so it
  becomes a slash here. An application that does distinguish them limits the two paths together.
- The bytes are UTF-8. Invalid bytes become U+FFFD, which such paths then share. An overlong form of
  a slash or dot is not a slash or dot.
- A fragment, from ``#`` on, is not part of a request (RFC 9112, 3.2). A client can send one all the
  same, nginx passes it on, and servers remove it.
- Repeated slashes become one, as in nginx, Go and Werkzeug (not in the RFC).
- ``.`` and ``..`` are resolved (RFC 3986, 5.2.4).

Everything else stays: upper and lower case, a trailing slash, ``;parameters`` (without a meaning of
their own, 3.3), ``%00``.

Applications differ in which of these steps they take, and in which order: for Starlette ``/a/../b``
is below ``/a``, ``/a//../b`` is ``/b`` or ``/a/b``, and ``/x%2Fy/../b`` is ``/b`` for those that
resolve before they decode. Where they differ, a request has several
readings, and ``sources.subject_of`` counts it as each of them. The work is linear in the length of
the path.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from engineroom.ratelimit.limits.request import RequestView

_SLASHES = re.compile("/{2,}")
_ENCODED_SLASH = re.compile("%2f", re.IGNORECASE)
_ENCODED_DOT = re.compile("%2e", re.IGNORECASE)
#: The scheme and authority of a request target in absolute form.
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]*")


def normalized(view: RequestView, *, decoded: bool = False) -> RequestView:
    """Return the request with its path normalized, and with the other readings of the path.

    The path is as on the wire, its bytes as Latin-1 (see ``as_wire_text``). With ``decoded`` a
    server has already decoded the escapes and removed the fragment.
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
        before, fragment, _ = path.partition("#")
        query = "" if fragment else view.query.partition("#")[0]
        texts = [
            text for wire in ([before, path] if fragment else [before]) for text in _texts(wire)
        ]
    readings: dict[str, None] = {}
    for text in texts:
        rooted = text if text.startswith("/") or text == "*" else f"/{text}"
        merged = _SLASHES.sub("/", rooted)
        readings |= dict.fromkeys((_resolve_dots(merged), merged))
        if merged != rooted:
            unmerged = _resolve_dots(rooted)
            readings |= dict.fromkeys((_SLASHES.sub("/", unmerged), unmerged, rooted))
    first, *further = readings
    return view._replace(path=first, query=query, other_paths=tuple(further))


def as_wire_text(text: str) -> str:
    """Return text of a document or a command with its UTF-8 bytes as Latin-1."""
    return text if text.isascii() else text.encode("utf-8", "surrogatepass").decode("latin-1")


def _texts(path: str) -> list[str]:
    """Return the path decoded, and as read by those that resolve dots before they decode."""
    if not path.startswith("/"):
        path = _ORIGIN.sub("", path, count=1)
    texts = [_decode(path)]
    if _ENCODED_SLASH.search(path):
        texts.append(_decode(_resolve_dots(_ENCODED_DOT.sub(".", path))))
    return texts


def _decode(path: str) -> str:
    raw = path.encode("latin-1", "replace")
    return (unquote_to_bytes(raw) if b"%" in raw else raw).decode("utf-8", "replace")


def _resolve_dots(path: str) -> str:
    """Resolve ``.`` and ``..``."""
    if "/." not in path:
        return path
    segments: list[str] = []
    parts = path.split("/")[1:]
    for part in parts:
        if part == "..":
            if segments:
                segments.pop()
        elif part != ".":
            segments.append(part)
    if parts[-1] in (".", ".."):
        segments.append("")
    return "/" + "/".join(segments)
