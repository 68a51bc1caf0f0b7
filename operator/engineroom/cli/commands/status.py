"""``engineroom status``: is the installation well, and what is to be done?"""

from typing import Annotated

import typer

from engineroom.cli.app.context import CommandContext
from engineroom.cli.app.options import Selector
from engineroom.cli.connections.model import Document, Installation, Pod, Pool, Status
from engineroom.cli.connections.policies import list_policies
from engineroom.cli.errors import ExitCode, ForbiddenError, NotFoundError, program
from engineroom.cli.views.diagnose import Check, Severity
from engineroom.cli.views.output_formats import Report, dump
from engineroom.cli.views.status import Overview, status_document, status_text
from engineroom.cli.views.text import count


def status(
    context: CommandContext,
    output: Annotated[
        Report, typer.Option("--output", "-o", help="Shape of the output.", case_sensitive=False)
    ] = Report.TABLE,
    selector: Selector = None,
) -> None:
    """Show whether Engineroom is well: operator, webhooks, Redis, CRD, and pools with problems.

    Looks at the pools of all namespaces, or of the one named with -n; where the account may not
    look at all of them, at the context's own. Through the API at those of one namespace and at its
    queues, not at what is installed. Ends with 1 when there is a problem.
    """
    overview = (_through_api if context.through_api else _look)(context, selector)
    if output in (Report.JSON, Report.YAML):
        context.show(dump(status_document(overview), output))
    else:
        context.show(status_text(overview))
    if not overview.healthy:
        raise typer.Exit(ExitCode.PROBLEM)


def _look(context: CommandContext, selector: str | None) -> Overview:
    cluster, scope = context.cluster, context.options.namespace
    installation = cluster.installation()
    pools: tuple[Pool, ...] = ()
    pods: tuple[Pod, ...] = ()
    try:
        try:
            pools = cluster.pools(scope, selector)
        except ForbiddenError:
            if scope is not None:
                raise
            scope = context.namespace
            pools = cluster.pools(scope, selector)
        pods = cluster.pods(scope)
    except NotFoundError:
        # Without the kind there are no pools; the overview itself says what is missing.
        if installation.definition is not None:
            raise
    now = context.clock.now()
    return Overview(
        installation, pools, pods, scope, now, program(), _policies(context, scope, selector)
    )


def _through_api(context: CommandContext, selector: str | None) -> Overview:
    who = context.api.get("/whoami")["subject"]
    scope = context.namespace
    pools = context.cluster.pools(scope, selector)
    parts = [Check("API", Severity.OK, f"answers, you are {who}")]
    try:
        with context.tasks() as connection:
            counts = connection.tasks.counts()
    except ForbiddenError:
        parts.append(Check("queues", Severity.WARNING, "you may not look at them"))
    else:
        waiting, failed = (
            sum(count.waiting for count in counts),
            sum(count.failed for count in counts),
        )
        summary = f"{count(len(counts), 'queue')}, {waiting} waiting, {failed} failed"
        parts.append(Check("queues", Severity.OK, summary))
    unreached = [pool.name for pool in pools if pool.status and _cut_off(pool.status)]
    if unreached:
        summary = f"not reached for {', '.join(unreached[:5])}"
        parts.append(Check("Redis", Severity.PROBLEM, summary, "see the pools below"))
    installation = Installation(context.api.server, "", None)
    return Overview(
        installation, pools, (), scope, context.clock.now(), program(), through_api=tuple(parts)
    )


def _cut_off(status: Status) -> bool:
    return status.holds("RedisReachable", "False") is not None


def _policies(
    context: CommandContext, scope: str | None, selector: str | None
) -> tuple[Document, ...]:
    """The RateLimitPolicies there; none where the kind is not served or may not be looked at."""
    try:
        return tuple(list_policies(context.cluster, scope, selector))
    except (NotFoundError, ForbiddenError):
        return ()
