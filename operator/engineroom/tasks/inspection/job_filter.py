"""A filter of jobs, by names, text, id and time."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from engineroom.tasks.errors import InvalidTaskError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class JobFilter:
    """A filter of jobs; a job has to meet all of its conditions.

    ``function`` and ``exception`` are shell patterns such as ``mail.*``. ``text`` is a part of the
    exception's message or of the job's description, and ``prefix`` the beginning of the job's id.
    """

    function: str | None = None
    exception: str | None = None
    category: str | None = None
    text: str | None = None
    before: datetime | None = None
    after: datetime | None = None
    prefix: str | None = None

    def __post_init__(self) -> None:
        for name in ("function", "exception", "category", "text", "prefix"):
            value = getattr(self, name)
            if value is not None and not 0 < len(value) <= 200:
                raise InvalidTaskError(name, f"{len(value)} characters", "use 1 to 200")
        for name in ("before", "after"):
            value = getattr(self, name)
            if value is not None and value.tzinfo is None:
                raise InvalidTaskError(name, "has no time zone", "use datetime.now(UTC) and such")

    def matches(
        self,
        job_id: str,
        function: str,
        exception: str,
        category: str,
        texts: Sequence[str],
        at: datetime | None,
    ) -> bool:
        """Return whether a job meets the filter.

        ``at`` is the time that is relevant in the job's state. A job without one meets no
        condition on the time.
        """
        return (
            (self.function is None or fnmatchcase(function, self.function))
            and (self.exception is None or fnmatchcase(exception, self.exception))
            and (self.category is None or category == self.category)
            and (self.text is None or any(self.text in value for value in texts))
            and (self.prefix is None or job_id.startswith(self.prefix))
            and (self.before is None or (at is not None and at < self.before))
            and (self.after is None or (at is not None and at > self.after))
        )

    def dumps(self) -> str:
        """Return the filter as JSON."""
        times = {"before": self.before, "after": self.after}
        times_json = {name: at and at.isoformat() for name, at in times.items()}
        return json.dumps({**asdict(self), **times_json})

    @classmethod
    def loads(cls, stored: str) -> JobFilter:
        """Return the filter from the JSON of ``dumps``."""
        fields = json.loads(stored)
        for name in ("before", "after"):
            fields[name] = fields[name] and datetime.fromisoformat(fields[name])
        return cls(**fields)
