"""Parsers, redactors and renderers of text that others write, and the worst texts for each."""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from engineroom.api import manifests
from engineroom.cli.views.output_formats import dump
from engineroom.core.errors import EngineroomError
from engineroom.core.redaction import redact, redact_object, redact_text
from engineroom.core.validation import documents
from engineroom.core.validation.cron import check_cron
from engineroom.core.validation.models import read_query
from engineroom.core.validation.promql import check_promql
from engineroom.manifests.apply import content, differences
from engineroom.manifests.plan import read_objects
from engineroom.ratelimit.limits.paths import normalized
from engineroom.ratelimit.limits.request import RequestView
from engineroom.tasks.inspection.arguments import read_call
from engineroom_worker.observability.logs import JsonFormatter

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Subject:
    """A function of a text; errors of the hierarchy are results like others."""

    name: str
    function: Callable[[Any], object]
    inputs: dict[str, Callable[[int], Any]]

    def run(self, text: object) -> None:
        """Call the function."""
        with contextlib.suppress(EngineroomError):
            self.function(text)


def repeated(unit: str, start: str = "", end: str = "") -> Callable[[int], str]:
    """Return a builder of texts of about ``size`` characters: the unit again and again."""

    def build(size: int) -> str:
        return start + unit * max(1, (size - len(start) - len(end)) // len(unit)) + end

    return build


def numbered(unit: str, start: str = "", end: str = "") -> Callable[[int], str]:
    """Return a builder like ``repeated``, with a running number for ``#`` in the unit."""

    def build(size: int) -> str:
        parts, length = [start], len(start) + len(end)
        number = 0
        while length < size:
            parts.append(unit.replace("#", f"{number:x}"))
            length += len(parts[-1])
            number += 1
        return "".join([*parts, end])

    return build


def nested(key: str, depth: int, leaves: Callable[[int], str]) -> Callable[[int], str]:
    """Return a builder of YAML flow text: maps in maps under long keys, with leaves in the last."""

    def build(size: int) -> str:
        start = "".join(f"{{{key}: " for _ in range(depth))
        return start + leaves(max(0, size - len(start) - depth)) + "}" * depth

    return build


POOL = (
    "apiVersion: engineroom.dev/v1alpha1\nkind: WorkerPool\n"
    "metadata: {name: mail, namespace: shop}\nspec:\n  queues: [{name: mail}]\n"
)

TEXTS: dict[str, Callable[[int], Any]] = {
    "words": repeated("a"),
    "dots": repeated("a."),
    "tokens": repeated("eyJaaaaaaaa-"),
    "segments": repeated("eyJaaaaaaaa."),
    "schemes": repeated("a://"),
    "users": repeated("a:b@c://"),
    "passwords": repeated("password "),
    "assignments": repeated("token="),
    "quotes": repeated('token="'),
    "escapes": repeated('"token":"\\"'),
    "backslashes": repeated("secret\\"),
    "keys": repeated("-----BEGIN RSA PRIVATE KEY-----"),
    "begins": repeated("-----BEGIN "),
    "bearers": repeated("basic "),
    "api keys": repeated("erk_-"),
    "spaces": repeated(" "),
    "spaces after a key": repeated(" ", start="token"),
    "at signs": repeated("@", start="redis://:x"),
    "brackets": repeated("["),
    "objects": repeated('{"a":'),
}

YAMLS: dict[str, Callable[[int], Any]] = {
    "numbers": repeated("1,", "[", "]"),
    "lists": repeated("[],", "[", "]"),
    "maps": repeated("{},", "[", "]"),
    "fields": numbered("k#: 1\n"),
    "short fields": numbered("#: \n"),
    "lines": repeated("- a\n"),
    "long keys": nested("k" * 500, 4, numbered("a#: 1, ", "{", "}")),
    "long strange keys": nested("'" + "k." * 250 + "'", 4, numbered("a#: 1, ", "{", "}")),
    "documents": repeated("---\na: 1\n"),
    "hexadecimal": repeated("f", "a: 0x"),
    "digits": repeated("9", "a: "),
    "quoted": repeated("\\x41", 'a: "', '"'),
    "unterminated": repeated("a", 'a: "'),
    "anchors": numbered("&a# 1,", "[", "]"),
    "merges": numbered("<<: {a#: 1}, ", "{", "}"),
    "comments": repeated("# a\n"),
    "tabs": repeated("\t", "{"),
    "times": repeated("1:1:1,", "[", "]"),
    "underscores": repeated("1_", "a: 1"),
}

JSONS: dict[str, Callable[[int], Any]] = {
    "numbers": repeated("1,", "[", "1]"),
    "lists": repeated("[],", "[", "[]]"),
    "maps": repeated("{},", "[", "{}]"),
    "fields": numbered('"#":1,', "{", '"x":1}'),
    "quotes": repeated('"'),
    "escapes": repeated("\\\\", '"', '"'),
    "open": repeated("["),
    "digits": repeated("9"),
    "surrogates": repeated("\\ud800", '"', '"'),
}

MANIFESTS: dict[str, Callable[[int], Any]] = {
    **YAMLS,
    "unknown fields": numbered("  field#: 1\n", POOL),
    "unknown long fields": numbered("  " + "f" * 200 + "#: 1\n", POOL),
    "queues": numbered("  - name: q#\n", POOL.replace(" [{name: mail}]", "")),
    "wrong queues": numbered("  - {nme: 1}\n", POOL.replace(" [{name: mail}]", "")),
    "wrong objects": repeated("---\n" + POOL + "  que: 1\n"),
    "small wrong objects": repeated("---\napiVersion: engineroom.dev/v1alpha1\nkind: WorkerPol\n"),
    "deep template": nested("k" * 60, 30, numbered("secretKeyRef#: {name: a, key: b}, ", "{", "}")),
    "environment": numbered(
        "        - {name: A#, valueFrom: {secretKeyRef: {name: a, key: b}}}\n",
        POOL + "  template:\n    spec:\n      containers:\n      - name: app\n        env:\n",
    ),
    "containers": numbered(
        "      - {name: a#, image: a, securityContext: {privileged: true}}\n",
        POOL + "  template:\n    spec:\n      containers:\n",
    ),
    "list of objects": numbered(
        "{apiVersion: engineroom.dev/v1alpha1, kind: X#},", "{kind: List, items: [", "]}"
    ),
    "labels": numbered("    k#: v\n", POOL + "metadata2:\n  labels:\n"),
}


OUTPUTS: dict[str, Callable[[int], Any]] = {
    "fields": numbered('"#":1,', "{", '"x":1}'),
    "numbers": repeated("1,", "[", "1]"),
    "lists": repeated("[],", "[", "[]]"),
    "text": repeated("\\n", '["', '"]'),
}


class Filter(BaseModel):
    """A query with a list."""

    name: list[str] = []
    limit: int = 1


def _log(text: str) -> str:
    record = logging.LogRecord("a", logging.INFO, "", 0, text, (), None)
    return JsonFormatter().format(record)


def _diff(text: str) -> list[object]:
    objects = read_objects("shop", text)
    return [list(differences(content(None), content(obj))) for _, obj in objects]


def _path(path: str) -> object:
    return normalized(RequestView("GET", path, "", {}))


def _call(size: int) -> bytes:
    return pickle.dumps(("f", None, (["a"] * (size // 3),), {}))


SUBJECTS = (
    Subject("redact_text", redact_text, TEXTS),
    Subject("redact", redact, TEXTS),
    Subject("redact_object", redact_object, {**TEXTS, **JSONS}),
    Subject("worker log", _log, TEXTS),
    Subject("read", lambda text: list(documents.read(text)), YAMLS),
    Subject("read_json", documents.read_json, JSONS),
    Subject("lint", lambda text: manifests.check([("a.yaml", text)]), MANIFESTS),
    Subject("diff", _diff, MANIFESTS),
    Subject(
        "cron", check_cron, {"stars": repeated("* "), "lists": repeated("1,", end="1 * * * *")}
    ),
    Subject(
        "promql",
        check_promql,
        {
            "sums": repeated("a+", end="a"),
            "parentheses": repeated("("),
            "braces": repeated('a{b="c"}+', end="a"),
            "quotes": repeated('"'),
            "words": repeated("a "),
            "comments": repeated("#\n"),
        },
    ),
    Subject(
        "query",
        lambda text: read_query(Filter, text),
        {
            "names": repeated("name=a&"),
            "unknown": numbered("n#=a&"),
            "escapes": repeated("%41", "name="),
            "separators": repeated("&"),
        },
    ),
    Subject(
        "path",
        _path,
        {
            "slashes": repeated("/"),
            "dots": repeated("/.."),
            "segments": repeated("/a/.."),
            "escapes": repeated("%2e%2e%2f", "/"),
            "percent signs": repeated("%25", "/"),
        },
    ),
    Subject("job arguments", read_call, {"strings": _call}),
    Subject("yaml output", lambda text: dump(json.loads(text), "yaml"), OUTPUTS),
    Subject("json output", lambda text: dump(json.loads(text), "json"), OUTPUTS),
)
