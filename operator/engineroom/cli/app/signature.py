"""Builds the function that typer reads from the function of a command.

``command`` turns ``def get(context, names, ...)`` into a function with the options of all commands
added, and with each option group expanded: a parameter whose type is a dataclass stands for the
options that its fields declare.

    @dataclass(frozen=True, slots=True)
    class TriggerOptions:
        cron: Annotated[str | None, typer.Option("--cron", help="...")] = None
        every: Annotated[str | None, typer.Option("--every", help="...")] = None

    def add(context: CommandContext, name: Name, trigger: TriggerOptions) -> None: ...
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from typing import TYPE_CHECKING, Any

import typer

from engineroom.cli.app.context import CommandContext
from engineroom.cli.app.options import shared_parameters
from engineroom.cli.connections.options import ConnectionOptions

if TYPE_CHECKING:
    from collections.abc import Callable

#: Shared options that ``main`` itself reads from the command line.
_READ_BY_MAIN = ("no_color", "debug")


def command(function: Callable[..., None], *, redis: bool = False) -> Callable[..., None]:
    """Return a typer command function from one that takes a CommandContext first.

    With ``redis``, the command also accepts the options that select a Redis.
    """
    shared = shared_parameters(redis=redis)
    own, groups = expand_groups(function)

    @functools.wraps(function)
    def run(ctx: typer.Context, **arguments: Any) -> None:
        options = {parameter.name: arguments.pop(parameter.name) for parameter in shared}
        for name in _READ_BY_MAIN:
            del options[name]
        earlier = ctx.obj if isinstance(ctx.obj, ConnectionOptions) else ConnectionOptions()
        context = CommandContext.of(ConnectionOptions(**options).over(earlier))
        function(context, **collect_groups(arguments, groups))

    ctx = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [ctx, *own, *shared]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def expand_groups(
    function: Callable[..., None],
) -> tuple[list[inspect.Parameter], dict[str, type]]:
    """Return the parameters after the context, with each option group expanded, and the groups.

    The groups are by the name of their parameter. Raises TypeError if two options share a name.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    _, *declared = inspect.signature(function).parameters.values()
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for parameter in declared:
        annotation = hints[parameter.name]
        if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
            groups[parameter.name] = annotation
            parameters += _group_parameters(annotation)
        else:
            parameters.append(
                parameter.replace(annotation=annotation, kind=inspect.Parameter.KEYWORD_ONLY)
            )
    names = [parameter.name for parameter in parameters]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise TypeError(f"{function.__name__}: options declared twice: {', '.join(repeated)}")
    return parameters, groups


def _group_parameters(group: type) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty
            if option.default is dataclasses.MISSING
            else option.default,
            annotation=hints[option.name],
        )
        for option in dataclasses.fields(group)
    ]


def collect_groups(arguments: dict[str, Any], groups: dict[str, type]) -> dict[str, Any]:
    """Return the arguments with the options of each group gathered into one dataclass."""
    collected = dict(arguments)
    for name, group in groups.items():
        values = {
            option.name: collected.pop(option.name)
            for option in dataclasses.fields(typing.cast("Any", group))
        }
        collected[name] = group(**values)
    return collected
