"""Option groups: dataclasses whose fields become the options of a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import pytest
import typer
from typer.testing import CliRunner

from engineroom.cli.app.context import CommandContext
from engineroom.cli.app.main import ENTRIES, create
from engineroom.cli.app.signature import collect_groups, command, expand_groups
from engineroom.cli.connections.options import ConnectionOptions

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class RetryOptions:
    """Options of a retry."""

    count: Annotated[int, typer.Option("--count", help="Number of retries.")]
    delay: Annotated[str, typer.Option("--delay", help="Delay before each.")] = "1s"


@dataclass(frozen=True, slots=True)
class NamedRetryOptions(RetryOptions):
    """Options of a retry with a name."""

    label: Annotated[str | None, typer.Option("--label", help="Name.")] = None


def send(
    context: CommandContext,
    target: Annotated[str, typer.Argument(metavar="TARGET")],
    retry: NamedRetryOptions,
    force: Annotated[bool, typer.Option("--force")] = False,
) -> None:
    """Send it."""
    typer.echo(f"{target} {retry} {force} {context.options.namespace}")


def invoke(function: Callable[..., None], *arguments: str) -> tuple[int, str]:
    app = typer.Typer(add_completion=False)
    app.command()(command(function))
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.output


def test_each_field_of_a_group_is_an_option_in_the_place_of_the_group() -> None:
    parameters, groups = expand_groups(send)
    assert [parameter.name for parameter in parameters] == [
        "target",
        "count",
        "delay",
        "label",
        "force",
    ]
    assert groups == {"retry": NamedRetryOptions}


def test_the_command_receives_the_group_as_its_dataclass() -> None:
    code, output = invoke(send, "x", "--count", "3", "--label", "a", "-n", "mail")
    expected = NamedRetryOptions(3, label="a")
    assert (code, output) == (0, f"x {expected} False mail\n")


def test_an_option_without_a_default_is_required() -> None:
    code, output = invoke(send, "x")
    assert code == 2
    assert "--count" in output


def test_options_of_groups_stand_in_the_help() -> None:
    code, output = invoke(send, "--help")
    assert code == 0
    for text in ("--count", "Number of retries.", "--delay", "--label", "--force", "--namespace"):
        assert text in output


def test_an_option_that_two_groups_declare_is_refused() -> None:
    def twice(context: CommandContext, retry: RetryOptions, other: NamedRetryOptions) -> None:
        del context, retry, other

    twice.__annotations__ = {
        "context": CommandContext, "retry": RetryOptions, "other": NamedRetryOptions,
    }  # fmt: skip
    with pytest.raises(TypeError, match="twice: options declared twice: count, delay"):
        expand_groups(twice)


def test_arguments_outside_of_groups_stay_as_they_are() -> None:
    arguments = {"target": "x", "count": 1, "delay": "2s"}
    assert collect_groups(arguments, {"retry": RetryOptions}) == {
        "target": "x", "retry": RetryOptions(1, "2s"),
    }  # fmt: skip


def test_connection_options_never_show_the_redis_url() -> None:
    assert "secret" not in repr(ConnectionOptions(redis_url="redis://:secret@h"))


def test_no_command_takes_more_than_ten_parameters() -> None:
    import inspect

    create()
    for entry in ENTRIES:
        for single in getattr(entry, "entries", None) or (entry,):
            assert len(inspect.signature(single.function()).parameters) <= 10, single.name
