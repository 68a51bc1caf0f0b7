"""``engineroom resume``: undo ``pause`` and ``drain``."""

from rich.text import Text

from engineroom.cli.commands.arguments import (
    DryRun,
    OutputOption,
    PoolName,
    is_dry_run,
    pool_name,
)
from engineroom.cli.commands.change import change_pool
from engineroom.cli.model import Document  # noqa: TC001
from engineroom.cli.session import Session
from engineroom.cli.views.shape import Output


def resume(
    session: Session,
    name: PoolName,
    output: OutputOption = Output.TABLE,
    dry_run: DryRun = "none",
) -> None:
    """Let a paused or drained pool scale and work again."""
    rehearse = is_dry_run(dry_run)
    pool = session.cluster.pool(session.namespace, pool_name(name))
    spec: Document = {}
    undone = []
    if pool.suspend:
        spec["suspend"] = False
        undone.append("takes jobs")
    if pool.autoscaling is not None and pool.autoscaling.pause != "None":
        spec["autoscaling"] = {"pause": "None"}
        undone.append("scales")
    if not spec and output is Output.TABLE:
        session.show(Text(f"workerpool {pool.id} is neither paused nor suspended"))
        return
    done = f"resumed: it {' and '.join(undone)} again"
    change_pool(session, pool, {"spec": spec}, done, output, dry_run=rehearse)
