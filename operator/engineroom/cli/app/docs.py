"""docs/cli.md, written from the application: ``python -m engineroom.cli.app.docs [--check]``."""

from __future__ import annotations

import difflib
import inspect
import sys
from pathlib import Path
from typing import Any

import typer

from engineroom.cli.app.lazy import Entry, paragraphs
from engineroom.cli.app.main import ENTRIES, create
from engineroom.cli.app.options import shared_parameters
from engineroom.cli.errors import ExitCode

PAGE = Path(__file__).resolve().parents[4] / "docs" / "cli.md"

_INTRODUCTION = """\
# The command line

<!-- Written by `python -m engineroom.cli.app.docs`; change the commands, not this page. -->

`engineroom` looks at pools, explains them and changes them. As `kubectl-engineroom` on the `PATH`
it is a kubectl plugin: `kubectl engineroom status`.

```console
$ pip install 'engineroom[cli]'
$ engineroom status
$ engineroom explain mail
```

It has two ways. By your kubeconfig it talks to the API server, with your rights there. Logged in
to the [API process](#through-the-api-process) it goes through that. What follows is of the first,
unless it says otherwise.

By the kubeconfig, what it shows of pools comes from their status, their pods, their events and,
where there is one, the metrics server. Only the
commands on [jobs, queues, schedules, workers and rate limits](#which-redis) go to Redis. To pools
it writes only what you ask for, as a JSON merge patch with the field manager `engineroom-cli`, and
what you [apply](#apply-all-or-nothing);
`--dry-run=server` shows the difference and writes nothing. To wait for a pool there is
`kubectl wait --for=condition=Ready workerpool/NAME`.

What it does not know it shows as `-` (in JSON and YAML `null`), never as zero.
"""

_WHICH_REDIS = """\
## Which Redis

`jobs`, `queues`, `schedules`, `workers` and `enqueue` work on a Redis. Without an URL they ask the
cluster, with your rights: the Secret that a pool's `spec.redis.urlSecretRef` names, or the one that
the operator made for a pool on the chart's Redis. As long as the pools of the namespace share one,
nothing needs to be said. A Redis that only pods can reach is reached through the API server, by
forwarding to a ready pod behind its Service; TLS and password go through unchanged, no local port
is opened, and the way is closed when the command ends. `ratelimit` goes the same way to the Redis
of a policy's `spec.redis`, or else to the chart's.
"""

_API = """\
## Through the API process

```console
$ engineroom login --server https://engineroom.example           # shows the kubeconfig's token
$ engineroom login --server https://engineroom.example --user admin
$ pass show engineroom | engineroom login --server https://engineroom.example --token-stdin
$ engineroom whoami
$ engineroom logout
```

After `login` every command goes through the [API process](api-process.md) there, with what it lets
you do. `--context` or `--kubeconfig` leads past it for one command, `--server` or
`ENGINEROOM_SERVER` to another one, in this order: options, variable, last login. Where no file may
be kept, `ENGINEROOM_TOKEN` has a token or an API key, and nothing is read or written.

| you log in by | what is kept | what `logout` does |
|---|---|---|
| the kubeconfig's token | no secret: it is asked for anew for each request | forgets which one |
| name and password | access and refresh token, renewed when due | revokes both at the server |
| `--token-stdin` | the token or API key | forgets it; `keys revoke` ends a key |

It is kept in `$XDG_CONFIG_HOME/engineroom/credentials.json`, mode 0600; with any other mode it is
refused. A refresh token is good once, so programs renew it one after the other, under a lock. The
server's certificate is always verified, by the machine's authorities or those of `--ca-file`;
without TLS a server is spoken to on this machine only. No redirect is followed.

| command | through the API |
|---|---|
| `get`, `top`, `scale`, `pause`, `resume`, `drain`, `explain`, `status`, `apply`, `diff` | in one \
namespace; of pools, not of `policies`, which `apply` and `diff` do take |
| `jobs`, `enqueue`, `schedules`, `queues list`, `pause`, `resume`, `limit`, `unlimit`, `workers \
list` | of the queues that the namespace's pools read in the installation's Redis |
| `operations` | changes of many jobs, see below; nowhere else |
| `keys`, `sessions`, `signing-keys`, `audit`, `whoami`, `ui` | nowhere else |
| `transactions` | of the namespace; by the kubeconfig those of this machine |
| `lint` | needs neither |
| all others, `jobs list` by time, category or id, a job with `--limit`, `--depends-on` or \
`--until end` or without a time-out, and `--dry-run=server` of a single change | no: they end \
with 2 and say so |

What the API does not see is shown as unknown: `explain` has neither pods nor events, `status` looks
at the API, the queues, the pools and other kinds, not at what is installed, and a pod is known by
its workers: `top` has neither nodes nor restarts, nor what a pod uses beside its workers.

`jobs retry` and `jobs cancel` with a filter first say how many jobs that is, and ask. The change is
then an operation of the server, with progress. After a confirmation the server changes no more
jobs than the question named: if more match by then, it refuses. Ctrl-C ends the watching, not the
operation:

```console
$ engineroom jobs cancel --queue mail --state waiting --function 'shop.mail.*'
matches 12000 jobs of queue mail
operation 4be0643f1d98573b97caa7c1b0e8f6a2 has begun at the server
^C
$ engineroom operations show 4be0643f1d98573b97caa7c1b0e8f6a2 --wait
$ engineroom operations stop 4be0643f1d98573b97caa7c1b0e8f6a2     # what is done stays done
```

`engineroom ui` needs no login. With a kubeconfig alone it forwards a port of this machine to the
API process in the cluster and opens a browser that is signed in.

## Apply: all or nothing

```console
$ engineroom diff -f manifests/
$ engineroom apply -f manifests/
```

Up to 50 objects of one namespace are checked, rehearsed by the API server, and written one after
the other, by server-side apply under the manager `engineroom-api` both ways, so that you may
change the way. `diff` ends with 1 when something differs. When an object cannot be written, those
before it are put back: what was created is deleted; of what was changed, fields and their owners
are as before, but for what others changed meanwhile.

| what happens in the middle | through the API | by the kubeconfig |
|---|---|---|
| an object is refused | put back | put back |
| Ctrl-C, SIGTERM | it is completed: ask `transactions` | put back, then the command ends with 130 |
| the command is killed, its machine stops | it is completed | **what was written stays** until \
`apply --recover` |
| the API process dies | another replica puts back within half a minute | |

By the kubeconfig the log is on this machine, in `$XDG_STATE_HOME/engineroom`, with the objects as
they were while a transaction runs (mode 0600); every line is on the disk before the step it is
about. `apply --recover` finds there what no living process works on and puts it back; until then
`apply` refuses to begin another one in that cluster. It has to be the same machine and the same
user, and a home on a local disk, whose locks are the kernel's. In a CI job, whose machine is
deleted afterwards, go through the API.

## Is the audit log what was written?

`audit verify` has the server read the whole log; `--anchor`, a last line noted earlier, finds one
that was set back as a whole. With `--file` it checks an export without any server, which needs the
installation's secret:

```console
$ engineroom audit list --all -o json > audit.json
$ engineroom audit verify --file audit.json --secret-file secret --anchor 4711:9f...
```

It ends with 0 for intact, with 1 for a record that was edited, removed, added or reordered, with
another code when it could not be checked. An export that begins later than the log shows nothing of
what was before it, unless an anchor does.
"""

_REST = """\
## Errors

An error says what happened, why, and the fix; `--debug` adds the stack trace:

```console
$ engineroom get
error: Engineroom is not installed in this cluster
  why: https://192.0.2.10:6443 has no workerpools.engineroom.dev
  fix: helm install engineroom charts/engineroom -n engineroom-system --create-namespace
```

Answers go to standard output; progress, notes and errors to standard error.
Where standard output is no terminal, lines are never broken and there are no colours.
`--no-color` and `NO_COLOR` switch colours off everywhere. Questions are asked only on a terminal,
and `--yes` answers them.

## Rights

| command | verbs |
|---|---|
| `get` | `get`, `list` on `workerpools`, `ratelimitpolicies` |
| `explain`, `top` | also `list` on `pods`, `events`, `pods.metrics.k8s.io` (memory and CPU) |
| `status`, `version` | also `list` on `deployments`, `statefulsets`, \
`validatingwebhookconfigurations`, `get` on `leases` and `customresourcedefinitions`; what is \
denied is named in the output |
| `pause`, `resume`, `drain NAME`, `scale --min/--max` | also `patch` on `workerpools` |
| `scale NAME N` | `get` on `workerpools`, `patch` on `workerpools/scale` |
| `drain NAME` | also `list` on `pods`, to wait |
| `drain NAME POD`, `resume NAME POD` | `get` on `workerpools`, `get` and `patch` on `pods` |
| `apply`, `diff` | `get`, `create`, `patch`, `delete` on `workerpools`; `get` on the namespace \
where a template needs more than restricted |
| `ui` with a kubeconfig alone | `list` on `services`, `get` on that one, `list` on `pods`, \
`get` and `create` on `pods/portforward`; without a token `list` on `deployments` \
and `get` on the API's Secret |
| `jobs`, `queues`, `schedules`, `workers`, `enqueue` | with an URL none; else `list` on \
`workerpools`, `get` and `list` on `secrets`; for a Redis inside the cluster `get` on `services`, \
`list` on `pods`, `get` and `create` on `pods/portforward`: what the role `edit` has |
| `ratelimit test`, `ratelimit explain` | the same, and `get`, `list` on `ratelimitpolicies` |
| `ratelimit top` | `list` on `pods`, `get` and `create` on `pods/portforward` in the namespace of \
the decision service |
"""


def render() -> str:
    """The page."""
    group: Any = typer.main.get_command(create())
    which = [parameter.name for parameter in shared_parameters(redis=True)]
    shared = set(which)
    parts = [_INTRODUCTION, "## Exit codes\n", "| code | means |\n|---|---|"]
    parts[-1] += "".join(f"\n| {code.value} | {code.meaning} |" for code in ExitCode) + "\n"
    parts.append("## Options of all commands\n")
    parts.append(
        "They may stand before the command's name or, but for `lint` and `completion`, after it.\n"
    )
    parts.append(_options([parameter for parameter in group.params if parameter.name in shared]))
    parts.append(_WHICH_REDIS)
    enqueue = group.get_command(None, "enqueue")
    only = {"redis_url", "pool"}
    parts.append(_options([parameter for parameter in enqueue.params if parameter.name in only]))
    parts.append("## Commands\n")
    for entry in ENTRIES:
        if not entry.present:
            continue
        command = group.get_command(None, entry.name)
        if isinstance(entry, Entry):
            parts += _command(entry, entry.name, command, shared)
            continue
        for member in entry.entries:
            parts += _command(
                member,
                f"{entry.name} {member.name}",
                command.get_command(None, member.name),
                shared,
            )
    parts.append(_API)
    parts.append(_REST)
    return "\n".join(parts)


def _command(entry: Entry, name: str, command: Any, shared: set[str]) -> list[str]:
    parts = [f"### engineroom {_usage(name, command)}\n"]
    parts.append(f"{paragraphs(inspect.getdoc(entry.function()) or '')}\n")
    own = [parameter for parameter in command.params if parameter.name not in shared | {"help"}]
    if own:
        parts.append(_options(own))
    return parts


def _usage(name: str, command: Any) -> str:
    words = [name]
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            metavar = (parameter.metavar or parameter.name.upper()).removesuffix("...")
            metavar += "..." if parameter.nargs == -1 else ""
            words.append(metavar if parameter.required else f"[{metavar}]")
    return " ".join(words)


def _options(parameters: list[Any]) -> str:
    lines = ["| option | |", "|---|---|"]
    for parameter in parameters:
        if parameter.param_type_name == "argument":
            label = f"`{_escape(parameter.metavar or parameter.name.upper())}`"
        else:
            names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
            value = "" if parameter.is_flag else f" {_value(parameter)}"
            label = f"{names}{value}"
        text = parameter.help or ""
        if parameter.param_type_name == "option" and _is_printable(parameter.default):
            text += f" Default: {parameter.default}."
        lines.append(f"| {label} | {text} |".replace("<", "&lt;"))
    return "\n".join(lines) + "\n"


def _is_printable(default: object) -> bool:
    return isinstance(default, str | int | float) and not isinstance(default, bool)


def _value(option: Any) -> str:
    if option.metavar:
        return f"`{_escape(option.metavar)}`"
    choices = getattr(option.type_descriptor, "choices", None)
    if choices:
        return f"`{_escape('|'.join(str(choice.value) for choice in choices))}`"
    return "`N`"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """Write the page, or with ``--check`` say whether it is as it would be written."""
    text = render()
    if "--check" not in arguments:
        PAGE.write_text(text)
        return 0
    written = PAGE.read_text() if PAGE.exists() else ""
    difference = list(
        difflib.unified_diff(
            written.splitlines(), text.splitlines(), "docs/cli.md", "the commands", lineterm=""
        )
    )
    if difference:
        print("\n".join(difference))
        print("docs/cli.md differs from the commands; run: python -m engineroom.cli.app.docs")
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
