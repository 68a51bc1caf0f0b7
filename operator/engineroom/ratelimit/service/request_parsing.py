"""Parsing of requests from nginx, Traefik, Envoy and programs.

Everything that determines the decision comes from the proxy, never from the client. The policy is
part of the URL in the proxy's configuration, as are tenant, route, claims and cost, or the names of
headers with them that the proxy sets. Proxies do not escape variables in URLs, so that a value that
a client chooses could add parameters: repeated and unknown parameters are refused.
The client's address is the last entry of X-Forwarded-For, which the proxy adds; earlier entries
count as far as the policy's ``trustedProxyHops`` allows.
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

#: Most parameters of a URL, and their total length.
_MAX_PARAMETERS, _MAX_QUERY = 32, 8192
_MAX_COST = 1_000_000_000
#: Descriptor keys for parts of the request other than headers.
_PEER, _METHOD, _PATH = "remote_address", "method", "path"
_MASKED = "masked_remote_address"
_CLAIM = "claim."
#: Creates a named tuple in half the time, without checks of names and defaults.
_new = tuple.__new__
#: Prefix of a parameter whose value is the name of a header with the actual value.
_HEADER = "header."
_PARAMETERS = frozenset({"tenant", "route", "cost"})


class ProxyProtocol(StrEnum):
    """The protocol of a proxy, which determines the form of responses."""

    #: nginx's auth_request: a refusal is 403, because nginx turns other statuses into 500.
    NGINX = "nginx"
    #: Traefik's ForwardAuth, Caddy's forward_auth: a refusal reaches the client unchanged.
    FORWARD = "forward"
    #: Envoy's ext_authz over HTTP: the URL ends with the client's path.
    ENVOY = "envoy"


_ENVOY = ProxyProtocol.ENVOY


class DecisionRequest(NamedTuple):
    """A request to decide on: the policy, the HTTP request, and its cost."""

    namespace: str
    #: A policy's name, or its target as ``Kind:name`` or ``Kind:name:section``.
    name: str
    view: RequestView
    cost: int = 1


class UnreadableRequestError(EngineroomError, ValueError):
    """A request to the service is invalid."""

    code = "unreadable_question"
    category = Category.VALIDATION
    http_status = 400


def parse_proxy_request(
    form: ProxyProtocol, namespace: str, name: str, rest: str, query: str, method: str,
    headers: dict[str, str],
) -> DecisionRequest:  # fmt: skip
    """Parse the request of a proxy. Raises UnreadableError.

    ``headers`` has lower-case names and is modified. ``rest`` is the path after the policy.
    """
    chain, _, peer = headers.get("x-forwarded-for", "").rpartition(",")
    headers["x-forwarded-for"] = chain
    peer = peer.strip()
    if form is _ENVOY:
        view = RequestView(method, f"/{rest}", query, headers, peer)
        return DecisionRequest(namespace, name, normalized(view))
    path, _, client_query = headers.get("x-forwarded-uri", "/").partition("?")
    method = headers.get("x-forwarded-method", method)
    if not query:
        view = _new(
            RequestView, (method, path, client_query, headers, peer, 0, None, None, EMPTY, ())
        )
        return _new(DecisionRequest, (namespace, name, normalized(view), 1))
    parameters = _parameters(query, headers)
    view = RequestView(
        method,
        path,
        client_query,
        headers,
        peer,
        tenant=parameters.get("tenant"),
        route=parameters.get("route"),
        claims=_claims(parameters),
    )
    return DecisionRequest(namespace, name, normalized(view), _cost(parameters.get("cost", "1")))


def parse_descriptor(domain: str, entries: Sequence[tuple[str, str]], hits: int) -> DecisionRequest:
    """Parse one descriptor of Envoy's rate limit service. Raises UnreadableError.

    ``domain`` is ``namespace/policy``. Entries have the names of Envoy's actions: an action
    ``request_headers`` with the descriptor key ``:path`` or ``path`` sets the path, and so on; any
    other key is the name of a header.
    """
    namespace, slash, name = domain.partition("/")
    if not slash or not namespace or not name:
        raise UnreadableRequestError(f"domain: {domain[:80]!r} is not namespace/policy")
    headers: dict[str, str] = {}
    peer = ""
    parts = {_METHOD: "GET", _PATH: "/"}
    identity: dict[str, str] = {}
    for key, value in entries:
        short = key.lower().removeprefix(":")
        if short in (_PEER, _MASKED):
            peer = value.partition("/")[0]
        elif short in parts:
            parts[short] = value
        elif short in ("tenant", "route") or short.startswith(_CLAIM):
            identity[key if short.startswith(_CLAIM) else short] = value
        else:
            headers[short] = value
    path, _, query = parts[_PATH].partition("?")
    view = RequestView(
        parts[_METHOD], path, query, headers, peer,
        tenant=identity.get("tenant"), route=identity.get("route"), claims=_claims(identity),
    )  # fmt: skip
    return DecisionRequest(namespace, name, normalized(view), hits)


def parse_json(document: object) -> DecisionRequest:
    """Parse the JSON of ``/v1/decide``. Raises UnreadableError."""
    fields = _mapping(document, "the body")
    namespace, name = _text(fields, "namespace"), _text(fields, "policy")
    parts = _mapping(fields.get("request", {}), "request")
    headers = _texts(parts.get("headers", {}), "request.headers")
    view = RequestView(
        _text(parts, "method", "GET"),
        as_wire_text(_text(parts, "path", "/")),
        _text(parts, "query", ""),
        {name.lower(): value for name, value in headers.items()},
        _text(parts, "peer", ""),
        tenant=_text(parts, "tenant", "") or None,
        route=_text(parts, "route", "") or None,
        claims=_texts(parts.get("claims", {}), "request.claims"),
    )
    cost = fields.get("cost", 1)
    if isinstance(cost, bool) or not isinstance(cost, int) or not 0 <= cost <= _MAX_COST:
        raise UnreadableRequestError(f"cost: it is not a whole number from 0 to {_MAX_COST}")
    return DecisionRequest(namespace, name, normalized(view), cost)


def parse_response_headers(document: object) -> dict[str, str]:
    """Parse the response's headers in the JSON of ``/v1/charge``, with lower-case names.

    Raises UnreadableError.
    """
    response = _mapping(_mapping(document, "the body").get("response"), "response")
    headers = _texts(response.get("headers", {}), "response.headers")
    return {name.lower(): value for name, value in headers.items()}


def decode_segment(text: str) -> str:
    """Decode a segment of a path."""
    return unquote(text) if "%" in text else text


def _parameters(query: str, headers: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters of a proxy, without empty values and missing headers."""
    if len(query) > _MAX_QUERY:
        raise UnreadableRequestError(f"the query is longer than {_MAX_QUERY} characters")
    try:
        pairs = parse_qsl(
            query, max_num_fields=_MAX_PARAMETERS, errors="replace", keep_blank_values=True
        )
    except ValueError:
        raise UnreadableRequestError(f"there are more than {_MAX_PARAMETERS} parameters") from None
    parameters: dict[str, str] = {}
    for name, value in pairs:
        key = name.removeprefix(_HEADER)
        if key in parameters:
            raise UnreadableRequestError(f"{key[:80]!r} is given twice; write it once")
        if (key not in _PARAMETERS and not key.startswith(_CLAIM)) or name == "header.cost":
            valid = "tenant, route, claim.NAME, the same with the prefix header., and cost"
            raise UnreadableRequestError(f"{name[:80]!r} is not a parameter; use {valid}")
        parameters[key] = headers.get(value.lower(), "") if name != key else value
    return {key: value for key, value in parameters.items() if value}


def _claims(parameters: Mapping[str, str]) -> dict[str, str]:
    return {
        key[len(_CLAIM) :]: value for key, value in parameters.items() if key.startswith(_CLAIM)
    }


def _cost(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= _MAX_COST:
        return int(text)
    raise UnreadableRequestError(f"cost: {text[:20]!r} is not a whole number from 1 to {_MAX_COST}")


def _mapping(value: object, name: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise UnreadableRequestError(f"{name} is not an object")
    return value


def _texts(value: object, name: str) -> dict[str, str]:
    entries = _mapping(value, name)
    if any(not isinstance(entry, str) for entry in entries.values()):
        raise UnreadableRequestError(f"{name}: a value is not a string")
    return {key: str(entry) for key, entry in entries.items()}


def _text(fields: Mapping[str, object], name: str, default: str | None = None) -> str:
    value = fields.get(name, default)
    if not isinstance(value, str) or (default is None and not value):
        raise UnreadableRequestError(f"{name}: write a string")
    return value
