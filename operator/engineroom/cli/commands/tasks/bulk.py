"""Bulk changes of jobs through the API: count, confirm, start the operation, show its progress."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING
from urllib.parse import quote

from engineroom.cli.commands.output import print_result
from engineroom.cli.commands.progress import progress_bar
from engineroom.cli.errors import CliError, RefusedError, UnreachableError, program
from engineroom.cli.views.text import count

if TYPE_CHECKING:
    from engineroom.cli.app.context import CommandContext
    from engineroom.cli.connections.model import Document
    from engineroom.cli.views.output_formats import OutputFormat
    from engineroom.tasks import JobFilter, State

_LOOK_EVERY = 1.0
#: Seconds for which the API may be away while an operation is watched.
_PATIENCE = 60.0
#: How often a request whose answer was lost is sent.
_TRIES = 3
_FILTERS = ("function", "exception", "category", "text", "prefix", "before", "after")
_DONE = {"retry": "put back", "cancel": "cancelled"}


class BulkOperations:
    """Operations of the session's namespace. All methods raise CliError."""

    def __init__(self, context: CommandContext) -> None:
        self._context = context
        self._path = f"/namespaces/{context.namespace}/operations"

    def change(
        self,
        action: str,
        state: State,
        queue: str,
        where: JobFilter,
        output: OutputFormat,
        *,
        yes: bool,
        stop: bool = False,
    ) -> None:
        """Count the matching jobs, ask for confirmation, start the operation and wait for its end.

        ``action`` is retry or cancel. If more jobs match than were confirmed, the server changes
        none. Raises NothingMatchesError.
        """
        from engineroom.tasks import NothingMatchesError

        context = self._context
        body = selection(queue, where)
        if action == "cancel":
            body |= {"state": state.value, "stop": stop}
        counted = context.api.post(f"{self._path}/{action}", body | {"dryRun": True})
        matched, complete = counted["matched"], counted["complete"]
        if complete and not matched:
            raise NothingMatchesError(
                f"where: matches none of the {state.value} jobs of {queue!r}; "
                f"`{program()} jobs list --state {state.value}` shows them"
            )
        number = f"{'' if complete else 'at least '}{count(matched, 'job')}"
        context.note(f"matches {number} of queue {queue}")
        question = f"Put {number} back on {queue}?"
        if action == "cancel":
            question = f"Cancel {number} and what waits for them?"
        context.confirm(question, yes=yes)
        if not yes and complete:
            body["atMost"] = matched
        begun = self._begin(f"{self._path}/{action}", body)
        context.note(f"operation {begun['id']} has begun at the server")
        self.watch(begun["id"], output)

    def _begin(self, path: str, body: Document) -> Document:
        context = self._context
        # With the key a request that comes twice is done once, so a lost answer is asked for again.
        key = {"Idempotency-Key": secrets.token_hex(16)}
        for left in reversed(range(_TRIES)):
            try:
                return context.api.post(path, body, key)
            except (UnreachableError, RefusedError) as error:
                code = error.context.get("code")
                lost = isinstance(error, UnreachableError) and code is None
                if left == 0 or not (lost or code == "idempotency_key_busy"):
                    raise
                context.note(f"{error.what}; asking again")
                context.sleep(1.0)
        raise AssertionError

    def watch(self, operation: str, output: OutputFormat) -> None:
        """Show the progress of an operation until it ends. An interrupt ends only the display.

        Raises RefusedError if the operation was stopped, CliError if it failed.
        """
        context = self._context
        try:
            ended = self._end_document(operation)
        except KeyboardInterrupt:
            context.note(
                f"no longer watching; the operation goes on. `{program()} operations show "
                f"{operation}` says how far it is, `{program()} operations stop {operation}` "
                "ends it"
            )
            raise
        done = _DONE[ended["action"]]
        so_far = f"{count(ended['done'], 'job')} of {ended['matched']} {done}"
        if ended["status"] == "stopped":
            raise RefusedError(
                f"operation {operation} was stopped", why=so_far,
                fix="run the same command again for the remaining jobs",
            )  # fmt: skip
        if ended["status"] == "failed":
            raise CliError(
                f"operation {operation} failed", why=f"{ended['problem']}; {so_far}",
                fix="run the same command again for the remaining jobs",
            )  # fmt: skip
        text = f"{count(ended['done'], 'job')} {done}"
        if ended["skipped"]:
            text += f"; {ended['skipped']} left alone, which were not as they had been"
        print_result(context, ended, text, output, name=operation)

    def _end_document(self, operation: str) -> Document:
        context = self._context
        last_answer = context.clock.monotonic()
        with progress_bar(context, f"Operation {operation[:8]}") as draw:
            while True:
                try:
                    now = context.api.get(f"{self._path}/{quote(operation, safe='')}")
                except UnreachableError:
                    # It goes on without us; an answer that does not come ends no watching.
                    if context.clock.monotonic() - last_answer > _PATIENCE:
                        raise
                else:
                    last_answer = context.clock.monotonic()
                    if now["status"] != "running":
                        return now
                    settled = now["done"] + now["skipped"]
                    draw(settled, max(now["matched"], settled), _DONE[now["action"]])
                context.sleep(_LOOK_EVERY)


def selection(queue: str, where: JobFilter) -> Document:
    """Return a job filter in the form of the API."""
    options: Document = {name: getattr(where, name) for name in _FILTERS}
    options = {name: value for name, value in options.items() if value is not None}
    for name in ("before", "after"):
        if name in options:
            options[name] = options[name].isoformat()
    return {"queue": queue, **(options or {"all": True})}
