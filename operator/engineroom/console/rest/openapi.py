"""The API's document (OpenAPI 3.1), made of the table of routes; also as a page and as docs/api.md.

``python -m engineroom.console.rest.openapi`` writes docs/api.md, with ``--check`` it compares.
"""

from __future__ import annotations

import argparse
import html as markup
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

from engineroom import __version__
from engineroom.auth.login.sessions import COOKIE, CSRF_HEADER
from engineroom.auth.permissions import Access
from engineroom.console.rest import idempotency
from engineroom.console.rest.routing import PATH_PARAMETERS, Nothing
from engineroom.core.error_responses import ProblemDocument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

    from engineroom.console.rest.routing import Route

PAGE = Path("docs/api.md")
_REFERENCE = "#/components/schemas/{model}"

_ABOUT = (
    "The API of Engineroom. Send a bearer token: one of ours, an API key, or one of the cluster "
    "(kubectl create token). A browser sends the cookie of its session, and its CSRF token with "
    "every change. Errors are problem documents (RFC 9457) whose `code` is stable. Lists go by "
    "`cursor`. A change may carry an Idempotency-Key: sent again within a day it is not done "
    "again. An object that has an ETag may be changed with If-Match."
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

_MEANINGS = {
    400: "The request cannot be read.",
    401: "It is not known who asks.",
    403: "Who asks may not do this.",
    404: "There is no such object here.",
    405: "Not with this method.",
    408: "The body came too slowly.",
    409: "It conflicts with what is there; see `code`.",
    410: "What the request goes on from is gone.",
    412: "If-Match names another version.",
    413: "The body is too large.",
    415: "Only application/json is read.",
    422: "Something in the request is not valid; `errors` names it.",
    429: "Too many requests; see Retry-After.",
    431: "The headers are too large.",
    502: "The API server answered with a failure.",
    503: "Redis or the API server does not answer; try again.",
    504: "Something took too long; try again.",
}


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI document."""
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
        "info": {"title": "Engineroom", "version": __version__, "description": _ABOUT},
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
    made: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "description": " ".join((route.handler.__doc__ or "").split()),
        "tags": [route.tag],
        "parameters": _parameters(route),
        "responses": _responses(route),
        "x-permission": str(route.needs),
    }
    if route.needs is Access.PUBLIC:
        made["security"] = []
    else:
        session: dict[str, list[str]] = {"session": []}
        if route.changes:
            session["csrf"] = []
        made["security"] = [{"bearer": []}, session]
    if route.body is not None:
        schema = {"$ref": _REFERENCE.format(model=route.body.__name__)}
        made["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return made


def _parameters(route: Route) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name in route.parameters:
        pattern, longest, meaning = PATH_PARAMETERS[name]
        schema: dict[str, Any] = {"type": "string", "pattern": f"^{pattern}$", "minLength": 1}
        schema["maxLength"] = longest
        found.append(
            {"name": name, "in": "path", "required": True, "description": meaning, "schema": schema}
        )
    if route.query is not Nothing:
        properties = _schema(route.query)["properties"]
        for name, field in properties.items():
            schema = {k: v for k, v in field.items() if k not in {"title", "description"}}
            found.append(
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
        found.append({"name": header, "in": "header", "schema": {"type": "string"}})
    if route.changes and route.needs is not Access.PUBLIC:
        schema = {"type": "string", "minLength": 1, "maxLength": idempotency.MAX_KEY}
        schema["pattern"] = "^[ -~]+$"
        found.append({"name": "Idempotency-Key", "in": "header", "schema": schema})
    return found


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(by_alias=True, ref_template=_REFERENCE)


def _responses(route: Route) -> dict[str, Any]:
    good: dict[str, Any] = {"description": "Done."}
    if route.answer is not None:
        schema = {"$ref": _REFERENCE.format(model=route.answer.__name__)}
        good["content"] = {route.media: {"schema": schema}}
    elif route.status not in {204, 303}:
        good["content"] = {route.media: {}}
    if route.conditional:
        good["headers"] = {"ETag": {"schema": {"type": "string"}}}
    found = {str(route.status): good}
    if route.conditional and not route.changes:
        found["304"] = {"description": "As it was."}
    errors = {429, 431, 503, 504, 422, *route.errors}
    if route.needs is not Access.PUBLIC:
        errors |= {401, 403}
    if "namespace" in route.parameters:
        errors |= {404, 502}
    if route.changes:
        errors |= {408, 409, 413, 415}
    problem = {ProblemDocument.MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}}
    for status in sorted(errors):
        found[str(status)] = {"description": _MEANINGS[status], "content": problem}
    return found


def written(routes: Sequence[Route]) -> str:
    """The document as JSON."""
    return json.dumps(document(routes), separators=(",", ":"), sort_keys=True)


# -- for people -----------------------------------------------------------------------------------

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
    """The document as one page: no script, no other origin."""
    said = document(routes)
    text = markup.escape
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<title>Engineroom API</title><link rel="stylesheet" href="docs.css"></head><body><main>',
        f"<h1>Engineroom API {text(__version__)}</h1><p>{text(_ABOUT)}</p>",
        '<p><a href="openapi.json">openapi.json</a></p>',
    ]
    for tag in said["tags"]:
        parts.append(f"<h2>{text(tag['name'])}</h2>")
        for route in routes:
            if route.tag != tag["name"]:
                continue
            operation = said["paths"][route.path][route.method.lower()]
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
                rows += _fields(route.body)
            if rows:
                parts.append("<table><tr><th>what</th><th>meaning</th></tr>")
                parts += [
                    f"<tr><td><code>{text(name)}</code></td><td>{text(meaning)}</td></tr>"
                    for name, meaning in rows
                ]
                parts.append("</table>")
            parts.append("</details>")
    return "".join([*parts, "</main></body></html>"])


def _fields(model: type[BaseModel]) -> list[tuple[str, str]]:
    schema = _schema(model)
    required = set(schema.get("required", ()))
    found = []
    for name, field in schema.get("properties", {}).items():
        told = [_type(field)]
        if name not in required:
            told.append(f"default `{json.dumps(field.get('default'))}`")
        if field.get("description"):
            told.append(field["description"])
        found.append((name, "; ".join(told)))
    return found


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "anyOf" in field:
        return " or ".join(_type(each) for each in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{each}`" for each in field["enum"])
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    return str(field.get("type", "any"))


def markdown(routes: Sequence[Route]) -> str:
    """The text of docs/api.md."""
    lines = [
        "# The API",
        "",
        "Generated by `make generate` from the table of routes; `make verify` compares. Served by",
        "`engineroom-api`; its own document is at `/api/v1/openapi.json`, a page of it at",
        "`/api/v1/docs`.",
        "",
        *_wrapped(_ABOUT),
        "",
        "Codes of errors: [reference/errors.md](reference/errors.md). Rights: [auth.md](auth.md).",
        "How the process works: [api-process.md](api-process.md).",
        "The kinds: [reference/workerpool.md](reference/workerpool.md),",
        "[reference/ratelimitpolicy.md](reference/ratelimitpolicy.md).",
        "",
    ]
    for tag in dict.fromkeys(route.tag for route in routes):
        lines += [f"## {tag.capitalize()}", ""]
        lines += ["| request | needs | what it does |", "|---|---|---|"]
        for route in routes:
            if route.tag == tag:
                lines.append(
                    f"| `{route.method} {route.path}` | `{route.needs}` | {route.summary} |"
                )
        for model in dict.fromkeys(r.body for r in routes if r.tag == tag and r.body is not None):
            doc = " ".join((model.__doc__ or "").split())
            lines += ["", f"`{model.__name__}`: {doc}", "", "| field | |", "|---|---|"]
            lines += [f"| `{name}` | {_cell(meaning)} |" for name, meaning in _fields(model)]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _wrapped(text: str) -> list[str]:
    return re.findall(r"(?:.{1,118})(?:\s|$)", text)


def main(arguments: list[str] | None = None) -> int:
    """Write or compare docs/api.md; the exit status."""
    from engineroom.console.rest.route_table import ROUTES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; compare")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository (default: here)")
    options = parser.parse_args(arguments)
    path = options.root / PAGE
    text = markdown(ROUTES)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return 0
    print(f"{path}: {'differs; run make generate' if options.check else 'written'}")
    if options.check:
        return 1
    path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
