"""docs/cli.md, written from the application: ``python -m engineroom.cli.app.docs [--check]``."""

from __future__ import annotations

import difflib
import inspect
import sys
from pathlib import Path
from typing import Any

import typer

from engineroom.cli.app.lazy import CommandEntry, paragraphs
from engineroom.cli.app.main import ENTRIES, create
from engineroom.cli.app.options import shared_parameters
from engineroom.cli.errors import ExitCode

PAGE = Path(__file__).resolve().parents[4] / "docs" / "cli.md"

_INTRODUCTION = """\
# The command line

<!-- Written by `python -m engineroom.cli.app.docs`; change the commands, not this page. -->

`engineroom` shows, explains and changes pools and policies. If `kubectl-engineroom` is on the
`PATH`, it is also a kubectl plugin: `kubectl engineroom status`.

```console
$ pip install 'engineroom[cli]'
$ engineroom status
$ engineroom explain mail
```

It works in one of two ways. By kubeconfig, it calls the API server with your rights. After `login`,
it calls the [API process](#through-the-api-process). This page describes the first way unless it
says otherwise.

By kubeconfig, the data about pools comes from their status, their pods, their events and the
metrics server, if there is one. Only the commands for [jobs, queues, schedules, workers and rate
limits](#which-redis) use Redis. The program changes pools only on request: by a JSON merge patch
with the field manager `engineroom-cli`, or by [apply](#apply-all-or-nothing). `--dry-run=server`
shows the difference and writes nothing. To wait for a pool, use `kubectl wait --for=condition=Ready
workerpool/NAME`.

Unknown values are shown as `-` (in JSON and YAML `null`), never as zero.
"""

_INSTALLATION = """\
## Which installation

`ui`, `status`, `version`, `ratelimit top`, and the commands that use the chart's Redis, look for
the installation. Its namespace is the one to whose Service the cluster's
ValidatingWebhookConfiguration sends WorkerPools: a tenant cannot write that object. In that
namespace, Deployments are found by the names of the release, and pods by their controllers. Labels
decide nothing, because everyone may set them in a namespace of their own.

Name the namespace with `--system-namespace` or `ENGINEROOM_SYSTEM_NAMESPACE` if you may not list
ValidatingWebhookConfigurations, if the webhooks are not installed, or if the cluster has several
installations. `ui` also takes it from `--namespace`. Name only a namespace in which no tenant may
write.
"""

_WHICH_REDIS = """\
## Which Redis

`jobs`, `queues`, `schedules`, `workers` and `enqueue` work on one Redis. Without a URL they read it
from the cluster, with your rights: from the Secret in a pool's `spec.redis.urlSecretRef`, or from
the one that the operator created for a pool on the chart's Redis. Both are in the namespace that
you name, and authors of Secrets there choose the address; messages call it that pool's Redis. A
namespace without such a Secret uses the chart's Redis, whose address is in the Secret that the
operator's Deployment names in [the installation](#which-installation). If all pools of the
namespace use the same Redis, no option is needed.

If only pods can reach the Redis, the program forwards a connection through the API server to a
ready pod behind its Service. That needs a host name `NAME`, `NAME.NAMESPACE`, or one that ends in
`.svc` or `.svc.cluster.local`; any other host is reached from this machine. A name
`NAME.NAMESPACE` for the chart's Redis is refused if there is such a Service outside the
installation's namespace, because it may also be a host outside the cluster. TLS and password are
not changed, no local port is opened, and the connection is closed when the command ends.
`ratelimit` uses the Redis of a policy's `spec.redis`, or else the chart's, in the same way.
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

After `login` every command uses that [API process](api-process.md) and the permissions of your
account there. `--context` or `--kubeconfig` bypasses it for one command. `--server` or
`ENGINEROOM_SERVER` selects another one. An option takes precedence over the variable, and the
variable over the last login. Where no file may be stored, set `ENGINEROOM_TOKEN` to a token or an
API key; then no file is read or written.

| login by | stored | `logout` |
|---|---|---|
| the kubeconfig's token | no secret: the token is read again for each request | deletes the \
reference to the kubeconfig |
| name and password | access and refresh token, renewed when due | revokes both at the server |
| `--token-stdin` | the token or API key | deletes it; `keys revoke` revokes a key |

Credentials are stored in `$XDG_CONFIG_HOME/engineroom/credentials.json` with mode 0600; the program
refuses a file with another mode. A refresh token is valid once, so concurrent programs renew it one
after the other, under a lock. The server's certificate is always verified, by the CAs of the
machine or of `--ca-file`. Without TLS, only a server on this machine is accepted. Redirects are not
followed.

| command | through the API |
|---|---|
| `get`, `top`, `scale`, `pause`, `resume`, `drain`, `explain`, `status`, `apply`, `diff` | in one \
namespace |
| `jobs`, `enqueue`, `schedules`, `queues list`, `pause`, `resume`, `limit`, `unlimit`, `workers \
list` | for the queues that the namespace's pools read in the installation's Redis |
| `operations` | only through the API: bulk changes of jobs, see below |
| `keys`, `sessions`, `signing-keys`, `audit`, `whoami`, `ui` | only through the API |
| `transactions` | those of the namespace; by kubeconfig those of this machine |
| `lint` | needs neither the API nor a cluster |
| all others, `jobs list` by time, category or id, a job with `--limit`, `--depends-on` or \
`--until end` or without a time-out, and `--dry-run=server` of a single change | no: they end \
with 2 and say so |

Data that the API does not have is shown as unknown. `explain` shows neither pods nor events.
`status` checks the API, the queues, the pools and other kinds, but not the installation. Pods are
known only by their workers: `top` shows neither nodes nor restarts, nor the use of a pod apart from
its workers.

`jobs retry` and `jobs cancel` with a filter first show the number of jobs and ask for confirmation.
The server then runs the change as an operation and reports progress. It changes at most the
confirmed number of jobs: if more match by then, it refuses. Ctrl-C stops watching, not the
operation:

```console
$ engineroom jobs cancel --queue mail --state waiting --function 'shop.mail.*'
matches 12000 jobs of queue mail
operation 4be0643f1d98573b97caa7c1b0e8f6a2 has begun at the server
^C
$ engineroom operations show 4be0643f1d98573b97caa7c1b0e8f6a2 --wait
$ engineroom operations stop 4be0643f1d98573b97caa7c1b0e8f6a2     # what is done stays done
```

`engineroom ui` needs no login. With only a kubeconfig, it forwards a local port to the API process
of [the installation](#which-installation) and opens a browser that is signed in.

## Apply: all or nothing

```console
$ engineroom diff -f manifests/
$ engineroom apply -f manifests/
```

Up to 50 objects of one namespace are validated, tried as a dry run by the API server, and written
one after the other. Both ways use server-side apply with the field manager `engineroom-api`, so you
can switch between them. `diff` exits with 1 if something differs. If an object cannot be written,
the earlier writes are undone: created objects are deleted, and changed objects get back their
fields and field owners, except for changes that others have made in the meantime.

| interruption | through the API | by kubeconfig |
|---|---|---|
| an object is refused | undone | undone |
| Ctrl-C, SIGTERM | the server completes it; see `transactions` | undone, then exit status 130 |
| the command is killed, or its machine stops | the server completes it | **the writes \
stay** until `apply --recover` |
| the API process dies | another replica undoes the writes within half a minute | |

By kubeconfig, the log is on this machine, in `$XDG_STATE_HOME/engineroom`. While a transaction
runs, it contains the previous objects (mode 0600). Every line is on disk before its step begins.
`apply --recover` finds the transactions that no living process works on and undoes them; until then
`apply` does not start another one in that cluster. Recovery needs the same machine, the same user,
and a home directory on a local disk, because the locks are those of the kernel. In a CI job, whose
machine is deleted afterwards, use the API.

## Verifying the audit log

`audit verify` lets the server check the whole log. `--anchor`, a last line that you stored earlier,
also reveals a log that was restored from an older copy. With `--file` it checks an export without a
server, which needs the installation's secret:

```console
$ engineroom audit list --all -o json > audit.json
$ engineroom audit verify --file audit.json --secret-file secret --anchor 4711:9f...
```

The exit status is 0 if the log is intact, 1 if a record was edited, removed, added or reordered,
and another code if it could not be checked. An export that begins later than the log proves nothing
about earlier records, unless an anchor does.
"""

_REST = """\
## Errors

An error message contains the problem, its cause and the fix; `--debug` adds the stack trace:

```console
$ engineroom get
error: Engineroom is not installed in this cluster
  why: https://192.0.2.10:6443 has no workerpools.engineroom.dev
  fix: helm install engineroom charts/engineroom -n engineroom-system --create-namespace
```

Results are written to standard output; progress, notes and errors to standard error. If standard
output is not a terminal, lines are never wrapped and have no colours. `--no-color` and `NO_COLOR`
disable colours everywhere. Questions are asked only on a terminal, and `--yes` answers them.

## Rights

| command | verbs |
|---|---|
| `get` | `get`, `list` on `workerpools`, `ratelimitpolicies` |
| `explain`, `top` | also `list` on `pods`, `events`, `pods.metrics.k8s.io` (memory and CPU) |
| `status`, `version` | also `list` on `validatingwebhookconfigurations`, `get` on \
`customresourcedefinitions`; in the installation's namespace `list` on `deployments` and \
`statefulsets`, `get` on `leases`; what is denied is named in the output |
| `pause`, `resume`, `drain NAME`, `scale --min/--max` | also `patch` on `workerpools` |
| `scale NAME N` | `get` on `workerpools`, `patch` on `workerpools/scale` |
| `drain NAME` | also `list` on `pods`, to wait |
| `drain NAME POD`, `resume NAME POD` | `get` on `workerpools`, `get` and `patch` on `pods` |
| `apply`, `diff` | `get`, `create`, `patch`, `delete` on `workerpools`; `get` on the namespace \
where a template needs more than restricted |
| `ui` with a kubeconfig alone | `list` on `validatingwebhookconfigurations`; in the \
installation's namespace `get` on `deployments`, `list` on `replicasets` and `pods`, `get` and \
`create` on `pods/portforward`; without a token `get` on the API's Secret. With `-n` or \
`--system-namespace`, `list` on `deployments` there replaces the first |
| `jobs`, `queues`, `schedules`, `workers`, `enqueue` | with an URL none; else `list` on \
`workerpools`, `get` and `list` on `secrets`; for a Redis inside the cluster `get` on `services`, \
`list` on `pods`, `get` and `create` on `pods/portforward`: what the role `edit` has |
| the same on the chart's Redis | also `list` on `validatingwebhookconfigurations`; in the \
installation's namespace `get` on `deployments` and the Secret of Redis |
| `ratelimit test`, `ratelimit explain` | the same, and `get`, `list` on `ratelimitpolicies` |
| `ratelimit top` | `list` on `validatingwebhookconfigurations`; in the installation's namespace \
`get` on `deployments`, `list` on `replicasets` and `pods`, `get` and `create` on \
`pods/portforward` |
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
        "Write them before the command's name or after it (`lint`, `completion`: only before).\n"
    )
    parts.append(_options([parameter for parameter in group.params if parameter.name in shared]))
    parts += [_INSTALLATION, _WHICH_REDIS]
    enqueue = group.get_command(None, "enqueue")
    only = {"redis_url", "pool"}
    parts.append(_options([parameter for parameter in enqueue.params if parameter.name in only]))
    parts.append("## Commands\n")
    for entry in ENTRIES:
        if not entry.present:
            continue
        command = group.get_command(None, entry.name)
        if isinstance(entry, CommandEntry):
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


def _command(entry: CommandEntry, name: str, command: Any, shared: set[str]) -> list[str]:
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
