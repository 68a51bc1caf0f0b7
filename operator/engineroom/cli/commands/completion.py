"""``engineroom completion``: print the completion script of a shell."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from engineroom.cli.errors import COMPLETE_VARIABLE, PLUGIN, PROGRAM

#: kubectl runs this file, found on the PATH under exactly this name, to complete a plugin.
_KUBECTL = f"""\
#!/bin/sh
# Save as kubectl_complete-engineroom, executable, in a directory of the PATH:
# kubectl asks it to complete `kubectl engineroom`. The last line tells kubectl: no file names.
{COMPLETE_VARIABLE}=complete_bash COMP_WORDS="{PLUGIN} $*" COMP_CWORD=$# {PLUGIN}
echo :4"""


class CompletionShell(StrEnum):
    """Programs with a completion script."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    KUBECTL = "kubectl"


def completion(
    shell: Annotated[
        CompletionShell, typer.Argument(metavar="bash|zsh|fish|kubectl", help="Shell, or kubectl.")
    ],
) -> None:
    """Print the completion script of a shell, or of kubectl for its plugin.

    For bash: `source <(engineroom completion bash)`. For kubectl: `engineroom completion kubectl >
    ~/.local/bin/kubectl_complete-engineroom && chmod +x ~/.local/bin/kubectl_complete-engineroom`.
    """
    if shell is CompletionShell.KUBECTL:
        typer.echo(_KUBECTL)
        return
    from typer import completion as typers

    scripts: Any = typers
    script = scripts.get_completion_script
    # nosec B604 - the name of a shell, and nothing is run
    typer.echo(script(prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE, shell=shell))
