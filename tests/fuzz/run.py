"""Feeds inputs to the parsers and checks: no crash, no invalid input accepted."""

from __future__ import annotations

import asyncio
import io
import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from croniter import croniter

from engineroom.api import validation
from engineroom.core.errors import EngineroomError, InvalidSpecError
from engineroom.core.validation.cron import cron_problem
from engineroom.core.validation.documents import UnreadableError, read, read_json
from engineroom.core.validation.files import HEAD, ArchiveLimits, check_archive, detect
from engineroom.core.validation.forms import FormLimits, read_form
from engineroom.core.validation.promql import check_promql
from tests.fuzz import judge, mutate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_START = datetime(2026, 1, 1, tzinfo=UTC)
_LIMITS = ArchiveLimits(members=50, member=100_000, total=300_000)
_FORM = FormLimits(parts=10, field=2_000, file=20_000, total=30_000,
                   types=frozenset({"text/plain", "image/png"}))  # fmt: skip
_QUERIES = (
    b"sum by (job) (rate(http_total{code=~'5..'}[5m])) > 1",
    b"max_over_time(up[1h:1m] offset 1d) and on (a) group_left () b",
    b"histogram_quantile(0.9, sum by (le) (rate(x_bucket[5m])))",
)
_LINES = (b"0 8 * * 1-5", b"*/5 0-6,22 1,15 JAN-MAR MON", b"59 23 31 12 *")
_FORM_PARTS = (
    b'Content-Disposition: form-data; name="a"\r\n\r\nvalue\r\n',
    b'Content-Disposition: form-data; name="f"; filename="x.txt"\r\n\r\nhello\r\n',
)
_FORMS = [b"".join(b"--X\r\n" + part for part in _FORM_PARTS) + b"--X--\r\n"]
_HEADS = (
    b"\x89PNG\r\n\x1a\n\0\0", b"GIF89a..", b"%PDF-1.7\n", b"PK\x03\x04\x14\0",
    b"RIFF\0\0\0\0WEBPVP8 ", b"\x1f\x8b\x08\0", b"text\n\twith \xe2\x82\xac",
    b"\xff\xd8\xff\xe0", bytes(257) + b"ustar\0",
)  # fmt: skip


@dataclass
class Tally:
    """Counts of accepted and refused inputs by kind, and the failures."""

    taken: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    crashed: list[str] = field(default_factory=list)
    wrongly: list[str] = field(default_factory=list)
    slowest: float = 0.0
    slow: str = ""

    def count(self) -> int:
        """The total number of inputs."""
        return self.taken.total() + self.refused.total() + len(self.crashed)


class Fuzz:
    """The inputs of one seed, in an order that depends on the seed only."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._documents = mutate.documents()
        self._objects = mutate.objects()
        self._json = [json.dumps(manifest).encode() for manifest in self._objects]
        self._kinds: tuple[tuple[int, str, Callable[[], bytes], Callable[[bytes], str]], ...] = (
            (25, "yaml", lambda: self._bent(self._documents), self._yaml),
            (15, "json", self._some_json, self._read_json),
            (20, "object", self._object, self._validate),
            (15, "archive", lambda: mutate.archive(self._random), self._archive),
            (10, "file", lambda: self._bent(_HEADS), self._file),
            (5, "form", lambda: self._bent(_FORMS), self._form),
            (5, "promql", lambda: self._bent(_QUERIES, 3000), self._promql),
            (5, "cron", lambda: self._bent(_LINES, 300), self._cron),
        )
        self._weights = [weight for weight, *_ in self._kinds]

    def run(self, count: int, tally: Tally) -> None:
        """Feed ``count`` more inputs."""
        for _ in range(count):
            ((_, kind, make, feed),) = self._random.choices(self._kinds, self._weights)
            data = make()
            began = time.perf_counter()
            try:
                wrong = feed(data)
            except EngineroomError as error:
                if not 400 <= error.http_status < 500 or len(str(error)) > 50_000:
                    tally.crashed.append(f"{kind}: {error!r:.200} of {data[:300]!r}")
                else:
                    tally.refused[kind] += 1
            except Exception as error:  # noqa: BLE001 - that is what is looked for
                tally.crashed.append(f"{kind}: {error!r:.300} of {data[:300]!r}")
            else:
                tally.taken[kind] += 1
                if wrong:
                    tally.wrongly.append(f"{kind}: {wrong} of {data[:300]!r}")
            spent = time.perf_counter() - began
            if spent > tally.slowest:
                tally.slowest, tally.slow = spent, f"{kind}: {data[:200]!r}"

    def _bent(self, corpus: Any, most: int = 20_000) -> bytes:
        return mutate.mutated(self._random, self._random.choice(corpus), corpus, most)

    def _yaml(self, data: bytes) -> str:
        text = data.decode("utf-8", self._random.choice(("replace", "ignore", "surrogateescape")))
        documents = list(read(text))
        for document in documents:
            json.dumps(document.value, default=str)
        return judge.yaml_wrong(text)

    def _some_json(self) -> bytes:
        if self._random.random() < 0.3:
            return json.dumps(mutate.value(self._random)).encode()
        return self._bent(self._json)

    def _read_json(self, data: bytes) -> str:
        wrong, said = judge.json_wrong(data)
        try:
            value = read_json(data)
        except UnreadableError:
            # JSON has one meaning, so here what is sound must be taken as well.
            return "" if wrong else "refused, and is sound"
        if not wrong and json.dumps(value) != json.dumps(said):
            return "is read as something else"
        return wrong

    def _object(self) -> bytes:
        root = self._random.choice(self._objects)
        return json.dumps(mutate.changed(self._random, root)).encode()

    def _validate(self, data: bytes) -> str:
        thing = json.loads(data)
        problems = validation.problems(thing)
        validation.warnings(thing)
        if problems:
            raise InvalidSpecError(problems[:3])
        return judge.object_wrong(thing)

    def _archive(self, data: bytes) -> str:
        check_archive(io.BytesIO(data), _LIMITS)
        return judge.archive_wrong(data)

    def _file(self, data: bytes) -> str:
        kind = detect(data[:HEAD])
        return "" if kind is None else judge.type_wrong(kind, data[:HEAD])

    def _form(self, data: bytes) -> str:
        piece = self._random.choice((1, 7, 100, 100_000))

        async def body() -> AsyncIterator[bytes]:
            for at in range(0, len(data), piece):
                yield data[at : at + piece]

        async def run() -> str:
            async with read_form("multipart/form-data; boundary=X", body(), _FORM) as form:
                for file in form.files.values():
                    content = file.content.read()
                    if file.type not in _FORM.types or content not in data:
                        return "a file that was not sent"
                return "" if all(v.encode() in data for v in form.fields.values()) else "not sent"

        return asyncio.run(run())

    def _promql(self, data: bytes) -> str:
        query = check_promql(data.decode("utf-8", "replace"))
        return "" if query.text.strip() else "empty"

    def _cron(self, data: bytes) -> str:
        line = data.decode("utf-8", "replace")
        if (problem := cron_problem(line)) is not None:
            raise UnreadableError(1, *problem)
        return "" if len(line.split()) == 5 and croniter.match(line, _next(line)) else "never ticks"


def _next(line: str) -> datetime:
    tick: datetime = croniter(line, _START).get_next(datetime)
    return tick


def memory() -> int:
    """Return the resident memory of this process in bytes."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
