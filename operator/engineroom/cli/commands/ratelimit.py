"""``engineroom ratelimit``: test a request, show the top keys, explain a policy."""

from dataclasses import dataclass, replace
from typing import Annotated

import typer

from engineroom.api.kinds import Kind
from engineroom.cli.app.context import CommandContext
from engineroom.cli.commands.arguments import complete_policies
from engineroom.cli.connections.policies import (
    chosen,
    enforcers_of,
    get_policy,
    policy_name,
    read_policies,
    read_roster,
    redis_of,
    simulated_request,
    top_keys,
)
from engineroom.cli.errors import ExitCode, UsageError
from engineroom.cli.views.output_formats import ReportFormat, dump
from engineroom.cli.views.ratelimits import (
    PolicyExplanation,
    explanation_document,
    explanation_text,
    rehearsals_document,
    rehearsals_text,
    top_document,
    top_text,
)
from engineroom.core.errors import EngineroomError
from engineroom.ratelimit.distribution.document import PolicySnapshot  # noqa: TC001
from engineroom.ratelimit.limits.dry_run import SimulatedRequest, dry_run

_HELD = "Name of the policy; the default is all policies of the namespace."
OutputOption = Annotated[
    ReportFormat, typer.Option("--output", "-o", help="Output format.", case_sensitive=False)
]


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """The request that `ratelimit test` simulates."""

    path: Annotated[
        str, typer.Option("--path", "-p", help="Path, with the query string if there is one.")
    ] = "/"
    method: Annotated[str, typer.Option("--method", "-X", help="HTTP method.")] = "GET"
    headers: Annotated[
        list[str] | None,
        typer.Option(
            "--header", "-H", metavar="NAME: VALUE", help="A header; repeat it for several."
        ),
    ] = None
    host: Annotated[str | None, typer.Option("--host", help="The Host header.")] = None
    client_ip: Annotated[
        str,
        typer.Option(
            "--client-ip",
            help="Address of the connection. To simulate a proxy, pass the header X-Forwarded-For.",
        ),
    ] = ""
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Tenant, as the enforcer determines it.")
    ] = None
    route: Annotated[
        str | None, typer.Option("--route", help="Route, as the enforcer determines it.")
    ] = None
    claims: Annotated[
        list[str] | None,
        typer.Option("--claim", metavar="NAME=VALUE", help="A claim of a verified token."),
    ] = None
    cost: Annotated[
        int, typer.Option("--cost", min=1, max=1_000_000_000, help="Cost of the request.")
    ] = 1
    consume: Annotated[
        bool, typer.Option("--consume", help="Count the request, as an enforcer would.")
    ] = False

    def request(self) -> SimulatedRequest:
        """Return the simulated request. Raises UsageError."""
        return simulated_request(
            self.path, self.method, self.headers, self.host, self.client_ip, self.tenant,
            self.route, self.claims, self.cost, consume=self.consume,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class AttachmentOptions:
    """The target or application whose policy is selected."""

    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="KIND/NAME[/SECTION]",
            help="Only the policy attached to this target: HTTPRoute/checkout.",
        ),
    ] = None
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="LABELS",
            help="Only the policy of the application with these labels: app=shop.",
        ),
    ] = None


def try_request(
    context: CommandContext,
    request: RequestOptions,
    attachment: AttachmentOptions,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[POLICY]...", help=_HELD, autocompletion=complete_policies),
    ] = None,
    output: OutputOption = ReportFormat.TABLE,
) -> None:
    """Show the limits that apply to a request, their remaining tokens, and the response.

    Nothing is consumed without --consume. The policies are those that enforcers follow; the state
    is that of Redis, at the time of Redis. Values that may be secrets are shown as digests, the
    same as in `ratelimit top`. If a policy uses leases, an enforcer may still admit from tokens
    that it took in advance.

    The exit status is 1 if any policy refuses the request, and 4 if there is no such policy.
    """
    simulated = request.request()
    wanted = [policy_name(name) for name in names or ()]
    namespace = context.namespace
    spec = redis_of(context.connections, wanted[0] if wanted else None)
    with context.connections.redis(namespace, spec) as redis:
        policies = chosen(
            read_policies(redis, namespace), wanted, attachment.target, attachment.labels
        )
        done = [dry_run(policy.policy, redis, simulated) for policy in policies]
    if output in (ReportFormat.JSON, ReportFormat.YAML):
        context.show(dump(rehearsals_document(done), output))
    elif not done:
        context.note("no policy is for that: the request is not limited")
    else:
        context.show(rehearsals_text(done))
    if not all(entry.decision.allowed for entry in done):
        raise typer.Exit(ExitCode.PROBLEM)


def top(
    context: CommandContext,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[POLICY]", help="Only keys of this policy.", autocompletion=complete_policies
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, max=60.0, help="Seconds to record.")
    ] = 5.0,
    keys: Annotated[
        int, typer.Option("--keys", min=1, max=100, help="Maximum number of keys to show.")
    ] = 20,
    limiter: Annotated[
        str | None,
        typer.Option(
            "--limiter",
            metavar="HOST:PORT",
            help=(
                "Address of the probe and metrics port of one decision service, instead of all its "
                "pods."
            ),
        ),
    ] = None,
    output: OutputOption = ReportFormat.TABLE,
) -> None:
    """Record for some seconds, and show the most requested keys by policy and limit.

    It calls all pods of the installation's decision service at once, through the API server, for
    all namespaces or the one in -n. With very many keys, counts may be too high; then the minimum
    and the maximum are shown. Values that may be secrets are shown as digests.
    """
    wanted = policy_name(name) if name else None
    namespace = context.namespace if wanted else context.options.namespace
    recorded = top_keys(context.connections, limiter, seconds, 1000)
    matching = [
        key
        for key in recorded.keys
        if namespace in (None, key.namespace) and wanted in (None, key.policy)
    ]
    recorded = replace(recorded, keys=tuple(matching[:keys]))
    for failure in recorded.failures:
        context.note(f"not counted: {failure}")
    if output in (ReportFormat.JSON, ReportFormat.YAML):
        context.show(dump(top_document(recorded), output))
        return
    if not recorded.keys:
        context.note(f"nothing was asked for in {seconds:g} s")
        return
    context.show(top_text(recorded))


def explain(
    context: CommandContext,
    name: Annotated[
        str,
        typer.Argument(
            metavar="POLICY", help="Name of the policy.", autocompletion=complete_policies
        ),
    ],
    output: OutputOption = ReportFormat.TABLE,
) -> None:
    """Show whether a policy is accepted, programmed and enforced, why, and its bound.

    It shows conflicts and their solution, the enforcers that have acknowledged the policy and those
    that have not, and the most that each limit admits. If Redis cannot be reached, it shows the
    content of the status.
    """
    policy = get_policy(context.cluster, context.namespace, name)
    namespace = policy["metadata"]["namespace"]
    policies: PolicySnapshot | None = None
    roster, blind = None, ""
    if context.through_api and not context.options.redis_url:
        blind = "the API does not forward to Redis"
    else:
        try:
            with context.connections.redis(namespace, policy["spec"].get("redis")) as redis:
                roster = read_roster(redis, namespace)
                policies = read_policies(redis, namespace)
        except UsageError:
            raise
        except EngineroomError as error:
            blind = str(error)
    explanation = PolicyExplanation(
        policy,
        None if policies is None else policies.get(policy["metadata"]["name"]),
        None if policies is None else (policies.hash, policies.revision, policies.lineage),
        roster,
        blind,
        context.clock.now(),
        None
        if policies is None or roster is None
        else enforcers_of(roster, policies, policy["metadata"]["name"]),
    )
    if output in (ReportFormat.JSON, ReportFormat.YAML):
        context.show(dump(explanation_document(explanation), output))
    else:
        context.show(explanation_text(explanation))


def explain_policy(context: CommandContext, kind: Kind, name: str, output: ReportFormat) -> None:
    """Explain a policy for ``engineroom explain``."""
    del kind
    explain(context, name, output)
