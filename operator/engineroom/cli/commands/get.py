"""``engineroom get``: pools or RateLimitPolicies, as a list or as objects."""

from typing import Annotated

import typer

from engineroom.cli.app.context import CommandContext
from engineroom.cli.app.options import AllNamespaces, Selector
from engineroom.cli.commands.arguments import POOLS, OutputOption, complete_pools, pool_name
from engineroom.cli.commands.output import present
from engineroom.cli.connections.model import RESOURCE, Pool
from engineroom.cli.connections.policies import RESOURCE as POLICY_RESOURCE
from engineroom.cli.connections.policies import WORDS, get_policy, list_policies
from engineroom.cli.errors import UsageError
from engineroom.cli.views.output_formats import Output, listing
from engineroom.cli.views.pools import pools_table


def complete_policies(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of policies for the shell; nothing at all when the cluster does not answer."""
    context = CommandContext.of_completion(ctx)
    try:
        names = [
            policy["metadata"]["name"]
            for policy in list_policies(context.cluster, context.namespace)
        ]
    except Exception:  # noqa: BLE001 - a shell that completes must never see an error
        return []
    return [name for name in names if name.startswith(incomplete)]


def get(
    context: CommandContext,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="pools|policies|NAME",
            help="Names of pools; without any, or with `pools`, all of them. With `policies` or "
            "`rlp/NAME` RateLimitPolicies.",
            autocompletion=complete_pools,
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
    selector: Selector = None,
    all_namespaces: AllNamespaces = False,
) -> None:
    """Show pools: their state, size, load and age; or RateLimitPolicies."""
    wanted = list(names or ())
    kind, named, _ = (wanted[0] if wanted else "").partition("/")
    policies = kind.partition(".")[0] in WORDS
    if not named and (policies or kind in POOLS):
        wanted = wanted[1:]
    if wanted and (all_namespaces or selector):
        raise UsageError(
            "a name and --all-namespaces or --selector exclude each other",
            fix="name the object and its namespace with -n, or leave out the name",
        )
    if policies:
        _print_policies(context, wanted, output, selector, all_namespaces=all_namespaces)
        return
    if wanted:
        pools = tuple(context.cluster.pool(context.namespace, pool_name(entry)) for entry in wanted)
    else:
        pools = context.cluster.pools(context.scope(all_namespaces), selector)
    _print(context, pools, output, single=len(wanted) == 1, namespaces=all_namespaces)


def _print(
    context: CommandContext,
    pools: tuple[Pool, ...],
    output: Output,
    *,
    single: bool,
    namespaces: bool,
) -> None:
    documents = [pool.document for pool in pools]
    wide = output is Output.WIDE
    present(
        context, output, documents[0] if single else listing(documents),
        [f"{RESOURCE}/{pool.name}" for pool in pools],
        lambda: pools_table(pools, context.clock.now(), namespaces=namespaces, wide=wide),
        none=f"no pools in {_where(context, namespaces)}",
    )  # fmt: skip


def _where(context: CommandContext, everywhere: bool) -> str:
    return "any namespace" if everywhere else f"namespace {context.namespace}"


def _print_policies(
    context: CommandContext,
    names: list[str],
    output: Output,
    selector: str | None,
    *,
    all_namespaces: bool,
) -> None:
    cluster = context.cluster
    if names:
        policy_list = [get_policy(cluster, context.namespace, name) for name in names]
    else:
        policy_list = list_policies(cluster, context.scope(all_namespaces), selector)
    # Imported here: the library's model takes a moment, and pools do not need it.
    from engineroom.cli.views.ratelimits import policies_table

    wide = output is Output.WIDE
    present(
        context, output, policy_list[0] if len(names) == 1 else listing(policy_list),
        [f"{POLICY_RESOURCE}/{entry['metadata']['name']}" for entry in policy_list],
        lambda: policies_table(
            policy_list, context.clock.now(), namespaces=all_namespaces, wide=wide
        ),
        none=f"no policies in {_where(context, all_namespaces)}",
    )  # fmt: skip
