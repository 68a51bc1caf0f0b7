"""PromQL that others wrote, parsed and judged before it is sent to a Prometheus.

Needs promql-parser (extra ``promql``). That is compiled code whose time grows with the square of
the nesting, so a query is bounded before it is given to it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from engineroom.core.errors import InvalidInputError, Problem
from engineroom.core.validation.paths import shown

MAX_CHARACTERS = 4096
MAX_NESTING = 32
MAX_OPERATORS = 128
#: Range, offset and the subqueries around them: how far back one query may make a server read.
MAX_RANGE = timedelta(days=31)

# Strings and comments are told apart from the rest first: what stands in them counts nothing.
_TOKEN = re.compile(
    r"""(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`[^`]*`|\#[^\n]*)"""
    r"""|(?P<open>[({\[])|(?P<close>[)}\]])"""
    r"""|(?P<operator>[-+*/%^]|[=!<>]=?|=~|!~|\b(?:and|or|unless|atan2)\b)"""
)


@dataclass(frozen=True, slots=True)
class Query:
    """A query that is sound. ``longest`` is how far it reads back."""

    text: str
    #: The names of metrics that it reads; without those that only a matcher of __name__ tells.
    metrics: frozenset[str]
    longest: timedelta


def check_promql(text: str, *, path: str = "expr") -> Query:
    """What the query reads. Raises InvalidInputError that names ``path``.

    Refused is what Prometheus refuses (syntax, types, unknown functions), and what is too long, too
    deep, or reads more than ``MAX_RANGE`` back from one moment.
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
        return f"has the character {shown(f'U+{ord(control):04X}')}", "remove it"
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
    """Of each selector its metric's name, and how far it reads back with all that is around it."""
    found: list[tuple[str, timedelta]] = []
    around: list[timedelta] = []

    def entered(node: Any) -> bool:
        back = max(getattr(node, "offset", None) or timedelta(), timedelta())
        if isinstance(node, library.SubqueryExpr | library.MatrixSelector):
            around.append((node.range or timedelta()) + back)
        elif isinstance(node, library.VectorSelector):
            found.append((node.name or _matched(library, node), sum(around, back)))
        return True

    def left(node: Any) -> bool:
        if isinstance(node, library.SubqueryExpr | library.MatrixSelector):
            around.pop()
        return True

    library.walk(root, pre_visit=entered, post_visit=left)
    return found


def _matched(library: Any, selector: Any) -> str:
    """The name that a selector gives as ``{__name__="x"}``; "" if it names none."""
    for matcher in selector.matchers.matchers:
        if matcher.name == "__name__" and matcher.op == library.MatchOp.Equal:
            return str(matcher.value)
    return ""
