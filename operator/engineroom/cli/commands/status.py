"""``engineroom status``: is the installation well, and what is to be done?"""

from typing import Annotated

import typer

from engineroom.cli.errors import ExitCode, ForbiddenError, NotFoundError, program
from engineroom.cli.model import Document, Pod, Pool
from engineroom.cli.policies import list_policies
from engineroom.cli.session import Selector, Session
from engineroom.cli.views.shape import Report, dump
from engineroom.cli.views.status import Overview, status_document, status_text


def status(
    session: Session,
    output: Annotated[
        Report, typer.Option("--output", "-o", help="Shape of the output.", case_sensitive=False)
    ] = Report.TABLE,
    selector: Selector = None,
) -> None:
    """Show whether Engineroom is well: operator, webhooks, Redis, CRD, and pools with problems.

    Looks at the pools of all namespaces, or of the one named with -n; where the account may not
    look at all of them, at the context's own. Ends with 1 when there is a problem.
    """
    overview = _look(session, selector)
    if output in (Report.JSON, Report.YAML):
        session.show(dump(status_document(overview), output))
    else:
        session.show(status_text(overview))
    if not overview.healthy:
        raise typer.Exit(ExitCode.PROBLEM)


def _look(session: Session, selector: str | None) -> Overview:
    cluster, scope = session.cluster, session.shared.namespace
    installation = cluster.installation()
    pools: tuple[Pool, ...] = ()
    pods: tuple[Pod, ...] = ()
    try:
        try:
            pools = cluster.pools(scope, selector)
        except ForbiddenError:
            if scope is not None:
                raise
            scope = session.namespace
            pools = cluster.pools(scope, selector)
        pods = cluster.pods(scope)
    except NotFoundError:
        # Without the kind there are no pools; the overview itself says what is missing.
        if installation.definition is not None:
            raise
    now = session.clock.now()
    return Overview(
        installation, pools, pods, scope, now, program(), _policies(session, scope, selector)
    )


def _policies(session: Session, scope: str | None, selector: str | None) -> tuple[Document, ...]:
    """The RateLimitPolicies there; none where the kind is not served or may not be looked at."""
    try:
        return tuple(list_policies(session.cluster, scope, selector))
    except (NotFoundError, ForbiddenError):
        return ()
