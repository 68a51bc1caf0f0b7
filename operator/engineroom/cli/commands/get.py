"""``engineroom get``: pools as a list or as objects."""

from typing import Annotated

import typer
from rich.text import Text

from engineroom.cli.commands.arguments import POOLS, OutputOption, complete_pools, pool_name
from engineroom.cli.errors import UsageError
from engineroom.cli.model import RESOURCE, Pool
from engineroom.cli.session import AllNamespaces, Selector, Session
from engineroom.cli.views.pools import pools_table
from engineroom.cli.views.shape import Output, dump, listing


def get(
    session: Session,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="pools|NAME",
            help="Names of pools; without any, or with `pools`, all of them.",
            autocompletion=complete_pools,
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
    selector: Selector = None,
    all_namespaces: AllNamespaces = False,
) -> None:
    """Show pools: their state, size, load and age."""
    wanted = list(names or ())
    if wanted and wanted[0] in POOLS:
        wanted = wanted[1:]
    if wanted:
        if all_namespaces or selector:
            raise UsageError(
                "a name and --all-namespaces or --selector exclude each other",
                fix="name the pool and its namespace with -n, or leave out the name",
            )
        pools = tuple(session.cluster.pool(session.namespace, pool_name(one)) for one in wanted)
    else:
        pools = session.cluster.pools(session.scope(all_namespaces), selector)
    _print(session, pools, output, single=len(wanted) == 1, namespaces=all_namespaces)


def _print(
    session: Session, pools: tuple[Pool, ...], output: Output, *, single: bool, namespaces: bool
) -> None:
    if output in (Output.JSON, Output.YAML):
        documents = [pool.document for pool in pools]
        session.show(dump(documents[0] if single else listing(documents), output))
        return
    if not pools:
        where = "any namespace" if namespaces else f"namespace {session.namespace}"
        session.note(f"no pools in {where}")
        return
    if output is Output.NAME:
        session.show(Text("\n".join(f"{RESOURCE}/{pool.name}" for pool in pools)))
        return
    wide = output is Output.WIDE
    session.show(pools_table(pools, session.clock.now(), namespaces=namespaces, wide=wide))
