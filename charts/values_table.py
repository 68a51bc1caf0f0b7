"""Write the table of values to docs/deployment.md; with --check, compare.

Descriptions come from values.schema.json, defaults from values.yaml.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
CHART = HERE / "engineroom"
PAGE = HERE.parent / "docs/deployment.md"
BEGIN, END = "<!-- values: charts/values_table.py -->", "<!-- end of values -->"
#: Described in one row: the fields below are those of Kubernetes.
WHOLE = ("resources", "serviceAccount")
#: Values that all components share; described once.
SHARED = (
    "podLabels",
    "podAnnotations",
    "nodeSelector",
    "tolerations",
    "affinity",
    "topologySpreadConstraints",
    "priorityClassName",
    "terminationGracePeriodSeconds",
    "extraEnv",
)


def rows(schema: dict[str, Any], defaults: Any, path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield name, default and description of every value."""
    for name, child in schema["properties"].items():
        if name == "global" or (path and name in SHARED):
            continue
        value = defaults[name]
        if "properties" in child and name not in WHOLE:
            yield from rows(child, value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value, child["description"]


def shared(schema: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Yield the values that operator, webhooks, API and Redis share."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())["operator"]
    for name in SHARED:
        yield (
            name,
            defaults[name],
            schema["properties"]["operator"]["properties"][name]["description"],
        )


def table(values: Iterator[tuple[str, Any, str]]) -> str:
    """Format the values as a Markdown table."""
    lines = ["| value | default | description |", "|---|---|---|"]
    for name, value, description in values:
        default = "" if value == "" else f"`{json.dumps(value)}`"
        lines.append(f"| `{name}` | {default} | {description} |")
    return "\n".join(lines)


def section() -> str:
    """Return the section between the page's markers."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    own = table(rows(schema, defaults))
    common = table(shared(schema))
    return (
        f"{BEGIN}\n{own}\n\nThe components `operator`, `webhooks`, `api` and `redis` also have the "
        f"following values, as far as they apply:\n\n{common}\n{END}"
    )


def main(arguments: list[str]) -> int:
    """Write the table; with --check, return 1 if the page differs."""
    old = PAGE.read_text()
    new = re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: section(), old, flags=re.DOTALL)
    if "--check" in arguments:
        return int(old != new)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
