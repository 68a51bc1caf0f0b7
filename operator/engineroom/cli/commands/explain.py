"""``engineroom explain``: the state of one object, the reasons for it, and possible fixes."""

from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from engineroom.api import kinds
from engineroom.api.kinds import Kind
from engineroom.cli.app.context import CommandContext
from engineroom.cli.commands.arguments import complete_objects
from engineroom.cli.connections.objects import object_name, parse_target, read_object
from engineroom.cli.errors import UsageError
from engineroom.cli.views.explain import event_documents, events_table
from engineroom.cli.views.kinds import conditions_table, state_of
from engineroom.cli.views.output_formats import ReportFormat, dump, word
from engineroom.kube.client.resources import resource_of


def explain(
    context: CommandContext,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[KIND] NAME",
            help="Name of the object; a pool needs no kind.",
            autocompletion=complete_objects,
        ),
    ],
    output: Annotated[
        ReportFormat,
        typer.Option("--output", "-o", help="Output format.", case_sensitive=False),
    ] = ReportFormat.TABLE,
) -> None:
    """Explain the state of an object: why a pool has its size, whether a policy is enforced.

    For a pool it shows the operator's decision and its computation, problems with their fix,
    queues, conditions, pods and events. For a policy it shows the output of `ratelimit explain`.
    Through the API, pods and events are not available.
    """
    kind, name = _target(names)
    kind.explain_view.load()(context, kind, name, output)


def _target(words: list[str]) -> tuple[Kind, str]:
    if len(words) == 1 and "/" not in words[0]:
        # Also if the pool is named like a kind.
        return kinds.WORKER_POOL, words[0]
    kind, names = parse_target(words)
    if len(names) != 1:
        raise UsageError(
            "explain needs the name of one object", fix="write `explain NAME` for a pool, or "
            "`explain KIND NAME`",
        )  # fmt: skip
    return kind, object_name(kind, names[0])


def general_explanation(
    context: CommandContext, kind: Kind, name: str, output: ReportFormat
) -> None:
    """Show the state, conditions and events of an object."""
    document = read_object(context.cluster, kind, context.namespace, name)
    metadata, now = document["metadata"], context.clock.now()
    conditions = (document.get("status") or {}).get("conditions") or []
    reference = resource_of(kind).ref(metadata["namespace"], name, metadata.get("uid", ""))
    events = None if context.through_api else context.cluster.events(reference)
    if output in (ReportFormat.JSON, ReportFormat.YAML):
        explanation = {
            "resource": f"{kind.resource}/{name}",
            "namespace": metadata["namespace"],
            "name": name,
            "state": state_of(document),
            "conditions": conditions,
            "status": document.get("status"),
            "events": event_documents(events),
        }
        context.show(dump(explanation, output))
        return
    title = f"{metadata['namespace']}/{name}"
    parts: list[RenderableType] = [
        Text.assemble((title, "bold"), f"  {kind.kind}  ", word(state_of(document)))
    ]
    if conditions:
        parts += [Text(), conditions_table(conditions, now)]
    if events:
        parts += [Text(), events_table(events, now)]
    context.show(Group(*parts))
