"""Checks of Redis URLs. No message repeats a part of the URL, because it may be of its password."""

from __future__ import annotations

from urllib.parse import urlsplit

SCHEMES = ("redis", "rediss", "unix")
FORM = "write redis://[user:password@]host[:port][/database] or rediss://..."

_ENCODE = "percent-encode / ? # and @ in its user and password"


def url_problem(url: str) -> str:
    """Return the problem of a Redis URL and its fix; "" for a valid URL."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return f"its host or port is invalid; {_ENCODE}"
    if parts.scheme not in SCHEMES:
        return f"its scheme is not one of {', '.join(SCHEMES)}"
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        return f"an @ stands behind its host; {_ENCODE}"
    if parts.scheme == "unix":
        return ""
    if not parts.hostname:
        return "it has no host"
    database = parts.path.strip("/")
    if database and not database.isdecimal():
        return "its database is not a number"
    return ""


def displayed_url(url: str) -> str:
    """Return scheme, host and port of a valid URL; the only form of a URL that is ever printed."""
    if url_problem(url):
        return "an invalid URL"
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or parts.path}{port}"
