"""``engineroom explain``: why a pool has the size it has."""

from typing import Annotated

import typer

from engineroom.cli.app.context import CommandContext
from engineroom.cli.commands.arguments import PoolName, pool_name
from engineroom.cli.errors import program
from engineroom.cli.views.explain import Explanation, explain_document, explain_text
from engineroom.cli.views.output_formats import Report, dump


def explain(
    context: CommandContext,
    name: PoolName,
    output: Annotated[
        Report, typer.Option("--output", "-o", help="Shape of the output.", case_sensitive=False)
    ] = Report.TABLE,
) -> None:
    """Say why a pool has its size, and what would change it.

    Shows the operator's decision and the arithmetic behind it, findings with their fix, queues,
    conditions, pods and events. Through the API it knows neither pods nor events.
    """
    pool = context.cluster.pool(context.namespace, pool_name(name))
    explanation = Explanation(
        pool=pool,
        pods=None if context.through_api else context.cluster.pods(pool.namespace, pool.name),
        events=None if context.through_api else context.cluster.events(pool),
        now=context.clock.now(),
        program=program(),
    )
    if output in (Report.JSON, Report.YAML):
        context.show(dump(explain_document(explanation), output))
    else:
        context.show(explain_text(explanation))
