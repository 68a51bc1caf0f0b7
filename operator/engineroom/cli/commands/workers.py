"""``engineroom workers``."""

from engineroom.cli.commands.arguments import OutputOption
from engineroom.cli.commands.tasks import names_only
from engineroom.cli.session import Session
from engineroom.cli.views.shape import Output, dump
from engineroom.cli.views.tasks import page_document, workers_table


def list_workers(session: Session, output: OutputOption = Output.TABLE) -> None:
    """List workers and what they do.

    Those of pools and plain `rq worker`s alike, as they last described themselves; memory is known
    of the workers of pools.
    """
    with session.link(session) as link:
        workers = link.tasks.workers()
        title = link.title
    if output in (Output.JSON, Output.YAML):
        session.show(dump(page_document(workers, None), output))
    elif output is Output.NAME:
        names_only(session, [one.name for one in workers])
    elif workers:
        session.show(workers_table(workers, session.clock.now(), wide=output is Output.WIDE))
    else:
        session.note(f"no workers in {title}")
