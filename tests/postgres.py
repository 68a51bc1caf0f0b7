"""A PostgreSQL of the tests' own: on loopback and on a socket, gone when they end."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator


def binaries() -> Path:
    """Where initdb and pg_ctl are: the newest version that Debian has, else the one on the path.

    Raises FileNotFoundError where PostgreSQL is not installed.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    if found:
        return found[-1]
    initdb = shutil.which("initdb")
    if initdb is None:
        raise FileNotFoundError("PostgreSQL is not installed: make doctor")
    return Path(initdb).parent


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """Its connection string, ``host=127.0.0.1 port=... user=postgres dbname=postgres``.

    Nothing of it survives a crash of the machine (fsync is off); two-phase commit is on.
    """
    programs, port = binaries(), free_port()
    home = Path(tempfile.mkdtemp(prefix="engineroom-postgres-"))
    run: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "cwd": home}
    if os.geteuid() == 0:  # it refuses to run as root
        shutil.chown(home, "postgres")
        run |= {"user": "postgres", "extra_groups": []}
    data = home / "data"
    init = [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"]
    subprocess.run(init, **run)
    control = [programs / "pg_ctl", "-D", data, "-w", "-l", home / "log"]
    options = (
        f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -c fsync=off "
        "-c max_prepared_transactions=64"
    )
    subprocess.run([*control, "-o", options, "start"], **run)
    try:
        yield f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **run)
        shutil.rmtree(home)
