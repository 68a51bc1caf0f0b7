"""``engineroom explain``: why a pool has the size it has."""

from typing import Annotated

import typer

from engineroom.cli.app.context import Session
from engineroom.cli.app.errors import program
from engineroom.cli.commands.arguments import PoolName, pool_name
from engineroom.cli.views.explain import Explanation, explain_document, explain_text
from engineroom.cli.views.output_formats import Report, dump


def explain(
    session: Session,
    name: PoolName,
    output: Annotated[
        Report, typer.Option("--output", "-o", help="Shape of the output.", case_sensitive=False)
    ] = Report.TABLE,
) -> None:
    """Say why a pool has its size, and what would change it.

    Shows the operator's decision and the arithmetic behind it, findings with their fix, queues,
    conditions, pods and events. Through the API it knows neither pods nor events.
    """
    pool = session.cluster.pool(session.namespace, pool_name(name))
    explanation = Explanation(
        pool=pool,
        pods=None if session.remote else session.cluster.pods(pool.namespace, pool.name),
        events=None if session.remote else session.cluster.events(pool),
        now=session.clock.now(),
        program=program(),
    )
    if output in (Report.JSON, Report.YAML):
        session.show(dump(explain_document(explanation), output))
    else:
        session.show(explain_text(explanation))
