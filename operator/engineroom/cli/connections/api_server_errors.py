"""Answers of the API server as errors of the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from engineroom.api import kinds
from engineroom.cli.errors import (
    INSTALL,
    CliError,
    ForbiddenError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    program,
)

if TYPE_CHECKING:
    from engineroom.api.kinds import Kind


def answer_error(
    what: str, status: int, reason: str | None, body: str | bytes | None, server: str
) -> CliError:
    """The API server's answer as an error that says what, why and what to do."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else body or ""
    try:
        answer = json.loads(text)
    except ValueError:
        answer = {}
    message = str(answer.get("message") or text.strip() or reason or "")
    if status == 0:
        return unreachable(server, message)
    if status == 401:
        return ForbiddenError(
            f"{server} does not know who you are",
            why=message or "Unauthorized",
            fix="log in again, or choose another --context; `kubectl auth whoami` tries it",
        )
    if "failed calling webhook" in message:
        return RefusedError(
            f"the change of {what} could not be checked, and so was refused",
            why=message,
            fix=f"nothing was written; `{program()} status` shows what is wrong with the webhooks",
        )
    if "admission webhook" in message:
        return RefusedError(
            f"the change of {what} was refused",
            why=message,
            fix="change what the message names; nothing was written",
        )
    if status == 403:
        return ForbiddenError(
            f"you may not do this with {what}",
            why=message,
            fix="ask an administrator for it: the chart adds its rights to the cluster roles view, "
            "edit and admin, so a RoleBinding to edit (view, to look only) in the namespace does",
        )
    if status == 404 and not (answer.get("details") or {}).get("name"):
        # The path is unknown, so the kind is missing and not one object.
        return NotFoundError(
            "Engineroom is not installed in this cluster",
            why=f"{server} has no {_kind_of(what).resource}" if what != "discovery" else message,
            fix=INSTALL,
        )
    if status == 404:
        words = _kind_of(what).plural_noun
        return NotFoundError(
            f"{what} is not there",
            why=message,
            fix=f"`{program()} get {words} -A` lists all {words}",
        )
    if status in (409, 422, 400):
        return RefusedError(
            f"the change of {what} was refused",
            why=message,
            fix="read the present object, and try again"
            if status == 409
            else "change what the message names; nothing was written",
        )
    return UnreachableError(
        f"{server} answered {status} {reason or ''}".rstrip(),
        why=message,
        fix="try again; if the error stays, check the API server's log",
    )


def unreachable(server: str, why: str) -> UnreachableError:
    """No answer from the API server."""
    return UnreachableError(
        f"cannot reach the cluster at {server}",
        why=" ".join(why.split()),
        fix="check that the cluster runs and that --kubeconfig and --context name the right one; "
        "`kubectl cluster-info` tries the same way",
    )


def _kind_of(what: str) -> Kind:
    """Return the kind in the description of a request, WorkerPool if there is none."""
    return kinds.registry().by_word(what.partition(" ")[0]) or kinds.WORKER_POOL
