"""The status of objects as GitOps engines judge it: kstatus of cli-utils, built from its module."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.cluster import binaries

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Verdict:
    """A status: Current, InProgress, Failed, Terminating, NotFound or Unknown; and its reason."""

    status: str
    message: str


def judge(objects: Sequence[dict[str, Any]]) -> list[Verdict]:
    """Return the verdict on each object as it was read from the API server."""
    lines = "".join(json.dumps(thing) + "\n" for thing in objects)
    done = subprocess.run(
        [binaries.path_of("kstatus")], input=lines, check=True, stdout=subprocess.PIPE, text=True
    )
    return [Verdict(**json.loads(line)) for line in done.stdout.splitlines()]
