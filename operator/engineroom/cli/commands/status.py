"""``engineroom status``: the health of the installation, and fixes for its problems."""

from typing import Annotated

import typer

from engineroom.api import kinds
from engineroom.cli.app.context import CommandContext
from engineroom.cli.app.options import Selector
from engineroom.cli.connections.model import Document, Installation, Pod, Pool, PoolStatus
from engineroom.cli.connections.objects import list_objects
from engineroom.cli.errors import ExitCode, ForbiddenError, NotFoundError, program
from engineroom.cli.views.diagnose import Check, Severity
from engineroom.cli.views.output_formats import ReportFormat, dump
from engineroom.cli.views.status import InstallationOverview, status_document, status_text
from engineroom.cli.views.text import count


def status(
    context: CommandContext,
    output: Annotated[
        ReportFormat,
        typer.Option("--output", "-o", help="Output format.", case_sensitive=False),
    ] = ReportFormat.TABLE,
    selector: Selector = None,
) -> None:
    """Show the state of the installation: operator, webhooks, Redis, CRD, and pools with problems.

    It checks the pools of all namespaces, or only of the one in -n. If the account may not list all
    namespaces, it checks the one of the context. Through the API it checks the pools and queues of
    one namespace, and not the installation. The exit status is 1 if there is a problem.
    """
    overview = (_through_api if context.through_api else _read_overview)(context, selector)
    if output in (ReportFormat.JSON, ReportFormat.YAML):
        context.show(dump(status_document(overview), output))
    else:
        context.show(status_text(overview))
    if not overview.healthy:
        raise typer.Exit(ExitCode.PROBLEM)


def _read_overview(context: CommandContext, selector: str | None) -> InstallationOverview:
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
    objects = _objects(context, scope, selector)
    return InstallationOverview(installation, pools, pods, scope, now, program(), objects)


def _through_api(context: CommandContext, selector: str | None) -> InstallationOverview:
    subject = context.api.get("/whoami")["subject"]
    scope = context.namespace
    pools = context.cluster.pools(scope, selector)
    parts = [Check("API", Severity.OK, f"answers, you are {subject}")]
    try:
        with context.tasks() as connection:
            counts = connection.tasks.counts()
    except ForbiddenError:
        parts.append(Check("queues", Severity.WARNING, "you may not read them"))
    else:
        waiting, failed = sum(q.waiting for q in counts), sum(q.failed for q in counts)
        summary = f"{count(len(counts), 'queue')}, {waiting} waiting, {failed} failed"
        parts.append(Check("queues", Severity.OK, summary))
    unreached = [pool.name for pool in pools if pool.status and _unreachable(pool.status)]
    if unreached:
        summary = f"not reached for {', '.join(unreached[:5])}"
        parts.append(Check("Redis", Severity.PROBLEM, summary, "see the pools below"))
    installation = Installation(context.api.server, "", None)
    return InstallationOverview(
        installation,
        pools,
        (),
        scope,
        context.clock.now(),
        program(),
        _objects(context, scope, selector),
        through_api=tuple(parts),
    )


def _unreachable(status: PoolStatus) -> bool:
    return status.holds("RedisReachable", "False") is not None


def _objects(
    context: CommandContext, scope: str | None, selector: str | None
) -> dict[str, list[Document]]:
    """Return the objects of kinds other than pools; none of kinds that cannot be read."""
    objects = {}
    for kind in kinds.registry():
        if kind is kinds.WORKER_POOL:
            continue
        try:
            objects[kind.kind] = list_objects(context.cluster, kind, scope, selector)
        except (NotFoundError, ForbiddenError):
            objects[kind.kind] = []
    return objects
