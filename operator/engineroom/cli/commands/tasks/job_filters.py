"""Options that select jobs, for `jobs list`, `jobs retry` and `jobs cancel`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated

import typer

from engineroom.cli.commands.times import parse_moment
from engineroom.cli.errors import UsageError

if TYPE_CHECKING:
    from datetime import datetime

    from engineroom.tasks import JobFilter


@dataclass(frozen=True, slots=True)
class FilterOptions:
    """Options that select jobs by function, text, time and id."""

    function: Annotated[
        str | None,
        typer.Option(
            "--function", metavar="PATTERN", help="Only jobs of this function: 'shop.jobs.*'."
        ),
    ] = None
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            metavar="TEXT",
            help="Only jobs with this text in the error message or the call.",
        ),
    ] = None
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="TIME",
            help=(
                "Only jobs since then: an age (2h, 1d12h) or a time (2026-01-31T12:00Z). It is "
                "compared with the time of the state: enqueued, started, due or ended."
            ),
        ),
    ] = None
    until: Annotated[
        str | None,
        typer.Option(
            "--until", metavar="TIME", help="Only jobs before then, in the form of --since."
        ),
    ] = None
    prefix: Annotated[
        str | None,
        typer.Option("--id", metavar="PREFIX", help="Only jobs whose id starts with this."),
    ] = None

    @property
    def any_given(self) -> bool:
        """True if any of the options is given."""
        return any(getattr(self, option.name) is not None for option in fields(self))

    def job_filter(self, now: datetime) -> JobFilter:
        """Return the filter of these options. Raises UsageError, InvalidTaskError."""
        from engineroom.tasks import JobFilter

        return JobFilter(
            function=self.function,
            text=self.text,
            before=_moment("--until", self.until, now),
            after=_moment("--since", self.since, now),
            prefix=self.prefix,
        )


@dataclass(frozen=True, slots=True)
class FailureFilterOptions(FilterOptions):
    """Options that select jobs, also by the failure of failed ones."""

    category: Annotated[
        str | None,
        typer.Option(
            "--category",
            metavar="WORD",
            help="Only failures that are transient, permanent or poison.",
        ),
    ] = None
    error: Annotated[
        str | None,
        typer.Option(
            "--error",
            metavar="PATTERN",
            help="Only failures of this exception class: '*Timeout*'.",
        ),
    ] = None

    def job_filter(self, now: datetime) -> JobFilter:
        """Return the filter of these options. Raises UsageError, InvalidTaskError."""
        from dataclasses import replace

        from engineroom.tasks import FailureCategory

        categories = [category.value for category in FailureCategory]
        if self.category is not None and self.category not in categories:
            raise UsageError(
                f"--category {self.category} does not exist",
                fix=f"use one of {', '.join(categories)}",
            )
        general = FilterOptions.job_filter(self, now)
        return replace(general, exception=self.error, category=self.category)


def _moment(option: str, text: str | None, now: datetime) -> datetime | None:
    return None if text is None else parse_moment(option, text, now, ago=True)
