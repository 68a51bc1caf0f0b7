"""Redaction of credentials in text, in time that grows linearly with the text.

A copy of ``engineroom.core.text_redaction``: this package must not import ``engineroom``.
"""

from __future__ import annotations

import re

REDACTED = "[redacted]"

#: Characters between spaces and quotes: a URL stands in one such part.
_PART = re.compile(r"[^\s'\"]+")
_AUTHORITY_END = re.compile(r"[/?#]")
_WEB = ("http", "https", "ws", "wss")
_DOTTED = re.compile(r"[\w.-]+")
#: The least lengths of a JWT's header, with "eyJ", and of its payload.
_HEADER, _PAYLOAD = 11, 8

#: Each pattern begins with a literal, and no part of it can match the same text in two ways.
_PATTERNS = (
    (re.compile(r"\b(bearer|basic)\s+[a-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1 {REDACTED}"),
    # Engineroom's API keys
    (re.compile(r"\berk_[\w-]{8,}"), REDACTED),
    (
        re.compile(
            r"((?:passphrase|password|passwd|pwd|secret|token|(?:api|access|secret)[_-]?key)"
            r"\\{0,8}['\"]?\s*[=:]\s*)"
            # A quote with backslashes stands in a quoted text and ends at the next of its kind.
            r"(?:(\\{1,8}['\"])[^'\"\\]+|(\")(?:[^\"\\]|\\.)+|(')(?:[^'\\]|\\.)+|[^\s'\",&;)}\]\\]+)",
            re.IGNORECASE | re.DOTALL,
        ),
        rf"\1\2\3\4{REDACTED}",
    ),
    (
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----.*?"
            r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----|\Z)",
            re.DOTALL,
        ),
        REDACTED,
    ),
)


def redact_text(text: str) -> str:
    """Replace credentials in ``text``: user info in URLs, bearer tokens, JWTs, ``password=...``."""
    if "://" in text and "@" in text:
        text = _PART.sub(lambda part: _without_user(part[0]), text)
    if "eyJ" in text:
        text = _DOTTED.sub(lambda part: _without_tokens(part[0]), text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _without_user(part: str) -> str:
    """Replace what stands before the "@" of a URL.

    A password that is not percent-encoded may hold "/", "?", "#" and "@", which end a URL's
    authority or its user. So a URL with a colon in its authority loses everything up to its last
    "@", unless the colon is followed by the port of a web address.
    """
    start = part.find("://") + 3
    last = part.rfind("@")
    if start < 3 or last < start:
        return part
    mark = _AUTHORITY_END.search(part, start)
    authority = part[start : mark.start() if mark else len(part)]
    if "@" not in authority:
        scheme = part[: start - 3].rpartition("=")[2].lower()
        host, colon, port = authority.rpartition(":")
        if not colon or (host and port.isdigit() and scheme.endswith(_WEB)):
            return part
    elif ":" not in authority:
        last = start + authority.rfind("@")
    return f"{part[:start]}{REDACTED}{part[last:]}"


def _without_tokens(part: str) -> str:
    """Replace JWTs, which are three segments of base64url with dots between them."""
    segments = part.split(".")
    clean: list[str] = []
    position = 0
    while position < len(segments):
        segment = segments[position]
        begin = segment.find("eyJ")
        if (
            begin >= 0
            and position + 2 < len(segments)
            and len(segment) - begin >= _HEADER
            and len(segments[position + 1]) >= _PAYLOAD
        ):
            clean.append(segment[:begin] + REDACTED)
            position += 3
        else:
            clean.append(segment)
            position += 1
    return ".".join(clean)
