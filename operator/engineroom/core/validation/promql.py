"""Validation of untrusted PromQL before it is sent to a Prometheus.

Needs promql-parser (extra ``promql``). Its parsing time grows with the square of the nesting, so
limits are checked before parsing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from engineroom.core.errors import InvalidInputError, Problem
from engineroom.core.validation.paths import quoted

MAX_CHARACTERS = 4096
MAX_NESTING = 32
MAX_OPERATORS = 128
#: How far back a query may read, in ranges, offsets and subqueries together.
MAX_RANGE = timedelta(days=31)

# Strings and comments match first, because operators and brackets in them do not count.
_TOKEN = re.compile(
    r"""(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`[^`]*`|\#[^\n]*)"""
    r"""|(?P<open>[({\[])|(?P<close>[)}\]])"""
    r"""|(?P<operator>[-+*/%^]|[=!<>]=?|=~|!~|\b(?:and|or|unless|atan2)\b)"""
)


@dataclass(frozen=True, slots=True)
class Query:
    """A valid query. ``longest`` is how far back it reads."""

    text: str
    #: Names of the metrics that it reads, without those selected by a regular expression.
    metrics: frozenset[str]
    longest: timedelta


def check_promql(text: str, *, path: str = "expr") -> Query:
    """Parse and check a query; raise InvalidInputError for ``path``.

    It refuses queries that Prometheus refuses (syntax, types, unknown functions), and those that
    are too long, too deep, or read further back than ``MAX_RANGE``.
    """
    import promql_parser

    problem = _bounds(text)
    if problem is None:
        try:
            root = promql_parser.parse(text)
        except ValueError as error:
            reason = " ".join(str(error).split())[:200] or "it cannot be parsed"
            problem = ("is not PromQL: " + reason, "correct it")
    if problem is None:
        selectors = _selectors(promql_parser, root)
        longest = max((r for _, r in selectors), default=timedelta())
        if longest <= MAX_RANGE:
            return Query(text, frozenset(n for n, _ in selectors if n), longest)
        problem = (f"reads {longest.days} days back", f"read at most {MAX_RANGE.days} days")
    raise InvalidInputError([Problem(path, *problem)])


def _bounds(text: str) -> tuple[str, str] | None:
    if not text.strip():
        return "is empty", "write a query such as up == 0"
    if len(text) > MAX_CHARACTERS:
        return (
            f"has {len(text)} characters",
            f"write at most {MAX_CHARACTERS}",
        )
    control = next((c for c in text if not c.isprintable() and c not in "\n\t\r"), None)
    if control is not None:
        return f"has the character {quoted(f'U+{ord(control):04X}')}", "remove it"
    depth = operators = 0
    for match in _TOKEN.finditer(text):
        depth += (match["open"] is not None) - (match["close"] is not None)
        operators += match["operator"] is not None
        if depth > MAX_NESTING:
            return f"is nested deeper than {MAX_NESTING}", "use a recording rule"
        if operators > MAX_OPERATORS:
            return f"has more than {MAX_OPERATORS} operators", "use a recording rule"
    return None


def _selectors(library: Any, root: Any) -> list[tuple[str, timedelta]]:
    """Return each selector's metric name and how far back it reads, outer subqueries included."""
    selectors: list[tuple[str, timedelta]] = []
    outer: list[timedelta] = []

    def entered(node: Any) -> bool:
        back = max(getattr(node, "offset", None) or timedelta(), timedelta())
        if isinstance(node, library.SubqueryExpr | library.MatrixSelector):
            outer.append((node.range or timedelta()) + back)
        elif isinstance(node, library.VectorSelector):
            selectors.append((node.name or _matched_name(library, node), sum(outer, back)))
        return True

    def left(node: Any) -> bool:
        if isinstance(node, library.SubqueryExpr | library.MatrixSelector):
            outer.pop()
        return True

    library.walk(root, pre_visit=entered, post_visit=left)
    return selectors


def _matched_name(library: Any, selector: Any) -> str:
    """Return the metric name of a matcher ``{__name__="x"}``, or "" without one."""
    for matcher in selector.matchers.matchers:
        if matcher.name == "__name__" and matcher.op == library.MatchOp.Equal:
            return str(matcher.value)
    return ""
