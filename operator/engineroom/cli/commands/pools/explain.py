"""The explanation of a pool's size, for ``engineroom explain``."""

from engineroom.api.kinds import Kind
from engineroom.cli.app.context import CommandContext
from engineroom.cli.errors import program
from engineroom.cli.views.explain import Explanation, explain_document, explain_text
from engineroom.cli.views.output_formats import ReportFormat, dump
from engineroom.kube.client.resources import resource_of


def explain_pool(context: CommandContext, kind: Kind, name: str, output: ReportFormat) -> None:
    """Show why a pool has its size, and what would change it."""
    cluster = context.cluster
    pool = cluster.pool(context.namespace, name)
    reference = resource_of(kind).ref(pool.namespace, pool.name, pool.uid)
    explanation = Explanation(
        pool=pool,
        pods=None if context.through_api else cluster.pods(pool.namespace, pool.name),
        events=None if context.through_api else cluster.events(reference),
        now=context.clock.now(),
        program=program(),
    )
    if output in (ReportFormat.JSON, ReportFormat.YAML):
        context.show(dump(explain_document(explanation), output))
    else:
        context.show(explain_text(explanation))
