"""Generates docs/api.md from the route table.

``python -m engineroom.console.reference`` writes the page; with ``--check`` it compares.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engineroom.console.rest.openapi import ABOUT, fields
from engineroom.console.route_table import ROUTES
from engineroom.core.reference import write_page

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engineroom.console.rest.routing import Route

PAGE = Path("docs/api.md")


def markdown(routes: Sequence[Route]) -> str:
    """Return the text of docs/api.md."""
    lines = [
        "# The REST API",
        "",
        "`make generate` generates this page from the route table, and `make verify` checks it.",
        "`engineroom-api` serves the API, its OpenAPI document at `/api/v1/openapi.json`, and an",
        "HTML page of it at `/api/v1/docs`.",
        "",
        *_wrap(ABOUT),
        "",
        "Error codes: [reference/errors.md](reference/errors.md). Permissions: [auth.md](auth.md).",
        "The process: [api-process.md](api-process.md).",
        "Kinds: [reference/workerpool.md](reference/workerpool.md),",
        "[reference/ratelimitpolicy.md](reference/ratelimitpolicy.md).",
        "",
    ]
    for tag in dict.fromkeys(route.tag for route in routes):
        lines += [f"## {tag.capitalize()}", ""]
        lines += ["| request | permission | summary |", "|---|---|---|"]
        for route in routes:
            if route.tag == tag:
                lines.append(
                    f"| `{route.method} {route.path}` | `{route.needs}` | {route.summary} |"
                )
        for model in dict.fromkeys(r.body for r in routes if r.tag == tag and r.body is not None):
            doc = " ".join((model.__doc__ or "").split())
            lines += ["", f"`{model.__name__}`: {doc}", "", "| field | |", "|---|---|"]
            lines += [f"| `{name}` | {_cell(text)} |" for name, text in fields(model)]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _wrap(text: str) -> list[str]:
    return re.findall(r"(?:.{1,118})(?:\s|$)", text)


def main(arguments: list[str] | None = None) -> int:
    """Write or compare docs/api.md; return the exit status."""
    return write_page(
        PAGE, lambda: markdown(ROUTES), arguments, "engineroom.console.reference", __doc__
    )


if __name__ == "__main__":
    sys.exit(main())
