"""``engineroom apply``: apply manifests as one transaction, through the API or directly."""

import secrets
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from engineroom.api import GROUP
from engineroom.cli.app.context import CommandContext
from engineroom.cli.commands.output import present
from engineroom.cli.connections.manifest_files import Manifest, differences, gather, namespace_of
from engineroom.cli.errors import CliError, ExitCode, RefusedError, UnreachableError, UsageError
from engineroom.cli.views.output_formats import OutputFormat, dump

if TYPE_CHECKING:
    from engineroom.cli.connections.model import Document

#: A request whose answer was lost is asked for again so often, under the same key: it is done once.
_TRIES = 6

Files = Annotated[
    list[str] | None,
    typer.Option(
        "--filename",
        "-f",
        metavar="FILE",
        help="Manifest, directory of manifests, or - for standard input; may be given several "
        "times.",
    ),
]
Recursive = Annotated[bool, typer.Option("--recursive", "-R", help="Read subdirectories, too.")]
Force = Annotated[bool, typer.Option("--force", help="Take over fields that other managers own.")]
OutputOption = Annotated[
    OutputFormat, typer.Option("--output", "-o", help="Output format.", case_sensitive=False)
]


def apply(
    context: CommandContext,
    files: Files = None,
    recursive: Recursive = False,
    force: Force = False,
    dry_run: Annotated[
        str,
        typer.Option(
            "--dry-run",
            metavar="none|server",
            help="With `server`, everything is checked and compared; nothing is written.",
        ),
    ] = "none",
    recover: Annotated[
        bool,
        typer.Option(
            "--recover",
            help="Undo the writes of an `apply` by kubeconfig that was killed on this machine.",
        ),
    ] = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Apply manifests as one transaction: all objects, or none.

    Each object is validated as by admission, and tried as a dry run by the API server. Then the
    objects are written one after the other by server-side apply. If a write fails, the earlier
    writes are undone: created objects are deleted, and changed objects get back their previous
    content.

    Through the API process, a crash is covered as well: another replica undoes the writes within
    half a minute. By kubeconfig, this program does the work. If it is interrupted (Ctrl-C,
    SIGTERM), it undoes the writes first. If it is killed or its machine stops, the writes stay
    until `apply --recover` on the same machine; until then no other `apply` can start there.
    """
    from engineroom.cli.commands.arguments import is_dry_run

    if recover:
        if files:
            raise UsageError("--recover and -f exclude each other", fix="recover first")
        _recover(context, output)
        return
    rehearse = is_dry_run(dry_run)
    manifest, namespace = _read_manifest(context, files, recursive)
    if context.through_api:
        done = _through_api(context, manifest, namespace, force=force, dry_run=rehearse)
    else:
        done = _directly(context, manifest, namespace, force=force, dry_run=rehearse)
    _report(context, done, namespace, output)


def diff(
    context: CommandContext,
    files: Files = None,
    recursive: Recursive = False,
    force: Force = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show the changes that `apply` would make, without writing.

    The exit status is 0 if there are no changes, 1 if there are, and another code if they could not
    be determined.
    """
    manifest, namespace = _read_manifest(context, files, recursive)
    if context.through_api:
        body: Document = {"manifest": manifest.text, "force": force}
        try:
            done = context.api.post(f"/namespaces/{namespace}/manifests/diff", body)
        except CliError as error:
            error.what, error.why = manifest.in_files(error.what), manifest.in_files(error.why)
            raise
    else:
        done = _directly(context, manifest, namespace, force=force, dry_run=True)
    if output in (OutputFormat.JSON, OutputFormat.YAML):
        context.show(dump(done, output))
    elif output is OutputFormat.NAME:
        _names(context, done["objects"])
    else:
        context.show(differences(done["objects"]))
    if any(document["action"] != "unchanged" for document in done["objects"]):
        raise typer.Exit(ExitCode.PROBLEM)


def _read_manifest(
    context: CommandContext, files: list[str] | None, recursive: bool
) -> tuple[Manifest, str]:
    if not files:
        raise UsageError("what is to be applied?", fix="name it with -f; - is standard input")
    manifest = gather(files, recursive=recursive)
    return manifest, namespace_of(manifest, context.options.namespace) or context.namespace


def _through_api(
    context: CommandContext, manifest: Manifest, namespace: str, *, force: bool, dry_run: bool
) -> "Document":
    body: Document = {"manifest": manifest.text, "dryRun": dry_run, "force": force}
    path = f"/namespaces/{namespace}/manifests"
    # With the key a request that comes twice is done once, so a lost answer is asked for again.
    key = {"Idempotency-Key": secrets.token_hex(16)}
    for left in reversed(range(_TRIES)):
        try:
            return context.api.post(path, body, key)
        except (UnreachableError, RefusedError) as error:
            code: Any = error.context.get("code")
            lost = isinstance(error, UnreachableError) and code is None
            if left == 0 or not (lost or code == "idempotency_key_busy"):
                raise
            context.note(f"{error.what}; asking again")
            context.sleep(2.0 ** (_TRIES - left - 2))
        except CliError as error:
            error.what, error.why = manifest.in_files(error.what), manifest.in_files(error.why)
            raise
    raise AssertionError


def _directly(
    context: CommandContext, manifest: Manifest, namespace: str, *, force: bool, dry_run: bool
) -> "Document":
    from engineroom.cli.connections.local_apply import LocalApply, objects_of
    from engineroom.core.errors import InvalidInputError, Problem

    local = LocalApply(context.cluster, context.note)
    if not dry_run:
        local.refuse_if_left()
    try:
        planned = local.plan(namespace, manifest.text, force=force)
    except InvalidInputError as error:
        raise type(error)(
            [Problem(manifest.in_files(p.field), p.problem, p.fix) for p in error.problems]
        ) from error
    objects = objects_of(planned)
    changing = [entry for entry in planned if entry.action != "unchanged"]
    if dry_run or not changing:
        outcome = "planned" if dry_run else "unchanged"
        return {"outcome": outcome, "transaction": None, "objects": objects}
    transaction = local.run(namespace, changing, force=force)
    return {"outcome": "committed", "transaction": transaction, "objects": objects}


def _report(
    context: CommandContext, done: "Document", namespace: str, output: OutputFormat
) -> None:
    objects = done["objects"]
    if output in (OutputFormat.JSON, OutputFormat.YAML):
        context.show(dump(done, output))
    elif output is OutputFormat.NAME:
        _names(context, objects)
    elif done["outcome"] == "planned":
        context.show(differences(objects))
        context.note("rehearsed by the server; nothing was changed")
    else:
        words = {"create": "created", "update": "configured"}
        lines = [
            f"{document['kind']}/{document['name']} "
            f"{words.get(document['action'], document['action'])}"
            for document in objects
        ]
        context.show(Text("\n".join(lines)))
        if done["transaction"]:
            context.note(f"transaction {done['transaction']} in namespace {namespace}")


def _names(context: CommandContext, objects: "list[Document]") -> None:
    if objects:
        lines = [f"{document['kind'].lower()}.{GROUP}/{document['name']}" for document in objects]
        context.show(Text("\n".join(lines)))


def _recover(context: CommandContext, output: OutputFormat) -> None:
    from engineroom.cli.connections.local_apply import LocalApply, transaction_document

    if context.through_api:
        raise UsageError(
            "the API process recovers by itself",
            why="its replicas recover transactions by themselves",
            fix="for an `apply` by a kubeconfig name its context with --context",
        )
    transactions = [
        transaction_document(record)
        for record in LocalApply(context.cluster, context.note).recover()
    ]
    present(
        context, output, {"items": transactions}, [entry["id"] for entry in transactions],
        lambda: Text("\n".join(f"{entry['id']} {entry['status']}" for entry in transactions)),
        none="there is nothing to put back",
    )  # fmt: skip
    if any(entry["status"] not in ("rolled_back", "committed") for entry in transactions):
        raise typer.Exit(ExitCode.PROBLEM)
