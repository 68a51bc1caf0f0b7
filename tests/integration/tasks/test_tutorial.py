"""The tutorial does what it says: its files are written, its commands run, its output compared."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support import ROOT, RedisServer

if TYPE_CHECKING:
    import psycopg
    from redis import Redis

PAGE = ROOT / "docs/tutorials/tasks.md"


def test_the_tutorial_from_its_first_to_its_last_line(
    server: RedisServer,
    redis: Redis,
    address: str,
    database: psycopg.Connection[Any],
    tmp_path: Path,
) -> None:
    database.execute("DROP TABLE engineroom_outbox, orders")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'operator'}:{tmp_path}",
        "REDIS_URL": server.url,
        "DATABASE_URL": address,
    }
    commands = 0
    for kind, block in blocks:
        if kind == "python":
            name = re.match(r"# (\w+\.py)\n", block)
            assert name, block
            (tmp_path / name[1]).write_text(block)
        elif kind == "console":
            for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, said = step.partition("\n")
                if command.startswith("pip install"):
                    named = re.search(r"engineroom\[(.*?)\]", command)
                    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
                    assert named
                    assert set(named[1].split(",")) <= set(project["optional-dependencies"])
                    continue
                ran = subprocess.run(
                    ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True,
                    text=True, check=False, timeout=60,
                )  # fmt: skip
                assert (ran.stdout, ran.returncode) == (said, 0), f"{command}\n{ran.stderr}"
                commands += 1
    assert commands >= 10
