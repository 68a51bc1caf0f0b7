"""What is asked: from the forms of nginx, Traefik and Envoy to a request as key sources see it.

Everything that decides on the outcome comes from the proxy, never from the client: the policy is
part of the address that the proxy is configured with, and so are tenant, route, claims and cost, or
the names of headers with them that the proxy sets itself. Proxies put variables into addresses as
they are, so a value that a client can choose could bring parameters of its own: what is repeated or
unknown is refused, and nothing is free.
The client's address is the last entry of X-Forwarded-For, which is the proxy's own; what stands
before it counts only as far as the policy's ``trustedProxyHops`` says.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl, unquote

from engineroom.core.errors import Category, EngineroomError
from engineroom.ratelimit.limits.paths import as_wire_text, normalized
from engineroom.ratelimit.limits.request import EMPTY, RequestView

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Parameters of an address, and their length together.
_MAX_PARAMETERS, _MAX_QUERY = 32, 8192
_MAX_COST = 1_000_000_000
#: Entries of a descriptor that are more than a header's name, and the part of the request they are.
_PEER, _METHOD, _PATH = "remote_address", "method", "path"
_MASKED = "masked_remote_address"
_CLAIM = "claim."
#: Makes a named tuple in half the time, without looking at names and defaults.
_new = tuple.__new__
#: Before a parameter: its value is the name of a header that has the value.
_HEADER = "header."
_KNOWN = frozenset({"tenant", "route", "cost"})


class Form(StrEnum):
    """How a proxy asks, and so how it must be answered."""

    #: nginx' auth_request: a refusal is 403, since nginx makes 500 of all else.
    NGINX = "nginx"
    #: Traefik's ForwardAuth, Caddy's forward_auth: a refusal goes to the client as it is.
    FORWARD = "forward"
    #: Envoy's ext_authz over HTTP: the address ends in the client's own.
    ENVOY = "envoy"


_ENVOY = Form.ENVOY


class Question(NamedTuple):
    """Which policy is asked about, for what request, and what that costs."""

    namespace: str
    #: A policy's name, or ``Kind:name`` or ``Kind:name:section`` of what it is attached to.
    name: str
    view: RequestView
    cost: int = 1


class UnreadableError(EngineroomError, ValueError):
    """A question that cannot be answered; the message says what is wrong with it."""

    code = "unreadable_question"
    category = Category.VALIDATION
    http_status = 400


def of_proxy(
    form: Form, namespace: str, name: str, rest: str, query: str, method: str,
    headers: dict[str, str],
) -> Question:  # fmt: skip
    """The question that a proxy asks with ``headers`` (lower-case names; may be changed).

    ``rest`` is what follows the policy in the path. Raises UnreadableError.
    """
    chain, _, peer = headers.get("x-forwarded-for", "").rpartition(",")
    headers["x-forwarded-for"] = chain
    peer = peer.strip()
    if form is _ENVOY:
        view = RequestView(method, f"/{rest}", query, headers, peer)
        return Question(namespace, name, normalized(view))
    path, _, asked = headers.get("x-forwarded-uri", "/").partition("?")
    method = headers.get("x-forwarded-method", method)
    if not query:
        view = _new(RequestView, (method, path, asked, headers, peer, 0, None, None, EMPTY, ()))
        return _new(Question, (namespace, name, normalized(view), 1))
    told = _parameters(query, headers)
    view = RequestView(
        method,
        path,
        asked,
        headers,
        peer,
        tenant=told.get("tenant"),
        route=told.get("route"),
        claims=_claims(told),
    )
    return Question(namespace, name, normalized(view), _cost(told.get("cost", "1")))


def of_descriptor(domain: str, entries: Sequence[tuple[str, str]], hits: int) -> Question:
    """The question in one descriptor of Envoy's rate limit service.

    ``domain`` is ``namespace/policy``. Entries are named as Envoy's actions name them: an action
    ``request_headers`` with the descriptor key ``:path`` or ``path`` gives the path, and so on; any
    other key is a header's name. Raises UnreadableError.
    """
    namespace, slash, name = domain.partition("/")
    if not slash or not namespace or not name:
        raise UnreadableError(f"domain: {domain[:80]!r} is not namespace/policy")
    headers: dict[str, str] = {}
    peer = ""
    parts = {_METHOD: "GET", _PATH: "/"}
    told: dict[str, str] = {}
    for key, value in entries:
        short = key.lower().removeprefix(":")
        if short in (_PEER, _MASKED):
            peer = value.partition("/")[0]
        elif short in parts:
            parts[short] = value
        elif short in ("tenant", "route") or short.startswith(_CLAIM):
            told[key if short.startswith(_CLAIM) else short] = value
        else:
            headers[short] = value
    path, _, query = parts[_PATH].partition("?")
    view = RequestView(
        parts[_METHOD], path, query, headers, peer,
        tenant=told.get("tenant"), route=told.get("route"), claims=_claims(told),
    )  # fmt: skip
    return Question(namespace, name, normalized(view), hits)


def of_document(document: object) -> Question:
    """The question in the JSON of ``/v1/decide``; raises UnreadableError."""
    fields = _mapping(document, "the body")
    namespace, name = _text(fields, "namespace"), _text(fields, "policy")
    asked = _mapping(fields.get("request", {}), "request")
    headers = _texts(asked.get("headers", {}), "request.headers")
    view = RequestView(
        _text(asked, "method", "GET"),
        as_wire_text(_text(asked, "path", "/")),
        _text(asked, "query", ""),
        {each.lower(): value for each, value in headers.items()},
        _text(asked, "peer", ""),
        tenant=_text(asked, "tenant", "") or None,
        route=_text(asked, "route", "") or None,
        claims=_texts(asked.get("claims", {}), "request.claims"),
    )
    cost = fields.get("cost", 1)
    if isinstance(cost, bool) or not isinstance(cost, int) or not 0 <= cost <= _MAX_COST:
        raise UnreadableError(f"cost: it is not a whole number from 0 to {_MAX_COST}")
    return Question(namespace, name, normalized(view), cost)


def response_headers(document: object) -> dict[str, str]:
    """Headers of the response in the JSON of ``/v1/charge``, by lower-case names; raises
    UnreadableError."""
    told = _mapping(_mapping(document, "the body").get("response"), "response")
    headers = _texts(told.get("headers", {}), "response.headers")
    return {each.lower(): value for each, value in headers.items()}


def segment(text: str) -> str:
    """A segment of a path, decoded."""
    return unquote(text) if "%" in text else text


def _parameters(query: str, headers: Mapping[str, str]) -> dict[str, str]:
    """What the proxy says of the request; what is empty, or a header that is not there, is not."""
    if len(query) > _MAX_QUERY:
        raise UnreadableError(f"the query is longer than {_MAX_QUERY} characters")
    try:
        pairs = parse_qsl(
            query, max_num_fields=_MAX_PARAMETERS, errors="replace", keep_blank_values=True
        )
    except ValueError:
        raise UnreadableError(f"there are more than {_MAX_PARAMETERS} parameters") from None
    told: dict[str, str] = {}
    for given, value in pairs:
        key = given.removeprefix(_HEADER)
        if key in told:
            raise UnreadableError(f"{key[:80]!r} is given twice; write it once")
        if (key not in _KNOWN and not key.startswith(_CLAIM)) or given == "header.cost":
            known = "tenant, route, claim.NAME, each also behind header., and cost"
            raise UnreadableError(f"{given[:80]!r} is no parameter; there are {known}")
        told[key] = headers.get(value.lower(), "") if given != key else value
    return {key: value for key, value in told.items() if value}


def _claims(told: Mapping[str, str]) -> dict[str, str]:
    return {key[len(_CLAIM) :]: value for key, value in told.items() if key.startswith(_CLAIM)}


def _cost(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= _MAX_COST:
        return int(text)
    raise UnreadableError(f"cost: {text[:20]!r} is not a whole number from 1 to {_MAX_COST}")


def _mapping(value: object, name: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise UnreadableError(f"{name} is not an object")
    return value


def _texts(value: object, name: str) -> dict[str, str]:
    found = _mapping(value, name)
    if any(not isinstance(each, str) for each in found.values()):
        raise UnreadableError(f"{name}: a value is not a string")
    return {key: str(each) for key, each in found.items()}


def _text(fields: Mapping[str, object], name: str, default: str | None = None) -> str:
    value = fields.get(name, default)
    if not isinstance(value, str) or (default is None and not value):
        raise UnreadableError(f"{name}: write a string")
    return value
