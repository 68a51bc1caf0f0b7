"""The program as a whole: its start, its help, its options, its documentation."""

from __future__ import annotations

import inspect
import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import typer

from engineroom.cli.app import docs
from engineroom.cli.app.lazy import CommandEntry, paragraphs
from engineroom.cli.app.main import ENTRIES, create, main
from engineroom.cli.connections.options import ConnectionOptions

if TYPE_CHECKING:
    from pathlib import Path

RUN = "import sys; sys.argv[0] = {name!r}; from engineroom.cli.app.main import main; main()"


def run(
    *arguments: str, name: str = "engineroom", **environment: str
) -> subprocess.CompletedProcess[str]:
    clean = dict(os.environ)
    for variable in ("NO_COLOR", "FORCE_COLOR", "KUBECONFIG"):
        clean.pop(variable, None)
    return subprocess.run(
        [sys.executable, "-c", RUN.format(name=name), *arguments],
        env={**clean, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "100", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["version", "--client"], ["jobs", "--help"], ["queues", "--help"]]
)
def test_the_start_imports_neither_the_kubernetes_client_nor_our_api_models(
    arguments: list[str],
) -> None:
    script = (
        "import sys\n"
        "from engineroom.cli.app.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stderr.split())
    heavy = {"kubernetes", "yaml", "redis", "rq", "structlog", "engineroom.api.v1alpha1.workerpool"}
    assert loaded & heavy == set()
    if arguments[-1] == "--help":
        # A lookup of a module imports the packages above it, which are empty.
        folders = ("access", "manifests", "pools", "tasks")
        packages = {f"engineroom.cli.commands.{folder}" for folder in folders}
        commands = {name for name in loaded if name.startswith("engineroom.cli.commands.")}
        assert commands <= packages


def test_the_version_is_said_before_anything_is_imported() -> None:
    script = (
        "import sys\nfrom engineroom.cli.start import main\nsys.argv[1:] = ['--version']\nmain()\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"typer", "rich", "pydantic"} & set(done.stderr.split()) == set()
    assert done.stdout == run("--version").stdout == run("-n", "x", "--version").stdout
    assert done.stdout.startswith("engineroom ")


SMALLEST = """
import typer
app = typer.Typer(add_completion=False)
@app.command()
def main(flag: bool = False) -> None:
    typer.echo(flag)
app()
"""


@pytest.mark.parametrize("arguments", [["--help"], ["version", "--client"], ["jobs", "--help"]])
def test_the_start_costs_little_more_than_that_of_the_smallest_typer_program(
    arguments: list[str],
) -> None:
    """CPU time against CPU time in the same moments: this machine may be slow, or busy.

    typer from 0.29 on imports pydantic to read even a flag: more than half of the whole start.
    """

    def cpu(command: list[str]) -> float:
        def used() -> float:
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)
            return usage.ru_utime + usage.ru_stime

        before = used()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run(command, env=environment, capture_output=True, check=True)
        return used() - before

    ours = [sys.executable, "-c", RUN.format(name="engineroom"), *arguments]
    smallest = [sys.executable, "-c", SMALLEST, *([] if arguments == ["--help"] else ["--flag"])]
    pairs = [(cpu(ours), cpu(smallest)) for _ in range(7)]
    assert min(one for one, _ in pairs) <= 1.9 * min(other for _, other in pairs), pairs


def test_the_line_in_the_help_is_the_first_of_the_commands_own() -> None:
    for name, entry in every_command():
        first = paragraphs(inspect.getdoc(entry.function()) or "").partition("\n\n")[0]
        assert entry.summary == first, name


def every_command() -> list[tuple[str, CommandEntry]]:
    found: list[tuple[str, CommandEntry]] = []
    for one in ENTRIES:
        if isinstance(one, CommandEntry):
            found.append((one.name, one))
        else:
            found += [(f"{one.name} {entry.name}", entry) for entry in one.entries]
    return [(name, entry) for name, entry in found if entry.present]


def test_every_command_has_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    group = typer.main.get_command(create())
    for name, entry in every_command():
        with pytest.raises(SystemExit) as ended:
            main([*name.split(), "--help"])
        shown = capsys.readouterr()
        assert ended.value.code == 0, shown.err
        assert f"engineroom {name}" in shown.out
        assert ("--redis-url" in shown.out) == entry.redis
    assert [entry.name for entry in ENTRIES if entry.present] == group.list_commands(None)  # type: ignore[attr-defined]


def test_the_documentation_is_what_the_application_says() -> None:
    assert docs.render() == docs.PAGE.read_text()


def test_the_check_of_the_documentation_fails_where_it_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(docs, "PAGE", tmp_path / "cli.md")
    assert docs.main(["--check"]) == 1
    assert "run: python -m engineroom.cli.app.docs" in capsys.readouterr().out
    assert docs.main([]) == 0
    assert docs.main(["--check"]) == 0


def test_as_a_kubectl_plugin_it_goes_by_the_plugins_name() -> None:
    done = run("--help", name="/usr/local/bin/kubectl-engineroom")
    assert "Usage: kubectl engineroom" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["get", "--frobnicate"],
        ["explain"],
        ["scale", "mail", "-5"],
        ["scale", "mail", "many"],
        ["pause", "mail", "--direction", "sideways"],
        ["get", "-o", "xml"],
    ],
)
def test_wrong_usage_ends_with_two(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Usage: engineroom" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_kubeconfig_that_is_not_there_ends_with_three_and_names_the_fix(tmp_path: Path) -> None:
    for text in (None, "", "[]", "{", "apiVersion: v1\nkind: Config\ncurrent-context: x\n"):
        path = tmp_path / "config"
        if text is not None:
            path.write_text(text)
        done = run("get", "--kubeconfig", str(path))
        assert done.returncode == 3, done.stderr
        assert done.stdout == ""
        what, why, fix = done.stderr.splitlines()
        assert what == f"error: cannot use the kubeconfig {path}"
        assert why.startswith("  why: ")
        assert "--kubeconfig or KUBECONFIG" in fix


def test_debug_shows_the_stack_trace(tmp_path: Path) -> None:
    done = run("--debug", "get", "--kubeconfig", str(tmp_path / "none"))
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_colour_is_for_terminals_and_can_be_switched_off() -> None:
    coloured = run("--help", FORCE_COLOR="1")
    assert "\x1b[" in coloured.stdout
    for done in (
        run("--help"),
        run("--help", "--no-color", FORCE_COLOR="1"),
        run("--help", NO_COLOR="1", FORCE_COLOR="1"),
    ):
        assert "\x1b[3" not in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert f"_ENGINEROOM_COMPLETE=complete_{shell}" in done.stdout


def test_completion_completes_commands_and_survives_a_missing_cluster(tmp_path: Path) -> None:
    environment = {"_ENGINEROOM_COMPLETE": "complete_bash", "KUBECONFIG": str(tmp_path / "none")}
    done = run(COMP_WORDS="engineroom re", COMP_CWORD="1", **environment)
    assert done.stdout.split() == ["resume"]
    done = run(COMP_WORDS="engineroom explain ", COMP_CWORD="2", **environment)
    assert (done.stdout.split(), done.stderr) == (["pools", "policies"], "")


def test_the_completion_of_the_plugin_is_a_script_that_kubectl_can_run(tmp_path: Path) -> None:
    plugin = tmp_path / "kubectl-engineroom"
    script = RUN.format(name="kubectl-engineroom")
    plugin.write_text(f"#!{sys.executable}\n{script}\n")
    complete = tmp_path / "kubectl_complete-engineroom"
    complete.write_text(run("completion", "kubectl").stdout)
    for entry in (plugin, complete):
        entry.chmod(0o755)
    done = subprocess.run(
        [complete, "dr"],
        env=os.environ
        | {
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["drain", ":4"]


def test_options_after_the_command_win_over_those_before() -> None:
    earlier = ConnectionOptions(kube_context="a", namespace="x", pool="mail")
    assert ConnectionOptions(namespace="y").over(earlier) == ConnectionOptions(
        kube_context="a", namespace="y", pool="mail"
    )
