"""Versions as lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engineroom.cli.views.output_formats import table

if TYPE_CHECKING:
    from rich.table import Table


def version_table(document: dict[str, Any]) -> Table:
    """One line a part."""
    kubernetes = document.get("kubernetes")
    rows = [("engineroom", f"{document['client']['version']} (this program)")]
    if kubernetes is not None:
        none = "not installed"
        if not document["systemNamespaces"]:
            none = "unknown: name the namespace of the installation with --system-namespace"
        elif "Deployments" in document["notAllowedToRead"]:
            none = "unknown: you may not list Deployments"
        operators = ", ".join(entry["image"] for entry in document["operator"]) or none
        rows += [
            ("operator", operators),
            ("API", ", ".join(document["api"]) or "not installed"),
            ("Kubernetes", f"{kubernetes['version']} at {kubernetes['server']}"),
        ]
    return table(("", ""), rows, header=False)
