"""The OpenAPI 3.1 document of the API, generated from the route table, as JSON and as HTML."""

from __future__ import annotations

import html as markup
import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

from engineroom import __version__
from engineroom.auth.login.sessions import COOKIE, CSRF_HEADER
from engineroom.auth.permissions import Access
from engineroom.console import idempotency
from engineroom.console.rest.routing import PATH_PARAMETERS, NoParameters
from engineroom.core.error_responses import ProblemDocument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

    from engineroom.console.rest.routing import Route

_REFERENCE = "#/components/schemas/{model}"

ABOUT = (
    "The REST API of Engineroom. Send a bearer token: an access token, an API key, or a token of "
    "the cluster (kubectl create token). A browser sends the cookie of its session, and with every "
    "change its CSRF token. Errors are problem documents (RFC 9457) with a stable `code`. Lists "
    "are paged by `cursor`. A change with an Idempotency-Key is executed once, however often it is "
    "sent within a day. Objects with an ETag accept If-Match."
)

_PROBLEM: dict[str, Any] = {
    "type": "object",
    "description": "RFC 9457.",
    "required": ["type", "title", "status", "detail", "code", "category", "retryable"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "category": {"type": "string"},
        "retryable": {"type": "boolean"},
        "instance": {"type": "string"},
        "retry_after": {"type": "integer", "description": "Seconds."},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "problem", "fix"],
                "properties": {
                    "field": {"type": "string"},
                    "problem": {"type": "string"},
                    "fix": {"type": "string"},
                },
            },
        },
    },
}

_DESCRIPTIONS = {
    400: "The request cannot be parsed.",
    401: "The request has no valid credentials.",
    403: "The caller lacks the permission.",
    404: "The object does not exist.",
    405: "The path does not support this method.",
    408: "The body arrived too slowly.",
    409: "The request conflicts with the current state; see `code`.",
    410: "The list cannot be continued from this cursor.",
    412: "If-Match names another version.",
    413: "The body is too large.",
    415: "The body must be application/json.",
    422: "The request is invalid; `errors` lists the fields.",
    429: "Too many requests; see Retry-After.",
    431: "The headers are too large.",
    502: "The Kubernetes API server failed.",
    503: "Redis or the Kubernetes API server is unavailable; try again.",
    504: "A dependency took too long; try again.",
}


class ApiDocument:
    """The document of ``routes``, generated at the first access."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = routes

    @cached_property
    def json(self) -> bytes:
        """The document as JSON."""
        return written(self._routes).encode()

    @cached_property
    def html(self) -> bytes:
        """The document as an HTML page."""
        return html(self._routes).encode()


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the OpenAPI document."""
    models = {
        model: None for route in routes for model in (route.body, route.answer) if model is not None
    }
    _, schemas = models_json_schema(
        [(model, "validation" if model in {r.body for r in routes} else "serialization")
         for model in models],
        by_alias=True,
        ref_template=_REFERENCE,
    )  # fmt: skip
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Engineroom", "version": __version__, "description": ABOUT},
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in routes)],
        "paths": paths,
        "components": {
            "schemas": {**schemas.get("$defs", {}), "Problem": _PROBLEM},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
                "csrf": {"type": "apiKey", "in": "header", "name": CSRF_HEADER},
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "description": " ".join((route.handler.__doc__ or "").split()),
        "tags": [route.tag],
        "parameters": _parameters(route),
        "responses": _responses(route),
        "x-permission": str(route.needs),
    }
    if route.needs is Access.PUBLIC:
        operation["security"] = []
    else:
        session: dict[str, list[str]] = {"session": []}
        if route.changes:
            session["csrf"] = []
        operation["security"] = [{"bearer": []}, session]
    if route.body is not None:
        schema = {"$ref": _REFERENCE.format(model=route.body.__name__)}
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = []
    for name in route.parameters:
        pattern, max_length, description = PATH_PARAMETERS[name]
        schema: dict[str, Any] = {"type": "string", "pattern": f"^{pattern}$", "minLength": 1}
        schema["maxLength"] = max_length
        parameters.append(
            {"name": name, "in": "path", "required": True, "description": description,
             "schema": schema}
        )  # fmt: skip
    if route.query is not NoParameters:
        properties = _schema(route.query)["properties"]
        for name, field in properties.items():
            schema = {k: v for k, v in field.items() if k not in {"title", "description"}}
            parameters.append(
                {
                    "name": name,
                    "in": "query",
                    "required": False,
                    "description": field.get("description", ""),
                    "schema": schema,
                }
            )
    if route.conditional:
        header = "If-Match" if route.changes else "If-None-Match"
        parameters.append({"name": header, "in": "header", "schema": {"type": "string"}})
    if route.changes and route.needs is not Access.PUBLIC:
        schema = {"type": "string", "minLength": 1, "maxLength": idempotency.MAX_KEY}
        schema["pattern"] = "^[ -~]+$"
        parameters.append({"name": "Idempotency-Key", "in": "header", "schema": schema})
    return parameters


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(by_alias=True, ref_template=_REFERENCE)


def _responses(route: Route) -> dict[str, Any]:
    success: dict[str, Any] = {"description": "The request succeeded."}
    if route.answer is not None:
        schema = {"$ref": _REFERENCE.format(model=route.answer.__name__)}
        success["content"] = {route.media: {"schema": schema}}
    elif route.status not in {204, 303}:
        success["content"] = {route.media: {}}
    if route.conditional:
        success["headers"] = {"ETag": {"schema": {"type": "string"}}}
    responses = {str(route.status): success}
    if route.conditional and not route.changes:
        responses["304"] = {"description": "The object is unchanged."}
    errors = {429, 431, 503, 504, 422, *route.errors}
    if route.needs is not Access.PUBLIC:
        errors |= {401, 403}
    if "namespace" in route.parameters:
        errors |= {404, 502}
    if route.changes:
        errors |= {408, 409, 413, 415}
    problem = {ProblemDocument.MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}}
    for status in sorted(errors):
        responses[str(status)] = {"description": _DESCRIPTIONS[status], "content": problem}
    return responses


def written(routes: Sequence[Route]) -> str:
    """Return the document as JSON."""
    return json.dumps(document(routes), separators=(",", ":"), sort_keys=True)


STYLE = """\
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code { font-size: 0.95em; overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid; }
details { margin: 0.5rem 0; padding: 0.25rem 0.5rem; border: 1px solid #8888; border-radius: 6px; }
summary { cursor: pointer; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 0.2rem 0.6rem 0.2rem 0; }
"""


def html(routes: Sequence[Route]) -> str:
    """Return the document as one HTML page without scripts and without other origins."""
    spec = document(routes)
    text = markup.escape
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<title>Engineroom API</title><link rel="stylesheet" href="docs.css"></head><body><main>',
        f"<h1>Engineroom API {text(__version__)}</h1><p>{text(ABOUT)}</p>",
        '<p><a href="openapi.json">openapi.json</a></p>',
    ]
    for tag in spec["tags"]:
        parts.append(f"<h2>{text(tag['name'])}</h2>")
        for route in routes:
            if route.tag != tag["name"]:
                continue
            operation = spec["paths"][route.path][route.method.lower()]
            parts.append(
                f"<details><summary><code>{route.method} {text(route.path)}</code> "
                f"{text(route.summary)}</summary><p>{text(operation['description'])}</p>"
                f"<p>Needs <code>{text(str(route.needs))}</code>.</p>"
            )
            rows = [
                (f"{p['name']} ({p['in']})", p.get("description", ""))
                for p in operation["parameters"]
            ]
            if route.body is not None:
                rows += fields(route.body)
            if rows:
                parts.append("<table><tr><th>parameter</th><th>description</th></tr>")
                parts += [
                    f"<tr><td><code>{text(name)}</code></td><td>{text(description)}</td></tr>"
                    for name, description in rows
                ]
                parts.append("</table>")
            parts.append("</details>")
    return "".join([*parts, "</main></body></html>"])


def fields(model: type[BaseModel]) -> list[tuple[str, str]]:
    """Return the fields of a request body with their descriptions."""
    schema = _schema(model)
    required = set(schema.get("required", ()))
    rows = []
    for name, field in schema.get("properties", {}).items():
        parts = [_type(field)]
        if name not in required:
            parts.append(f"default `{json.dumps(field.get('default'))}`")
        if field.get("description"):
            parts.append(field["description"])
        rows.append((name, "; ".join(parts)))
    return rows


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "anyOf" in field:
        return " or ".join(_type(variant) for variant in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    return str(field.get("type", "any"))
